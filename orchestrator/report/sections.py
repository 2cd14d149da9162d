"""The parts of a report, in the order in which they are read."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from orchestrator.report.blocks import Block, Cell, TableBlock, TextBlock, cells
from orchestrator.report.comparison import MIN_TASKS, compare_methods
from orchestrator.report.published import published_rows
from orchestrator.report.reproducibility import reproducibility_lines
from orchestrator.report.results_table import NAMES, ResultsRow, ResultsTable, Score, build_results_table
from orchestrator.spec.labels import format_params, study_label, varying_fields
from orchestrator.study.selection import find_tied
from orchestrator.study.study import Study
from orchestrator.study.trial import TrialState
from trainer.metric_names import PEEKING_GAIN

NOTHING = "—"


def build_sections(studies: Sequence[Study]) -> list[Block]:
    """All that is to be said of the studies of one or more sweeps."""
    board = build_results_table(studies)
    parts = [
        results_block(board, studies),
        TextBlock(lines=(*_reading(board, studies), *count_trials(studies))),
        TextBlock(lines=(*_missing(studies),), is_warning=True),
        TextBlock(lines=(*board.beats_full(), *_sources(board))),
        _comparisons(studies),
        chosen_block(studies),
        TextBlock(lines=(_selection(studies),)),
        *_efficiency(studies),
        _peeking(studies),
        reproducibility_lines(studies),
    ]
    return [part for part in parts if part is not None and (part.rows if isinstance(part, TableBlock) else part.lines)]


def results_block(board: ResultsTable, studies: Sequence[Study]) -> TableBlock:
    """Rows methods, columns tasks and means: mean ± std over seeds, the best of ours in bold."""
    named, same = varying_fields([study.plan for study in studies], NAMES[1:])
    kept = [0, *(place for place, name in enumerate(NAMES) if name in named)]
    columns = (*board.tasks, *board.means)
    rows = []
    for row in board.rows:
        entries = [Cell(_named(row, row.names[place]) if place == 0 else row.names[place]) for place in kept]
        entries.append(Cell(NOTHING if row.tuned is None else f"{row.tuned:.3g}"))
        for column in columns:
            score = row.scores.get(column)
            best = row.kind == "ours" and score is not None and round(score.mean, 1) == board.best(column)
            entries.append(Cell(format_score(row, score), bold=best))
        rows.append(tuple(entries))
    groups = tuple(len(members) for members in board.groups.values()) or (len(board.tasks),)
    return TableBlock(
        title=f"test accuracy, %\n{same}",
        header=(*(NAMES[place] for place in kept), "tuned %", *columns),
        rows=rows,
        names=len(kept),
        spans=(1, *groups, len(board.means)),
    )


def format_score(row: ResultsRow, score: Score | None) -> str:
    """A cell: `89.5 ± 0.5`; `[1 missing]` where not all of its final trials have a score."""
    if score is None:
        return NOTHING
    if row.kind == "difference":
        return f"{score.mean:+.1f}"
    spread = f" ± {score.std:.1f}" if score.std is not None else ""
    return f"{score.mean:.1f}{spread}" + (f" [{score.missing} missing]" if score.missing else "")


def count_trials(studies: Sequence[Study]) -> Iterator[str]:
    """How the trials of a report ended, all of them."""
    summaries = [study.summary() for study in studies]
    states = {state: sum(summary.states[state] for summary in summaries) for state in TrialState}
    finished = sum(count for state, count in states.items() if state.is_finished)
    missing = sum(summary.num_planned for summary in summaries) - finished
    trials = ", ".join(f"{states[state]} {state.value}" for state in TrialState if state.is_finished)
    yield f"Trials: {trials}, {missing} missing."


def chosen_block(studies: Sequence[Study]) -> TableBlock:
    """The params that each study chose on val, and the trials that val cannot tell from the best."""
    names, same = varying_fields([study.plan for study in studies], NAMES[1:])
    rows = []
    for study in studies:
        if (best := study.best) is not None and best.score is not None:
            among = find_tied(study.requested_search_trials)
            others = [str(trial.number) for trial in among if trial.trial_id != best.trial_id]
            more = f" and {len(others) - 6} more" if len(others) > 6 else ""
            shown = f"{', '.join(others[:6])}{more}" if others else "none" if "correct" in best.provenance else NOTHING
            place = study_label(study.plan, ["task", "method", *names])
            rows.append(cells(*place, f"{100 * best.score:.1f}", str(best.number), shown, format_params(best.params)))
    return TableBlock(
        title=f"chosen on val\n{same}",
        header=("task", "method", *names, "val %", "trial", "tied", "params"),
        rows=rows,
        names=2 + len(names),
        last_is_text=True,
    )


def _named(row: ResultsRow, method: str) -> str:
    return {"ours": method, "published": f"{method}, published", "difference": "  difference"}[row.kind]


def _reading(board: ResultsTable, studies: Sequence[Study]) -> Iterator[str]:
    seeds = sorted({seed for study in studies for seed in study.spec.final.seeds})
    peeked = any(study.spec.final.measure_peeking for study in studies)
    yield (
        f"mean ± std over seeds {', '.join(map(str, seeds))}; trained on train + val, scored on test "
        + (
            "at the last epoch; what it showed before was measured and not used."
            if peeked
            else "once, at the last epoch."
        )
    )
    if board.groups:
        sizes = ", ".join(f"{group} {len(members)}" for group, members in board.groups.items())
        yield f"mean over tasks counts every task the same, mean over groups every group ({sizes} tasks)."


def _missing(studies: Sequence[Study]) -> Iterator[str]:
    """What is not in the table, study by study."""
    for study in studies:
        summary = study.summary()
        if summary.stop_reason:
            yield f"stopped: {study.plan.key}: {summary.stop_reason}"
        if summary.failed_trials:
            last = summary.failed_trials[-1]
            yield f"failed: {study.plan.key}: {len(summary.failed_trials)} trials, the last: {last.error_summary}"
        absent = [seed for seed in study.spec.final.seeds if seed not in _seeds(study)]
        if absent and not summary.stop_reason:
            yield f"missing: {study.plan.key}: no final score of seeds {', '.join(map(str, absent))}"


def _seeds(study: Study) -> set[int]:
    return {trial.config.seed for trial in study.requested_final_trials if trial.score is not None}


def _sources(board: ResultsTable) -> Iterator[str]:
    sources: dict[str, list[str]] = {}
    for row in board.rows:
        if row.kind == "published" and row.scores:
            sources.setdefault(row.source, []).append(f"{row.names[0]} on {row.names[1]}")
    if sources:
        yield "published: " + "; ".join(f"{', '.join(rows)}: {source}" for source, rows in sources.items()) + "."
    backbones = dict.fromkeys(row.names[1] for row in board.rows)
    if absent := [backbone for backbone in backbones if not published_rows(backbone)]:
        yield f"No published results are known for {', '.join(absent)}."


def _comparisons(studies: Sequence[Study]) -> TableBlock:
    """Every pair of methods on the same backbone and train size."""
    named, _ = varying_fields([study.plan for study in studies], NAMES[1:])
    rows = []
    for place in dict.fromkeys(study_label(study.plan, NAMES[1:]) for study in studies):
        methods: dict[str, dict[tuple[str, int], float]] = {}
        for study in studies:
            if study_label(study.plan, NAMES[1:]) == place:
                scores = {
                    (study.plan.task, t.config.seed): t.score
                    for t in study.requested_final_trials
                    if t.score is not None
                }
                methods.setdefault(study.plan.method, {}).update(scores)
        own = study_label(next(s.plan for s in studies if study_label(s.plan, NAMES[1:]) == place), named)
        for found in compare_methods(methods):
            rows.append(
                cells(
                    f"{found.one} − {found.other}",
                    *own,
                    f"{100 * found.difference:+.1f}",
                    f"{found.better_on} of {found.tasks}",
                    _p(found.p_tasks) if found.tasks >= MIN_TASKS else f"needs {MIN_TASKS} tasks",
                    NOTHING if found.p_seeds is None else f"{_p(found.p_seeds)} ({found.seeds})",
                )
            )
    return TableBlock(
        title="between methods, % points; p with Holm over the pairs; (n) seeds",
        header=("methods", *named, "difference", "better on", "p over tasks", "p over seeds"),
        rows=rows,
        names=1 + len(named),
    )


def _p(p: float | None) -> str:
    return NOTHING if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def _selection(studies: Sequence[Study]) -> str:
    """How params were chosen, and what tied means."""
    rules = dict.fromkeys(study.spec.final.select for study in studies)
    said = {
        "last_val": "the best val accuracy at the last epoch, of equals the earliest",
        "simplest_tied": "of the tied ones that which learns the fewest parameters",
    }
    return (
        "trial: the one whose params were trained again, "
        + " or ".join(f"{said[rule]} (select: {rule})" for rule in rules)
        + ".\ntied: val cannot tell them from its best trial (McNemar's exact test on single images, Holm, 5 %)."
    )


def _efficiency(studies: Sequence[Study]) -> Iterator[Block]:
    """Accuracy over tuning-set size, where there are several."""
    if len({study.plan.train_size for study in studies}) < 2:
        return
    from orchestrator.report.data_efficiency import curves, efficiency_table, fit_power_law

    found = curves([study.summary() for study in studies])
    rows = [
        cells(
            curve.label,
            f"{point.images:,.0f}",
            f"{100 * point.mean:.1f}",
            NOTHING if point.low is None or point.high is None else f"{100 * point.low:.1f} to {100 * point.high:.1f}",
        )
        for curve in found
        for point in curve.points
    ]
    header = ("method", "images", "test %", "95 % interval over seeds")
    yield TableBlock(title="accuracy over tuning-set size, mean over tasks", header=header, rows=rows, names=1)
    laws = [(curve.label, fit_power_law(curve.points)) for curve in found]
    left_out = [f"{curve.label}: without {', '.join(curve.left_out)}" for curve in found if curve.left_out]
    told = [f"{name}: {law}" for name, law in laws if law is not None]
    yield TextBlock(lines=(*map(str, efficiency_table(found)), *told, *left_out))


def _peeking(studies: Sequence[Study]) -> TableBlock:
    """What choosing the epoch on test would have gained: apart from every result."""
    tasks = tuple(dict.fromkeys(study.plan.task for study in studies))
    gains: dict[tuple[str, ...], dict[str, float]] = {}
    for study in studies:
        found = [
            trial.last_metrics[PEEKING_GAIN]
            for trial in study.requested_final_trials
            if PEEKING_GAIN in trial.last_metrics
        ]
        if found:
            gains.setdefault(study_label(study.plan, NAMES), {})[study.plan.task] = 100 * statistics.mean(found)
    rows = [
        cells(
            *names,
            *(f"{by_task[task]:+.1f}" if task in by_task else NOTHING for task in tasks),
            f"{statistics.mean(by_task.values()):+.1f}",
        )
        for names, by_task in gains.items()
    ]
    return TableBlock(
        title="peeking, % points: what choosing the best epoch on test would have added.\nIn no other number here.",
        header=(*NAMES, *tasks, "mean"),
        rows=rows,
        names=len(NAMES),
        spans=(len(tasks), 1),
    )
