"""Deletion of what a study has outside the study database."""

from __future__ import annotations

from collections.abc import Callable

from orchestrator.environment.home import Home
from orchestrator.study.study import Study
from orchestrator.tracking.mlflow_runs import delete_runs
from trainer.storage.files import delete_folder


def deletes_outputs(home: Home) -> Callable[[Study], None]:
    """Return a function that deletes the runs of a study from MLflow, and the folders of its trials."""

    def delete(study: Study) -> None:
        tables = (study.search_table, study.final_table)
        run_ids = [table.synced_run(trial.number)[0] for table in tables for trial in table.trials]
        run_ids.append(study.search_table.mlflow_run)

        # MLflow first: if its server is away, nothing has been deleted yet.
        delete_runs(home.mlflow_uri, [run_id for run_id in run_ids if run_id is not None])

        for trial in study.trials:
            delete_folder(f"{home.trials_folder(study.spec.name)}/{trial.trial_id}")

    return delete
