"""Open a task, and make a demo task at its first use."""

from __future__ import annotations

from trainer.data.task_store import Card, TaskMissing, _card
from trainer.storage.files import read_bytes
from trainer.storage.s3 import redact_query


def open_task(root: str, task: str) -> Card:
    """The card of a task; the demo tasks are made at first sight.

    Raises:
        TaskMissing: if the task is not in the store, or its card is damaged.
        OSError: if the store cannot be read or written.
    """
    if (data := read_bytes(f"{root}/{task}/card.json")) is None:
        if not task.startswith("demo/"):
            raise TaskMissing(
                f"{task} is not in the task store {redact_query(root)}. "
                f"Import it: sptune data import PATH --task {task} (`sptune data list` says where to get it)."
            )
        from trainer.data.demo_tasks import make_demo_task  # rendered.py writes with this module

        make_demo_task(root, task)
        data = read_bytes(f"{root}/{task}/card.json")
        assert data is not None, f"render left no card of {task}"
    return _card(data, root, task)
