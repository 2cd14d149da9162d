"""How busy two Ray workers are in a sweep of short trials: the part `busy` of `trials.py`."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from orchestrator.drivers.context import TrialContext
from orchestrator.spec.loader import parse_spec
from orchestrator.spec.schema import SweepSpec
from orchestrator.study.storage.database import StudyDatabase
from orchestrator.study.trial import Epoch, Failure
from orchestrator.sweep.sweep import Sweep
from tests.benchmarks.alone import Found
from trainer.catalog import BUNDLED
from trainer.config import TrainConfig

WORKERS = 2
SLEEP_S = 0.5
"""Seconds of an epoch of a trial that sleeps."""
EPOCHS = 4
"""Epochs of a trial."""
CONSOLE = Console(width=110)


def sleep_trial(config: TrainConfig, workplace: TrialContext, stop: Callable[[], bool]) -> Iterator[Epoch | Failure]:
    """Sleep instead of training a trial."""
    for epoch in range(1, config.epochs + 1):
        time.sleep(SLEEP_S)
        metrics = {"train/loss": 1.0, "epoch/seconds": SLEEP_S}
        if config.eval_split == "val" or epoch == config.epochs:
            metrics[f"{config.eval_split}/accuracy"] = config.lr
        yield Epoch(epoch=epoch, metrics=metrics)


def train_trial(config: TrainConfig, workplace: TrialContext, stop: Callable[[], bool]) -> Iterator[Epoch | Failure]:
    """Train a trial."""
    # Imported in the worker: the driver must not load torch.
    from orchestrator.drivers import trial_runner

    return trial_runner.run_trial(config, workplace, stop)


@dataclass(frozen=True)
class Noted:
    """A function that runs a trial in a worker and writes down when."""

    run_trial: Callable[[TrainConfig, TrialContext, Callable[[], bool]], Iterator[Epoch | Failure]]
    folder: str

    def __call__(
        self, config: TrainConfig, workplace: TrialContext, stop: Callable[[], bool]
    ) -> Iterator[Epoch | Failure]:
        """Run a trial. Called when a worker begins with the trial; the first step comes later."""
        return self._events(time.time(), config, workplace, stop)

    def _events(
        self, called: float, config: TrainConfig, workplace: TrialContext, stop: Callable[[], bool]
    ) -> Iterator[Epoch | Failure]:
        begun, inside = time.time(), 0.0
        waits: list[float] = []
        events = self.run_trial(config, workplace, stop)
        resumed = begun
        try:
            for event in events:
                reported_at = time.time()
                inside += reported_at - resumed
                if isinstance(event, Failure) or event.epoch == config.epochs:
                    self._note(
                        trial=dataclasses.asdict(config),
                        called=called,
                        begun=begun,
                        reported_at=reported_at,
                        inside=inside,
                        waits=waits,
                    )
                yield event
                resumed = time.time()
                waits.append(resumed - reported_at)
        finally:
            closing = time.time()
            events.close()  # type: ignore[attr-defined]  # both are generators
            self._note(closing=closing, closed=time.time())

    def _note(self, **what: Any) -> None:
        with Path(self.folder, f"{os.getpid()}.jsonl").open("a") as file:
            file.write(json.dumps(what) + "\n")


def busy_spec(trials: int) -> SweepSpec:
    """Return a sweep of four studies. Two trials of each study are final."""
    space = {
        "lr": {"type": "float", "low": 5e-3, "high": 5e-2, "log": True},
        "prompt_length": {"type": "choice", "values": [5, 10]},
        "prompt_init": {"type": "choice", "values": ["random", "mean_pool", "max_pool", "kmeans"]},
    }
    raw: dict[str, Any] = {
        "name": "busy",
        "tasks": ["demo/digits", "demo/shapes_loc"],
        "backbones": [BUNDLED],
        "methods": ["spt_deep", "vpt_deep"],
        "train_sizes": [200],
        "fixed": {"epochs": EPOCHS, "warmup_epochs": 1},
        "space": space,
        "search": {"trials": trials // 4 - 2},
        "final": {"seeds": [42, 44]},
    }
    return parse_spec(raw, "the benchmark")


def busy(options: argparse.Namespace, folder: Path) -> Found:
    """Run the sweep as `launch` does, and measure how busy its two workers are and where they wait."""
    from orchestrator.drivers.ray import driver as ray_driver
    from orchestrator.drivers.ray.cluster import connected
    from orchestrator.environment.home import home_at
    from orchestrator.tracking.mlflow_runs import MlflowRuns
    from orchestrator.tracking.mlflow_tracker import MlflowTracker

    spec = busy_spec(options.trials)
    home = home_at(f"{folder}/busy")
    notes = folder / "notes"
    notes.mkdir()
    home.create()
    os.environ |= {"RAY_OVERRIDE_RESOURCES": json.dumps({"CPU": WORKERS, "GPU": 0}), "RAY_ADDRESS": "local"}
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "MLFLOW_DISABLE_TELEMETRY": "true"}
    trials = home.trials_folder(spec.name)
    workplace = TrialContext(
        data_root=f"{folder}/data",
        trials_folder=trials,
        prototype_cache=home.prototype_cache,
        weights=None,
        cpus=1,
        gpus=0,
    )
    runs = MlflowRuns(home.mlflow_uri, spec.name, trials, home.mlflow_artifacts, f"{folder}/data", [*spec.space])
    tracker = MlflowTracker(runs)
    timed_sweep = TimedSweep(Sweep.resume(spec, StudyDatabase(home.database_url), tracker))
    try:
        # Workers import the functions of this file from here: Ray adds no folder to their path.
        os.environ["PYTHONPATH"] = str(Path(__file__).parents[2])
        with connected(None):
            run_trial = Noted(train_trial if options.train else sleep_trial, str(notes))
            ray_driver.RayDriver(workplace, run_trial).run(timed_sweep.sweep, timed_sweep.print_progress)
    finally:
        tracker.close()
    assert timed_sweep.sweep.is_done, timed_sweep.sweep.halt

    return show_notes(
        [[json.loads(line) for line in file.read_text().splitlines()] for file in notes.glob("*.jsonl")], timed_sweep
    )


class TimedSweep:
    """A sweep whose calls are timed: the work of the driver between two trials of a worker."""

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        self.spent: dict[str, float] = defaultdict(float)
        self._num_printed = 0
        for name in ("next_trial", "on_epochs", "tick"):
            setattr(sweep, name, self._timed(name, getattr(sweep, name)))

    def print_progress(self) -> None:
        """Print the number of finished trials, every 20 trials."""
        num_finished = self.sweep.num_finished
        if num_finished >= self._num_printed + 20:
            self._num_printed = num_finished
            CONSOLE.print(f"{num_finished} trials")

    def _timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def timed(*args: Any) -> Any:
            began = time.perf_counter()
            try:
                return call(*args)
            finally:
                self.spent[name] += time.perf_counter() - began

        return timed


def show_notes(workers: list[list[Found]], timed_sweep: TimedSweep) -> Found:
    """Print the notes of the workers as a table, and return their sums.

    There may be more processes than workers: Tune ends a worker when no trial is waiting, and later starts a new one.
    """
    ended = [[note for note in notes if "reported_at" in note] for notes in workers]
    every = [note for notes in ended for note in notes]
    whole = max(note["reported_at"] for note in every) - min(note["begun"] for note in every)
    share = sum(note["inside"] for note in every) / (WORKERS * whole)
    gaps: dict[str, list[float]] = defaultdict(list)
    for notes in workers:
        for last, close, first in zip(notes, notes[1:], notes[2:], strict=False):
            if "reported_at" in last and "reported_at" in first:
                gaps["last epoch reported, to the request to end"].append(close["closing"] - last["reported_at"])
                gaps["the end: the log is written"].append(close["closed"] - close["closing"])
                gaps["to the start of the next trial (reset_config)"].append(first["called"] - close["closed"])
                gaps["to its first step"].append(first["begun"] - first["called"])
                gaps["all between two trials"].append(first["begun"] - last["reported_at"])
    gaps["between two epochs"] = [wait for note in every for wait in note["waits"]]

    begins, ends = (sorted(notes[i][what] for notes in ended) for i, what in ((0, "begun"), (-1, "reported_at")))
    late = begins[WORKERS - 1] - begins[0]
    early = ends[-1] - ends[-WORKERS]

    table = Table("s", "median", "mean", "most", "in all", title=f"busy: {len(every)} trials, {len(workers)} processes")
    for name, waits in gaps.items():
        values = (0.0,) * 4
        if waits:
            values = (statistics.median(waits), statistics.mean(waits), max(waits), sum(waits))
        table.add_row(name, *(f"{value:.3f}" for value in values))
    CONSOLE.print(table)

    trial_s = statistics.mean(note["inside"] for note in every)
    CONSOLE.print(
        f"busy {share:.1%} of {WORKERS} x {whole:.1f} s; a trial takes {trial_s:.2f} s; "
        f"one worker begins {late:.2f} s after the other, and ends {early:.2f} s before it"
    )
    spent = {name: 1000 * seconds / len(every) for name, seconds in timed_sweep.spent.items()}
    CONSOLE.print("the driver, ms per trial: " + ", ".join(f"{name} {value:.1f}" for name, value in spent.items()))
    means = {name: statistics.mean(waits) for name, waits in gaps.items() if waits}
    totals: Found = {"busy": share, "trials": len(every), "seconds": whole, "gaps": means}
    return totals | {"driver, ms a trial": spent, "notes": workers}
