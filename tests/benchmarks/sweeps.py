"""Sweeps on one machine: 24 trials three ways, and how busy two Ray workers are. `trials.py` runs both parts."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from orchestrator.drivers.context import TrialContext
from orchestrator.spec.loader import load_spec, parse_spec
from orchestrator.spec.schema import SweepSpec
from orchestrator.study.storage.database import StudyDatabase
from orchestrator.study.study import Study, load_studies
from orchestrator.study.trial import Epoch, Failure, Trial
from orchestrator.sweep.sweep import Sweep
from tests.benchmarks.alone import Found, environment_of, trials_alone
from trainer.catalog import BUNDLED
from trainer.config import TrainConfig

WORKERS = 2
SLEEP_S, EPOCHS = 0.5, 4
"""Of a trial of `busy` that sleeps: of an epoch, and how many."""
CONSOLE = Console(width=110)
SPACE = """
  lr:                {type: float, low: 5.0e-3, high: 5.0e-2, log: true}
  weight_decay:      {type: float, low: 1.0e-4, high: 1.0e-2, log: true}
  head_weight_decay: {type: float, low: 1.0e-2, high: 1.0, log: true}
  prompt_init:       {type: choice, values: [random, mean_pool, max_pool, kmeans]}
"""


# 24 trials.


def spec_text(name: str, pruner: str, options: argparse.Namespace) -> str:
    """The sweep, the last trial of each study final. Every prompt has the same length, and so an epoch its cost."""
    searched = options.sweep_trials // len(options.sweep_tasks) - 1
    epochs, gpus = options.sweep_epochs, "auto" if options.device != "cpu" else 0
    return f"""
name: {name}
tasks: [{", ".join(options.sweep_tasks)}]
backbones: [{options.backbones[0]}]
methods: [spt_deep]
fixed: {{epochs: {epochs}, warmup_epochs: {epochs // 10}, batch_size: 32, prompt_length: 20}}
space: {SPACE}
search: {{trials: {searched}, pruner: {pruner}}}
final: {{seeds: [42]}}
resources: {{cpus: 1, gpus: {gpus}}}
"""


def launched(name: str, pruner: str, options: argparse.Namespace, folder: Path) -> tuple[Found, list[Study]]:
    """Run it as a user does, with nothing decoded and no prototypes."""
    from tests.benchmarks.glue import timed

    home = folder / name
    home.mkdir()
    (home / "spec.yaml").write_text(spec_text(name, pruner, options))
    command = [str(Path(sys.executable).with_name("sptune")), "launch", f"{home}/spec.yaml", "--home", str(home)]
    environment = environment_of(folder, f"{home}/cache")
    environment.pop("OMP_NUM_THREADS", None)  # Ray gives each worker its own
    seconds, cpu_s = timed(command, home, environment)
    studies = load_studies(load_spec(home / "spec.yaml"), StudyDatabase(f"sqlite:///{home}/studies.db"))
    assert all(study.is_done and not study.summary().failed_trials for study in studies), "all went well"
    trials = [trial for study in studies for trial in (*study.requested_search_trials, *study.requested_final_trials)]
    found: Found = {"seconds": seconds, "CPU s": cpu_s, "epochs": sum(len(trial.epochs) for trial in trials)}
    found |= {"test": statistics.mean(study.requested_final_trials[0].score or 0.0 for study in studies)}
    return found | {"trials": len(trials), "pruned": sum(trial.score is None for trial in trials)}, studies


def as_published(trial: Trial, options: argparse.Namespace, folder: Path) -> tuple[float, float, float | None]:
    """Seconds of a trial's params in a process of the published recipe; its score there, and with us."""
    own = tempfile.mkdtemp(prefix="published", dir=folder)
    environment, started = environment_of(folder, f"{own}/cache"), time.perf_counter()
    (told,) = trials_alone(
        "published",
        [dataclasses.asdict(trial.config)],
        environment,
        folder=own,
        data=f"{folder}/data",
        device=options.device,
    )
    seconds = time.perf_counter() - started
    CONSOLE.print(f"published, {trial.study}, {trial.phase} trial {trial.number}: {seconds:.1f} s")
    return seconds, told["metrics"][trial.config.eval_metric], trial.score


def sweep(options: argparse.Namespace, folder: Path) -> Found:
    """The same trials by the published recipe and by us, and then with a pruner."""
    asha = f"{{type: asha, min_epochs: {max(1, options.sweep_epochs // 10)}}}"
    slow, studies = launched("whole", "{type: none}", options, folder)
    CONSOLE.print(f"launch, no pruner: {slow['seconds']:.0f} s")
    chosen = [
        trial
        for study in studies
        for trial in (study.requested_search_trials if options.full else study.requested_search_trials[:4])
    ]
    searched = [as_published(trial, options, folder) for trial in chosen[::2]]
    fast, _ = launched("pruned", asha, options, folder)  # between the published trials: a machine's speed may change
    CONSOLE.print(f"launch, TPE and ASHA: {fast['seconds']:.0f} s")
    searched += [as_published(trial, options, folder) for trial in chosen[1::2]]
    finals = [as_published(study.requested_final_trials[0], options, folder) for study in studies]
    count, each = slow["trials"], [*searched, *finals]
    search_s = statistics.mean(taken for taken, *_ in searched)
    seconds = search_s * (count - len(finals)) + sum(taken for taken, *_ in finals)
    published: Found = {"seconds": seconds, "epochs": count * options.sweep_epochs, "pruned": 0}
    first = "published" if len(each) == count else f"published ({len(each)} of {count} measured)"
    rows = {first: published, "launch, no pruner": slow, "launch, TPE and ASHA": fast}
    columns = ("s", "trials/h", "epochs", "pruned", "published / it", "test/accuracy")
    title = f"sweep: {count} trials of {options.backbones[0]}, {len(finals)} of them final"
    table = Table("", *columns, title=title)
    for name, row in rows.items():
        cells = (f"{row['seconds']:.0f}", f"{3600 * count / row['seconds']:,.0f}", row["epochs"], row["pruned"])
        test = f"{row['test']:.3f}" if "test" in row else ""
        table.add_row(name, *map(str, cells), f"{seconds / row['seconds']:.2f}", test)
    CONSOLE.print(table)
    CONSOLE.print(
        f"Of the gain {seconds / fast['seconds']:.2f}, {seconds / slow['seconds']:.2f} is our trials, with every epoch "
        f"trained, and {slow['seconds'] / fast['seconds']:.2f} is pruning, which trains {fast['epochs']} of "
        f"{slow['epochs']} epochs. Launch's seconds hold start, search, scoring, MLflow, pictures and report."
    )
    theirs, ours = (statistics.mean(scores) for scores in list(zip(*each, strict=True))[1:])
    CONSOLE.print(f"accuracy of the same params, mean of {len(each)}: published {theirs:.3f}, ours {ours:.3f}")
    return {"rows": rows, "published seconds and accuracy, our accuracy; final ones last": each}


# How busy workers are.


def asleep(config: TrainConfig, workplace: TrialContext, stop: Callable[[], bool]) -> Iterator[Epoch | Failure]:
    """A trial that sleeps."""
    for epoch in range(1, config.epochs + 1):
        time.sleep(SLEEP_S)
        metrics = {"train/loss": 1.0, "epoch/seconds": SLEEP_S}
        if config.eval_split == "val" or epoch == config.epochs:
            metrics[f"{config.eval_split}/accuracy"] = config.lr
        yield Epoch(epoch=epoch, metrics=metrics)


def trained(config: TrainConfig, workplace: TrialContext, stop: Callable[[], bool]) -> Iterator[Epoch | Failure]:
    """A trial as it is."""
    from orchestrator.drivers import trial_runner as worker  # torch is a worker's business

    return worker.run_trial(config, workplace, stop)


@dataclass(frozen=True)
class Noted:
    """What a worker does with a config, with a note of when it did."""

    run_trial: Callable[[TrainConfig, TrialContext, Callable[[], bool]], Iterator[Epoch | Failure]]
    folder: str

    def __call__(
        self, config: TrainConfig, workplace: TrialContext, stop: Callable[[], bool]
    ) -> Iterator[Epoch | Failure]:
        """Called when a worker begins with a trial; the first step comes later."""
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
                told = time.time()
                inside += told - resumed
                if isinstance(event, Failure) or event.epoch == config.epochs:
                    self._note(trial=config, called=called, begun=begun, told=told, inside=inside, waits=waits)
                yield event
                resumed = time.time()
                waits.append(resumed - told)
        finally:
            closing = time.time()
            events.close()  # type: ignore[attr-defined]  # both are generators
            self._note(closing=closing, closed=time.time())

    def _note(self, **what: Any) -> None:
        with Path(self.folder, f"{os.getpid()}.jsonl").open("a") as file:
            file.write(json.dumps(what) + "\n")


def busy_spec(trials: int) -> SweepSpec:
    """A sweep of four studies, two of each one's trials final."""
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
    """Drive the sweep as `launch` does; which share of the time its two workers were at work, and where they waited."""
    from orchestrator.drivers.ray import driver as ray_driver
    from orchestrator.drivers.ray.cluster import connected
    from orchestrator.environment.home import home_at
    from orchestrator.tracking.mlflow_runs import MlflowRuns
    from orchestrator.tracking.mlflow_tracker import MlflowTracker

    spec, home, notes = busy_spec(options.trials), home_at(f"{folder}/busy"), folder / "notes"
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
    driven = Driven(Sweep.resume(spec, StudyDatabase(home.database_url), tracker))
    try:
        with connected(None):
            run_trial = Noted(trained if options.train else asleep, str(notes))
            ray_driver.RayDriver(workplace, run_trial).run(driven.sweep, driven.tell)
    finally:
        tracker.close()
    assert driven.sweep.is_done, driven.sweep.halt
    return shown(
        [[json.loads(line) for line in file.read_text().splitlines()] for file in notes.glob("*.jsonl")], driven
    )


class Driven:
    """A sweep whose calls are timed: what the driver itself does between two trials of a worker."""

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        self.spent: dict[str, float] = defaultdict(float)
        self._told = 0
        for name in ("next_trial", "on_epoch", "tick"):
            setattr(sweep, name, self._timed(name, getattr(sweep, name)))

    def tell(self) -> None:
        """Say how far it is."""
        if (finished := self.sweep.num_finished) >= self._told + 20:
            self._told = finished
            CONSOLE.print(f"{finished} trials")

    def _timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def timed(*args: Any) -> Any:
            began = time.perf_counter()
            try:
                return call(*args)
            finally:
                self.spent[name] += time.perf_counter() - began

        return timed


def shown(workers: list[list[Found]], driven: Driven) -> Found:
    """The table of what workers noted; Tune ends a worker that finds no trial waiting, and starts a process anew."""
    ended = [[note for note in notes if "told" in note] for notes in workers]
    every = [note for notes in ended for note in notes]
    whole = max(note["told"] for note in every) - min(note["begun"] for note in every)
    share = sum(note["inside"] for note in every) / (WORKERS * whole)
    gaps: dict[str, list[float]] = defaultdict(list)
    for notes in workers:
        for last, close, first in zip(notes, notes[1:], notes[2:], strict=False):
            if "told" in last and "told" in first:
                gaps["last epoch told, to its end asked for"].append(close["closing"] - last["told"])
                gaps["its end: the log is written"].append(close["closed"] - close["closing"])
                gaps["to the next trial's begin (reset_config)"].append(first["called"] - close["closed"])
                gaps["to its first step"].append(first["begun"] - first["called"])
                gaps["all between two trials"].append(first["begun"] - last["told"])
    gaps["between two epochs"] = [wait for note in every for wait in note["waits"]]
    begins, ends = (sorted(notes[i][what] for notes in ended) for i, what in ((0, "begun"), (-1, "told")))
    late, early = begins[WORKERS - 1] - begins[0], ends[-1] - ends[-WORKERS]
    table = Table("s", "median", "mean", "most", "in all", title=f"busy: {len(every)} trials, {len(workers)} processes")
    for name, found in gaps.items():
        values = (statistics.median(found), statistics.mean(found), max(found), sum(found)) if found else (0.0,) * 4
        table.add_row(name, *(f"{value:.3f}" for value in values))
    CONSOLE.print(table)
    each = statistics.mean(note["inside"] for note in every)
    CONSOLE.print(
        f"busy {share:.1%} of {WORKERS} x {whole:.1f} s; a trial takes {each:.2f} s; "
        f"one worker begins {late:.2f} s after the other, and ends {early:.2f} s before it"
    )
    spent = {name: 1000 * seconds / len(every) for name, seconds in driven.spent.items()}
    CONSOLE.print("the driver, ms a trial: " + ", ".join(f"{name} {value:.1f}" for name, value in spent.items()))
    means = {name: statistics.mean(found) for name, found in gaps.items() if found}
    found_in_all: Found = {"busy": share, "trials": len(every), "seconds": whole, "gaps": means}
    return found_in_all | {"driver, ms a trial": spent, "notes": workers}
