"""A method from outside of the package, added as trainer/README.md describes: one class and one row.

Shapes: B batch, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import trainer
from trainer.catalog import METHODS, Method
from trainer.config import InvalidConfig, TrainConfig, unused_fields
from trainer.methods.protocol import Adaptation
from trainer.model.backbone import Backbone
from trainer.training.loop import train


class ShiftedMlp(nn.Module):
    """An MLP with a learnable shift of its output."""

    def __init__(self, mlp: nn.Module, width: int) -> None:
        super().__init__()
        self.mlp = mlp
        self.shift_D = nn.Parameter(torch.zeros(width))

    def forward(self, inputs_BTD: Tensor) -> Tensor:
        shifted_BTD: Tensor = self.mlp(inputs_BTD) + self.shift_D
        return shifted_BTD


class Toy(Adaptation):
    """Trains the last norm, and shifts the output of each MLP."""

    def learns(self, name: str, backbone: Backbone) -> bool:
        return name.startswith("vit.norm.")

    def insert(self, backbone: Backbone, generator: torch.Generator) -> None:
        for block in backbone.layers():
            block.mlp = ShiftedMlp(block.mlp, backbone.embed_dim)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> str:
    """For one test, the catalog has the toy method."""
    row = Method(name="toy", paper_name="Toy", adaptation=f"{__name__}:Toy", has_weight_decay=False)
    monkeypatch.setitem(METHODS, "toy", row)
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
