"""Progress of a sweep in a terminal: a live table, or plain lines where the output is not a terminal."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.status import Status
from rich.text import Text

from orchestrator.cli.fitting_table import FittingTable, Row
from orchestrator.cli.options import surviving_lost_output
from orchestrator.launch.outcome import Progress, Step
from orchestrator.spec.labels import SETTING, format_duration, study_label, varying_fields
from orchestrator.study.summary import StudySummary
from orchestrator.study.trial import TrialState
from orchestrator.sweep.sweep import Sweep
from trainer.plain_text import counted
from trainer.terminal import shown

LINE_EVERY_S = 1.0
"""Least time between two plain lines, except before the last."""
MARGIN_LINES = 6
"""Lines of a screen that are not for studies: title, header, and what stands below the table."""


def progress_table(
    summaries: list[StudySummary], max_lines: int | None = None, *, synthetic: str | None = None
) -> FittingTable:
    """Return a table with a row for each study: trials by state, best score so far, and the work that is left.

    Args:
        max_lines: lines of the screen for it. Studies with running trials come first, finished ones last.
        synthetic: for a sweep that was simulated: how. Its scores are named synthetic.
    """
    # A column in which all rows are equal becomes part of the title.
    columns, common = varying_fields([summary.plan for summary in summaries], SETTING)
    kind = "" if synthetic is None else "synthetic "
    rows = [
        Row(
            names=study_label(summary.plan, ["task", "method", *columns]),
            numbers=_progress_cells(summary, seconds),
            rank=_display_rank(summary),
        )
        for summary, seconds in zip(summaries, work_left(summaries), strict=True)
    ]
    return FittingTable(
        title=common if synthetic is None else f"synthetic: {synthetic}\n{common}",
        names=("task", "method", *columns),
        numbers=("done", "run", "wait", "pruned", "failed", f"{kind}val %", f"{kind}test %", "left"),
        rows=rows,
        max_lines=max_lines,
        way_to_the_rest="sptune status",
    )


def _display_rank(summary: StudySummary) -> tuple[bool, bool]:
    """Studies with running trials sort first, finished studies last."""
    return summary.states[TrialState.RUNNING] == 0, summary.num_finished == summary.num_planned


def _progress_cells(summary: StudySummary, seconds: float | None) -> tuple[Text, ...]:
    scores = [trial.score for trial in summary.final_trials if trial.score is not None]
    best = summary.best.score if summary.best else None
    test = f"{100 * sum(scores) / len(scores):.1f}" if scores else ""

    work = shown(format_duration(seconds) if seconds else "")
    if summary.stop_reason:
        work = shown("stopped", "red")
    return (
        shown(f"{summary.num_finished}/{summary.num_planned}"),
        _count(summary.states[TrialState.RUNNING]),
        _count(summary.states[TrialState.WAITING]),
        _count(summary.states[TrialState.PRUNED]),
        _count(summary.states[TrialState.FAILED], "red"),
        shown(f"{100 * best:.1f}" if best is not None else ""),
        shown(test),
        work,
    )


def work_left(summaries: Sequence[StudySummary]) -> list[float | None]:
    """Return the seconds of worker time that each study still needs; None if nothing is left or nothing is known.

    The estimate is the mean time of a study's own finished trials; before the first, that of its method and backbone;
    before that, of all trials.
    """
    totals: dict[object, tuple[float, int]] = {}
    for summary in summaries:
        for key in _pace_keys(summary):
            seconds, trials = totals.get(key, (0.0, 0))
            totals[key] = (seconds + summary.seconds, trials + summary.num_finished)

    estimates: list[float | None] = []
    for summary in summaries:
        # A stopped study starts no more trials.
        num_open = 0 if summary.stop_reason else summary.num_planned - summary.num_finished
        paces = [seconds / trials for seconds, trials in map(totals.__getitem__, _pace_keys(summary)) if trials]
        estimates.append(num_open * paces[0] if paces and num_open else None)
    return estimates


def _pace_keys(summary: StudySummary) -> tuple[object, ...]:
    return summary.plan.key, (summary.plan.method, summary.plan.backbone), None


def summary_line(summaries: Sequence[StudySummary], num_workers: int) -> str:
    """Return how many trials are finished, and the time that the rest will take with so many workers."""
    num_planned = sum(summary.num_planned for summary in summaries)
    num_finished = sum(summary.num_finished for summary in summaries)
    seconds = sum(estimate or 0 for estimate in work_left(summaries))
    left = f", about {format_duration(seconds / num_workers)} left" if num_workers and seconds else ""
    return f"{num_finished:,} of {counted(num_planned, 'trial')} finished{left}"


def num_running(summaries: Sequence[StudySummary]) -> int:
    """Return how many workers have a trial."""
    return sum(summary.states[TrialState.RUNNING] for summary in summaries)


def _count(number: int, style: str = "") -> Text:
    return shown(str(number) if number else "", style)


class LiveView:
    """Shows a launch while it works: `LiveView(console)` is the `on_progress` of `launch` and `resume`.

    In a terminal it shows a table that changes while trials run, and a spinner otherwise. Elsewhere it prints a line
    for each step, and while trials run whenever the number of finished ones has changed, at most one a second. Before
    the first epoch both say what the trials do.

    A sweep does not end because nobody reads what it prints: once the output is lost, nothing more is printed.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._step: Step | None = None
        self._sweep: Sweep | None = None
        self._display: Live | Status | None = None
        self._activity = ""

        self._started_at = time.monotonic()
        self._num_workers = 0
        self._last_printed = -1
        self._last_printed_at = 0.0

    def __enter__(self) -> LiveView:
        return self

    def __exit__(self, *_: object) -> None:
        with surviving_lost_output():
            self._stop_display()

    def __call__(self, progress: Progress) -> None:
        """Show what the launch does now."""
        with surviving_lost_output():
            self._show(progress)

    def _show(self, progress: Progress) -> None:
        if progress.note:
            self._console.print(progress.note)
        # A new step replaces the display of the step before.
        if progress.step != self._step:
            self._start_step(progress)
        if progress.activity != self._activity:
            self._activity = progress.activity
            if self._activity and not self._console.is_terminal:
                self._console.print(self._activity)
        if self._sweep is not None and progress.sweep is not None and not self._console.is_terminal:
            self._print_line(self._sweep)

    def _start_step(self, progress: Progress) -> None:
        self._stop_display()
        self._step = progress.step
        self._sweep = progress.sweep
        if progress.sweep is not None:
            self._started_at = time.monotonic()
            if self._console.is_terminal:
                self._display = Live(console=self._console, refresh_per_second=2, get_renderable=self._render)
        elif not self._console.is_terminal:
            # The first step takes a moment, and what is wrong with a spec is to be alone on the page.
            if progress.step != "checking the spec":
                self._console.print(progress.step)
        elif progress.step != "downloading weights":
            # The download has a bar of its own.
            self._display = self._console.status(progress.step)
        if self._display is not None:
            self._display.start()

    def _stop_display(self) -> None:
        if self._display is not None:
            self._display.stop()
            self._display = None

    def _print_line(self, sweep: Sweep) -> None:
        now = time.monotonic()
        if now - self._last_printed_at < LINE_EVERY_S and not sweep.is_done:
            return
        num_finished = sweep.num_finished
        if num_finished != self._last_printed:
            self._last_printed = num_finished
            self._last_printed_at = now
            self._console.print(self._summary(sweep))

    def _summary(self, sweep: Sweep) -> str:
        summaries = sweep.summaries()
        # Workers start one after another: the estimate uses the most that were seen at once.
        self._num_workers = max(self._num_workers, num_running(summaries))
        elapsed = format_duration(time.monotonic() - self._started_at)
        halt = f"; {sweep.halt.reason}" if sweep.halt else ""
        return f"{sweep.spec.name}: {summary_line(summaries, self._num_workers)}, {elapsed} so far{halt}"

    def _render(self) -> Group:
        assert self._sweep is not None, "the table is shown only while trials run"
        max_lines = max(3, self._console.height - MARGIN_LINES)
        table = progress_table(self._sweep.summaries(), max_lines)
        lines = [shown(self._summary(self._sweep), "bold")]
        if self._activity:
            lines.append(shown(self._activity))
        return Group(table, *lines)
