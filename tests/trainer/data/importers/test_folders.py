"""Tests of the vtab-1k layout and of users' own folders of images. Every expected label is worked out by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.trainer.data.importers.fgvc_sources import Changes, changed, of_lists
from tests.trainer.data.importers.made_sources import FORMS, Files, divided_keys, jpeg, labels, lay
from trainer.catalog import TASKS, Task
from trainer.data.importers.archive import ImportRefused, SourceFiles
from trainer.data.importers.formats.split_lists import ONE_PART, TWO_PARTS
from trainer.data.importers.source import Listing, SourceRecord
from trainer.data.importers.sources.folders import SOURCES, VTAB_1K_TASKS, own_folder, own_row

ONLY_TRAIN = {"train": "train", "val": "train", "test": "train"}

CIFAR: Files = {
    "train800.txt": "images/train/000000.jpg 19\nimages/train/000001.jpg 0\n",
    "val200.txt": "images/train/000800.jpg 3\n",
    "train800val200.txt": "images/train/000000.jpg 19\nimages/train/000001.jpg 0\nimages/train/000800.jpg 3\n",
    "test.txt": "images/test/000000.jpg 99\n",
    "images/train/000000.jpg": jpeg(1),
    "images/train/000001.jpg": jpeg(2),
    "images/train/000800.jpg": jpeg(3),
    "images/test/000000.jpg": jpeg(4),
    "images/test/000001.jpg": jpeg(5),
}


def within(folder: str, files: Files) -> Files:
    return {f"{folder}/{name}": content for name, content in files.items()}


def listed(task: str, path: Path) -> Listing:
    """Return the listing of the one source that recognises the path."""
    tree = SourceFiles(path)
    (source,) = (source for source in SOURCES if task in source.tasks and source.recognise(tree))
    return source.listing(tree, task)


def test_the_nineteen_folders_have_a_task_each() -> None:
    assert len(set(VTAB_1K_TASKS.values())) == len(VTAB_1K_TASKS) == 19
    vtab = {name for name in TASKS if name.startswith("vtab/")}
    assert not vtab or vtab == set(VTAB_1K_TASKS.values())
    sources = {task: source for source in SOURCES for task in source.tasks}
    assert sources.keys() == set(VTAB_1K_TASKS.values())
    assert sources["vtab/kitti"].licence == "CC BY-NC-SA 3.0" and sources["vtab/dtd"].licence is None


@pytest.mark.parametrize("form", FORMS)
def test_a_task_of_vtab_1k_is_listed_alike_alone_and_among_others_in_every_form(form: str, tmp_path: Path) -> None:
    expected = {
        "images/train/000000.jpg": (19, "train"),
        "images/train/000001.jpg": (0, "train"),
        "images/train/000800.jpg": (3, "val"),
        "images/test/000000.jpg": (99, "test"),
    }
    others = within("vtab-1k/dtd", changed(CIFAR, {"test.txt": "images/test/000001.jpg 46\n"}))
    for name, files in {
        "cifar": CIFAR,
        "wrapped": within("cifar", CIFAR),
        "all": {**within("vtab-1k/cifar", CIFAR), **others},
    }.items():
        listing = listed("vtab/cifar100", FORMS[form](tmp_path / name / form.replace("x.", "cifar."), files))
        assert of_lists(listing) == expected
        assert listing.draw is None
        assert listing.class_names == [str(i) for i in range(100)]
        assert list(listing.read(listing.records)) == [CIFAR[record.key] for record in listing.records]
    assert labels(listed("vtab/dtd", tmp_path / "all" / form.replace("x.", "cifar.")))["images/test/000001.jpg"] == 46


def test_a_lone_folder_is_taken_for_any_task_unless_it_has_anothers_name(tmp_path: Path) -> None:
    assert len(listed("vtab/cifar100", lay(tmp_path / "my copy", CIFAR)).records) == 4
    tree = SourceFiles(lay(tmp_path / "svhn", CIFAR))
    assert [source.tasks for source in SOURCES if source.tasks and source.recognise(tree)] == [("vtab/svhn",)]
    with pytest.raises(ImportRefused) as refused:
        SOURCES[0].listing(tree, "vtab/cifar100")
    assert "for vtab/cifar100, called cifar; it has svhn" in str(refused.value)
    # Two copies of one task contradict each other.
    twice = SourceFiles(lay(tmp_path / "two", {**within("a/cifar", CIFAR), **within("b/cifar", CIFAR)}))
    with pytest.raises(ImportRefused, match="it has cifar, cifar"):
        SOURCES[0].listing(twice, "vtab/cifar100")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"val200.txt": None}, ["lacks val200.txt"]),
        ({"val200.txt": "\n \n"}, ["val200.txt must list images, but it is empty"]),
        ({"val200.txt": "images/train/000800.jpg 3\nimages/train/000001.jpg\n"}, ["val200.txt, line 2", "two columns"]),
        ({"val200.txt": "\nimages/train/000800.jpg 3.0\n"}, ["val200.txt, line 2", "whole number from 0, got '3.0'"]),
        ({"val200.txt": "images/train/000800.jpg -3\n"}, ["val200.txt, line 1", "got '-3'"]),
        ({"test.txt": "images/test/1.jpg 1\n"}, ["does not contain images/test/1.jpg"]),
        ({"images/test/000000.jpg": None}, ["does not contain images/test/000000.jpg"]),
    ],
)
def test_a_wrong_list_of_vtab_1k_is_refused_with_its_line(changes: Changes, words: list[str], tmp_path: Path) -> None:
    with pytest.raises(ImportRefused) as refused:
        listed("vtab/cifar100", lay(tmp_path / "cifar", changed(CIFAR, changes)))
    for word in words:
        assert word in str(refused.value)


def test_a_label_that_the_catalogs_task_does_not_have_is_refused_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = Task(name="vtab/cifar100", group="natural", num_classes=99, num_train=2, num_val=1, num_test=1)
    monkeypatch.setitem(TASKS, "vtab/cifar100", row)
    with pytest.raises(ImportRefused, match=r"test\.txt, line 1 must give a class from 0 to 98, got 99"):
        listed("vtab/cifar100", lay(tmp_path / "cifar", CIFAR))


def test_an_image_in_two_lists_of_vtab_1k_is_refused_when_divided(tmp_path: Path) -> None:
    files = changed(CIFAR, {"val200.txt": "images/train/000001.jpg 0\n"})
    listing = listed("vtab/cifar100", lay(tmp_path / "cifar", files))
    with pytest.raises(ImportRefused, match=r"1 come more than once: images/train/000001\.jpg"):
        divided_keys(listing, own_row(listing, "own/x"))


OWN: Files = {
    "train/dog/1.jpg": jpeg(1),
    "train/cat/1.JPEG": jpeg(2),
    "train/a cat/x.png": jpeg(3),
    "val/cat/2.jpg": jpeg(4),
    "test/dog/1.jpg": jpeg(5),
    "test/cat/9.webp": jpeg(6),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("around", ["", "pets/", "a/b/"])
def test_own_parts_are_the_published_splits_in_any_folder(form: str, around: str, tmp_path: Path) -> None:
    files = {f"{around}{name}": content for name, content in OWN.items()}
    listing = own_folder(SourceFiles(FORMS[form](tmp_path / form, files)), "own/pets")
    # The classes in the order of their names: a cat, cat, dog.
    assert of_lists(listing) == {
        "train/dog/1.jpg": (2, "train"),
        "train/cat/1.JPEG": (1, "train"),
        "train/a cat/x.png": (0, "train"),
        "val/cat/2.jpg": (1, "val"),
        "test/dog/1.jpg": (2, "test"),
        "test/cat/9.webp": (1, "test"),
    }
    assert (listing.draw, listing.class_names) == (None, ["a cat", "cat", "dog"])
    assert list(listing.read(listing.records)) == [OWN[record.key] for record in listing.records]
    row = own_row(listing, "own/pets")
    assert (row.name, row.num_classes, row.num_train, row.num_val, row.num_test) == ("own/pets", 3, 3, 1, 2)


@pytest.mark.parametrize("name", ["valid", "validation", "Val"])
def test_val_has_the_names_that_users_give_it(name: str, tmp_path: Path) -> None:
    files = {key.replace("val/", f"{name}/"): content for key, content in OWN.items()}
    listing = own_folder(SourceFiles(lay(tmp_path, files)), "own/pets")
    assert of_lists(listing)[f"{name}/cat/2.jpg"] == (1, "val") and listing.draw is None


def test_without_val_it_is_drawn_from_train_and_without_parts_all_are_drawn(tmp_path: Path) -> None:
    files = {f"{part}/{kind}/{i}.jpg": jpeg(i) for part in ("train", "test") for kind in "ab" for i in range(10)}
    two = own_folder(SourceFiles(lay(tmp_path / "two", files)), "own/x")
    assert two.draw == TWO_PARTS
    splits = divided_keys(two, own_row(two, "own/x"))
    assert [len(splits[split]) for split in ("train", "val", "test")] == [18, 2, 20]
    assert all(key.startswith("train/") for key in splits["train"] + splits["val"])
    one = own_folder(
        SourceFiles(lay(tmp_path / "one", {name.replace("/", "_", 1): data for name, data in files.items()})), "own/x"
    )
    assert one.draw == ONE_PART and one.class_names == ["test_a", "test_b", "train_a", "train_b"]
    splits = divided_keys(one, own_row(one, "own/x"))
    assert [len(splits[split]) for split in ("train", "val", "test")] == [32, 4, 4]
    # Only train: all three splits are drawn from it.
    train = {name: data for name, data in files.items() if name.startswith("train/")}
    alone = own_folder(SourceFiles(lay(tmp_path / "alone", train)), "own/x")
    assert (alone.draw, alone.class_names) == (ONLY_TRAIN, ["a", "b"])


@pytest.mark.parametrize(
    ("counts", "draw", "wanted"),
    [
        ({"all": 100}, ONE_PART, (80, 10, 10)),
        ({"all": 109}, ONE_PART, (89, 10, 10)),
        ({"all": 3}, ONE_PART, (1, 1, 1)),
        ({"train": 100, "test": 7}, TWO_PARTS, (90, 10, 7)),
        ({"train": 2, "test": 1}, TWO_PARTS, (1, 1, 1)),
        ({"train": 40}, ONLY_TRAIN, (32, 4, 4)),
        ({"train": 5, "val": 2, "test": 1}, None, (5, 2, 1)),
    ],
)
def test_an_own_row_counts_each_image_once(
    counts: dict[str, int], draw: dict[str, str] | None, wanted: tuple[int, int, int]
) -> None:
    records = [SourceRecord(f"{part}/{i:03d}", i % 2, part, i) for part, count in counts.items() for i in range(count)]
    listing = Listing(records=records, class_names=["a", "b"], read=lambda _: iter(()), draw=draw)
    row = own_row(listing, "own/x")
    assert (row.num_train, row.num_val, row.num_test) == wanted
    assert sum(wanted) == len(records)
    assert tuple(len(keys) for keys in divided_keys(listing, row).values()) == wanted


@pytest.mark.parametrize("count", [0, 1, 2])
def test_too_few_own_images_for_three_splits_are_refused(count: int) -> None:
    records = [SourceRecord(str(i), i, "all", i) for i in range(count)]
    listing = Listing(records=records, class_names=["a", "b"], read=lambda _: iter(()), draw=ONE_PART)
    with pytest.raises(ImportRefused, match=f"it has {count} in all"):
        divided_keys(listing, own_row(listing, "own/x"))


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["notes.txt"], ["must contain one folder of images per class, and has no image"]),
        (["1.jpg", "2.jpg"], ["1.jpg must be at the same depth as the other images: class/image.jpg"]),
        (["a/1.jpg", "a/2.jpg"], ["two classes or more, got a"]),
        (["a/1.jpg", "b/1.jpg", "1.jpg"], ["1.jpg must be at the same depth as the other images: class/image.jpg"]),
        # A class in a class: it is not clear which of them is meant.
        (["a/abbey/1.jpg", "b/1.jpg"], ["a/abbey/1.jpg must be at the same depth as the other images"]),
        (["val/a/1.jpg", "val/b/2.jpg"], ["train and test", "got val."]),
        (
            ["train/a/1.jpg", "train/b/2.jpg", "val/a/1.jpg"],
            ["got train and val.", "Give the part to be tested on the name test"],
        ),
        (["train/a/1.jpg", "train/b/1.jpg", "test/1.jpg"], ["test/1.jpg must be", "train/class/image.jpg"]),
        (
            ["train/a/1.jpg", "train/b/1.jpg", "test/a/1.jpg", "extra/a/1.jpg"],
            ["extra/a/1.jpg must be in one of the folders test, train"],
        ),
        (
            ["train/a/1.jpg", "train/b/1.jpg", "test/B/1.jpg"],
            ["test/B/1.jpg", "train has, got 'B'. Check the spelling"],
        ),
    ],
)
def test_own_folders_that_say_too_little_are_refused(files: list[str], words: list[str], tmp_path: Path) -> None:
    with pytest.raises(ImportRefused) as refused:
        own_folder(SourceFiles(lay(tmp_path, dict.fromkeys(files, jpeg(1)))), "own/x")
    for word in words:
        assert word in str(refused.value)


def test_files_that_are_no_images_are_left_out_and_named(tmp_path: Path) -> None:
    more = {"train/labels.csv": "a,b", "README.md": "hello", ".thumbs/cat/1.jpg": jpeg(0)}
    listing = own_folder(SourceFiles(lay(tmp_path, {**OWN, **more})), "own/pets")
    assert len(listing.records) == len(OWN)
    assert listing.repairs == (
        "left out 1 file .csv, which is no image that Pillow reads: train/labels.csv",
        "left out 1 file .md, which is no image that Pillow reads: README.md",
        "left out 1 hidden file or folder, or of a system: .thumbs",
    )


def test_a_folder_of_images_is_recognised_and_a_table_is_not(tmp_path: Path) -> None:
    (source,) = (source for source in SOURCES if source.form == "folder")
    assert source.tasks == ()
    assert source.recognise(SourceFiles(lay(tmp_path / "a", OWN)))
    assert not source.recognise(SourceFiles(lay(tmp_path / "b", {"data/train.parquet": b"", "1.jpg": jpeg(1)})))
