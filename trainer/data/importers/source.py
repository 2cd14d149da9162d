"""Sources: what they list before any image is read, and how their images are divided among the splits."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trainer.catalog import Task
from trainer.data.importers.archive import ImportRefused, SourceFiles

SPLIT_SEED = 0
"""Seed of the splits of every source that has no published ones."""


@dataclass(frozen=True, slots=True)
class SourceRecord:
    """One labelled image of a source."""

    key: str
    """Name of the image in the task store, unique in the data set."""
    label: int
    part: str
    """Part of the data set that its makers put the image in: train, val, test, or all if they made no parts."""
    place: str | int
    """Where the source reads the image from: a file name or a row."""


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The images of a source, listed but not read."""

    records: list[SourceRecord]
    class_names: list[str]
    read: Callable[[Sequence[SourceRecord]], Iterator[bytes]]
    """Yields the encoded images of some records, in the order of the records, one in memory at a time."""
    draw: Mapping[str, str] | None = None
    """The part that each split is drawn from. None if the parts are the published splits."""
    repairs: tuple[str, ...] = ()
    """What was left out or repaired, each with count and names."""
    where: Callable[[SourceRecord], str] = lambda record: record.place if isinstance(record.place, str) else record.key
    """Returns how an image is named in messages: by its file, or else by its key."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """One form in which the images of some tasks are published."""

    form: str
    """`official`, `vtab-1k`, `tfds`, `vpt`, `folder` or `parquet`."""
    tasks: tuple[str, ...]
    """Tasks that it can become. Empty for forms of a user's own task."""
    recognise: Callable[[SourceFiles], bool]
    """Returns whether files have this form, judged by their names."""
    listing: Callable[[SourceFiles, str], Listing]
    """Lists the images of a source as those of a task. Raises ImportRefused."""
    where: str = ""
    """Where to get the source."""
    licence: str | None = None


def split_records(listing: Listing, row: Task, seed: int = SPLIT_SEED) -> tuple[dict[str, list[SourceRecord]], str]:
    """Return the records of each split, sorted by key, and the protocol: `published`, or how they were drawn.

    Splits are drawn from a part in the order train, val, test. If the part is too small for all three, train and val
    get their full size and test gets the rest. If it is too small even for train and val, all splits shrink in
    proportion.

    Raises:
        ImportRefused: if a split would be empty, or two images have the same key.
    """
    keys = [record.key for record in listing.records]
    duplicates = sorted(key for key, count in Counter(keys).items() if count > 1)
    if duplicates:
        more = ", ..." if len(duplicates) > 3 else ""
        raise ImportRefused(
            f"the source must name each image once; {len(duplicates)} come more than once: "
            f"{', '.join(duplicates[:3])}{more}."
        )

    parts: dict[str, list[SourceRecord]] = {}
    for record in listing.records:
        parts.setdefault(record.part, []).append(record)

    sizes = {"train": row.num_train, "val": row.num_val, "test": row.num_test}
    if listing.draw is None:
        # Published splits are taken whole, even where the catalog has other sizes.
        splits = {split: parts.get(split, []) for split in sizes}
        protocol = "published"
    else:
        splits = {}
        for part in sorted(set(listing.draw.values())):
            drawn_sizes = {split: size for split, size in sizes.items() if listing.draw[split] == part}
            splits |= _draw(parts.get(part, []), drawn_sizes, seed)
        protocol = f"resampled with seed {seed}"

    empty = [split for split in sizes if not splits[split]]
    if empty:
        raise ImportRefused(f"the source has no image for {', '.join(empty)}; it has {len(keys)} in all.")
    return {split: sorted(splits[split], key=lambda record: record.key) for split in sizes}, protocol


def _draw(records: list[SourceRecord], sizes: Mapping[str, int], seed: int) -> dict[str, list[SourceRecord]]:
    """Draw splits of the given sizes from the records of one part, or smaller ones if it has too few."""
    # Sorted first, so that the splits do not depend on the order in which a source lists its images.
    ordered = sorted(records, key=lambda record: record.key)
    shuffled = [ordered[i] for i in np.random.default_rng(seed).permutation(len(ordered))]

    # With too few images, test shrinks first, so that the tuning set keeps the catalog's size.
    counts = dict(sizes)
    total = sum(sizes.values())
    if len(records) < total:
        num_tuning = total - sizes.get("test", 0)
        if "test" in sizes and len(records) > num_tuning:
            counts["test"] = len(records) - num_tuning
        else:
            counts = {split: size * len(records) // total for split, size in sizes.items()}

    bounds = np.cumsum([0, *counts.values()])
    return {split: shuffled[start:end] for split, start, end in zip(counts, bounds, bounds[1:], strict=False)}


def source_files(tree: SourceFiles) -> Callable[[Sequence[SourceRecord]], Iterator[bytes]]:
    """Return the reader of a listing whose records are files of the source."""
    return lambda records: tree.read_all([str(record.place) for record in records])


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """Encode an array ``[H, W]`` or ``[H, W, 3]`` as PNG.

    It is not compressed, so that the bytes are the same with every version of a library.
    """
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=0)
    return buffer.getvalue()
