"""State of a training run: what the loop changes as it trains, and how that is saved and restored."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from trainer import run_folder
from trainer.config import TrainConfig
from trainer.plain_text import counted
from trainer.storage.background_writer import BackgroundWriter
from trainer.storage.run_results import has_whole_results
from trainer.training.checkpoint import (
    SCHEMA_VERSION,
    StoredPartialEpoch,
    StoredRun,
    get_random_state,
    load_state,
    pack_state,
    set_random_state,
)
from trainer.training.engine_choices import EAGER, EngineChoice
from trainer.training.step import TrainingStep

log = logging.getLogger(__name__)


class TrainingInterrupted(RuntimeError):
    """The run was asked to stop. If it has a folder, its progress is saved there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochMetrics:
    """The metrics of one finished epoch."""

    epoch: int
    """Counted from 1."""
    metrics: dict[str, float]
    """By the names of `trainer.metric_names`.

    Every epoch has train/loss, train/lr and train/images_per_s. An epoch that is scored (`TrainConfig.is_scored`) has
    val/accuracy and its kin, or test/... at the last epoch. If asked for, also nmi/layer_00 and on, peeking/accuracy
    and peeking/gain. The first epoch adds train/images, train/labels, learnable/parameters, learnable/share and
    prototypes/seconds. If NMI is asked for, it also adds the values before the first step: initial/nmi/layer_00 and on.
    """
    resumed: bool = field(default=False, compare=False)
    """True if the epoch was restored from a checkpoint instead of trained in this attempt."""


@dataclass(kw_only=True, slots=True)
class EpochProgress:
    """The epoch that is being trained."""

    epoch: int
    """Counted from 1."""
    num_steps: int
    """Number of finished steps."""
    total_loss: Tensor
    """Sum of the losses of these steps, on the device."""
    crops: torch.Generator
    """Source of random crops."""
    started: float
    """Value of `time.perf_counter` at the start. A resumed epoch counts the seconds of earlier attempts too."""

    @property
    def seconds(self) -> float:
        """Seconds spent on the epoch so far, in all attempts."""
        return time.perf_counter() - self.started

    def finish_step(self, loss: Tensor) -> None:
        """Count a step and add its loss, without waiting for the device."""
        self.num_steps += 1
        self.total_loss += loss


class TrainingRun:
    """The mutable state of a training run.

    Attributes:
        folder: path or URI of the run's folder, or None to keep nothing.
        step: the parameters, their optimizer and their moving average. A training step changes them in place.
        engine: what runs the steps; None until it is known.
        finished_epochs: metrics of the finished epochs, from the first.
        partial_epoch: what an interrupted epoch has come to, until `start_epoch` continues it.
        writer: writes files to the folder in the background, in the order of the calls.
    """

    def __init__(
        self,
        config: TrainConfig,
        *,
        backbone_sha256: str,
        images: str,
        device: str,
        mix_devices: bool,
        step: TrainingStep,
        steps_per_epoch: int,
        folder: str | None,
        stop: Callable[[], bool],
    ) -> None:
        self.folder = folder
        self.step = step
        self.engine: EngineChoice | None = None
        self.finished_epochs: list[EpochMetrics] = []
        self.partial_epoch: StoredPartialEpoch | None = None
        self.writer = BackgroundWriter()

        self._config = config
        self._backbone_sha256 = backbone_sha256
        self._images = images
        self._device = device
        self._mix_devices = mix_devices
        self._steps_per_epoch = steps_per_epoch
        self._stop = stop

    def state_dict(self) -> StoredRun:
        """Return everything that another attempt needs to continue, after an epoch or within one."""
        return {
            "schema_version": SCHEMA_VERSION,
            "config": self._config.fingerprint(),
            "backbone": self._backbone_sha256,
            "images": self._images,
            "device": self._device,
            "learnable": self.learnt_tensors(),
            "engine": EAGER if self.engine is None else self.engine.engine,
            "average": {} if self.step.average is None else self.step.average.values,
            "optimizer": self.step.optimizer.state_dict(),
            "part": self.step.micro_batch_size,
            "epochs": [{"epoch": epoch.epoch, "metrics": epoch.metrics} for epoch in self.finished_epochs],
            "under_way": self.partial_epoch,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state of `state_dict`, of this version of sptune or an earlier one.

        Raises:
            ValueError: if a newer version of sptune wrote it, or it is of another config, other weights or other
                images. The run is unchanged then.
        """
        self._check_origin(state)

        # Copied in place: the model, the optimizer and the average hold these very tensors.
        with torch.no_grad():
            for name, parameter in self.step.learnable.items():
                parameter.copy_(state["learnable"][name])
                if self.step.average is not None:
                    self.step.average.values[name].copy_(state["average"][name])
        self.step.optimizer.load_state_dict(state["optimizer"])

        self.step.micro_batch_size = state["part"]
        self.engine = EngineChoice(engine=state.get("engine", EAGER))
        self.finished_epochs = [EpochMetrics(**epoch, resumed=True) for epoch in state["epochs"]]
        self.partial_epoch = state["under_way"]

    def _check_origin(self, state: Mapping[str, Any]) -> None:
        """Raise ValueError as `load_state_dict` does."""
        # Before any other key: a newer version may have renamed them.
        version = state.get("schema_version", 1)
        if version > SCHEMA_VERSION:
            raise ValueError(
                f"{self.folder} holds a checkpoint of schema_version {version}, and this version of sptune reads up to "
                f"{SCHEMA_VERSION}; upgrade sptune, choose another folder or remove it."
            )

        for what, stored, current in (
            ("config", state["config"], self._config.fingerprint()),
            ("backbone's weights", state["backbone"], self._backbone_sha256),
            ("import of the task's images", state.get("images", self._images), self._images),
        ):
            if stored != current:
                raise ValueError(
                    f"{self.folder} holds a checkpoint of another {what}; choose another folder or remove it."
                )

    def resume(self) -> None:
        """Continue from the checkpoint in the folder. Without a folder or a checkpoint, do nothing.

        A damaged checkpoint is set aside: the run starts again, and ends with the same bits. So does a finished run
        whose results are damaged or missing, and a run of another kind of device if they must not mix.

        Raises:
            ValueError: as `load_state_dict` does.
            OSError: if the checkpoint cannot be read.
        """
        if self.folder is None:
            return

        state = load_state(f"{self.folder}/{run_folder.CHECKPOINT}")
        if state is None:
            return

        self._check_origin(state)
        stored_device = state.get("device", self._device)
        if stored_device != self._device and not self._mix_devices:
            log.warning("%s: it ran on %s, and this is %s. It starts again.", self.folder, stored_device, self._device)
            return

        if len(state["epochs"]) < self._config.epochs or has_whole_results(self.folder):
            self.load_state_dict(state)
        else:
            log.warning("%s lacks a result, or one is damaged. The run starts again.", self.folder)

    def save(self) -> None:
        """Write the checkpoint in the background. Without a folder, do nothing.

        Raises:
            OSError: if the file before it could not be written.
        """
        if self.folder is not None:
            # Packed before this returns: the next step changes the tensors in place.
            self.write(run_folder.CHECKPOINT, pack_state(self.state_dict()))

    def write(self, name: str, data: bytes) -> None:
        """Write a file of the folder in the background.

        Raises:
            OSError: if the file before it could not be written.
        """
        self.writer.write(f"{self.folder}/{name}", data)

    def learnt_tensors(self) -> dict[str, Tensor]:
        """Return the learnable parameters on the CPU, by name, without their gradients."""
        return {name: parameter.detach().cpu() for name, parameter in self.step.learnable.items()}

    @property
    def next_epoch(self) -> int:
        """Number of the epoch to train next, counted from 1."""
        return len(self.finished_epochs) + 1

    def start_epoch(self, device: str) -> EpochProgress:
        """Return the next epoch, at its first step or where an earlier attempt was interrupted.

        Sets torch's own generators, from which dropout draws.
        """
        epoch = self.next_epoch
        started = time.perf_counter()

        # Crops and dropout come from (seed, epoch) alone: an epoch has the same bits, whether or not the run was
        # interrupted before it.
        crops = torch.Generator().manual_seed(self._config.stream_seed("crops", epoch))
        torch.manual_seed(self._config.stream_seed("dropout", epoch))

        partial = self.partial_epoch
        self.partial_epoch = None
        if partial is None:
            loss = torch.zeros((), device=device)
            return EpochProgress(epoch=epoch, num_steps=0, total_loss=loss, crops=crops, started=started)

        # After the seeds above, which a GPU that was not used at saving keeps.
        crops.set_state(partial["crops"])
        set_random_state(partial["dropout"], torch.device(device))
        return EpochProgress(
            epoch=epoch,
            num_steps=partial["done"],
            total_loss=partial["loss"].to(device),
            crops=crops,
            started=started - partial["seconds"],
        )

    def finish_epoch(self, metrics: dict[str, float]) -> EpochMetrics:
        """Add the metrics of the next epoch to the finished ones and return them."""
        finished = EpochMetrics(epoch=self.next_epoch, metrics=metrics)
        self.finished_epochs.append(finished)
        return finished

    def check_stop(self, progress: EpochProgress) -> None:
        """Save the epoch after its finished steps and end the run, if it was asked to stop.

        Raises:
            TrainingInterrupted: if it was asked to stop. The checkpoint is written by then.
            OSError: if the checkpoint could not be written.
        """
        if not self._stop():
            return

        # Everything that the next step would see, so that it is the same step in another process.
        self.partial_epoch = {
            "done": progress.num_steps,
            "loss": progress.total_loss.cpu(),
            "seconds": progress.seconds,
            "crops": progress.crops.get_state(),
            "dropout": get_random_state(progress.total_loss.device),
        }
        self.save()

        # The caller may end the process as soon as this raises.
        self.writer.wait()
        raise TrainingInterrupted(
            f"asked to stop in epoch {progress.epoch}, after {progress.num_steps} of "
            f"{counted(self._steps_per_epoch, 'step')}."
        )
