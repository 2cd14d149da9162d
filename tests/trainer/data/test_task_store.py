"""The task store and its demo tasks, nested subsets, and files that are whole or absent."""

from __future__ import annotations

import dataclasses
import io
import pickle
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from trainer.catalog import TASKS
from trainer.data.demo_tasks import make_demo_task
from trainer.data.split import load_split
from trainer.data.subsets import nested_subset
from trainer.data.task_store import SPLITS, Card, Example, write_task
from trainer.data.tasks import open_task
from trainer.data.transforms import TransformName, decode
from trainer.storage.files import read_bytes, write_bytes
from trainer.training.checkpoint import load_state, save_state

DEMO_TASKS = [name for name, row in TASKS.items() if row.group == "demo"]


def png(mode: str, width: int, height: int, colour: object = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (width, height), colour).save(buffer, "PNG")  # type: ignore[arg-type]
    return buffer.getvalue()


@pytest.mark.parametrize("task", DEMO_TASKS)
def test_a_demo_task_is_as_the_catalog_says(task: str, data_root: str) -> None:
    row = TASKS[task]
    keys: list[str] = []
    for split, count in zip(SPLITS, (row.num_train, row.num_val, row.num_test), strict=True):
        loaded = load_split(data_root, task, split, 1.0, 32)
        assert loaded.all_images().shape == (count, 3, 32, 32) and loaded.all_images().dtype == torch.uint8
        # Every class is there, and no other; no image is empty.
        assert sorted(set(loaded.labels_N.tolist())) == list(range(row.num_classes))
        assert bool((loaded.all_images().flatten(1).amax(dim=1) > 127).all())
        keys += loaded.keys

    # No image is in two splits, or twice in one.
    assert len(keys) == row.num_train + row.num_val + row.num_test == len(set(keys))

    card = open_task(data_root, task)
    assert card.counts == {"train": row.num_train, "val": row.num_val, "test": row.num_test}
    assert (card.task, len(card.class_names)) == (task, row.num_classes)


@pytest.mark.parametrize(
    ("train", "val", "test", "warnings"),
    [
        (20, 100, 100, []),
        (19, 99, 0, ["train has 19 images for 10 classes", "val has 99 images: {} up to 10 points (95 %)"]),
        (800, 1, 6, ["val has 1 image: {} up to 98 points (95 %)", "test has 6 images: {} up to 40 points (95 %)"]),
    ],
)
def test_the_card_of_ones_own_task_warns_of_small_splits(train: int, val: int, test: int, warnings: list[str]) -> None:
    names = [str(index) for index in range(10)]
    counts = {"train": train, "val": val, "test": test}
    card = Card(task="own/x", source="", protocol="", class_names=names, counts=counts, fingerprint="")
    uncertain = "accuracies on it are uncertain by"
    assert card.warnings == [sentence.format(uncertain) for sentence in warnings]
    # The sizes of the catalog's tasks are published.
    assert dataclasses.replace(card, task="vtab/dtd").warnings == []


@pytest.mark.parametrize("task", DEMO_TASKS)
def test_a_demo_task_made_in_another_store_has_the_same_bytes(task: str, data_root: str, tmp_path: Path) -> None:
    make_demo_task(str(tmp_path), task)
    assert open_task(str(tmp_path), task) == open_task(data_root, task)
    for split in SPLITS:
        name = f"{task}/{split}.parquet"
        assert (tmp_path / name).read_bytes() == read_bytes(f"{data_root}/{name}")


def test_the_fingerprint_of_a_task_changes_with_any_of_its_examples(tmp_path: Path) -> None:
    row = TASKS["demo/digits"]
    image = png("L", 8, 8)
    counts = dict(zip(SPLITS, (row.num_train, row.num_val, row.num_test), strict=True))
    plain = {s: [Example(key=f"{s}{i}", label=i % 10, image=image) for i in range(n)] for s, n in counts.items()}
    last = plain["test"][-1]
    changes = [{"key": "other"}, {"label": 9 - last.label}, {"image": png("L", 8, 8, 1)}]
    changed = [plain | {"test": [*plain["test"][:-1], dataclasses.replace(last, **change)]} for change in changes]  # type: ignore[arg-type]

    fingerprints = set()
    for splits in (plain, *changed):
        write_task(str(tmp_path), row.name, splits, source="here", class_names=[*"0123456789"], protocol="drawn")
        fingerprints.add(open_task(str(tmp_path), row.name).fingerprint)

    assert len(fingerprints) == 4


def test_trainval_is_train_and_val_together(data_root: str) -> None:
    for share in (1.0, 0.1):
        train, val, both = (load_split(data_root, "demo/digits", s, share, 32) for s in ("train", "val", "trainval"))
        assert both.keys == train.keys + val.keys
        assert torch.equal(both.labels_N, torch.cat([train.labels_N, val.labels_N]))
        assert torch.equal(both.all_images(), torch.cat([train.all_images(), val.all_images()]))


def test_a_share_of_a_split_holds_the_rows_of_its_nested_subset(data_root: str) -> None:
    whole, part = (load_split(data_root, "demo/shapes_loc", "train", share, 32) for share in (1.0, 0.1))
    rows = nested_subset(whole.labels_N.numpy(), 0.1)
    assert part.keys == tuple(whole.keys[row] for row in rows)
    assert torch.equal(part.all_images(), whole.all_images()[torch.from_numpy(rows)])
    assert torch.equal(part.labels_N, whole.labels_N[torch.from_numpy(rows)])


@pytest.mark.parametrize(
    "counts", [[100] * 10, [1, 2, 3, 500], [1], [7, 993], [3] * 200], ids=["even", "rare", "one", "two", "many"]
)
def test_tuning_sets_are_nested_stratified_and_the_same_each_time(counts: list[int]) -> None:
    labels_N = np.random.default_rng(5).permutation(np.repeat(np.arange(len(counts)), counts)).astype(np.int64)
    smaller: set[int] = set()
    for share in (1e-9, 0.001, 0.01, 0.05, 0.1, 0.25, 1 / 3, 0.5, 0.999, 1.0):
        rows = nested_subset(labels_N, share)
        assert rows.tolist() == sorted(set(rows.tolist())) == nested_subset(labels_N, share).tolist()
        assert smaller <= set(rows.tolist())
        for label, count in enumerate(counts):
            taken = int((labels_N[rows] == label).sum())
            assert taken >= 1 and (taken == 1 or abs(taken - Fraction(share) * count) < 1)
        smaller = set(rows.tolist())

    assert len(smaller) == sum(counts)


COUNTS = {"even": [100] * 10, "rare": [1, 2, 3, 500], "one": [1], "two": [7, 993], "many": [3] * 200, "gap": [5, 0, 9]}
"""Images of each class."""


@pytest.mark.parametrize("classes", COUNTS)
def test_a_number_of_images_is_met_exactly_and_spread_evenly_over_all_classes(classes: str) -> None:
    counts = {label: count for label, count in enumerate(COUNTS[classes]) if count}
    labels_N = np.random.default_rng(5).permutation(np.repeat(list(counts), list(counts.values()))).astype(np.int64)
    total = len(labels_N)
    numbers = {1, 2, 3, 5, 10, 11, 50, 199, 200, 201, 400, 500, 999, 1000, total - 1, total}

    smaller = set[int]()
    for number in sorted(number for number in numbers if 0 < number <= total):
        rows = nested_subset(labels_N, number)
        assert len(rows) == number, "as many as were asked for"
        assert rows.tolist() == sorted(set(rows.tolist())) == nested_subset(labels_N, number).tolist()
        assert smaller <= set(rows.tolist()), "of two sizes the smaller is in the larger"
        smaller = set(rows.tolist())

        taken = {label: int((labels_N[rows] == label).sum()) for label in counts}
        if number <= len(counts):
            assert max(taken.values()) == 1, "no class has a second image before each has one"
            continue
        assert min(taken.values()) >= 1
        # One share for all classes, to within an image: only a class's first image comes before its turn.
        lowest = max((taken[label] - 1) / count for label, count in counts.items())
        highest = min((taken[label] + 1) / count for label, count in counts.items())
        assert lowest <= highest, taken

    assert len(smaller) == total
    with pytest.raises(ValueError, match="asked for") as caught:
        nested_subset(labels_N, total + 1)
    assert str(caught.value) == f"{total + 1:,} images were asked for, and there are {total:,}. Use at most {total:,}."


def test_the_number_1_is_one_image_and_the_share_1_is_all_images() -> None:
    labels_N = np.repeat(np.arange(10, dtype=np.int64), 7)
    assert len(nested_subset(labels_N, 1)) == 1
    assert len(nested_subset(labels_N, 1.0)) == 70

    # The first ten are one of each class, in an order that mixes them.
    first = [int(labels_N[nested_subset(labels_N, number)].sum()) for number in range(1, 11)]
    order = np.diff([0, *first]).tolist()
    assert sorted(order) == list(range(10)) != order


@pytest.mark.parametrize("transform", ["spt", "vpt"])
def test_a_split_is_loaded_in_the_requested_view(transform: TransformName, data_root: str) -> None:
    fixed, whole = (
        load_split(data_root, "demo/shapes_loc", "train", 30, 32, "cpu", transform, view)
        for view in ("fixed", "whole")
    )  # fmt: skip

    assert (fixed.view, fixed.all_images().shape) == ("fixed", (30, 3, 32, 32))
    assert (whole.view, whole.whole_sizes(torch.arange(30)).unique(dim=0).tolist()) == ("whole", [[64, 64]])
    assert fixed.keys == whole.keys and torch.equal(fixed.labels_N, whole.labels_N)


def test_a_split_keeps_the_shape_of_each_image(tmp_path: Path) -> None:
    row = TASKS["demo/digits"]
    generator = np.random.default_rng(0)
    sides = {s: generator.integers(4, 40, (n, 2)).tolist() for s, n in zip(SPLITS, (800, 200, 797), strict=True)}
    splits = {
        split: [Example(key=f"{split}{i}", label=i % 10, image=png("L", *side)) for i, side in enumerate(sides[split])]
        for split in SPLITS
    }
    write_task(str(tmp_path), row.name, splits, source="here", class_names=[*"0123456789"], protocol="drawn")

    loaded = load_split(str(tmp_path), row.name, "trainval", 0.1, 32, view="whole")
    by_key = {f"{split}{i}": side for split in SPLITS for i, side in enumerate(sides[split])}

    assert len(loaded.keys) == 100
    sizes_N2 = loaded.whole_sizes(torch.arange(100))
    assert sizes_N2.flip(1).tolist() == [by_key[key] for key in loaded.keys]


def test_the_fingerprint_of_whole_views_is_new_and_that_of_fixed_views_is_kept(data_root: str) -> None:
    # Prototypes are stored under it. Those of version 0.1.0 were built from squashed views.
    fixed, whole = (
        load_split(data_root, "demo/digits", "train", 0.05, 32, view=view) for view in ("fixed", "whole")
    )  # fmt: skip
    card = open_task(data_root, "demo/digits")
    assert fixed.fingerprint == f"{card.fingerprint}/train/0.05/spt/32/fixed"
    assert whole.fingerprint == f"{card.fingerprint}/train/0.05/spt/32/whole-2"


def test_the_fingerprint_of_a_split_changes_with_its_images_and_their_transform(data_root: str) -> None:
    plain: tuple[Any, ...] = (data_root, "demo/digits", "train", 0.05, 32, "cpu", "spt", "fixed")
    changes = {1: "demo/shapes_loc", 2: "val", 3: 0.1, 4: 16, 6: "vpt", 7: "whole"}
    changed = [(*plain[:i], change, *plain[i + 1 :]) for i, change in changes.items()]
    one_image = (*plain[:3], 1, *plain[4:])
    fingerprints = [load_split(*arguments).fingerprint for arguments in (plain, *changed, one_image)]

    assert len(set(fingerprints)) == len(fingerprints) == 8
    assert load_split(*plain[:5]).fingerprint == fingerprints[0]


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGB", "RGBA", "LA", "I;16"])
@pytest.mark.parametrize("size", [(32, 32), (1, 1), (8, 8), (33, 50), (500, 20)], ids=str)
def test_every_kind_of_image_becomes_a_square_of_three_channels(mode: str, size: tuple[int, int]) -> None:
    image = decode(png(mode, *size), 32, "spt")
    assert image.shape == (3, 32, 32) and image.dtype == torch.uint8


def test_decoding_keeps_the_centre_of_the_short_side() -> None:
    # Red, green and blue squares in a row or in a column: only the green one remains.
    pixels = np.zeros((40, 120, 3), np.uint8)
    for i in range(3):
        pixels[:, 40 * i : 40 * (i + 1), i] = 255

    for squares in (pixels, pixels.transpose(1, 0, 2)):
        buffer = io.BytesIO()
        Image.fromarray(squares).save(buffer, "PNG")
        image = decode(buffer.getvalue(), 32, "spt")
        assert image[:, 4:28, 4:28].reshape(3, -1).T.tolist() == [[0, 255, 0]] * 576


@pytest.mark.parametrize("wrong", SPLITS)
def test_a_card_lists_the_splits_whose_counts_differ_from_the_catalog(wrong: str, tmp_path: Path) -> None:
    expected = {"train": 800, "val": 200, "test": 797}
    counts = expected | {wrong: expected[wrong] - 1}
    splits = {s: [Example(key=f"{s}{i}", label=0, image=b"") for i in range(n)] for s, n in counts.items()}
    card = write_task(str(tmp_path), "demo/digits", splits, source="here", class_names=[], protocol="drawn")

    assert card.counts == counts
    assert card.differs == [f"{wrong} has {counts[wrong]} of {expected[wrong]} images"]


@contextmanager
def full_disk() -> Iterator[None]:
    """Limit files to a thousand bytes, like a disk that fills up in the middle of a write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_write_that_fails_leaves_the_old_bytes(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "file"
    write_bytes(path, b"old")
    with full_disk(), pytest.raises(OSError, match="File too large"):
        write_bytes(path, bytes(5000))

    assert read_bytes(path) == b"old"
    assert [file.name for file in path.parent.iterdir()] == ["file"], "and nothing half-written lies beside it"

    write_bytes(path, b"new")
    assert read_bytes(path) == b"new"


def test_a_task_whose_write_failed_is_absent_and_can_be_written_later(tmp_path: Path, data_root: str) -> None:
    with full_disk(), pytest.raises(OSError, match="File too large"):
        make_demo_task(str(tmp_path), "demo/digits")
    assert read_bytes(tmp_path / "demo/digits/card.json") is None
    assert open_task(str(tmp_path), "demo/digits") == open_task(data_root, "demo/digits")


def test_files_are_read_by_path_or_uri_and_a_missing_file_is_none(tmp_path: Path) -> None:
    for missing in ("file", "no/such/folder/file"):
        assert read_bytes(tmp_path / missing) is None
        assert load_state(f"file://{tmp_path}/{missing}") is None
    write_bytes(f"file://{tmp_path}/a/b", b"bytes")
    assert read_bytes(str(tmp_path / "a/b")) == b"bytes"


def test_a_state_comes_back_bit_for_bit(tmp_path: Path) -> None:
    noise = torch.randn(50, generator=torch.Generator().manual_seed(0))
    values = torch.tensor([0.1, -0.0, torch.inf, torch.nan, 1e-45, 3e38])
    tensors = {"noise": noise, "values": values, "double": noise.double() / 3, "empty": torch.zeros(0, 0, 96)}
    state = {"tensors": tensors, "epochs": [{"epoch": 1, "loss": 0.1 + 0.2}], "config": "0123456789ab", "none": None}
    save_state(tmp_path / "state.pt", state)

    loaded = load_state(tmp_path / "state.pt")

    assert loaded is not None and loaded.keys() == state.keys()
    assert {k: v for k, v in loaded.items() if k != "tensors"} == {k: v for k, v in state.items() if k != "tensors"}

    for name, tensor in tensors.items():
        restored = loaded["tensors"][name]
        assert (restored.dtype, restored.shape) == (tensor.dtype, tensor.shape)
        assert restored.numpy().tobytes() == tensor.numpy().tobytes()


def test_a_state_that_holds_other_objects_is_not_loaded(tmp_path: Path) -> None:
    save_state(tmp_path / "state.pt", {"reader": io.BytesIO()})
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        load_state(tmp_path / "state.pt")
