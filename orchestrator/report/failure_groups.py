"""Failed trials, grouped by what went wrong."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from orchestrator.study.trial import Cause, TrialResult, kind_of


@dataclass(frozen=True, slots=True)
class Group:
    """Trials that failed in the same way."""

    cause: Cause
    kind: str
    trials: list[TrialResult]

    @property
    def condition(self) -> str:
        """What `--where` chooses them by, such as `error=OSError* cause=error`; nothing in it needs quotes."""
        error, cause = (re.sub(r"[^\w.-]", "?", text) for text in (self.kind, self.cause.value))
        return f"error={error}* cause={cause}"

    @property
    def trace(self) -> list[str]:
        """The last lines of the latest trial's trace."""
        return [line for line in str(self.trials[-1].error).splitlines()[1:] if line.strip()][-6:]


def grouped(trials: Iterable[TrialResult]) -> list[Group]:
    """Failed trials by cause and kind of error, the largest group first."""
    groups: dict[tuple[Cause, str], Group] = {}
    for trial in trials:
        if trial.cause is not None and trial.duplicate_of is None:
            key = (trial.cause, kind_of(trial))
            groups.setdefault(key, Group(*key, [])).trials.append(trial)
    return sorted(groups.values(), key=lambda group: -len(group.trials))
