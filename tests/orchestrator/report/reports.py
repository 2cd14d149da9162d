"""Reports of small sweeps whose trials have chosen scores, and access to their tables and lines."""

from __future__ import annotations

import copy
import hashlib
import io
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console

from orchestrator.report.blocks import Block, Cell, TableBlock, TextBlock
from orchestrator.report.render import print_blocks
from orchestrator.report.sections import build_sections
from orchestrator.spec.loader import parse_spec
from orchestrator.study.study import Study
from orchestrator.study.trial import Failure, Trial
from tests.orchestrator.conftest import new_sweep
from trainer.catalog import TASKS

MAE = "vit_base_patch16_224.mae"
NATURAL = [task.name for task in TASKS.values() if task.group == "natural"]
VTAB = [task.name for task in TASKS.values() if task.name.startswith("vtab/")]
FGVC = [task.name for task in TASKS.values() if task.group == "fgvc"]
SMALL: dict[str, Any] = {
    "name": "small",
    "tasks": ["vtab/dtd", "vtab/svhn", "fgvc/nabirds"],
    "backbones": [MAE],
    "methods": ["spt_deep", "full"],
    "fixed": {"epochs": 1, "warmup_epochs": 0},
    "space": {
        "lr": {"type": "float", "low": 0.001, "high": 0.1, "log": True},
        "prompt_length": {"type": "choice", "values": [1, 5]},
        "prompt_init": {"type": "choice", "values": ["random", "mean_pool"]},
    },
    "search": {"trials": 2, "sampler": "random"},
    "final": {"seeds": [42, 44]},
    "retries": 0,
    "pause_after": 1000,
}
"""A sweep over two groups of tasks whose trials have one epoch."""
ONLY_FULL: dict[str, Any] = {"methods": ["full"], "space": {"lr": SMALL["space"]["lr"]}}


def small(**changes: Any) -> dict[str, Any]:
    """Return SMALL with some keys replaced."""
    return copy.deepcopy(SMALL) | changes


def chance(*values: object) -> float:
    """Return a number in 0..1 that depends on the values alone."""
    return int.from_bytes(hashlib.sha256(repr(values).encode()).digest()[:6], "big") / 2**48


def score_of(trial: Trial) -> float:
    return chance(*(getattr(trial.config, name) for name in ("task", "method", "backbone", "train_size", "seed", "lr")))


def nothing(_: Trial) -> dict[str, Any]:
    return {}


def run(
    raw: dict[str, Any],
    url: str,
    *,
    score: Callable[[Trial], float] = score_of,
    metrics: Callable[[Trial], dict[str, float]] = nothing,
    facts: Callable[[Trial], dict[str, str]] = nothing,
    fail: Callable[[Trial], Failure | None] = lambda _: None,
) -> list[Study]:
    """Run a sweep whose trials get these scores, metrics and facts, or fail. Return its studies."""
    sweep = new_sweep(parse_spec(raw, "a test"), url)
    while (trial := sweep.next_trial()) is not None:
        if (failure := fail(trial)) is not None:
            sweep.on_failure(trial.trial_id, failure)
        else:
            values = {f"{trial.config.eval_split}/accuracy": score(trial)} | metrics(trial)
            for epoch in range(1, trial.config.epochs + 1):
                sweep.on_epoch(trial.trial_id, epoch, values, facts(trial))
    assert sweep.is_done
    sweep.close()
    return sweep.studies


def table_block(blocks: Sequence[Block], title: str) -> TableBlock:
    """Return the only table whose title starts with this text."""
    (table,) = (block for block in blocks if isinstance(block, TableBlock) and block.title.startswith(title))
    return table


def cells_of(table: TableBlock) -> dict[tuple[str, str], Cell]:
    """Return the cells of a table by the first cell of their row and their column.

    The row of a difference has no name of its own: it takes the method of the row above. Marks are left out.
    """
    by_name = {}
    previous = ""
    for row in table.rows:
        name = row[0].text.partition(" [")[0]
        if name.startswith(" "):
            name = f"{previous.partition(',')[0]} difference"
        previous = row[0].text

        by_name.update({(name, column): cell for column, cell in zip(table.header, row, strict=True)})
    return by_name


def results(studies: Sequence[Study]) -> dict[tuple[str, str], Cell]:
    """Return the cells of the main table."""
    return cells_of(table_block(build_sections(studies), "test accuracy"))


def lines_of(blocks: Sequence[Block], *, is_warning: bool | None = None) -> list[str]:
    return [
        line
        for block in blocks
        if isinstance(block, TextBlock) and is_warning in (None, block.is_warning)
        for text in block.lines
        for line in text.splitlines()
    ]


def printed(blocks: Sequence[Block], width: int = 400) -> str:
    """Return what a terminal of this width prints."""
    console = Console(file=io.StringIO(), width=width)
    print_blocks(blocks, console)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def percents(studies: Sequence[Study], task: str, method: str) -> list[float]:
    """Return the final scores of a study in percent."""
    (study,) = (study for study in studies if (study.plan.task, study.plan.method) == (task, method))
    return [100 * trial.score for trial in study.requested_final_trials if trial.score is not None]


def table_blocks(blocks: Sequence[Block]) -> list[TableBlock]:
    return [block for block in blocks if isinstance(block, TableBlock)]
