"""`run_trial` joins the trainer to a driver: a config goes in, epochs or one failure come out.

Backbone, images and prototypes stay in the process (the trainer's loaders keep them), so a later trial costs its
training only.
"""

from __future__ import annotations

import dataclasses
import errno
import io
import logging
import os
import platform
import socket
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime

import pyarrow.parquet as pq
import torch

from orchestrator.drivers.context import TrialContext
from orchestrator.environment.provenance import machine, software
from orchestrator.study.selection import pack_correct
from orchestrator.study.trial import Epoch, Failure, FailureCause
from trainer import run_folder
from trainer.config import TrainConfig
from trainer.data.task_store import TaskMissing
from trainer.metric_names import EPOCH_SECONDS, MEMORY_DEVICE_GB, MEMORY_PEAK_GB
from trainer.model.device_memory import memory_gb, reset_peak_memory
from trainer.plots.run_plots import draw_run_plots
from trainer.run_folder import RunCard
from trainer.storage.files import read_bytes, write_bytes
from trainer.training.loop import EpochMetrics, TrainingDiverged, TrainingInterrupted, train

STORAGE_RETRY_DELAYS_S = (1.0, 5.0, 20.0, 60.0, 300.0)
"""Pauses of a trial that finds the disk full or the bucket away, before it gives up."""
TRANSIENT_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EHOSTUNREACH, errno.EBUSY})
"""Errors of storage that may pass: full, away, overloaded."""


def run_trial(
    config: TrainConfig, context: TrialContext, stop: Callable[[], bool] = lambda: False
) -> Iterator[Epoch | Failure]:
    """Train one config, from its checkpoint if it has one.

    Its folder gets a `log.txt` of this attempt, once it ended.

    Args:
        stop: asked between training steps; at yes all that was done is saved, and the attempt ends as lost.

    Yields:
        Each epoch, earlier attempts' first; a `Failure` as the last item if the trial did not come to its end.
    """
    torch.set_num_threads(context.cpus)
    reset_peak_memory("cuda" if context.gpus else "cpu")
    log = _AttemptLog()
    since = time.monotonic()
    folder = None
    try:
        train_config = dataclasses.replace(config)  # checks it again: a stored config may break today's rules
        folder = f"{context.trials_folder}/{train_config.fingerprint()}"
        for epoch, scored in _train_with_retries(train_config, context, folder, stop):
            now = time.monotonic()
            log.add(f"epoch {epoch.epoch}: {epoch.metrics}")
            facts = software() | machine(log.device) | scored
            peak_gb, device_gb = memory_gb("cuda" if context.gpus else "cpu")
            told = {MEMORY_DEVICE_GB: device_gb}
            if not epoch.resumed:  # or else nobody knows what it took
                told |= {EPOCH_SECONDS: now - since, MEMORY_PEAK_GB: peak_gb}
            yield Epoch(epoch=epoch.epoch, metrics=epoch.metrics | told, provenance=facts)
            since = now
    except Exception as error:  # the worker stays; what went wrong goes to the record with its trace
        text = f"{type(error).__name__}: {error}\n\n{traceback.format_exc()}"
        log.add(text)
        yield Failure(cause=failure_cause(error), error=text, seconds=time.monotonic() - since)
    finally:
        log.close()
        if folder is not None:
            log.write(folder)


def failure_cause(error: Exception) -> FailureCause:
    """Which kind of failure an exception is."""
    match error:
        case TrainingDiverged():
            return FailureCause.DIVERGED
        case TrainingInterrupted():
            return FailureCause.LOST
        case torch.OutOfMemoryError() | MemoryError():
            return FailureCause.MEMORY
        case ValueError() | TaskMissing():
            return FailureCause.INVALID
        case _:
            return FailureCause.ERROR


def _scoring_provenance(folder: str, config: TrainConfig) -> dict[str, str]:
    """On which images a finished trial learnt and was judged; of a search trial, which it got right."""
    card, predictions = (read_bytes(f"{folder}/{name}") for name in (run_folder.CARD, run_folder.PREDICTIONS))
    assert card is not None and predictions is not None, "they are written before the last epoch is told"
    facts = RunCard.from_json(card)
    told = {"learnt_from": facts.learnt_from, "scored_on": facts.scored_on, "protocol": facts.protocol}
    if config.eval_split == "val":
        told["correct"] = pack_correct(
            pq.read_table(io.BytesIO(predictions), columns=["correct"])["correct"].to_numpy()
        )
    return told


def _draw_plots(
    config: TrainConfig, epochs: Sequence[EpochMetrics], workplace: TrialContext, folder: str
) -> dict[str, str]:
    """Draw a finished trial's pictures, or tell as a fact why not: no result is lost for a picture."""
    try:
        draw_run_plots(
            config,
            [epoch.metrics for epoch in epochs],
            folder,
            data_root=workplace.data_root,
            weights=workplace.weights,
            prototype_cache=workplace.prototype_cache,
            device="cuda" if workplace.gpus else "cpu",
        )
    except OSError:
        raise
    except Exception as error:
        return {"pictures": f"not drawn: {type(error).__name__}: {error}"}
    return {}


def _train_with_retries(
    config: TrainConfig, workplace: TrialContext, folder: str, stop: Callable[[], bool]
) -> Iterator[tuple[EpochMetrics, dict[str, str]]]:
    """Train, waiting for storage that is full or away: the trial goes on from its last checkpoint.

    Yields:
        Each epoch, with the last what it was scored on.
    """
    told: list[EpochMetrics] = []
    for wait_s in (*STORAGE_RETRY_DELAYS_S, None):
        try:
            for epoch in train(
                config,
                data_root=workplace.data_root,
                device="cuda" if workplace.gpus else "cpu",
                weights=workplace.weights,
                prototype_cache=workplace.prototype_cache,
                folder=folder,
                stop=stop,
            ):
                if epoch.epoch > len(told):
                    last = epoch.epoch == config.epochs
                    facts = (
                        _scoring_provenance(folder, config) | _draw_plots(config, [*told, epoch], workplace, folder)
                        if last
                        else {}
                    )
                    yield epoch, facts
                    told.append(epoch)
        except OSError as error:
            if error.errno not in TRANSIENT_ERRNOS or wait_s is None:
                raise
            logging.getLogger("trainer").warning("%s; trying again in %g s", error, wait_s)
        else:
            return
        until = time.monotonic() + wait_s
        while (left_s := until - time.monotonic()) > 0:
            if stop():
                raise TrainingInterrupted("asked to stop while storage was away; its last checkpoint stays.")
            time.sleep(min(left_s, 0.5))


class _AttemptLog(logging.Handler):
    """What the trainer says during one attempt."""

    def __init__(self) -> None:
        super().__init__()
        self.device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
        self._lines: list[str] = []
        self.add(f"process {os.getpid()} on {socket.gethostname()}, {self.device}, torch {torch.__version__}")
        logging.getLogger("trainer").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line of the trainer's own."""
        self.add(record.getMessage())

    def add(self, text: str) -> None:
        """Keep a line with its time."""
        self._lines.append(f"{datetime.now().astimezone().isoformat(timespec='seconds')} {text}")

    def close(self) -> None:
        """Hear no more."""
        logging.getLogger("trainer").removeHandler(self)
        super().close()

    def write(self, folder: str) -> None:
        """Put it where the trial is, if the place can be written at all."""
        try:
            write_bytes(f"{folder}/{run_folder.LOG}", "\n".join([*self._lines, ""]).encode())
        except OSError:
            return  # the failure itself says so, and is on its way to the record
