"""Choosing trials by what is known of them: `task=vtab/dtd error=CUDA*`."""

from __future__ import annotations

import dataclasses
import fnmatch
import shlex
from collections.abc import Callable, Sequence

from orchestrator.errors import UserError
from orchestrator.study.trial import Trial
from trainer.config import field_types
from trainer.validation import unknown_name

NAMES = ("study", "phase", "number", "state", "cause", "error", "attempt", *field_types())
"""What a condition may be about."""


def parse_trial_filter(where: str | None, ids: Sequence[str]) -> Callable[[Trial], bool]:
    """Whether a trial fulfils all conditions and has one of the ids, as far as any are given.

    Args:
        where: conditions `name=pattern`, between spaces; a pattern with a space in quotes.
        ids: beginnings of trials' ids.

    Raises:
        UserError: for a condition that is none, with the nearest name.
    """
    try:
        words = [word.partition("=") for word in shlex.split(where or "")]
    except ValueError as error:
        raise UserError(f"--where {where!r}: {error}.") from None
    problems = [
        f"{name}: {unknown_name(name, NAMES, 'something a trial has')}"
        if name not in NAMES
        else f"{name}: a condition is NAME=PATTERN"
        for name, sign, _ in words
        if name not in NAMES or not sign
    ]
    if problems:
        raise UserError(f"--where {where!r}: {'; '.join(problems)}")

    def fulfils(trial: Trial) -> bool:
        known = {
            **{name: "" if value is None else str(value) for name, value in dataclasses.asdict(trial.config).items()},
            "study": trial.study,
            "phase": trial.phase,
            "number": str(trial.number),
            "state": trial.state.value,
            "cause": trial.cause.value if trial.cause else "",
            "error": trial.error_summary,
            "attempt": str(trial.attempt),
        }
        named = not ids or any(trial.trial_id.startswith(one) for one in ids)
        return named and all(fnmatch.fnmatchcase(known[name], pattern) for name, _, pattern in words)

    return fulfils
