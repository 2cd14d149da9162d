"""Errors that a user can correct, as one small tree. The command line prints their text without a stack trace.

UserError
├── SpecError      the spec has problems, all of them listed
├── HomeError      the home folder cannot be used
├── ConflictError  the spec contradicts trials in the study database
├── LeaseError     another driver runs the sweep
├── ServiceError   a database, a server or a bucket does not answer, or refuses
└── ClusterError   Ray has not the resources that the spec asks for
"""

from __future__ import annotations

from collections.abc import Sequence

from trainer.plain_text import counted
from trainer.redaction import redact


class UserError(Exception):
    """A mistake outside this program. The text names the rule, the value and the way out.

    Secrets in the text are redacted: it is printed, logged and handed to callers.
    """

    def __init__(self, text: str) -> None:
        super().__init__(redact(text))


class SpecError(UserError):
    """All problems of a spec.

    Args:
        source: the file, or another name of the spec.
        problems: one sentence each, beginning with the key that it is about.
    """

    def __init__(self, source: str, problems: Sequence[str]) -> None:
        count = counted(len(problems), "problem")
        super().__init__(f"{source} has {count}:\n" + "\n".join(f"  {problem}" for problem in problems))
        self.problems = [redact(problem) for problem in problems]


class HomeError(UserError):
    """The home folder cannot be read or written."""


class ConflictError(UserError):
    """An edit of a spec that would mix results of different experiments under one name."""


class LeaseError(UserError):
    """Another driver holds the lease on the sweep."""


class ServiceError(UserError):
    """A service on the network does not answer, or refuses the request.

    Args:
        away: whether the service does not answer at all, which may pass.
    """

    def __init__(self, text: str, *, away: bool = False) -> None:
        super().__init__(text)
        self.away = away


class ClusterError(UserError):
    """There is no Ray cluster, or it has not the resources that a trial needs."""
