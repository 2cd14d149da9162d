"""The one door to Optuna: what to try, what to stop, and the durable record of trials.

The record is an ordinary Optuna storage: a study for each study's search, one for its final trials, and one without
trials for the sweep, which holds the spec. Only the driver writes it.

Optuna's samplers and pruners see an in-memory study that holds exactly the trials that trial k may learn from,
0..k-max_concurrent, whichever others have finished by then: the same spec and seed give the same trials, whatever
the speed of the workers and however often the sweep was interrupted.
"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import optuna
import sqlalchemy
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.pruners import BasePruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, Trial, create_trial
from optuna.trial import TrialState as OptunaState

from orchestrator.plan import StudyPlan
from orchestrator.results import Phase, TrialResult, TrialState
from orchestrator.spec import Asha, Choice, FloatRange, IntRange, Median, Search

optuna.logging.set_verbosity(optuna.logging.WARNING)

STATES = {
    TrialState.WAITING: OptunaState.WAITING,
    TrialState.RUNNING: OptunaState.RUNNING,
    TrialState.COMPLETE: OptunaState.COMPLETE,
    TrialState.PRUNED: OptunaState.PRUNED,
    TrialState.FAILED: OptunaState.FAIL,
}
ATTRIBUTES = ("trial_id", "config", "error", "attempt", "duplicate_of")
"""Fields of TrialResult that are kept as the trial's user attributes."""


class Record:
    """All sweeps of a home.

    Args:
        url: an SQLAlchemy database, such as ``sqlite:///sptune-home/studies.db``.
    """

    def __init__(self, url: str) -> None:
        # The tracker's thread writes too: wait for the other's turn instead of failing.
        options = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {}
        self._storage = RDBStorage(url, engine_kwargs=options)
        if options:
            sqlalchemy.event.listen(self._storage.engine, "connect", _write_ahead)
            self._storage.engine.dispose()

    def sweeps(self) -> dict[str, dict[str, Any]]:
        """The spec of every sweep, by its name."""
        studies = optuna.get_all_study_summaries(self._storage)
        return {study.study_name: study.user_attrs["spec"] for study in studies if "spec" in study.user_attrs}

    def save_sweep(self, name: str, spec: dict[str, Any]) -> None:
        """Remember the spec of a sweep, in place of an earlier one."""
        self._storage.set_study_user_attr(self._study_id(name), "spec", spec)

    def open_study(self, sweep: str, plan: StudyPlan, phase: Phase, search: Search) -> StudyRecord:
        """One phase of a study with the trials it already has."""
        study_id = self._study_id(f"{sweep}: {plan.key} {phase}")
        return StudyRecord(self._storage, study_id, plan, phase, search)

    def _study_id(self, name: str) -> int:
        optuna.create_study(storage=self._storage, study_name=name, direction="maximize", load_if_exists=True)
        return self._storage.get_study_id_from_name(name)


@dataclasses.dataclass
class _Judged:
    """A trial under way as the pruner sees it, and how many of its epochs it has seen."""

    view: optuna.Study
    trial: Trial
    epochs: int = 0


class StudyRecord:
    """The trials of one phase of a study: in memory as they are in the database, written through."""

    def __init__(self, storage: RDBStorage, study_id: int, plan: StudyPlan, phase: Phase, search: Search) -> None:
        self._storage = storage
        self._study_id = study_id
        self._plan = plan
        self._phase: Phase = phase
        self._search = search
        self._distributions = {name: _distribution(dimension) for name, dimension in plan.space.items()}
        frozen = storage.get_all_trials(study_id)
        self._ids = [trial._trial_id for trial in frozen]
        self._rungs = [trial.system_attrs for trial in frozen]
        attributes = storage.get_study_user_attrs(study_id)
        self._tracked: dict[int, tuple[str | None, str | None]] = {
            number: attributes[f"mlflow/{number}"] for number in range(len(frozen)) if f"mlflow/{number}" in attributes
        }
        self._views: dict[int, _Judged] = {}
        self.trials = [self._result(trial) for trial in frozen]

    @property
    def settings(self) -> dict[str, Any] | None:
        """What the trials so far were made under, or None before the first."""
        settings: dict[str, Any] | None = self._storage.get_study_user_attrs(self._study_id).get("settings")
        return settings

    def save_settings(self, settings: dict[str, Any]) -> None:
        """Remember what the trials are made under."""
        self._storage.set_study_user_attr(self._study_id, "settings", settings)

    @property
    def mlflow_run(self) -> str | None:
        """Id of the study's parent run."""
        run: str | None = self._storage.get_study_user_attrs(self._study_id).get("mlflow_run")
        return run

    def save_mlflow_run(self, run_id: str) -> None:
        """Remember the study's parent run."""
        self._storage.set_study_user_attr(self._study_id, "mlflow_run", run_id)

    def tracked(self, number: int) -> tuple[str | None, str | None]:
        """A trial's run id in MLflow, and the finished state that MLflow was told of, if it was."""
        return self._tracked.get(number, (None, None))

    def save_tracked(self, number: int, run_id: str, state: TrialState | None) -> None:
        """Remember a trial's run, and that MLflow has all of it, down to its final state."""
        # An attribute of the study: Optuna lets nobody write to a finished trial.
        self._tracked[number] = run_id, state.value if state else None
        self._storage.set_study_user_attr(self._study_id, f"mlflow/{number}", self._tracked[number])

    def suggest(self, number: int) -> dict[str, Any]:
        """The params of a search trial; the trials it learns from must be finished."""
        view = self._view(number)
        return dict(view.ask(self._distributions).params)

    def add(self, result: TrialResult) -> None:
        """Write a new trial, in one piece."""
        assert result.number == len(self.trials), "trials are added in order"
        self._ids.append(self._storage.create_new_trial(self._study_id, template_trial=self._frozen(result, {})))
        self._rungs.append({})
        self.trials.append(result)

    def replace(self, result: TrialResult) -> None:
        """Write what is new about a trial that is not finished."""
        old = self.trials[result.number]
        assert not old.state.is_finished, f"trial {old.trial_id} is finished, and finished means frozen"
        trial_id = self._ids[result.number]
        for epoch in range(len(old.epochs) + 1, len(result.epochs) + 1):
            metrics = result.epochs[epoch - 1]
            if "val/accuracy" in metrics:
                self._storage.set_trial_intermediate_value(trial_id, epoch, metrics["val/accuracy"])
            self._storage.set_trial_user_attr(trial_id, f"epoch/{epoch:04d}", metrics)  # last: with it the epoch counts
        for name in ATTRIBUTES:
            if getattr(result, name) != getattr(old, name):
                self._storage.set_trial_user_attr(trial_id, name, getattr(result, name))
        if result.state is not old.state:
            value = result.score if result.state is TrialState.COMPLETE else _last_val(result)
            told = [value] if result.state in (TrialState.COMPLETE, TrialState.PRUNED) and value is not None else None
            self._storage.set_trial_state_values(trial_id, STATES[result.state], told)
        self.trials[result.number] = result
        if result.state.is_finished:
            self._views.pop(result.number, None)

    def should_prune(self, number: int) -> bool:
        """Whether Optuna's pruner gives the trial up after the epochs it has."""
        if number not in self._views:
            view = self._view(number)
            view.enqueue_trial(self.trials[number].params)
            self._views[number] = _Judged(view=view, trial=view.ask(self._distributions))
        judged, pruned = self._views[number], False
        epochs = self.trials[number].epochs
        for epoch in range(judged.epochs + 1, len(epochs) + 1):
            judged.trial.report(epochs[epoch - 1]["val/accuracy"], epoch)
            pruned = judged.trial.should_prune()
        judged.epochs = len(epochs)
        for key, value in judged.view.get_trials(deepcopy=False)[-1].system_attrs.items():
            if key.startswith("completed_rung") and key not in self._rungs[number]:
                self._storage.set_trial_system_attr(self._ids[number], key, value)
                self._rungs[number][key] = value
        return pruned

    def _view(self, number: int) -> optuna.Study:
        """An Optuna study of the trials that trial `number` may learn from; later ones are under way, unjudged."""
        draw = hashlib.sha256(f"{self._search.seed} {self._plan.key} {number}".encode()).digest()
        view = optuna.create_study(
            direction="maximize",
            sampler=_sampler(self._search, int.from_bytes(draw[:4], "big")),
            pruner=_pruner(self._search),
        )
        horizon = max(0, number - self._search.max_concurrent + 1)
        for earlier, rungs in zip(self.trials[:number], self._rungs, strict=False):
            if earlier.number < horizon:
                assert earlier.state.is_finished, f"trial {number} asked before trial {earlier.number} finished"
                view.add_trial(self._frozen(earlier, rungs))
            else:
                under_way = dataclasses.replace(earlier, state=TrialState.RUNNING, epochs=(), score=None, error=None)
                view.add_trial(self._frozen(under_way, {}))
        return view

    def _frozen(self, result: TrialResult, rungs: dict[str, Any]) -> FrozenTrial:
        value = result.score if result.state is TrialState.COMPLETE else _last_val(result)
        told = result.state in (TrialState.COMPLETE, TrialState.PRUNED)
        attributes: dict[str, Any] = {name: getattr(result, name) for name in ATTRIBUTES}
        attributes |= {f"epoch/{epoch:04d}": metrics for epoch, metrics in enumerate(result.epochs, start=1)}
        distributions: dict[str, BaseDistribution] = dict(self._distributions)
        if self._phase == "final":
            distributions = {"seed": IntDistribution(0, 2**32 - 1)}
        return create_trial(
            state=STATES[result.state],
            value=value if told else None,
            params=result.params,
            distributions=distributions,
            user_attrs=attributes,
            system_attrs=rungs,
            intermediate_values={
                epoch: metrics["val/accuracy"]
                for epoch, metrics in enumerate(result.epochs, start=1)
                if "val/accuracy" in metrics
            },
        )

    def _result(self, trial: FrozenTrial) -> TrialResult:
        state = next(ours for ours, theirs in STATES.items() if theirs is trial.state)
        epochs = sorted(name for name in trial.user_attrs if name.startswith("epoch/"))
        return TrialResult(
            study=self._plan.key,
            phase=self._phase,
            number=trial.number,
            params=trial.params,
            state=state,
            epochs=tuple(trial.user_attrs[name] for name in epochs),
            score=trial.value if state is TrialState.COMPLETE else None,
            **{name: trial.user_attrs[name] for name in ATTRIBUTES},
        )


def _write_ahead(connection: Any, _: object) -> None:
    """A commit costs 0.2 ms instead of 20. A killed process loses nothing; a power cut may cost the record its last
    epochs, which the trials' checkpoints tell it again."""
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")


def _last_val(result: TrialResult) -> float | None:
    return result.epochs[-1].get("val/accuracy") if result.epochs else None


def _distribution(dimension: FloatRange | IntRange | Choice) -> BaseDistribution:
    match dimension:
        case FloatRange():
            return FloatDistribution(dimension.low, dimension.high, log=dimension.log)
        case IntRange():
            return IntDistribution(dimension.low, dimension.high, log=dimension.log)
        case Choice():
            return CategoricalDistribution(dimension.values)


def _sampler(search: Search, seed: int) -> BaseSampler:
    if search.sampler == "random":
        return RandomSampler(seed=seed)
    return TPESampler(seed=seed, n_startup_trials=search.startup_trials, multivariate=True, constant_liar=True)


def _pruner(search: Search) -> BasePruner:
    match search.pruner:
        case Asha(min_epochs=min_epochs, reduction=reduction):
            return SuccessiveHalvingPruner(min_resource=min_epochs, reduction_factor=reduction)
        case Median(min_epochs=min_epochs):
            return MedianPruner(n_startup_trials=1, n_warmup_steps=min_epochs)
        case _:
            return NopPruner()
