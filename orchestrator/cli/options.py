"""What several commands take and need: options, the record, the spec of a sweep."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from orchestrator.drivers.context import TrialContext
from orchestrator.environment.home import DEFAULT_HOME, Home
from orchestrator.spec.schema import StudyMatrix, SweepSpec, task_names
from trainer.catalog import BACKBONES
from trainer.data.task_store import read_card
from trainer.model.weights import WeightsError, find_weights

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


def missing(spec: StudyMatrix, home: Home, weights: str | None) -> list[str]:
    """A sentence for each task that is not in the store, and each backbone whose weights are nowhere."""
    problems = []
    tasks = dict.fromkeys(task for name in spec.tasks for task in task_names(name) if not task.startswith("demo/"))
    try:
        absent = ", ".join(task for task in tasks if read_card(home.data_root, task) is None)
    except OSError as error:
        problems.append(f"data: {error}")
    else:
        where = f"not in the task store {home.data_root}; `sptune data list` says where to get what is missing."
        problems += [f"tasks: {absent}: {where}"] if absent else []
    for name in spec.backbones:
        try:
            find_weights(BACKBONES[name], weights)
        except (WeightsError, OSError) as error:
            problems.append(f"backbones: {error}")
    return list(dict.fromkeys(problems))


def place_for(spec: SweepSpec, home: Home, weights: str | None, trials: str) -> TrialContext:
    """Where a sweep's trials run, with their folders in `trials`."""
    return TrialContext(
        data_root=home.data_root,
        trials_folder=trials,
        prototype_cache=home.prototype_cache,
        weights=weights and (weights if "://" in weights else str(Path(weights).expanduser().absolute())),
        cpus=spec.resources.cpus,
        gpus=spec.resources.initial_gpus,
    )
