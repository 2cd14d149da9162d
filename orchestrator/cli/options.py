"""What several commands take and need: options, the record, the spec of a sweep."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from orchestrator.errors import UserError
from orchestrator.home import Home, Workplace
from orchestrator.spec import Grid, SweepSpec, task_names
from orchestrator.spec_file import parse_spec
from trainer.catalog import BACKBONES
from trainer.data.store import find_card
from trainer.rules import no_such
from trainer.weights import WeightsError, find_weights

if TYPE_CHECKING:
    from orchestrator.record import Record
    from orchestrator.study import Study

console = Console()

SpecArgument = Annotated[
    str, typer.Argument(metavar="SPEC", help="A YAML file, or the name of one that ships, such as demo.")
]
SweepsArgument = Annotated[
    list[str], typer.Argument(metavar="SWEEP...", help="The `name` in its spec; of several, they are taken together.")
]
SweepArgument = Annotated[str, typer.Argument(metavar="SWEEP", help="The `name` in its spec.")]
HomeOption = Annotated[
    Path, typer.Option("--home", envvar="SPTUNE_HOME", help="Folder of records, MLflow database, tasks, checkpoints.")
]
InlineOption = Annotated[bool, typer.Option("--inline", help="One trial at a time in this process, without Ray.")]
AddressOption = Annotated[
    str | None, typer.Option(help="A running Ray cluster; default: a Ray of this machine.", envvar="RAY_ADDRESS")
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


def open_record(home: Home) -> Record:
    """The record of a home, which must be there or be made."""
    from orchestrator.record import Record

    return Record(f"sqlite:///{home.record_file}")


def recorded(home: Home, name: str) -> tuple[Record, SweepSpec]:
    """The record, and the spec in it of a sweep.

    Raises:
        UserError: if there is no such sweep, with those there are.
    """
    if not home.record_file.exists():
        raise UserError(f"{home.folder} holds no sweep; start one with `sptune launch demo`, or give its --home.")
    record = open_record(home)
    specs = record.sweeps()
    if not specs:
        raise UserError(f"{home.folder} holds no sweep yet; start one with `sptune launch demo`.")
    if name not in specs:
        raise UserError(f"{name}: {no_such(name, specs, f'a sweep in {home.folder}')}")
    return record, parse_spec(specs[name], f"the recorded spec of {name}")


def opened(home: Home, sweeps: Sequence[str], *, epochs: bool) -> list[Study]:
    """The studies of sweeps by name.

    Raises:
        UserError: if one is not there.
    """
    from orchestrator.study import open_studies

    found = []
    for name in dict.fromkeys(sweeps):
        record, spec = recorded(home, name)
        found += open_studies(spec, record, epochs=epochs)
    return found


def together(home: Home, sweeps: Sequence[str], *, epochs: bool) -> list[Study]:
    """The studies of sweeps by name, for one table or figure.

    Raises:
        UserError: if a sweep is not there, or two have the same study.
    """
    found = opened(home, sweeps, epochs=epochs)
    if twice := [key for key, count in Counter(study.plan.key for study in found).items() if count > 1]:
        raise UserError(f"{twice[0]} is in several of these sweeps and has one cell in a table: take them apart.")
    return found


def missing(spec: Grid, home: Home, weights: str | None) -> list[str]:
    """A sentence for each task that is not in the store, and each backbone whose weights are nowhere."""
    tasks = dict.fromkeys(task for name in spec.tasks for task in task_names(name) if not task.startswith("demo/"))
    absent = ", ".join(task for task in tasks if find_card(home.data_root, task) is None)
    where = f"not in the task store {home.data_root}; `sptune data list` says where to get what is missing."
    problems = [f"tasks: {absent}: {where}"] if absent else []
    for name in spec.backbones:
        try:
            find_weights(BACKBONES[name], weights)
        except WeightsError as error:
            problems.append(f"backbones: {error}")
    return list(dict.fromkeys(problems))


def place_for(spec: SweepSpec, home: Home, weights: str | None, trials: str) -> Workplace:
    """Where a sweep's trials run, with their folders in `trials`."""
    return Workplace(
        data_root=home.data_root,
        trials=trials,
        bank=home.bank,
        weights=weights and str(Path(weights).expanduser().absolute()),
        cpus=spec.resources.cpus,
        gpus=spec.resources.gpus,
    )
