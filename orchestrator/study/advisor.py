"""Suggestions of new trials and pruning decisions for one study, from Optuna's samplers and pruners.

Results do not depend on the number or speed of workers. For trial k, the advisor knows the outcomes of trials 0 to
k - max_concurrent of the same study. Of later ones it knows only the params. For each question, it puts exactly these
trials into a new in-memory Optuna study. So the same spec and seed give the same trials, no matter how often the sweep
was interrupted.

Optuna's samplers ignore failed trials. A diverged trial is a result, so it is added as the worst trial of all
(`_as_worst`). The study database keeps it as failed, with its cause.
"""

from __future__ import annotations

import dataclasses
import hashlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import optuna
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, BruteForceSampler, CmaEsSampler, GPSampler, RandomSampler, TPESampler
from optuna.trial import Trial as OptunaTrial

from orchestrator.spec.plan import StudyPlan, suggest_params
from orchestrator.spec.schema import Asha, Hyperband, Median, Search
from orchestrator.spec.space import Choice, Dimension, FloatRange, IntRange
from orchestrator.study.storage.conversion import optuna_distributions, to_optuna_trial
from orchestrator.study.trial import RUNG, FailureCause, Trial, TrialState
from trainer.metric_names import VAL_ACCURACY

optuna.logging.set_verbosity(optuna.logging.WARNING)

KEPT_ATTRS = ("cma", "x_for_tell", RUNG)
"""Prefixes of the system attributes that samplers and pruners look for in earlier trials."""


@dataclasses.dataclass
class _PendingTrial:
    """A trial as Optuna sees it, with the number of epochs that were reported to Optuna."""

    study: optuna.Study
    trial: OptunaTrial
    num_reported: int = 0

    @property
    def sampler_attrs(self) -> dict[str, Any]:
        """System attributes that sampler and pruner have set on the trial so far."""
        attributes = self.study.get_trials(deepcopy=False)[-1].system_attrs
        return {name: value for name, value in attributes.items() if name.startswith(KEPT_ATTRS)}


class Advisor:
    """Sampler and pruner of one study's search.

    Args:
        trials: the search trials so far. The caller appends new ones to this list.
    """

    def __init__(self, plan: StudyPlan, trials: list[Trial]) -> None:
        self._plan = plan
        self._search = plan.search
        self._trials = trials
        self._distributions = optuna_distributions(plan, "search")
        self._pending: dict[int, _PendingTrial] = {}

    def num_required(self, number: int) -> int:
        """Return how many first trials must be finished before trial `number` is suggested: it learns from them."""
        return max(0, number - self._search.max_concurrent + 1)

    def suggest(self, number: int, params: Mapping[str, Any] | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the params and the sampler attributes of a new trial.

        Args:
            params: values that the trial must have; the sampler draws those that are missing.
        """
        pending = self._start_trial(number, params)
        return dict(pending.trial.params), pending.sampler_attrs

    def should_prune(self, trial: Trial) -> tuple[bool, dict[str, Any]]:
        """Return whether to prune a trial after the epochs that it has, and its sampler attributes."""
        pending = self._pending.get(trial.number) or self._start_trial(trial.number, trial.params)

        # The pruner is asked at every scored epoch, because it keeps state from one to the next. Its answer is for that
        # epoch: after one that is not scored (`search.eval_every`), the trial goes on.
        is_pruned = False
        for epoch in range(pending.num_reported + 1, len(trial.epochs) + 1):
            accuracy = trial.epochs[epoch - 1].get(VAL_ACCURACY)
            is_pruned = False
            if accuracy is not None:
                pending.trial.report(accuracy, epoch)
                is_pruned = pending.trial.should_prune()
        pending.num_reported = len(trial.epochs)

        return is_pruned, trial.sampler_attrs | pending.sampler_attrs

    def discard(self, number: int) -> None:
        """Free the memory of a trial that has ended."""
        self._pending.pop(number, None)

    def _start_trial(self, number: int, params: Mapping[str, Any] | None) -> _PendingTrial:
        # A seed for each trial: the number of trials drawn before, by this process or another, does not matter.
        digest = hashlib.sha256(f"{self._search.seed} {self._plan.key} {number}".encode()).digest()
        seed = int.from_bytes(digest[:4], "big")

        with warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning):
            study = optuna.create_study(
                study_name=self._plan.key,
                direction="maximize",
                sampler=_sampler(self._search, seed),
                pruner=_pruner(self._search, self._plan),
            )

        # Trials that this one may not depend on are still added, as running: constant_liar needs their params, and
        # the number of the new trial must be right.
        num_visible = self.num_required(number)
        visible = [trial for trial in self._trials[:num_visible] if trial.state.is_finished]
        worst_score = min((trial.score for trial in visible if trial.score is not None), default=0.0)

        for earlier in self._trials[:number]:
            if earlier.number >= num_visible or not earlier.state.is_finished:
                seen = _as_running(earlier)
            elif earlier.state is TrialState.FAILED and earlier.cause is FailureCause.DIVERGED:
                seen = _as_worst(earlier, self._search, worst_score)
            else:
                seen = earlier
            study.add_trial(to_optuna_trial(seen, self._distributions, metrics=False))

        # A trial with given params, or a trial of an earlier process: Optuna takes the values from its queue.
        if params is not None:
            study.enqueue_trial(dict(params))

        pending = _PendingTrial(study=study, trial=study.ask())
        self._pending[number] = pending
        suggest_params(self._plan, _suggest(pending.trial))
        return pending


def _as_running(trial: Trial) -> Trial:
    """Return a trial as if it had just begun: its params are known, its outcome is not."""
    # What a pruner stored at a rung is part of the outcome.
    attrs = {name: value for name, value in trial.sampler_attrs.items() if not name.startswith(RUNG)}
    return dataclasses.replace(
        trial,
        state=TrialState.RUNNING,
        epochs=(),
        score=None,
        error=None,
        cause=None,
        sampler_attrs=attrs,
    )


def _as_worst(trial: Trial, search: Search, worst_score: float) -> Trial:
    """Return a diverged trial in the form that makes the sampler rank it as the worst trial.

    Args:
        worst_score: lowest score of the trials that the sampler sees; any number if none has a score.
    """
    # Without its epochs: the median pruner would compare other trials with them, although this one did not finish.
    # Its rungs stay: ASHA and Hyperband compare with every trial that reached a rung, also with failed ones.
    pruned = dataclasses.replace(trial, state=TrialState.PRUNED, error=None, cause=None, epochs=())

    match search.sampler:
        case "tpe":
            # A trial that was pruned before its first epoch is the last in TPE's order. A complete trial with a low
            # score would not be: TPE ranks every complete trial above every pruned one.
            return pruned
        case "gp" | "cmaes":
            # These two learn from complete trials only. CMA-ES uses ranks, so any score up to the worst means the same.
            # A Gaussian process uses distances: a score far below the others would bend its surface.
            return dataclasses.replace(pruned, state=TrialState.COMPLETE, score=worst_score)
        case _:
            # Random search learns nothing, and the grid does not repeat a failed point.
            return trial


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
                # Counts running trials as bad ones, so that concurrent trials differ.
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
