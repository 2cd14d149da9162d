"""Whether each method of a demo spec is trained enough: accuracy on val with the spec's epochs, and with twice as many.

Run `python -m tests.benchmarks.demo_settings --spec demo`. It trains each study at the ends and the middle of the lr
range. Nothing is scored on test.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from orchestrator.spec.loader import find_spec, load_spec
from orchestrator.spec.plan import StudyPlan, plan_sweep
from orchestrator.spec.space import Choice, Dimension
from trainer.metric_names import VAL_ACCURACY
from trainer.training.loop import train


def main() -> None:
    """Train, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spec", default="demo", help="a spec, by name or file (default: demo)")
    parser.add_argument("--data", help="the task store (default: a temporary one, for demo tasks)")
    options = parser.parse_args()

    plans = plan_sweep(load_spec(find_spec(options.spec))).studies
    table = Table("study", "lr", "epochs", "val %", "twice the epochs", "val %", title="is each method trained enough?")
    runs = [(plan, lr) for plan in plans for lr in lrs_of(plan)]
    with tempfile.TemporaryDirectory() as temporary:
        root = options.data or temporary
        for plan, lr in track(runs, "training"):
            once, twice = (val_accuracy(plan, lr, factor, root) for factor in (1, 2))
            row = [plan.key, f"{lr:.3g}", plan.epochs, f"{once:.1f}", 2 * plan.epochs, f"{twice:.1f}"]
            table.add_row(*map(str, row))
    Console(width=140).print(table)


def lrs_of(plan: StudyPlan) -> Iterator[float]:
    """Yield the ends of a study's lr range and their geometric mean, or the one lr of the study."""
    dimension = plan.space.get("lr")
    if dimension is None:
        yield plan.fixed["lr"]
        return

    assert not isinstance(dimension, Choice), "a demo searches lr in a range"
    yield from (dimension.low, math.sqrt(dimension.low * dimension.high), dimension.high)


def middle(dimension: Dimension) -> Any:
    """Return a value in the middle of a dimension."""
    if isinstance(dimension, Choice):
        return dimension.values[len(dimension.values) // 2]
    return math.sqrt(dimension.low * dimension.high) if dimension.log else (dimension.low + dimension.high) / 2


def val_accuracy(plan: StudyPlan, lr: float, factor: int, root: str) -> float:
    """Return the val accuracy in percent after the last epoch of a run with `factor` times the study's epochs."""
    params = {name: middle(dimension) for name, dimension in plan.space.items()}
    config = plan.search_config(params | {"lr": lr, "epochs": factor * plan.epochs}, seed=0)

    *_, last = train(config, data_root=root)
    return 100 * last.metrics[VAL_ACCURACY]


if __name__ == "__main__":
    main()
