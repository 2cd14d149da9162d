"""Imports from start to end: how a path is recognised, bad images and full disks, and what `verify` reports."""

from __future__ import annotations

import io
import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.trainer.data.importers.made_sources import lay
from trainer.catalog import TASKS
from trainer.data.importers.archive import ImportRefused
from trainer.data.importers.registry import find_candidates, import_task, sources, unknown_folders
from trainer.data.task_store import Card, TaskMissing, read_card, read_examples
from trainer.data.verify import contact_sheet, verify


def encoded(mode: str = "RGB", kind: str = "JPEG", seed: int = 0) -> bytes:
    """A picture of noise, another one for each seed."""
    noise = np.random.default_rng(seed).integers(0, 2**16, (24, 24, 4))
    if mode == "I;16":
        picture = Image.fromarray(noise[:, :, 0].astype(np.uint16))
    else:
        picture = Image.fromarray((noise // 256).astype(np.uint8), "RGBA").convert("RGB").convert(mode)
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return buffer.getvalue()


def vtab_folder(path: Path, changes: dict[str, bytes | str] | None = None) -> Path:
    """Ten images of vtab/dmlab in the `vtab-1k` layout: six to train, two to validate, two to test."""
    names = [f"images/{i:06}.jpg" for i in range(10)]
    lines = [f"{name} {i % 6}" for i, name in enumerate(names)]
    files: dict[str, bytes | str] = {name: encoded(seed=i) for i, name in enumerate(names)}
    lists = {"train800.txt": lines[:6], "val200.txt": lines[6:8], "test.txt": lines[8:]}
    files |= {name: "\n".join(part) + "\n" for name, part in lists.items()}
    return lay(path / "dmlab", files | (changes or {}))


def test_folders_that_are_no_source_are_named(tmp_path: Path) -> None:
    vtab_folder(tmp_path)
    assert unknown_folders(tmp_path, find_candidates(tmp_path)) == []
    assert unknown_folders(tmp_path / "dmlab", find_candidates(tmp_path / "dmlab")) == [], "its images"

    vtab_folder(tmp_path / "moved").rename(tmp_path / "dmlab_old")
    for name in ("moved/empty", ".git", "holidays"):
        (tmp_path / name).mkdir(parents=True)
    assert unknown_folders(tmp_path, find_candidates(tmp_path)) == ["dmlab_old", "holidays", "moved"]


def imported(path: Path, root: Path, task: str | None = None) -> Card:
    (candidate,) = find_candidates(path, task)
    return import_task(str(root), candidate, lambda done, total: None)


def test_an_import_is_in_the_store_with_a_complete_card(tmp_path: Path) -> None:
    progress: list[tuple[int, int]] = []
    (candidate,) = find_candidates(vtab_folder(tmp_path))
    card = import_task(str(tmp_path / "store"), candidate, lambda done, total: progress.append((done, total)))

    assert progress == [(i, 10) for i in range(1, 11)]

    assert card == read_card(str(tmp_path / "store"), "vtab/dmlab")
    assert (card.protocol, card.counts) == ("published", {"train": 6, "val": 2, "test": 2})
    assert card.importer.endswith("vtab-1k") and card.source == "vtab-1k: dmlab"
    assert card.differs == [
        "train has 6 of 800 images", "val has 2 of 200 images", "test has 2 of 22,735 images"
    ]  # fmt: skip

    train = list(read_examples(str(tmp_path / "store"), "vtab/dmlab", "train"))
    assert [example.label for example in train] == [0, 1, 2, 3, 4, 5]
    assert [example.image for example in train] == [encoded(seed=i) for i in range(6)]


def test_the_fingerprint_changes_with_the_source_and_with_nothing_else(tmp_path: Path) -> None:
    fingerprints = [imported(vtab_folder(tmp_path / "a"), tmp_path / store).fingerprint for store in ("x", "y", "x")]
    changed = imported(vtab_folder(tmp_path / "b", {"images/000000.jpg": encoded(seed=99)}), tmp_path / "x")
    assert len({*fingerprints}) == 1 and changed.fingerprint not in fingerprints


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"images/000009.jpg": encoded()[:300]}, "images/000009.jpg cannot be decoded"),
        ({"images/000009.jpg": b"no image"}, "images/000009.jpg cannot be decoded"),
        ({"images/000009.jpg": b""}, "images/000009.jpg cannot be decoded"),
        ({"test.txt": "images/000008.jpg 2\nimages/nowhere.jpg 3\n"}, "nowhere.jpg"),
        ({"test.txt": "images/000008.jpg 2\nimages/000009.jpg 6\n"}, "6"),
        ({"test.txt": "images/000008.jpg 2\nimages/000008.jpg 2\n"}, "000008.jpg"),
        ({"test.txt": ""}, "test.txt"),
        ({"test.txt": "images/000008.jpg two\n"}, "two"),
    ],
)
@pytest.mark.parametrize("is_stored", [False, True], ids=["first import", "second import"])
def test_a_bad_source_is_refused_and_the_store_stays_as_it_was(
    changes: dict[str, bytes | str], problem: str, is_stored: bool, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    before = imported(vtab_folder(tmp_path / "good"), store) if is_stored else None
    with pytest.raises(ImportRefused) as caught:
        imported(vtab_folder(tmp_path / "bad", changes), store)
    assert problem in str(caught.value)

    assert read_card(str(store), "vtab/dmlab") == before

    files = sorted(file.name for file in store.rglob("*") if file.is_file())
    assert files == (["card.json", "test.parquet", "train.parquet", "val.parquet"] if is_stored else [])
    assert not is_stored or not verify(str(store), "vtab/dmlab").problems


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path) -> None:
    (candidate,) = find_candidates(vtab_folder(tmp_path))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            import_task(str(tmp_path / "store"), candidate, lambda done, total: None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert [file for file in (tmp_path / "store").rglob("*") if file.is_file()] == []


@pytest.mark.parametrize(
    ("mode", "kind", "repair"),
    [("CMYK", "JPEG", "CMYK, converted to RGB"), ("I;16", "PNG", "16 bits, scaled to 8"), ("L", "JPEG", None)],
)
def test_images_of_other_kinds_are_read_and_counted(mode: str, kind: str, repair: str | None, tmp_path: Path) -> None:
    changes: dict[str, bytes | str] = {f"images/{i:06}.jpg": encoded(mode, kind, i) for i in (1, 3, 8)}
    card = imported(vtab_folder(tmp_path, changes), tmp_path / "store")
    counted = {
        "train": "2 images of train: {} (images/000001.jpg, images/000003.jpg)",
        "test": "1 image of test: {} (images/000008.jpg)",
    }
    assert card.repairs == ([sentence.format(repair) for sentence in counted.values()] if repair else [])
    assert not verify(str(tmp_path / "store"), "vtab/dmlab").problems


def test_a_folder_of_sources_gives_all_of_them_or_the_one_of_a_task(tmp_path: Path) -> None:
    vtab_folder(tmp_path)
    (tmp_path / "dmlab").rename(tmp_path / "kitti")
    lists = dict.fromkeys(("train800.txt", "val200.txt", "test.txt"), "images/000000.jpg 0\nimages/000001.jpg 3\n")
    vtab_folder(tmp_path, dict(lists))

    assert [candidate.task for candidate in find_candidates(tmp_path)] == ["vtab/dmlab", "vtab/kitti"]
    assert [candidate.task for candidate in find_candidates(tmp_path, "vtab/kitti")] == ["vtab/kitti"]


@pytest.mark.parametrize(
    ("make", "task", "problem"),
    [
        (lambda path: path / "nowhere", None, "there is no such file or folder"),
        (lambda path: lay(path / "x", {"notes.txt": "hello"}), None, "it begins with notes.txt"),
        (vtab_folder, "vtab/dtd", "dmlab, not vtab/dtd"),
        (vtab_folder, "dtd", "'dtd' is not a task"),
        (lambda path: lay(path / "pets", {f"{k}/1.jpg": encoded() for k in "ab"}), None, "such as --task own/pets"),
    ],
)
def test_a_path_that_is_no_source_is_refused_with_the_way_out(
    make: Callable[[Path], Path], task: str | None, problem: str, tmp_path: Path
) -> None:
    with pytest.raises(ImportRefused) as caught:
        find_candidates(make(tmp_path), task)
    assert problem in str(caught.value)


def test_a_users_own_images_become_a_task_of_the_given_name(tmp_path: Path) -> None:
    images = {f"{k}/{i}.jpg": encoded(seed=100 * ord(k) + i) for k in "abc" for i in range(20)}
    card = imported(lay(tmp_path / "pets", images), tmp_path / "store", "own/pets")
    assert card.class_names == ["a", "b", "c"] and sum(card.counts.values()) == 60
    assert card.protocol.startswith("resampled") and not verify(str(tmp_path / "store"), "own/pets").problems


def test_verify_reports_everything_that_the_card_contradicts(tmp_path: Path) -> None:
    store = tmp_path / "store"
    imported(vtab_folder(tmp_path), store)
    path = store / "vtab/dmlab/test.parquet"
    rows = pq.read_table(path).to_pylist()
    rows[0] |= {"label": 17, "key": "images/000000.jpg", "image": encoded()[:200]}
    table = pq.read_table(path)
    pq.write_table(table.from_pylist([*rows, rows[1]], table.schema), path)

    problems = "\n".join(verify(str(store), "vtab/dmlab").problems)
    for problem in (
        "key images/000000.jpg is in train and in test",
        "images/000000.jpg in test cannot be decoded",
        "key images/000009.jpg is in test and in test",
        "test has 3 images, the card says 2",
        "test has labels outside 0..5: [17]",
        "the files were changed",
    ):
        assert problem in problems


def test_verify_notes_images_in_two_splits_and_classes_without_an_image(tmp_path: Path) -> None:
    imported(vtab_folder(tmp_path, {"images/000009.jpg": encoded(seed=2)}), tmp_path / "store")
    verdict = verify(str(tmp_path / "store"), "vtab/dmlab")
    assert not verdict.problems
    assert "1 image is in two splits, byte for byte: images/000009.jpg (train and test)" in verdict.notes
    assert "val has no image of 2, 3, 4 and 1 more" in verdict.notes


def test_verify_does_not_make_a_demo_task_and_a_contact_sheet_does(tmp_path: Path) -> None:
    with pytest.raises(TaskMissing) as caught:
        verify(str(tmp_path), "demo/digits")
    assert str(caught.value) == (
        f"demo/digits is not in the task store {tmp_path}. "
        "It is made at its first use, for example by `sptune data show demo/digits`."
    )
    assert not list(tmp_path.iterdir())

    contact_sheet(str(tmp_path), "demo/digits")
    assert not verify(str(tmp_path), "demo/digits").problems


def test_a_contact_sheet_has_a_row_per_class(tmp_path: Path) -> None:
    imported(vtab_folder(tmp_path), tmp_path / "store")
    with Image.open(io.BytesIO(contact_sheet(str(tmp_path / "store"), "vtab/dmlab", classes=6, images=3))) as sheet:
        assert sheet.size == (190 + 3 * 100, 6 * 100 + 4)
        # One image of each class: something in the first column, nothing in the second.
        assert all(sheet.getpixel((190 + 48, 52 + 100 * row)) != (255, 255, 255) for row in range(6))
        assert all(sheet.getpixel((290 + 48, 52 + 100 * row)) == (255, 255, 255) for row in range(6))


def test_every_task_can_be_imported_from_official_files_tfds_or_a_vtab_1k_folder() -> None:
    forms = {task: {source.form for source in sources() if task in source.tasks} for task in TASKS}
    for task, row in TASKS.items():
        wanted = {"vtab": {"official", "tfds", "vtab-1k"}, "fgvc": {"official"}, "demo": set()}[task.partition("/")[0]]
        assert forms[task] == wanted, row
