"""What a sweep looks like in a terminal: a table that changes while it runs, plain lines where there is no terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from orchestrator.spec.labels import format_duration, study_label, varying_fields
from orchestrator.study.study import StudySummary
from orchestrator.study.trial import TrialState
from orchestrator.sweep.sweep import Sweep

LINE_EVERY_S = 1.0
"""Plain lines come no faster, except the last."""


def progress_table(summaries: list[StudySummary], rows: int | None = None) -> Table:
    """A row a study: how many of its trials are in which state, the best score so far, and the work that is left.

    Args:
        rows: how many studies fit; those that neither run nor are still to come are left out first.
    """
    named, same = varying_fields([summary.plan for summary in summaries], ("backbone", "train_size"))
    names = ["task", "method", *named]
    table = Table(box=None, pad_edge=False, title=same, title_justify="left")
    for name in names:
        table.add_column(name, no_wrap=True)
    for name in ("done", "running", "waiting", "pruned", "failed", "best val %", "test %", "work left"):
        table.add_column(name, justify="right")
    left = work_left(summaries)
    shown = [*zip(summaries, left, strict=True)]
    if rows is not None and len(shown) > rows:
        shown = sorted(
            shown, key=lambda row: (row[0].states[TrialState.RUNNING] == 0, row[0].num_finished == row[0].num_planned)
        )
        table.caption = f"and {len(shown) - rows} more studies: sptune status"
    for summary, seconds in shown[:rows]:
        scores = [trial.score for trial in summary.final_trials if trial.score is not None]
        best = summary.best.score if summary.best else None
        states = (TrialState.RUNNING, TrialState.WAITING, TrialState.PRUNED)
        table.add_row(
            *study_label(summary.plan, names),
            f"{summary.num_finished}/{summary.num_planned}",
            *(_count(summary.states[state]) for state in states),
            Text(_count(summary.states[TrialState.FAILED]), style="red"),
            f"{100 * best:.1f}" if best is not None else "",
            f"{100 * sum(scores) / len(scores):.1f}" if scores else "",
            Text("stopped", style="red") if summary.stop_reason else format_duration(seconds) if seconds else "",
        )
    return table


def work_left(summaries: Sequence[StudySummary]) -> list[float | None]:
    """Seconds of worker time that each study still needs, at the pace of its trials so far, or of its method's.

    None where nothing like it has been run yet, or nothing is left.
    """
    paces: dict[object, tuple[float, int]] = {}
    for summary in summaries:
        for key in (summary.plan.key, (summary.plan.method, summary.plan.backbone), None):
            seconds, trials = paces.get(key, (0.0, 0))
            paces[key] = seconds + summary.seconds, trials + summary.num_finished
    left: list[float | None] = []
    for summary in summaries:
        open_trials = 0 if summary.stop_reason else summary.num_planned - summary.num_finished
        known = [
            seconds / trials
            for key in (summary.plan.key, (summary.plan.method, summary.plan.backbone), None)
            for seconds, trials in [paces[key]]
            if trials
        ]
        left.append(open_trials * known[0] if known and open_trials else None)
    return left


def summary_line(summaries: Sequence[StudySummary], workers: int) -> str:
    """How many trials are finished, and what the others will take with so many workers."""
    planned, finished = sum(s.num_planned for s in summaries), sum(s.num_finished for s in summaries)
    seconds = sum(left or 0 for left in work_left(summaries))
    left = f", about {format_duration(seconds / workers)} left" if workers and seconds else ""
    return f"{finished} of {planned} trials finished{left}"


def num_running(summaries: Sequence[StudySummary]) -> int:
    """How many workers have a trial."""
    return sum(summary.states[TrialState.RUNNING] for summary in summaries)


def _count(number: int) -> str:
    return str(number) if number else ""


class LiveView:
    """Shows a sweep while a driver works on it: `update` is the driver's `on_change`."""

    def __init__(self, sweep: Sweep, console: Console) -> None:
        self._sweep = sweep
        self._console = console
        self._started = time.monotonic()
        self._workers = 0
        self._shown = -1
        self._shown_at = 0.0
        self._live = Live(console=console, refresh_per_second=2, get_renderable=self._render)

    def __enter__(self) -> Callable[[], None]:
        if self._console.is_terminal:
            self._live.start()
        return self._update

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def _update(self) -> None:
        if self._console.is_terminal:
            return
        now = time.monotonic()
        if now - self._shown_at < LINE_EVERY_S and not self._sweep.is_done:
            return
        if (finished := self._sweep.num_finished) != self._shown:
            self._shown, self._shown_at = finished, now
            self._console.print(self._headline(), highlight=False)

    def _headline(self) -> str:
        elapsed = format_duration(time.monotonic() - self._started)
        halt = f"; {self._sweep.halt.reason}" if self._sweep.halt else ""
        summaries = self._sweep.summaries()
        self._workers = max(self._workers, num_running(summaries))
        return f"{self._sweep.spec.name}: {summary_line(summaries, self._workers)}, {elapsed} so far{halt}"

    def _render(self) -> Group:
        rows = max(3, self._console.height - 6)
        return Group(progress_table(self._sweep.summaries(), rows), Text(self._headline(), style="bold"))
