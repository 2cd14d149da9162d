"""What a sweep needs: tasks with enough images, weights, and a machine with the CPUs and GPUs of a trial.

`plan` and `launch` ask the same function, so what the one accepts the other runs.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from orchestrator.environment.connections import read_database
from orchestrator.environment.gpus import torch_gpus
from orchestrator.environment.home import Home
from orchestrator.environment.hub import hub_problem, unreachable
from orchestrator.errors import HomeError, ServiceError
from orchestrator.spec.overrides import merge_params, overrides_of
from orchestrator.spec.plan import StudyPlan, plan_sweep
from orchestrator.spec.schema import StudyMatrix, SweepSpec, task_names
from orchestrator.spec.space import Choice
from trainer.catalog import BACKBONES, OWN, TASKS, Task, is_own
from trainer.config import InvalidConfig, TrainConfig
from trainer.data.task_store import Card, read_card, read_column
from trainer.machine import usable_cores, visible_gpus
from trainer.model.weights import WeightsError, find_weights
from trainer.plain_text import counted
from trainer.storage.files import list_folders
from trainer.storage.local_cache import cache_problem
from trainer.validation import Problem, is_full, size_problems


@dataclass(slots=True)
class Requirements:
    """What the check of a sweep found."""

    problems: list[str] = field(default_factory=list)
    """A sentence for each thing that is missing, with the way out."""
    downloads: list[str] = field(default_factory=list)
    """Backbones whose weights this machine must download first, and can reach."""


def find_missing(spec: StudyMatrix, home: Home, weights: str | None) -> list[str]:
    """Return a sentence for each task that is not in the task store and each backbone whose weights are nowhere.

    Args:
        spec: a spec, or what is valid of one.
    """
    names = dict.fromkeys(task for name in spec.tasks for task in task_names(name))
    _, problems = _read_cards(names, home)
    return [*problems, *_find_weights(spec.backbones, weights).problems]


def check_requirements(
    spec: SweepSpec,
    plans: Sequence[StudyPlan],
    home: Home,
    weights: str | None,
    *,
    address: str | None,
    is_inline: bool = False,
) -> Requirements:
    """Check what some studies need. Nothing is written or downloaded.

    Args:
        plans: the studies that have something to run. What others need is not looked for.
        address: the Ray cluster, if there is one. Its nodes are not known here: a launch asks them.
        is_inline: whether trials run without Ray, which refuses trials with more CPUs than the machine has.
    """
    cards, problems = _read_cards(dict.fromkeys(name for plan in plans for name in tasks_of(plan)), home)
    problems += dict.fromkeys(_size_sentences(spec, plans, cards, home.data_root))

    backbones = [*dict.fromkeys(plan.backbone for plan in plans)]
    found = _find_weights(backbones, weights)
    if address is not None:
        return Requirements(problems + found.problems)

    reason = hub_problem() if found.downloads else None
    if reason is not None:
        found.problems += [f"backbones: {unreachable(BACKBONES[name], reason)}" for name in found.downloads]
        found.downloads = []
    problems += [*found.problems, *_machine_problems(spec, backbones, is_inline=is_inline)]
    return Requirements(problems, found.downloads)


def open_studies(spec: SweepSpec, home: Home) -> list[StudyPlan]:
    """Return the studies that have something to run, as far as the study database can be read."""
    try:
        database = read_database(home) if home.database_url else None
    except ServiceError:
        # The launch itself says so.
        database = None
    if database is None:
        return plan_sweep(spec).studies

    from orchestrator.study.study import load_studies

    try:
        studies = load_studies(spec, database, epochs=False)
        return [study.plan for study in studies if study.is_obsolete or not study.is_closed]
    finally:
        database.close()


def require_cache() -> None:
    """Raise if the cache folder of this machine does not exist and cannot be made.

    Raises:
        HomeError: with the reason, and the variable that names another folder.
    """
    problem = cache_problem()
    if problem is not None:
        raise HomeError(problem)


def tasks_of(plan: StudyPlan) -> Iterator[str]:
    """Yield the tasks whose images a study needs: its own, and those that prototypes are made of."""
    yield plan.task
    searched = plan.space.get("init_task")
    values = searched.values if isinstance(searched, Choice) else [plan.fixed.get("init_task")]
    yield from (str(value) for value in values if value is not None)


def _read_cards(names: Iterable[str], home: Home) -> tuple[dict[str, Card], list[str]]:
    """Return the cards of tasks, and a sentence for those that are missing."""
    try:
        # Demo tasks are made at their first use.
        cards = {task: read_card(home.data_root, task) for task in names if not task.startswith("demo/")}
    except OSError as error:
        # A store that does not answer is one problem, not one for each task.
        return {}, [f"data: {error}"]

    absent = [task for task, card in cards.items() if card is None]
    problems = []
    if absent:
        way_out = f"not in the task store {home.data_root}; {_way_to_import(absent, home)}"
        problems.append(f"tasks: {', '.join(absent)}: {way_out}")
    return {task: card for task, card in cards.items() if card is not None}, problems


def _way_to_import(absent: Sequence[str], home: Home) -> str:
    """Return how to get tasks that are missing: those of the catalog, and the user's own."""
    if not all(map(is_own, absent)):
        return "`sptune data list` says where to get what is missing."

    stored = [f"{OWN}{name}" for name in list_folders(f"{home.data_root}/{OWN.rstrip('/')}")]
    near = [name for task in absent for name in difflib.get_close_matches(task, stored, 1)]
    meant = f" Did you mean {' and '.join(near)}?" if near else ""
    return f"`sptune data import FOLDER --task {absent[0]}` imports it.{meant}"


def _size_sentences(
    spec: SweepSpec, plans: Sequence[StudyPlan], cards: dict[str, Card], data_root: str
) -> Iterator[str]:
    """Yield why a study has too few images: for its part of them, or for its largest batch."""
    from orchestrator.sweep.cost_model import most_expensive_config

    # Draws have equal numbers of images.
    for plan in {(plan.task, plan.backbone, plan.method, repr(plan.train_size)): plan for plan in plans}.values():
        problems: Iterable[tuple[str, str]]
        try:
            config = most_expensive_config(plan, plan.search.seed)
        except InvalidConfig as error:
            # The sizes of the catalog's tasks are among the rules of a config.
            problems = error.problems.items()
        else:
            problems = _size_problems(config, cards[plan.task], data_root) if plan.task in cards else ()

        keys = merge_params(spec, overrides_of(spec, plan.task, plan.backbone, plan.method)).keys
        for name, problem in problems:
            key = "train_sizes" if name == "train_size" else keys.get(name, f"fixed.{name}")
            yield f"{key}: {problem}"


def _size_problems(config: TrainConfig, card: Card, data_root: str) -> Iterator[Problem]:
    """Yield each number that asks for more training images than a stored task has."""
    problems = [*size_problems(config, _sizes_of(card))]
    yield from problems
    if problems or is_full(config.train_size):
        return

    # Imported here: it needs numpy, and every command imports this module.
    from trainer.data.subsets import split_rows

    # A part is rounded class by class, so only the labels tell how many images it has.
    try:
        labels = {"train": read_column(data_root, card.task, "train", "label", card).to_numpy()}
    except OSError:
        # The trial says what is wrong with the file.
        return
    num_images = len(split_rows(labels, "train", config.train_size, draw=config.draw))
    if config.batch_size > num_images:
        has = f"exceeds the {counted(num_images, 'image')} that {card.task} has at train_size={config.train_size}"
        yield "batch_size", f"{config.batch_size:,} {has}. Use a smaller one."


def _sizes_of(card: Card) -> Task:
    """Return the sizes of a stored task, which are its own even if it has the name of one of the catalog."""
    row = TASKS.get(card.task)
    return Task(
        name=card.task,
        group=row.group if row else card.task,
        num_classes=len(card.class_names),
        num_train=card.counts["train"],
        num_val=card.counts["val"],
        num_test=card.counts["test"],
    )


def _find_weights(backbones: Iterable[str], weights: str | None) -> Requirements:
    """Return why weights cannot be found, and the backbones whose weights are on timm's hub alone."""
    found = Requirements()
    for name in dict.fromkeys(backbones):
        try:
            if find_weights(BACKBONES[name], weights).kind == "hub":
                found.downloads.append(name)
        except (WeightsError, OSError) as error:
            found.problems.append(f"backbones: {error}")
    # Backbones in one folder of weights have the same problem.
    found.problems = [*dict.fromkeys(found.problems)]
    return found


def _machine_problems(spec: SweepSpec, backbones: Sequence[str], *, is_inline: bool) -> Iterator[str]:
    """Yield why a trial does not fit this machine."""
    resources = {name: spec.resources.for_backbone(name) for name in backbones}
    way_out = "Lower `resources` in the spec, or name a Ray cluster with --address or `cluster.address`."

    num_cores = usable_cores()
    for name, required in resources.items():
        if required.cpus > num_cores and not is_inline:
            here = f"and this machine has {num_cores}"
            yield f"resources.cpus: a trial of {name} asks for {counted(required.cpus, 'CPU')}, {here}. {way_out}"

    most_gpus = max((required.initial_gpus for required in resources.values()), default=0.0)
    # Not asked unless needed: it starts a process.
    num_gpus = len(visible_gpus()) if most_gpus else 0
    if num_gpus < most_gpus:
        # NVIDIA's tool may be missing, or know nothing of this GPU. Torch takes seconds, and decides.
        num_gpus = len(torch_gpus()[0])
    for name, required in resources.items():
        if required.initial_gpus > num_gpus:
            asked = counted(required.initial_gpus, "GPU")
            here = f"and torch sees {num_gpus or 'none'} on this machine"
            yield f"resources.gpus: a trial of {name} asks for {asked}, {here}. {way_out}"
