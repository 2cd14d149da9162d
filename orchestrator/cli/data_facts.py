"""What `sptune data` prints of tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trainer.catalog import TASKS
from trainer.data.task_store import SPLITS, Card

if TYPE_CHECKING:
    from trainer.data.verify import Verdict


def sizes_of(task: str, card: Card | None) -> list[int]:
    """Return the number of classes, and of images of each split: from the card if the task is stored."""
    row = TASKS.get(task)
    if card is not None:
        num_classes = row.num_classes if row is not None else len(card.class_names)
        return [num_classes, *(card.counts[split] for split in SPLITS)]
    return [0, 0, 0, 0] if row is None else [row.num_classes, row.num_train, row.num_val, row.num_test]


def task_json(task: str, card: Card | None) -> dict[str, Any]:
    """Return a task of `data list` for scripts."""
    row = TASKS.get(task)
    sizes = dict(zip(("classes", *SPLITS), sizes_of(task, card), strict=True))
    return {
        "task": task,
        "group": row.group if row is not None else "own",
        **sizes,
        "stored": card is not None,
        "protocol": card.protocol if card is not None else None,
        "fingerprint": card.fingerprint if card is not None else None,
        "differs": card.differs if card is not None else [],
    }


def verdict_json(task: str, verdict: Verdict) -> dict[str, Any]:
    """Return a task of `data verify` for scripts."""
    return {
        "task": task,
        "images": sum(verdict.card.counts.values()),
        "protocol": verdict.card.protocol,
        "fingerprint": verdict.card.fingerprint,
        "problems": verdict.problems,
        "notes": verdict.notes,
    }
