"""Opening a task for training: like reading its card, but a demo task is made at its first use."""

from __future__ import annotations

import shlex

from trainer import phase
from trainer.data.task_store import Card, TaskMissing, read_card
from trainer.redaction import redact


def open_task(root: str, task: str) -> Card:
    """Return the card of a task. Make the task first if it is a demo task that the task store lacks.

    This may write to the task store. Use `read_card` where nothing may be written: it returns None for a task that is
    not in the store.

    Raises:
        TaskMissing: if the task is not in the store and is no demo task, or if its card is damaged.
        OSError: if the store cannot be read or written.
    """
    card = read_card(root, task)
    if card is not None:
        return card
    if not _is_demo(task):
        raise missing_task(root, task)

    # Imported late, because it loads Pillow, which is not needed to open a stored task.
    from trainer.data.demo_tasks import make_demo_task

    phase.begin(f"making {task}")
    make_demo_task(root, task)
    card = read_card(root, task)
    assert card is not None, f"make_demo_task left no card of {task}"
    return card


def missing_task(root: str, task: str) -> TaskMissing:
    """Return the error for a task that is not in the store, for callers of `read_card` that need the task."""
    if _is_demo(task):
        way_out = f"It is made at its first use, for example by `sptune data show {shlex.quote(task)}`."
    else:
        way_out = (
            f"Import it: sptune data import PATH --task {shlex.quote(task)} (`sptune data list` says where to get it)."
        )
    return TaskMissing(f"{task} is not in the task store {redact(root)}. {way_out}")


def _is_demo(task: str) -> bool:
    return task.startswith("demo/")
