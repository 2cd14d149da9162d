"""Bold cells of the results table: results that are not significantly worse than the best of their column."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from orchestrator.report.comparison import min_tasks, rounded_mean
from orchestrator.report.draws import Unit, replicates, spread_unit
from orchestrator.report.results_table import NAMES, ResultsRow, ResultsTable
from orchestrator.spec.labels import study_label
from orchestrator.spec.plan import StudyPlan
from orchestrator.study.selection import LEVEL
from orchestrator.study.statistics import holm, signed_rank, welch
from orchestrator.study.study import Study
from trainer.plain_text import counted

Names = tuple[str, ...]
"""Method, backbone and train size of a row."""


def find_bold(table: ResultsTable, studies: Sequence[Study]) -> set[tuple[Names, str]]:
    """Return names and column of our cells that are not significantly worse than the best of their column.

    Methods are compared on the same backbone and train size. The column of a task is tested over seeds, or over draws
    if there are several (Welch's t-test). A column of means is tested over its tasks (Wilcoxon's signed-rank test).
    Holm's correction counts all pairs of methods, so it accounts for choosing the best on the same numbers. A column in
    which a pair cannot be tested has no bold cell, nor one in which all would be bold: that would tell nothing apart.
    """
    scores = _replicates(studies)

    bold: set[tuple[Names, str]] = set()
    for rows in _rows_by_setting(table):
        for column in (*table.tasks, *table.means):
            scored = [row for row in rows if column in row.scores]
            if column in table.tasks:
                p_values = _p_over_seeds([scores[row.names][column] for row in scored])
            else:
                p_values = _p_over_tasks(scored, table.groups.get(column.removesuffix(" mean"), table.tasks))
            kept = not_worse(scored, column, p_values)
            if len(kept) < len(scored):
                bold |= {(row.names, column) for row in kept}

    return bold


def bold_text(table: ResultsTable, studies: Sequence[Study]) -> Iterator[str]:
    """Yield what bold means, unless no two rows can be compared."""
    largest = max((len(rows) for rows in _rows_by_setting(table)), default=0)
    if largest < 2:
        return

    units = _units(studies)
    if len(units) > 1:
        over = "draws where a train size has several, and over seeds of the final trials elsewhere"
    else:
        over = "draws" if "draws" in units else "seeds of the final trials"

    luck = "A test over seeds does not cover the luck of the search. " if "seeds" in units else ""
    too_few = " or one ".join(unit.removesuffix("s") for unit in units)
    yield (
        "Bold: not significantly worse (5 %) than the best of our methods on the same backbone and train size. "
        f"The column of a task is tested over {over} (Welch's t-test). {luck}"
        "A column of means is tested over its tasks (Wilcoxon's signed-rank test). "
        "Holm's correction counts all pairs of a column. A column has no bold if no method is significantly worse than "
        f"the best. A task's column has none if a method has one {too_few}. "
        f"A column of means has none with fewer than {counted(min_tasks(largest * (largest - 1) // 2), 'task')}."
    )


def _units(studies: Sequence[Study]) -> list[Unit]:
    """Return what the tests of task columns are over: draws, seeds, or both if train sizes differ in this."""
    plans: dict[Names, list[StudyPlan]] = {}
    for study in studies:
        plans.setdefault(tuple(study_label(study.plan, NAMES[1:])), []).append(study.plan)

    return sorted({spread_unit(of_setting) for of_setting in plans.values()})


def _rows_by_setting(table: ResultsTable) -> list[list[ResultsRow]]:
    """Return our rows, those of a backbone and train size together."""
    settings: dict[Names, list[ResultsRow]] = {}
    for row in table.rows:
        if row.kind == "ours":
            settings.setdefault(row.names[1:], []).append(row)
    return [*settings.values()]


def _replicates(studies: Sequence[Study]) -> dict[Names, dict[str, list[float]]]:
    """Return the independent scores of each row and task: one a draw if there are several draws, else one a seed."""
    # Each draw of a task has a study of its own.
    draws: dict[Names, dict[str, list[Study]]] = {}
    for study in studies:
        by_task = draws.setdefault(tuple(study_label(study.plan, NAMES)), {})
        by_task.setdefault(study.plan.task, []).append(study)

    return {
        names: {task: _scores_of_draws(of_task) for task, of_task in by_task.items()}
        for names, by_task in draws.items()
    }


def _scores_of_draws(draws: Sequence[Study]) -> list[float]:
    trials = [trial for study in draws for trial in study.requested_final_trials]
    return replicates([trials], spread_unit(study.plan for study in draws))


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


def not_worse(rows: Sequence[ResultsRow], column: str, p_values: Sequence[float | None]) -> list[ResultsRow]:
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
