"""MLflow's runs of trials and studies: create them, log to them, delete them."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import logging
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.report.study_page import render_study_page, study_summary_metrics
from orchestrator.spec.labels import SETTING, study_label, varying_fields
from orchestrator.spec.plan import StudyPlan, format_train_size
from orchestrator.study.study import Study
from orchestrator.study.trial import Trial, TrialState
from orchestrator.tracking.mlflow_pyfunc import MODEL_FILES
from orchestrator.tracking.mlflow_registry import save_model
from trainer import run_folder
from trainer.data.task_store import read_card
from trainer.metric_names import TRAIN_LOSS, metrics_by_epoch
from trainer.storage.integrity import DamagedFile, read_checked

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)
ARTIFACTS = (
    run_folder.PROTOTYPES,
    run_folder.PROMPT,
    run_folder.PREDICTIONS,
    run_folder.CARD,
    run_folder.LEARNING_CURVE_PLOT,
    run_folder.CONFUSION_PLOT,
    run_folder.PROTOTYPES_PLOT,
)
RUN_STATUS = {
    TrialState.WAITING: "SCHEDULED",
    TrialState.RUNNING: "RUNNING",
    TrialState.COMPLETE: "FINISHED",
    TrialState.PRUNED: "KILLED",
    TrialState.FAILED: "FAILED",
}
SHARED_VIEW = "mlflow.sharedViewState."
"""Prefix of the tags in which MLflow stores shared views of an experiment."""
VIEW = "sptune"
"""Key of our shared view."""
MAX_METRICS_PER_BATCH = 1000
"""Most metrics that MLflow accepts in one request."""
DESCRIPTION_TAG = "mlflow.note.content"
"""Tag that MLflow shows as the description of a run, in Markdown."""


class MlflowRuns:
    """The runs of one sweep's experiment.

    Args:
        uri: tracking server or database.
        sweep: name of the experiment.
        trials: folder (path or URI) that holds the trials with their artifacts, one folder each.
        artifacts: URI of the folder for MLflow's artifacts; None if a server chooses it.
        data_root: the task store. Its cards describe the images that a study learns from.
        params: searched parameters, which become columns of the experiment's table.
    """

    def __init__(
        self, uri: str, sweep: str, trials: str, artifacts: str | None, data_root: str, params: Sequence[str] = ()
    ) -> None:
        self._uri = uri
        self._sweep = sweep
        self._trials = trials
        self._artifacts = artifacts
        self._data_root = data_root
        self._params = params

    def open(self) -> None:
        """Connect to MLflow, and create the experiment if it is missing."""
        _ = self._experiment

    def find(self, tag: str, value: str) -> str | None:
        """Return the id of a run with this tag, or None."""
        runs = self._client.search_runs([self._experiment], f"tags.{tag} = '{value}'", max_results=1)
        return runs[0].info.run_id if runs else None

    def create_study(self, study: Study) -> str:
        """Create the parent run of a study, and return its id."""
        tags = self._tags(study.plan) | {
            "phase": "study",
            "study": study.plan.key,
            DESCRIPTION_TAG: render_study_page(study),
        }
        named, _ = varying_fields(study.sweep_plan.studies, SETTING)
        name = " ".join(study_label(study.plan, ["task", "method", *named]))

        run = self._client.create_run(self._experiment, tags=tags, run_name=name)
        # Its children go on, but a parent that stays RUNNING looks like a process that died.
        self._client.set_terminated(run.info.run_id)
        return str(run.info.run_id)

    def create_trial(self, study: Study, trial: Trial, parent: str) -> str:
        """Create the run of a trial, and return its id."""
        tags = self._tags(study.plan) | {
            "mlflow.parentRunId": parent,
            "trial_id": trial.trial_id,
            "phase": trial.phase,
            "seed": str(trial.config.seed),
            "state": trial.state.value,
        }
        name = f"trial {trial.number}" if trial.phase == "search" else f"final seed {trial.config.seed}"
        return str(self._client.create_run(self._experiment, tags=tags, run_name=name).info.run_id)

    def log_params(self, run_id: str, trial: Trial) -> None:
        """Log all fields of a trial's TrainConfig."""
        from mlflow.entities import Param

        config = dataclasses.asdict(trial.config)
        self._client.log_batch(run_id, params=[Param(key, str(value)) for key, value in config.items()])

    def num_logged_epochs(self, run_id: str) -> int:
        """Return how many epochs a run has."""
        return max((metric.step for metric in self._client.get_metric_history(run_id, TRAIN_LOSS)), default=0)

    def log_epochs(self, run_id: str, trial: Trial, num_logged: int) -> None:
        """Log the metrics of a trial's epochs after the first `num_logged`, and the trial's tags.

        Values before the first step are logged at step 0.
        """
        # Epoch 0 is reported with epoch 1: it is logged if that one is.
        by_epoch = {
            epoch: metrics for epoch, metrics in metrics_by_epoch(trial.epochs).items() if max(epoch, 1) > num_logged
        }
        tags = {"state": trial.state.value, "attempt": str(trial.attempt)}

        # Provenance does not change from epoch to epoch. `correct` is a long code, of use only to our own statistics.
        if num_logged == 0 or trial.state is not TrialState.RUNNING:
            tags |= {name: text for name, text in trial.provenance.items() if name != "correct"}

        # Empty texts in a later attempt remove the error of the attempt before.
        if trial.cause is not None or trial.attempt > 1:
            tags |= {"error": trial.error_summary, "cause": trial.cause.value if trial.cause else ""}

        self._log(run_id, by_epoch, tags)

    def log_status(self, run_id: str, state: TrialState) -> None:
        """Log whether an unfinished trial runs or waits."""
        self._client.update_run(run_id, status=RUN_STATUS[state])

    def log_outcome(self, run_id: str, trial: Trial) -> None:
        """Log the outcome of a finished trial: last and best metrics, artifacts, and the model of a final trial."""
        if trial.state is TrialState.FAILED:
            self._client.log_text(run_id, str(trial.error), "error.txt")
        else:
            self._log(run_id, {len(trial.epochs): outcome_metrics(trial)}, {})

        folder = f"{self._trials}/{trial.trial_id}"
        with tempfile.TemporaryDirectory() as scratch:
            for name in ARTIFACTS:
                data = None
                try:
                    data = read_checked(f"{folder}/{name}", bytes)
                except DamagedFile as error:
                    log.warning("%s It is not logged to MLflow.", error)

                # A pruned or failed trial has only some of them.
                if data is not None:
                    Path(scratch, name).write_bytes(data)

            if trial.phase == "final" and all(Path(scratch, name).exists() for name in MODEL_FILES):
                save_model(Path(scratch))
            self._client.log_artifacts(run_id, scratch)

        self._client.set_terminated(run_id, RUN_STATUS[trial.state])

    def log_study(self, run_id: str, study: Study) -> None:
        """Log a study's description, its summary metrics, the images it learns from, and its figures."""
        from orchestrator.figures.draw import save_figure, study_figures
        from orchestrator.study.importance import param_importances

        self._log(run_id, {0: study_summary_metrics(study)}, {DESCRIPTION_TAG: render_study_page(study)})
        self._log_dataset(run_id, study.plan)
        with tempfile.TemporaryDirectory() as scratch:
            for name, figure in study_figures(study, param_importances):
                save_figure(figure, Path(scratch), name)
            self._client.log_artifacts(run_id, scratch, "figures")

    def _log_dataset(self, run_id: str, plan: StudyPlan) -> None:
        """Log the card of a study's task as MLflow's dataset, once."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        card = read_card(self._data_root, plan.task)
        inputs = self._client.get_run(run_id).inputs
        has_dataset = inputs is not None and inputs.dataset_inputs
        if card is None or has_dataset:
            return

        source = json.dumps({"source": card.source, "protocol": card.protocol, "importer": card.importer})
        part = {"train_size": format_train_size(plan.train_size), "val_size": plan.val_size, "draw": plan.draw}
        profile = json.dumps({**card.counts, "classes": len(card.class_names), **part})
        dataset = Dataset(card.task, card.fingerprint, "sptune", source, profile=profile)
        self._client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "tuning")])])

    def _tags(self, plan: StudyPlan) -> dict[str, Any]:
        return {
            "sweep": self._sweep,
            "task": plan.task,
            "group": plan.group,
            "method": plan.method,
            "backbone": plan.backbone,
            "train_size": format_train_size(plan.train_size),
            "val_size": plan.val_size,
            "draw": str(plan.draw),
        }

    def _log(self, run_id: str, by_step: Mapping[int, Mapping[str, float]], tags: Mapping[str, str]) -> None:
        """Log metrics by their step, then tags."""
        from mlflow.entities import Metric, RunTag

        now_ms = int(time.time() * 1000)
        batch: list[Metric] = []
        for step, values in by_step.items():
            metrics = [Metric(name, value, now_ms, step) for name, value in values.items()]
            # An epoch is never divided: `num_logged_epochs` takes an epoch with a train/loss for a whole one.
            if len(batch) + len(metrics) > MAX_METRICS_PER_BATCH:
                self._client.log_batch(run_id, batch)
                batch = []
            batch += metrics

        if batch:
            self._client.log_batch(run_id, batch)
        if tags:
            self._client.log_batch(run_id, tags=[RunTag(name, text) for name, text in tags.items()])

    @functools.cached_property
    def _client(self) -> MlflowClient:
        # The tracker retries by itself, and must notice soon that the driver wants to end.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        from mlflow import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.WARNING)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        return MlflowClient(tracking_uri=self._uri)

    @functools.cached_property
    def _experiment(self) -> str:
        """Id of the sweep's experiment, which is created if it is missing."""
        experiment = self._client.get_experiment_by_name(self._sweep)
        if experiment is not None:
            experiment_id = str(experiment.experiment_id)
        else:
            location = f"{self._artifacts}/{self._sweep}" if self._artifacts else None
            experiment_id = str(self._client.create_experiment(self._sweep, artifact_location=location))

        # Chooses the kind of table that MLflow shows first.
        self._client.set_experiment_tag(experiment_id, "mlflow.experimentKind", "custom_model_development")
        self._client.set_experiment_tag(experiment_id, f"{SHARED_VIEW}{VIEW}", json.dumps(_view(self._params)))
        return experiment_id


def outcome_metrics(trial: Trial) -> dict[str, float]:
    """Return a finished trial's metrics: each last value as `final/...`, each best value over epochs as `best/...`.

    MLflow's tables show a metric's last value, so both have names of their own. Final trials have no best values: they
    are scored once.
    """
    names = [name for name in trial.last_metrics if name.startswith(("val/", "test/", TRAIN_LOSS))]
    metrics = {f"final/{name}": trial.last_metrics[name] for name in names}

    if trial.phase == "search":
        for name in names:
            values = [epoch[name] for epoch in trial.epochs if name in epoch]
            metrics[f"best/{name}"] = min(values) if name == TRAIN_LOSS else max(values)
    return metrics


def _view(params: Sequence[str]) -> dict[str, Any]:
    """Return a view of an experiment's table with our columns, in the form that MLflow's "Share view" stores."""
    columns = ["tags.`state`", "metrics.`final/val/accuracy`", "metrics.`final/test/accuracy`"]
    return {
        "searchFilter": "",
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": [*columns, *(f"params.`{name}`" for name in params)],
        "runsExpanded": {},
        "runsPinned": [],
        "runsHidden": [],
    }


def view_paths(uri: str) -> dict[str, str]:
    """Return the path of each sweep's table with our columns, to be appended to a server's address."""
    from mlflow import MlflowClient

    experiments = MlflowClient(tracking_uri=uri).search_experiments()
    # MLflow returns the newest first.
    return {
        experiment.name: f"/#/experiments/{experiment.experiment_id}/runs?viewStateShareKey={VIEW}"
        for experiment in reversed(experiments)
        if f"{SHARED_VIEW}{VIEW}" in experiment.tags
    }


def delete_runs(uri: str, run_ids: list[str]) -> None:
    """Delete runs and their artifacts. The rows in MLflow's database stay until `mlflow gc`."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    client = MlflowClient(tracking_uri=uri)
    for run_id in run_ids:
        try:
            run = client.get_run(run_id)
        except MlflowException as error:
            # A deletion that was interrupted is repeated as a whole.
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                continue
            raise

        # A run may have no artifacts.
        with contextlib.suppress(MlflowException, FileNotFoundError):
            get_artifact_repository(run.info.artifact_uri, tracking_uri=uri).delete_artifacts()
        client.delete_run(run_id)
