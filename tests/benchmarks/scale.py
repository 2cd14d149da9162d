"""Cost of a large sweep for its driver: time and memory per trial, and whether the queue of results grows.

python -m tests.benchmarks.scale            10,000 trials in 500 studies, on synthetic curves
python -m tests.benchmarks.scale --ray      1,000 trials that do nothing, through Ray on two cores
python -m tests.benchmarks.scale --epochs   1,000 epochs of 0.05 s, through Ray on two cores
python -m tests.benchmarks.scale --queue    64 workers whose epochs last 0.15 s, for a minute
python -m tests.benchmarks.scale --report   `sptune report` over 5,000 trials of 100 epochs, from start to prompt
"""

from __future__ import annotations

import argparse
import functools
import heapq
import itertools
import json
import os
import queue
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.drivers.context import TrialContext
from orchestrator.drivers.ray import driver as ray_driver
from orchestrator.drivers.ray.cluster import connected
from orchestrator.drivers.ray.worker import RunTrial
from orchestrator.drivers.replay import Clock, Curve, ReplayDriver, SyntheticCurves
from orchestrator.drivers.report_batch import seconds_to_wait, split_report
from orchestrator.spec.loader import parse_spec
from orchestrator.spec.plan import plan_sweep, suggest_params
from orchestrator.spec.schema import SweepSpec
from orchestrator.spec.space import Choice, Dimension
from orchestrator.study.selection import pack_correct
from orchestrator.study.storage.database import StudyDatabase
from orchestrator.study.study import load_studies
from orchestrator.study.trial import Epoch, Failure, Trial, TrialState
from orchestrator.sweep.sweep import Sweep
from orchestrator.sweep.tracker import MemoryTracker
from trainer.catalog import TASKS
from trainer.config import TrainConfig


class Silent:
    """A tracker that logs nothing, so that only the driver's own cost is measured."""

    open_study = sync = sync_study = lambda *_: None

    def close(self) -> int:
        """Return 0: nothing is left to log."""
        return 0


def spec_of(num_studies: int, trials: int, finals: int, epochs: int, min_epochs: int = 1) -> SweepSpec:
    """Return a sweep of so many studies. Its tasks need no data, since nothing is trained."""
    methods = ["spt_deep", "spt_shallow", "vpt_deep", "vpt_shallow"]
    tasks = [*TASKS][:25]
    sizes = [0.15, 0.2, 0.5, 0.8, 1.0]
    pruner = {"type": "asha", "min_epochs": min_epochs} if epochs > 1 else {"type": "none"}
    raw: dict[str, Any] = {
        "name": "scale",
        "tasks": tasks[: max(1, num_studies // (len(methods) * len(sizes)))],
        "backbones": ["vit_nano_patch4_32.mae"],
        "methods": methods[:num_studies] if num_studies < len(methods) else methods,
        "train_sizes": sizes if num_studies >= len(methods) * len(sizes) else [1.0],
        "fixed": {"epochs": epochs, "warmup_epochs": 0},
        "space": {
            "lr": {"type": "float", "low": 1e-3, "high": 1.0, "log": True},
            "weight_decay": {"type": "float", "low": 1e-4, "high": 1e-1, "log": True},
            "prompt_length": {"type": "choice", "values": [5, 10, 20, 50]},
            "prompt_init": {"type": "choice", "values": ["random", "mean_pool", "max_pool", "kmeans"]},
        },
        "search": {"trials": trials, "pruner": pruner},
        "final": {"seeds": [*range(finals)]},
    }
    spec = parse_spec(raw, "the benchmark")
    assert len(plan_sweep(spec).studies) == num_studies
    return spec


def resident_mb() -> float:
    """Return the memory of this process now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


def replay(num_studies: int, trials: int, finals: int, epochs: int) -> dict[str, float]:
    """Run a sweep on synthetic curves with 64 workers, and measure the driver's CPU seconds per thousand trials.

    CPU seconds do not depend on other programs on the machine, and the driver only computes and writes.
    """
    spec = spec_of(num_studies, trials, finals, epochs)
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        sweep = Sweep.resume(spec, StudyDatabase(f"sqlite:///{folder}/studies.db"), Silent(), clock=clock)
        opened = time.perf_counter() - started
        marks = [(0, time.process_time(), resident_mb())]
        started = time.perf_counter()
        curves = SyntheticCurves(plan_sweep(spec).studies)

        def marked(trial: Any) -> Any:
            if sweep.num_started % 1000 == 0:
                marks.append((sweep.num_started, time.process_time(), resident_mb()))
            return curves(trial)

        ReplayDriver(marked, clock, workers=64).run(sweep)
        count = sum(summary.num_finished for summary in sweep.summaries())
        last = time.process_time()
        wall = time.perf_counter() - started
        epochs_run = sum(len(trial.epochs) for study in sweep.studies for trial in study.trials)
        started = time.perf_counter()
        reopened_sweep = Sweep.resume(spec, StudyDatabase(f"sqlite:///{folder}/studies.db"), Silent(), clock=clock)
        assert reopened_sweep.is_done
        reopened = time.perf_counter() - started
    per_thousand = [(b[1] - a[1]) / (b[0] - a[0]) * 1000 for a, b in itertools.pairwise(marks)]
    return {
        "trials": count,
        "studies": num_studies,
        "epochs per trial": epochs_run / count,
        "open, s": opened,
        "ms per trial by the clock": 1000 * wall / count,
        "ms per trial": 1000 * (last - marks[0][1]) / count,
        "ms per trial, first thousand": per_thousand[0],
        "ms per trial, last thousand": per_thousand[-1],
        "last over first": per_thousand[-1] / per_thousand[0],
        "KB per trial": 1000 * (marks[-1][2] - marks[0][2]) / count,
        "open again when done, s": reopened,
    }


def nothing(config: TrainConfig, workplace: TrialContext, stop: Callable[[], bool]) -> Iterator[Epoch | Failure]:
    """Run a trial of one epoch that does nothing."""
    yield Epoch(epoch=1, metrics={f"{config.eval_split}/accuracy": config.lr, "epoch/seconds": 0.0})


def sleep_trial(
    claimed_s: float, config: TrainConfig, workplace: TrialContext, stop: Callable[[], bool]
) -> Iterator[Epoch | Failure]:
    """Run a trial that sleeps, and says that its epochs take so many seconds."""
    for epoch in range(1, config.epochs + 1):
        time.sleep(0.05)
        metrics = {"train/loss": 1.0, "epoch/seconds": claimed_s}
        if config.eval_split == "val" or epoch == config.epochs:
            metrics[f"{config.eval_split}/accuracy"] = config.lr
        yield Epoch(epoch=epoch, metrics=metrics)


def run_on_ray(spec: SweepSpec, run_trial: RunTrial, note: Callable[[Sweep], None]) -> Sweep:
    """Run a sweep through Ray, and call `note` after each change."""
    with tempfile.TemporaryDirectory() as folder:
        workplace = TrialContext(
            data_root=folder, trials_folder=folder, prototype_cache=folder, weights=None, cpus=1, gpus=0
        )
        sweep = Sweep.resume(spec, StudyDatabase(f"sqlite:///{folder}/studies.db"), Silent())

        # Workers import the functions of this file from here: Ray adds no folder to their path.
        os.environ["PYTHONPATH"] = str(Path(__file__).parents[2])
        with connected(None):
            ray_driver.RayDriver(workplace, run_trial).run(sweep, lambda: note(sweep))
    return sweep


def through_ray(trials: int) -> dict[str, float]:
    """Run trials that do nothing through Ray, and measure the seconds per trial."""
    first: list[float] = []

    def note(sweep: Sweep) -> None:
        if not first and sweep.num_finished:
            first.append(time.perf_counter())

    started = time.perf_counter()
    sweep = run_on_ray(spec_of(4, trials // 4 - 2, 2, 1), nothing, note)
    ended = time.perf_counter()
    count = sweep.num_finished
    return {"trials": count, "s in total": ended - started, "s per trial": (ended - first[0]) / (count - 1)}


def short_epochs(trials: int, *, one_by_one: bool) -> dict[str, float]:
    """Run trials of 100 short epochs through Ray, and measure the driver's CPU seconds per epoch.

    Args:
        one_by_one: report each epoch alone, as long epochs are.
    """
    marks: list[float] = []

    def note(sweep: Sweep) -> None:
        # Not before the first epoch, which comes after the start of Ray and of the workers.
        if sweep.studies[0].search_table.trials[0].epochs:
            marks.append(time.process_time())

    run_trial = functools.partial(sleep_trial, 3600.0 if one_by_one else 0.05)
    sweep = run_on_ray(spec_of(1, trials - 1, 1, 100, min_epochs=99), run_trial, note)
    num_epochs = sum(len(trial.epochs) for trial in sweep.studies[0].trials)
    return {"epochs": num_epochs, "driver, ms per epoch": 1000 * (marks[-1] - marks[0]) / num_epochs}


@dataclass
class SimulatedWorker:
    """A worker whose trial follows a synthetic curve, and what it has collected for its next report."""

    trial: Trial
    curve: Curve
    began: float
    """When it began to collect."""
    events: list[Epoch | Failure] = field(default_factory=list)


class SimulatedCluster:
    """Workers that report epochs in a thread. They do not wait for the driver: the queue grows if it is too slow.

    Args:
        epoch_s: seconds of an epoch.
        one_by_one: report each epoch alone.
    """

    def __init__(self, num_workers: int, epoch_s: float, *, one_by_one: bool) -> None:
        self.workers: list[SimulatedWorker | None] = [None] * num_workers
        self.reports: queue.Queue[tuple[int, Trial, list[Epoch | Failure]]] = queue.Queue()
        self.has_ended = threading.Event()
        self._epoch_s = epoch_s
        self._one_by_one = one_by_one

    def train(self, seconds: float) -> None:
        """Finish the epochs of all workers, each at its time."""
        began = time.perf_counter()
        count = len(self.workers)
        turns = [(began + number * self._epoch_s / count, number) for number in range(count)]
        while turns[0][0] < began + seconds:
            turn, number = heapq.heappop(turns)
            time.sleep(max(0.0, turn - time.perf_counter()))
            self._finish_epoch(number, turn)
            heapq.heappush(turns, (turn + self._epoch_s, number))
        self.has_ended.set()

    def _finish_epoch(self, number: int, now: float) -> None:
        worker = self.workers[number]
        # The driver may not have seen the last epoch of the trial yet.
        item = next(worker.curve, None) if worker is not None else None
        if worker is None or item is None:
            return

        event = item[0]
        worker.events.append(event)
        if self._one_by_one or seconds_to_wait(event, worker.trial.config.epochs, now - worker.began) == 0:
            self.reports.put((number, worker.trial, worker.events))
            worker.events = []
            worker.began = now


def fill_queue(num_workers: int, seconds: float, epoch_s: float, *, one_by_one: bool) -> dict[str, float]:
    """Process the reports of many workers in one thread, and measure its time and how long the queue gets."""
    spec = spec_of(100, 98, 2, 100, min_epochs=10)
    cluster = SimulatedCluster(num_workers, epoch_s, one_by_one=one_by_one)
    lengths: list[int] = []
    num_epochs = 0
    spent: dict[str, float] = defaultdict(float)

    with tempfile.TemporaryDirectory() as folder:
        sweep = Sweep.resume(spec, StudyDatabase(f"sqlite:///{folder}/studies.db"), MemoryTracker())
        curves = SyntheticCurves(plan_sweep(spec).studies, seconds_per_epoch=epoch_s)

        def start_trial(number: int) -> None:
            began = time.perf_counter()
            trial = sweep.next_trial()
            now = time.perf_counter()
            spent["next_trial"] += now - began
            cluster.workers[number] = SimulatedWorker(trial, curves(trial), now) if trial is not None else None

        for number in range(num_workers):
            start_trial(number)
        spent.clear()
        computed = time.thread_time()
        thread = threading.Thread(target=cluster.train, args=(seconds,))
        thread.start()

        while not (cluster.has_ended.is_set() and cluster.reports.empty()):
            try:
                number, trial, events = cluster.reports.get(timeout=0.1)
            except queue.Empty:
                continue
            lengths.append(cluster.reports.qsize())
            if sweep.is_running(trial.trial_id):
                epochs, _ = split_report(events)
                num_epochs += len(epochs)
                began = time.perf_counter()
                sweep.tick()
                goes_on = sweep.on_epochs(trial.trial_id, epochs)
                spent["on_epochs"] += time.perf_counter() - began
                if not goes_on:
                    start_trial(number)
        thread.join()
        computed = time.thread_time() - computed

    quarter = len(lengths) // 4
    return {
        "epochs per second": num_epochs / seconds,
        "reports per second": len(lengths) / seconds,
        "epochs per report": num_epochs / len(lengths),
        "driver, ms per epoch": 1000 * sum(spent.values()) / num_epochs,
        "of it computing": 1000 * computed / num_epochs,
        "of it in on_epochs": 1000 * spent["on_epochs"] / num_epochs,
        "of it in next_trial": 1000 * spent["next_trial"] / num_epochs,
        "share of the driver's time": sum(spent.values()) / seconds,
    } | {f"longest queue, quarter {n + 1}": max(lengths[n * quarter : (n + 1) * quarter]) for n in range(4)}


def time_report(num_studies: int, trials: int) -> dict[str, float]:
    """Time `sptune report` over a study database of complete trials, each with all that a real trial stores."""
    spec = spec_of(num_studies, trials - 2, 2, 100)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        database = StudyDatabase(f"sqlite:///{folder}/studies.db")
        database.save_sweep(spec.name, spec.model_dump(mode="json"))
        for study in load_studies(spec, database):
            study.save_settings()
            for number in range(trials):
                is_search = number < trials - 2
                rows = study.search_table if is_search else study.final_table
                params: dict[str, Any] = {"seed": number - trials + 2}
                if is_search:
                    params = suggest_params(study.plan, _draw_with(rng))
                config_params = params if is_search or study.best is None else study.best.params
                config = (study.plan.search_config if is_search else study.plan.final_config)(
                    config_params, params.get("seed", 0)
                )
                split = "val" if is_search else "test"
                is_correct = rng.random(200) < rng.uniform(0.4, 0.9)
                losses = {f"train/{name}": 0.123456789 for name in "abcdefgh"}
                epoch = losses | {f"{split}/accuracy": float(is_correct.mean())}
                facts = {"correct": pack_correct(is_correct.tolist())} if is_search else {}
                facts |= {"scored_on": "0123456789abcdef/test", "protocol": "published", "software": "torch " * 20}
                rows.add(
                    Trial(
                        trial_id=config.fingerprint(),
                        study=study.plan.key,
                        phase=rows.phase,
                        number=len(rows.trials),
                        params=params,
                        config=config,
                        state=TrialState.COMPLETE,
                        epochs=(*[losses] * 99, epoch),
                        last_metrics=epoch | {"learnable/share": 0.01, "learnable/parameters": float(number)},
                        provenance=facts,
                        score=epoch[f"{split}/accuracy"],
                    )
                )
        command = [str(Path(sys.executable).with_name("sptune")), "report", spec.name, "--home", folder]
        taken = []
        for _ in range(3):
            started = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            taken.append(time.perf_counter() - started)
        size = Path(folder, "studies.db").stat().st_size / 1e6
    return {"trials": num_studies * trials, "study database, MB": size, "s, median of 3": sorted(taken)[1]}


def _draw_with(rng: np.random.Generator) -> Callable[[str, Dimension], Any]:
    """Return a function that draws a value of a dimension."""

    def draw(_: str, dimension: Dimension) -> Any:
        if isinstance(dimension, Choice):
            return dimension.values[int(rng.integers(len(dimension.values)))]
        return float(np.exp(rng.uniform(np.log(dimension.low), np.log(dimension.high))))

    return draw


def main() -> None:
    """Run the requested measurement, and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ray", action="store_true")
    parser.add_argument("--epochs", action="store_true")
    parser.add_argument("--queue", action="store_true")
    parser.add_argument("--epoch-seconds", type=float, default=0.15, help="of an epoch in --queue")
    parser.add_argument("--one-by-one", action="store_true", help="report each epoch alone in --epochs and --queue")
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--studies", type=int, default=500)
    parser.add_argument("--trials", type=int, default=20, help="trials of a study, two of them final")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.ray:
        results = through_ray(1000)
    elif options.epochs:
        results = short_epochs(10, one_by_one=options.one_by_one)
    elif options.queue:
        results = fill_queue(64, 60.0, options.epoch_seconds, one_by_one=options.one_by_one)
    elif options.report:
        results = time_report(240, 21)
    else:
        results = replay(options.studies, options.trials - 2, 2, 10)
    print(f"{os.cpu_count()} cores")
    for name, value in results.items():
        print(f"{name:<28} {value:,.3f}".rstrip("0").rstrip("."))
    if options.json:
        options.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
