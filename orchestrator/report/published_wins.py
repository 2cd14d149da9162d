"""On how many tasks published rows beat published full fine-tuning."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from orchestrator.report.published import PublishedRow, published_rows
from trainer.catalog import TASKS

FULL = "full"
"""The method of full fine-tuning, which papers count wins against."""


def published_wins(backbones: Iterable[str], tasks: Sequence[str]) -> Iterator[str]:
    """Yield, for each backbone, a sentence with the number of these tasks on which each published row beats full.

    Published rows are compared with each other alone, so that the sentence holds whatever the sweep trained.

    Args:
        backbones: full timm names.
        tasks: those of the report.
    """
    for backbone in backbones:
        rows = published_rows(backbone)
        full = next((row for row in rows if row.method == FULL), None)
        if full is None:
            continue

        counts = {row.method: count_wins(row, full, tasks) for row in rows if row.method != FULL}
        parts = [f"{method} on {won} of {compared}" for method, (won, compared) in counts.items() if compared]
        if parts:
            yield f"Tasks on which published rows beat published full fine-tuning of {backbone}: {', '.join(parts)}."


def count_wins(row: PublishedRow, full: PublishedRow, tasks: Sequence[str]) -> tuple[int, int]:
    """Return on how many tasks a row has more than full fine-tuning, and how many tasks that is out of.

    The printed count of a group stands in for its tasks where the paper does not print them. It needs all tasks of the
    group: nobody knows on which of them the row wins.
    """
    common = [task for task in tasks if task in row.tasks and task in full.tasks]
    won = sum(row.tasks[task] > full.tasks[task] for task in common)
    compared = len(common)

    for group, count in row.beats_full.items():
        members = {task.name for task in TASKS.values() if task.group == group}
        if members <= {*tasks} and not members & row.tasks.keys():
            won += count
            compared += len(members)
    return won, compared
