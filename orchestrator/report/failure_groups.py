"""Failed trials, grouped by what went wrong."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from orchestrator.study.trial import FailureCause, Trial, error_kind


@dataclass(frozen=True, slots=True)
class FailureGroup:
    """Trials that failed in the same way."""

    cause: FailureCause
    kind: str
    trials: list[Trial]

    @property
    def condition(self) -> str:
        """What `--where` chooses them by, such as `error=OSError* cause=error`; nothing in it needs quotes."""
        error, cause = (re.sub(r"[^\w.-]", "?", text) for text in (self.kind, self.cause.value))
        return f"error={error}* cause={cause}"

    @property
    def trace(self) -> list[str]:
        """The last lines of the latest trial's trace."""
        return [line for line in str(self.trials[-1].error).splitlines()[1:] if line.strip()][-6:]


def group_failures(trials: Iterable[Trial]) -> list[FailureGroup]:
    """Failed trials by cause and kind of error, the largest group first."""
    groups: dict[tuple[FailureCause, str], FailureGroup] = {}
    for trial in trials:
        if trial.cause is not None and trial.duplicate_of is None:
            key = (trial.cause, error_kind(trial))
            groups.setdefault(key, FailureGroup(*key, [])).trials.append(trial)
    return sorted(groups.values(), key=lambda group: -len(group.trials))
