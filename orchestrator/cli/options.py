"""What several commands take and need: options, the record, the spec of a sweep."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from orchestrator.environment.connections import open_record
from orchestrator.environment.home import DEFAULT_HOME, Home, Workplace, home_at
from orchestrator.errors import UserError
from orchestrator.spec.loader import cluster_of, find_spec, load_spec, parse_spec
from orchestrator.spec.resources import shown
from orchestrator.spec.schema import Grid, SweepSpec, task_names
from trainer.catalog import BACKBONES
from trainer.data.task_store import find_card
from trainer.model.weights import WeightsError, find_weights
from trainer.validation import no_such

if TYPE_CHECKING:
    from orchestrator.study.storage.database import Record
    from orchestrator.study.study import Study

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


def recorded(home: Home, name: str) -> tuple[Record, SweepSpec]:
    """The record, and the spec in it of a sweep.

    Raises:
        UserError: if there is no such sweep, with those there are, or the record cannot be opened.
    """
    where = home.place if home.record_file else f"the record {shown(home.studies)}"
    if home.record_file is not None and not home.record_file.exists():
        raise UserError(f"{where} holds no sweep; start one with `sptune launch demo`, or give its --home.")
    if not home.studies:
        raise UserError("\n".join(home.problems()))
    record = open_record(home)
    specs = record.sweeps()
    if not specs:
        raise UserError(f"{where} holds no sweep yet; start one with `sptune launch demo`.")
    if name not in specs:
        raise UserError(f"{name}: {no_such(name, specs, f'a sweep in {where}')}")
    return record, parse_spec(specs[name], f"the recorded spec of {name}")


def found(home: str | None, sweep: str) -> tuple[Home, Record, SweepSpec]:
    """Where a sweep is, its record, and the spec in it.

    Args:
        sweep: its name, or its spec's file, whose `cluster` then says where to look.

    Raises:
        UserError: if there is no such sweep.
    """
    if sweep.endswith((".yaml", ".yml")):
        path = find_spec(sweep)
        record, spec = recorded(home_at(home, cluster_of(path)), load_spec(path).name)
    else:
        record, spec = recorded(home_at(home), sweep)
    return home_at(home, spec.cluster), record, spec


def opened(home: str | None, sweeps: Sequence[str], *, epochs: bool) -> list[Study]:
    """The studies of sweeps.

    Raises:
        UserError: if one is not there.
    """
    from orchestrator.study.study import open_studies

    studies = []
    for name in dict.fromkeys(sweeps):
        _, record, spec = found(home, name)
        studies += open_studies(spec, record, epochs=epochs)
    return studies


def together(home: str | None, sweeps: Sequence[str], *, epochs: bool) -> list[Study]:
    """The studies of sweeps, for one table or figure.

    Raises:
        UserError: if a sweep is not there, or two have the same study.
    """
    studies = opened(home, sweeps, epochs=epochs)
    if twice := [key for key, count in Counter(study.plan.key for study in studies).items() if count > 1]:
        raise UserError(f"{twice[0]} is in several of these sweeps and has one cell in a table: take them apart.")
    return studies


def missing(spec: Grid, home: Home, weights: str | None) -> list[str]:
    """A sentence for each task that is not in the store, and each backbone whose weights are nowhere."""
    problems = []
    tasks = dict.fromkeys(task for name in spec.tasks for task in task_names(name) if not task.startswith("demo/"))
    try:
        absent = ", ".join(task for task in tasks if find_card(home.data_root, task) is None)
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


def place_for(spec: SweepSpec, home: Home, weights: str | None, trials: str) -> Workplace:
    """Where a sweep's trials run, with their folders in `trials`."""
    return Workplace(
        data_root=home.data_root,
        trials=trials,
        bank=home.bank,
        weights=weights and (weights if "://" in weights else str(Path(weights).expanduser().absolute())),
        cpus=spec.resources.cpus,
        gpus=spec.resources.most_gpus,
    )
