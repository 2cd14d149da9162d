"""Runs a sweep from its lease to its end: servers, driver, MLflow, and what is saved when a signal comes.

Slow libraries are imported by the functions that need them.
"""

from __future__ import annotations

import contextlib
import os
import shlex
from typing import TYPE_CHECKING

from orchestrator.drivers.activity import Activity
from orchestrator.drivers.context import trial_context
from orchestrator.environment.home import Home
from orchestrator.environment.requirements import require_cache
from orchestrator.errors import ServiceError, UserError
from orchestrator.launch.outcome import DriverName, OnProgress, Progress, Rerun, SweepOutcome
from orchestrator.spec.notify import Notify
from orchestrator.spec.schema import SweepSpec
from orchestrator.tracking.deletion import delete_outputs
from trainer.plain_text import counted
from trainer.storage.local_cache import cache_folder

if TYPE_CHECKING:
    from orchestrator.drivers.context import TrialContext
    from orchestrator.drivers.driver import Driver
    from orchestrator.study.storage.database import StudyDatabase
    from orchestrator.sweep.sweep import Sweep
    from orchestrator.tracking.mlflow_tracker import MlflowTracker


def run_sweep(
    spec: SweepSpec,
    home: Home,
    database: StudyDatabase,
    *,
    driver: DriverName,
    address: str | None,
    weights: str | None,
    on_progress: OnProgress,
    notify: Notify | None,
    rerun: Rerun | None = None,
    metrics: int | None = None,
) -> SweepOutcome:
    """Hold the lease, and drive the sweep to its end.

    Args:
        notify: whom to tell. It must come from the user, and not from the study database.
    """
    from orchestrator.drivers import signals
    from orchestrator.launch.notify import Notifier
    from orchestrator.sweep.checkpoint_retention import CheckpointRetention
    from orchestrator.sweep.cost_model import CostModel
    from orchestrator.sweep.sweep import Sweep
    from orchestrator.tracking.mlflow_runs import open_runs
    from orchestrator.tracking.mlflow_tracker import MlflowTracker

    notes = _check_servers(home, address if driver == "ray" else None, on_progress)

    def add_note(note: str) -> None:
        notes.append(note)
        on_progress(Progress("notifying", note=note))

    # A home can be moved, so folders of trials follow from it and are never read from the database.
    trials_folder = home.trials_folder(spec.name)
    checkpoints = CheckpointRetention(trials_folder, spec.keep)

    # Closed in reverse order: the sweep's trials become WAITING, MLflow gets the rest, somebody is told, the lease is
    # released.
    with contextlib.ExitStack() as stack:
        # Outermost: a signal ends whatever is waited for, and what the stack holds is still saved.
        stack.enter_context(signals.interrupt_on_signal())

        # SQLite then puts its log into the file, which can be read and copied alone.
        stack.callback(database.close)

        # The lease writes, and the format of a newer version is not ours to write.
        database.check_version(spec.name)
        lease = database.lease(spec.name)
        lease.acquire(spec.name)
        stack.callback(lease.release)
        notifier = Notifier(notify, database, lease, home, add_note)
        stack.push(notifier.on_exit)

        # Under the lease, and before the sweep is opened: it then finds these trials WAITING.
        num_rerun = _reset_trials(spec, database, rerun) if rerun is not None else 0
        sweep_id = database.sweep_id(spec.name)
        tracker = MlflowTracker(open_runs(home, spec, sweep_id))
        # The tracker is closed when the stack unwinds, so its answer is collected in a list.
        unlogged: list[int] = []
        stack.callback(
            lambda: unlogged.append(_close_tracker(tracker, spec.name, signals.is_stopping(), on_progress, notes))
        )

        on_progress(Progress("opening the sweep"))
        sweep = Sweep.resume(
            spec,
            database,
            tracker,
            lease=lease,
            on_finish=checkpoints.delete_unneeded,
            on_delete=lambda study: delete_outputs(home, spec, sweep_id, [study]),
        )
        stack.callback(signals.close_sweep, sweep)

        was_finished = sweep.is_done
        if metrics is not None and not was_finished:
            from orchestrator.launch.metrics import serve_metrics

            stack.enter_context(serve_metrics(metrics, sweep, lease, lambda: tracker.num_pending))
        # From here on, an error is one of the sweep and no longer one of its start.
        notifier.watch(sweep)
        is_interrupted = False
        if not was_finished:
            tracker.open()
            context = trial_context(spec, home, weights, trials_folder)
            try:
                _drive(sweep, context, home, driver, address, on_progress, notes)
            except KeyboardInterrupt:
                # The stack below still saves states and logs to MLflow; only the trials themselves were cut off.
                is_interrupted = True
                notifier.drop()
            else:
                # Checkpoints that were still being written when their trials ended.
                checkpoints.delete_late(sweep.studies)
        stopped_by = signals.first_signal()

    CostModel.load(home.cost_model_file).update(sweep.studies, home.data_root)
    return SweepOutcome(
        name=spec.name,
        home=home,
        studies=sweep.studies,
        halt=sweep.halt,
        was_finished=was_finished,
        is_interrupted=is_interrupted,
        stopped_by=stopped_by,
        num_rerun=num_rerun,
        num_unlogged=sum(unlogged),
        notes=tuple(notes),
    )


def _check_servers(home: Home, address: str | None, on_progress: OnProgress) -> list[str]:
    """Check the servers, and return notes for the user.

    On a cluster every server must answer. On one machine an MLflow server may be away, since it is caught up later,
    but it must not refuse the credentials: that would cost the sweep its runs.

    Raises:
        UserError: if the sweep could not run.
    """
    on_progress(Progress("checking the servers"))
    # On a cluster the cache is on each node, and the check of the nodes tries it.
    if address is None:
        require_cache()
    else:
        from orchestrator.doctor.checks import check_services, raise_on_errors

        # Workers of other machines fail one by one if a server is away, so all of them are checked first.
        raise_on_errors(check_services(home))
        return []

    if home.mlflow_file is None:
        from orchestrator.tracking.mlflow_server import check_reachable

        try:
            check_reachable(home.mlflow_uri)
        except ServiceError as error:
            if not error.away:
                raise
            note = f"{error} Trials are logged when it is back."
            on_progress(Progress("checking the servers", note=note))
            return [note]
    return []


def _reset_trials(spec: SweepSpec, database: StudyDatabase, rerun: Rerun) -> int:
    """Make matching trials WAITING, and return their number."""
    from orchestrator.study.study import load_studies

    num_reset = sum(len(study.reset_trials(rerun.matches)) for study in load_studies(spec, database))
    if rerun.must_match and num_reset == 0:
        raise UserError(
            f"no failed trial of {spec.name} matches; `sptune failures {shlex.quote(spec.name)}` lists them."
        )
    return num_reset


def _drive(
    sweep: Sweep,
    context: TrialContext,
    home: Home,
    driver: DriverName,
    address: str | None,
    on_progress: OnProgress,
    notes: list[str],
) -> None:
    activity = Activity()

    def on_change() -> None:
        for note in (*sweep.device_kinds.take_notes(), *sweep.gpu_allocator.take_notes()):
            notes.append(note)
            on_progress(Progress("running trials", sweep, note))
        on_progress(Progress("running trials", sweep, activity=str(activity)))

    if driver == "inline":
        from orchestrator.drivers.inline import InlineDriver

        # The annotation has mypy check that the driver meets the protocol.
        inline: Driver = InlineDriver(context, activity)
        on_change()
        inline.run(sweep, on_change)
        return

    from orchestrator.drivers.ray import cluster
    from orchestrator.drivers.ray.driver import RayDriver

    # Workers of this machine inherit it, and they run in other folders.
    if "SPTUNE_CACHE" in os.environ:
        os.environ["SPTUNE_CACHE"] = str(cache_folder())

    on_progress(Progress("starting Ray" if address is None else "joining the cluster"))
    # The nodes are checked over the same connection that the driver uses.
    with cluster.connected(address):
        if address is not None:
            from orchestrator.doctor.checks import check_nodes, raise_on_errors

            on_progress(Progress("checking the nodes"))
            raise_on_errors(check_nodes(home, sweep.spec, context.weights, cluster=True))
        on_change()
        RayDriver(context, activity=activity).run(sweep, on_change)


def _close_tracker(
    tracker: MlflowTracker, sweep: str, is_stopped: bool, on_progress: OnProgress, notes: list[str]
) -> int:
    """Log the rest to MLflow, and return how much could not be logged.

    Args:
        is_stopped: whether a signal stopped the sweep: then the user does not want to wait for a server that is away.
    """
    on_progress(Progress("logging to MLflow"))
    num_unlogged = tracker.close(in_haste=is_stopped)
    if num_unlogged or tracker.problem is not None:
        lacks = "what it has was not checked"
        if num_unlogged:
            lacks = f"it lacks {counted(num_unlogged, 'trial or study', 'trials and studies')}"
        problem = tracker.problem or "was not waited for"
        note = f"MLflow {problem}. So {lacks}; `sptune sync {shlex.quote(sweep)}` logs them once this is resolved."
        on_progress(Progress("logging to MLflow", note=note))
        notes.append(note)
    return num_unlogged
