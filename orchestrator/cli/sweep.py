"""The commands that change a sweep: `launch`, `resume`, `stop` and `rm`."""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

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
    open_record,
    place_for,
    recorded,
)
from orchestrator.cli.results import print_report
from orchestrator.errors import HomeError, SpecError, UserError
from orchestrator.home import DEFAULT_HOME, Home, Workplace, home_at
from orchestrator.results import TrialResult, TrialState
from orchestrator.spec import SweepSpec
from orchestrator.spec_file import find_spec, load_spec
from orchestrator.where import chosen
from trainer.storage import delete_folder

if TYPE_CHECKING:
    from orchestrator.mlflow_tracker import MlflowTracker
    from orchestrator.record import Record
    from orchestrator.study import Study
    from orchestrator.sweep import Sweep


def launch(
    spec: SpecArgument,
    home: HomeOption = DEFAULT_HOME,
    inline: InlineOption = False,
    address: AddressOption = None,
    weights: WeightsOption = None,
) -> None:
    """Run a sweep to its table; started again after anything, it goes on where it was.

    Ctrl-C once: running trials save at their next epoch; twice: at once. Both go on later.
    """
    problems: list[str] = []
    sweep = None
    path = find_spec(spec)
    try:
        sweep = load_spec(path, functools.partial(missing, home=home_at(home), weights=weights))
    except SpecError as error:
        problems += error.problems
    try:
        home_at(home).check()
    except HomeError as error:
        problems.append(str(error))
    if problems or sweep is None:
        raise SpecError(str(path), problems)
    home_at(home).make()
    _run(sweep, home_at(home), open_record(home_at(home)), inline, address, weights)


def resume(
    sweep: SweepArgument,
    home: HomeOption = DEFAULT_HOME,
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
    place = home_at(home)
    record, spec = recorded(place, sweep)
    if problems := missing(spec, place, weights):
        raise SpecError(f"the recorded spec of {sweep}", problems)
    fits = chosen(where, trial or [])
    again = (lambda found: found.state is TrialState.FAILED and fits(found)) if failed or trial or where else None
    _run(spec, place, record, inline, address, weights, again, bool(trial or where))


def stop(sweep: SweepArgument, home: HomeOption = DEFAULT_HOME) -> None:
    """Stop a sweep that a driver is at work on elsewhere: its running trials save at their next epoch."""
    record, _ = recorded(home_at(home), sweep)
    lease = record.lease(sweep)
    if not lease.ask_to_stop():
        raise UserError(f"no driver is at work on {sweep}: there is nothing to stop.")
    with console.status(f"asked; waiting for the running trials of {sweep} to save"):
        while lease.holders():
            time.sleep(0.5)
    console.print(f"{sweep} has stopped; `sptune resume {sweep}` goes on.", highlight=False)


def rm(
    sweep: SweepArgument,
    home: HomeOption = DEFAULT_HOME,
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
    from orchestrator.study import open_studies

    place = home_at(home)
    record, spec = recorded(place, sweep)
    if study and (trial or where):
        raise UserError("--study forgets whole studies; give it without --trial and --where.")
    everything = open_studies(spec, record)
    studies = [one for one in everything if study is None or fnmatchcase(one.plan.key, study)]
    if not studies:
        raise UserError(
            f"no study of {sweep} is like {study!r}; there are: {', '.join(s.plan.key for s in everything)}."
        )
    fits = chosen(where, trial or [])
    count = sum(fits(one) for each in studies for one in each.trials)
    whole = not (trial or where)
    if not count and not whole:
        raise UserError(f"no trial of {sweep} is like that; `sptune status {sweep}` shows what there is.")
    what = f"{count} trials" + (f" of {len(studies)} studies, and these" if whole else "")
    if not yes:
        typer.confirm(f"Forget {what} of {sweep}, for ever?", abort=True)
    lease = record.lease(sweep)
    lease.take(sweep)
    try:
        _forget(record, spec, place, studies, fits, studies_too=whole)
        if whole and study is None:
            record.forget(sweep)
            delete_folder(str(Path(place.trials(sweep)).parent))
    finally:
        lease.release()
    console.print(f"forgot {what} of {sweep}.", highlight=False)


def _forget(
    record: Record,
    spec: SweepSpec,
    home: Home,
    studies: list[Study],
    fits: Callable[[TrialResult], bool],
    *,
    studies_too: bool,
) -> None:
    """First in MLflow and on disk, last in the record: interrupted, it can be said again."""
    from orchestrator.mlflow_runs import forget_runs

    trials = [trial for study in studies for trial in study.trials if fits(trial)]
    runs = [
        rows.tracked(trial.number)[0]
        for study in studies
        for rows in (study.search, study.final)
        for trial in rows.trials
        if fits(trial)
    ]
    runs += [study.search.mlflow_run for study in studies] if studies_too else []
    forget_runs(home.mlflow_uri, [run for run in runs if run is not None])
    for trial in trials:
        delete_folder(f"{home.trials(spec.name)}/{trial.trial_id}")
    for study in studies:
        if studies_too:
            study.search.remove()
            study.final.remove()
        else:
            study.again(fits, forget=True)


def _run(
    spec: SweepSpec,
    home: Home,
    record: Record,
    inline: bool,
    address: str | None,
    weights: str | None,
    again: Callable[[TrialResult], bool] | None = None,
    named: bool = False,
) -> None:
    from orchestrator.checkpoints import Checkpoints
    from orchestrator.live import LiveView
    from orchestrator.mlflow_runs import Runs
    from orchestrator.mlflow_tracker import MlflowTracker
    from orchestrator.study import open_studies
    from orchestrator.sweep import Sweep
    from orchestrator.throughput import Throughput

    trials = home.trials(spec.name)
    with contextlib.ExitStack() as ends:
        lease = record.lease(spec.name)
        lease.take(spec.name)
        ends.callback(lease.release)
        if again is not None:
            found = [entry for study in open_studies(spec, record) for entry in study.again(again)]
            if named and not found:
                raise UserError(
                    f"no failed trial of {spec.name} is like that; `sptune failures {spec.name}` lists them."
                )
            console.print(f"{len(found)} failed trials of {spec.name} are run again.", highlight=False)
        runs = Runs(home.mlflow_uri, spec.name, trials, home.mlflow_artifacts, home.data_root, [*spec.space])
        tracker = MlflowTracker(runs)
        ends.callback(_tell_the_rest, tracker)
        sweep = Sweep(spec, record, tracker, lease=lease, on_finish=Checkpoints(trials, spec.keep).tidy)
        ends.callback(sweep.close)
        if sweep.done:
            console.print(f"{spec.name} is finished; nothing to run.", highlight=False)
        else:
            try:
                with LiveView(sweep, console) as update:
                    _drive(sweep, place_for(spec, home, weights, trials), update, inline, address)
            except KeyboardInterrupt:
                told = f"stopped; `sptune resume {spec.name}` goes on from the last finished epochs."
                console.print(told, highlight=False)
                raise typer.Exit(130) from None
    Throughput.of(home.throughput_file).learn(sweep.studies, home.data_root)
    print_report(sweep.studies)
    console.print(f"\nEvery trial in MLflow: sptune ui --home {_short(home.folder)}", highlight=False, soft_wrap=True)
    if sweep.halt is not None:
        console.print(f"\n{sweep.halt.reason}; `sptune resume {spec.name}` goes on.", highlight=False, soft_wrap=True)
        raise typer.Exit(130 if sweep.halt.at_once else 3)
    if any(not summary.finals for summary in sweep.summaries()):
        raise typer.Exit(1)


def _drive(sweep: Sweep, workplace: Workplace, update: Callable[[], None], inline: bool, address: str | None) -> None:
    if inline:
        from orchestrator import inline as inline_driver

        inline_driver.drive(sweep, workplace, update)
    else:
        from orchestrator import ray_driver

        ray_driver.drive(sweep, workplace, update, address)


def _tell_the_rest(tracker: MlflowTracker) -> None:
    with console.status("telling MLflow the rest"):
        untold = tracker.close()
    if untold:
        told = f"MLflow lacks {untold} trials and studies ({tracker.problem}): they are told at the next launch."
        console.print(told, highlight=False, soft_wrap=True)


def _short(folder: Path) -> str:
    return os.path.relpath(folder) if folder.is_relative_to(Path.cwd()) else str(folder)
