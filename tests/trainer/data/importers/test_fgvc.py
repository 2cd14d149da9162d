"""Tests of the FGVC tasks from small sources in the forms of their makers. Labels are worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.data.importers.fgvc_sources import (
    CARS,
    CUB,
    DOGS,
    FLOWERS,
    NABIRDS,
    NEWER_CARS,
    OFFICIAL,
    TASKS,
    Changes,
    cells,
    changed,
    listed,
    mat,
    of_lists,
)
from tests.trainer.data.importers.made_sources import FORMS, divided_keys, jpeg, labels, lay, pack_tar, task
from trainer.data.importers.archive import ImportRefused, SourceFiles
from trainer.data.importers.sources.fgvc import SOURCES


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("task_name", TASKS)
def test_every_form_gives_the_same_listing_and_each_key_its_own_bytes(
    task_name: str, form: str, tmp_path: Path
) -> None:
    files = OFFICIAL[task_name]
    listing = listed(task_name, FORMS[form](tmp_path / form, files))
    assert of_lists(listing) == of_lists(listed(task_name, lay(tmp_path / "again", files)))
    by_end = {
        record.key: [data for name, data in files.items() if name.endswith(record.key)] for record in listing.records
    }
    assert [[image] for image in listing.read(listing.records)] == list(by_end.values())


def test_archives_are_found_in_a_folder_beside_the_lists(tmp_path: Path) -> None:
    # As the dogs are published: images.tar and lists.tar.
    pack_tar(tmp_path / "images.tar", {name: data for name, data in DOGS.items() if name.startswith("Images")})
    pack_tar(tmp_path / "lists.tar", {name: data for name, data in DOGS.items() if name.endswith(".mat")})
    assert len(listed("stanford_dogs", tmp_path).records) == 3
    # As the cars are: an archive each, and the labels of the test beside them.
    folder = tmp_path / "cars"
    for part in ("cars_train", "cars_test", "devkit"):
        pack_tar(folder / f"{part}.tgz", {name: data for name, data in CARS.items() if name.startswith(part)})
    lay(folder, {"cars_test_annos_withlabels.mat": CARS["cars_test_annos_withlabels.mat"]})
    assert len(listed("stanford_cars", folder).records) == 4


def test_each_source_recognises_its_own_task_only(tmp_path: Path) -> None:
    for name, files in {**OFFICIAL, "stanford_cars": NEWER_CARS}.items():
        tree = SourceFiles(lay(tmp_path / name, files))
        assert [source.tasks for source in SOURCES if source.recognise(tree)] == [(f"fgvc/{name}",)]
    nothing = SourceFiles(lay(tmp_path / "none", {"images/1.jpg": jpeg(1), "labels.txt": "1 1"}))
    assert not any(source.recognise(nothing) for source in SOURCES)


def test_cub_counts_classes_from_one_and_draws_val_from_train(tmp_path: Path) -> None:
    listing = listed("cub_200_2011", lay(tmp_path, CUB))
    assert of_lists(listing) == {
        "001.Auk/a_1.jpg": (0, "train"),
        "001.Auk/a_2.jpg": (0, "test"),
        "002.Wren/w_1.jpg": (1, "train"),
        "003.Tit/t_1.jpg": (2, "test"),
    }
    assert listing.class_names == ["001.Auk", "002.Wren", "003.Tit"]
    splits = divided_keys(listing, task(3, 1, 1, 2))
    assert splits["test"] == ["001.Auk/a_2.jpg", "003.Tit/t_1.jpg"]
    assert sorted(splits["train"] + splits["val"]) == ["001.Auk/a_1.jpg", "002.Wren/w_1.jpg"]


def test_nabirds_keeps_the_classes_that_have_images_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    listing = listed("nabirds", lay(tmp_path, NABIRDS))
    # 9 is the first number in use, 817 the second, 1010 the third.
    assert of_lists(listing) == {
        "1010/c0.jpg": (2, "train"),
        "0817/a1.jpg": (1, "train"),
        "0009/b2.jpg": (0, "test"),
        "0817/d3.jpg": (1, "test"),
    }
    assert listing.class_names == ["Ibises", "Oak Titmouse", "Dark-eyed Junco (Red-backed/Gray-headed)"]


def test_flowers_have_their_three_published_parts(tmp_path: Path) -> None:
    listing = listed("oxford_flowers", lay(tmp_path, FLOWERS))
    # imagelabels: images 1 to 6 have 3 3 1 2 2 1.
    assert of_lists(listing) == {
        "jpg/image_00004.jpg": (1, "train"),
        "jpg/image_00001.jpg": (2, "train"),
        "jpg/image_00006.jpg": (0, "val"),
        "jpg/image_00002.jpg": (2, "val"),
        "jpg/image_00005.jpg": (1, "test"),
        "jpg/image_00003.jpg": (0, "test"),
    }
    assert listing.draw is None and listing.class_names == ["1", "2", "3"]


def test_dogs_are_labelled_by_their_lists_and_named_by_their_folders(tmp_path: Path) -> None:
    listing = listed("stanford_dogs", lay(tmp_path, DOGS))
    assert of_lists(listing) == {
        "n02085782-Japanese_spaniel/n02085782_2.jpg": (1, "train"),
        "n02085620-Chihuahua/n02085620_9.jpg": (0, "train"),
        "n02085620-Chihuahua/n02085620_7.jpg": (0, "test"),
    }
    assert listing.class_names == ["n02085620-Chihuahua", "n02085782-Japanese_spaniel"]


def test_cars_of_one_name_in_train_and_test_are_two_cars(tmp_path: Path) -> None:
    listing = listed("stanford_cars", lay(tmp_path, CARS))
    assert of_lists(listing) == {
        "cars_train/00001.jpg": (2, "train"),
        "cars_train/00002.jpg": (0, "train"),
        "cars_test/00001.jpg": (0, "test"),
        "cars_test/00002.jpg": (1, "test"),
    }
    assert listing.class_names == ["Acura RL", "Audi S4", "smart fortwo"]


def test_cars_in_their_newer_form_are_divided_by_the_field_test(tmp_path: Path) -> None:
    listing = listed("stanford_cars", lay(tmp_path, NEWER_CARS))
    assert of_lists(listing) == {
        "car_ims/000001.jpg": (1, "train"),
        "car_ims/000002.jpg": (0, "test"),
        "car_ims/000003.jpg": (0, "train"),
    }
    assert listing.class_names == ["Acura RL", "Audi S4"]


def test_cars_whose_test_list_has_no_classes_are_refused_with_the_file_that_has(tmp_path: Path) -> None:
    path = lay(tmp_path, changed(CARS, {"cars_test_annos_withlabels.mat": None}))
    with pytest.raises(ImportRefused) as refused:
        listed("stanford_cars", path)
    assert "cars_test_annos.mat has no classes. Put cars_test_annos_withlabels.mat next to it" in str(refused.value)
    # Some copies have the classes under the first name.
    lay(path, {"devkit/cars_test_annos.mat": CARS["cars_test_annos_withlabels.mat"]})
    assert labels(listed("stanford_cars", path))["cars_test/00002.jpg"] == 1


def test_cars_without_class_names_are_named_by_their_numbers(tmp_path: Path) -> None:
    listing = listed("stanford_cars", lay(tmp_path, changed(CARS, {"devkit/cars_meta.mat": None})))
    assert listing.class_names == ["1", "2", "3"]


BIRD, LABEL, SPLIT, CLASS = (
    f"CUB_200_2011/{name}.txt" for name in ("images", "image_class_labels", "train_test_split", "classes")
)
WREN = "CUB_200_2011/images/002.Wren/w_1.jpg"
TRAIN = "train_list.mat"
SPANIEL = "n02085782-Japanese_spaniel/n02085782_2.jpg"


@pytest.mark.parametrize(
    ("task_name", "changes", "words"),
    [
        ("cub_200_2011", {LABEL: "1 1\n2 1\n3 9\n4 3\n"}, ["image_class_labels.txt, line 3", "got 9"]),
        ("cub_200_2011", {LABEL: "1 1\n2 1\n\n3 two\n4 3\n"}, ["image_class_labels.txt, line 4", "got 'two'"]),
        (
            "cub_200_2011",
            {LABEL: "1 1\n2 1\n3 2\n3 2\n4 3\n"},
            ["line 4 names 3 a second time, after image_class_labels.txt, line 3"],
        ),
        (
            "cub_200_2011",
            {LABEL: "1 1\n2 1\n4 3\n"},
            ["image_class_labels.txt and images.txt", "3 is in only one of them"],
        ),
        ("cub_200_2011", {LABEL: "1 1\n2\n3 2\n4 3\n"}, ["line 2 must have two columns, got '2'"]),
        ("cub_200_2011", {SPLIT: "1 1\n2 0\n3 2\n4 0\n"}, ["train_test_split.txt, line 3", "got '2'"]),
        ("cub_200_2011", {SPLIT: ""}, ["train_test_split.txt must list images, but it is empty"]),
        ("cub_200_2011", {CLASS: b"1 \xff\xfe\n"}, ["classes.txt must be UTF-8 text"]),
        ("cub_200_2011", {WREN: None}, [f"does not contain {WREN}, which images.txt names"]),
        ("cub_200_2011", {"copy/image_class_labels.txt": "1 1"}, ["one file image_class_labels.txt; there are 2"]),
        (
            "nabirds",
            {"nabirds/images/0009/b2.jpg": None},
            ["does not contain nabirds/images/0009/b2.jpg, which images.txt names"],
        ),
        ("oxford_flowers", {"imagelabels.mat": b"no mat"}, ["imagelabels.mat is not a complete .mat file"]),
        ("oxford_flowers", {"imagelabels.mat": mat(label=[1])}, ["imagelabels.mat must contain the variable 'labels'"]),
        ("oxford_flowers", {"imagelabels.mat": mat(labels=[[0, 1, 1, 1, 1, 1]])}, ["image_00001.jpg", "1 to 1, got 0"]),
        ("oxford_flowers", {"imagelabels.mat": mat(labels=[[1, 1.5, 1, 1, 1, 1]])}, ["image_00002.jpg", "got 1.5"]),
        ("oxford_flowers", {"imagelabels.mat": mat(labels=[[1, 2]])}, ["train in setid.mat must be 1 to 2, got 4"]),
        (
            "oxford_flowers",
            {"jpg/image_00005.jpg": None},
            ["does not contain jpg/image_00005.jpg, which setid.mat names"],
        ),
        ("stanford_dogs", {f"Images/{SPANIEL}": None}, [f"does not contain Images/{SPANIEL}"]),
        ("stanford_dogs", {TRAIN: mat(file_list=cells(SPANIEL), labels=[[1]])}, ["a folder of its own"]),
        ("stanford_dogs", {TRAIN: mat(file_list=cells(SPANIEL), labels=[[0]])}, ["n02085782_2.jpg", "1 to 1, got 0"]),
        ("stanford_dogs", {TRAIN: mat(file_list=cells(SPANIEL), labels=[[1, 2]])}, ["got 1 image and 2 labels"]),
        (
            "stanford_dogs",
            {TRAIN: mat(file_list=cells(), labels=[[]])},
            ["train_list.mat must have rows, but it is empty"],
        ),
        ("stanford_dogs", {"old/Images/n0/x.jpg": b""}, ["must have one folder Images/ of images, it has 2"]),
        ("stanford_cars", {"cars_test/00002.jpg": None}, ["does not contain cars_test/00002.jpg"]),
        (
            "stanford_cars",
            {"devkit/cars_meta.mat": mat(class_names=cells("Acura RL", "Audi S4").T)},
            ["cars_train/00001.jpg must be 1 to 2, got 3"],
        ),
        (
            "stanford_cars",
            {"devkit/cars_train_annos.mat": CARS["devkit/cars_test_annos.mat"]},
            ["the annotations of devkit/cars_train_annos.mat must have the fields fname, class; class is missing"],
        ),
    ],
)
def test_a_wrong_list_is_refused_with_its_line_or_image(
    task_name: str, changes: Changes, words: list[str], tmp_path: Path
) -> None:
    path = lay(tmp_path, changed(OFFICIAL[task_name], changes))
    with pytest.raises(ImportRefused) as refused:
        listed(task_name, path)
    for word in words:
        assert word in str(refused.value)


def test_an_image_in_two_parts_is_refused_when_divided(tmp_path: Path) -> None:
    twice = mat(trnid=[[1, 4]], valid=[[4, 2]], tstid=[[3]])
    listing = listed("oxford_flowers", lay(tmp_path, changed(FLOWERS, {"setid.mat": twice})))
    with pytest.raises(ImportRefused, match=r"1 come more than once: jpg/image_00004\.jpg"):
        divided_keys(listing, task(3, 2, 2, 1))


def test_only_lists_are_read_until_images_are_requested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    read_all: Callable[..., Any] = SourceFiles.read_all

    def recording(tree: SourceFiles, names: Any) -> Any:
        read.extend(names)
        return read_all(tree, names)

    monkeypatch.setattr(SourceFiles, "read_all", recording)
    for name, files in OFFICIAL.items():
        listed(name, lay(tmp_path / name, files))
    assert not [name for name in read if name.endswith(".jpg")]
