"""MLflow's runs of trials and studies: create them, log to them, delete them."""

from __future__ import annotations

import dataclasses
import functools
import getpass
import json
import logging
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.environment.home import Home
from orchestrator.report.study_page import render_study_page
from orchestrator.spec.labels import SETTING, study_label, varying_fields
from orchestrator.spec.plan import StudyPlan, plan_sweep
from orchestrator.spec.schema import SweepSpec
from orchestrator.study.study import Study
from orchestrator.study.trial import Trial, TrialState
from orchestrator.tracking.mlflow_experiment import DIGEST, PARENT, LoggedRun, MlflowExperiment, remove_run
from orchestrator.tracking.mlflow_locations import correct_locations
from orchestrator.tracking.mlflow_projection import (
    CHOSEN,
    RUN_STATUS,
    chosen_mark,
    outcome_tags,
    step_times,
    study_metrics,
    study_params,
    study_tags,
    trial_metrics,
    trial_tags,
)
from orchestrator.tracking.mlflow_pyfunc import MODEL_FILES
from orchestrator.tracking.mlflow_registry import save_model
from trainer import run_folder
from trainer.data.task_store import read_card
from trainer.metric_names import TRAIN_LOSS
from trainer.plain_text import format_train_size
from trainer.storage.files import read_bytes
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
MAX_METRICS_PER_BATCH = 1000
"""Most metrics that MLflow accepts in one request."""
DESCRIPTION_TAG = "mlflow.note.content"
"""Tag that MLflow shows as the description of a run, in Markdown."""
PAGE = "report.html"
"""The report on one study, as an artifact of its run."""
USER = "mlflow.user"
"""Tag that MLflow shows as who created a run."""
SOURCE = "mlflow.source.name"
"""Tag that MLflow shows as the program that created a run."""


class MlflowRuns:
    """The runs of one sweep's experiment.

    Args:
        uri: tracking server or database.
        sweep: name of the experiment.
        trials: folder (path or URI) that holds the trials with their artifacts, one folder each.
        artifacts: URI of the folder for MLflow's artifacts; None if a server chooses it.
        data_root: the task store. Its cards describe the images that a study learns from.
        params: searched parameters, which become columns of the experiment's table.
        sweep_id: identity of the sweep in the study database. Empty: every run with the sweep's name belongs to it.
        prepare: called before the experiment is opened.
    """

    def __init__(
        self,
        uri: str,
        sweep: str,
        trials: str,
        artifacts: str | None,
        data_root: str,
        params: Sequence[str] = (),
        *,
        sweep_id: str = "",
        prepare: Callable[[], None] = lambda: None,
    ) -> None:
        self._experiment = MlflowExperiment(uri, sweep, artifacts, sweep_id=sweep_id, params=params, prepare=prepare)
        self._trials = trials
        self._data_root = data_root
        # Time of the last epoch that a run has, in milliseconds.
        self._last_ms: dict[str, int] = {}

    @property
    def changes(self) -> Counter[str]:
        """Number of runs that were `created`, `restored` or `removed` as duplicates."""
        return self._experiment.changes

    @property
    def has_answered(self) -> bool:
        """Whether MLflow answered a request."""
        return self._experiment.has_answered

    def open(self) -> None:
        """Connect to MLflow, and create the experiment if it is missing."""
        self._experiment.open()

    def load(self, known: Collection[str]) -> dict[str, LoggedRun]:
        """Return what MLflow has of the sweep, by trial id or study key; see `MlflowExperiment.load`."""
        return self._experiment.load(known)

    def create_study(self, study: Study) -> LoggedRun:
        """Create the parent run of a study."""
        tags = self._tags(study.plan) | {
            "phase": "study",
            "study": study.plan.key,
            DESCRIPTION_TAG: render_study_page(study),
            # Whatever was logged to an earlier parent run, this one has nothing yet.
            DIGEST: "",
            CHOSEN: "",
        }
        named, _ = varying_fields(study.sweep_plan.studies, SETTING)
        name = " ".join(study_label(study.plan, ["task", "method", *named]))

        start_ms, end_ms = _period(study)
        run_id = self._experiment.create_run(name, tags, start_ms)
        # Its children go on, but a parent that stays RUNNING looks like a process that died.
        self._client.set_terminated(run_id, end_time=end_ms)
        return LoggedRun(run_id, "FINISHED", tags, has_params=False)

    def create_trial(self, study: Study, trial: Trial, parent: str) -> LoggedRun:
        """Create the run of a trial below the parent run with this id."""
        tags = self._tags(study.plan) | {
            PARENT: parent,
            "trial_id": trial.trial_id,
            "phase": trial.phase,
            "seed": str(trial.config.seed),
            "state": TrialState.RUNNING.value,
        }
        name = f"trial {trial.number}" if trial.phase == "search" else f"final seed {trial.config.seed}"
        start_ms, _ = _times(study, trial)
        return LoggedRun(self._experiment.create_run(name, tags, start_ms), "RUNNING", tags, has_params=False)

    def move_below(self, run_id: str, parent: str) -> None:
        """Make a run the child of another parent run."""
        self._client.set_tag(run_id, PARENT, parent)

    def log_params(self, run_id: str, trial: Trial) -> None:
        """Log all fields of a trial's TrainConfig."""
        from mlflow.entities import Param

        config = dataclasses.asdict(trial.config)
        self._client.log_batch(run_id, params=[Param(key, str(value)) for key, value in config.items()])

    def num_logged_epochs(self, run_id: str) -> int:
        """Return how many epochs a run has."""
        history = self._client.get_metric_history(run_id, TRAIN_LOSS)
        self._last_ms[run_id] = max((metric.timestamp for metric in history), default=0)
        return max((metric.step for metric in history), default=0)

    def log_epochs(self, run_id: str, trial: Trial, num_logged: int) -> None:
        """Log the metrics of a trial's epochs after the first `num_logged`, and the tags of an unfinished trial.

        Values before the first step are logged at step 0.
        """
        tags = {} if trial.state.is_finished else trial_tags(trial)

        # Provenance does not change from epoch to epoch. `correct` is a long code, of use only to our own statistics.
        if num_logged == 0 or trial.state is not TrialState.RUNNING:
            tags |= {name: text for name, text in trial.provenance.items() if name != "correct"}

        self._log(run_id, trial_metrics(trial.epochs, num_logged), tags, trial.epochs)

    def log_status(self, run_id: str, state: TrialState) -> None:
        """Log whether an unfinished trial runs or waits."""
        self._client.update_run(run_id, status=RUN_STATUS[state])

    def log_outcome(self, run_id: str, study: Study, trial: Trial) -> None:
        """Log the outcome of a finished trial: best metrics, artifacts, and the model of a final trial.

        The tags with its state and the status come last: a run that has both has everything (`has_all`).
        """
        if trial.state is TrialState.FAILED:
            self._client.log_text(run_id, str(trial.error), "error.txt")

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

        self._log(run_id, {}, outcome_tags(trial))
        _, end_ms = _times(study, trial)
        self._client.set_terminated(run_id, RUN_STATUS[trial.state], end_ms)

    def log_study(self, run_id: str, study: Study, digest: str) -> None:
        """Log all that a study is: its description, params, metrics, images, figures, report, duration and digest."""
        from mlflow.entities import Param

        from orchestrator.figures.draw import save_figure, study_figures
        from orchestrator.report_page.page import PageState, render_page
        from orchestrator.study.importance import param_importances

        # The mark comes first: whatever else is logged then belongs to the trial that it names.
        self._log(run_id, {}, {CHOSEN: chosen_mark(study), DESCRIPTION_TAG: render_study_page(study)})
        self._client.log_batch(run_id, params=[Param(name, text) for name, text in study_params(study).items()])
        self._log(run_id, study_metrics(study, self.num_logged_epochs(run_id)), {})
        self._log_dataset(run_id, study.plan)
        with tempfile.TemporaryDirectory() as scratch:
            for name, figure in study_figures(study, param_importances):
                # MLflow's page shows the PNG, and embedding fonts into a PDF is slow.
                save_figure(figure, Path(scratch), name, kinds=["png"])
            self._client.log_artifacts(run_id, scratch, "figures")
        state = PageState(written="written when the study was logged to MLflow")
        self._client.log_text(run_id, render_page([study], self._read_file, state, has_figures=False), PAGE)

        _, end_ms = _period(study)
        self._client.set_terminated(run_id, end_time=end_ms)

        # Comes last: it says that MLflow has all of the study as it is now.
        self._log(run_id, {}, study_tags(study, digest))

    def remove(self, run_id: str) -> None:
        """Delete a run so that it does not come back."""
        remove_run(self._client, self._client.get_run(run_id))

    def _read_file(self, trial: Trial, name: str) -> bytes | None:
        return read_bytes(f"{self._trials}/{trial.trial_id}/{name}")

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
            "task": plan.task,
            "group": plan.group,
            "method": plan.method,
            "backbone": plan.backbone,
            "train_size": format_train_size(plan.train_size),
            "val_size": plan.val_size,
            "draw": str(plan.draw),
            **origin_tags(),
        }

    def _log(
        self,
        run_id: str,
        by_step: Mapping[int, Mapping[str, float]],
        tags: Mapping[str, str],
        epochs: Sequence[Mapping[str, float]] = (),
    ) -> None:
        """Log metrics by their step, then tags.

        Args:
            epochs: all metrics of each epoch, which tell when it ended.
        """
        from mlflow.entities import Metric, RunTag

        now_ms = int(time.time() * 1000)
        # An epoch that was logged late must not come after the next one, which is dated back.
        last_ms = self._last_ms.get(run_id, 0)
        times = {step: max(time_ms, last_ms) for step, time_ms in step_times(epochs, now_ms).items()}
        batch: list[Metric] = []
        for step, values in by_step.items():
            metrics = [Metric(name, value, times.get(step, now_ms), step) for name, value in values.items()]
            # An epoch is never divided: `num_logged_epochs` takes an epoch with a train/loss for a whole one.
            if len(batch) + len(metrics) > MAX_METRICS_PER_BATCH:
                self._client.log_batch(run_id, batch)
                batch = []
            batch += metrics

        if batch:
            self._client.log_batch(run_id, batch)
            self._last_ms[run_id] = max([last_ms, *(times.get(step, last_ms) for step in by_step)])
        if tags:
            self._client.log_batch(run_id, tags=[RunTag(name, text) for name, text in tags.items()])

    @property
    def _client(self) -> MlflowClient:
        return self._experiment.client


def open_runs(home: Home, spec: SweepSpec, sweep_id: str) -> MlflowRuns:
    """Return the MLflow runs of a sweep.

    Args:
        sweep_id: identity of the sweep in the study database.
    """
    searched = list(dict.fromkeys(name for plan in plan_sweep(spec).studies for name in plan.space))
    return MlflowRuns(
        home.mlflow_uri,
        spec.name,
        home.trials_folder(spec.name),
        home.mlflow_artifacts,
        home.data_root,
        searched,
        sweep_id=sweep_id,
        # Whatever keeps MLflow's database from being corrected is MLflow's problem, and does not stop a sweep.
        prepare=functools.partial(correct_locations, home),
    )


def origin_tags() -> dict[str, str]:
    """Return the tags that say who created a run, and with which program."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        # A container may run under a number without a name.
        user = str(os.getuid())
    return {USER: user, SOURCE: "sptune", "mlflow.source.type": "LOCAL"}


def _times(study: Study, trial: Trial) -> tuple[int | None, int | None]:
    """Return when a trial started and finished, in milliseconds; None for what has not happened."""
    table = study.search_table if trial.phase == "search" else study.final_table
    start, end = (None if moment is None else int(1000 * moment.timestamp()) for moment in table.times(trial.number))
    return start, end


def _period(study: Study) -> tuple[int | None, int | None]:
    """Return when the first trial of a study started and the last one finished, in milliseconds."""
    times = [_times(study, trial) for trial in study.trials]
    starts = [start for start, _ in times if start is not None]
    ends = [end for _, end in times if end is not None]
    return min(starts, default=None), max(ends, default=None)
