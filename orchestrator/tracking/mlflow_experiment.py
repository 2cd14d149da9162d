"""The MLflow experiment of a sweep: found or made, and the runs of the sweep that it has.

People delete, rename and clean up in MLflow's page, and answers of servers get lost. So what MLflow has is asked of
MLflow, once for each opening: a run belongs to a sweep by its tags, whatever was remembered elsewhere.
"""

from __future__ import annotations

import functools
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.tracking.mlflow_client import connect, is_missing
from orchestrator.tracking.mlflow_locations import local_path, move_locations
from orchestrator.tracking.mlflow_page import experiment_tags

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, Run

SWEEP_ID = "sweep_id"
"""Tag of an experiment and of a run: which sweep it belongs to, among those that had the same name."""
REMOVED = "sptune_removed"
"""Tag of a run that was deleted by us and must not come back."""
PARENT = "mlflow.parentRunId"
DIGEST = "digest"
"""Tag of a parent run with the digest of the study that was logged last."""
UNFINISHED = ("RUNNING", "SCHEDULED")
PAGE_SIZE = 1000


@dataclass(frozen=True, slots=True)
class LoggedRun:
    """What MLflow has of a trial or a study."""

    run_id: str
    status: str
    tags: Mapping[str, str]
    has_params: bool


class MlflowExperiment:
    """The experiment of one sweep.

    Args:
        uri: tracking server or database.
        sweep: name of the sweep.
        artifacts: URI of the folder for MLflow's artifacts; None if a server chooses it.
        sweep_id: identity of the sweep in the study database. Empty: every run with the sweep's name belongs to it.
        params: searched parameters, which become columns of the experiment's table.
        prepare: called before the experiment is opened.
    """

    def __init__(
        self,
        uri: str,
        sweep: str,
        artifacts: str | None,
        *,
        sweep_id: str = "",
        params: Sequence[str] = (),
        prepare: Callable[[], None] = lambda: None,
    ) -> None:
        self.uri = uri
        self._sweep = sweep
        self._artifacts = artifacts
        self._sweep_id = sweep_id
        self._params = params
        self._prepare = prepare
        self._experiment_id: str | None = None
        self.has_answered = False
        """Whether MLflow answered a request."""
        self.changes: Counter[str] = Counter()
        """Number of runs that were `created`, `restored` or `removed` as duplicates."""

    @functools.cached_property
    def client(self) -> MlflowClient:
        """MLflow's client."""
        return connect(self.uri)

    @property
    def tags(self) -> dict[str, str]:
        """Tags of every run of the sweep."""
        return {"sweep": self._sweep} | ({SWEEP_ID: self._sweep_id} if self._sweep_id else {})

    def open(self, known: Collection[str] = ()) -> str:
        """Return the experiment's id. It is created if it is missing, and restored if a person deleted it.

        Args:
            known: ids of runs that belong to the sweep.
        """
        self._prepare()
        experiment = self._find(known)
        self.has_answered = True
        if experiment is None:
            location = f"{self._artifacts}/{self._sweep}" if self._artifacts else None
            experiment_id = str(self.client.create_experiment(self._sweep, artifact_location=location))
            experiment = self.client.get_experiment(experiment_id)

        experiment_id = str(experiment.experiment_id)
        if experiment.lifecycle_stage != "active":
            # Its name stays taken, so another of this name could not be created.
            self.client.restore_experiment(experiment_id)
        # MLflow restores all runs of an experiment, and a removal may have been interrupted.
        for run in self.client.search_runs([experiment_id], f"tags.{REMOVED} = 'true'", max_results=PAGE_SIZE):
            self.client.delete_run(run.info.run_id)
        self._follow_home(experiment)

        # The experiment of another sweep with the same name is used, but its tags stay.
        if experiment.tags.get(SWEEP_ID) in (None, self._sweep_id):
            self._set_tags(experiment)
        self._experiment_id = experiment_id
        return experiment_id

    def load(self, known: Collection[str] = ()) -> dict[str, LoggedRun]:
        """Open the experiment, and return the sweep's runs: of trials by trial id, of studies by the study's key.

        A run that a person deleted is restored. Of several runs of one trial, which lost answers leave, one is kept.

        Args:
            known: ids of runs that the study database knows. Runs of earlier versions do not name their sweep.
        """
        groups = self._groups(self.open(known), known)
        return {key: self._keep_one(runs, known) for key, runs in groups.items()}

    def find_runs(self, known: Collection[str] = ()) -> dict[str, list[str]]:
        """Return the ids of the sweep's runs by trial id or study key, deleted ones too. Nothing is changed."""
        experiment = self._find(known)
        if experiment is None:
            return {}
        groups = self._groups(str(experiment.experiment_id), known)
        return {key: [run.info.run_id for run in runs] for key, runs in groups.items()}

    def release(self) -> None:
        """Let the experiment belong to no sweep, so that a later sweep of this name takes it."""
        experiment = self._find(())
        if experiment is not None and SWEEP_ID in experiment.tags and experiment.lifecycle_stage == "active":
            self.client.delete_experiment_tag(str(experiment.experiment_id), SWEEP_ID)

    def create_run(self, name: str, tags: Mapping[str, Any], start_ms: int | None = None) -> str:
        """Create a run, and return its id.

        Args:
            start_ms: when it started, in milliseconds since 1970. By default now.
        """
        experiment_id = self._experiment_id or self.open()
        run = self.client.create_run(experiment_id, start_ms, tags=self.tags | dict(tags), run_name=name)
        self.changes["created"] += 1
        return str(run.info.run_id)

    def _find(self, known: Collection[str]) -> Experiment | None:
        """Return the experiment, deleted or not, or None."""
        from mlflow.entities import ViewType
        from mlflow.exceptions import MlflowException

        # By its tag first: a person may have renamed it.
        if self._sweep_id:
            condition = f"tags.{SWEEP_ID} = '{self._sweep_id}'"
            tagged = self.client.search_experiments(ViewType.ALL, filter_string=condition)
            if tagged:
                return min(tagged, key=lambda experiment: experiment.lifecycle_stage != "active")

        # Experiments of earlier versions have no such tag, but their runs tell.
        for run_id in [*known][:1]:
            try:
                experiment_id = self.client.get_run(run_id).info.experiment_id
                return self.client.get_experiment(experiment_id)
            except MlflowException as error:
                if not is_missing(error):
                    raise
        return self.client.get_experiment_by_name(self._sweep)

    def _follow_home(self, experiment: Experiment) -> None:
        """Correct the location of artifacts if the home was moved while its MLflow database is elsewhere.

        In the home's own database `correct_locations` has done it.
        """
        location = str(experiment.artifact_location)
        root, _, folder = location.rpartition("/")
        is_ours = self._sweep_id != "" and experiment.tags.get(SWEEP_ID) == self._sweep_id
        if self._artifacts is None or not is_ours or root == self._artifacts or not root.startswith("file:"):
            return

        # A folder that still exists may belong to another home that shares the database.
        if not Path(local_path(root)).exists():
            move_locations(self.uri, location, f"{self._artifacts}/{folder}")

    def _set_tags(self, experiment: Experiment) -> None:
        tags = experiment_tags(self._params)
        if self._sweep_id:
            tags[SWEEP_ID] = self._sweep_id
        for name, text in tags.items():
            if experiment.tags.get(name) != text:
                self.client.set_experiment_tag(str(experiment.experiment_id), name, text)

    def _groups(self, experiment_id: str, known: Collection[str]) -> dict[str, list[Run]]:
        """Return the sweep's runs, deleted ones too, by the trial id or the key of the study."""
        from mlflow.entities import ViewType

        groups: dict[str, list[Run]] = defaultdict(list)
        condition = f"tags.sweep = '{self._sweep}'"
        token: str | None = None
        while True:
            page = self.client.search_runs([experiment_id], condition, ViewType.ALL, PAGE_SIZE, page_token=token)
            for run in page:
                tags = run.data.tags
                key = tags.get("trial_id") or tags.get("study")
                if key and self._is_own(run, known):
                    groups[key].append(run)
            token = page.token
            if not token:
                return dict(groups)

    def _is_own(self, run: Run, known: Collection[str]) -> bool:
        """Whether a run belongs to this sweep, and was not deleted by us."""
        tags = run.data.tags
        is_deleted = run.info.lifecycle_stage != "active"
        if REMOVED in tags:
            return False
        if SWEEP_ID in tags:
            return not self._sweep_id or tags[SWEEP_ID] == self._sweep_id

        # Written by an earlier version. A database that people share may hold another sweep of this name.
        is_known = run.info.run_id in known or tags.get(PARENT) in known
        is_alone = not self._sweep_id or self._artifacts is not None
        return is_known or (is_alone and not is_deleted)

    def _keep_one(self, runs: list[Run], known: Collection[str]) -> LoggedRun:
        """Return the run that has most of a trial, restored if it was deleted, and remove the others."""

        def rank(run: Run) -> tuple[bool, bool, bool, int]:
            info = run.info
            is_deleted = info.lifecycle_stage != "active"
            return is_deleted, info.status in UNFINISHED, info.run_id not in known, info.start_time

        kept, *others = sorted(runs, key=rank)
        run_id = kept.info.run_id
        status = kept.info.status
        for other in others:
            if other.info.lifecycle_stage == "active":
                remove_run(self.client, other)
                self.changes["removed"] += 1

        if kept.info.lifecycle_stage != "active":
            self.client.restore_run(run_id)
            self.changes["restored"] += 1
        if self._sweep_id and kept.data.tags.get(SWEEP_ID) != self._sweep_id:
            self.client.set_tag(run_id, SWEEP_ID, self._sweep_id)
        if status == "RUNNING" and "study" in kept.data.tags:
            # Its children go on, but a parent that stays RUNNING looks like a process that died. When the study really
            # ended is logged with its summary.
            self.client.set_tag(run_id, DIGEST, "")
            self.client.set_terminated(run_id)
            kept.data.tags[DIGEST] = ""
        return LoggedRun(run_id, status, dict(kept.data.tags), bool(kept.data.params))


def remove_run(client: MlflowClient, run: Run) -> None:
    """Delete a run so that it does not come back, whatever a person restores."""
    run_id = run.info.run_id
    if run.info.lifecycle_stage != "active":
        # MLflow allows no changes to a deleted run.
        client.restore_run(run_id)
    client.set_tag(run_id, REMOVED, "true")
    if run.info.status in UNFINISHED:
        client.set_terminated(run_id, "KILLED")
    client.delete_run(run_id)
