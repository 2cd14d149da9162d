"""The division of a source among the splits: disjoint, of the right sizes, and the same at every import."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.trainer.data.importers.made_sources import FORMS, divided_keys, jpeg, numbered, task
from trainer.data.importers.archive import ImportRefused, SourceFiles
from trainer.data.importers.formats.split_lists import ONE_PART, TWO_PARTS
from trainer.data.importers.source import Listing, SourceRecord, encode_png, split_records
from trainer.data.importers.sources.folders import own_folder, own_row

SPLITS = ("train", "val", "test")


def unread(records: Sequence[SourceRecord]) -> Iterator[bytes]:
    raise AssertionError("nothing is read to divide")


def listing(parts: dict[str, int], draw: dict[str, str] | None) -> Listing:
    records = [SourceRecord(f"{part}/{key}", i % 3, part, i) for part, n in parts.items() for key, i in numbered(n)]
    return Listing(records=records, class_names=["a", "b", "c"], read=unread, draw=draw)


CASES = {
    "published": ({"train": 20, "val": 5, "test": 7}, None, (20, 5, 7)),
    "val from train": ({"train": 30, "test": 11}, TWO_PARTS, (27, 3, 11)),
    "all from one": ({"all": 100}, ONE_PART, (80, 10, 10)),
    "some of one": ({"all": 500}, ONE_PART, (80, 10, 10)),
    "one each": ({"all": 3}, ONE_PART, (1, 1, 1)),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seed", [0, 1, 12])
def test_splits_are_disjoint_sorted_of_the_right_size_and_from_their_parts(case: str, seed: int) -> None:
    parts, draw, counts = CASES[case]
    row = task(3, *counts)
    splits = divided_keys(listing(parts, draw), row, seed)

    assert tuple(len(splits[split]) for split in SPLITS) == counts

    keys = [key for split in SPLITS for key in splits[split]]
    assert len(set(keys)) == len(keys)

    for split in SPLITS:
        assert splits[split] == sorted(splits[split])
        assert {key.partition("/")[0] for key in splits[split]} == {draw[split] if draw else split}


@pytest.mark.parametrize("case", CASES)
def test_the_splits_do_not_depend_on_the_order_of_the_records(case: str) -> None:
    parts, draw, counts = CASES[case]
    row = task(3, *counts)
    made = listing(parts, draw)
    expected = divided_keys(made, row)
    for seed in range(5):
        random.Random(seed).shuffle(made.records)
        assert divided_keys(made, row) == expected


def test_splits_follow_the_seed_and_the_protocol_names_it() -> None:
    made = listing({"all": 100}, ONE_PART)
    row = task(3, 80, 10, 10)
    assert divided_keys(made, row, 0) == divided_keys(made, row, 0) != divided_keys(made, row, 1)
    assert split_records(made, row, 7)[1] == "resampled with seed 7"
    assert split_records(listing({"train": 2, "val": 1, "test": 1}, None), row, 7)[1] == "published"


def test_the_splits_of_a_seed_never_change() -> None:
    # Should numpy ever draw otherwise from a seed, results on resampled tasks are no longer comparable with older ones.
    records = [SourceRecord(str(i), 0, "all", i) for i in range(10)]
    made = Listing(records=records, class_names=["a"], read=unread, draw=ONE_PART)
    assert divided_keys(made, task(1, 6, 2, 2)) == {
        "train": ["2", "3", "4", "5", "6", "7"],
        "val": ["0", "9"],
        "test": ["1", "8"],
    }


def test_published_parts_are_taken_whole_even_if_the_catalog_has_other_counts() -> None:
    splits = divided_keys(listing({"train": 4, "val": 2, "test": 3}, None), task(3, 1, 1, 1))
    assert {split: len(keys) for split, keys in splits.items()} == {"train": 4, "val": 2, "test": 3}


@pytest.mark.parametrize(
    ("parts", "draw", "wanted", "drawn"),
    [
        # Too few for test only: train and val get their full size, test gets the rest.
        ({"all": 95}, ONE_PART, (80, 10, 10), (80, 10, 5)),
        # Too few for train and val too: all splits shrink in proportion.
        ({"all": 90}, ONE_PART, (80, 10, 10), (72, 9, 9)),
        ({"all": 50}, ONE_PART, (80, 10, 10), (40, 5, 5)),
        ({"train": 50, "test": 3}, TWO_PARTS, (90, 10, 3), (45, 5, 3)),
        ({"train": 100, "test": 2}, TWO_PARTS, (90, 10, 3), (90, 10, 2)),
    ],
)
def test_with_too_few_images_the_splits_shrink_by_the_rule(
    parts: dict[str, int], draw: dict[str, str], wanted: tuple[int, int, int], drawn: tuple[int, int, int]
) -> None:
    splits = divided_keys(listing(parts, draw), task(3, *wanted))
    assert tuple(len(splits[split]) for split in SPLITS) == drawn


@pytest.mark.parametrize(
    ("parts", "draw", "lacking"),
    [
        ({"all": 0}, ONE_PART, "train, val, test; it has 0 in all"),
        ({"all": 5}, ONE_PART, "val, test; it has 5 in all"),
        ({"train": 5, "test": 2}, None, "val; it has 7 in all"),
        ({"train": 50}, TWO_PARTS, "test; it has 50 in all"),
        ({"train": 3, "test": 3}, TWO_PARTS, "val; it has 6 in all"),
    ],
)
def test_an_empty_split_is_refused(parts: dict[str, int], draw: dict[str, str] | None, lacking: str) -> None:
    with pytest.raises(ImportRefused) as refused:
        split_records(listing(parts, draw), task(3, 80, 10, 10))
    assert f"has no image for {lacking}" in str(refused.value)


def test_repeated_keys_are_refused_and_the_first_three_are_named() -> None:
    made = listing({"all": 10_000}, ONE_PART)
    made.records.extend([SourceRecord(record.key, 0, "all", 0) for record in made.records[:5]])
    with pytest.raises(ImportRefused) as refused:
        split_records(made, task(3, 80, 10, 10))

    # The first three in the order of their names.
    names = sorted(record.key for record in made.records[:5])
    assert f"5 come more than once: {', '.join(names[:3])}, ...." in str(refused.value)


def test_an_archive_and_a_folder_give_the_same_splits_and_bytes(tmp_path: Path) -> None:
    files = {f"birds/{'ab'[i % 2]}/{name}": jpeg(i) for name, i in numbered(40)}
    divisions = []
    contents = []
    for form, write in FORMS.items():
        made = own_folder(SourceFiles(write(tmp_path / form, files)), "own/birds")
        splits, protocol = split_records(made, own_row(made, "own/birds"))
        divisions.append({split: [(r.key, r.label) for r in records] for split, records in splits.items()})
        contents.append([image for split in SPLITS for image in made.read(splits[split])])
        assert protocol == "resampled with seed 0"

    assert [len(divisions[0][split]) for split in SPLITS] == [32, 4, 4]
    assert all(division == divisions[0] for division in divisions)
    assert all(content == contents[0] for content in contents)

    # Each image comes with its own key.
    keys = [key for split in SPLITS for key, _ in divisions[0][split]]
    assert contents[0] == [files[f"birds/{key}"] for key in keys]


def test_png_keeps_every_pixel_of_colour_and_grey_images() -> None:
    for shape in ((5, 4, 3), (5, 4)):
        pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        data = encode_png(pixels)
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), pixels)
        assert encode_png(pixels.copy()) == data
