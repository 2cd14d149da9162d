"""The command `new`: write a spec to begin with."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from orchestrator.cli.completion import complete_backbone, complete_method, complete_tasks_or_group
from orchestrator.cli.options import HomeOption, console, repeated_home, whole_number
from orchestrator.cli.plan import small_images_note
from orchestrator.environment.home import Home, home_at, weights_at
from orchestrator.errors import UserError
from orchestrator.spec.shipped import SUFFIXES
from trainer.catalog import BUNDLED, OWN, TASKS, is_own
from trainer.catalog import METHODS as CATALOG
from trainer.data.task_store import read_card
from trainer.machine import usable_cores, usable_memory, visible_gpus
from trainer.plain_text import counted
from trainer.storage.files import list_folders

if TYPE_CHECKING:
    from orchestrator.spec.new_spec import NewSpec

LISTS = ("--tasks", "--methods", "--backbones", "--backbone")
"""Options that take several values after each other: `--methods spt_deep linear`."""
TRIALS = 12
TRIALS_PARSER = whole_number(1, 100_000)
METHODS = ("spt_deep", "vpt_deep", "linear")
"""What is compared by default."""
BACKBONE = "vit_base_patch16_224.mae"
"""The network of most of the papers' tables."""

QUESTIONS = {
    "tasks": "Tasks, such as own/photos, demo/digits or the group natural",
    "backbones": "Backbone (`sptune backbones` lists them)",
    "methods": f"Methods: {', '.join(CATALOG)}",
}


class ListCommand(TyperCommand):
    """A command some of whose options take several values after each other, which Click does not have."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Repeat such an option before each of its values."""
        ctx.meta[__name__] = _last_list(args)
        return super().parse_args(ctx, _repeat_options(args))

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """Complete the second and later values, too."""
        option = ctx.meta.get(__name__)
        params = [param for param in self.params if option in param.opts]
        if params and not incomplete.startswith("-"):
            return params[0].shell_complete(ctx, incomplete)
        return super().shell_complete(ctx, incomplete)


def _repeat_options(args: Sequence[str]) -> list[str]:
    repeated: list[str] = []
    for index, arg in enumerate(args):
        option = _last_list(args[:index])
        # The first value follows its option already.
        if option and not arg.startswith("-") and args[index - 1] != option:
            repeated.append(option)
        repeated.append(arg)
    return repeated


def _last_list(args: Sequence[str]) -> str:
    """Return the option that the next value belongs to, if it takes several; an empty text for another option."""
    last = next((arg.partition("=")[0] for arg in reversed(args) if arg.startswith("-")), "")
    return last if last in LISTS else ""


def new(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The YAML file to write. It must not exist.")],
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            "--tasks",
            metavar="TASK...",
            autocompletion=complete_tasks_or_group,
            help="Tasks or groups: own/photos, vtab/dtd, natural.",
        ),
    ] = None,
    methods: Annotated[
        list[str] | None,
        typer.Option(
            "--methods",
            metavar="METHOD...",
            autocompletion=complete_method,
            help=f"Methods to compare; default: {' '.join(METHODS)}.",
        ),
    ] = None,
    backbones: Annotated[
        list[str] | None,
        typer.Option(
            "--backbones",
            "--backbone",
            metavar="NAME...",
            autocompletion=complete_backbone,
            help=f"Frozen networks; default: {BACKBONE}, for demo tasks the bundled one.",
        ),
    ] = None,
    trials: Annotated[
        int | None,
        typer.Option(parser=TRIALS_PARSER, help=f"Search trials of each study; default: {TRIALS}."),
    ] = None,
    home: HomeOption = None,
) -> None:
    """Write a commented spec to begin with, sized to the cores, memory and GPUs of this machine.

    In a terminal it asks for what is not given. It never replaces a file.
    """
    import yaml

    from orchestrator.environment.requirements import check_requirements
    from orchestrator.spec.loader import parse_spec
    from orchestrator.spec.new_spec import Machine
    from orchestrator.spec.plan import plan_sweep

    if file.is_dir():
        raise UserError(f"{file} is a folder: name the file to write in it, such as {file / 'photos.yaml'}.")
    if file.suffix not in SUFFIXES:
        file = file.with_name(f"{file.name}.yaml")
    # Before the questions, not after them.
    _refuse_existing(file)

    place = home_at(home)
    new_spec = _decide(place, tasks, methods, backbones, trials)
    machine = Machine(cores=usable_cores(), memory=usable_memory(), gpus=visible_gpus())
    text = new_spec.text(str(file), machine, _fewest_images(place, new_spec.tasks))
    # What is wrong with the choices together, such as a task in a group and alone, is found before it is written.
    spec = parse_spec(yaml.safe_load(text), str(file))

    try:
        with file.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError:
        # Made in the meantime.
        _refuse_existing(file)
        raise

    plans = plan_sweep(spec).studies
    studies = counted(len(plans), "study")
    final = counted(len(spec.final.seeds), "final trial")
    console.print(f"wrote {file}: {studies} of {spec.search.trials} search and {final}.")
    weights = weights_at(os.environ.get("SPTUNE_WEIGHTS"))
    for sentence in check_requirements(spec, plans, place, weights, address=None).problems:
        console.print(f"missing: {sentence}")
    note = small_images_note(plans)
    if note:
        console.print(note)
    if spec.name in list_folders(f"{place.root}/sweeps"):
        console.print(
            f"note: {place.root} holds a sweep {spec.name}, which a launch of this spec would continue or refuse. For "
            "another sweep, change `name`."
        )
    console.print("Next, check it and run it:")
    for task in spec.tasks:
        if is_own(task) and read_card(place.data_root, task) is None:
            # `sptune data` finds the home by the environment alone.
            variable = f"SPTUNE_HOME={shlex.quote(str(home))} " if repeated_home(home) else ""
            console.print(f"  {variable}sptune data import FOLDER --task {shlex.quote(task)}", soft_wrap=True)
    for command in ("plan", "launch"):
        console.print(f"  sptune {command} {shlex.quote(str(file))}{repeated_home(home)}", soft_wrap=True)


def _refuse_existing(file: Path) -> None:
    if file.exists() or file.is_symlink():
        raise UserError(f"{file} exists, and `sptune new` replaces no file: name another one, or delete it first.")


def _decide(
    home: Home,
    tasks: Sequence[str] | None,
    methods: Sequence[str] | None,
    backbones: Sequence[str] | None,
    trials: int | None,
) -> NewSpec:
    """Return what the user wants: the options, and answers or defaults for those that are not given.

    Raises:
        UserError: with everything that is wrong with the options.
    """
    from orchestrator.spec.new_spec import NewSpec

    given = {"tasks": tasks, "backbones": backbones, "methods": methods}
    values = {key: _split(" ".join(names)) for key, names in given.items() if names}
    problems = [problem for key, names in values.items() for problem in _problems(key, names)]
    if problems:
        raise UserError("\n".join(problems))

    asks = sys.stdin.isatty() and sys.stdout.isatty()
    if "tasks" not in values:
        if not asks:
            raise UserError(
                "--tasks is missing: name tasks such as own/photos or demo/digits; `sptune data list` lists them."
            )
        values["tasks"] = _ask("tasks", _own_tasks(home) or ["demo/digits"])

    # A demo task is made for the bundled network.
    is_demo = all(name.startswith("demo") for name in values["tasks"])
    for key, default in (("backbones", [BUNDLED if is_demo else BACKBONE]), ("methods", [*METHODS])):
        if key not in values:
            values[key] = _ask(key, default) if asks else default
    if trials is None:
        trials = TRIALS
        if asks:
            trials = typer.prompt("Search trials of each study", TRIALS, value_proc=TRIALS_PARSER)

    return NewSpec(tasks=values["tasks"], backbones=values["backbones"], methods=values["methods"], trials=trials)


def _ask(key: str, default: list[str]) -> list[str]:
    """Return the names that a user types, once they are right."""

    def parse(answer: str) -> list[str]:
        names = _split(answer)
        problems = _problems(key, names)
        if problems:
            # Without the place in a spec, which nobody has typed.
            raise typer.BadParameter(" ".join(problem.partition(": ")[2] for problem in problems))
        return names

    answer: list[str] = typer.prompt(QUESTIONS[key], " ".join(default), value_proc=parse)
    return answer


def _split(text: str) -> list[str]:
    """Return the names in a text, with spaces or commas between them, each once."""
    return list(dict.fromkeys(text.replace(",", " ").split()))


def _problems(key: str, names: list[str]) -> list[str]:
    """Return a sentence for each name that a spec may not have at a key."""
    from pydantic import ValidationError

    from orchestrator.spec.explanations import sentences
    from orchestrator.spec.schema import StudyMatrix

    # Valid values for the other keys.
    valid = {"tasks": ["demo/digits"], "backbones": [BUNDLED], "methods": ["linear"]}
    try:
        StudyMatrix.model_validate(valid | {key: names})
    except ValidationError as error:
        return sentences(error)
    return []


def _own_tasks(home: Home) -> list[str]:
    return [f"{OWN}{name}" for name in list_folders(f"{home.data_root}/{OWN.rstrip('/')}")]


def _fewest_images(home: Home, names: Sequence[str]) -> int | None:
    """Return the number of training images of the smallest task; None if that of an own task is not known."""
    from orchestrator.spec.schema import task_names

    counts = []
    for task in dict.fromkeys(task for name in names for task in task_names(name)):
        card = read_card(home.data_root, task) if is_own(task) else None
        if card is None and is_own(task):
            return None
        counts.append(card.counts["train"] if card else TASKS[task].num_train)
    return min(counts)
