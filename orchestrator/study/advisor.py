"""What to try next in a study and what to stop: asked of Optuna's samplers and pruners.

They see an in-memory study that holds exactly the trials that trial k may learn from, 0..k-max_concurrent, whichever
others have finished by then: the same spec and seed give the same trials, whatever the speed of the workers and
however often the sweep was interrupted.
"""

from __future__ import annotations

import dataclasses
import hashlib
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import optuna
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, BruteForceSampler, CmaEsSampler, GPSampler, RandomSampler, TPESampler
from optuna.trial import Trial as OptunaTrial

from orchestrator.spec.plan import StudyPlan, suggest_params
from orchestrator.spec.schema import Asha, Hyperband, Median, Search
from orchestrator.spec.space import Choice, Dimension, FloatRange, IntRange
from orchestrator.study.storage.conversion import optuna_distributions, to_optuna_trial
from orchestrator.study.trial import RUNG, Trial, TrialState
from trainer.metric_names import VAL_ACCURACY

if TYPE_CHECKING:
    pass

optuna.logging.set_verbosity(optuna.logging.WARNING)

KEPT_ATTRS = ("cma", "x_for_tell", RUNG)
"""How the names of those attributes begin that samplers and pruners look for in earlier trials."""


@dataclasses.dataclass
class _PendingTrial:
    """A trial as Optuna sees it, and how many of its epochs Optuna was told."""

    study: optuna.Study
    trial: OptunaTrial
    num_reported: int = 0

    @property
    def sampler_attrs(self) -> dict[str, Any]:
        """What sampler and pruner have written on it so far."""
        attributes = self.study.get_trials(deepcopy=False)[-1].system_attrs
        return {name: value for name, value in attributes.items() if name.startswith(KEPT_ATTRS)}


class Advisor:
    """Optuna's advice on one study's search.

    Args:
        trials: the search trials so far; a list that grows.
    """

    def __init__(self, plan: StudyPlan, search: Search, trials: list[Trial]) -> None:
        self._plan = plan
        self._search = search
        self._trials = trials
        self._distributions = optuna_distributions(plan, "search")
        self._pending: dict[int, _PendingTrial] = {}

    def num_required(self, number: int) -> int:
        """Trials before this number must be finished before the numbered one is asked for: it learns from them."""
        return max(0, number - self._search.max_concurrent + 1)

    def suggest(self, number: int, params: Mapping[str, Any] | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """Params and notes of a new trial; with `params`, of one that is told what to try."""
        ask = self._start_trial(number, params)
        return dict(ask.trial.params), ask.sampler_attrs

    def should_prune(self, trial: Trial) -> tuple[bool, dict[str, Any]]:
        """Whether to give a trial up after the epochs it has, and its notes."""
        ask = self._pending.get(trial.number) or self._start_trial(trial.number, trial.params)
        pruned = False
        for epoch in range(ask.num_reported + 1, len(trial.epochs) + 1):
            ask.trial.report(trial.epochs[epoch - 1][VAL_ACCURACY], epoch)
            pruned = ask.trial.should_prune()
        ask.num_reported = len(trial.epochs)
        return pruned, trial.sampler_attrs | ask.sampler_attrs

    def discard(self, number: int) -> None:
        """A trial has ended: no more is asked about it."""
        self._pending.pop(number, None)

    def _start_trial(self, number: int, params: Mapping[str, Any] | None) -> _PendingTrial:
        draw = hashlib.sha256(f"{self._search.seed} {self._plan.key} {number}".encode()).digest()
        with warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning):
            study = optuna.create_study(
                study_name=self._plan.key,
                direction="maximize",
                sampler=_sampler(self._search, int.from_bytes(draw[:4], "big")),
                pruner=_pruner(self._search, self._plan),
            )
        horizon = self.num_required(number)
        for earlier in self._trials[:number]:
            seen = earlier
            if earlier.number >= horizon or not earlier.state.is_finished:  # under way, unjudged
                notes = {name: value for name, value in earlier.sampler_attrs.items() if not name.startswith(RUNG)}
                seen = dataclasses.replace(
                    earlier,
                    state=TrialState.RUNNING,
                    epochs=(),
                    score=None,
                    error=None,
                    cause=None,
                    sampler_attrs=notes,
                )
            study.add_trial(to_optuna_trial(seen, self._distributions, metrics=False))
        if params is not None:
            study.enqueue_trial(dict(params))
        ask = self._pending[number] = _PendingTrial(study=study, trial=study.ask())
        suggest_params(self._plan, _suggest(ask.trial))
        return ask


def _suggest(trial: OptunaTrial) -> Callable[[str, Dimension], Any]:
    def suggest(name: str, dimension: Dimension) -> Any:
        match dimension:
            case FloatRange():
                return trial.suggest_float(name, dimension.low, dimension.high, log=dimension.log)
            case IntRange():
                return trial.suggest_int(name, dimension.low, dimension.high, log=dimension.log)
            case Choice():
                return trial.suggest_categorical(name, dimension.values)

    return suggest


def _sampler(search: Search, seed: int) -> BaseSampler:
    match search.sampler:
        case "random":
            return RandomSampler(seed=seed)
        case "grid":
            return BruteForceSampler(seed=seed)
        case "gp":
            return GPSampler(seed=seed, n_startup_trials=search.startup_trials)
        case "cmaes":
            return CmaEsSampler(seed=seed, n_startup_trials=search.startup_trials)
        case "tpe":
            return TPESampler(
                seed=seed,
                n_startup_trials=search.startup_trials,
                multivariate=True,
                constant_liar=True,
            )


def _pruner(search: Search, plan: StudyPlan) -> BasePruner:
    match search.pruner:
        case Asha(min_epochs=min_epochs, reduction=reduction):
            return SuccessiveHalvingPruner(min_resource=min_epochs, reduction_factor=reduction)
        case Hyperband(min_epochs=min_epochs, reduction=reduction):
            return HyperbandPruner(min_resource=min_epochs, max_resource=plan.epochs, reduction_factor=reduction)
        case Median(min_epochs=min_epochs):
            return MedianPruner(n_startup_trials=1, n_warmup_steps=min_epochs)
        case _:
            return NopPruner()
