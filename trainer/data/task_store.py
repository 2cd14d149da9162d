"""The task store: per task a folder, with a Parquet file per split and a card that says where the task is from.

Images stay encoded, one row each: key, label, image. `image_cache` decodes them. This module needs no torch.

Reading writes nothing here. `tasks.open_task` is the function that makes a demo task at its first use.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from trainer.catalog import TASKS, is_own
from trainer.data.publishing import has_locks, part_folder
from trainer.plain_text import counted
from trainer.redaction import redact
from trainer.storage.files import delete_file, delete_folder, open_filesystem, read_bytes, translate_errors
from trainer.storage.integrity import pack_json, parse_json, verify

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

SPLITS = ("train", "val", "test")
"""The splits that are stored; `trainval` is put together when it is loaded."""
GROUP_BYTES = 32 * 2**20
"""Encoded bytes of a row group, which is held in memory when it is written or read."""
CARD = "card.json"
"""Name of the file that describes a task."""
FINGERPRINT_KEY = "sptune.fingerprint"
"""Key of the task's fingerprint in the metadata of each Parquet file."""
GROUP_EXAMPLES = 2048
"""Most examples of a row group, however small their images are."""
FEW_IMAGES = 100
"""Images of val or test below which an import warns: with 100, an accuracy is known to 10 points at best."""


class TaskMissing(FileNotFoundError):
    """A task that is not in the store, or whose card is damaged. The message says how to get the task."""


class TaskChanged(OSError):
    """A file of a task that is of another import than the task's card. The message says what to do."""


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
    """Hash over the keys, labels and image bytes of all splits, in order, and whether images of them are turned."""
    importer: str = ""
    """The program that wrote the task, with its version."""
    licence: str | None = None
    """None if it is not known."""
    repairs: list[str] = field(default_factory=list)
    """Images that were left out or repaired, with counts and names."""
    upright: bool = False
    """Whether images are turned by their EXIF orientation when they are read.

    True for the user's own tasks. False for those of the catalog, which the published code reads as they are stored,
    and for tasks of 0.1.0, so that their results stay.
    """

    @property
    def differs(self) -> list[str]:
        """A sentence for each split whose count differs from the catalog's. Empty for a user's own task."""
        row = TASKS.get(self.task)
        if row is None:
            return []

        expected = {"train": row.num_train, "val": row.num_val, "test": row.num_test}
        wrong = [split for split in SPLITS if self.counts[split] != expected[split]]
        return [f"{split} has {self.counts[split]:,} of {counted(expected[split], 'image')}" for split in wrong]

    @property
    def warnings(self) -> list[str]:
        """A sentence for each split of a user's own task that is too small for its purpose."""
        if not is_own(self.task):
            return []

        sentences = []
        num_classes = len(self.class_names)
        if self.counts["train"] < 2 * num_classes:
            sentences.append(f"train has {counted(self.counts['train'], 'image')} for {counted(num_classes, 'class')}")
        for split in ("val", "test"):
            count = self.counts[split]
            if 0 < count < FEW_IMAGES:
                # Half of the interval of a share, which is the largest at 50 %.
                points = 100 * 1.96 * math.sqrt(0.25 / count)
                known = f"accuracies on it are uncertain by up to {points:.0f} points (95 %)"
                sentences.append(f"{split} has {counted(count, 'image')}: {known}")
        return sentences


class TaskDigest:
    """The hash of a task's content, for its fingerprint.

    Args:
        upright: as in `Card`.
    """

    def __init__(self, *, upright: bool) -> None:
        self._upright = upright
        self._num_turned = 0
        self._digest = hashlib.sha256()

    def add(self, split: str, example: Example) -> None:
        """Add an example of a split. Splits come in their order."""
        # Imported late, because it loads Pillow, which is not needed to read a stored task.
        from trainer.data.images import is_turned

        self._digest.update(example.content(split))
        if self._upright and is_turned(example.image):
            self._num_turned += 1

    @property
    def fingerprint(self) -> str:
        """The fingerprint of all examples that were added."""
        digest = self._digest.copy()
        # The same bytes are other pixels where they are turned. Other tasks keep the fingerprint that they always had.
        if self._num_turned:
            digest.update(b"upright")
        return digest.hexdigest()[:16]


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
    """Write a task to the store and return its card. Its files appear together, the card last.

    Examples are taken one by one, and memory holds one row group. A task of that name stays in the store until all
    images of the new one are written. `repairs` is read last, so that it can be filled while examples are taken.

    Raises:
        OSError: if the store cannot be written. Nothing of the new task is left then.
        TaskChanged: if another import of the task wrote to a bucket at the same time.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    filesystem, folder = open_filesystem(f"{root}/{task}")
    schema = pa.schema([("key", pa.string()), ("label", pa.int64()), ("image", pa.binary())])
    upright = is_own(task)

    digest = TaskDigest(upright=upright)
    counts = {}
    with translate_errors(f"{root}/{task}", "written"), part_folder(filesystem, folder) as part, ExitStack() as stack:
        # All files stay open to the end, when the fingerprint is known that each carries.
        writers = []
        for split in SPLITS:
            stream = stack.enter_context(filesystem.open_output_stream(f"{part.path}/{split}.parquet"))
            # Readers compare the checksums, so a damaged page is an error and not another image.
            writer = stack.enter_context(pq.ParquetWriter(stream, schema, write_page_checksum=True))
            writers.append(writer)

            counts[split] = 0
            for group in _row_groups(splits[split]):
                for example in group:
                    digest.add(split, example)
                rows = [dataclasses.asdict(example) for example in group]
                writer.write_table(pa.Table.from_pylist(rows, schema))
                counts[split] += len(group)

        card = Card(
            task=task,
            source=source,
            protocol=protocol,
            class_names=class_names,
            counts=counts,
            fingerprint=digest.fingerprint,
            importer=importer,
            licence=licence,
            repairs=repairs or [],
            upright=upright,
        )
        for writer in writers:
            writer.add_key_value_metadata({FINGERPRINT_KEY: card.fingerprint})
        stack.close()
        with filesystem.open_output_stream(f"{part.path}/{CARD}") as stream:
            stream.write(pack_json(dataclasses.asdict(card)))

        part.publish([f"{split}.parquet" for split in SPLITS], CARD)

    if not has_locks(filesystem):
        _check_whole(root, task)
    return card


def delete_task(root: str, task: str) -> None:
    """Delete a task from the store.

    Raises:
        OSError: if the store cannot be written.
    """
    # The card first: without one, readers find no task instead of half of one.
    delete_file(f"{root}/{task}/{CARD}")
    delete_folder(f"{root}/{task}")


def _check_whole(root: str, task: str) -> None:
    """Raise TaskChanged if two imports have left files of both."""
    card = read_card(root, task)
    for split in SPLITS if card is not None else ():
        count_examples(root, task, split, card)


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
        raise TaskMissing(f"{redact(root)}/{task}/card.json is damaged ({error}); import the task again.") from error
    return card


def read_column(root: str, task: str, split: str, column: str, card: Card | None = None) -> pa.ChunkedArray:
    """Return one column of a split. The other columns are not read.

    Args:
        card: the card of the task; None if no other file of it is read.

    Raises:
        TaskChanged: if the file is of another import than the card.
        OSError: if the store cannot be read.
    """
    with _open(root, task, split, card) as parquet:
        return parquet.read([column])[column]


def count_examples(root: str, task: str, split: str, card: Card | None = None) -> int:
    """Return the number of examples of a split, from its file. Arguments and errors are those of `read_column`."""
    with _open(root, task, split, card) as parquet:
        return int(parquet.metadata.num_rows)


def read_examples(root: str, task: str, split: str, start: int = 0, card: Card | None = None) -> Iterator[Example]:
    """Yield the examples of a split from row `start` on, with a few row groups in memory at a time.

    Other arguments and errors are those of `read_column`.
    """
    with _open(root, task, split, card) as parquet:
        first_row = 0
        for group in range(parquet.num_row_groups):
            num_rows = parquet.metadata.row_group(group).num_rows
            # Groups that end before `start` are skipped unread.
            if first_row + num_rows > start:
                rows = parquet.read_row_group(group).slice(max(0, start - first_row)).to_pylist()
                yield from (Example(key=row["key"], label=row["label"], image=row["image"]) for row in rows)

            first_row += num_rows


@contextmanager
def _open(root: str, task: str, split: str, card: Card | None) -> Iterator[pq.ParquetFile]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    uri = f"{root}/{task}/{split}.parquet"
    filesystem, path = open_filesystem(uri)
    with translate_errors(uri, "read"):
        try:
            file = filesystem.open_input_file(path)
        except FileNotFoundError:
            raise FileNotFoundError(
                f"{redact(root)}/{task} has a card and no {split}.parquet; import the task again."
            ) from None

        with file:
            try:
                with translate_errors(uri, "read"):
                    parquet = pq.ParquetFile(file, page_checksum_verification=True)
                    _check_import(root, task, split, parquet, card)
                    yield parquet
            except TaskChanged:
                raise
            except (ValueError, KeyError, OSError, OverflowError, pa.ArrowException) as error:
                # Errors of a disk or a bucket have a number, which retries depend on.
                if getattr(error, "errno", None) is not None:
                    raise
                raise split_error(root, task, split, error) from error


def _check_import(root: str, task: str, split: str, parquet: pq.ParquetFile, card: Card | None) -> None:
    """Raise TaskChanged if a file is of another import than the card."""
    # Tasks of 0.1.0 carry no fingerprint in their files.
    fingerprint = (parquet.metadata.metadata or {}).get(FINGERPRINT_KEY.encode(), b"").decode()
    if card is not None and fingerprint not in {"", card.fingerprint}:
        raise TaskChanged(
            f"{redact(root)}/{task}/{split}.parquet is of another import ({fingerprint}) than the card "
            f"that was read ({card.fingerprint}): the task is being imported anew, or two imports of it ran at "
            "once. Run the command again; if that does not help, import the task again."
        )


def split_error(root: str, task: str, split: str, error: Exception, example: Example | None = None) -> Exception:
    """Return the error for a damaged split, an OSError or a ValueError as the given one.

    Its text names the file, and the image if it is known.
    """
    # Imported late, because it loads Pillow, which is not needed to read a stored task.
    from trainer.data.images import reason_of

    place = f"{redact(root)}/{task}"
    image = f", image {example.key!r}" if example else ""
    delete = (
        f"Delete {place}, which is made again at its first use, or import" if task.startswith("demo/") else "Import"
    )
    reason = reason_of(error).splitlines()[0].rstrip(".")
    kind = OSError if isinstance(error, OSError) else ValueError
    return kind(f"{place}/{split}.parquet{image} cannot be read: {reason}. {delete} the task again.")
