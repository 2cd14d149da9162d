"""What several commands take and need: options, the record, the spec of a sweep."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from orchestrator.environment.home import DEFAULT_HOME

if TYPE_CHECKING:
    pass

console = Console()

SpecArgument = Annotated[
    str, typer.Argument(metavar="SPEC", help="A YAML file, or the name of one that ships, such as demo.")
]
SweepsArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="SWEEP...", help="The `name` in its spec, or the spec's file; of several, they are taken together."
    ),
]
SweepArgument = Annotated[str, typer.Argument(metavar="SWEEP", help="The `name` in its spec, or the spec's file.")]
HomeOption = Annotated[
    str | None,
    typer.Option(
        "--home",
        envvar="SPTUNE_HOME",
        show_default=DEFAULT_HOME,
        help="Folder, or bucket (s3://bucket/folder), of tasks, checkpoints and, on one machine, the databases.",
    ),
]
InlineOption = Annotated[bool, typer.Option("--inline", help="One trial at a time in this process, without Ray.")]
AddressOption = Annotated[
    str | None,
    typer.Option(
        help="A running Ray cluster, HOST:PORT, or auto for the one that this machine is a node of; default: a Ray of "
        "this machine alone.",
        envvar="RAY_ADDRESS",
    ),
]
WeightsOption = Annotated[
    str | None,
    typer.Option(
        envvar="SPTUNE_WEIGHTS", help="A file, or a folder of files, with backbones' weights; else timm's hub."
    ),
]
TrialOption = Annotated[
    list[str] | None, typer.Option("--trial", metavar="ID", help="A trial, by the first letters of its id; repeatable.")
]
WhereOption = Annotated[
    str | None,
    typer.Option(
        metavar="CONDITIONS",
        help="Trials of which all of this is so: `task=vtab/dtd error=CUDA*`; names are study, phase, state, cause, "
        "error, params and fields of TrainConfig, values shell patterns.",
    ),
]
