"""Bold cells of the results table: results that are not significantly worse than the best of their column."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from orchestrator.report.comparison import min_tasks, rounded_mean
from orchestrator.report.draws import replicates, spread_unit
from orchestrator.report.results_table import NAMES, ResultsRow, ResultsTable
from orchestrator.spec.labels import study_label
from orchestrator.study.selection import LEVEL
from orchestrator.study.statistics import holm, signed_rank, welch
from orchestrator.study.study import Study

Names = tuple[str, ...]
"""Method, backbone and train size of a row."""


def find_bold(table: ResultsTable, studies: Sequence[Study]) -> set[tuple[Names, str]]:
    """Return names and column of our cells that are not significantly worse than the best of their column.

    Methods are compared on the same backbone and train size. The column of a task is tested over seeds (Welch's
    t-test), a column of means over its tasks (Wilcoxon's signed-rank test). Holm's correction counts all pairs of
    methods, so it covers that the best is chosen on the same numbers. A column in which a pair cannot be tested has no
    bold cell.
    """
    replicates = _replicates(studies)

    bold: set[tuple[Names, str]] = set()
    for rows in _rows_by_setting(table):
        for column in (*table.tasks, *table.means):
            scored = [row for row in rows if column in row.scores]
            if column in table.tasks:
                p_values = _p_over_seeds([replicates[row.names][column] for row in scored])
            else:
                p_values = _p_over_tasks(scored, table.groups.get(column.removesuffix(" mean"), table.tasks))
            bold |= {(row.names, column) for row in _not_worse(scored, column, p_values)}

    return bold


def bold_text(table: ResultsTable, studies: Sequence[Study]) -> Iterator[str]:
    """Yield what bold means, unless no two rows can be compared."""
    largest = max((len(rows) for rows in _rows_by_setting(table)), default=0)
    if largest < 2:
        return

    # A part of the images may have several draws, while all images have one.
    drawn_sizes = {repr(study.plan.train_size) for study in studies if study.plan.draw > 0}
    has_single = any(repr(study.plan.train_size) not in drawn_sizes for study in studies)
    seeds = "seeds of the final trials (Welch's t-test), which does not cover the luck of its search"
    if not drawn_sizes:
        cases, too_few = seeds, "one seed"
    elif has_single:
        cases = f"draws (Welch's t-test), and where there is one draw over {seeds}"
        too_few = "one finished draw of several, or one draw and one seed"
    else:
        cases, too_few = "draws (Welch's t-test)", "one finished draw"

    yield (
        "Bold: not significantly worse (5 %) than the best of our methods on the same backbone and train size. "
        f"The column of a task is tested over {cases}; a column of means is tested over its tasks (Wilcoxon's "
        "signed-rank test). Holm's correction counts all pairs of a column. A column has no bold if a method has "
        f"{too_few}, or if it averages fewer than {min_tasks(largest * (largest - 1) // 2)} tasks."
    )


def _rows_by_setting(table: ResultsTable) -> list[list[ResultsRow]]:
    """Return our rows, those of a backbone and train size together."""
    settings: dict[Names, list[ResultsRow]] = {}
    for row in table.rows:
        if row.kind == "ours":
            settings.setdefault(row.names[1:], []).append(row)
    return [*settings.values()]


def _replicates(studies: Sequence[Study]) -> dict[Names, dict[str, list[float]]]:
    """Return the independent scores of each row and task: one a draw if the size has several draws, else one a seed.

    Final trials of a draw share its images and its search, so they count once. That holds for the first draw that is
    finished, too.
    """
    by_task: dict[Names, dict[str, list[Study]]] = {}
    for study in studies:
        names = tuple(study_label(study.plan, NAMES))
        by_task.setdefault(names, {}).setdefault(study.plan.task, []).append(study)

    return {
        names: {task: _scores_of(draws) for task, draws in tasks.items() if any(draw.has_result for draw in draws)}
        for names, tasks in by_task.items()
    }


def _scores_of(draws: Sequence[Study]) -> list[float]:
    """Return the independent scores of one task. Each draw of it has a study of its own."""
    trials = [trial for draw in draws for trial in draw.requested_final_trials]
    return replicates([trials], spread_unit(draw.plan for draw in draws))


def _p_over_seeds(scores: Sequence[Sequence[float]]) -> list[float | None]:
    return [welch(one, other) for one, other in itertools.combinations(scores, 2)]


def _p_over_tasks(rows: Sequence[ResultsRow], tasks: Sequence[str]) -> list[float | None]:
    pairs = [*itertools.combinations(rows, 2)]
    if len(tasks) < min_tasks(len(pairs)):
        return [None for _ in pairs]

    return [
        signed_rank([rounded_mean([one.scores[task].mean - other.scores[task].mean]) for task in tasks])
        for one, other in pairs
    ]


def _not_worse(rows: Sequence[ResultsRow], column: str, p_values: Sequence[float | None]) -> list[ResultsRow]:
    """Return the rows that are not significantly worse than the best one; none if a pair cannot be tested.

    Args:
        p_values: for each pair of rows, in the order of `itertools.combinations`.
    """
    tested = [p for p in p_values if p is not None]
    if not tested or len(tested) < len(p_values):
        return []

    p_by_pair = dict(zip(itertools.combinations(range(len(rows)), 2), holm(tested), strict=True))
    best = max(range(len(rows)), key=lambda index: rows[index].scores[column].mean)

    return [
        row for index, row in enumerate(rows) if index == best or p_by_pair[min(index, best), max(index, best)] > LEVEL
    ]
