"""The commands that show the results of a sweep: `failures` and `report`."""

from __future__ import annotations

import enum
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.options import (
    HomeOption,
    JsonOption,
    SweepArgument,
    SweepsArgument,
    console,
    print_json,
    repeated_home,
)
from orchestrator.cli.outputs import not_written, output_path
from orchestrator.environment.home import Home, home_at
from orchestrator.environment.lookup import few_images, find_sweep, load_combinable_sweeps
from orchestrator.errors import UserError
from orchestrator.spec.labels import study_text
from orchestrator.study.trial import FailureCause, TrialState
from trainer.plain_text import printable
from trainer.redaction import redact
from trainer.run_folder import LOG
from trainer.storage.files import write_bytes
from trainer.terminal import shown, write_document
from trainer.validation import unknown_name

if TYPE_CHECKING:
    from orchestrator.report.failure_groups import FailureGroup
    from orchestrator.study.study import Study


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


def failures(sweep: SweepArgument, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Group failed trials by cause, each with its trace, its log and the command that runs them again."""
    from orchestrator.report.failure_groups import group_failures
    from orchestrator.study.study import load_studies

    place, database, spec = find_sweep(home, sweep)
    studies = load_studies(spec, database, epochs=False)
    failed = [trial for study in studies for trial in study.trials if trial.state is TrialState.FAILED]
    groups = group_failures(failed)
    stopped = {study.plan.key: study.search_table.stop_reason for study in studies if study.search_table.stop_reason}
    halt = database.halt_reason(spec.name)
    trials_folder = place.trials_folder(spec.name)
    if as_json:
        print_json(
            {
                "sweep": spec.name,
                "failed": len(failed),
                "groups": [_group_json(group, trials_folder, _retry(group, sweep, home)) for group in groups],
                "stopped": [{"study": key, "reason": reason} for key, reason in stopped.items()],
                "halted": halt,
            }
        )
        return

    for group in groups:
        # The newest trial, because an older one may have failed under code that was repaired since.
        latest = group.trials[-1]
        heading = shown(f"{len(group.trials)} × {group.cause.value}", "red")
        console.print(heading + shown(f": {latest.error_summary}"), soft_wrap=True)
        for line in group.trace:
            console.print(f"    {line}")

        for trial in group.trials[:MAX_TRIALS_SHOWN]:
            console.print(f"  {trial.trial_id}  {study_text(trial.config)}, {trial.phase} {trial.number}")
        if len(group.trials) > MAX_TRIALS_SHOWN:
            console.print(f"  and {len(group.trials) - MAX_TRIALS_SHOWN} more")

        console.print(f"  log:   {_log(group, trials_folder)}")
        first = (
            "edit the spec and launch it again, or mend the data and run "
            if group.cause is FailureCause.INVALID
            else ""
        )
        console.print(f"  retry: {first}{_retry(group, sweep, home)}")
        console.print()

    for study in studies:
        if study.plan.key in stopped:
            sentence = f" {study_text(study.plan)}: {stopped[study.plan.key]}"
            console.print(shown("stopped", "red") + shown(sentence), soft_wrap=True)
    if halt:
        console.print(halt, soft_wrap=True)
    if not failed:
        console.print(f"no trial of {spec.name} has failed.")


def _group_json(group: FailureGroup, trials_folder: str, retry: str) -> dict[str, Any]:
    return {
        "cause": group.cause.value,
        "error": group.trials[-1].error_summary,
        "trace": group.trace,
        "log": _log(group, trials_folder),
        "retry": retry,
        "trials": [
            {"trial_id": trial.trial_id, "study": trial.study, "phase": trial.phase, "number": trial.number}
            for trial in group.trials
        ],
    }


def _log(group: FailureGroup, trials_folder: str) -> str:
    """Return the log of the newest trial of a group."""
    return f"{trials_folder}/{group.trials[-1].trial_id}/{LOG}"


def _retry(group: FailureGroup, sweep: str, home: str | None) -> str:
    """Return the command that runs the trials of a group again."""
    return f"sptune resume {shlex.quote(sweep)} --where '{group.condition}'{repeated_home(home)}"


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
            help="csv has the main table. html is one page to send: tables, figures, studies, spec. In a terminal "
            "it goes to a file, which is named.",
        ),
    ] = Form.terminal,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write to a file instead of standard output.")
    ] = None,
    watch: Annotated[
        bool,
        typer.Option("--watch", help="With html: write the page anew while the sweep runs. Browsers follow."),
    ] = False,
    with_cost: Annotated[
        bool,
        typer.Option("--cost", help="Add a table of what methods cost: parameters, saved MB, images/s, memory, hours."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Print the table of test accuracies with published numbers beside it, and how far to trust it."""
    if watch and form is not Form.html:
        raise UserError("--watch writes a page anew: use it with --format html.")
    if out is not None and form is Form.terminal:
        raise UserError("--out needs a format for files: add --format html, markdown, latex or csv.")
    if as_json and form is not Form.terminal:
        raise UserError("--json is a format of its own: leave --format out.")
    if with_cost and form is Form.csv:
        raise UserError("--cost adds a table, and csv has only the main one: choose another format.")

    if form is Form.html:
        _report_page(sweeps, home, out, is_watched=watch)
        return

    from orchestrator.report.render import FORMATS, to_csv
    from orchestrator.report.results_table import build_results_table
    from orchestrator.report.sections import build_sections

    # Reports need last values only; reading every epoch takes ten times as long. Hours are a sum over epochs.
    studies = load_combinable_sweeps(home, sweeps, epochs=with_cost)
    if as_json:
        from orchestrator.report.report_json import report_json

        print_json(report_json(studies, with_cost=with_cost))
        return

    match form:
        case Form.terminal:
            print_report(studies, home_at(home, studies[0].spec.cluster), with_cost=with_cost)
        case Form.csv:
            _write_text(to_csv(build_results_table(studies)), out)
        case _:
            few = few_images(studies, home_at(home, studies[0].spec.cluster))
            _write_text(FORMATS[form.value](build_sections(studies, with_cost=with_cost, few_images=few)), out)


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


def print_report(studies: Sequence[Study], place: Home, *, with_cost: bool = False) -> None:
    """Print the report to the terminal. The home has the cards of the user's own tasks."""
    from orchestrator.report.render import print_blocks
    from orchestrator.report.sections import build_sections

    blocks = build_sections(studies, with_cost=with_cost, few_images=few_images(studies, place))
    print_blocks(blocks, console)
