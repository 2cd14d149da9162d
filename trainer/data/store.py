"""The task store: a folder a task, a Parquet file a split, and a card that says where it is from.

Images stay encoded; `load_split` decodes them once a process at the size that a backbone takes.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from trainer.catalog import TASKS
from trainer.data.subsets import nested_subset
from trainer.data.transforms import TransformName, View, aspect, decode
from trainer.storage import read_bytes, write_bytes

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One labelled image as it is stored."""

    key: str
    label: int
    image: bytes
    """The encoded image."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """What a stored task is and where it is from."""

    task: str
    source: str
    protocol: str
    """`published`, or how the split was drawn."""
    class_names: list[str]
    counts: dict[str, int]
    fingerprint: str
    """Hash over the keys, labels and image bytes of all splits, in order."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Split:
    """The decoded images of one split, N of them."""

    images_NCHW: Tensor
    """uint8."""
    labels_N: Tensor
    """int64."""
    keys: tuple[str, ...]
    aspect_N: Tensor
    """Width over height of each image as it was stored."""
    view: View
    fingerprint: str
    """Hash of the task's images, with the part of them that this is."""


def write_task(
    root: str,
    task: str,
    splits: Mapping[str, Sequence[Example]],
    *,
    source: str,
    class_names: list[str],
    protocol: str,
) -> None:
    """Store a task: its splits first, then the card that makes it present.

    Raises:
        ValueError: if the counts are not the catalog's.
        OSError: if the store cannot be written.
    """
    row = TASKS[task]
    counts = {split: len(splits[split]) for split in SPLITS}
    expected = {"train": row.num_train, "val": row.num_val, "test": row.num_test}
    if counts != expected:
        raise ValueError(f"{task} must have {expected} images, got {counts}.")
    digest = hashlib.sha256()
    for split in SPLITS:
        for example in splits[split]:
            digest.update(f"{split}\0{example.key}\0{example.label}\0{len(example.image)}\0".encode() + example.image)
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist([dataclasses.asdict(example) for example in splits[split]]), buffer)
        write_bytes(f"{root}/{task}/{split}.parquet", buffer.getvalue())
    card = Card(
        task=task,
        source=source,
        protocol=protocol,
        class_names=class_names,
        counts=counts,
        fingerprint=digest.hexdigest()[:16],
    )
    write_bytes(f"{root}/{task}/card.json", json.dumps(dataclasses.asdict(card), indent=2).encode())


def read_card(root: str, task: str) -> Card:
    """The card of a task; the demo tasks are made at first sight.

    Raises:
        OSError: if the store cannot be read or written.
    """
    if (data := read_bytes(f"{root}/{task}/card.json")) is None:
        from trainer.data.rendered import render  # rendered.py writes with this module

        render(root, task)
        data = read_bytes(f"{root}/{task}/card.json")
        assert data is not None, f"render left no card of {task}"
    return Card(**json.loads(data))


@functools.lru_cache(maxsize=4)
def load_split(
    root: str,
    task: str,
    split: str,
    train_size: float | int,
    image_size: int,
    device: str = "cpu",
    transform: TransformName = "spt",
    view: View = "fixed",
) -> Split:
    """The images of a split at a backbone's size, kept in the process.

    Args:
        root: the task store, a folder or a URI.
        split: train, val, test, or trainval: train and val together.
        train_size: share or number of the images taken (of each part of trainval), nested and stratified; 1.0 for all.

    Raises:
        OSError: if the store cannot be read or written.
    """
    card = read_card(root, task)
    parts = []
    for name in ("train", "val") if split == "trainval" else (split,):
        data = read_bytes(f"{root}/{task}/{name}.parquet")
        if data is None:
            raise FileNotFoundError(f"{root}/{task} has a card and no {name}.parquet; remove the folder and try again.")
        table = pq.read_table(io.BytesIO(data))
        parts.append(table.take(nested_subset(table["label"].to_numpy(), train_size)))
    table = pa.concat_tables(parts)
    encoded = table["image"].to_pylist()
    augmented = TASKS[task].augmented
    images = torch.stack([decode(image, image_size, transform, view=view, augmented=augmented) for image in encoded])
    return Split(
        images_NCHW=images.to(device),
        labels_N=torch.from_numpy(table["label"].to_numpy().astype(np.int64)).to(device),
        keys=tuple(table["key"].to_pylist()),
        aspect_N=torch.tensor([aspect(image) for image in encoded], dtype=torch.float64),
        view=view,
        fingerprint=f"{card.fingerprint}/{split}/{train_size}/{transform}/{image_size}/{view}",
    )
