"""What a user can do wrong, as one small tree; the command line prints the text and no stack trace.

UserError
├── SpecError      the spec has problems, all of them listed
├── HomeError      the home folder cannot be used
├── ConflictError  the spec contradicts trials that the record already holds
├── LeaseError     another driver is at work on the sweep
├── ServiceError   a database, a server or a bucket does not answer, or refuses
└── ClusterError   Ray cannot give what the spec asks for
"""

from __future__ import annotations

from collections.abc import Sequence


class UserError(Exception):
    """A mistake outside this program, told as rule, value and way out."""


class SpecError(UserError):
    """Every problem of a spec, each with its place."""

    def __init__(self, source: str, problems: Sequence[str]) -> None:
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        super().__init__(f"{source} has {count}:\n" + "\n".join(f"  {problem}" for problem in problems))
        self.problems = list(problems)


class HomeError(UserError):
    """The home folder cannot be read or written."""


class ConflictError(UserError):
    """An edit that would mix results of different experiments under one name."""


class LeaseError(UserError):
    """A sweep has one driver, and it is another one."""


class ServiceError(UserError):
    """Something on the network is away, or refuses these credentials.

    Args:
        away: whether it does not answer at all, which may pass.
    """

    def __init__(self, text: str, *, away: bool = False) -> None:
        super().__init__(text)
        self.away = away


class ClusterError(UserError):
    """Ray is not there, or has not what a trial needs."""
