"""Launch or resume a sweep from Python. The command line is a thin caller of this module.

    from orchestrator.launch import launch, open_sweep

    outcome = launch("demo", driver="inline", home="my-home")
    if outcome.is_done:
        print(open_sweep("demo", home="my-home").trials())

Results and progress are returned, not printed; only Ctrl-C is answered on standard error. Slow libraries are imported
by the functions that need them.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from orchestrator.drivers.context import trial_context
from orchestrator.environment.home import Home, home_at
from orchestrator.environment.lookup import find_sweep
from orchestrator.environment.requirements import find_missing
from orchestrator.errors import ServiceError, SpecError, UserError
from orchestrator.spec.loader import find_spec, load_cluster, load_spec, parse_cluster, parse_spec
from orchestrator.spec.plan import plan_sweep
from orchestrator.spec.resources import Cluster
from orchestrator.spec.schema import SweepSpec

if TYPE_CHECKING:
    import pandas as pd

    from orchestrator.drivers.context import TrialContext
    from orchestrator.drivers.driver import Driver
    from orchestrator.study.storage.database import StudyDatabase
    from orchestrator.study.study import Study
    from orchestrator.study.trial import Trial
    from orchestrator.sweep.halt import Halt
    from orchestrator.sweep.sweep import Sweep
    from orchestrator.tracking.mlflow_tracker import MlflowTracker

DriverName = Literal["ray", "inline"]
Step = Literal["checking the servers", "checking the nodes", "running trials", "logging to MLflow"]


@dataclass(frozen=True, slots=True)
class Progress:
    """What a launch is doing now. `on_progress` is called with it after every change."""

    step: Step
    sweep: Sweep | None = None
    """The sweep, while trials run."""
    note: str = ""
    """A sentence for the user, such as that the MLflow server is away."""


OnProgress = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Rerun:
    """Finished trials that `resume` runs again."""

    matches: Callable[[Trial], bool]
    must_match: bool = False
    """Whether it is a mistake if no trial matches."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepOutcome:
    """How a launch ended."""

    name: str
    home: Home
    studies: list[Study]
    """The studies of the sweep with all their trials."""
    halt: Halt | None
    """Why the sweep stopped before it was done; None if it is done, or if it was interrupted before it stopped."""
    was_finished: bool
    """Whether the sweep was finished before, so that nothing was run."""
    is_interrupted: bool
    """Whether running trials were cut off, by a second Ctrl-C or while Ray was starting. They resume from their last
    checkpoints."""
    num_rerun: int
    """Finished trials that were run again."""
    num_unlogged: int
    """Trials and studies that MLflow still lacks. The next launch logs them."""
    notes: tuple[str, ...]
    """Sentences about what went wrong without stopping the sweep, such as an MLflow server that is away."""

    @property
    def is_done(self) -> bool:
        """Whether every trial that the spec asks for is finished."""
        return self.halt is None and not self.is_interrupted

    @property
    def studies_without_result(self) -> list[str]:
        """Keys of the studies that have no final trial with a score: none was started, or all failed."""
        return [study.plan.key for study in self.studies if not study.has_result]


def launch(
    spec: str | Path | SweepSpec | Mapping[str, Any],
    *,
    home: str | None = None,
    driver: DriverName = "ray",
    address: str | None = None,
    weights: str | None = None,
    on_progress: OnProgress | None = None,
) -> SweepOutcome:
    """Run a sweep until it is done, or resume it if it has been launched before.

    Args:
        spec: a YAML file, the name of a spec that ships with the package, a mapping, or a parsed spec.
        home: folder or bucket; default: `SPTUNE_HOME`, the spec's `cluster.home`, or `./sptune-home`.
        driver: `ray` for all cores and GPUs, `inline` for one trial at a time in this process.
        address: a running Ray cluster; default: `cluster.address` of the spec, or a Ray of this machine alone.
        weights: a file, or a folder of files, with weights of backbones.
        on_progress: called after every change.

    Raises:
        SpecError: with every problem of the spec and of the home. Nothing has been written.
        UserError: if the sweep cannot be started, with the reason and the way out.
    """
    # The addresses come first: the spec's tasks and weights are looked for in the home that they name.
    cluster = _cluster_of(spec)
    place = home_at(home, cluster)
    weights = weights or cluster.weights
    parsed = _load(spec, place, weights)

    # Here and below, slow libraries are imported after the spec is known to be right: its mistakes are printed in a
    # fraction of a second.
    from orchestrator.environment.connections import open_database

    # Nothing is written before this line.
    place.create()
    return _run(
        parsed,
        place,
        open_database(place),
        driver=driver,
        address=address or cluster.address,
        weights=weights,
        on_progress=on_progress or _ignore,
    )


def resume(
    name: str,
    *,
    home: str | None = None,
    driver: DriverName = "ray",
    address: str | None = None,
    weights: str | None = None,
    rerun: Rerun | None = None,
    on_progress: OnProgress | None = None,
) -> SweepOutcome:
    """Resume a sweep by its name, with the spec that the study database holds.

    Args:
        name: the sweep's name, or its spec's file.
        rerun: finished trials to run again.

    The other arguments and the errors are those of `launch`.
    """
    place, database, spec = find_sweep(home, name, strict=True)
    weights = weights or spec.cluster.weights
    # The spec was checked when it was recorded, but data and weights may have moved since.
    problems = [*place.problems(), *find_missing(spec, place, weights)]
    if problems:
        raise SpecError(f"the recorded spec of {spec.name}", problems)

    place.create()
    return _run(
        spec,
        place,
        database,
        driver=driver,
        address=address or spec.cluster.address,
        weights=weights,
        rerun=rerun,
        on_progress=on_progress or _ignore,
    )


@dataclass(frozen=True, slots=True)
class SweepResults:
    """Trials and epochs of a sweep, as tables."""

    spec: SweepSpec
    studies: list[Study]

    def trials(self) -> pd.DataFrame:
        """Return a row for each trial, with the columns of `trials.parquet` (`sptune export`)."""
        from orchestrator.report.export import trials_table

        return trials_table(self.studies).to_pandas()

    def epochs(self) -> pd.DataFrame:
        """Return a row for each metric of each epoch, with the columns of `epochs.parquet`."""
        from orchestrator.report.export import epochs_table

        return epochs_table(self.studies).to_pandas()


def open_sweep(name: str, home: str | None = None) -> SweepResults:
    """Read a sweep, finished or not. Nothing is written.

    Raises:
        UserError: if there is no such sweep, with the names of those there are.
    """
    from orchestrator.study.study import load_studies

    _, database, spec = find_sweep(home, name)
    return SweepResults(spec, load_studies(spec, database))


def _ignore(progress: Progress) -> None:
    pass


def _cluster_of(spec: str | Path | SweepSpec | Mapping[str, Any]) -> Cluster:
    """Return where the spec says that everything is, before the rest of it is checked."""
    if isinstance(spec, SweepSpec):
        return spec.cluster
    if isinstance(spec, Mapping):
        return parse_cluster(spec)
    return load_cluster(find_spec(str(spec)))


def _load(spec: str | Path | SweepSpec | Mapping[str, Any], home: Home, weights: str | None) -> SweepSpec:
    """Return a checked spec whose tasks and weights are there.

    Raises:
        SpecError: with the problems of the spec and of the home together.
    """
    missing = functools.partial(find_missing, home=home, weights=weights)
    source = "the spec" if isinstance(spec, SweepSpec | Mapping) else str(find_spec(str(spec)))
    problems = [*home.problems()]
    try:
        if isinstance(spec, SweepSpec | Mapping):
            # A parsed spec goes through the same checks: its tasks and weights may be missing here.
            raw = spec.model_dump(mode="json") if isinstance(spec, SweepSpec) else dict(spec)
            parsed = parse_spec(raw, source, missing)
        else:
            parsed = load_spec(Path(source), missing)
    except SpecError as error:
        # One error with everything that is wrong, so that nobody repairs and launches in turns.
        raise SpecError(source, [*error.problems, *problems]) from None
    if problems:
        raise SpecError(source, problems)
    return parsed


def _run(
    spec: SweepSpec,
    home: Home,
    database: StudyDatabase,
    *,
    driver: DriverName,
    address: str | None,
    weights: str | None,
    on_progress: OnProgress,
    rerun: Rerun | None = None,
) -> SweepOutcome:
    """Hold the lease, and drive the sweep to its end."""
    from orchestrator.sweep.checkpoint_retention import CheckpointRetention
    from orchestrator.sweep.cost_model import CostModel
    from orchestrator.sweep.sweep import Sweep
    from orchestrator.tracking.deletion import deletes_outputs
    from orchestrator.tracking.mlflow_runs import MlflowRuns
    from orchestrator.tracking.mlflow_tracker import MlflowTracker

    notes = _check_servers(home, address if driver == "ray" else None, on_progress)
    # A home can be moved, so folders of trials follow from it and are never read from the database.
    trials_folder = home.trials_folder(spec.name)
    checkpoints = CheckpointRetention(trials_folder, spec.keep)

    # Closed in reverse order: the sweep's trials become WAITING, MLflow gets the rest, the lease is released.
    with contextlib.ExitStack() as stack:
        # The lease writes, and the format of a newer version is not ours to write.
        database.check_version(spec.name)
        lease = database.lease(spec.name)
        lease.acquire(spec.name)
        stack.callback(lease.release)

        # Under the lease, and before the sweep is opened: it then finds these trials WAITING.
        num_rerun = _reset_trials(spec, database, rerun) if rerun is not None else 0
        searched = list(dict.fromkeys(name for plan in plan_sweep(spec).studies for name in plan.space))
        runs = MlflowRuns(home.mlflow_uri, spec.name, trials_folder, home.mlflow_artifacts, home.data_root, searched)
        tracker = MlflowTracker(runs)
        # The tracker is closed when the stack unwinds, so its answer is collected in a list.
        unlogged: list[int] = []
        stack.callback(lambda: unlogged.append(_close_tracker(tracker, on_progress, notes)))

        sweep = Sweep.resume(
            spec, database, tracker, lease=lease, on_finish=checkpoints.delete_unneeded, on_delete=deletes_outputs(home)
        )
        stack.callback(sweep.close)

        was_finished = sweep.is_done
        is_interrupted = False
        if not was_finished:
            tracker.open()
            context = trial_context(spec, home, weights, trials_folder)
            try:
                _drive(sweep, context, home, driver, address, on_progress)
            except KeyboardInterrupt:
                # The stack below still saves states and logs to MLflow; only the trials themselves were cut off.
                is_interrupted = True
            else:
                # Checkpoints that were still being written when their trials ended.
                checkpoints.delete_late(sweep.studies)

    CostModel.load(home.cost_model_file).update(sweep.studies, home.data_root)
    return SweepOutcome(
        name=spec.name,
        home=home,
        studies=sweep.studies,
        halt=sweep.halt,
        was_finished=was_finished,
        is_interrupted=is_interrupted,
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
    if address is not None:
        from orchestrator.doctor.checks import check_services, raise_on_errors

        # Workers of other machines fail one by one if a server is away, so all of them are checked first.
        raise_on_errors(check_services(home))
    elif home.mlflow_file is None:
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
        raise UserError(f"no failed trial of {spec.name} matches; `sptune failures {spec.name}` lists them.")
    return num_reset


def _drive(
    sweep: Sweep, context: TrialContext, home: Home, driver: DriverName, address: str | None, on_progress: OnProgress
) -> None:
    def on_change() -> None:
        on_progress(Progress("running trials", sweep))

    if driver == "inline":
        from orchestrator.drivers.inline import InlineDriver

        # The annotation has mypy check that the driver meets the protocol.
        inline: Driver = InlineDriver(context)
        on_change()
        inline.run(sweep, on_change)
        return

    from orchestrator.drivers.ray import cluster
    from orchestrator.drivers.ray.driver import RayDriver

    # The nodes are checked over the same connection that the driver uses.
    with cluster.connected(address):
        if address is not None:
            from orchestrator.doctor.checks import check_nodes, raise_on_errors

            on_progress(Progress("checking the nodes"))
            raise_on_errors(check_nodes(home, sweep.spec, context.weights, cluster=True))
        on_change()
        RayDriver(context).run(sweep, on_change)


def _close_tracker(tracker: MlflowTracker, on_progress: OnProgress, notes: list[str]) -> int:
    """Log the rest to MLflow, and return how much could not be logged."""
    on_progress(Progress("logging to MLflow"))
    num_unlogged = tracker.close()
    if num_unlogged:
        note = f"MLflow lacks {num_unlogged} trials and studies ({tracker.problem}). The next launch logs them."
        on_progress(Progress("logging to MLflow", note=note))
        notes.append(note)
    return num_unlogged
