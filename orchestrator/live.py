"""What a sweep looks like in a terminal: a table that changes while it runs, plain lines where there is no terminal."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from orchestrator.report import label, varying
from orchestrator.results import TrialState
from orchestrator.sweep import StudySummary, Sweep


def progress_table(summaries: list[StudySummary]) -> Table:
    """A row a study: how many of its trials are in which state, and the best score so far."""
    named, same = varying([summary.plan for summary in summaries], ("backbone", "train_size"))
    names = ["task", "method", *named]
    table = Table(box=None, pad_edge=False, title=same, title_justify="left")
    for name in names:
        table.add_column(name, no_wrap=True)
    for name in ("done", "running", "pruned", "failed", "best val %", "test %"):
        table.add_column(name, justify="right")
    for summary in summaries:
        finished = sum(count for state, count in summary.states.items() if state.is_finished)
        scores = [trial.score for trial in summary.finals if trial.score is not None]
        best = summary.best.score if summary.best else None
        table.add_row(
            *label(summary.plan, names),
            f"{finished}/{summary.planned}",
            *(_count(summary.states[state]) for state in (TrialState.RUNNING, TrialState.PRUNED)),
            Text(_count(summary.states[TrialState.FAILED]), style="red"),
            f"{100 * best:.1f}" if best is not None else "",
            f"{100 * sum(scores) / len(scores):.1f}" if scores else "",
        )
    return table


def _count(number: int) -> str:
    return str(number) if number else ""


class LiveView:
    """Shows a sweep while a driver works on it: `update` is the driver's `on_change`."""

    def __init__(self, sweep: Sweep, console: Console) -> None:
        self._sweep = sweep
        self._console = console
        self._started = time.monotonic()
        self._finished_before = self._finished()
        self._shown = -1
        self._live = Live(console=console, refresh_per_second=4, get_renderable=self._render)

    def __enter__(self) -> Callable[[], None]:
        if self._console.is_terminal:
            self._live.start()
        return self._update

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def _finished(self) -> int:
        return sum(count for s in self._sweep.summaries() for state, count in s.states.items() if state.is_finished)

    def _update(self) -> None:
        finished = self._finished()
        if not self._console.is_terminal and finished != self._shown:
            self._console.print(self._headline(), highlight=False)
        self._shown = finished

    def _headline(self) -> str:
        planned = sum(summary.planned for summary in self._sweep.summaries())
        finished = self._finished()
        elapsed = time.monotonic() - self._started
        here = finished - self._finished_before
        left = f", about {_clock(elapsed / here * (planned - finished))} left" if here and finished < planned else ""
        return f"{self._sweep.spec.name}: {finished} of {planned} trials finished, {_clock(elapsed)}{left}"

    def _render(self) -> Group:
        return Group(progress_table(self._sweep.summaries()), Text(self._headline(), style="bold"))


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
