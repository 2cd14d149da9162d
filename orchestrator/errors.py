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

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from trainer.plain_text import counted
from trainer.redaction import redact


class UserError(Exception):
    """A mistake outside this program. The text names the rule, the value and the way out.

    Secrets in the text are redacted: it is printed, logged and handed to callers.
    """

    def __init__(self, text: str) -> None:
        super().__init__(redact(text))


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem of a spec, and where it is in the file."""

    text: str
    """A sentence that begins with the key that it is about."""
    line: int = 0
    """From 1; 0 if the problem is at no place of the file."""
    column: int = 0
    """From 1."""
    excerpt: str = ""
    """The line of the file, with carets below the part that is wrong. Empty if the line must not be shown."""


class SpecError(UserError):
    """All problems of a spec, in the order of the file. Those without a place come last.

    Args:
        source: the file, or another name of the spec.
        problems: sentences, each beginning with the key that it is about, or sentences with their places.
    """

    def __init__(self, source: str, problems: Sequence[str | Problem]) -> None:
        located = [problem if isinstance(problem, Problem) else Problem(problem) for problem in problems]
        # The sort is stable: problems of one place keep their order.
        located.sort(key=lambda problem: (not problem.line, problem.line, problem.column))

        count = counted(len(located), "problem")
        super().__init__("\n".join([f"{source} has {count}:", *_blocks(source, located)]))
        self.located = [dataclasses.replace(problem, text=redact(problem.text)) for problem in located]
        self.problems = [problem.text for problem in self.located]


def _blocks(source: str, problems: Sequence[Problem]) -> Iterator[str]:
    """Yield problems as they are printed: `file:line:column: sentence` with the excerpt, set apart by empty lines."""
    for (line, column), group in itertools.groupby(problems, key=lambda problem: (problem.line, problem.column)):
        same_place = [*group]
        # Set apart, unless there is nothing to be set apart from.
        if line or problems[0].line:
            yield ""
        if not line:
            yield from (f"  {problem.text}" for problem in same_place)
            continue

        for problem, following in itertools.zip_longest(same_place, same_place[1:]):
            yield f"{source}:{line}:{column}: {problem.text}"
            # Problems with the same excerpt share it, such as all keys that are missing.
            if problem.excerpt and (following is None or following.excerpt != problem.excerpt):
                yield problem.excerpt


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
