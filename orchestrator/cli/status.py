"""The commands that show how far sweeps are: `status` and `list`."""

from __future__ import annotations

import shlex
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.fitting_table import FittingTable, Row
from orchestrator.cli.options import (
    HomeOption,
    JsonOption,
    OptionalSweepArgument,
    console,
    pause_until_next_look,
    print_json,
    print_prose,
    repeated_home,
    surviving_lost_output,
)
from orchestrator.environment.home import home_at
from orchestrator.errors import UserError
from orchestrator.study.trial import TrialState
from trainer.plain_text import counted
from trainer.terminal import shown

if TYPE_CHECKING:
    from rich.console import Group

    from orchestrator.cli.sweep_status import ListedSweep, SweepStatus
    from orchestrator.study.summary import StudySummary

REDRAW_EVERY_S = 2.0
"""Seconds between two looks at a sweep that is watched."""
LINES_BELOW = 8
"""Lines of a screen that are not for studies."""


def status(
    sweep: OptionalSweepArgument = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show it anew until its driver ends, or until Ctrl-C, which stops no sweep.")
    ] = False,
) -> None:
    """Show the progress of a sweep and which driver runs it. Works from any terminal and changes nothing.

    Without a sweep, it lists all sweeps of the home, as `sptune list` does.
    """
    if watch and (sweep is None or as_json):
        raise UserError("--watch shows one sweep to a person: name the sweep, and leave --json out.")

    if sweep is None:
        list_(home, as_json)
    elif watch:
        _watch(home, sweep)
    else:
        _show(home, sweep, as_json=as_json)


def list_(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """List the sweeps of a home: how far each is, and whether a driver runs it. Changes nothing."""
    from orchestrator.cli.sweep_status import list_sweeps

    place = home_at(home)
    sweeps = list_sweeps(place)
    if as_json:
        print_json({"home": place.root, "sweeps": [_listed_json(each) for each in sweeps]})
        return

    rows = [
        Row(
            names=(each.name, each.state),
            numbers=(
                shown(f"{each.num_finished}/{each.num_planned}"),
                shown(str(each.num_failed or ""), "red"),
                shown(str(each.num_studies)),
            ),
        )
        for each in sweeps
    ]
    table = FittingTable(
        title=f"sweeps in {place.root}", names=("sweep", "state"), numbers=("done", "failed", "studies"), rows=rows
    )
    console.print(table)
    for each in sweeps:
        resume = f". {_resume_sentence(each.name, home)}" if each.state == "dead" else ""
        if each.note:
            console.print(f"{each.name}: {each.note}{resume}")
        if each.num_failed:
            # "done" says that nothing is left to run, not that it went well.
            failed = counted(each.num_failed, "trial")
            command = f"sptune failures {shlex.quote(each.name)}{repeated_home(home)}"
            console.print(f"{each.name}: {failed} failed; `{command}` shows why.")


def _show(home: str | None, sweep: str, *, as_json: bool) -> None:
    from orchestrator.cli.sweep_status import read_status

    facts = read_status(home, sweep)
    if as_json:
        print_json(_json(facts))
        return

    from orchestrator.cli.progress import progress_table

    console.print(progress_table(facts.summaries))
    print_prose(_summary(facts))
    console.print(_driver_line(facts, home))
    for sentence in facts.mixed_devices:
        console.print(sentence, soft_wrap=True)
    print_prose(_size_line(facts))


def _watch(home: str | None, sweep: str) -> None:
    """Show a sweep until no driver runs it, or until Ctrl-C."""
    from rich.live import Live

    from orchestrator.cli.sweep_status import read_status

    last_line = ""
    with surviving_lost_output(), Live(console=console, auto_refresh=False) as live:
        try:
            while True:
                began_at = time.monotonic()
                # Opened for each look: what a copy of a database holds would stay as it was.
                facts = read_status(home, sweep)
                line = f"{_summary(facts)}; {_driver_line(facts, home)}"
                if console.is_terminal:
                    live.update(_screen(facts, home), refresh=True)
                elif line != last_line:
                    console.print(line)
                last_line = line
                if facts.alive is None:
                    return

                pause_until_next_look(REDRAW_EVERY_S, began_at)
        except KeyboardInterrupt:
            # The way to end it, so it is no interruption to report.
            return


def _screen(facts: SweepStatus, home: str | None) -> Group:
    from rich.console import Group

    from orchestrator.cli.progress import progress_table

    table = progress_table(facts.summaries, max(3, console.height - LINES_BELOW))
    return Group(table, shown(_summary(facts), "bold"), shown(_driver_line(facts, home)), shown(_size_line(facts)))


def _summary(facts: SweepStatus) -> str:
    from orchestrator.cli.progress import num_running, summary_line

    return f"{facts.name}: {summary_line(facts.summaries, num_running(facts.summaries))}"


def _size_line(facts: SweepStatus) -> str:
    checkpoints = counted(facts.num_checkpoints, "checkpoint")
    return f"{checkpoints}, {facts.checkpoint_bytes / 1e6:.1f} MB, of {facts.trial_bytes / 1e6:.1f} MB in all"


def _driver_line(facts: SweepStatus, home: str | None) -> str:
    halt = f"; {facts.halt}" if facts.halt else ""
    if facts.alive is not None:
        return f"driven by {facts.alive.describe()}{halt}"
    if facts.dead is not None:
        return (
            f"no driver is running it: {facts.dead.describe()} is dead, {facts.dead.describe_last_heartbeat()}. "
            f"{_resume_sentence(facts.name, home)}{halt}"
        )
    return f"no driver is running it{halt}"


def _resume_sentence(name: str, home: str | None) -> str:
    return f"Run `sptune resume {shlex.quote(name)}{repeated_home(home)}` to continue"


def _json(facts: SweepStatus) -> dict[str, Any]:
    return {
        "sweep": facts.name,
        "state": facts.state,
        "planned": sum(summary.num_planned for summary in facts.summaries),
        "finished": sum(summary.num_finished for summary in facts.summaries),
        "driver": facts.alive.holder if facts.alive is not None else None,
        "dead_driver": facts.dead.holder if facts.dead is not None else None,
        "halted": facts.halt,
        "mixed_devices": facts.mixed_devices,
        "checkpoint_bytes": facts.checkpoint_bytes,
        "trial_bytes": facts.trial_bytes,
        "studies": [study_json(summary) for summary in facts.summaries],
    }


def _listed_json(each: ListedSweep) -> dict[str, Any]:
    return {
        "sweep": each.name,
        "state": each.state,
        "studies": each.num_studies,
        "planned": each.num_planned,
        "finished": each.num_finished,
        "failed": each.num_failed,
        "note": each.note or None,
    }


def study_json(summary: StudySummary) -> dict[str, Any]:
    """Return the progress of a study for scripts."""
    scores = [trial.score for trial in summary.final_trials if trial.score is not None]
    return {
        **summary.plan.axes,
        "planned": summary.num_planned,
        "finished": summary.num_finished,
        **{state.value: summary.states[state] for state in TrialState},
        "best_val_accuracy": summary.best.score if summary.best else None,
        "test_accuracies": scores,
        "stopped": summary.stop_reason,
        "worker_seconds": summary.seconds,
    }
