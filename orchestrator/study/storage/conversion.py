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
from orchestrator.spec.space import Dimension, FloatRange, IntRange
from orchestrator.study.storage.bulk_read import StoredTrial
from orchestrator.study.trial import FailureCause, Phase, Trial, TrialState
from trainer.config import TrainConfig
from trainer.metric_names import VAL_ACCURACY

STATES = {
    TrialState.WAITING: OptunaState.WAITING,
    TrialState.RUNNING: OptunaState.RUNNING,
    TrialState.COMPLETE: OptunaState.COMPLETE,
    TrialState.PRUNED: OptunaState.PRUNED,
    TrialState.FAILED: OptunaState.FAIL,
}
HISTORY = "history"
"""User attribute with the metrics of every epoch: most of what a trial weighs."""
LAST = "came"
"""User attribute with the last value of every metric, and with the provenance."""
STORED_NAMES = {
    "error": "error",
    "cause": "cause",
    "attempt": "attempt",
    "failures": "failures",
    "losses": "losses",
    "gpu_share_factor": "share",
    "lost_seconds": "wasted_s",
    "duplicate_of": "duplicate_of",
}
"""Fields of Trial that are user attributes, and their stored names. Renaming a field leaves the stored name."""
DEFAULTS: dict[str, Any] = {
    STORED_NAMES[field.name]: field.default for field in dataclasses.fields(Trial) if field.name in STORED_NAMES
}
"""By stored name. An attribute that equals its default is not written."""


def optuna_distributions(plan: StudyPlan, phase: Phase) -> dict[str, BaseDistribution]:
    """Optuna's name for a study's space; final trials differ in their seed."""
    if phase == "final":
        return {"seed": IntDistribution(0, 2**32 - 1)}
    return {name: _distribution(dimension) for name, dimension in plan.space.items()}


def to_optuna_trial(trial: Trial, space: Mapping[str, BaseDistribution], *, metrics: bool = True) -> FrozenTrial:
    """Return a trial as Optuna has it; without `metrics`, only what its samplers and pruners read."""
    attributes = trial_attrs(trial) | (history_attrs(trial) if trial.epochs else {}) if metrics else {}
    return create_trial(
        state=STATES[trial.state],
        value=optuna_value(trial),
        params=trial.params,
        distributions={name: space[name] for name in trial.params},
        user_attrs=attributes,
        system_attrs=trial.sampler_attrs,
        intermediate_values={
            epoch: values[VAL_ACCURACY] for epoch, values in enumerate(trial.epochs, start=1) if VAL_ACCURACY in values
        },
    )


def trial_attrs(trial: Trial) -> dict[str, Any]:
    """Return what Optuna has no field for, as user attributes under their stored names."""
    progress = {stored: getattr(trial, name) for name, stored in STORED_NAMES.items()}
    if trial.cause is not None:
        progress["cause"] = trial.cause.value
    changed = {stored: value for stored, value in progress.items() if value != DEFAULTS[stored]}
    return {"trial_id": trial.trial_id, "config": dataclasses.asdict(trial.config)} | changed


def history_attrs(trial: Trial) -> dict[str, Any]:
    """Return the outcome of all epochs, as two user attributes.

    One attribute holds the metrics of every epoch: a row for each metric would be slow to write and to read. The other
    holds the last values, for reports. It is written first: an epoch that it knows is not reported again.
    """
    return {
        LAST: {"last": trial.last_metrics, "facts": trial.provenance},
        HISTORY: {"epochs": trial.epochs, "notes": trial.sampler_attrs},
    }


def optuna_value(trial: Trial) -> float | None:
    """Return the value for Optuna: the score, or the last val accuracy of a pruned trial."""
    if trial.state is TrialState.PRUNED:
        return trial.epochs[-1].get(VAL_ACCURACY) if trial.epochs else None
    return trial.score


def from_stored_trial(stored: StoredTrial, study: str, phase: Phase) -> Trial:
    """Return the trial that `to_optuna_trial` was given; without epochs if its history was not read.

    Raises:
        UserError: if its id could name another folder than its own.
    """
    trial_id = str(stored.user["trial_id"])
    if not trial_id.isalnum():
        raise UserError(f"the study database has been tampered with: {trial_id!r} in {study} is not a trial id.")
    state = next(ours for ours, theirs in STATES.items() if theirs is stored.state)
    progress = {name: stored.user.get(attr, DEFAULTS[attr]) for name, attr in STORED_NAMES.items()}
    if progress["cause"] is not None:
        progress["cause"] = FailureCause(progress["cause"])
    history = stored.user.get(HISTORY, {"epochs": [], "notes": {}})
    last = stored.user.get(LAST, {"last": {}, "facts": {}})
    return Trial(
        trial_id=trial_id,
        study=study,
        phase=phase,
        number=stored.number,
        params=stored.params,
        config=TrainConfig.from_stored(stored.user["config"]),
        state=state,
        epochs=tuple(history["epochs"]),
        score=stored.value if state is TrialState.COMPLETE else None,
        sampler_attrs=stored.system | history["notes"],
        last_metrics=last["last"],
        provenance=last["facts"],
        **progress,
    )


def _distribution(dimension: Dimension) -> BaseDistribution:
    match dimension:
        case FloatRange():
            return FloatDistribution(dimension.low, dimension.high, log=dimension.log)
        case IntRange():
            return IntDistribution(dimension.low, dimension.high, log=dimension.log)
        case _:
            return CategoricalDistribution(dimension.values)
