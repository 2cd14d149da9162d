"""Failed trials, grouped by cause and kind of error."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from orchestrator.study.trial import FailureCause, Trial, error_kind

NUM_TRACE_LINES = 6


@dataclass(frozen=True, slots=True)
class FailureGroup:
    """Trials that failed in the same way."""

    cause: FailureCause
    kind: str
    trials: list[Trial]

    @property
    def condition(self) -> str:
        """The `--where` condition that selects these trials, such as `error=OSError* cause=error`."""
        # `?` matches any character. It replaces those that a shell or the condition would need quotes for.
        error = re.sub(r"[^\w.-]", "?", self.kind)
        cause = re.sub(r"[^\w.-]", "?", self.cause.value)
        return f"error={error}* cause={cause}"

    @property
    def trace(self) -> list[str]:
        """The last lines of the traceback of the latest trial."""
        lines = str(self.trials[-1].error).splitlines()[1:]
        return [line for line in lines if line.strip()][-NUM_TRACE_LINES:]


def group_failures(trials: Iterable[Trial]) -> list[FailureGroup]:
    """Return failed trials by cause and kind of error, the largest group first."""
    groups: dict[tuple[FailureCause, str], FailureGroup] = {}
    for trial in trials:
        # A duplicate has the outcome of another trial, which is in the group already.
        if trial.cause is not None and trial.duplicate_of is None:
            key = (trial.cause, error_kind(trial))
            groups.setdefault(key, FailureGroup(*key, [])).trials.append(trial)

    return sorted(groups.values(), key=lambda group: -len(group.trials))
