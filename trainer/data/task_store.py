"""The task store: a folder a task, a Parquet file a split, and a card that says where it is from. No torch.

Images stay encoded, one row each: key, label, image. `load.py` decodes them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from trainer.catalog import TASKS
from trainer.storage.files import delete_file, has_folders, open_filesystem, read_bytes, translate_errors, write_bytes
from trainer.storage.s3 import redact_query

SPLITS = ("train", "val", "test")
SCHEMA = pa.schema([("key", pa.string()), ("label", pa.int64()), ("image", pa.binary())])
GROUP_BYTES = 32 * 2**20
"""Encoded bytes of a row group: what writing and reading hold in memory."""


class TaskMissing(FileNotFoundError):
    """A task that is not in the store, with the way to get it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One labelled image as it is stored."""

    key: str
    label: int
    image: bytes
    """The encoded image."""

    def content(self, split: str) -> bytes:
        """What a task's fingerprint is made of."""
        return f"{split}\0{self.key}\0{self.label}\0{len(self.image)}\0".encode() + self.image


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
    importer: str = ""
    """What made it, with its version."""
    licence: str | None = None
    """None where it is not known."""
    repairs: list[str] = field(default_factory=list)
    """What was left out or mended, with counts and names."""

    @property
    def differs(self) -> list[str]:
        """Where the counts are not the catalog's, split by split."""
        if (row := TASKS.get(self.task)) is None:
            return []
        expected = {"train": row.num_train, "val": row.num_val, "test": row.num_test}
        wrong = [split for split in SPLITS if self.counts[split] != expected[split]]
        return [f"{split} has {self.counts[split]:,} of {expected[split]:,} images" for split in wrong]


def write_task(
    root: str,
    task: str,
    splits: Mapping[str, Iterable[Example]],
    *,
    source: str,
    class_names: list[str],
    protocol: str,
    importer: str = "",
    licence: str | None = None,
    repairs: list[str] | None = None,
) -> Card:
    """Store a task: its splits first, then the card that makes it present.

    Examples are taken as they come; memory holds one row group. A task that is there already stays until all of the
    new one is written. `repairs` is read last, so that it can be filled while examples are taken.

    Raises:
        OSError: if the store cannot be written; nothing of the new task is left.
    """
    filesystem, folder = open_filesystem(f"{root}/{task}")
    digest, counts = hashlib.sha256(), {}
    parts = {split: f"{folder}/{split}.{uuid.uuid4().hex}.part" for split in SPLITS}
    with translate_errors(f"{root}/{task}", "written"):
        if has_folders(filesystem):
            filesystem.create_dir(folder, recursive=True)
        try:
            for split in SPLITS:
                with filesystem.open_output_stream(parts[split]) as stream, pq.ParquetWriter(stream, SCHEMA) as writer:
                    counts[split] = 0
                    for group in _batches(splits[split]):
                        for one in group:
                            digest.update(one.content(split))
                        writer.write_table(pa.Table.from_pylist([dataclasses.asdict(one) for one in group], SCHEMA))
                        counts[split] += len(group)
            fingerprint = digest.hexdigest()[:16]
            # From here to the card another task of that name is absent, so that an end in between is seen. The same
            # task stays: who writes it at the same time, or reads it, never misses it.
            if f'"{fingerprint}"'.encode() not in (read_bytes(f"{root}/{task}/card.json") or b""):
                delete_file(f"{root}/{task}/card.json")
            for split in SPLITS:
                filesystem.move(parts[split], f"{folder}/{split}.parquet")
        finally:
            for part in parts.values():
                if filesystem.get_file_info(part).type == fs.FileType.File:
                    filesystem.delete_file(part)
    card = Card(
        task=task,
        source=source,
        protocol=protocol,
        class_names=class_names,
        counts=counts,
        fingerprint=fingerprint,
        importer=importer,
        licence=licence,
        repairs=repairs or [],
    )
    write_bytes(f"{root}/{task}/card.json", json.dumps(dataclasses.asdict(card), indent=2).encode())
    return card


def _batches(examples: Iterable[Example]) -> Iterator[list[Example]]:
    group: list[Example] = []
    size = 0
    for example in examples:
        group.append(example)
        size += len(example.image)
        if size >= GROUP_BYTES or len(group) >= 2048:
            yield group
            group, size = [], 0
    if group:
        yield group


def read_card(root: str, task: str) -> Card | None:
    """The card of a task that is in the store, or None.

    Raises:
        TaskMissing: if its card is damaged.
        OSError: if the store cannot be read.
    """
    data = read_bytes(f"{root}/{task}/card.json")
    return None if data is None else _card(data, root, task)


def _card(data: bytes, root: str, task: str) -> Card:
    try:
        card = Card(**json.loads(data))
        # Files are named by both.
        if card.task != task or not re.fullmatch("[0-9a-f]{16}", card.fingerprint):
            raise ValueError(f"it is of {card.task!r} with the fingerprint {card.fingerprint!r}")
    except (ValueError, TypeError) as error:
        raise TaskMissing(
            f"{redact_query(root)}/{task}/card.json is damaged ({error}); import the task again."
        ) from error
    return card


def read_column(root: str, task: str, split: str, column: str) -> pa.ChunkedArray:
    """One column of a split, without the images' bytes in memory unless it is theirs."""
    with _open(root, task, split) as file:
        return pq.read_table(file, columns=[column])[column]


def count_examples(root: str, task: str, split: str) -> int:
    """How many examples a split has, by its file."""
    with _open(root, task, split) as file:
        return int(pq.ParquetFile(file).metadata.num_rows)


def read_examples(root: str, task: str, split: str, start: int = 0) -> Iterator[Example]:
    """The examples of a split from a row on, a few row groups in memory at a time."""
    with _open(root, task, split) as file:
        parquet = pq.ParquetFile(file)
        passed = 0
        for group in range(parquet.num_row_groups):
            size = parquet.metadata.row_group(group).num_rows
            if passed + size > start:
                rows = parquet.read_row_group(group).slice(max(0, start - passed)).to_pylist()
                yield from (Example(key=row["key"], label=row["label"], image=row["image"]) for row in rows)
            passed += size


@contextmanager
def _open(root: str, task: str, split: str) -> Iterator[pa.NativeFile]:
    place = f"{root}/{task}/{split}.parquet"
    filesystem, path = open_filesystem(place)
    with translate_errors(place, "read"):
        try:
            file = filesystem.open_input_file(path)
        except FileNotFoundError:
            raise FileNotFoundError(
                f"{redact_query(root)}/{task} has a card and no {split}.parquet; import the task again."
            ) from None
        with file:
            yield file
