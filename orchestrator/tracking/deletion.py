"""Deletes what trials have left: runs in MLflow, and folders in the home."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from orchestrator.environment.home import Home
from orchestrator.spec.schema import SweepSpec
from orchestrator.study.trial import Trial
from trainer.storage.files import delete_folder

if TYPE_CHECKING:
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
    from orchestrator.tracking.mlflow_runs import delete_runs

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
