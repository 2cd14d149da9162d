"""A trial in Optuna's words, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, create_trial
from optuna.trial import TrialState as OptunaState

from orchestrator.plan import StudyPlan
from orchestrator.results import Cause, Phase, TrialResult, TrialState
from orchestrator.spec import FloatRange, IntRange, Space

STATES = {
    TrialState.WAITING: OptunaState.WAITING,
    TrialState.RUNNING: OptunaState.RUNNING,
    TrialState.COMPLETE: OptunaState.COMPLETE,
    TrialState.PRUNED: OptunaState.PRUNED,
    TrialState.FAILED: OptunaState.FAIL,
}
PROGRESS = ("attempt", "failures", "losses", "share", "wasted_s", "duplicate_of")
"""Fields of TrialResult that are kept together as the trial's user attribute `progress`."""


def distributions(plan: StudyPlan, phase: Phase) -> dict[str, BaseDistribution]:
    """Optuna's name for a study's space; final trials differ in their seed."""
    if phase == "final":
        return {"seed": IntDistribution(0, 2**32 - 1)}
    return {name: _distribution(dimension) for name, dimension in plan.space.items()}


def frozen(result: TrialResult, space: Mapping[str, BaseDistribution], *, metrics: bool = True) -> FrozenTrial:
    """A trial as Optuna has it; without `metrics`, only what its samplers and pruners look at."""
    attributes = attributes_of(result) if metrics else {}
    if metrics:
        attributes |= {f"epoch/{epoch:04d}": values for epoch, values in enumerate(result.epochs, start=1)}
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
    return {
        "trial_id": result.trial_id,
        "config": result.config,
        "error": result.error,
        "cause": result.cause.value if result.cause else None,
        "progress": {name: getattr(result, name) for name in PROGRESS},
    }


def told_value(result: TrialResult) -> float | None:
    """The value that Optuna is told: the score, or where a pruned trial stood."""
    if result.state is TrialState.PRUNED:
        return result.epochs[-1].get("val/accuracy") if result.epochs else None
    return result.score


def thawed(trial: FrozenTrial, study: str, phase: Phase) -> TrialResult:
    """The trial that `frozen` was given."""
    state = next(ours for ours, theirs in STATES.items() if theirs is trial.state)
    epochs = sorted(name for name in trial.user_attrs if name.startswith("epoch/"))
    cause = trial.user_attrs["cause"]
    return TrialResult(
        trial_id=trial.user_attrs["trial_id"],
        study=study,
        phase=phase,
        number=trial.number,
        params=trial.params,
        config=trial.user_attrs["config"],
        state=state,
        epochs=tuple(trial.user_attrs[name] for name in epochs),
        score=trial.value if state is TrialState.COMPLETE else None,
        error=trial.user_attrs["error"],
        cause=Cause(cause) if cause else None,
        notes=dict(trial.system_attrs),
        **trial.user_attrs["progress"],
    )


def _distribution(dimension: Space) -> BaseDistribution:
    match dimension:
        case FloatRange():
            return FloatDistribution(dimension.low, dimension.high, log=dimension.log)
        case IntRange():
            return IntDistribution(dimension.low, dimension.high, log=dimension.log)
        case _:
            return CategoricalDistribution(dimension.values)
