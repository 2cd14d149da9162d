"""Section of a report that lists what each study searches: its ranges, its fixed values and its sampler."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.report.blocks import TableBlock, cells
from orchestrator.spec.plan import StudyPlan
from orchestrator.spec.searched import searched_parts


def searched_block(plans: Sequence[StudyPlan]) -> TableBlock:
    """Return the ranges of each study, one row for all studies that have the same."""
    parts, common = searched_parts(plans)
    rows = [
        cells(part.studies, part.search, f"{part.space}; fixed: {part.fixed}" if part.fixed else part.space)
        for part in parts
    ]

    return TableBlock(
        title=f"what is searched\nfixed: {common}" if common else "what is searched",
        header=("studies", "search", "params"),
        rows=rows,
        names=2,
        last_is_text=True,
    )
