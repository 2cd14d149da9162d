"""Deletes what trials have left: runs in MLflow, and folders in the home."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from orchestrator.environment.home import Home
from orchestrator.errors import ServiceError
from orchestrator.study.trial import Trial
from orchestrator.tracking.mlflow_client import explain, is_missing
from orchestrator.tracking.mlflow_experiment import MlflowExperiment, remove_run
from orchestrator.tracking.mlflow_locations import correct_locations, is_inside, local_path
from trainer.storage.files import delete_folder

if TYPE_CHECKING:
    from orchestrator.spec.schema import SweepSpec
    from orchestrator.study.study import Study


def delete_outputs(
    home: Home,
    spec: SweepSpec,
    sweep_id: str,
    studies: Sequence[Study],
    matches: Callable[[Trial], bool] = lambda _: True,
    *,
    with_studies: bool = True,
) -> None:
    """Delete what matching trials have left. The study database still has them, so an interruption can be repeated.

    Args:
        sweep_id: identity of the sweep in the study database.
        with_studies: delete the runs of the studies as well.

    Raises:
        MlflowException: if MLflow is away or refuses. Nothing has been deleted then.
    """
    keys: list[str] = []
    run_ids: list[str | None] = []
    for study in studies:
        for table in (study.search_table, study.final_table):
            deleted = [trial for trial in table.trials if matches(trial)]
            keys += [trial.trial_id for trial in deleted]
            run_ids += [table.synced_run(trial.number)[0] for trial in deleted]
        if with_studies:
            keys.append(study.plan.key)
            run_ids.append(study.search_table.mlflow_run)

    # MLflow first: if its server is away, nothing has been deleted yet.
    delete_runs(home, spec, sweep_id, keys, [run_id for run_id in run_ids if run_id is not None])

    for study in studies:
        for trial in study.trials:
            if matches(trial):
                delete_folder(f"{home.trials_folder(spec.name)}/{trial.trial_id}")


def delete_runs(home: Home, spec: SweepSpec, sweep_id: str, keys: Collection[str], known: Collection[str]) -> None:
    """Delete runs of a sweep and their artifacts. The rows in MLflow's database stay until `mlflow gc`.

    Args:
        sweep_id: identity of the sweep in the study database.
        keys: trial ids, and keys of studies.
        known: ids of their runs as the study database knows them. MLflow may have others.

    Raises:
        ServiceError: if MLflow is away or cannot be used. Nothing has been deleted then.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    experiment = MlflowExperiment(home.mlflow_uri, spec.name, home.mlflow_artifacts, sweep_id=sweep_id)
    try:
        correct_locations(home)
        found = experiment.find_runs(known)
    except Exception as error:
        # SQLite, SQLAlchemy and MLflow each raise errors of their own.
        raise ServiceError(f"MLflow {explain(error)}. Nothing was deleted.") from None

    run_ids = [*known, *(run_id for key in keys for run_id in found.get(key, []))]
    for run_id in dict.fromkeys(run_ids):
        try:
            run = experiment.client.get_run(run_id)
        except MlflowException as error:
            # A deletion that was interrupted is repeated as a whole.
            if is_missing(error):
                continue
            raise

        location = run.info.artifact_uri
        # Without a server that chooses the folder, artifacts outside the home belong to somebody else.
        if home.mlflow_artifacts is None or is_inside(location, home.mlflow_artifacts):
            # A run may have no artifacts.
            with contextlib.suppress(MlflowException, FileNotFoundError):
                get_artifact_repository(location, tracking_uri=home.mlflow_uri).delete_artifacts()
            _remove_empty_folders(location)
        remove_run(experiment.client, run)


def _remove_empty_folders(location: str) -> None:
    """Remove the folder of a run whose artifacts are deleted, which MLflow leaves, and then an empty one around it."""
    if urlsplit(location).scheme in ("", "file"):
        # A folder that holds anything stays.
        with contextlib.suppress(OSError):
            folder = Path(local_path(location)).parent
            folder.rmdir()
            folder.parent.rmdir()


def release_experiment(home: Home, spec: SweepSpec, sweep_id: str) -> None:
    """Let a later sweep of the same name take the experiment of a sweep that is deleted."""
    MlflowExperiment(home.mlflow_uri, spec.name, home.mlflow_artifacts, sweep_id=sweep_id).release()
