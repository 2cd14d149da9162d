"""Tests of VPT's lists of the FGVC splits. Every expected label is worked out by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.data.importers.fgvc_sources import CUB, FLOWERS, OFFICIAL, Changes, changed, listed, of_lists
from tests.trainer.data.importers.made_sources import labels, lay, parts
from trainer.data.importers.archive import ImportRefused

# VPT's lists: the split of each image and its class number, then the expected records and class names.
VPT: dict[str, tuple[dict[str, dict[str, Any]], dict[str, tuple[int, str]], list[str]]] = {
    "cub_200_2011": (
        {
            "train": {"003.Tit/t_1.jpg": 3, "001.Auk/a_2.jpg": 1},
            "val": {"001.Auk/a_1.jpg": 1},
            "test": {"002.Wren/w_1.jpg": 2},
        },
        {
            "003.Tit/t_1.jpg": (2, "train"),
            "001.Auk/a_2.jpg": (0, "train"),
            "001.Auk/a_1.jpg": (0, "val"),
            "002.Wren/w_1.jpg": (1, "test"),
        },
        ["001.Auk", "002.Wren", "003.Tit"],
    ),
    "nabirds": (
        # VPT's own numbers: 817 is the second of 9, 817 and 1010. Text is read as a number.
        {"train": {"1010/c0.jpg": "1010", "0817/a1.jpg": 817}, "val": {"0817/d3.jpg": 817}, "test": {"0009/b2.jpg": 9}},
        {
            "1010/c0.jpg": (2, "train"),
            "0817/a1.jpg": (1, "train"),
            "0817/d3.jpg": (1, "val"),
            "0009/b2.jpg": (0, "test"),
        },
        ["Ibises", "Oak Titmouse", "Dark-eyed Junco (Red-backed/Gray-headed)"],
    ),
    "stanford_dogs": (
        {
            "train": {"n02085620-Chihuahua/n02085620_7.jpg": 0},
            "val": {"n02085620-Chihuahua/n02085620_9.jpg": 0},
            "test": {"n02085782-Japanese_spaniel/n02085782_2.jpg": 1},
        },
        {
            "n02085620-Chihuahua/n02085620_7.jpg": (0, "train"),
            "n02085620-Chihuahua/n02085620_9.jpg": (0, "val"),
            "n02085782-Japanese_spaniel/n02085782_2.jpg": (1, "test"),
        },
        ["n02085620-Chihuahua", "n02085782-Japanese_spaniel"],
    ),
    "stanford_cars": (
        {"train": {"cars_train/00001.jpg": 3}, "val": {"cars_train/00002.jpg": 1}, "test": {"cars_test/00002.jpg": 2}},
        {"cars_train/00001.jpg": (2, "train"), "cars_train/00002.jpg": (0, "val"), "cars_test/00002.jpg": (1, "test")},
        ["Acura RL", "Audi S4", "smart fortwo"],
    ),
}
ROOTS = {"cub_200_2011": "CUB_200_2011/", "nabirds": "nabirds/"}


def vpt_lists(lists: Mapping[str, Any], folder: str = "") -> dict[str, str]:
    return {f"{folder}{split}.json": json.dumps(images) for split, images in lists.items()}


@pytest.mark.parametrize("where", ["beside the images", "on top"])
@pytest.mark.parametrize("official", [True, False], ids=["with the official lists", "without"])
@pytest.mark.parametrize("task_name", VPT)
def test_vpts_lists_are_the_published_splits(task_name: str, official: bool, where: str, tmp_path: Path) -> None:
    lists, expected, class_names = VPT[task_name]
    kept = {
        name: content
        for name, content in OFFICIAL[task_name].items()
        if official or name.endswith((".jpg", "classes.txt", "cars_meta.mat"))
    }
    folder = ROOTS.get(task_name, "") if where == "beside the images" else ""
    listing = listed(task_name, lay(tmp_path, {**kept, **vpt_lists(lists, folder)}))
    assert listing.draw is None
    assert of_lists(listing) == expected
    assert listing.class_names == class_names
    image = next(listing.read(listing.records[:1]))
    assert image == next(data for name, data in kept.items() if name.endswith(listing.records[0].key))


def test_flowers_take_vpts_lists_only_where_the_official_ones_are_missing(tmp_path: Path) -> None:
    lists = vpt_lists(
        {"train": {"jpg/image_00001.jpg": 7}, "val": {"jpg/image_00002.jpg": 7}, "test": {"jpg/image_00003.jpg": 5}}
    )
    path = lay(tmp_path, {**FLOWERS, **lists})
    assert parts(listed("oxford_flowers", path))["jpg/image_00003.jpg"] == "test" and len(FLOWERS) == 8
    assert len(listed("oxford_flowers", path).records) == 6
    for name in ("setid.mat", "imagelabels.mat"):
        (path / name).unlink()
    listing = listed("oxford_flowers", path)
    assert labels(listing) == {"jpg/image_00001.jpg": 1, "jpg/image_00002.jpg": 1, "jpg/image_00003.jpg": 0}
    assert listing.class_names == ["5", "7"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"val.json": None}, ["must contain all three of VPT's lists or none; val.json is missing"]),
        ({"val.json": "{}"}, ["val.json must map file names to classes, with at least one image"]),
        ({"val.json": "[1, 2]"}, ["val.json must map file names to classes"]),
        ({"val.json": '{"001.Auk/a_1.jpg": '}, ["val.json must be JSON"]),
        ({"val.json": '{"001.Auk/a_1.jpg": 1.5}'}, ["val.json: 001.Auk/a_1.jpg", "whole number from 0, got '1.5'"]),
        ({"val.json": '{"001.Auk/a_1.jpg": -1}'}, ["whole number from 0, got '-1'"]),
        (
            {"val.json": '{"001.Auk/a_2.jpg": 1}'},
            ["val.json must not name 001.Auk/a_2.jpg, which is already in train.json"],
        ),
        (
            {"val.json": '{"001.Auk/a_1.jpg": 1, "001.Auk/a_1.jpg": 1}'},
            ["must not name 001.Auk/a_1.jpg, which is already in val.json"],
        ),
        (
            {"val.json": '{"001.Auk/none.jpg": 1}'},
            ["does not contain CUB_200_2011/images/001.Auk/none.jpg", "val.json"],
        ),
        (
            {"val.json": '{"001.Auk/a_1.jpg": 3}'},
            ["each class must have a folder of its own; the lists give 001.Auk/a_1.jpg"],
        ),
    ],
)
def test_a_wrong_list_of_vpt_is_refused(changes: Changes, words: list[str], tmp_path: Path) -> None:
    files = changed({**CUB, **vpt_lists(VPT["cub_200_2011"][0])}, changes)
    with pytest.raises(ImportRefused) as refused:
        listed("cub_200_2011", lay(tmp_path, files))
    for word in words:
        assert word in str(refused.value)
