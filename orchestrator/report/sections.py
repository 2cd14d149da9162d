"""Sections of a report, in reading order."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence

from orchestrator.report.blocks import NOTHING, Block, Cell, TableBlock, TextBlock, cells
from orchestrator.report.chosen_params import chosen_block, selection_text
from orchestrator.report.comparison_table import comparison_blocks
from orchestrator.report.cost import cost_block
from orchestrator.report.protocols import trained_on
from orchestrator.report.published import published_rows
from orchestrator.report.published_wins import published_wins
from orchestrator.report.reproducibility import reproducibility_lines
from orchestrator.report.results_table import ALL_IMAGES, NAMES, ResultsRow, ResultsTable, Score, build_results_table
from orchestrator.report.searched import searched_block
from orchestrator.report.significance import bold_text, find_bold
from orchestrator.spec.labels import study_label, study_text, varying_fields
from orchestrator.study.study import Study
from orchestrator.study.summary import count_states
from orchestrator.study.trial import Trial, TrialState
from trainer.metric_names import PEEKING_GAIN
from trainer.plain_text import counted


def build_sections(studies: Sequence[Study], *, with_cost: bool = False, few_images: Sequence[str] = ()) -> list[Block]:
    """Return the report on the studies of one or more sweeps. Empty sections are left out.

    Args:
        with_cost: whether to add the table of what each method costs.
        few_images: warnings of splits that are too small for the differences that the table shows.
    """
    table = build_results_table(studies)
    chosen = chosen_block(studies)
    blocks = [
        results_block(table, studies),
        _notes(table),
        TextBlock(lines=(*_how_to_read(table, studies), *bold_text(table, studies)), is_note=True),
        TextBlock(lines=tuple(few_images), is_warning=True),
        TextBlock(lines=(*count_trials(studies),)),
        TextBlock(lines=(*_missing(studies),), is_warning=True),
        TextBlock(lines=(*table.beats_full(), *_published_wins(table), *_sources(table))),
        _protocols(table),
        *comparison_blocks(studies),
        *([cost_block(studies)] if with_cost else ()),
        chosen,
        TextBlock(lines=(selection_text(studies),) if chosen.rows else (), is_note=True),
        searched_block([study.plan for study in studies]),
        *_efficiency(studies),
        _peeking(studies),
        reproducibility_lines(studies),
    ]
    # A new sweep has no comparison, no choice and no final trial.
    return [block for block in blocks if (block.rows if isinstance(block, TableBlock) else block.lines)]


def results_block(table: ResultsTable, studies: Sequence[Study]) -> TableBlock:
    """Return the main table: a row per method, columns for tasks and means, our best values of a column in bold."""
    varying, same = varying_fields([study.plan for study in studies], NAMES[1:])
    kept = [0, *(index for index, name in enumerate(NAMES) if name in varying)]
    columns = (*table.tasks, *table.means)
    bold = find_bold(table, studies)
    marks = table.marks

    rows = []
    for row in table.rows:
        row_cells = [Cell(_method_text(row, marks)), *(Cell(row.names[index]) for index in kept[1:])]
        row_cells.append(Cell(NOTHING if row.tuned is None else f"{row.tuned:.3g}"))

        for column in columns:
            score = row.scores.get(column)
            is_bold = row.kind == "ours" and (row.names, column) in bold
            row_cells.append(Cell(format_score(row, score), bold=is_bold))
        rows.append(tuple(row_cells))

    # A wide table is split between the groups of tasks.
    group_sizes = tuple(len(members) for members in table.groups.values()) or (len(table.tasks),)
    return TableBlock(
        title=f"test accuracy, %\n{same}",
        header=(*(NAMES[index] for index in kept), "tuned %", *columns),
        rows=rows,
        names=len(kept),
        spans=(1, *group_sizes, len(table.means)),
    )


def _method_text(row: ResultsRow, marks: Mapping[tuple[str, ...], str]) -> str:
    method = row.names[0]
    text = {"ours": method, "published": f"{method}, published", "difference": "  difference"}[row.kind]
    return f"{text} [{marks[row.notes]}]" if row.notes else text


def _notes(table: ResultsTable) -> TextBlock:
    """Return what the marks of the table mean."""
    return TextBlock(
        title="where the protocols of published rows differ from ours",
        lines=tuple(f"[{mark}] {note}" for notes, mark in table.marks.items() for note in notes),
        is_note=True,
    )


def _protocols(table: ResultsTable) -> TextBlock:
    """Return the protocol of each published row in words. Rows with the same protocol share a line."""
    several = len({row.names[1] for row in table.rows}) > 1

    rows_by_protocol: dict[str, list[str]] = {}
    for row in table.rows:
        for protocol in row.protocol:
            label = f"{row.names[0]} {row.names[1]}" if several else row.names[0]
            rows_by_protocol.setdefault(protocol, []).append(label)

    lines = tuple(f"{', '.join(rows)} on {protocol}" for protocol, rows in rows_by_protocol.items())
    return TextBlock(title="protocols of the published rows", lines=lines)


def format_score(row: ResultsRow, score: Score | None) -> str:
    """Return the text of a cell, such as `89.5 ± 0.5`, with `[1 missing]` if a final trial has no score."""
    if score is None:
        return NOTHING
    if row.kind == "difference":
        return f"{score.mean:+.1f}"

    spread = f" ± {score.std:.1f}" if score.std is not None else ""
    missing = f" [{score.missing} missing]" if score.missing else ""
    return f"{score.mean:.1f}{spread}{missing}"


def count_trials(studies: Sequence[Study]) -> Iterator[str]:
    """Yield a line with the number of trials in each finished state, and of those that are missing."""
    summaries = [study.summary() for study in studies]
    num_by_state = count_states(summaries)

    num_finished = sum(count for state, count in num_by_state.items() if state.is_finished)
    num_missing = sum(summary.num_planned for summary in summaries) - num_finished

    counts = ", ".join(f"{num_by_state[state]} {state.value}" for state in TrialState if state.is_finished)
    yield f"Trials: {counts}, {num_missing} missing."


def _how_to_read(table: ResultsTable, studies: Sequence[Study]) -> Iterator[str]:
    """Yield what a cell of the main table is."""
    seeds = sorted({seed for study in studies for seed in study.spec.final.seeds})
    measures_peeking = any(study.spec.final.measure_peeking for study in studies)

    if measures_peeking:
        scored = "after the last epoch. Test accuracy at earlier epochs was measured, but not used."
    else:
        scored = "once, after the last epoch."
    yield (
        f"Values are mean ± std over seeds {', '.join(map(str, seeds))}. "
        f"Each final trial was trained on {trained_on(studies)} and scored on test {scored}"
    )

    num_draws = 1 + max(study.plan.draw for study in studies)
    if num_draws > 1:
        yield (
            f"Where a train size has several draws of its images (here {num_draws}), values are mean ± std over draws: "
            "each draw counts with its mean over seeds."
        )

    if table.groups:
        sizes = ", ".join(f"{group} {len(members)}" for group, members in table.groups.items())
        yield (
            "The mean over tasks gives each task the same weight; the mean over groups gives each group the same "
            f"weight (tasks in each group: {sizes})."
        )


def _missing(studies: Sequence[Study]) -> Iterator[str]:
    """Yield the reason for each result that is not in the table, study by study."""
    for study in studies:
        summary = study.summary()
        name = study_text(study.plan)

        if summary.stop_reason:
            yield f"stopped: {name}: {summary.stop_reason}"

        num_failed = len(summary.failed_trials)
        if num_failed:
            trials = counted(num_failed, "trial")
            yield f"failed: {name}: {trials}, last error: {summary.failed_trials[-1].error_summary}"

        # A study that was stopped has no final trials; saying so again would hide the reason.
        scored_seeds = {trial.config.seed for trial in _scored_finals(study)}
        absent = [seed for seed in study.spec.final.seeds if seed not in scored_seeds]
        if absent and not summary.stop_reason:
            yield f"missing: {name}: no final score for seeds {', '.join(map(str, absent))}"


def _scored_finals(study: Study) -> list[Trial]:
    return [trial for trial in study.requested_final_trials if trial.score is not None]


def _published_wins(table: ResultsTable) -> Iterator[str]:
    """Yield the wins of published rows for each backbone of which the table shows a published number."""
    shown = dict.fromkeys(row.names[1] for row in table.rows if row.kind == "published" and row.scores)
    yield from published_wins(shown, table.tasks)


def _sources(table: ResultsTable) -> Iterator[str]:
    """Yield the papers of the published numbers, and the backbones without any."""
    rows_by_source: dict[str, list[str]] = {}
    for row in table.rows:
        if row.kind == "published" and row.scores:
            rows_by_source.setdefault(row.source, []).append(f"{row.names[0]} on {row.names[1]}")
    if rows_by_source:
        sources = (f"{', '.join(rows)}: {source}" for source, rows in rows_by_source.items())
        yield f"published: {'; '.join(sources)}."

    backbones = dict.fromkeys(row.names[1] for row in table.rows)
    absent = [backbone for backbone in backbones if not published_rows(backbone)]
    if absent:
        yield f"No published results are known for {', '.join(absent)}."

    # Rows of a part of the images are never compared with published ones.
    compared = {row.names[1] for row in table.rows if row.names[2] == ALL_IMAGES}
    with_numbers = {row.names[1] for row in table.rows if row.kind == "published"}
    without = [backbone for backbone in backbones if backbone in compared - with_numbers and backbone not in absent]
    if without:
        yield f"No published results on these tasks are known for {', '.join(without)}."


def _efficiency(studies: Sequence[Study]) -> Iterator[Block]:
    """Yield accuracy over tuning-set size, if there are several sizes."""
    if len({study.plan.train_size for study in studies}) < 2:
        return

    # Imported here: its fits need numpy and scipy, which most reports do not.
    from orchestrator.report.data_efficiency import curves, efficiency_table, fit_power_law, intervals_over

    all_curves = curves([study.summary() for study in studies])

    all_points = [point for curve in all_curves for point in curve.points]
    over = intervals_over(all_points)

    rows = []
    for curve in all_curves:
        for point in curve.points:
            interval = NOTHING
            if point.low is not None and point.high is not None:
                interval = f"{100 * point.low:.1f} to {100 * point.high:.1f}"
            rows.append(cells(curve.label, f"{point.size:,.0f}", f"{100 * point.mean:.1f}", interval))

    counts_labels = all(curve.unit == "labels" for curve in all_curves)
    yield TableBlock(
        title="accuracy over tuning-set size, mean over tasks\n"
        + (
            "labels: of train and val, each image once"
            if counts_labels
            else "images: of train; labels of val are not counted"
        ),
        header=("method", "labels" if counts_labels else "images", "test %", f"95 % interval over {over}"),
        rows=rows,
        names=1,
    )

    lines = [str(row) for row in efficiency_table(all_curves)]
    for curve in all_curves:
        law = fit_power_law(curve.points)
        if law is not None:
            lines.append(f"{curve.label}: {law}")
    for curve in all_curves:
        if curve.left_out:
            lines.append(f"{curve.label}: without tasks that have no score at every size: {', '.join(curve.left_out)}")
    yield TextBlock(lines=tuple(lines))


def _peeking(studies: Sequence[Study]) -> TableBlock:
    """Return the gain from choosing the epoch on test. It is kept apart from all results."""
    tasks = tuple(dict.fromkeys(study.plan.task for study in studies))

    # By row and task: the mean gain of each draw.
    gains: dict[tuple[str, ...], dict[str, list[float]]] = {}
    for study in studies:
        trial_gains = [
            trial.last_metrics[PEEKING_GAIN]
            for trial in study.requested_final_trials
            if PEEKING_GAIN in trial.last_metrics
        ]
        if trial_gains:
            # In percentage points, as all differences of a report.
            by_task = gains.setdefault(study_label(study.plan, NAMES), {})
            by_task.setdefault(study.plan.task, []).append(100 * statistics.mean(trial_gains))
    means = {
        names: {task: statistics.mean(draws) for task, draws in by_task.items()} for names, by_task in gains.items()
    }

    rows = [
        cells(
            *names,
            *(f"{by_task[task]:+.1f}" if task in by_task else NOTHING for task in tasks),
            f"{statistics.mean(by_task.values()):+.1f}",
        )
        for names, by_task in means.items()
    ]
    return TableBlock(
        title="peeking, % points: gain from choosing the best epoch on test\nNo other number of this report uses it.",
        header=(*NAMES, *tasks, "mean"),
        rows=rows,
        names=len(NAMES),
        spans=(len(tasks), 1),
    )
