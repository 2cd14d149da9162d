"""Leaderboard of a study: every search trial with its params, in the order of val accuracy."""

from __future__ import annotations

import math

from orchestrator.figures.params import reached
from orchestrator.report.blocks import NOTHING, Cell, TableBlock
from orchestrator.spec.labels import format_value
from orchestrator.study.selection import find_tied
from orchestrator.study.study import Study
from orchestrator.study.trial import Trial

MAX_NOTE = 160
"""Characters of an error that a row has room for."""


def leaderboard(study: Study) -> TableBlock:
    """Return the trials: complete ones from the best to the worst, then the others by their latest val accuracy."""
    trials = [trial for trial in study.requested_search_trials if trial.duplicate_of is None]
    trials.sort(key=lambda trial: (trial.score is None, -(reached(trial) or -math.inf), trial.number))
    tied = {trial.number for trial in find_tied(study.requested_search_trials)}

    names = [*study.plan.space]
    rows = []
    for trial in trials:
        accuracy = reached(trial)
        texts = [
            str(trial.number),
            trial.state.value,
            NOTHING if accuracy is None else f"{100 * accuracy:.1f}",
            *(_param(trial, name) for name in names),
            str(len(trial.epochs)),
            _note(trial, is_chosen=trial == study.best, is_tied=trial.number in tied),
        ]
        rows.append(tuple(Cell(text, bold=trial == study.best) for text in texts))

    return TableBlock(
        title="search trials, by val accuracy at the last epoch",
        header=("trial", "state", "val %", *names, "epochs", "note"),
        rows=rows,
        names=2,
        last_is_text=True,
    )


def _param(trial: Trial, name: str) -> str:
    if name not in trial.params:
        return NOTHING
    value = trial.params[name]
    return f"{value:.3g}" if isinstance(value, float) else format_value(value)


def _note(trial: Trial, *, is_chosen: bool, is_tied: bool) -> str:
    if trial.error_summary:
        text = trial.error_summary
        return text if len(text) <= MAX_NOTE else f"{text[: MAX_NOTE - 1]}…"
    if is_chosen:
        return "chosen"
    return "tied" if is_tied else ""
