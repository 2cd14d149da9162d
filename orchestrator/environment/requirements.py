"""What a spec needs that is not there: tasks and weights."""

from __future__ import annotations

from orchestrator.environment.home import Home
from orchestrator.spec.schema import StudyMatrix, task_names
from trainer.catalog import BACKBONES
from trainer.data.task_store import read_card
from trainer.model.weights import WeightsError, find_weights


def find_missing(spec: StudyMatrix, home: Home, weights: str | None) -> list[str]:
    """Return a sentence for each task that is not in the task store and each backbone whose weights are nowhere."""
    problems = []
    names = dict.fromkeys(task for name in spec.tasks for task in task_names(name))
    try:
        # Demo tasks are made at their first use.
        absent = [task for task in names if not task.startswith("demo/") and read_card(home.data_root, task) is None]
    except OSError as error:
        # A store that does not answer is one problem, not one for each task.
        problems.append(f"data: {error}")
    else:
        if absent:
            way_out = f"not in the task store {home.data_root}; `sptune data list` says where to get what is missing."
            problems.append(f"tasks: {', '.join(absent)}: {way_out}")

    for name in spec.backbones:
        try:
            find_weights(BACKBONES[name], weights)
        except (WeightsError, OSError) as error:
            problems.append(f"backbones: {error}")
    # Backbones in one folder of weights have the same problem.
    return list(dict.fromkeys(problems))
