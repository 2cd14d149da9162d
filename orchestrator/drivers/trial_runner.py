"""Run one trial: `run_trial` takes a config and yields its epochs, or a failure.

Backbone, images and prototypes stay in the memory of the process, cached by the trainer's loaders. So later trials of a
process only train.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import logging
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime

import torch

from orchestrator.drivers.context import TrialContext
from orchestrator.environment.provenance import machine, software
from orchestrator.study.selection import pack_correct
from orchestrator.study.trial import Epoch, Failure, FailureCause, wrong_device
from trainer import run_folder
from trainer.config import TrainConfig
from trainer.data.task_store import TaskMissing
from trainer.metric_names import EPOCH_SECONDS, MEMORY_DEVICE_GB, MEMORY_PEAK_GB
from trainer.model.device_errors import is_device_lost, is_out_of_memory
from trainer.model.device_memory import memory_gb, reset_peak_memory
from trainer.model.gpu_kernels import device_kind
from trainer.phase import listening
from trainer.plain_text import printable
from trainer.plots.run_plots import draw_run_plots
from trainer.redaction import redact
from trainer.storage.files import write_bytes
from trainer.storage.run_results import read_predictions, read_run_card
from trainer.training.loop import EpochMetrics, TrainingDiverged, TrainingInterrupted, train

STORAGE_RETRY_DELAYS_S = (1.0, 5.0, 20.0, 60.0, 300.0)
"""Pauses before the retries of a trial whose storage is full or away. After the last retry the trial fails."""
TRANSIENT_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EHOSTUNREACH, errno.EBUSY})
"""Errors of storage that may pass: full, away, overloaded."""


def run_trial(
    config: TrainConfig,
    context: TrialContext,
    stop: Callable[[], bool] = lambda: False,
    stop_waiting: Callable[[], bool] = lambda: False,
) -> Iterator[Epoch | Failure]:
    """Train one config, from its checkpoint if it has one.

    At the end of the attempt, the log of the attempt is written to `log.txt` in the trial's folder.

    Args:
        stop: called between training steps. If it returns True, the trial saves a checkpoint and the attempt ends with
            a `Failure` of cause LOST.
        stop_waiting: called while the trial waits for storage. If it returns True, the attempt ends in the same way.

    Yields:
        Each epoch, those of earlier attempts first. The last item is a `Failure` if the trial did not reach its end.
    """
    device = "cuda" if context.gpus else "cpu"
    torch.set_num_threads(context.cpus)
    reset_peak_memory(device)
    log = _AttemptLog(device)
    epoch_began = time.monotonic()
    folder = None

    try:
        if context.required_device not in (None, log.device):
            yield wrong_device(str(context.required_device), log.device)
            return

        # A new object is validated again: a stored config may break a rule that is younger.
        config = dataclasses.replace(config)
        folder = f"{context.trials_folder}/{config.fingerprint()}"

        for epoch, end_provenance in _train_with_retries(config, context, folder, stop, stop_waiting):
            now = time.monotonic()
            log.add(f"epoch {epoch.epoch}: {epoch.metrics}")

            peak_gb, device_gb = memory_gb(device)
            measurements = {MEMORY_DEVICE_GB: device_gb}
            # Nothing was measured for an epoch that was restored from a checkpoint.
            if not epoch.resumed:
                measurements |= {EPOCH_SECONDS: now - epoch_began, MEMORY_PEAK_GB: peak_gb}

            yield Epoch(
                epoch=epoch.epoch,
                metrics=epoch.metrics | measurements,
                provenance=software() | machine(log.device, has_gpu=device == "cuda") | end_provenance,
            )
            # The time that the driver takes between two epochs belongs to the next one.
            epoch_began = now
    except Exception as error:
        # The worker survives every failure of a trial but a lost device. The error goes to the study database with its
        # trace.
        text = f"{type(error).__name__}: {error}\n\n{traceback.format_exc()}"
        log.add(text)
        yield Failure(
            cause=failure_cause(error),
            error=text,
            seconds=time.monotonic() - epoch_began,
            ends_process=is_device_lost(error),
            lost_gpu=machine(log.device, has_gpu=True)["gpu"] if is_device_lost(error) else "",
        )
    finally:
        log.close()
        if folder is not None:
            log.write(folder)


def failure_cause(error: Exception) -> FailureCause:
    """Return the cause of failure that an exception stands for."""
    match error:
        case TrainingDiverged():
            return FailureCause.DIVERGED
        case TrainingInterrupted():
            return FailureCause.LOST
        case _ if is_out_of_memory(error):
            return FailureCause.MEMORY
        case _ if is_device_lost(error):
            return FailureCause.LOST
        case ValueError() | TaskMissing():
            return FailureCause.INVALID
        case _:
            return FailureCause.ERROR


def _train_with_retries(
    config: TrainConfig,
    context: TrialContext,
    folder: str,
    stop: Callable[[], bool],
    stop_waiting: Callable[[], bool],
) -> Iterator[tuple[EpochMetrics, dict[str, str]]]:
    """Train. If storage is full or away, wait and resume from the last checkpoint.

    Yields:
        Each epoch once, with the provenance that is known at the end: empty before the last epoch.
    """
    epochs: list[EpochMetrics] = []
    for delay_s in (*STORAGE_RETRY_DELAYS_S, None):
        try:
            for epoch in train(
                config,
                data_root=context.data_root,
                device="cuda" if context.gpus else "cpu",
                weights=context.weights,
                prototype_cache=context.prototype_cache,
                folder=folder,
                mix_devices=context.mix_devices,
                engine=context.engine,
                engine_folder=context.engine_folder,
                stop=stop,
            ):
                # A retry yields the epochs before its checkpoint again.
                if epoch.epoch <= len(epochs):
                    continue

                end_provenance: dict[str, str] = {}
                if epoch.epoch == config.epochs:
                    end_provenance = _scoring_provenance(folder, config)
                    end_provenance |= _draw_plots(config, [*epochs, epoch], context, folder)
                yield epoch, end_provenance
                # Not before the yield: if writing fails above, a retry has to yield this epoch.
                epochs.append(epoch)
        except OSError as error:
            if error.errno not in TRANSIENT_ERRNOS or delay_s is None:
                raise
            logging.getLogger("trainer").warning("%s; trying again in %g s; Ctrl-C ends the wait", error, delay_s)
        else:
            return

        _wait(delay_s, lambda: stop() or stop_waiting())


def _wait(delay_s: float, stop: Callable[[], bool]) -> None:
    """Wait before a retry.

    Raises:
        TrainingInterrupted: if the trial is asked to stop.
    """
    retry_at = time.monotonic() + delay_s
    while (left_s := retry_at - time.monotonic()) > 0:
        if stop():
            raise TrainingInterrupted("asked to stop while storage was away; the last checkpoint is kept.")
        time.sleep(min(left_s, 0.5))


def _scoring_provenance(folder: str, config: TrainConfig) -> dict[str, str]:
    """Return the images that a finished trial learnt from and was scored on; for a search trial, which were correct."""
    card = read_run_card(folder)
    table = read_predictions(folder, columns=["correct"])
    assert card is not None and table is not None, "the trainer writes them before it yields the last epoch"

    provenance = {"learnt_from": card.learnt_from, "scored_on": card.scored_on, "protocol": card.protocol}
    if card.arithmetic:
        provenance["arithmetic"] = card.arithmetic
    if card.rejected_engines:
        provenance["rejected_engines"] = card.rejected_engines
    if card.backbone_part:
        provenance["backbone_part"] = card.backbone_part
    # Final trials are not compared image by image, and the test split may have many images.
    if config.eval_split == "val":
        provenance["correct"] = pack_correct(table["correct"].to_numpy())
    return provenance


def _draw_plots(
    config: TrainConfig, epochs: Sequence[EpochMetrics], context: TrialContext, folder: str
) -> dict[str, str]:
    """Draw the plots of a finished trial. If that fails, return the reason as provenance: the result counts anyway.

    Raises:
        OSError: if storage is full or away, which is worth a retry.
    """
    try:
        draw_run_plots(
            config,
            [epoch.metrics for epoch in epochs],
            folder,
            data_root=context.data_root,
            weights=context.weights,
            prototype_cache=context.prototype_cache,
            device="cuda" if context.gpus else "cpu",
        )
    except OSError:
        raise
    except Exception as error:
        return {"pictures": printable(redact(f"not drawn: {type(error).__name__}: {error}"))}
    return {}


class _AttemptLog(logging.Handler):
    """The trainer's log lines of one attempt, and what it does before its first step."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device_kind(device)
        self._lines: list[str] = []
        self.add(f"process {os.getpid()} on {socket.gethostname()}, {self.device}, torch {torch.__version__}")
        logging.getLogger("trainer").addHandler(self)
        self._listening = contextlib.ExitStack()
        self._listening.enter_context(listening(self.add))

    def emit(self, record: logging.LogRecord) -> None:
        """Add a line that the trainer logs. A warning is for the person at the terminal too, if there is one."""
        self.add(record.getMessage())
        # Python itself prints a warning only if no handler receives it, and this one does.
        if record.levelno >= logging.WARNING and not logging.getLogger().hasHandlers():
            print(printable(redact(record.getMessage())), file=sys.stderr)

    def add(self, text: str) -> None:
        """Add a line with the current time."""
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        self._lines.append(now + " " + printable(redact(text), keep="\n\t"))

    def close(self) -> None:
        """Receive no more lines."""
        self._listening.close()
        logging.getLogger("trainer").removeHandler(self)
        super().close()

    def write(self, folder: str) -> None:
        """Write the lines to the trial's folder, if it can be written."""
        try:
            write_bytes(f"{folder}/{run_folder.LOG}", "\n".join([*self._lines, ""]).encode())
        except OSError:
            # The failure of the trial says the same, and is stored in the study database.
            return
