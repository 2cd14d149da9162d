"""The command `sptune`, one file a family of its commands."""

from __future__ import annotations

import os
import sys

import typer

from orchestrator.cli import data, model, outputs, results
from orchestrator.cli import lifecycle as sweep
from orchestrator.cli.doctor import doctor
from orchestrator.cli.plan import plan, replay
from orchestrator.errors import UserError

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Sweeps of Self-Prompt Tuning on frozen ViTs. Start with **sptune launch demo**.",
)
BEFORE, RUNNING, RESULTS = "Before a sweep", "Running it", "Its results"
OUTPUTS, TOOLS = "For other tools", "Tasks and networks"
for panel, commands in (
    (BEFORE, (plan, replay, doctor)),
    (RUNNING, (sweep.launch, sweep.resume, sweep.stop, sweep.rm)),
    (RESULTS, (results.status, results.failures, results.report, outputs.figures, results.ui)),
    (OUTPUTS, (outputs.export, outputs.register)),
    (TOOLS, (model.backbones, model.predict)),
):
    for command in commands:
        app.command(rich_help_panel=panel)(command)
app.add_typer(data.app, name="data", rich_help_panel=TOOLS)


def main() -> None:
    """Entry point: a user's mistake is its text on standard error and exit status 2, not a stack trace."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # for the servers that are started, too
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except Exception as error:
        from orchestrator.environment.connections import explain_error

        if (sentence := explain_error(error)) is None:
            raise
        print(f"error: {sentence}", file=sys.stderr)
        sys.exit(2)
