"""The command `sptune`. Each file holds one family of its commands."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from orchestrator import __version__
from orchestrator.cli import data, lifecycle, model, outputs, results
from orchestrator.cli.doctor import doctor
from orchestrator.cli.plan import plan, replay
from orchestrator.errors import UserError
from trainer.plain_text import printable
from trainer.terminal import OutputError, open_terminal

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Hyperparameter sweeps of Self-Prompt Tuning on frozen ViTs. Start with **sptune launch demo**.",
)


def _print_version(requested: bool) -> None:
    if requested:
        print(f"sptune {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Options of the command itself."""


BEFORE, RUNNING, RESULTS = "Before a sweep", "Running it", "Its results"
OUTPUTS, TOOLS = "For other tools", "Tasks and networks"
for panel, commands in (
    (BEFORE, (plan, replay, doctor)),
    (RUNNING, (lifecycle.launch, lifecycle.resume, lifecycle.stop, lifecycle.rm)),
    (RESULTS, (results.status, results.failures, results.report, outputs.figures, results.ui)),
    (OUTPUTS, (outputs.export, outputs.register)),
    (TOOLS, (model.backbones, model.predict)),
):
    for command in commands:
        app.command(rich_help_panel=panel)(command)
app.add_typer(data.app, name="data", rich_help_panel=TOOLS)


def main() -> None:
    """Run the command. A user's mistake is a sentence on standard error and exit status 2, without a stack trace."""
    open_terminal()
    # Servers that sptune starts inherit it, too.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    try:
        app()
    except (UserError, OutputError) as error:
        _exit_with(str(error))
    except Exception as error:
        from orchestrator.environment.connections import explain_error

        sentence = explain_error(error)
        if sentence is None:
            raise
        _exit_with(sentence)


def _exit_with(sentence: str) -> None:
    # A sentence may list problems, one on each line.
    text = printable(sentence, keep="\n")
    print(f"error: {text}", file=sys.stderr)
    sys.exit(2)
