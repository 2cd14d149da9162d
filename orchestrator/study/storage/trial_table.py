"""The trials of one phase of a study: in memory as they are in the database, written through."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.storages import RDBStorage
from optuna.study import StudyDirection

from orchestrator.spec.plan import StudyPlan
from orchestrator.study.storage.backoff import retry_while_locked
from orchestrator.study.storage.bulk_read import StoredTrial
from orchestrator.study.storage.conversion import (
    DEFAULTS,
    STATES,
    from_stored_trial,
    history_attrs,
    optuna_distributions,
    optuna_value,
    to_optuna_trial,
    trial_attrs,
)
from orchestrator.study.trial import Phase, Trial, TrialState
from trainer.metric_names import VAL_ACCURACY

SAVE_EVERY_S = 30.0
"""How often the metrics of a running trial are written."""


class TrialTable:
    """The trials of one phase of a study: in memory as they are in the database, written through.

    Nothing is written, not even the study, before the first trial.
    """

    def __init__(
        self,
        storage: RDBStorage,
        name: str,
        found: tuple[int, int, Mapping[str, Any]] | None,
        rows: Sequence[StoredTrial],
        plan: StudyPlan,
        phase: Phase,
    ) -> None:
        self._storage = storage
        self._name = name
        self._study_id: int | None
        self._copy, self._study_id, attributes = found or (1, None, {})
        self._attributes = dict(attributes)
        self._plan = plan
        self.phase: Phase = phase
        self._ids = [row.trial_id for row in rows]
        self._saved: dict[int, tuple[int, float]] = {}  # how many epochs' metrics are written, and since when
        self.trials = [from_stored_trial(row, plan.key, phase) for row in rows]

    @property
    def settings(self) -> dict[str, Any] | None:
        """What the trials so far were made under, or None before the first."""
        return self._attributes.get("settings")

    def save_settings(self, settings: dict[str, Any]) -> None:
        """Remember what the trials are made under."""
        self._save("settings", settings)

    @property
    def stop_reason(self) -> str | None:
        """Why no trial of this study is started any more."""
        return self._attributes.get("stopped")

    def save_stop_reason(self, reason: str | None) -> None:
        """Remember why no more trials are started, or that they are again."""
        self._save("stopped", reason)

    @property
    def transferred_params(self) -> list[dict[str, Any]] | None:
        """The params of other tasks that this search begins with, once they are known."""
        return self._attributes.get("transferred")

    def save_transferred_params(self, params: list[dict[str, Any]]) -> None:
        """Remember the params that the search begins with."""
        self._save("transferred", params)

    @property
    def mlflow_run(self) -> str | None:
        """Id of the study's parent run."""
        return self._attributes.get("mlflow_run")

    def save_mlflow_run(self, run_id: str) -> None:
        """Remember the study's parent run."""
        self._save("mlflow_run", run_id)

    @property
    def synced_digest(self) -> str | None:
        """What the study had come to when MLflow was last told."""
        return self._attributes.get("shown")

    def save_synced_digest(self, mark: str) -> None:
        """Remember what MLflow was told that the study has come to."""
        self._save("shown", mark)

    def synced_run(self, number: int) -> tuple[str | None, str | None]:
        """A trial's run id in MLflow, and the finished state that MLflow was told of, if it was."""
        run_id, state = self._attributes.get(f"mlflow/{number}", (None, None))
        return run_id, state

    def save_synced_run(self, number: int, run_id: str, state: TrialState | None) -> None:
        """Remember a trial's run, and that MLflow has all of it, down to its final state."""
        # An attribute of the study: Optuna lets nobody write to a finished trial.
        self._save(f"mlflow/{number}", (run_id, state.value if state else None))

    def add(self, result: Trial) -> None:
        """Write a new trial, in one piece."""
        assert result.number == len(self.trials), "trials are added in order"
        template = to_optuna_trial(result, optuna_distributions(self._plan, self.phase))
        self._ids.append(retry_while_locked(self._storage.create_new_trial, self._id(), template))
        self.trials.append(result)

    def replace(self, result: Trial) -> None:
        """Write what is new about a trial that is not finished."""
        old = self.trials[result.number]
        assert not old.state.is_finished, f"trial {old.trial_id} is finished, and finished means frozen"
        trial_id = self._ids[result.number]
        for epoch in range(len(old.epochs) + 1, len(result.epochs) + 1):
            if (value := result.epochs[epoch - 1].get(VAL_ACCURACY)) is not None:
                retry_while_locked(self._storage.set_trial_intermediate_value, trial_id, epoch, value)
        # Should the driver die before its history is written, the trial's checkpoint tells it again.
        saved, when = self._saved.setdefault(result.number, (len(old.epochs), time.monotonic()))
        due = result.state is not TrialState.RUNNING or time.monotonic() - when > SAVE_EVERY_S
        if len(result.epochs) > saved and due:
            for name, value in history_attrs(result).items():
                retry_while_locked(self._storage.set_trial_user_attr, trial_id, name, value)
            self._saved[result.number] = len(result.epochs), time.monotonic()
        was, now = DEFAULTS | trial_attrs(old), DEFAULTS | trial_attrs(result)
        for name, value in now.items():
            if value != was[name]:
                retry_while_locked(self._storage.set_trial_user_attr, trial_id, name, value)
        if result.state is not old.state:
            value = optuna_value(result)
            values = None if value is None else [value]
            retry_while_locked(self._storage.set_trial_state_values, trial_id, STATES[result.state], values)
        self.trials[result.number] = result
        if result.state.is_finished:
            self._saved.pop(result.number, None)

    def rewrite(self, trials: Sequence[Trial], tracked: Mapping[int, tuple[str | None, str | None]]) -> None:
        """Put other trials in the place of all that are there, finished ones too; whole or not at all.

        Optuna freezes finished trials and a choice's values, so this is a new Optuna study that takes the old one's
        place once it is whole.
        """
        found = {study.study_name: study._study_id for study in self._storage.get_all_studies()}
        old_id, self._copy = self._id(), self._copy + 1
        name = f"{self._name} ({self._copy})"
        if name in found:  # half of one that was interrupted
            self._storage.delete_study(found[name])
        new_id = self._storage.create_new_study([StudyDirection.MAXIMIZE], name)
        started = [(t.datetime_start, t.datetime_complete) for t in self._storage.get_all_trials(old_id)]
        self._ids = []
        for trial, (start, complete) in zip(trials, started, strict=True):
            template = to_optuna_trial(trial, optuna_distributions(self._plan, self.phase))
            template.datetime_start, template.datetime_complete = start, complete if trial.state.is_finished else None
            self._ids.append(self._storage.create_new_trial(new_id, template))
        kept = {name: value for name, value in self._attributes.items() if not name.startswith("mlflow/")}
        self._attributes = kept | {f"mlflow/{number}": place for number, place in tracked.items() if place[0]}
        for name, value in self._attributes.items():
            self._storage.set_study_user_attr(new_id, name, value)
        self._storage.set_study_user_attr(new_id, "replaces", old_id)  # from here on it is the study
        self._study_id, self.trials[:] = new_id, trials
        self._storage.delete_study(old_id)

    def delete(self) -> None:
        """Delete the study from the record, with what an interrupted `rewrite` left of it: the oldest first."""
        copies = re.compile(rf"{re.escape(self._name)}( \(\d+\))?")
        for study in sorted(self._storage.get_all_studies(), key=lambda study: study._study_id):
            if copies.fullmatch(study.study_name):
                self._storage.delete_study(study._study_id)
        self._study_id, self._attributes, self.trials[:], self._ids = None, {}, [], []

    def _save(self, name: str, value: Any) -> None:
        retry_while_locked(self._storage.set_study_user_attr, self._id(), name, value)
        self._attributes[name] = value

    def _id(self) -> int:
        if self._study_id is None:
            self._study_id = retry_while_locked(self._storage.create_new_study, [StudyDirection.MAXIMIZE], self._name)
        return self._study_id
