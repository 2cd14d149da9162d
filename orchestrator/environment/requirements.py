"""What a spec needs of the home: tasks with enough images, and weights."""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.environment.home import Home
from orchestrator.errors import HomeError
from orchestrator.spec.schema import StudyMatrix, task_names
from trainer.catalog import BACKBONES, is_own
from trainer.data.task_store import Card, read_card
from trainer.model.weights import WeightsError, find_weights
from trainer.storage.local_cache import cache_problem
from trainer.validation import is_full, share_problem


def find_missing(spec: StudyMatrix, home: Home, weights: str | None) -> list[str]:
    """Return a sentence for each task that is not in the task store and each backbone whose weights are nowhere.

    A task of the user's own also needs enough images for the shares of `train_sizes`; the catalog knows the others.
    """
    problems = []
    names = dict.fromkeys(task for name in spec.tasks for task in task_names(name))
    try:
        # Demo tasks are made at their first use.
        cards = {task: read_card(home.data_root, task) for task in names if not task.startswith("demo/")}
    except OSError as error:
        # A store that does not answer is one problem, not one for each task.
        problems.append(f"data: {error}")
    else:
        absent = [task for task, card in cards.items() if card is None]
        if absent:
            way_out = f"not in the task store {home.data_root}; `sptune data list` says where to get what is missing."
            problems.append(f"tasks: {', '.join(absent)}: {way_out}")
        problems += [
            f"train_sizes: {problem}"
            for card in cards.values()
            if card is not None and is_own(card.task)
            for problem in _share_problems(spec, card)
        ]

    for name in spec.backbones:
        try:
            find_weights(BACKBONES[name], weights)
        except (WeightsError, OSError) as error:
            problems.append(f"backbones: {error}")
    # Backbones in one folder of weights have the same problem.
    return list(dict.fromkeys(problems))


def require_cache() -> None:
    """Raise if the cache folder of this machine does not exist and cannot be made.

    Raises:
        HomeError: with the reason, and the variable that names another folder.
    """
    problem = cache_problem()
    if problem is not None:
        raise HomeError(problem)


def _share_problems(spec: StudyMatrix, card: Card) -> Iterator[str]:
    """Yield why shares of `train_sizes` are too small for a task. With val_size full they are all accepted."""
    if spec.val_size == "full":
        return

    for size in spec.train_sizes:
        if isinstance(size, float) and not is_full(size):
            problem = share_problem(size, card.task, card.counts["train"], len(card.class_names))
            if problem is not None:
                yield problem
