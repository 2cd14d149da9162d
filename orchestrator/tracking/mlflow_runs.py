"""The door to MLflow's runs: what those of trials and studies are made of, and how they are forgotten."""

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
from orchestrator.spec.labels import study_label, varying_fields
from orchestrator.spec.plan import StudyPlan, format_train_size
from orchestrator.study.study import Study
from orchestrator.study.trial import Trial, TrialState
from orchestrator.tracking.mlflow_pyfunc import MODEL_FILES
from orchestrator.tracking.mlflow_registry import save_model
from trainer import run_folder
from trainer.data.task_store import read_card
from trainer.metric_names import TRAIN_LOSS
from trainer.storage.files import read_bytes

if TYPE_CHECKING:
    from mlflow import MlflowClient

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
SHARED_VIEW, VIEW = "mlflow.sharedViewState.", "sptune"
"""The tag with which MLflow keeps a view that was shared, and the key of ours."""
MAX_METRICS_PER_BATCH = 1000
"""What MLflow takes at once."""
DESCRIPTION_TAG = "mlflow.note.content"
"""The tag that MLflow shows as a run's description, in Markdown."""


class MlflowRuns:
    """The runs of one sweep's experiment.

    Args:
        uri: tracking server or database.
        sweep: name of the experiment.
        trials: folder (path or URI) with a folder a trial, where its artifacts are.
        artifacts: where MLflow keeps artifacts, if it is no server that decides this itself.
        data_root: the task store, whose cards say what a study learns from.
        params: what is searched, for the columns of the experiment's table.
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
        """Reach MLflow, and make the experiment if it is missing."""
        _ = self._experiment

    def find(self, tag: str, value: str) -> str | None:
        """A run by a tag."""
        runs = self._client.search_runs([self._experiment], f"tags.{tag} = '{value}'", max_results=1)
        return runs[0].info.run_id if runs else None

    def create_study(self, study: Study) -> str:
        """The parent run of a study."""
        tags = self._tags(study.plan) | {
            "phase": "study",
            "study": study.plan.key,
            DESCRIPTION_TAG: render_study_page(study),
        }
        named, _ = varying_fields(study.sweep_plan.studies, ("backbone", "train_size"))
        name = " ".join(study_label(study.plan, ["task", "method", *named]))
        run = self._client.create_run(self._experiment, tags=tags, run_name=name)
        self._client.set_terminated(run.info.run_id)
        return str(run.info.run_id)

    def create_trial(self, study: Study, trial: Trial, parent: str) -> str:
        """The run of a trial."""
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
        """The whole TrainConfig."""
        from mlflow.entities import Param

        self._client.log_batch(
            run_id, params=[Param(key, str(value)) for key, value in dataclasses.asdict(trial.config).items()]
        )

    def num_logged_epochs(self, run_id: str) -> int:
        """How many epochs a run has."""
        return max((metric.step for metric in self._client.get_metric_history(run_id, TRAIN_LOSS)), default=0)

    def log_epochs(self, run_id: str, trial: Trial, told: int) -> None:
        """The metrics of the epochs after those that were told, and what is known of the trial beside them."""
        by_epoch = {epoch: values for epoch, values in enumerate(trial.epochs, start=1) if epoch > told}
        tags = {"state": trial.state.value, "attempt": str(trial.attempt)}
        if told == 0 or trial.state is not TrialState.RUNNING:  # they do not change from epoch to epoch
            tags |= {name: text for name, text in trial.provenance.items() if name != "correct"}
        if trial.cause is not None or trial.attempt > 1:  # an attempt that goes well takes back what failed before
            tags |= {"error": trial.error_summary, "cause": trial.cause.value if trial.cause else ""}
        self._log(run_id, by_epoch, tags)

    def log_status(self, run_id: str, state: TrialState) -> None:
        """Whether it runs or waits."""
        self._client.update_run(run_id, status=RUN_STATUS[state])

    def log_outcome(self, run_id: str, trial: Trial) -> None:
        """What a finished trial came to: its last and best values by name, its artifacts, a final trial's model."""
        if trial.state is not TrialState.FAILED:
            self._log(run_id, {len(trial.epochs): outcome_metrics(trial)}, {})
        if trial.state is TrialState.FAILED:
            self._client.log_text(run_id, str(trial.error), "error.txt")
        folder = f"{self._trials}/{trial.trial_id}"
        with tempfile.TemporaryDirectory() as scratch:
            for name in ARTIFACTS:
                if (data := read_bytes(f"{folder}/{name}")) is not None:
                    Path(scratch, name).write_bytes(data)
            if trial.phase == "final" and all(Path(scratch, name).exists() for name in MODEL_FILES):
                save_model(Path(scratch))
            self._client.log_artifacts(run_id, scratch)
        self._client.set_terminated(run_id, RUN_STATUS[trial.state])

    def log_study(self, run_id: str, study: Study) -> None:
        """A study's description, its numbers, the images it learns from, its figures."""
        from orchestrator.figures.draw import save_figure, study_figures
        from orchestrator.study.importance import param_importances

        self._log(run_id, {0: study_summary_metrics(study)}, {DESCRIPTION_TAG: render_study_page(study)})
        self._log_dataset(run_id, study.plan)
        with tempfile.TemporaryDirectory() as scratch:
            for name, figure in study_figures(study, param_importances):
                save_figure(figure, Path(scratch), name)
            self._client.log_artifacts(run_id, scratch, "figures")

    def _log_dataset(self, run_id: str, plan: StudyPlan) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        card = read_card(self._data_root, plan.task)
        known = self._client.get_run(run_id).inputs
        if card is None or (known is not None and known.dataset_inputs):
            return
        source = json.dumps({"source": card.source, "protocol": card.protocol, "importer": card.importer})
        profile = json.dumps(
            {**card.counts, "classes": len(card.class_names), "train_size": format_train_size(plan.train_size)}
        )
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
        }

    def _log(self, run_id: str, by_step: Mapping[int, Mapping[str, float]], tags: Mapping[str, str]) -> None:
        from mlflow.entities import Metric, RunTag

        now_ms = int(time.time() * 1000)
        batch: list[Metric] = []
        for step, values in by_step.items():
            epoch = [Metric(name, value, now_ms, step) for name, value in values.items()]
            if len(batch) + len(epoch) > MAX_METRICS_PER_BATCH:  # an epoch is told whole: train/loss says how many are
                self._client.log_batch(run_id, batch)
                batch = []
            batch += epoch
        if batch:
            self._client.log_batch(run_id, batch)
        if tags:
            self._client.log_batch(run_id, tags=[RunTag(name, text) for name, text in tags.items()])

    @functools.cached_property
    def _client(self) -> MlflowClient:
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # trying again is the tracker's business
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        from mlflow import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.WARNING)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        return MlflowClient(tracking_uri=self._uri)

    @functools.cached_property
    def _experiment(self) -> str:
        """Id of the sweep's experiment, made where it is missing."""
        if (experiment := self._client.get_experiment_by_name(self._sweep)) is not None:
            found = str(experiment.experiment_id)
        else:
            place = self._artifacts and f"{self._artifacts}/{self._sweep}"
            found = str(self._client.create_experiment(self._sweep, artifact_location=place))
        self._client.set_experiment_tag(found, "mlflow.experimentKind", "custom_model_development")
        self._client.set_experiment_tag(found, f"{SHARED_VIEW}{VIEW}", json.dumps(_view(self._params)))
        return found


def outcome_metrics(trial: Trial) -> dict[str, float]:
    """Of a finished trial, each score's last value as `final/...` and its best over the epochs as `best/...`.

    MLflow's tables show a metric's last value, so both have names of their own. Final trials have no best: they are
    judged once.
    """
    judged = [name for name in trial.last_metrics if name.startswith(("val/", "test/", TRAIN_LOSS))]
    found = {f"final/{name}": trial.last_metrics[name] for name in judged}
    for name in judged if trial.phase == "search" else ():
        values = [epoch[name] for epoch in trial.epochs if name in epoch]
        found[f"best/{name}"] = min(values) if name == TRAIN_LOSS else max(values)
    return found


def _view(params: Sequence[str]) -> dict[str, Any]:
    """The state of MLflow's table of runs that "Share view" would save: which columns it has."""
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
    """Of each sweep's experiment, what follows a server's address to see its table with our columns."""
    from mlflow import MlflowClient

    found = MlflowClient(tracking_uri=uri).search_experiments()
    return {
        experiment.name: f"/#/experiments/{experiment.experiment_id}/runs?viewStateShareKey={VIEW}"
        for experiment in reversed(found)
        if f"{SHARED_VIEW}{VIEW}" in experiment.tags
    }


def delete_runs(uri: str, run_ids: list[str]) -> None:
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
