"""The commands that change a sweep: `launch`, `resume`, `stop` and `rm`."""

from __future__ import annotations

import shlex
import signal
import sys
import time
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.options import (
    AddressOption,
    HomeOption,
    InlineOption,
    MetricsOption,
    SpecArgument,
    SweepArgument,
    TrialOption,
    WeightsOption,
    WhereOption,
    console,
    repeated_home,
    surviving_lost_output,
)
from orchestrator.cli.trial_filter import distinguishing_condition, nothing_matches, parse_trial_filter
from orchestrator.environment.lookup import find_sweep
from orchestrator.errors import UserError
from orchestrator.redaction import redact
from orchestrator.spec.labels import study_text
from orchestrator.study.trial import Trial, TrialState
from trainer.plain_text import counted, printable
from trainer.storage.files import delete_folder
from trainer.storage.run_results import has_whole_results

if TYPE_CHECKING:
    from orchestrator.launch import Rerun, SweepOutcome
    from orchestrator.launch.outcome import DriverName

NO_RESULT, HALTED, INTERRUPTED, TERMINATED = 1, 3, 130, 143
"""Exit statuses beside 0 (done) and 2 (a user's mistake, in `orchestrator.cli.main`)."""


def launch(
    spec: SpecArgument,
    home: HomeOption = None,
    inline: InlineOption = False,
    address: AddressOption = None,
    weights: WeightsOption = None,
    metrics: MetricsOption = None,
) -> None:
    """Run a sweep and print its results. Run the same command again to resume.

    Press Ctrl-C once to stop after the current epoch, twice to stop immediately. Nothing is lost either way.

    Exit status: 0 if the sweep is done, 1 if a study has no result, 2 for a mistake, 3 if a budget or repeated
    failures stopped it, 130 if you stopped it, 143 if SIGTERM did.
    """
    from orchestrator import launch as api
    from orchestrator.cli.progress import LiveView

    driver: DriverName = "inline" if inline else "ray"
    with LiveView(console) as view:
        outcome = api.launch(
            spec, home=home, driver=driver, address=address, weights=weights, on_progress=view, metrics=metrics
        )
    _finish(outcome, home)


def resume(
    sweep: SweepArgument,
    home: HomeOption = None,
    failed: Annotated[bool, typer.Option("--failed", help="Run failed trials again.")] = False,
    trial: TrialOption = None,
    where: WhereOption = None,
    inline: InlineOption = False,
    address: AddressOption = None,
    weights: WeightsOption = None,
    metrics: MetricsOption = None,
) -> None:
    """Resume a sweep by its name, with the spec that the study database holds.

    `--failed` runs failed trials again, from their last epochs; `--trial` and `--where` select some of them. `--trial`
    also runs a complete trial again whose result files are damaged or missing.
    """
    from orchestrator import launch as api
    from orchestrator.cli.progress import LiveView

    driver: DriverName = "inline" if inline else "ray"
    rerun = _rerun(failed, trial, where, lambda: _trials_folder(home, sweep))
    with LiveView(console) as view:
        outcome = api.resume(
            sweep,
            home=home,
            driver=driver,
            address=address,
            weights=weights,
            rerun=rerun,
            on_progress=view,
            metrics=metrics,
        )
    if rerun is not None:
        kind = "trials" if trial else "failed trials"
        console.print(f"{outcome.num_rerun} {kind} of {outcome.name} were run again.")
    _finish(outcome, home)


def _trials_folder(home: str | None, sweep: str) -> str:
    place, _, spec = find_sweep(home, sweep)
    return place.trials_folder(spec.name)


def _rerun(failed: bool, trial: list[str] | None, where: str | None, find_folder: Callable[[], str]) -> Rerun | None:
    """Return which trials to run again; None if the user asked for none.

    Args:
        find_folder: returns the folder of the sweep's trials.
    """
    from orchestrator.launch import Rerun

    # Parsed first, so that a mistake in --where is found even if nothing else asks for a rerun.
    is_selected = parse_trial_filter(where, trial or [])
    if not (failed or trial or where):
        return None

    # Only where trials are named: it reads their results.
    folder = find_folder() if trial else None

    def matches(candidate: Trial) -> bool:
        if not is_selected(candidate):
            return False
        if candidate.state is TrialState.FAILED:
            return True
        is_own = candidate.state is TrialState.COMPLETE and candidate.duplicate_of is None
        return folder is not None and is_own and not has_whole_results(f"{folder}/{candidate.trial_id}")

    return Rerun(matches, must_match=bool(trial or where))


def _finish(outcome: SweepOutcome, home: str | None) -> None:
    """Print the results of a launch, and exit with its status."""
    with surviving_lost_output():
        _print_outcome(outcome, repeated_home(home))
    raise typer.Exit(_exit_status(outcome))


def _print_outcome(outcome: SweepOutcome, home_option: str) -> None:
    from orchestrator.cli.results import print_report

    resume_command = f"sptune resume {shlex.quote(outcome.name)}{home_option}"
    if outcome.is_interrupted:
        console.print(f"stopped. Run `{resume_command}` to continue from the last finished epochs.")
        # No report: it would say little about a sweep that was cut off, and the user wants the prompt back.
        return

    way_out = f"Run `{resume_command}` to continue."
    if (
        outcome.halt is not None
        and outcome.halt.interrupt_running
        and not any(study.has_result for study in outcome.studies)
    ):
        # A report without a test accuracy would be a table of dashes.
        console.print(f"{outcome.halt.reason}. {way_out}")
        console.print(f"{_kept(outcome)} There is no test accuracy yet.")
        return

    if outcome.was_finished:
        console.print(f"{outcome.name} is finished; nothing to run.")
    print_report(outcome.studies, outcome.home)
    console.print()
    _print_next_steps(outcome, home_option)

    if outcome.halt is not None:
        console.print()
        console.print(f"{outcome.halt.reason}. {way_out}")


def _kept(outcome: SweepOutcome) -> str:
    """Return what an interrupted sweep has, in words."""
    summaries = [study.summary() for study in outcome.studies]
    num_finished = sum(summary.num_finished for summary in summaries)
    num_planned = sum(summary.num_planned for summary in summaries)
    trials = [trial for study in outcome.studies for trial in study.trials]
    num_begun = sum(trial.state is TrialState.WAITING and len(trial.epochs) > 0 for trial in trials)
    begun = f", and {num_begun} unfinished with their last epochs" if num_begun else ""
    return f"Kept: {num_finished} of {counted(num_planned, 'trial')} finished{begun}."


def _print_next_steps(outcome: SweepOutcome, home_option: str) -> None:
    """Print the commands that people look for after a launch."""
    name = shlex.quote(outcome.name)
    address = f"sptune ui{home_option}" if outcome.home.mlflow_file is not None else redact(outcome.home.mlflow_uri)
    console.print(f"Every trial in MLflow: {address}", soft_wrap=True)
    console.print(f"A page to send: sptune report {name} --format html{home_option}", soft_wrap=True)

    with_result = [study for study in outcome.studies if study.has_result]
    if with_result:
        # Accuracies of different tasks cannot be compared.
        of_one_task = [study for study in with_result if study.plan.task == with_result[0].plan.task]
        best = max(of_one_task, key=lambda study: (study.best and study.best.score) or 0.0)
        where = f" --where '{distinguishing_condition([best, *with_result])}'" if len(with_result) > 1 else ""
        console.print(f"Classes of your images: sptune predict {name}{where}{home_option} IMAGE...", soft_wrap=True)


def _exit_status(outcome: SweepOutcome) -> int:
    if outcome.is_interrupted or (outcome.halt is not None and outcome.halt.interrupt_running):
        # Batch systems and shells expect 128 and the number of the signal.
        return TERMINATED if outcome.stopped_by == signal.SIGTERM else INTERRUPTED
    if outcome.halt is not None:
        # Scripts tell a stop by a person from one by a budget.
        return HALTED
    return NO_RESULT if outcome.studies_without_result else 0


def stop(sweep: SweepArgument, home: HomeOption = None) -> None:
    """Stop a sweep that runs in another terminal or on another machine. Running trials save at their next epoch."""
    _, database, spec = find_sweep(home, sweep, writes=True)
    name = spec.name
    lease = database.lease(name)
    asked = lease.request_stop()
    if not asked:
        raise UserError(f"no driver is running {name}: there is nothing to stop.")

    # The driver disappears when it has saved and released its lease.
    with console.status(f"waiting for {asked[0].describe()} to save the running trials of {name}"):
        left = asked
        while any(driver.is_alive for driver in left):
            time.sleep(0.5)
            left = lease.drivers()

    if left:
        raise UserError(
            f"the driver of {name} died before it had saved. Finished epochs are kept. "
            f"Run `sptune resume {shlex.quote(sweep)}{repeated_home(home)}` to continue."
        )
    console.print(f"{name} has stopped. Run `sptune resume {shlex.quote(sweep)}{repeated_home(home)}` to continue.")


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
    """Delete trials, studies or a whole sweep: from the study database, from MLflow and from disk.

    Deleted trials count as never run: the next `launch` or `resume` runs what the spec asks for.
    """
    from orchestrator.study.study import load_studies
    from orchestrator.tracking.deletion import delete_outputs, release_experiment

    place, database, spec = find_sweep(home, sweep, writes=True)
    name = spec.name
    if study and (trial or where):
        raise UserError("--study deletes whole studies; use it without --trial and --where.")

    every_study = load_studies(spec, database)
    studies = [
        candidate
        for candidate in every_study
        if study is None or fnmatchcase(candidate.plan.key, study) or fnmatchcase(study_text(candidate.plan), study)
    ]
    if not studies:
        names = ", ".join(study_text(candidate.plan) for candidate in every_study)
        raise UserError(f"no study of {name} matches {study!r}; there are: {names}.")

    # Without --trial and --where every trial matches.
    matches = parse_trial_filter(where, trial or [])
    num_trials = sum(matches(candidate) for each in studies for candidate in each.trials)
    is_whole = not (trial or where)
    if not num_trials and not is_whole:
        raise UserError(nothing_matches(f"trial of {name}", sweep, studies, where))

    what = f"{counted(num_trials, 'trial')} of {printable(name)}"
    if is_whole:
        what = f"{counted(len(studies), 'study')} of {printable(name)} with {counted(num_trials, 'trial')}"
    lease = database.lease(name)
    # Nobody is asked a question whose answer would be refused.
    lease.raise_if_driven(name)
    if not yes:
        _confirm_deletion(what)

    # A driver at work would write the deleted trials again.
    lease.acquire(name)
    try:
        sweep_id = database.sweep_id(name)
        # The study database comes last: after an interruption, `rm` can be repeated.
        delete_outputs(place, spec, sweep_id, studies, matches, with_studies=is_whole)
        # A sweep that gets its trials back has an end to tell again.
        database.save_notified(name, [])
        for each in studies:
            if is_whole:
                each.delete_trials()
            else:
                each.reset_trials(matches, discard_progress=True)
        if is_whole and study is None:
            release_experiment(place, spec, sweep_id)
            database.delete_sweep(name)
            delete_folder(place.trials_folder(name).rpartition("/")[0])
    finally:
        lease.release()
    console.print(f"deleted {what}.")


def _confirm_deletion(what: str) -> None:
    try:
        is_sure = typer.confirm(f"Delete {what}? This cannot be undone.")
    except typer.Abort:
        if sys.stdin.isatty():
            raise
        raise UserError(f"nothing was deleted. Where nobody can answer, add --yes to delete {what}.") from None
    if not is_sure:
        raise typer.Abort
