"""Select trials by conditions: `task=vtab/dtd error=CUDA*`."""

from __future__ import annotations

import dataclasses
import fnmatch
import shlex
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from orchestrator.errors import UserError
from orchestrator.spec.labels import study_text
from orchestrator.study.trial import Trial, TrialState
from trainer.config import field_types
from trainer.validation import unknown_name

if TYPE_CHECKING:
    from orchestrator.study.study import Study

NAMES = ("study", "phase", "number", "state", "cause", "error", "attempt", *field_types())
"""Names that a condition may have."""


def parse_trial_filter(where: str | None, ids: Sequence[str]) -> Callable[[Trial], bool]:
    """Return a predicate: whether a trial meets every condition and has one of the ids. Without any, every trial does.

    Args:
        where: conditions `name=pattern`, separated by spaces. Quote a pattern that has a space.
        ids: first letters of trial ids.

    Raises:
        UserError: for a word that is not a condition, with the nearest name.
    """
    try:
        # shlex, so that a pattern with a space can be quoted as in a shell.
        conditions = _conditions(where)
    except ValueError as error:
        raise UserError(f"--where {where!r}: {error}.") from None

    problems = []
    for name, sign, _ in conditions:
        if name not in NAMES:
            problems.append(f"{name}: {unknown_name(name, NAMES, 'something a trial has')}")
        elif not sign:
            problems.append(f"{name}: a condition is NAME=PATTERN")
    if problems:
        raise UserError(f"--where {where!r}: {'; '.join(problems)}")

    def matches(trial: Trial) -> bool:
        values = _values_of(trial)
        # Users copy the first letters of an id from a table.
        has_id = not ids or any(trial.trial_id.startswith(prefix) for prefix in ids)
        return has_id and all(
            fnmatch.fnmatchcase(values[name], pattern)
            # As messages name it.
            or (name == "study" and fnmatch.fnmatchcase(study_text(trial.config), pattern))
            for name, _, pattern in conditions
        )

    return matches


def first_final_trials(sweep: str, studies: Sequence[Study], where: str | None) -> list[tuple[Study, Trial]]:
    """Return the final trial of each study that has a complete one that matches: of the first seed of the spec.

    The seed with the best test accuracy is not taken: that would be choosing on test.

    Args:
        sweep: name of the sweep.
        where: conditions; see `parse_trial_filter`.

    Raises:
        UserError: if no study has one.
    """
    matches = parse_trial_filter(where, [])
    selected = []
    for study in studies:
        final = [t for t in study.requested_final_trials if t.state is TrialState.COMPLETE and matches(t)]
        if final:
            seeds = study.spec.final.seeds
            selected.append((study, min(final, key=lambda trial: seeds.index(trial.config.seed))))

    if not selected:
        raise UserError(nothing_matches(f"complete final trial of {sweep}", sweep, studies, where))
    return selected


def nothing_matches(what: str, sweep: str, studies: Iterable[Study], where: str | None) -> str:
    """Return a sentence that no trial matches, with the nearest name for each that no study has."""
    axes = [study.plan.axes for study in studies]
    problems = []
    for name, _, pattern in _conditions(where):
        values = {str(each[name]): None for each in axes if name in each}
        if values and not fnmatch.filter(values, pattern):
            problems.append(f" {name}={pattern}: {unknown_name(pattern, [*values], f'a {name} of this sweep')}")
    return f"no {what} matches; `sptune status {shlex.quote(sweep)}` shows what there is.{''.join(problems)}"


def distinguishing_condition(studies: Sequence[Study]) -> str:
    """Return the condition that selects the first of these studies and no other, such as `method=spt_deep`."""
    axes = [study.plan.axes for study in studies]
    varying = [name for name in axes[0] if len({str(each[name]) for each in axes}) > 1]
    return " ".join(f"{name}={axes[0][name]}" for name in varying)


def _conditions(where: str | None) -> list[tuple[str, str, str]]:
    """Return name, sign and pattern of each condition."""
    return [word.partition("=") for word in shlex.split(where or "")]


def _values_of(trial: Trial) -> dict[str, str]:
    # Fields of the config come first: `seed` and the like keep their plain names.
    config = dataclasses.asdict(trial.config)
    return {
        **{name: "" if value is None else str(value) for name, value in config.items()},
        "study": trial.study,
        "phase": trial.phase,
        "number": str(trial.number),
        "state": trial.state.value,
        "cause": trial.cause.value if trial.cause else "",
        "error": trial.error_summary,
        "attempt": str(trial.attempt),
    }
