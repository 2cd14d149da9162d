"""Runs on a part of the images: what they learn from, what they are scored on, and the labels that they count."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from trainer.config import TrainConfig
from trainer.data.split import load_split
from trainer.run_folder import CARD, PREDICTIONS
from trainer.training.loop import train

Tiny = Callable[..., TrainConfig]


def run(config: TrainConfig, data_root: str, folder: Path) -> tuple[dict[str, Any], list[str], dict[str, float]]:
    """Train a config. Return its card, the keys that it was scored on, and the metrics of its first epoch."""
    epochs = [*train(config, data_root=data_root, folder=str(folder))]
    card = json.loads((folder / CARD).read_text())
    keys = pq.read_table(io.BytesIO((folder / PREDICTIONS).read_bytes()))["key"].to_pylist()
    return card, keys, epochs[0].metrics


@pytest.fixture
def linear(tiny: Tiny) -> Tiny:
    """Configs of one epoch on a tenth of the digits, judged on a tenth of val."""
    part: dict[str, Any] = {"train_size": 0.1, "val_size": "same", "epochs": 1, "warmup_epochs": 0}
    return lambda **changes: tiny("linear", **part | changes)


def test_a_search_is_scored_on_the_same_part_of_val(linear: Tiny, data_root: str, tmp_path: Path) -> None:
    card, keys, metrics = run(linear(draw=2), data_root, tmp_path)
    part = load_split(data_root, "demo/digits", "val", 0.1, 32, val_size="same", draw=2)
    assert len(keys) == 20
    assert set(keys) == set(part.keys)
    assert card["scored_on"] == part.fingerprint
    assert metrics["train/images"] == 80
    assert metrics["train/labels"] == 100


def test_with_full_a_search_is_scored_on_all_of_val(linear: Tiny, data_root: str, tmp_path: Path) -> None:
    card, keys, metrics = run(linear(val_size="full"), data_root, tmp_path)
    assert len(keys) == 200
    assert card["scored_on"].split("/")[1:3] == ["val", "1.0"]
    assert (metrics["train/images"], metrics["train/labels"]) == (80, 280)


@pytest.mark.parametrize(("train_on", "num_images"), [("trainval", 100), ("train", 80)])
def test_a_final_trial_uses_the_labels_of_its_search_and_all_of_test(
    linear: Tiny, data_root: str, tmp_path: Path, train_on: str, num_images: int
) -> None:
    card, keys, metrics = run(linear(eval_split="test", train_on=train_on, draw=1), data_root, tmp_path)
    assert card["learnt_from"].split("/")[1] == train_on
    assert len(keys) == 797
    assert (metrics["train/images"], metrics["train/labels"]) == (num_images, 100)


def test_each_draw_has_prototypes_of_its_own(tiny: Tiny, data_root: str, tmp_path: Path) -> None:
    def prototypes(config: TrainConfig) -> int:
        _ = [*train(config, data_root=data_root, prototype_cache=str(tmp_path))]
        return len([*tmp_path.glob("*.safetensors")])

    config = tiny("spt_shallow", epochs=1, warmup_epochs=0, train_size=0.1)
    assert prototypes(config) == 1
    assert prototypes(dataclasses.replace(config, val_size="same")) == 1, "the images of train are the same"
    assert prototypes(dataclasses.replace(config, draw=1)) == 2
