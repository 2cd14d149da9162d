"""A trial in Optuna's words, and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, create_trial
from optuna.trial import TrialState as OptunaState

from orchestrator.errors import UserError
from orchestrator.spec.plan import StudyPlan
from orchestrator.spec.space import FloatRange, IntRange, Space
from orchestrator.study.storage.bulk_read import StoredTrial
from orchestrator.study.trial import Cause, Phase, TrialResult, TrialState

STATES = {
    TrialState.WAITING: OptunaState.WAITING,
    TrialState.RUNNING: OptunaState.RUNNING,
    TrialState.COMPLETE: OptunaState.COMPLETE,
    TrialState.PRUNED: OptunaState.PRUNED,
    TrialState.FAILED: OptunaState.FAIL,
}
HISTORY = "history"
"""Name of the user attribute that holds all epochs: most of what a trial weighs."""
PROGRESS: dict[str, Any] = {
    field.name: field.default
    for field in dataclasses.fields(TrialResult)
    if field.name in ("error", "cause", "attempt", "failures", "losses", "share", "wasted_s", "duplicate_of")
}
"""Fields of TrialResult that are user attributes where they are not these."""


def distributions(plan: StudyPlan, phase: Phase) -> dict[str, BaseDistribution]:
    """Optuna's name for a study's space; final trials differ in their seed."""
    if phase == "final":
        return {"seed": IntDistribution(0, 2**32 - 1)}
    return {name: _distribution(dimension) for name, dimension in plan.space.items()}


def frozen(result: TrialResult, space: Mapping[str, BaseDistribution], *, metrics: bool = True) -> FrozenTrial:
    """A trial as Optuna has it; without `metrics`, only what its samplers and pruners look at."""
    attributes = attributes_of(result) | (came_of(result) if result.epochs else {}) if metrics else {}
    return create_trial(
        state=STATES[result.state],
        value=told_value(result),
        params=result.params,
        distributions={name: space[name] for name in result.params},
        user_attrs=attributes,
        system_attrs=result.notes,
        intermediate_values={
            epoch: values["val/accuracy"]
            for epoch, values in enumerate(result.epochs, start=1)
            if "val/accuracy" in values
        },
    )


def attributes_of(result: TrialResult) -> dict[str, Any]:
    """What Optuna has no field for, as user attributes."""
    progress = {name: getattr(result, name) for name, usual in PROGRESS.items() if getattr(result, name) != usual}
    if result.cause is not None:
        progress["cause"] = result.cause.value
    return {"trial_id": result.trial_id, "config": result.config} | progress


def came_of(result: TrialResult) -> dict[str, Any]:
    """What came of its epochs, as user attributes: all metrics together, for a row each would be slow to write and
    to read, and their last values apart, for who needs no more."""
    return {
        "came": {"last": result.last, "facts": result.facts},  # first: an epoch that is known is not told again
        HISTORY: {"epochs": result.epochs, "notes": result.notes},
    }


def told_value(result: TrialResult) -> float | None:
    """The value that Optuna is told: the score, or where a pruned trial stood."""
    if result.state is TrialState.PRUNED:
        return result.epochs[-1].get("val/accuracy") if result.epochs else None
    return result.score


def thawed(trial: StoredTrial, study: str, phase: Phase) -> TrialResult:
    """The trial that `frozen` was given; without its epochs where its history was not read.

    Raises:
        UserError: if its id could name another folder than its own.
    """
    if not (trial_id := str(trial.user["trial_id"])).isalnum():
        raise UserError(f"the record has been tampered with: {trial_id!r} in {study} is no trial's id.")
    state = next(ours for ours, theirs in STATES.items() if theirs is trial.state)
    progress = PROGRESS | {name: value for name, value in trial.user.items() if name in PROGRESS}
    if progress["cause"] is not None:
        progress["cause"] = Cause(progress["cause"])
    history = trial.user.get(HISTORY, {"epochs": [], "notes": {}})
    came = trial.user.get("came", {"last": {}, "facts": {}})
    return TrialResult(
        trial_id=trial_id,
        study=study,
        phase=phase,
        number=trial.number,
        params=trial.params,
        config=trial.user["config"],
        state=state,
        epochs=tuple(history["epochs"]),
        score=trial.value if state is TrialState.COMPLETE else None,
        notes=trial.system | history["notes"],
        **came,
        **progress,
    )


def _distribution(dimension: Space) -> BaseDistribution:
    match dimension:
        case FloatRange():
            return FloatDistribution(dimension.low, dimension.high, log=dimension.log)
        case IntRange():
            return IntDistribution(dimension.low, dimension.high, log=dimension.log)
        case _:
            return CategoricalDistribution(dimension.values)
