"""Arguments and options that several commands share."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import typer

from orchestrator.cli.completion import complete_spec, complete_sweep
from orchestrator.environment.home import DEFAULT_HOME
from trainer.redaction import redact, redact_all
from trainer.terminal import TextConsole, shown
from trainer.validation import short_repr

console = TextConsole()
error_console = TextConsole(stderr=True)
"""For what is shown while a command works, if its output may be read by a program."""


def print_json(value: dict[str, Any]) -> None:
    """Print an object for scripts. Its keys are documented in `search_spaces/README.md`, and stay."""
    # Plain print: rich would wrap and colour what a script parses. NaN is no JSON.
    print(json.dumps(redact_all(value), indent=2, allow_nan=False))


def pause_until_next_look(least_s: float, began_at: float) -> None:
    """Wait between two looks at a sweep that is watched.

    A large sweep takes long to read. It is looked at less often, so that a fifth of the time is spent on it at most.

    Args:
        least_s: seconds to wait at least.
        began_at: when the look began, by `time.monotonic`.
    """
    time.sleep(max(least_s, 4 * (time.monotonic() - began_at)))


def repeated_home(home: str | None) -> str:
    """Return the option `--home` for a command that a message proposes, with a space before it.

    Empty if the next command finds the home without it: in the environment, or by default.
    """
    return f" --home {shlex.quote(redact(home))}" if home and home != os.environ.get("SPTUNE_HOME") else ""


def print_prose(text: str) -> None:
    """Print a sentence without a path or a command. On a terminal it is broken between words, never in a number."""
    console.print(shown(text), soft_wrap=not console.is_terminal)


@contextlib.contextmanager
def surviving_lost_output() -> Iterator[None]:
    """Print nothing more if the terminal or the reading end of the pipe is gone."""
    try:
        yield
    except OSError:
        # What Python still has in its buffer goes there as well when the process ends.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def whole_number(least: int, most: int) -> Callable[[object], int]:
    """Return a parser of an option that takes a whole number."""

    def parse(value: object) -> int:
        text = str(value)
        # Short enough for Python to read.
        number = int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) else None
        if number is None or not least <= number <= most:
            raise typer.BadParameter(f"must be a whole number from {least} to {most}, got {short_repr(text)}.")

        return number

    # The name of the value in the help.
    parse.__name__ = "integer"
    return parse


SpecArgument = Annotated[
    str,
    typer.Argument(
        metavar="SPEC", help="A YAML file, or the name of one that ships, such as demo.", autocompletion=complete_spec
    ),
]
SweepsArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="SWEEP...",
        help="The `name` in its spec, or the spec's file. Several sweeps share one table.",
        autocompletion=complete_sweep,
    ),
]
SweepArgument = Annotated[
    str,
    typer.Argument(metavar="SWEEP", help="The `name` in its spec, or the spec's file.", autocompletion=complete_sweep),
]
OptionalSweepArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="[SWEEP]",
        help="The `name` in its spec, or the spec's file; default: every sweep.",
        autocompletion=complete_sweep,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object, for scripts.")]
HomeOption = Annotated[
    str | None,
    typer.Option(
        "--home",
        envvar="SPTUNE_HOME",
        show_default=DEFAULT_HOME,
        help="Folder, or bucket (s3://bucket/folder), of tasks, checkpoints and, on one machine, the databases.",
    ),
]
InlineOption = Annotated[bool, typer.Option("--inline", help="Run one trial at a time in this process, without Ray.")]
AddressOption = Annotated[
    str | None,
    typer.Option(
        help="A running Ray cluster: HOST:PORT, or auto for the one that this machine belongs to; default: a Ray of "
        "this machine alone.",
        envvar="RAY_ADDRESS",
    ),
]
WeightsOption = Annotated[
    str | None,
    typer.Option(
        envvar="SPTUNE_WEIGHTS", help="A file, or a folder of files, with weights of backbones; default: timm's hub."
    ),
]
MetricsOption = Annotated[
    int | None,
    typer.Option(
        parser=whole_number(1, 65_535),
        metavar="PORT",
        help="Serve metrics for Prometheus while trials run: http://127.0.0.1:PORT/metrics, on this machine alone.",
    ),
]
TrialOption = Annotated[
    list[str] | None,
    typer.Option("--trial", metavar="ID", help="A trial, by the first letters of its id; repeatable."),
]
WhereOption = Annotated[
    str | None,
    typer.Option(
        metavar="CONDITIONS",
        help="Trials that meet every condition: `task=vtab/dtd error=CUDA*`. A name is study, phase, number, state, "
        "cause, error, attempt or a field of TrainConfig; a value is a shell pattern.",
    ),
]
