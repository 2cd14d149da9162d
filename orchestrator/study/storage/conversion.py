"""Conversion between a `Trial` and a trial of Optuna."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, create_trial
from optuna.trial import TrialState as OptunaState

from orchestrator.errors import UserError
from orchestrator.redaction import redact
from orchestrator.spec.plan import StudyPlan
from orchestrator.spec.space import Dimension, FloatRange, IntRange
from orchestrator.study.storage.bulk_read import StoredTrial
from orchestrator.study.storage.stored_names import (
    CONFIG,
    HISTORY,
    HISTORY_KEYS,
    LAST_VALUES,
    LAST_VALUES_KEYS,
    TRIAL_ATTRS,
    TRIAL_ID,
)
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
"""Optuna's name for each state."""

DEFAULTS: dict[str, Any] = {
    TRIAL_ATTRS[field.name]: field.default for field in dataclasses.fields(Trial) if field.name in TRIAL_ATTRS
}
"""Default values by stored name. An attribute that equals its default is not written."""

CONFIG_FIELDS = tuple(field.name for field in dataclasses.fields(TrainConfig))


def optuna_distributions(plan: StudyPlan, phase: Phase) -> dict[str, BaseDistribution]:
    """Return a study's space as Optuna distributions. Final trials differ in their seed only."""
    if phase == "final":
        return {"seed": IntDistribution(0, 2**32 - 1)}

    return {name: _distribution(dimension) for name, dimension in plan.space.items()}


def to_optuna_trial(trial: Trial, space: Mapping[str, BaseDistribution], *, metrics: bool = True) -> FrozenTrial:
    """Return a trial as a trial of Optuna; without `metrics`, only what Optuna's samplers and pruners read."""
    # The attributes are large, and samplers and pruners do not read them.
    attributes: dict[str, Any] = {}
    if metrics:
        attributes = trial_attrs(trial)
        if trial.epochs:
            attributes |= history_attrs(trial)

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
    """Return the fields that Optuna has no place for, as user attributes under their stored names."""
    progress = {stored: getattr(trial, name) for name, stored in TRIAL_ATTRS.items()}
    if trial.cause is not None:
        progress[TRIAL_ATTRS["cause"]] = trial.cause.value

    # Defaults are not written: most trials have none but these, and each attribute is a row.
    changed = {stored: value for stored, value in progress.items() if value != DEFAULTS[stored]}

    # Plain values, which `asdict` would copy one by one: a driver is here at every epoch.
    config = {name: getattr(trial.config, name) for name in CONFIG_FIELDS}
    return {TRIAL_ID: trial.trial_id, CONFIG: config} | changed


def history_attrs(trial: Trial) -> dict[str, Any]:
    """Return the metrics of all epochs, as two user attributes.

    One attribute holds the metrics of every epoch: a row for each metric would be slow to write and to read. The other
    holds the last values, for reports. It is written first: an epoch that it contains is not reported again.
    """
    return {
        LAST_VALUES: {name: getattr(trial, field) for field, name in LAST_VALUES_KEYS.items()},
        HISTORY: {name: getattr(trial, field) for field, name in HISTORY_KEYS.items()},
    }


def optuna_value(trial: Trial) -> float | None:
    """Return the value for Optuna: the score, or the last val accuracy of a pruned trial."""
    if trial.state is TrialState.PRUNED:
        return trial.epochs[-1].get(VAL_ACCURACY) if trial.epochs else None

    return trial.score


def from_stored_trial(stored: StoredTrial, study: str, phase: Phase) -> Trial:
    """Return the trial that `to_optuna_trial` was given; without epochs if its history was not read.

    Raises:
        UserError: if the trial's id is not a plain folder name. Paths are built from it.
    """
    # Whoever can write to the database must not be able to name a folder outside the home.
    trial_id = str(stored.user[TRIAL_ID])
    # Whoever can write the database could otherwise name a folder outside the home.
    if not trial_id.isalnum():
        raise UserError(f"the study database has been tampered with: {trial_id!r} in {study} is not a trial id.")

    # States are unique both ways, so the map is read backwards.
    state = next(state for state, optuna_state in STATES.items() if optuna_state is stored.state)
    progress = {name: stored.user.get(attr, DEFAULTS[attr]) for name, attr in TRIAL_ATTRS.items()}
    if progress["cause"] is not None:
        progress["cause"] = FailureCause(progress["cause"])
    # Earlier versions stored errors as they were.
    if progress["error"] is not None:
        progress["error"] = redact(progress["error"])

    # A trial without a finished epoch has neither of the two.
    history = stored.user.get(HISTORY, {})
    last_values = stored.user.get(LAST_VALUES, {})

    return Trial(
        trial_id=trial_id,
        study=study,
        phase=phase,
        number=stored.number,
        params=stored.params,
        config=TrainConfig.from_stored(stored.user[CONFIG]),
        state=state,
        epochs=tuple(history.get(HISTORY_KEYS["epochs"], ())),
        # Optuna also has a value for pruned trials, but only complete ones have a score.
        score=stored.value if state is TrialState.COMPLETE else None,
        sampler_attrs=stored.system | history.get(HISTORY_KEYS["sampler_attrs"], {}),
        last_metrics=last_values.get(LAST_VALUES_KEYS["last_metrics"], {}),
        provenance=last_values.get(LAST_VALUES_KEYS["provenance"], {}),
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
