"""The commands `sptune data`: the task store, from sources to contact sheets."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from orchestrator.cli.options import console
from orchestrator.environment.home import home_at
from orchestrator.errors import UserError
from trainer.catalog import OWN, TASKS
from trainer.data.task_store import Card, read_card
from trainer.storage.files import list_folders

app = typer.Typer(no_args_is_help=True, help="Import, list, verify and look at the tasks.")

DataOption = Annotated[
    str | None,
    typer.Option("--data", envvar="SPTUNE_DATA", help="The task store; default: `data` in the home (`SPTUNE_HOME`)."),
]
TaskArgument = Annotated[str, typer.Argument(metavar="TASK", help="Such as vtab/dtd; `sptune data list` names them.")]


def _root(data: str | None) -> str:
    return data or home_at().data_root


def _tasks(root: str) -> list[str]:
    """The catalog's tasks, and the user's own that are in the store."""
    return [*TASKS, *(f"{OWN}{name}" for name in list_folders(f"{root}/{OWN.rstrip('/')}"))]


def _bar() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True))


def _show(progress: Progress, bar: TaskID, done: int, total: int) -> None:
    progress.update(bar, completed=done, total=total)


@app.command("import")
def import_(
    path: Annotated[
        Path, typer.Argument(help="A folder or an archive, as its makers or `vtab-1k` or TFDS lay it out.")
    ],
    task: Annotated[str | None, typer.Option(help=f"The task wanted, or a name for your own: {OWN}NAME.")] = None,
    form: Annotated[
        str | None, typer.Option(help="official, vtab-1k, tfds, folder or parquet, if several fit.")
    ] = None,
    data: DataOption = None,
) -> None:
    """Put the tasks that a path holds into the store; what it is, is found out."""
    from trainer.data.importers.archive import ImportRefused
    from trainer.data.importers.registry import find_candidates, import_task

    root = _root(data)
    try:
        for found in find_candidates(path.expanduser(), task, form):
            with _bar() as progress:
                bar = progress.add_task(found.task, total=None)
                card = import_task(root, found, functools.partial(_show, progress, bar))
            _print_card(card, root)
    except (ImportRefused, OSError) as error:
        raise UserError(str(error)) from None


@app.command("list")
def list_(data: DataOption = None) -> None:
    """List the tasks, those in the store and those that are not, and how to get them."""
    root = _root(data)
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("task", "group", "classes", "train", "val", "test", "stored"):
        table.add_column(name, justify="right" if name in ("classes", "train", "val", "test") else "left", no_wrap=True)
    absent = []
    for task in _tasks(root):
        card, row = read_card(root, task), TASKS.get(task)
        sizes = (row.num_train, row.num_val, row.num_test) if row else (0, 0, 0)
        numbers = tuple(card.counts[split] for split in ("train", "val", "test")) if card else sizes
        classes = row.num_classes if row else len(card.class_names) if card else 0
        shown = "at first use" if task.startswith("demo/") else "—"
        if card:
            shown = "partly" if card.differs else card.protocol.partition(" ")[0]
        elif not task.startswith("demo/"):
            absent.append(task)
        table.add_row(task, row.group if row else "own", *(f"{n:,}" for n in (classes, *numbers)), shown)
    console.print(table)
    if absent:
        _print_where(absent)


def _print_where(absent: list[str]) -> None:
    """Where each absent task comes from, and the command."""
    from trainer.data.importers.registry import sources

    console.print("\nWhere to get what is not there, each with `sptune data import PATH`:", highlight=False)
    console.print("  vtab-1k folder (all of vtab/), TFDS directories, or the official files:", highlight=False)
    for source in sources():
        if source.form == "official" and source.where and any(task in absent for task in source.tasks):
            console.print(f"  {', '.join(source.tasks)}: {source.where}", highlight=False, soft_wrap=True)


@app.command()
def verify(
    task: Annotated[str | None, typer.Argument(metavar="[TASK]", help="One task; default: all in the store.")] = None,
    data: DataOption = None,
) -> None:
    """Read tasks from end to end: counts, labels, keys, every image, the fingerprint. Exit status 1 on a problem."""
    from trainer.data.task_store import TaskMissing
    from trainer.data.verify import verify as read_through

    root = _root(data)
    tasks = [task] if task else [name for name in _tasks(root) if read_card(root, name)]
    if not tasks:
        raise UserError(f"{root} holds no task; `sptune data list` says where to get them.")
    bad = 0
    for name in tasks:
        try:
            with _bar() as progress:
                bar = progress.add_task(name, total=None)
                verdict = read_through(root, name, functools.partial(_show, progress, bar))
        except (TaskMissing, OSError, ValueError) as error:
            raise UserError(str(error)) from None
        bad += bool(verdict.problems)
        shown = "[red]wrong[/red]" if verdict.problems else "[green]clean[/green]"
        card = verdict.card
        console.print(f"{name}: {shown}, {sum(card.counts.values()):,} images, {card.protocol}, {card.fingerprint}")
        for sentence in verdict.problems[:20]:
            console.print(f"  problem: {sentence}", highlight=False, soft_wrap=True)
        for sentence in verdict.notes:
            console.print(f"  note: {sentence}", highlight=False, soft_wrap=True)
    if bad:
        raise typer.Exit(1)


@app.command()
def show(
    task: TaskArgument,
    out: Annotated[Path | None, typer.Option(help="Where to write the PNG; default: TASK.png here.")] = None,
    data: DataOption = None,
) -> None:
    """Write a contact sheet: a row a class, a few of its training images."""
    from trainer.data.task_store import TaskMissing
    from trainer.data.verify import contact_sheet

    try:
        picture = contact_sheet(_root(data), task)
    except (TaskMissing, OSError) as error:
        raise UserError(str(error)) from None
    place = out or Path(f"{task.replace('/', '_')}.png")
    place.write_bytes(picture)
    console.print(f"{place}", highlight=False)


def _print_card(card: Card, root: str) -> None:
    counts = ", ".join(f"{split} {count:,}" for split, count in card.counts.items())
    console.print(
        f"{card.task}: {counts}; {len(card.class_names)} classes; {card.protocol}; {card.fingerprint}; in {root}",
        highlight=False,
        soft_wrap=True,
    )
    for sentence in [*card.differs, *card.repairs]:
        console.print(f"  note: {sentence}", highlight=False, soft_wrap=True)
