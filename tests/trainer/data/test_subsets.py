"""Tuning sets: the parts of train and val that belong to a size, in several draws, and the labels that they cost."""

from __future__ import annotations

import hashlib
import itertools
from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from trainer.data.split import count_labels, load_split
from trainer.data.subsets import TrainSize, nested_subset, num_labels, split_rows

Labels = dict[str, NDArray[np.int64]]


def skewed(count: int, seed: int) -> NDArray[np.int64]:
    """Labels of twelve classes, of which the first has two fifths of the images."""
    chances = np.r_[[0.4], [0.6 / 11] * 11]
    return np.sort(np.random.default_rng(seed).choice(12, size=count, p=chances)).astype(np.int64)


EVEN: Labels = {"train": np.arange(800) % 10, "val": np.arange(200) % 10}
LABELS: dict[str, Labels] = {
    "even": EVEN,
    "skewed": {"train": skewed(300, 7), "val": skewed(90, 8)},
    "as many classes as images of val": {"train": np.arange(1000) % 100, "val": np.arange(100)},
    "a class that val lacks": {"train": np.arange(120) % 6, "val": np.arange(30) % 5},
}
SIZES: list[list[TrainSize]] = [[0.1, 0.25, 0.5, 0.999], [12, 100, 113], ["1 per class", "5 per class", "10 per class"]]
ALL_SIZES = [size for sizes in SIZES for size in sizes]


def rows(
    labels: Labels, split: str, size: TrainSize, val_size: Literal["full", "same"] = "same", draw: int = 0
) -> set[int]:
    """Return the rows that a split selects. Rows of val follow those of train."""
    return set(split_rows(labels, split, size, val_size, draw).tolist())


def digest(rows_N: NDArray[np.int64]) -> str:
    return hashlib.sha256(rows_N.astype(np.int64).tobytes()).hexdigest()[:12]


@pytest.mark.parametrize(
    ("name", "size", "digest_of_0_1_0"),
    [
        ("even", 0.1, "faac04374c2a"), ("even", 0.5, "b1e00b6f9a57"), ("even", 1.0, "a5c12ea608c1"),
        ("even", 12, "99a173fab828"), ("even", 100, "5ee4d7a8f7b9"), ("even", "5 per class", "35963f8df901"),
        ("skewed", 0.1, "ed5d404db36d"), ("skewed", 0.5, "4d9e28564d5b"), ("skewed", 1.0, "98e038d3a30a"),
        ("skewed", 12, "5dc72a8ed324"), ("skewed", 100, "80d2efac190f"), ("skewed", "5 per class", "250df9c38620"),
    ],
)  # fmt: skip
def test_draw_0_is_the_subset_of_version_0_1_0(name: str, size: TrainSize, digest_of_0_1_0: str) -> None:
    labels = LABELS[name]["train"]
    assert digest(nested_subset(labels, size)) == digest_of_0_1_0
    assert digest(nested_subset(labels, size, draw=0)) == digest_of_0_1_0
    # Val does not change what a search learns from.
    for val_size in ("full", "same"):
        assert digest(split_rows(LABELS[name], "train", size, val_size)) == digest_of_0_1_0


@pytest.mark.parametrize(
    ("split", "size", "count", "digest_of_0_1_0"),
    [
        ("train", 0.1, 80, "514c0236edd6"), ("train", 0.5, 401, "03113edd227c"), ("train", 1.0, 800, "1dabf7a92d4e"),
        ("train", 100, 100, "720cc270244e"), ("train", "5 per class", 50, "69fd8d3a5c42"),
        ("val", 1.0, 200, "3722c9a4d179"), ("trainval", 0.1, 100, "98020d1c608b"),
        ("trainval", 0.5, 502, "26b6093a09b2"), ("trainval", 1.0, 1000, "2132bad5cd87"),
        ("trainval", 100, 100, "2753ee854241"), ("trainval", "5 per class", 50, "0e92595c68d1"),
        ("test", 1.0, 797, "518b9324be63"),
    ],
)  # fmt: skip
def test_full_val_takes_the_images_of_version_0_1_0(
    data_root: str, split: str, size: TrainSize, count: int, digest_of_0_1_0: str
) -> None:
    loaded = load_split(data_root, "demo/digits", split, size, 32)
    assert len(loaded) == count
    assert hashlib.sha256("\n".join(loaded.keys).encode()).hexdigest()[:12] == digest_of_0_1_0
    # Fingerprints are stored, and prototypes are found by them.
    assert loaded.fingerprint == f"7fe7c05d6cc34a35/{split}/{size}/spt/32/fixed"


@pytest.mark.parametrize("name", LABELS)
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("draw", [0, 1, 7])
@pytest.mark.parametrize("split", ["train", "val", "trainval"])
def test_within_a_draw_smaller_sets_are_subsets_of_larger_ones(
    name: str, sizes: list[TrainSize], draw: int, split: str
) -> None:
    labels = LABELS[name]
    possible = [size for size in sizes if not isinstance(size, int) or len(labels["train"]) >= size >= 12]
    sets = [rows(labels, split, size, "same", draw) for size in possible]
    assert all(smaller <= larger for smaller, larger in itertools.pairwise(sets))
    assert len(sets[0]) < len(sets[-1]) or split == "val", "val may be too small to shrink"


@pytest.mark.parametrize("name", LABELS)
@pytest.mark.parametrize("size", ALL_SIZES)
def test_draws_differ_and_each_is_the_same_every_time(name: str, size: TrainSize) -> None:
    sets = [split_rows(LABELS[name], "train", size, "same", draw) for draw in range(5)]
    if len(sets[0]) == len(LABELS[name]["train"]):
        pytest.skip("rounded to all images, which can be drawn in one way only")
    again = [split_rows(LABELS[name], "train", size, "same", draw) for draw in range(5)]
    assert len({digest(chosen) for chosen in sets}) == 5
    assert [digest(chosen) for chosen in sets] == [digest(chosen) for chosen in again]
    # Equally large, and with the same images of each class.
    counts = [np.bincount(LABELS[name]["train"][chosen], minlength=100).tolist() for chosen in sets]
    if not isinstance(size, int):
        assert all(count == counts[0] for count in counts)
    assert len({len(chosen) for chosen in sets}) == 1


def test_draws_are_no_shifted_copies_of_each_other() -> None:
    draws = [set(nested_subset(EVEN["train"], 0.1, draw).tolist()) for draw in range(20)]
    overlaps = [len(one & other) for one, other in itertools.combinations(draws, 2)]
    # 80 of 800 at random: 8 in common on average.
    assert 7 < np.mean(overlaps) < 9


@pytest.mark.parametrize("name", LABELS)
@pytest.mark.parametrize("size", ALL_SIZES)
@pytest.mark.parametrize("draw", [0, 3])
def test_val_shrinks_by_the_share_of_train_with_one_image_of_each_class(name: str, size: TrainSize, draw: int) -> None:
    labels = LABELS[name]
    num_train = len(labels["train"])
    share = len(rows(labels, "train", size, "same", draw)) / num_train
    chosen = [row - num_train for row in rows(labels, "val", size, "same", draw)]

    classes = set(labels["val"].tolist())
    assert set(labels["val"][chosen].tolist()) == classes, "one image of each class that val has"
    assert len(chosen) == max(len(classes), round(share * len(labels["val"])))


@pytest.mark.parametrize("name", LABELS)
@pytest.mark.parametrize("size", [*ALL_SIZES, 1.0])
@pytest.mark.parametrize("draw", [0, 2])
def test_a_final_trial_learns_from_exactly_the_labels_of_its_search(name: str, size: TrainSize, draw: int) -> None:
    labels = LABELS[name]
    searched = rows(labels, "train", size, "same", draw)
    judged = rows(labels, "val", size, "same", draw)
    assert searched.isdisjoint(judged)
    assert rows(labels, "trainval", size, "same", draw) == searched | judged

    # The search, and both protocols of a final trial, have used these labels and no others.
    for split in ("train", "trainval"):
        assert num_labels(labels, split, size, "same", draw) == len(searched | judged)


@pytest.mark.parametrize("name", LABELS)
@pytest.mark.parametrize("size", [*ALL_SIZES, 1.0])
def test_with_all_of_val_every_label_that_was_used_counts_once(name: str, size: TrainSize) -> None:
    labels = LABELS[name]
    num_train = len(labels["train"])
    all_val = set(range(num_train, num_train + len(labels["val"])))
    searched = rows(labels, "train", size, "full")
    learnt = rows(labels, "trainval", size, "full")

    assert num_labels(labels, "train", size, "full", 0) == len(searched | all_val)
    assert num_labels(labels, "trainval", size, "full", 0) == len(searched | learnt | all_val)


def test_the_labels_of_a_task_are_counted_from_its_store(data_root: str) -> None:
    assert count_labels(data_root, "demo/digits", "trainval", 0.1, "same") == 80 + 20
    assert count_labels(data_root, "demo/digits", "train", 0.1, "full") == 80 + 200
    assert count_labels(data_root, "demo/digits", "trainval", 1.0) == 1000


def test_a_fingerprint_tells_draws_and_parts_of_val_apart(data_root: str) -> None:
    def part(split: str, size: TrainSize, val_size: Literal["full", "same"], draw: int) -> str:
        loaded = load_split(data_root, "demo/digits", split, size, 32, val_size=val_size, draw=draw)
        *_, name, _, _, _ = loaded.fingerprint.split("/")
        return name

    # Trials are compared image by image if the first three parts of `scored_on` are equal.
    assert part("val", 1.0, "full", 0) == part("val", 1.0, "same", 3) == "1.0"
    assert part("val", 0.1, "same", 0) == "0.1, val same"
    assert part("val", 0.1, "same", 1) == "0.1, val same, draw 1"
    assert part("trainval", "5 per class", "same", 0) == "5 per class, val same"

    # The part of train is the same for both, and so are its prototypes in the cache.
    assert part("train", 0.1, "same", 0) == part("train", 0.1, "full", 0) == "0.1"
    assert part("train", 0.1, "same", 2) == part("train", 0.1, "full", 2) == "0.1, draw 2"
