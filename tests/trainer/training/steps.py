"""Training steps of a config on random images, without a task."""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.catalog import METHODS
from trainer.config import TrainConfig
from trainer.methods.protocol import build_model
from trainer.model.backbone import load_backbone
from trainer.model.execution import with_precision
from trainer.training.engine import Engines
from trainer.training.step import TrainingStep


class StepRun:
    """A model of the bundled network and its training step. Two of the same config train the same bits."""

    def __init__(self, config: TrainConfig, device: str = "cpu") -> None:
        method = METHODS[config.method]
        frozen = load_backbone(config.backbone, device=device)
        num_layers = {"all": frozen.num_layers, "first": 1, "none": 0}[method.prompted_layers]
        generator = torch.Generator().manual_seed(1)
        self.config = config
        self.device = device
        prompt_LPD = torch.randn(num_layers, config.prompt_length or 0, frozen.embed_dim, generator=generator)
        self.model = build_model(config, frozen, num_classes=7, prompt_LPD=prompt_LPD).to(device)
        self.model.train()
        network = with_precision(self.model, config.precision, device)
        self.step = TrainingStep(config, network, self.model.learnable())
        self.engines = Engines(self.step, self.model, lambda: self.batch(0), config.precision, device)
        self._num_steps = 0

    def batch(self, number: int) -> tuple[Tensor, Tensor]:
        """Return inputs and labels of a batch."""
        generator = torch.Generator().manual_seed(number)
        size = self.config.batch_size
        images = torch.randint(0, 256, (size, 3, 32, 32), dtype=torch.uint8, generator=generator)
        return images.to(self.device), torch.randint(0, 7, (size,), generator=generator).to(self.device)

    def train(self, num_steps: int) -> list[Tensor]:
        """Train more steps, with another learning rate each, and return their losses."""
        losses = []
        for i in range(self._num_steps, self._num_steps + num_steps):
            # Dropout draws the same numbers in every run.
            torch.manual_seed(i)
            losses.append(self.step(*self.batch(i), self.config.lr / (1 + i)).clone())
        self._num_steps += num_steps
        return losses
