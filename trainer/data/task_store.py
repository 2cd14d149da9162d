"""The task store: per task a folder, with a Parquet file per split and a card that says where the task is from.

Images stay encoded, one row each: key, label, image. `image_cache` decodes them. This module needs no torch.

Reading writes nothing here. `tasks.open_task` is the function that makes a demo task at its first use.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from trainer.catalog import TASKS
from trainer.storage.files import (
    delete_file,
    has_folders,
    open_filesystem,
    publish,
    read_bytes,
    translate_errors,
    write_bytes,
)
from trainer.storage.integrity import pack_json, parse_json, verify
from trainer.storage.s3 import redact_query

SPLITS = ("train", "val", "test")
"""The splits that are stored; `trainval` is put together when it is loaded."""
SCHEMA = pa.schema([("key", pa.string()), ("label", pa.int64()), ("image", pa.binary())])
GROUP_BYTES = 32 * 2**20
"""Encoded bytes of a row group, which is held in memory when it is written or read."""
GROUP_EXAMPLES = 2048
"""Most examples of a row group, however small their images are."""


class TaskMissing(FileNotFoundError):
    """A task that is not in the store, or whose card is damaged. The message says how to get the task."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One labelled image as it is stored."""

    key: str
    label: int
    image: bytes
    """The encoded image."""

    def content(self, split: str) -> bytes:
        """Return the bytes that this example adds to the fingerprint of its task."""
        return f"{split}\0{self.key}\0{self.label}\0{len(self.image)}\0".encode() + self.image


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """The description of a stored task and of its origin; the content of `card.json`."""

    task: str
    source: str
    protocol: str
    """`published`, or how the splits were drawn."""
    class_names: list[str]
    counts: dict[str, int]
    fingerprint: str
    """Hash over the keys, labels and image bytes of all splits, in order."""
    importer: str = ""
    """The program that wrote the task, with its version."""
    licence: str | None = None
    """None if it is not known."""
    repairs: list[str] = field(default_factory=list)
    """Images that were left out or repaired, with counts and names."""

    @property
    def differs(self) -> list[str]:
        """A sentence for each split whose count differs from the catalog's. Empty for a user's own task."""
        row = TASKS.get(self.task)
        if row is None:
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
    """Write a task to the store and return its card. The splits come first; the card makes the task present.

    Examples are taken one by one, and memory holds one row group. A task of that name stays in the store until all
    images of the new one are written. `repairs` is read last, so that it can be filled while examples are taken.

    Raises:
        OSError: if the store cannot be written. Nothing of the new task is left then.
    """
    filesystem, folder = open_filesystem(f"{root}/{task}")

    digest = hashlib.sha256()
    counts = {}
    # Other processes may write the same task, so the names of unfinished files are unique.
    parts = {split: f"{folder}/{split}.{uuid.uuid4().hex}.part" for split in SPLITS}
    with translate_errors(f"{root}/{task}", "written"):
        if has_folders(filesystem):
            filesystem.create_dir(folder, recursive=True)

        try:
            for split in SPLITS:
                with (
                    filesystem.open_output_stream(parts[split]) as stream,
                    # Readers compare the checksums, so a damaged page is an error and not another image.
                    pq.ParquetWriter(stream, SCHEMA, write_page_checksum=True) as writer,
                ):
                    counts[split] = 0
                    for group in _row_groups(splits[split]):
                        for example in group:
                            digest.update(example.content(split))
                        rows = [dataclasses.asdict(example) for example in group]
                        writer.write_table(pa.Table.from_pylist(rows, SCHEMA))
                        counts[split] += len(group)
            fingerprint = digest.hexdigest()[:16]

            # The card of another task goes before its splits are replaced: a crash from here to the new card leaves no
            # task, not a mixture of two. The card of the same task stays, because the bytes are the same: processes
            # that read or write that task at this moment never miss it.
            if f'"{fingerprint}"'.encode() not in (read_bytes(f"{root}/{task}/card.json") or b""):
                delete_file(f"{root}/{task}/card.json")

            for split in SPLITS:
                publish(parts[split], f"{folder}/{split}.parquet", filesystem)
        finally:
            for part in parts.values():
                if filesystem.get_file_info(part).type == fs.FileType.File:
                    filesystem.delete_file(part)

    # The card is last: a task without a card is not in the store.
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
    write_bytes(f"{root}/{task}/card.json", pack_json(dataclasses.asdict(card)))
    return card


def _row_groups(examples: Iterable[Example]) -> Iterator[list[Example]]:
    group: list[Example] = []
    size = 0
    for example in examples:
        group.append(example)
        size += len(example.image)

        if size >= GROUP_BYTES or len(group) >= GROUP_EXAMPLES:
            yield group
            group = []
            size = 0

    if group:
        yield group


def read_card(root: str, task: str) -> Card | None:
    """Return the card of a task, or None if the task is not in the store. Writes nothing.

    A demo task that was never used is not in the store. Use `tasks.open_task` where it is to be made.

    Raises:
        TaskMissing: if the card is damaged.
        OSError: if the store cannot be read.
    """
    data = read_bytes(f"{root}/{task}/card.json")
    if data is None:
        return None
    return _parse_card(data, root, task)


def _parse_card(data: bytes, root: str, task: str) -> Card:
    try:
        verify(data)
        card = Card(**parse_json(data))
        # Both become parts of file names, so no other text is accepted.
        if card.task != task or not re.fullmatch("[0-9a-f]{16}", card.fingerprint):
            raise ValueError(f"it is of {card.task!r} with the fingerprint {card.fingerprint!r}")
    except (ValueError, TypeError) as error:
        raise TaskMissing(
            f"{redact_query(root)}/{task}/card.json is damaged ({error}); import the task again."
        ) from error
    return card


def read_column(root: str, task: str, split: str, column: str) -> pa.ChunkedArray:
    """Return one column of a split. The other columns are not read.

    Raises:
        OSError: if the store cannot be read, or the file is damaged.
        ValueError: if the file is damaged.
    """
    with _open(root, task, split) as file:
        return pq.read_table(file, columns=[column], page_checksum_verification=True)[column]


def count_examples(root: str, task: str, split: str) -> int:
    """Return the number of examples of a split, from its file.

    Raises:
        OSError: if the store cannot be read.
    """
    with _open(root, task, split) as file:
        return int(pq.ParquetFile(file).metadata.num_rows)


def read_examples(root: str, task: str, split: str, start: int = 0) -> Iterator[Example]:
    """Yield the examples of a split from row `start` on, with a few row groups in memory at a time.

    Raises:
        OSError: if the store cannot be read.
    """
    with _open(root, task, split) as file:
        parquet = pq.ParquetFile(file, page_checksum_verification=True)

        first_row = 0
        for group in range(parquet.num_row_groups):
            num_rows = parquet.metadata.row_group(group).num_rows
            # Groups that end before `start` are skipped unread.
            if first_row + num_rows > start:
                rows = parquet.read_row_group(group).slice(max(0, start - first_row)).to_pylist()
                yield from (Example(key=row["key"], label=row["label"], image=row["image"]) for row in rows)

            first_row += num_rows


@contextmanager
def _open(root: str, task: str, split: str) -> Iterator[pa.NativeFile]:
    uri = f"{root}/{task}/{split}.parquet"
    filesystem, path = open_filesystem(uri)
    with translate_errors(uri, "read"):
        try:
            file = filesystem.open_input_file(path)
        except FileNotFoundError:
            raise FileNotFoundError(
                f"{redact_query(root)}/{task} has a card and no {split}.parquet; import the task again."
            ) from None
        with file:
            try:
                with translate_errors(uri, "read"):
                    yield file
            except (ValueError, KeyError, OSError, OverflowError, pa.ArrowException) as error:
                # Errors of a disk or a bucket have a number, which retries depend on.
                if getattr(error, "errno", None) is not None:
                    raise
                raise split_error(root, task, split, error) from error


def split_error(root: str, task: str, split: str, error: Exception, example: Example | None = None) -> Exception:
    """Return the error for a damaged split, an OSError or a ValueError as the given one.

    Its text names the file, and the image if it is known.
    """
    place = f"{redact_query(root)}/{task}"
    image = f", image {example.key!r}" if example else ""
    delete = (
        f"Delete {place}, which is made again at its first use, or import" if task.startswith("demo/") else "Import"
    )
    reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    kind = OSError if isinstance(error, OSError) else ValueError
    return kind(f"{place}/{split}.parquet{image} cannot be read: {reason}. {delete} the task again.")
