"""The table of a sweep: test accuracies over seeds, and the parameters behind them."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from rich.table import Table

from orchestrator.plan import StudyPlan
from orchestrator.results import TrialState

if TYPE_CHECKING:
    from orchestrator.study import StudySummary


def result_table(summaries: list[StudySummary]) -> Table:
    """Methods by tasks: mean ± std of test accuracy in percent over seeds; the best mean of a task in bold.

    Rows are methods, and backbones and train sizes where they differ; `mean` is over the tasks, where a row has all
    of them. Std is that of the sample (n - 1).
    """
    plans = [summary.plan for summary in summaries]
    named, same = varying(plans, ("backbone", "train_size"))
    names = ["method", *named]
    scores = {
        (label(summary.plan, names), summary.plan.task): [t.score for t in summary.finals if t.score is not None]
        for summary in summaries
    }
    tasks = list(dict.fromkeys(plan.task for plan in plans))
    means = {place: statistics.mean(values) for place, values in scores.items() if values}
    table = Table(title=f"test accuracy, %\n{same}")
    for name in names:
        table.add_column(name, no_wrap=True)
    for name in (*tasks, "mean"):
        table.add_column(name, justify="right")
    for row in dict.fromkeys(label(plan, names) for plan in plans):
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
    names, same = varying([summary.plan for summary in summaries], ("backbone", "train_size"))
    table = Table(title=f"chosen on val\n{same}")
    for name in ("task", "method", *names, "val %", "params"):
        table.add_column(name, justify="right" if name == "val %" else "left", no_wrap=name != "params")
    for summary in summaries:
        if summary.best is not None and summary.best.score is not None:
            params = ", ".join(
                f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
                for name, value in summary.best.params.items()
            )
            place = label(summary.plan, ["task", "method", *names])
            table.add_row(*place, f"{100 * summary.best.score:.1f}", params)
    return table


def varying(plans: list[StudyPlan], names: tuple[str, ...]) -> tuple[list[str], str]:
    """Which of these differ among the studies and need a column; the others in words, for a title."""
    values = {name: dict.fromkeys(f"{getattr(plan, name)}" for plan in plans) for name in names}
    same = [f"{name} {next(iter(found))}" for name, found in values.items() if len(found) == 1]
    return [name for name, found in values.items() if len(found) > 1], ", ".join(same)


def label(plan: StudyPlan, names: list[str]) -> tuple[str, ...]:
    """The cells that name a study."""
    return tuple(str(getattr(plan, name)) for name in names)


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


def _mean_std(scores: list[float]) -> str:
    if not scores:
        return "—"
    spread = f" ± {100 * statistics.stdev(scores):.1f}" if len(scores) > 1 else ""
    return f"{100 * statistics.mean(scores):.1f}{spread}"


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss, or m:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
