"""Gain of `search: {transfer: n}`: the same sweep with and without it, on synthetic curves.

    python -m tests.benchmarks.transfer

The best params of a group's tasks are near each other (spread 0.1 of the width of the space) or anywhere (spread 1.0,
the case against transfer). The table shows, for each number of trials, the best val accuracy as a mean over studies and
seeds, and how often a study ends better or worse with transfer than without.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from typing import Any

from rich.console import Console
from rich.table import Table

from orchestrator.drivers.replay import Clock, ReplayDriver, SyntheticCurves
from orchestrator.spec.loader import parse_spec
from orchestrator.spec.plan import plan_sweep
from orchestrator.study.storage.database import StudyDatabase
from orchestrator.sweep.sweep import Sweep
from orchestrator.sweep.tracker import MemoryTracker
from trainer.catalog import TASKS


def best_scores(transfer: int, trials: int, spread: float, seed: int) -> list[float]:
    """Return the best val accuracy of each study of a sweep over the 19 tasks of VTAB."""
    raw: dict[str, Any] = {
        "name": "transfer",
        "tasks": ["vtab"],
        "backbones": ["vit_nano_patch4_32.mae"],
        "methods": ["spt_deep"],
        "fixed": {"epochs": 9, "warmup_epochs": 1},
        "space": {
            "lr": {"type": "float", "low": 1e-3, "high": 1.0, "log": True},
            "weight_decay": {"type": "float", "low": 1e-4, "high": 1e-1, "log": True},
            "head_weight_decay": {"type": "float", "low": 1e-2, "high": 10.0, "log": True},
            "prompt_length": {"type": "choice", "values": [5, 10, 20, 50]},
            "prompt_init": {"type": "choice", "values": ["random", "mean_pool", "max_pool", "kmeans"]},
        },
        "search": {"trials": trials, "seed": seed, "transfer": transfer, "pruner": {"type": "asha", "min_epochs": 1}},
        "final": {"seeds": [0]},
    }

    spec = parse_spec(raw, "the benchmark")
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        sweep = Sweep.resume(spec, StudyDatabase(f"sqlite:///{folder}/studies.db"), MemoryTracker(), clock=clock)
        ReplayDriver(SyntheticCurves(plan_sweep(spec).studies, spread=spread, seed=seed), clock, workers=16).run(sweep)
    return [study.best.score for study in sweep.studies if study.best is not None and study.best.score is not None]


def main() -> None:
    """Measure, and print a table."""
    table = Table(title=f"best val accuracy, {len([t for t in TASKS.values() if t.name.startswith('vtab')])} tasks")
    for name in ("spread", "trials", "without", "with 3", "better", "worse"):
        table.add_column(name, justify="right")

    for spread in (0.1, 1.0):
        for trials in (6, 12, 24):
            pairs = [
                pair
                for seed in range(5)
                for pair in zip(*(best_scores(transfer, trials, spread, seed) for transfer in (0, 3)), strict=True)
            ]

            without, with_transfer = zip(*pairs, strict=True)
            # A difference of half a percent or less is a tie.
            better = sum(given > plain + 0.005 for plain, given in pairs) / len(pairs)
            worse = sum(given < plain - 0.005 for plain, given in pairs) / len(pairs)
            means = (f"{100 * statistics.mean(values):.1f}" for values in (without, with_transfer))
            table.add_row(f"{spread:g}", str(trials), *means, f"{better:.0%}", f"{worse:.0%}")

    Console().print(table)
    print(f"{os.cpu_count()} cores")


if __name__ == "__main__":
    main()
