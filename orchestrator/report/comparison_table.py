"""Section of a report that compares every two methods."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from orchestrator.report.blocks import NOTHING, Block, TableBlock, TextBlock, cells
from orchestrator.report.comparison import Comparison, compare_methods, comparison_text, each_draw, each_seed
from orchestrator.report.draws import Unit, spread_unit
from orchestrator.report.results_table import NAMES
from orchestrator.spec.labels import study_label, varying_fields
from orchestrator.spec.plan import StudyPlan
from orchestrator.study.study import Study
from trainer.plain_text import counted

P_OVER = {"draws": "p over draws", "seeds": "p over seeds, same search"}
"""Header of the second test, by what its cases are."""


def comparison_blocks(studies: Sequence[Study]) -> Iterator[Block]:
    """Yield the comparison of every pair of methods on the same backbone and train size, and what it tests."""
    varying, _ = varying_fields([study.plan for study in studies], NAMES[1:])

    settings = [*compare_in_settings(studies)]
    comparisons = [pair for _, _, pairs in settings for pair in pairs]
    units = dict.fromkeys(unit for _, unit, _ in settings)
    # With fewer tasks than the test needs, the text says so once: no column that repeats it for each pair.
    tests_tasks = any(pair.has_enough_tasks for pair in comparisons)

    rows = []
    for plan, unit, pairs in settings:
        label = study_label(plan, varying)
        for pair in pairs:
            p_tasks = (
                _format_p(pair.p_tasks) if pair.has_enough_tasks else f"needs {counted(pair.tasks_needed, 'task')}"
            )
            num_cases = counted(pair.seeds, "draw") if unit == "draws" else f"{pair.seeds}"
            p_seeds = NOTHING if pair.p_seeds is None else f"{_format_p(pair.p_seeds)} ({num_cases})"
            rows.append(
                cells(
                    f"{pair.one} − {pair.other}",
                    *label,
                    f"{100 * pair.difference:+.1f}",
                    f"{pair.better_on} of {pair.tasks}",
                    *([p_tasks] if tests_tasks else []),
                    p_seeds,
                )
            )

    num_of = " or ".join(sorted(units, reverse=True))
    p_over = " or ".join(sorted(P_OVER[unit] for unit in units))
    yield TableBlock(
        title=f"between methods, % points\np with Holm's correction over the pairs; (n): number of {num_of}",
        header=("methods", *varying, "difference", "better on", *(["p over tasks"] if tests_tasks else []), p_over),
        rows=rows,
        names=1 + len(varying),
        is_reference=True,
    )
    if comparisons:
        yield TextBlock(lines=(*comparison_text(comparisons, units),), is_note=True)


def compare_in_settings(studies: Sequence[Study]) -> Iterator[tuple[StudyPlan, Unit, list[Comparison]]]:
    """Yield the comparisons of methods for each backbone and train size.

    Yields:
        The plan of one of its studies, what the second test is over, and the comparison of every pair of methods.
    """
    settings: dict[tuple[str, ...], list[Study]] = {}
    for study in studies:
        settings.setdefault(tuple(study_label(study.plan, NAMES[1:])), []).append(study)

    for setting_studies in settings.values():
        methods: dict[str, dict[tuple[str, object], float]] = {}
        for study in setting_studies:
            scores = methods.setdefault(study.plan.method, {})
            for trial in study.requested_final_trials:
                if trial.score is not None:
                    scores[study.plan.task, (trial.config.draw, trial.config.seed)] = trial.score

        unit = spread_unit(study.plan for study in setting_studies)
        pairs = compare_methods(methods, each_draw if unit == "draws" else each_seed)
        yield setting_studies[0].plan, unit, pairs


def _format_p(p: float | None) -> str:
    if p is None:
        return NOTHING
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
