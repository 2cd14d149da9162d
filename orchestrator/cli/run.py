"""From a spec to its table: what `launch` and `resume` have in common."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from orchestrator.cli.options import console, place_for
from orchestrator.cli.results import print_report
from orchestrator.doctor.checks import check_nodes, check_services, raise_on_errors
from orchestrator.drivers.context import TrialContext
from orchestrator.environment.home import Home
from orchestrator.errors import ServiceError, UserError
from orchestrator.redaction import redact
from orchestrator.spec.schema import SweepSpec
from orchestrator.study.trial import Trial

if TYPE_CHECKING:
    from orchestrator.study.storage.database import StudyDatabase
    from orchestrator.sweep.sweep import Sweep
    from orchestrator.tracking.mlflow_tracker import MlflowTracker


def run(
    spec: SweepSpec,
    home: Home,
    record: StudyDatabase,
    inline: bool,
    address: str | None,
    weights: str | None,
    again: Callable[[Trial], bool] | None = None,
    named: bool = False,
) -> None:
    """Drive a sweep to its end, and print its table.

    Args:
        address: of a Ray cluster, which is examined before anything is started on it.
        again: finished trials that are run again.
        named: whether `again` must fit some trial.

    Raises:
        UserError: if it cannot be started; nothing is.
        typer.Exit: with the status that README tells, unless all went well.
    """
    from orchestrator.study.study import load_studies
    from orchestrator.sweep.checkpoint_retention import CheckpointRetention
    from orchestrator.sweep.cost_model import CostModel
    from orchestrator.sweep.sweep import Sweep
    from orchestrator.tracking.mlflow_runs import MlflowRuns
    from orchestrator.tracking.mlflow_tracker import MlflowTracker

    if address is not None and not inline:
        with console.status("looking at the servers"):
            raise_on_errors(check_services(home))
    else:
        _see_mlflow(home)
    trials = home.trials_folder(spec.name)
    with contextlib.ExitStack() as ends:
        lease = record.lease(spec.name)
        lease.acquire(spec.name)
        ends.callback(lease.release)
        if again is not None:
            found = [entry for study in load_studies(spec, record) for entry in study.reset_trials(again)]
            if named and not found:
                raise UserError(
                    f"no failed trial of {spec.name} is like that; `sptune failures {spec.name}` lists them."
                )
            console.print(f"{len(found)} failed trials of {spec.name} are run again.", highlight=False)
        runs = MlflowRuns(home.mlflow_uri, spec.name, trials, home.mlflow_artifacts, home.data_root, [*spec.space])
        tracker = MlflowTracker(runs)
        ends.callback(_tell_the_rest, tracker)
        checkpoints = CheckpointRetention(trials, spec.keep)
        sweep = Sweep.resume(spec, record, tracker, lease=lease, on_finish=checkpoints.delete_unneeded)
        ends.callback(sweep.close)
        if sweep.is_done:
            console.print(f"{spec.name} is finished; nothing to run.", highlight=False)
        else:
            tracker.open()
            _drive(sweep, place_for(spec, home, weights, trials), home, inline, address)
            checkpoints.delete_late(sweep.studies)
    CostModel.load(home.cost_model_file).update(sweep.studies, home.data_root)
    print_report(sweep.studies)
    console.print(f"\nEvery trial in MLflow: {_where_to_look(home)}", highlight=False, soft_wrap=True)
    if sweep.halt is not None:
        console.print(f"\n{sweep.halt.reason}; `sptune resume {spec.name}` goes on.", highlight=False, soft_wrap=True)
        raise typer.Exit(130 if sweep.halt.interrupt_running else 3)
    if any(not summary.final_trials for summary in sweep.summaries()):
        raise typer.Exit(1)


def _drive(sweep: Sweep, workplace: TrialContext, home: Home, inline: bool, address: str | None) -> None:
    from orchestrator.cli.progress import LiveView

    try:
        if inline:
            from orchestrator.drivers import inline as inline_driver

            with LiveView(sweep, console) as update:
                inline_driver.InlineDriver(workplace).run(sweep, update)
        else:
            from orchestrator.drivers.ray import cluster as ray_nodes
            from orchestrator.drivers.ray import driver as ray_driver

            with ray_nodes.connected(address):
                if address is not None:
                    with console.status("looking at the nodes"):
                        raise_on_errors(check_nodes(home, sweep.spec, workplace.weights, cluster=True))
                with LiveView(sweep, console) as update:
                    ray_driver.RayDriver(workplace).run(sweep, update)
    except KeyboardInterrupt:
        told = f"stopped; `sptune resume {sweep.spec.name}` goes on from the last finished epochs."
        console.print(told, highlight=False)
        raise typer.Exit(130) from None


def _see_mlflow(home: Home) -> None:
    """Refuse wrong credentials before they cost a sweep its runs; a server that is away is told later."""
    if home.mlflow_file is None:
        from orchestrator.tracking.mlflow_server import check_reachable

        try:
            check_reachable(home.mlflow_uri)
        except ServiceError as error:
            if not error.away:
                raise
            console.print(f"{error} It is told later.", highlight=False, soft_wrap=True)


def _tell_the_rest(tracker: MlflowTracker) -> None:
    with console.status("telling MLflow the rest"):
        untold = tracker.close()
    if untold:
        told = f"MLflow lacks {untold} trials and studies ({tracker.problem}): they are told at the next launch."
        console.print(told, highlight=False, soft_wrap=True)


def _where_to_look(home: Home) -> str:
    if home.mlflow_file is None:
        return redact(home.mlflow_uri)
    folder = Path(home.root)
    return f"sptune ui --home {os.path.relpath(folder) if folder.is_relative_to(Path.cwd()) else folder}"
