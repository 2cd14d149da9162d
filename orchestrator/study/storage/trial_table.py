"""Trials of one phase of a study, kept in memory and written through to the database."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from optuna.storages import RDBStorage
from optuna.study import StudyDirection

from orchestrator.spec.plan import StudyPlan
from orchestrator.study.storage.backoff import retry_while_locked
from orchestrator.study.storage.bulk_read import StoredTrial
from orchestrator.study.storage.bulk_write import save_values
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
from orchestrator.study.storage.optuna_ids import study_id
from orchestrator.study.storage.stored_names import STUDY_ATTRS, SYNCED_RUN_PREFIX, copy_name, split_copy_name
from orchestrator.study.trial import Phase, Trial, TrialState
from trainer.metric_names import VAL_ACCURACY

SAVE_EVERY_S = 30.0
"""Seconds between two writes of a running trial's metrics."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredTable:
    """The Optuna study that holds a table."""

    copy: int
    """Number of the copy, from 1. `TrialTable.rewrite` makes the next one."""
    study_id: int
    attributes: Mapping[str, Any]
    """User attributes."""


class TrialTable:
    """Trials of one phase of a study, kept in memory and written through to the database.

    Nothing is written before the first trial, not even the Optuna study.

    Args:
        name: of the Optuna study, without the number of the copy.
        stored: None if the table is not in the database yet.
        rows: the stored trials, ordered by number.
    """

    def __init__(
        self,
        storage: RDBStorage,
        name: str,
        stored: StoredTable | None,
        rows: Sequence[StoredTrial],
        plan: StudyPlan,
        phase: Phase,
    ) -> None:
        self._storage = storage
        self._name = name
        self._copy = 1
        self._study_id: int | None = None
        self._attributes: dict[str, Any] = {}
        if stored is not None:
            self._copy = stored.copy
            self._study_id = stored.study_id
            self._attributes = dict(stored.attributes)

        self._plan = plan
        self.phase: Phase = phase
        self._ids = [row.trial_id for row in rows]
        # By trial number: for how many epochs the metrics are written, and the time of that write.
        self._saved: dict[int, tuple[int, float]] = {}
        self.trials = [from_stored_trial(row, plan.key, phase) for row in rows]

    @property
    def settings(self) -> dict[str, Any] | None:
        """The settings that all trials were run with, or None before the first trial."""
        return self._load("settings")

    def save_settings(self, settings: dict[str, Any]) -> None:
        """Save the settings that the trials are run with."""
        self._save("settings", settings)

    @property
    def stop_reason(self) -> str | None:
        """The reason why no more trials of this study are started, or None."""
        return self._load("stop_reason")

    def save_stop_reason(self, reason: str | None) -> None:
        """Save why no more trials are started; None allows new ones."""
        self._save("stop_reason", reason)

    @property
    def transferred_params(self) -> list[dict[str, Any]] | None:
        """Params of other tasks that this search begins with, or None before they are chosen."""
        return self._load("transferred_params")

    def save_transferred_params(self, params: list[dict[str, Any]]) -> None:
        """Save the params of other tasks that the search begins with."""
        self._save("transferred_params", params)

    @property
    def mlflow_run(self) -> str | None:
        """Id of the study's parent run in MLflow, or None."""
        return self._load("mlflow_run")

    def save_mlflow_run(self, run_id: str) -> None:
        """Save the id of the study's parent run."""
        self._save("mlflow_run", run_id)

    @property
    def synced_digest(self) -> str | None:
        """Digest of the study when its summary was last logged to MLflow, or None."""
        return self._load("synced_digest")

    def save_synced_digest(self, mark: str) -> None:
        """Save the digest of the study whose summary was logged to MLflow."""
        self._save("synced_digest", mark)

    def synced_run(self, number: int) -> tuple[str | None, str | None]:
        """Return a trial's run id in MLflow, and its finished state if MLflow has all of the trial."""
        run_id, state = self._attributes.get(f"{SYNCED_RUN_PREFIX}{number}", (None, None))
        return run_id, state

    def save_synced_run(self, number: int, run_id: str, state: TrialState | None) -> None:
        """Save a trial's run id, and the finished state once MLflow has all of the trial."""
        # An attribute of the study, because Optuna does not allow writes to a finished trial.
        self._save_attribute(f"{SYNCED_RUN_PREFIX}{number}", (run_id, state.value if state else None))

    def has_reported(self, number: int) -> bool:
        """Whether the database has the val accuracy of any epoch of a trial. It is written at once."""
        return bool(self._storage.get_trial(self._ids[number]).intermediate_values)

    def times(self, number: int) -> tuple[datetime | None, datetime | None]:
        """Return when a trial started and when it finished, in local time; None for what has not happened."""
        stored = self._storage.get_trial(self._ids[number])
        return stored.datetime_start, stored.datetime_complete

    def add(self, trial: Trial) -> None:
        """Write a new trial in one step."""
        assert trial.number == len(self.trials), "trials are added in order"

        template = to_optuna_trial(trial, optuna_distributions(self._plan, self.phase))
        self._ids.append(retry_while_locked(self._storage.create_new_trial, self._get_or_create_study(), template))
        self.trials.append(trial)

    def replace(self, trial: Trial) -> None:
        """Write the changes of a trial that is not finished."""
        old = self.trials[trial.number]
        assert not old.state.is_finished, f"trial {old.trial_id} is finished, and finished means frozen"
        trial_id = self._ids[trial.number]

        accuracies = {
            epoch: metrics[VAL_ACCURACY]
            for epoch, metrics in enumerate(trial.epochs, start=1)
            if epoch > len(old.epochs) and VAL_ACCURACY in metrics
        }
        if accuracies:
            retry_while_locked(save_values, self._storage, trial_id, accuracies)

        # The history is large, so it is not written at every epoch. If the driver dies before the write, the missing
        # epochs are reported again from the trial's checkpoint.
        num_saved, saved_at = self._saved.setdefault(trial.number, (len(old.epochs), time.monotonic()))
        is_due = trial.state is not TrialState.RUNNING or time.monotonic() - saved_at > SAVE_EVERY_S
        # The first epoch of a search trial is written at once: by its accuracy above or, if it is not scored, here.
        is_first = num_saved == 0 and self.phase == "search"
        is_unseen = is_first and not any(VAL_ACCURACY in metrics for metrics in trial.epochs)
        if len(trial.epochs) > num_saved and (is_due or is_unseen):
            for name, value in history_attrs(trial).items():
                retry_while_locked(self._storage.set_trial_user_attr, trial_id, name, value)
            self._saved[trial.number] = len(trial.epochs), time.monotonic()

        old_attributes = DEFAULTS | trial_attrs(old)
        new_attributes = DEFAULTS | trial_attrs(trial)
        for name, value in new_attributes.items():
            if value != old_attributes[name]:
                retry_while_locked(self._storage.set_trial_user_attr, trial_id, name, value)

        # The state comes last: Optuna freezes a finished trial.
        if trial.state is not old.state:
            score = optuna_value(trial)
            values = None if score is None else [score]
            retry_while_locked(self._storage.set_trial_state_values, trial_id, STATES[trial.state], values)

        self.trials[trial.number] = trial
        if trial.state.is_finished:
            self._saved.pop(trial.number, None)

    def rewrite(self, trials: Sequence[Trial], synced_runs: Mapping[int, tuple[str | None, str | None]]) -> None:
        """Replace all trials, including finished ones, completely or not at all.

        Optuna freezes finished trials and the values of a choice. The new trials therefore go into a new Optuna
        study, which replaces the old one once it is complete.

        Args:
            synced_runs: run id and finished state of each trial in MLflow, by the trial's number.
        """
        studies = {study.study_name: study_id(study) for study in self._storage.get_all_studies()}
        old_id = self._get_or_create_study()
        self._copy += 1
        name = copy_name(self._name, self._copy)

        # An earlier rewrite was interrupted and left an incomplete copy.
        if name in studies:
            self._storage.delete_study(studies[name])

        new_id = self._storage.create_new_study([StudyDirection.MAXIMIZE], name)
        old_trials = self._storage.get_all_trials(old_id)
        self._ids = []
        for trial, old in zip(trials, old_trials, strict=True):
            template = to_optuna_trial(trial, optuna_distributions(self._plan, self.phase))
            template.datetime_start = old.datetime_start
            template.datetime_complete = old.datetime_complete if trial.state.is_finished else None
            self._ids.append(self._storage.create_new_trial(new_id, template))

        kept = {key: value for key, value in self._attributes.items() if not key.startswith(SYNCED_RUN_PREFIX)}
        runs = {f"{SYNCED_RUN_PREFIX}{number}": run for number, run in synced_runs.items() if run[0]}
        self._attributes = kept | runs
        for key, value in self._attributes.items():
            self._storage.set_study_user_attr(new_id, key, value)

        # From here on, the new study is the table.
        self._storage.set_study_user_attr(new_id, STUDY_ATTRS["replaces"], old_id)
        self._study_id = new_id
        self.trials[:] = trials
        self._storage.delete_study(old_id)

    def delete(self) -> None:
        """Delete the table from the database, with all that an interrupted `rewrite` left of it."""
        # The oldest study goes first: if this is interrupted, an older copy does not become the table again.
        for study in sorted(self._storage.get_all_studies(), key=study_id):
            name, _ = split_copy_name(study.study_name)
            if name == self._name:
                self._storage.delete_study(study_id(study))

        self._study_id = None
        self._attributes = {}
        self._ids = []
        self.trials.clear()

    def _load(self, name: str) -> Any | None:
        return self._attributes.get(STUDY_ATTRS[name])

    def _save(self, name: str, value: Any) -> None:
        self._save_attribute(STUDY_ATTRS[name], value)

    def _save_attribute(self, key: str, value: Any) -> None:
        retry_while_locked(self._storage.set_study_user_attr, self._get_or_create_study(), key, value)
        self._attributes[key] = value

    def _get_or_create_study(self) -> int:
        if self._study_id is None:
            self._study_id = retry_while_locked(self._storage.create_new_study, [StudyDirection.MAXIMIZE], self._name)

        return self._study_id
