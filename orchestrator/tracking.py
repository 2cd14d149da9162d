"""The one door to MLflow. The record is the truth; MLflow is made equal to it, trial by trial.

`sync` takes a trial as it is now and returns at once; a thread does what MLflow still lacks of it: the run, the
epochs, the artifacts, the end. Doing it again changes nothing. While the server is away the thread tries again, and
what is not told when the driver ends is told at the next launch: the record says what was.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from orchestrator.plan import StudyPlan, size_text
from orchestrator.results import TrialResult, TrialState
from trainer.storage import read_bytes

if TYPE_CHECKING:
    from mlflow import MlflowClient

ARTIFACTS = ("prototypes.safetensors", "prompt.safetensors", "predictions.parquet", "card.json")
RUN_STATUS = {
    TrialState.WAITING: "SCHEDULED",
    TrialState.RUNNING: "RUNNING",
    TrialState.COMPLETE: "FINISHED",
    TrialState.PRUNED: "KILLED",
    TrialState.FAILED: "FAILED",
}


class StudyLedger(Protocol):
    """Where the run ids of a study and its trials are kept; `search.StudyRecord` is one."""

    @property
    def mlflow_run(self) -> str | None:
        """Id of the study's parent run."""

    def save_mlflow_run(self, run_id: str) -> None:
        """Remember the parent run."""

    def tracked(self, number: int) -> tuple[str | None, str | None]:
        """A trial's run id, and the finished state that was told."""

    def save_tracked(self, number: int, run_id: str, state: TrialState | None) -> None:
        """Remember a trial's run, and the finished state once all of it is told."""


class Tracker(Protocol):
    """Shows a sweep to people while it runs."""

    def open_study(self, plan: StudyPlan, ledger: StudyLedger) -> None:
        """Make a study known before its trials."""

    def sync(self, trial: TrialResult, ledger: StudyLedger) -> None:
        """Show a trial as it is now; whatever was shown of it before is not shown twice."""

    def close(self) -> int:
        """Finish what can be finished; the number of trials that could not be shown."""


class MemoryTracker:
    """Keeps what it is shown: for tests, and for sweeps that nobody browses."""

    def __init__(self) -> None:
        self.studies: list[StudyPlan] = []
        self.runs: dict[str, TrialResult] = {}

    def open_study(self, plan: StudyPlan, ledger: StudyLedger) -> None:
        """Keep the study."""
        self.studies.append(plan)

    def sync(self, trial: TrialResult, ledger: StudyLedger) -> None:
        """Keep the trial."""
        self.runs[trial.trial_id] = trial

    def close(self) -> int:
        """Nothing is left."""
        return 0


class MlflowTracker:
    """One experiment a sweep, a parent run a study, a child run a trial.

    Args:
        uri: tracking server or database.
        sweep: name of the experiment.
        trials: folder (path or URI) with a folder a trial, where its artifacts are.
        artifacts: where MLflow keeps artifacts, if it is no server that decides this itself.
        patience_s: how long `close` goes on trying when MLflow does not answer.
    """

    def __init__(self, uri: str, sweep: str, trials: str, artifacts: str | None, patience_s: float = 30.0) -> None:
        self._uri = uri
        self._sweep = sweep
        self._trials = trials
        self._artifacts = artifacts
        self._patience_s = patience_s
        self._plans: dict[str, tuple[StudyPlan, StudyLedger]] = {}
        self._pending: dict[str, tuple[TrialResult, StudyLedger]] = {}
        self._told: dict[str, int] = {}
        self._status: dict[str, str] = {}
        self._changed = threading.Condition()
        self._closing_since: float | None = None
        self._client: MlflowClient | None = None
        self._experiment = ""
        self._thread: threading.Thread | None = None
        self.problem: str | None = None
        """Why MLflow does not answer at present."""

    def open_study(self, plan: StudyPlan, ledger: StudyLedger) -> None:
        """The parent run is made with the study's first trial."""
        self._plans[plan.key] = plan, ledger

    def sync(self, trial: TrialResult, ledger: StudyLedger) -> None:
        """Have the thread tell MLflow what it lacks of a trial; a later state replaces one not yet told."""
        if ledger.tracked(trial.number)[1] is not None:
            return
        with self._changed:
            self._pending.pop(trial.trial_id, None)
            self._pending[trial.trial_id] = trial, ledger
            self._changed.notify()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
            self._thread.start()

    def close(self) -> int:
        """Tell what is left, trying for `patience_s` if MLflow does not answer; the number of trials not told."""
        with self._changed:
            self._closing_since = time.monotonic()
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()
        return len(self._pending)

    def _work(self) -> None:
        delay_s = 0.5
        while True:
            with self._changed:
                while not self._pending:
                    if self._closing_since is not None:
                        return
                    self._changed.wait()
                trial, ledger = next(iter(self._pending.values()))
            try:
                self._tell(trial, ledger)
            except Exception as error:  # whatever a server, a proxy or a disk can answer: said, and tried again
                self.problem = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
                with self._changed:
                    if self._closing_since and time.monotonic() - self._closing_since > self._patience_s:
                        return
                    self._changed.wait(delay_s)
                delay_s = min(2 * delay_s, 15.0)
                continue
            self.problem, delay_s = None, 0.5
            with self._changed:
                if self._pending[trial.trial_id][0] is trial:
                    del self._pending[trial.trial_id]

    def _tell(self, trial: TrialResult, ledger: StudyLedger) -> None:
        """Make MLflow's run equal the trial."""
        from mlflow.entities import Metric, RunTag

        client = self._connect()
        run_id = self._run_of(client, trial, ledger)
        told = self._told[trial.trial_id]
        now_ms = int(time.time() * 1000)
        metrics = [
            Metric(name, value, now_ms, epoch)
            for epoch, values in enumerate(trial.epochs[told:], start=told + 1)
            for name, value in values.items()
        ]
        tags = [RunTag("state", trial.state.value), RunTag("attempt", str(trial.attempt))]
        if trial.sentence:
            tags += [RunTag("error", trial.sentence), RunTag("cause", trial.cause.value if trial.cause else "")]
        for start in range(0, len(metrics), 1000):
            client.log_batch(run_id, metrics[start : start + 1000])
        client.log_batch(run_id, tags=tags)
        self._told[trial.trial_id] = max(told, len(trial.epochs))
        if trial.state.is_finished:
            self._log_artifacts(client, run_id, trial)
            client.set_terminated(run_id, RUN_STATUS[trial.state])
            ledger.save_tracked(trial.number, run_id, trial.state)
        elif self._status.get(trial.trial_id) != RUN_STATUS[trial.state]:
            client.update_run(run_id, status=RUN_STATUS[trial.state])
            self._status[trial.trial_id] = RUN_STATUS[trial.state]

    def _log_artifacts(self, client: MlflowClient, run_id: str, trial: TrialResult) -> None:
        if trial.state is TrialState.FAILED:
            client.log_text(run_id, str(trial.error), "error.txt")
        for name in ARTIFACTS:
            if (data := read_bytes(f"{self._trials}/{trial.trial_id}/{name}")) is not None:
                with tempfile.TemporaryDirectory() as folder:
                    file = Path(folder, name)
                    file.write_bytes(data)
                    client.log_artifact(run_id, str(file))

    def _run_of(self, client: MlflowClient, trial: TrialResult, ledger: StudyLedger) -> str:
        """The trial's run: the one in the ledger, or one that an earlier driver made and died, or a new one."""
        from mlflow.entities import Param

        run_id, _ = ledger.tracked(trial.number)
        if run_id is None:
            may_have_one = trial.attempt > 1 or trial.state.is_finished
            run_id = self._find(client, "trial_id", trial.trial_id) if may_have_one else None
            if run_id is None:
                tags = self._tags(self._plans[trial.study][0]) | {
                    "mlflow.parentRunId": self._parent(client, trial.study),
                    "trial_id": trial.trial_id,
                    "phase": trial.phase,
                    "seed": str(trial.config["seed"]),
                    "state": trial.state.value,
                }
                name = f"trial {trial.number}" if trial.phase == "search" else f"final seed {trial.config['seed']}"
                run_id = client.create_run(self._experiment, tags=tags, run_name=name).info.run_id
            ledger.save_tracked(trial.number, run_id, None)
            params = [Param(key, str(value)) for key, value in trial.config.items()]
            client.log_batch(run_id, params=params)
        if trial.trial_id not in self._told:
            steps = [metric.step for metric in client.get_metric_history(run_id, "train/loss")]
            self._told[trial.trial_id] = max(steps, default=0)
        return run_id

    def _parent(self, client: MlflowClient, study: str) -> str:
        plan, ledger = self._plans[study]
        if ledger.mlflow_run is None:
            run_id = self._find(client, "study", study)
            if run_id is None:
                tags = self._tags(plan) | {"phase": "study", "study": study}
                run_id = client.create_run(self._experiment, tags=tags, run_name=study).info.run_id
                client.set_terminated(run_id)
            ledger.save_mlflow_run(run_id)
        run_id = ledger.mlflow_run
        assert run_id is not None, "just saved"
        return run_id

    def _tags(self, plan: StudyPlan) -> dict[str, Any]:
        return {
            "sweep": self._sweep,
            "task": plan.task,
            "method": plan.method,
            "backbone": plan.backbone,
            "train_size": size_text(plan.train_size),
        }

    def _find(self, client: MlflowClient, tag: str, value: str) -> str | None:
        runs = client.search_runs([self._experiment], f"tags.{tag} = '{value}'", max_results=1)
        return runs[0].info.run_id if runs else None

    def _connect(self) -> MlflowClient:
        """The client, with the sweep's experiment there."""
        if self._client is None:
            os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
            os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # trying again is this thread's business
            os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
            from mlflow import MlflowClient

            logging.getLogger("mlflow").setLevel(logging.WARNING)
            logging.getLogger("alembic").setLevel(logging.WARNING)
            client = MlflowClient(tracking_uri=self._uri)
            experiment = client.get_experiment_by_name(self._sweep)
            self._experiment = (
                experiment.experiment_id
                if experiment is not None
                else client.create_experiment(
                    self._sweep, artifact_location=self._artifacts and f"{self._artifacts}/{self._sweep}"
                )
            )
            self._client = client
        return self._client


def forget_runs(uri: str, run_ids: list[str]) -> None:
    """Delete runs and their artifacts from MLflow; `mlflow gc` frees what is left of them in its database."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    client = MlflowClient(tracking_uri=uri)
    for run_id in run_ids:
        try:
            run = client.get_run(run_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                continue  # it is gone already
            raise
        with contextlib.suppress(MlflowException, FileNotFoundError):  # it may have no artifacts
            get_artifact_repository(run.info.artifact_uri, tracking_uri=uri).delete_artifacts()
        client.delete_run(run_id)
