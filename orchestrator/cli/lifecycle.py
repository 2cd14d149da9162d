"""The commands that change a sweep: `launch`, `resume`, `stop` and `rm`."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.lookup import find_sweep
from orchestrator.cli.options import (
    AddressOption,
    HomeOption,
    InlineOption,
    SpecArgument,
    SweepArgument,
    TrialOption,
    WeightsOption,
    WhereOption,
    console,
    missing,
)
from orchestrator.cli.run import run
from orchestrator.cli.trial_filter import parse_trial_filter
from orchestrator.environment.connections import open_database
from orchestrator.environment.home import Home, home_at
from orchestrator.errors import SpecError, UserError
from orchestrator.spec.loader import find_spec, load_cluster, load_spec
from orchestrator.spec.schema import SweepSpec
from orchestrator.study.trial import Trial, TrialState
from trainer.storage.files import delete_folder

if TYPE_CHECKING:
    from orchestrator.study.storage.database import StudyDatabase
    from orchestrator.study.study import Study


def launch(
    spec: SpecArgument,
    home: HomeOption = None,
    inline: InlineOption = False,
    address: AddressOption = None,
    weights: WeightsOption = None,
) -> None:
    """Run a sweep to its table; started again after anything, it goes on where it was.

    Ctrl-C once: running trials save at their next epoch; twice: at once. Both go on later.
    """
    path = find_spec(spec)
    cluster = load_cluster(path)
    place, weights = home_at(home, cluster), weights or cluster.weights
    problems = [*place.problems()]
    sweep = None
    try:
        sweep = load_spec(path, functools.partial(missing, home=place, weights=weights))
    except SpecError as error:
        problems = [*error.problems, *problems]
    if problems or sweep is None:
        raise SpecError(str(path), problems)
    place.create()
    run(sweep, place, open_database(place), inline, address or cluster.address, weights)


def resume(
    sweep: SweepArgument,
    home: HomeOption = None,
    failed: Annotated[bool, typer.Option("--failed", help="Run failed trials again, too.")] = False,
    trial: TrialOption = None,
    where: WhereOption = None,
    inline: InlineOption = False,
    address: AddressOption = None,
    weights: WeightsOption = None,
) -> None:
    """Go on with a sweep by its name; the record holds its spec.

    `--failed` runs failed trials again, from their last epochs; `--trial` and `--where` choose among them.
    """
    place, record, spec = find_sweep(home, sweep, to_run=True)
    weights = weights or spec.cluster.weights
    if problems := [*place.problems(), *missing(spec, place, weights)]:
        raise SpecError(f"the recorded spec of {spec.name}", problems)
    place.create()
    fits = parse_trial_filter(where, trial or [])
    again = (lambda found: found.state is TrialState.FAILED and fits(found)) if failed or trial or where else None
    run(spec, place, record, inline, address or spec.cluster.address, weights, again, bool(trial or where))


def stop(sweep: SweepArgument, home: HomeOption = None) -> None:
    """Stop a sweep that a driver is at work on elsewhere: its running trials save at their next epoch."""
    _, record, spec = find_sweep(home, sweep)
    name = spec.name
    lease = record.lease(name)
    if not lease.request_stop():
        raise UserError(f"no driver is at work on {name}: there is nothing to stop.")
    with console.status(f"asked; waiting for the running trials of {name} to save"):
        while lease.holders():
            time.sleep(0.5)
    console.print(f"{name} has stopped; `sptune resume {sweep}` goes on.", highlight=False)


def rm(
    sweep: SweepArgument,
    home: HomeOption = None,
    trial: TrialOption = None,
    where: WhereOption = None,
    study: Annotated[
        str | None, typer.Option(metavar="KEY", help="Whole studies, by a shell pattern: `vtab/dtd linear*`.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Forget trials, studies or a whole sweep: in the record, in MLflow and on disk.

    Chosen trials are as if they had never been run; the next `launch` or `resume` runs what its spec asks for.
    """
    from orchestrator.study.study import load_studies

    place, record, spec = find_sweep(home, sweep)
    name = spec.name
    if study and (trial or where):
        raise UserError("--study forgets whole studies; give it without --trial and --where.")
    everything = load_studies(spec, record)
    studies = [one for one in everything if study is None or fnmatchcase(one.plan.key, study)]
    if not studies:
        raise UserError(
            f"no study of {name} is like {study!r}; there are: {', '.join(s.plan.key for s in everything)}."
        )
    fits = parse_trial_filter(where, trial or [])
    count = sum(fits(one) for each in studies for one in each.trials)
    whole = not (trial or where)
    if not count and not whole:
        raise UserError(f"no trial of {name} is like that; `sptune status {sweep}` shows what there is.")
    what = f"{count} trials" + (f" of {len(studies)} studies, and these" if whole else "")
    if not yes:
        typer.confirm(f"Forget {what} of {name}, for ever?", abort=True)
    lease = record.lease(name)
    lease.acquire(name)
    try:
        _delete(record, spec, place, studies, fits, studies_too=whole)
        if whole and study is None:
            record.delete_sweep(name)
            delete_folder(place.trials_folder(name).rpartition("/")[0])
    finally:
        lease.release()
    console.print(f"forgot {what} of {name}.", highlight=False)


def _delete(
    record: StudyDatabase,
    spec: SweepSpec,
    home: Home,
    studies: list[Study],
    fits: Callable[[Trial], bool],
    *,
    studies_too: bool,
) -> None:
    """First in MLflow and on disk, last in the record: interrupted, it can be said again."""
    from orchestrator.tracking.mlflow_runs import delete_runs

    trials = [trial for study in studies for trial in study.trials if fits(trial)]
    runs = [
        rows.synced_run(trial.number)[0]
        for study in studies
        for rows in (study.search_table, study.final_table)
        for trial in rows.trials
        if fits(trial)
    ]
    runs += [study.search_table.mlflow_run for study in studies] if studies_too else []
    delete_runs(home.mlflow_uri, [run for run in runs if run is not None])
    for trial in trials:
        delete_folder(f"{home.trials_folder(spec.name)}/{trial.trial_id}")
    for study in studies:
        if studies_too:
            study.search_table.delete()
            study.final_table.delete()
        else:
            study.reset_trials(fits, discard_progress=True)
