"""The commands `sptune data`: import, list, verify, show and delete the tasks of the task store."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from orchestrator.cli.completion import complete_task
from orchestrator.cli.data_facts import sizes_of, task_json, verdict_json
from orchestrator.cli.options import JsonOption, console, print_json
from orchestrator.environment.home import home_at
from orchestrator.errors import UserError
from trainer.catalog import OWN, TASKS, is_own
from trainer.data.importers.names import first_names
from trainer.data.task_store import SPLITS, Card, read_card
from trainer.plain_text import counted, printable
from trainer.redaction import redact
from trainer.storage.addresses import absolute_address
from trainer.storage.files import list_folders
from trainer.terminal import shown
from trainer.validation import unknown_name

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from trainer.data.verify import Verdict

app = typer.Typer(no_args_is_help=True, help="Import, list, verify, show and delete tasks.")

MAX_PROBLEMS_SHOWN = 20
"""Problems of a task that are listed."""

DataOption = Annotated[
    str | None,
    typer.Option("--data", envvar="SPTUNE_DATA", help="The task store; default: `data` in the home (`SPTUNE_HOME`)."),
]
TaskArgument = Annotated[
    str,
    typer.Argument(
        metavar="TASK", help="Such as vtab/dtd; `sptune data list` lists them.", autocompletion=complete_task
    ),
]


def _root(data: str | None) -> str:
    try:
        return absolute_address(data) if data else home_at().data_root
    except ValueError as error:
        raise UserError(f"--data {error}") from None


def _tasks(root: str) -> list[str]:
    """Return the tasks of the catalog, and the user's own that are in the store."""
    return [*TASKS, *(f"{OWN}{name}" for name in list_folders(f"{root}/{OWN.rstrip('/')}"))]


def _show(progress: Progress, bar: TaskID, done: int, total: int) -> None:
    progress.update(bar, completed=done, total=total)


@app.command("import")
def import_(
    path: Annotated[
        Path,
        typer.Argument(help="A folder with one folder of images per class, or a data set as its makers publish it."),
    ],
    task: Annotated[
        str | None,
        typer.Option(help=f"The task to import, or a name for your own: {OWN}NAME.", autocompletion=complete_task),
    ] = None,
    form: Annotated[
        str | None, typer.Option(help="official, vtab-1k, tfds, folder or parquet; needed if several fit.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace tasks in the store without asking.")] = False,
    data: DataOption = None,
) -> None:
    """Import the tasks of a folder or archive into the task store. The kind of source is detected."""
    from trainer.data.importers.archive import ImportRefused
    from trainer.data.importers.registry import find_candidates, import_task, unknown_folders
    from trainer.progress_bar import progress_bar

    root = _root(data)
    path = path.expanduser()
    try:
        candidates = find_candidates(path, task, form)
        if not force:
            _check_replacement(root, [candidate.task for candidate in candidates])

        skipped = unknown_folders(path, candidates) if task is None else []
        if skipped:
            folders = counted(len(skipped), "folder that is no known source", "folders that are no known source")
            console.print(f"note: left out {folders}: {first_names(skipped)}")
        # One folder may hold several tasks, as `vtab-1k` does.
        for candidate in candidates:
            with progress_bar() as progress:
                bar = progress.add_task(candidate.task, total=None)
                card = import_task(root, candidate, functools.partial(_show, progress, bar))
            _print_card(card, root)
    except (ImportRefused, OSError) as error:
        raise UserError(str(error)) from None


def _check_replacement(root: str, tasks: list[str]) -> None:
    """Ask whether tasks of the store may be replaced.

    Raises:
        UserError: if there is nobody to ask.
        typer.Abort: if the answer is no.
    """
    cards = [card for task in tasks if (card := _card_or_none(root, task)) is not None]
    if not cards:
        return

    sizes = {card.task: counted(sum(card.counts.values()), "image") for card in cards}
    stored = ", ".join(f"{card.task} ({sizes[card.task]}, {card.fingerprint})" for card in cards)
    sentence = f"already in the task store {redact(root)}: {stored}"
    if not sys.stdin.isatty():
        raise UserError(f"{sentence}. Add --force to replace, or give your images another name with --task.")
    typer.confirm(f"{printable(sentence)}. Replace?", abort=True)


def _card_or_none(root: str, task: str) -> Card | None:
    from trainer.data.task_store import TaskMissing

    try:
        return read_card(root, task)
    except TaskMissing:
        # A damaged task is there to be replaced.
        return None


@app.command()
def rm(
    task: TaskArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    data: DataOption = None,
) -> None:
    """Delete a task from the task store. Results of sweeps stay; a sweep that is not done needs the task again."""
    from trainer.data.task_store import delete_task

    root = _root(data)
    # A name is a folder: another one could be outside of the store.
    if task not in TASKS and not is_own(task):
        raise UserError(f"{unknown_name(task, _tasks(root), 'a task')}")

    try:
        card = read_card(root, task)
        if card is None:
            raise UserError(f"{task} is not in the task store {redact(root)}; `sptune data list` shows what is.")
        size = counted(sum(card.counts.values()), "image")
    except FileNotFoundError:
        size = "its card is damaged"

    sweeps = _sweeps_with(task)
    if sweeps:
        console.print(f"sweeps of {home_at().root} that use {task}: {', '.join(sweeps)}")
    if not yes:
        typer.confirm(f"Delete {printable(task)} ({size}) from {printable(redact(root))}?", abort=True)
    delete_task(root, task)
    console.print(f"deleted {task} from {root}.")


def _sweeps_with(task: str) -> list[str]:
    """Return the names of the home's sweeps that use a task, for a study or for its prototypes."""
    from orchestrator.environment.connections import read_database
    from orchestrator.environment.lookup import recorded_source
    from orchestrator.environment.requirements import tasks_of
    from orchestrator.spec.loader import parse_recorded_spec
    from orchestrator.spec.plan import plan_sweep

    home = home_at()
    database = read_database(home) if home.database_url else None
    if database is None:
        return []

    recorded = database.sweeps()
    database.close()
    specs = [parse_recorded_spec(raw, recorded_source(name)) for name, raw in recorded.items()]
    return [spec.name for spec in specs if any(task in tasks_of(plan) for plan in plan_sweep(spec).studies)]


@app.command("list")
def list_(data: DataOption = None, as_json: JsonOption = False) -> None:
    """List all tasks, which of them are in the store, and where to get the others."""
    from trainer.data.publishing import left_over

    root = _root(data)
    if as_json:
        cards = {task: read_card(root, task) for task in _tasks(root)}
        stored = [task_json(task, card) for task, card in cards.items() if card is not None or task in TASKS]
        print_json({"data": root, "tasks": stored})
        return

    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("task", "group"):
        table.add_column(name, no_wrap=True)
    for name in ("classes", *SPLITS):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("stored", no_wrap=True)

    absent = []
    left = []
    for task in _tasks(root):
        card = read_card(root, task)
        left += left_over(root, task) if card is not None or task not in TASKS else []
        # The folder of a task of one's own may hold no more than what a killed import left.
        if card is None and task not in TASKS:
            continue
        table.add_row(*_list_row(task, card))
        # Demo tasks are made at their first use.
        if card is None and not task.startswith("demo/"):
            absent.append(task)
    console.print(table)
    for sentence in left:
        console.print(f"note: {sentence}")
    if absent:
        _print_sources(absent)


def _list_row(task: str, card: Card | None) -> list[str]:
    """Return the cells of a task: sizes from its card if it is stored, from the catalog if not."""
    row = TASKS.get(task)
    sizes = sizes_of(task, card)
    stored = "at first use" if task.startswith("demo/") else "—"
    if card is not None:
        # The first word is enough here; `verify` prints the whole protocol.
        stored = "partly" if card.differs else card.protocol.partition(" ")[0]
    return [task, row.group if row is not None else "own", *(f"{size:,}" for size in sizes), stored]


def _print_sources(absent: list[str]) -> None:
    """Print where each absent task comes from."""
    from trainer.data.importers.registry import sources

    console.print()
    console.print("Where to get the others; import each with `sptune data import PATH`:")
    console.print("  vtab-1k folder (all of vtab/), TFDS directories, or the official files:")
    for source in sources():
        if source.form == "official" and source.where and any(task in absent for task in source.tasks):
            console.print(f"  {', '.join(source.tasks)}: {source.where}")


@app.command()
def verify(
    task: Annotated[
        str | None,
        typer.Argument(metavar="[TASK]", help="One task; default: all in the store.", autocompletion=complete_task),
    ] = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read tasks from end to end: counts, labels, keys, images, fingerprint. Exit status 1 if something is wrong."""
    from trainer.data.task_store import TaskMissing
    from trainer.data.verify import verify as verify_task
    from trainer.progress_bar import progress_bar

    root = _root(data)
    tasks = [task] if task else [name for name in _tasks(root) if read_card(root, name)]
    if not tasks:
        raise UserError(f"{root} holds no task; `sptune data list` says where to get them.")

    verdicts = {}
    for name in tasks:
        try:
            with progress_bar() as progress:
                bar = progress.add_task(name, total=None)
                verdict = verify_task(root, name, functools.partial(_show, progress, bar))
        except (TaskMissing, OSError, ValueError) as error:
            raise UserError(str(error)) from None
        verdicts[name] = verdict
        if not as_json:
            _print_verdict(name, verdict)

    if as_json:
        print_json({"data": root, "tasks": [verdict_json(name, verdict) for name, verdict in verdicts.items()]})
    # All tasks are verified before the exit status says that one is wrong.
    if any(verdict.problems for verdict in verdicts.values()):
        raise typer.Exit(1)


def _print_verdict(task: str, verdict: Verdict) -> None:
    word = shown("wrong", "red") if verdict.problems else shown("clean", "green")
    card = verdict.card
    facts = f"{counted(sum(card.counts.values()), 'image')}, {card.protocol}, {card.fingerprint}"
    console.print(shown(f"{task}: ") + word + shown(f", {facts}"), soft_wrap=True)
    for sentence in verdict.problems[:MAX_PROBLEMS_SHOWN]:
        console.print(f"  problem: {sentence}")
    for sentence in verdict.notes:
        console.print(f"  note: {sentence}")


@app.command()
def show(
    task: TaskArgument,
    out: Annotated[Path | None, typer.Option(help="The PNG to write; default: TASK.png here.")] = None,
    data: DataOption = None,
) -> None:
    """Write a contact sheet: a row for each class, with a few of its training images."""
    from trainer.data.task_store import TaskMissing
    from trainer.data.verify import contact_sheet

    file = out or Path(f"{task.replace('/', '_')}.png")
    try:
        picture = contact_sheet(_root(data), task)
        file.write_bytes(picture)
    except (TaskMissing, OSError) as error:
        raise UserError(str(error)) from None
    console.print(f"{file}")


def _print_card(card: Card, root: str) -> None:
    counts = ", ".join(f"{split} {count:,}" for split, count in card.counts.items())
    classes = counted(len(card.class_names), "class")
    console.print(f"{card.task}: {counts}; {classes}; {card.protocol}; {card.fingerprint}; in {root}")
    for sentence in [*card.differs, *card.repairs]:
        console.print(f"  note: {sentence}")
    for sentence in card.warnings:
        console.print(shown("  warning: ", "red") + shown(sentence), soft_wrap=True)
