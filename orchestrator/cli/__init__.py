"""The command `sptune`. Each file holds one family of its commands."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from orchestrator import __version__
from orchestrator.cli import data, lifecycle, mlflow, model, outputs, results, status
from orchestrator.cli.doctor import doctor
from orchestrator.cli.new import ListCommand, new
from orchestrator.cli.options import surviving_lost_output
from orchestrator.cli.plan import plan
from orchestrator.cli.predict import predict
from orchestrator.cli.replay import replay
from orchestrator.errors import UserError
from trainer.config import InvalidConfig
from trainer.plain_text import printable
from trainer.terminal import OutputError, open_terminal
from trainer.validation import short_repr

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
app.command(cls=ListCommand, rich_help_panel=BEFORE)(new)
for panel, commands in (
    (BEFORE, (plan, replay, doctor)),
    (RUNNING, (lifecycle.launch, lifecycle.resume, lifecycle.stop, lifecycle.rm)),
    (RESULTS, (status.status, results.failures, results.report, outputs.figures, mlflow.ui)),
    (OUTPUTS, (outputs.export, mlflow.sync, outputs.register)),
    (TOOLS, (model.backbones, predict)),
):
    for command in commands:
        app.command(rich_help_panel=panel)(command)
app.command("list", rich_help_panel=RESULTS)(status.list_)
app.add_typer(data.app, name="data", rich_help_panel=TOOLS)


def main() -> None:
    """Run the command. A user's mistake is a sentence on standard error and exit status 2, without a stack trace."""
    open_terminal()
    # Servers that sptune starts inherit it, too.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # MLflow's job runner is seven more processes, and nothing here gives it a job.
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    try:
        app()
    except (UserError, OutputError) as error:
        _exit_with(str(error))
    except InvalidConfig as error:
        # A spec that was recorded before a rule existed: what follows from it is refused today.
        problems = "; ".join(f"{field}: {problem}" for field, problem in error.problems.items())
        _exit_with(
            f"the recorded spec has values that cannot be used: {problems} Correct the spec and launch it again."
        )
    except Exception as error:
        from orchestrator.environment.connections import explain_error

        sentence = explain_error(error) or _file_problem(error)
        if sentence is None:
            raise
        _exit_with(sentence)
    finally:
        # Here, because Python would complain at its end that nobody reads the rest.
        with surviving_lost_output():
            sys.stdout.flush()


def _file_problem(error: Exception) -> str | None:
    """Return a sentence about a file or folder that the system refuses; None for any other error."""
    if isinstance(error, UnicodeEncodeError):
        return f"{short_repr(error.object)} is no text in UTF-8; rename it."

    if not isinstance(error, OSError) or not error.filename or not error.strerror:
        return None

    return f"{short_repr(str(error.filename))}: {error.strerror}."


def _exit_with(sentence: str) -> None:
    # A sentence may list problems, one on each line.
    text = printable(sentence, keep="\n")
    print(f"error: {text}", file=sys.stderr)
    sys.exit(2)
