"""What a source holds before any image is read, and how its images are divided among the splits."""

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


@dataclass(frozen=True, slots=True)
class SourceRecord:
    """One labelled image of a source."""

    key: str
    """Its name in the store, unique in the data set."""
    label: int
    part: str
    """Which part of the data set its makers put it in: train, val, test, or all where they made none."""
    place: str | int
    """What the source reads it by: a file name or a row."""


@dataclass(frozen=True, kw_only=True)
class Listing:
    """All images of a source, by name."""

    records: list[SourceRecord]
    class_names: list[str]
    read: Callable[[Sequence[SourceRecord]], Iterator[bytes]]
    """The encoded bytes of records, in their order, one in memory at a time."""
    draw: Mapping[str, str] | None = None
    """From which part each split is drawn, where the source does not say; None: the parts are the published splits."""
    repairs: tuple[str, ...] = ()
    """What was left out or mended, each with its count and names."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """One form in which the images of some tasks are found."""

    form: str
    """official, vtab-1k, tfds, vpt, folder or parquet."""
    tasks: tuple[str, ...]
    """Tasks that it can become; empty for a user's own."""
    recognise: Callable[[SourceFiles], bool]
    listing: Callable[[SourceFiles, str], Listing]
    """Lists a source as a task. Raises ImportRefused."""
    where: str = ""
    """Where to get it."""
    licence: str | None = None


def split_records(listing: Listing, row: Task, seed: int = SPLIT_SEED) -> tuple[dict[str, list[SourceRecord]], str]:
    """Each split's images, sorted by key, and the protocol: `published`, or how they were drawn.

    Images are drawn from a part in the order train, val, test. If it has too few for all three, train and val get
    theirs and test the rest; if it has too few even for train and val, each split gets its share.

    Raises:
        ImportRefused: if a split would be empty, or a key is there twice.
    """
    keys = [record.key for record in listing.records]
    if twice := sorted(key for key, count in Counter(keys).items() if count > 1):
        shown = f"{', '.join(twice[:3])}{', ...' if len(twice) > 3 else ''}"
        raise ImportRefused(f"the source must name each image once; {len(twice)} come more than once: {shown}.")
    wanted = {"train": row.num_train, "val": row.num_val, "test": row.num_test}
    parts = {part: [r for r in listing.records if r.part == part] for part in {r.part for r in listing.records}}
    if listing.draw is None:
        splits = {split: parts.get(split, []) for split in wanted}
        protocol = "published"
    else:
        splits = {}
        for part in sorted(set(listing.draw.values())):
            sharing = [split for split in wanted if listing.draw[split] == part]
            splits |= _drawn(parts.get(part, []), {split: wanted[split] for split in sharing}, seed)
        protocol = f"resampled with seed {seed}"
    if empty := [split for split in wanted if not splits[split]]:
        raise ImportRefused(f"the source has no image for {', '.join(empty)}; it has {len(keys)} in all.")
    return {split: sorted(splits[split], key=lambda record: record.key) for split in wanted}, protocol


def _drawn(records: list[SourceRecord], wanted: Mapping[str, int], seed: int) -> dict[str, list[SourceRecord]]:
    ordered = sorted(records, key=lambda record: record.key)
    shuffled = [ordered[i] for i in np.random.default_rng(seed).permutation(len(ordered))]
    counts, total = dict(wanted), sum(wanted.values())
    if len(records) < total:
        tuning = total - wanted.get("test", 0)
        if "test" in wanted and len(records) > tuning:
            counts["test"] = len(records) - tuning
        else:
            counts = {split: count * len(records) // total for split, count in wanted.items()}
    bounds = np.cumsum([0, *counts.values()])
    return {split: shuffled[start:end] for split, start, end in zip(counts, bounds, bounds[1:], strict=False)}


def source_files(tree: SourceFiles) -> Callable[[Sequence[SourceRecord]], Iterator[bytes]]:
    """Reads records whose place is a file of the tree."""
    return lambda records: tree.read_all([str(record.place) for record in records])


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """An array ``[H, W]`` or ``[H, W, 3]`` as PNG, the same bytes with every library version (uncompressed)."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=0)
    return buffer.getvalue()
