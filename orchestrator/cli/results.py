"""The commands that show a sweep: `status`, `failures` and `report`."""

from __future__ import annotations

import enum
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.options import HomeOption, SweepArgument, SweepsArgument, console
from orchestrator.cli.outputs import not_written, output_path
from orchestrator.environment.lookup import find_sweep, load_combinable_sweeps
from orchestrator.errors import UserError
from orchestrator.study.trial import TrialState
from trainer.plain_text import printable
from trainer.redaction import redact, redact_all
from trainer.run_folder import LOG
from trainer.storage.files import write_bytes
from trainer.terminal import shown, write_document
from trainer.validation import unknown_name

if TYPE_CHECKING:
    from orchestrator.study.storage.lease import DriverStatus
    from orchestrator.study.study import Study
    from orchestrator.study.summary import StudySummary


MAX_TRIALS_SHOWN = 10
"""Failed trials of a group that are listed by name."""


class Form(enum.Enum):
    """Formats of a report."""

    terminal = "terminal"
    markdown = "markdown"
    latex = "latex"
    csv = "csv"
    html = "html"


def _parse_form(value: object) -> Form:
    names = [form.value for form in Form]
    name = value.value if isinstance(value, Form) else str(value)
    if name not in names:
        raise typer.BadParameter(unknown_name(name, names, "a format"))

    return Form(name)


def status(
    sweep: SweepArgument,
    home: HomeOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, for scripts.")] = False,
) -> None:
    """Show the progress of a sweep and which driver runs it. Works from any terminal and changes nothing."""
    from orchestrator.cli.progress import num_running, progress_table, summary_line
    from orchestrator.study.study import load_studies
    from orchestrator.sweep.checkpoint_retention import CheckpointRetention
    from orchestrator.sweep.device_kinds import mixed_devices

    place, database, spec = find_sweep(home, sweep)
    name = spec.name
    # Epochs are read too: the time that is left is computed from them.
    studies = load_studies(spec, database)
    summaries = [study.summary() for study in studies]
    drivers = database.lease(name).drivers()
    alive = next((driver for driver in drivers if driver.is_alive), None)
    dead = next((driver for driver in drivers if not driver.is_alive), None)
    halt = database.halt_reason(name)
    mixed = mixed_devices(studies)
    num_checkpoints, checkpoint_bytes, trial_bytes = CheckpointRetention(place.trials_folder(name), spec.keep).size()

    if as_json:
        facts = {
            "sweep": name,
            "driver": alive.holder if alive is not None else None,
            "dead_driver": dead.holder if dead is not None else None,
            "halted": halt,
            "mixed_devices": mixed,
            "checkpoint_bytes": checkpoint_bytes,
            "trial_bytes": trial_bytes,
            "studies": [_json_row(summary) for summary in summaries],
        }
        # Plain print: rich would wrap and colour what a script parses.
        print(json.dumps(redact_all(facts), indent=2))
        return

    console.print(progress_table(summaries))
    console.print(f"{name}: {summary_line(summaries, num_running(summaries))}")
    console.print(f"{_driver_line(name, alive, dead)}{f'; {halt}' if halt else ''}")
    for sentence in mixed:
        console.print(sentence, soft_wrap=True)
    console.print(
        f"{num_checkpoints} checkpoints, {checkpoint_bytes / 1e6:.1f} MB, of {trial_bytes / 1e6:.1f} MB in all"
    )


def _driver_line(name: str, alive: DriverStatus | None, dead: DriverStatus | None) -> str:
    if alive is not None:
        return f"driven by {alive.describe()}"
    if dead is not None:
        return (
            f"no driver is running it: {dead.describe()} is dead, {dead.describe_last_heartbeat()}. "
            f"Run `sptune resume {shlex.quote(name)}` to continue"
        )
    return "no driver is running it"


def failures(sweep: SweepArgument, home: HomeOption = None) -> None:
    """Group failed trials by cause, each with its trace, its log and the command that runs them again."""
    from orchestrator.report.failure_groups import group_failures
    from orchestrator.study.study import load_studies

    place, database, spec = find_sweep(home, sweep)
    studies = load_studies(spec, database, epochs=False)
    failed = [trial for study in studies for trial in study.trials if trial.state is TrialState.FAILED]

    for group in group_failures(failed):
        # The newest trial, because an older one may have failed under code that was repaired since.
        latest = group.trials[-1]
        heading = shown(f"{len(group.trials)} × {group.cause.value}", "red")
        console.print(heading + shown(f": {latest.error_summary}"), soft_wrap=True)
        for line in group.trace:
            console.print(f"    {line}")

        for trial in group.trials[:MAX_TRIALS_SHOWN]:
            console.print(f"  {trial.trial_id}  {trial.study}, {trial.phase} {trial.number}")
        if len(group.trials) > MAX_TRIALS_SHOWN:
            console.print(f"  and {len(group.trials) - MAX_TRIALS_SHOWN} more")

        log = f"{place.trials_folder(spec.name)}/{latest.trial_id}/{LOG}"
        console.print(f"  log:   {log}")
        command = f"sptune resume {shlex.quote(sweep)} --where '{group.condition}'"
        console.print(f"  retry: {command}")
        console.print()

    for study in studies:
        reason = study.search_table.stop_reason
        if reason:
            console.print(shown("stopped", "red") + shown(f" {study.plan.key}: {reason}"), soft_wrap=True)
    halt = database.halt_reason(spec.name)
    if halt:
        console.print(halt, soft_wrap=True)
    if not failed:
        console.print(f"no trial of {spec.name} has failed.")


def report(
    sweeps: SweepsArgument,
    home: HomeOption = None,
    form: Annotated[
        Form,
        typer.Option(
            "--format",
            parser=_parse_form,
            metavar="|".join(form.value for form in Form),
            show_default=Form.terminal.value,
            help="csv has the main table. html is one page to send: tables, figures, studies, spec.",
        ),
    ] = Form.terminal,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write to a file instead of standard output.")
    ] = None,
    watch: Annotated[
        bool,
        typer.Option("--watch", help="With html: write the page anew while the sweep runs. Browsers follow."),
    ] = False,
) -> None:
    """Print the table of test accuracies with published numbers beside it, and how far to trust it."""
    if watch and form is not Form.html:
        raise UserError("--watch writes a page anew: use it with --format html.")
    if out is not None and form is Form.terminal:
        raise UserError("--out needs a format for files: add --format html, markdown, latex or csv.")

    if form is Form.html:
        _report_page(sweeps, home, out, is_watched=watch)
        return

    from orchestrator.report.render import FORMATS, to_csv
    from orchestrator.report.results_table import build_results_table
    from orchestrator.report.sections import build_sections

    # Reports need last values only; reading every epoch takes ten times as long.
    studies = load_combinable_sweeps(home, sweeps, epochs=False)
    match form:
        case Form.terminal:
            print_report(studies)
        case Form.csv:
            _write_text(to_csv(build_results_table(studies)), out)
        case _:
            _write_text(FORMATS[form.value](build_sections(studies)), out)


def _report_page(sweeps: list[str], home: str | None, out: Path | None, *, is_watched: bool) -> None:
    from orchestrator.cli import html_report

    # A page is nothing to read in a terminal.
    if out is None and not is_watched and not sys.stdout.isatty():
        write_document(html_report.render(home, sweeps))
        return

    _, database, spec = find_sweep(home, sweeps[0])
    database.close()
    file = output_path(out, f"{spec.name}-report.html")
    try:
        if is_watched:
            console.print(f"{file} is written every {html_report.WATCH_S} s while the sweep runs. Ctrl-C ends this.")
            html_report.watch(home, sweeps, file)
        else:
            html_report.write(file, html_report.render(home, sweeps))
    except OSError as error:
        raise not_written(error) from None
    console.print(f"{file}")


def _write_text(text: str, out: Path | None) -> None:
    if out is None:
        write_document(text)
        return
    try:
        write_bytes(output_path(out, ""), printable(redact(text), keep="\n\t").encode())
    except OSError as error:
        raise not_written(error) from None


def print_report(studies: Sequence[Study]) -> None:
    """Print the report to the terminal."""
    from orchestrator.report.render import print_blocks
    from orchestrator.report.sections import build_sections

    print_blocks(build_sections(studies), console)


def _json_row(summary: StudySummary) -> dict[str, Any]:
    scores = [trial.score for trial in summary.final_trials if trial.score is not None]
    return {
        "task": summary.plan.task,
        "method": summary.plan.method,
        "backbone": summary.plan.backbone,
        "train_size": summary.plan.train_size,
        "val_size": summary.plan.val_size,
        "draw": summary.plan.draw,
        "planned": summary.num_planned,
        "finished": summary.num_finished,
        **{state.value: summary.states[state] for state in TrialState},
        "best_val_accuracy": summary.best.score if summary.best else None,
        "test_accuracies": scores,
        "stopped": summary.stop_reason,
        "worker_seconds": summary.seconds,
    }
