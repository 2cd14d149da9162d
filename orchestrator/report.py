"""The table of a sweep: test accuracies over seeds, and the parameters behind them."""

from __future__ import annotations

import statistics

from rich.table import Table

from orchestrator.results import TrialState
from orchestrator.sweep import StudySummary


def result_table(summaries: list[StudySummary]) -> Table:
    """Methods by tasks: mean ± std of test accuracy in percent over seeds; the best mean of a task in bold.

    Rows are (method, backbone, train size); `mean` is over the tasks, where a row has all of them. Std is that of
    the sample (n - 1).
    """
    scores = {
        (_row(summary), summary.plan.task): [trial.score for trial in summary.finals if trial.score is not None]
        for summary in summaries
    }
    tasks = list(dict.fromkeys(summary.plan.task for summary in summaries))
    rows = list(dict.fromkeys(_row(summary) for summary in summaries))
    means = {place: statistics.mean(values) for place, values in scores.items() if values}
    table = Table(title="test accuracy, %")
    for name in ("method", "backbone", "size"):
        table.add_column(name, no_wrap=True)
    for name in (*tasks, "mean"):
        table.add_column(name, justify="right")
    for row in rows:
        cells = []
        for task in tasks:
            best = max((mean for (_, of), mean in means.items() if of == task), default=None)
            cell = _mean_std(scores.get((row, task), []))
            cells.append(f"[bold]{cell}[/bold]" if means.get((row, task)) == best is not None else cell)
        own = [means[row, task] for task in tasks if (row, task) in means]
        table.add_row(*row, *cells, f"{100 * statistics.mean(own):.1f}" if len(own) == len(tasks) else "—")
    return table


def chosen_table(summaries: list[StudySummary]) -> Table:
    """The parameters that each study chose on val, and its score there."""
    names = list(dict.fromkeys(name for summary in summaries for name in summary.plan.space))
    table = Table(title="chosen on val")
    for name in ("task", "method", "val %", *names):
        table.add_column(name, justify="right" if name not in ("task", "method") else "left", no_wrap=True)
    for summary in summaries:
        if summary.best is not None and summary.best.score is not None:
            values = [summary.best.params.get(name, "—") for name in names]
            shown = [f"{value:.3g}" if isinstance(value, float) else str(value) for value in values]
            table.add_row(summary.plan.task, summary.plan.method, f"{100 * summary.best.score:.1f}", *shown)
    return table


def footer(summaries: list[StudySummary]) -> str:
    """How to read the table, and what is not in it."""
    seeds = sorted({trial.config["seed"] for summary in summaries for trial in summary.finals})
    states = {state: sum(summary.states[state] for summary in summaries) for state in TrialState}
    finished = sum(count for state, count in states.items() if state.is_finished)
    missing = sum(summary.planned for summary in summaries) - finished
    trials = ", ".join(f"{states[state]} {state.value}" for state in TrialState if state.is_finished)
    return (
        f"mean ± std over seeds {', '.join(map(str, seeds)) or '—'}; trained on train + val, scored on test once,\n"
        f"at the last epoch, with the params of best val accuracy at the last epoch.\n"
        f"Trials: {trials}, {missing} missing."
    )


def _row(summary: StudySummary) -> tuple[str, str, str]:
    return summary.plan.method, summary.plan.backbone, f"{summary.plan.train_size:g}"


def _mean_std(scores: list[float]) -> str:
    if not scores:
        return "—"
    spread = f" ± {100 * statistics.stdev(scores):.1f}" if len(scores) > 1 else ""
    return f"{100 * statistics.mean(scores):.1f}{spread}"
