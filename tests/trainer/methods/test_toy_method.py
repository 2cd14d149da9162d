"""A method from outside of the package trains, is saved, resumes and is loaded as those of the catalog."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

import trainer
from tests.trainer.methods.toy import ROW
from trainer.catalog import METHODS
from trainer.config import InvalidConfig, TrainConfig, unused_fields
from trainer.training.loop import train


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> str:
    """For one test, the catalog has the toy method."""
    monkeypatch.setitem(METHODS, "toy", ROW)
    return "toy"


def test_a_method_from_outside_trains_is_saved_resumes_and_is_loaded(
    toy: str, store: str, tmp_path: Path, tiny: Callable[..., TrainConfig]
) -> None:
    config = tiny(toy, lr=1e-3, ema_decay=0.5)
    whole = list(train(config, data_root=store, folder=str(tmp_path / "whole")))
    # Seven vectors of 96: five shifts, two of the norm; and the head.
    assert whole[0].metrics["learnable/parameters"] == 7 * 96 + 970

    learnt = load_file(tmp_path / "whole/prompt.safetensors")
    shifts = {f"backbone.vit.blocks.{i}.mlp.shift" for i in range(5)}
    assert learnt.keys() == {"head.weight", "head.bias", "backbone.vit.norm.weight", "backbone.vit.norm.bias"} | shifts
    assert all(bool(learnt[name].any()) for name in shifts)

    next(train(config, data_root=store, folder=str(tmp_path / "resumed")))
    list(train(config, data_root=store, folder=str(tmp_path / "resumed")))
    files = [tmp_path / name / "prompt.safetensors" for name in ("whole", "resumed")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert trainer.load(tmp_path / "whole").model.learnable().keys() == learnt.keys()


def test_its_config_refuses_what_the_method_does_not_have(toy: str, tiny: Callable[..., TrainConfig]) -> None:
    assert {"prompt_length", "weight_decay", "lora_rank"} <= unused_fields(toy)
    with pytest.raises(InvalidConfig) as caught:
        tiny(toy, lora_rank=4, prompt_length=3)
    assert caught.value.problems.keys() == {"lora_rank", "prompt_length"}


@pytest.mark.parametrize(
    ("missing", "reason"),
    [("toy_package:Toy", "No module named 'toy_package'"), ("tests.trainer.methods.toy:Tay", "no attribute 'Tay'")],
)
def test_a_class_that_is_missing_on_a_machine_is_named_with_the_way_out(
    missing: str,
    reason: str,
    store: str,
    tmp_path: Path,
    tiny: Callable[..., TrainConfig],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(METHODS, "toy", dataclasses.replace(ROW, adaptation=missing))
    with pytest.raises(ValueError, match=re.escape(reason)) as caught:
        next(train(tiny("toy"), data_root=store, folder=str(tmp_path)))
    told = str(caught.value)
    assert told.startswith(f"method toy: its class {missing} cannot be imported (")
    assert told.endswith("row in trainer/catalog.py, or install its package on every machine that runs trials.")
