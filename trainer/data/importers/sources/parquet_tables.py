"""A user's own images in Parquet files, as Hugging Face's `datasets` writes them or with columns of their own."""

from __future__ import annotations

import json
import posixpath
import re
import sys
import tempfile
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from trainer.data.importers.archive import ImportRefused, SourceFiles
from trainer.data.importers.formats.split_lists import check_present
from trainer.data.importers.source import Listing, Source, SourceRecord
from trainer.data.importers.sources.folders import PART_OF, check_classes, own_draw

IMAGE_COLUMNS = ("image", "img", "path", "file_name")
LABEL_COLUMNS = ("label", "labels", "class", "target")
PART = re.compile(r"(train|validation|valid|val|test)(?![a-z])")
SHARD = re.compile(r"(.*)-(\d+)-of-(\d+)\.parquet")
BATCH_ROWS = 32
BUFFER_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class _Table:
    """One Parquet file, by what its head and its labels say."""

    name: str
    part: str
    num_rows: int
    labels: list[int | str]
    class_names: tuple[str, ...]
    """Empty if the file does not name them."""
    image_column: str
    paths: list[str] | None
    """Where the images are, if not in the file itself."""


def own_tables(tree: SourceFiles, task: str) -> Listing:
    """Lists Parquet files whose names, or folders, begin with train, val and test; or train and test; or one table.

    Raises:
        ImportRefused: if the files are no whole tables of images and labels, contradict one another, or miss a shard.
    """
    tables = [_table(tree, name, part) for name, part in _parts(tree).items()]
    classes, labels = _classes(tables)
    starts = list(accumulate((table.num_rows for table in tables), initial=0))
    names = set(tree.names)
    records: list[SourceRecord] = []
    counted: dict[str, int] = {}
    for start, table in zip(starts, tables, strict=False):
        for row, value in enumerate(table.labels):
            if table.paths is None:
                # By its row in the part, so that other shards give the same keys.
                counted[table.part] = counted.get(table.part, -1) + 1
                key, place = f"{table.part}/{counted[table.part]:08d}", start + row
                records.append(SourceRecord(key, labels[value], table.part, place))
            else:
                file = _file(table.paths[row], table.name, names)
                records.append(SourceRecord(file, labels[value], table.part, file))
    draw = own_draw({table.part for table in tables})
    check_classes(records, classes)
    check_present(tree, [record for record in records if isinstance(record.place, str)], "its Parquet file")

    def read(asked: Sequence[SourceRecord]) -> Iterator[bytes]:
        for in_files, group in groupby(asked, key=lambda record: isinstance(record.place, str)):
            if in_files:
                yield from tree.read_all([str(record.place) for record in group])
                continue
            rows = (int(record.place) for record in group)
            for number, of_table in groupby(rows, key=lambda row: bisect_right(starts, row) - 1):
                table = tables[number]
                yield from _images(tree, table, [row - starts[number] for row in of_table])

    return Listing(records=records, class_names=classes, read=read, draw=draw)


def _parts(tree: SourceFiles) -> dict[str, str]:
    """The Parquet files and the part that each is of, the shards of a part in order."""
    found = tree.find("*.parquet")
    parts: dict[str, str] = {}
    folders: set[str] = set()
    for name in found:
        folder, stem = posixpath.split(name)
        parent = posixpath.basename(folder).lower()
        match = PART.match(stem.lower())
        parts[name] = PART_OF[match[1]] if match else PART_OF.get(parent, "all")
        folders.add(posixpath.dirname(folder) if not match and parent in PART_OF else folder)
    if not found or len(folders) > 1:
        raise ImportRefused(f"{tree.path} must hold the Parquet files of one data set; they are in {sorted(folders)}.")
    shards: dict[tuple[str, int], set[int]] = {}
    for match in filter(None, map(SHARD.fullmatch, found)):
        shards.setdefault((match[1], int(match[3])), set()).add(int(match[2]))
    for (first, count), there in shards.items():
        if lacking := sorted(set(range(count)) - there):
            raise ImportRefused(f"{first} must be {count} files; number {lacking[0]} is missing. Download it too.")
    unnamed = {match[1] if (match := SHARD.fullmatch(name)) else name for name in found if parts[name] == "all"}
    if len(unnamed) > 1:
        raise ImportRefused(f"the names of {', '.join(sorted(unnamed)[:3])} must begin with train, val or test.")
    return parts


@contextmanager
def _opened(tree: SourceFiles, name: str) -> Iterator[Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = tree.local(name, Path(folder))
        try:
            # In small pieces: a row group may be as large as the file, and is otherwise read whole.
            with pq.ParquetFile(path, pre_buffer=False, buffer_size=BUFFER_BYTES) as file:
                yield file
        except (pa.ArrowException, OSError) as error:
            raise ImportRefused(f"{name} is no whole Parquet file: {error}. Get it again.") from error


def _table(tree: SourceFiles, name: str, part: str) -> _Table:
    with _opened(tree, name) as file:
        schema, rows = file.schema_arrow, file.metadata.num_rows
        if rows == 0:
            raise ImportRefused(f"{name} must have rows, and is empty.")
        features = _features(schema)
        image = _column(name, schema, features, "Image", IMAGE_COLUMNS)
        label = _column(name, schema, features, "ClassLabel", LABEL_COLUMNS)
        class_names = tuple(features.get(label, {}).get("names") or ())
        labels = _labels(file.read(columns=[label]).column(0), name, len(class_names))
        return _Table(name, part, rows, labels, class_names, image, _paths(file, name, image))


def _features(schema: Any) -> dict[str, dict[str, Any]]:
    """What `datasets` says of the columns that are images or classes; nothing if another library wrote the file."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (TypeError, KeyError, ValueError, AttributeError):
        return {}


def _column(name: str, schema: Any, features: dict[str, dict[str, Any]], kind: str, usual: Sequence[str]) -> str:
    told = [column for column, feature in features.items() if feature.get("_type") == kind and column in schema.names]
    if len(told) == 1:
        return told[0]
    for column in usual:
        if column in schema.names:
            return column
    raise ImportRefused(
        f"{name} must have a column of each image's {'class' if kind == 'ClassLabel' else 'bytes or path'}, called "
        f"{', '.join(usual)}; its columns are {', '.join(schema.names)}. Rename one."
    )


def _labels(column: Any, name: str, num_classes: int) -> list[int | str]:
    """The labels of a file: whole numbers from 0, or text.

    Args:
        num_classes: how many classes the file names; 0 if it does not.
    """
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    labels: list[Any] = column.to_pylist()
    is_text = any(isinstance(label, str) for label in labels)
    last = num_classes - 1 if num_classes else sys.maxsize
    for row, label in enumerate(labels):
        if not isinstance(label, str) if is_text else not (isinstance(label, int | float) and label % 1 == 0):
            raise ImportRefused(f"{name}, row {row}: a label must be a whole number, or text in all rows, got {label}.")
        if not is_text and not 0 <= label <= last:
            known = f"{num_classes} classes are named" if num_classes else "it counts from 0"
            raise ImportRefused(
                f"{name}, row {row}: {label} is no label; {known}. If the part has no labels (-1), take its files away."
            )
    return labels if is_text else [int(label) for label in labels]


def _classes(tables: Sequence[_Table]) -> tuple[list[str], dict[int | str, int]]:
    """The classes' names, and the label of each value that the files give: its rank, where they name no classes."""
    named = {table.class_names for table in tables}
    if len(named) > 1:
        raise ImportRefused("all files must name the same classes in the same order, or none.")
    (class_names,) = named
    values = {label for table in tables for label in table.labels}
    if len({type(value) for value in values}) > 1:
        raise ImportRefused("the labels of all files must be numbers, or text in all of them.")
    if class_names and all(isinstance(value, int) for value in values):
        return list(class_names), {i: i for i in range(len(class_names))}
    ordered = sorted(values, key=lambda value: (value if isinstance(value, int) else 0, str(value)))
    return [str(value) for value in ordered], {value: i for i, value in enumerate(ordered)}


def _paths(file: Any, name: str, column: str) -> list[str] | None:
    """The paths of the images, if the column holds no bytes."""
    kind = file.schema_arrow.field(column).type
    fields = {kind.field(i).name for i in range(kind.num_fields)} if pa.types.is_struct(kind) else set()
    leaf = f"{column}.bytes" if "bytes" in fields else column
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or fields == {"path"}:
        nulls = file.metadata.num_rows
    elif pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or "bytes" in fields:
        nulls = _num_nulls(file, leaf)
    else:
        raise ImportRefused(f"{name}: {column} must hold bytes, paths, or a struct of both, not {kind}.")
    if nulls == 0:
        return None
    if nulls < file.metadata.num_rows or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        raise ImportRefused(f"{name}: {column} must hold an image in each row; {nulls} rows have none.")
    values = file.read(columns=[f"{column}.path" if fields else column]).column(0).to_pylist()
    paths = [value["path"] if isinstance(value, dict) else value for value in values]
    if None in paths:
        raise ImportRefused(f"{name}, row {paths.index(None)}: {column} must hold an image or its path.")
    return paths


def _num_nulls(file: Any, leaf: str) -> int:
    """Rows without a value, by the statistics; 0 where the file has none, and reading will tell."""
    metadata, nulls = file.metadata, 0
    for group in range(metadata.num_row_groups):
        chunks = [metadata.row_group(group).column(i) for i in range(metadata.num_columns)]
        statistics = next((chunk.statistics for chunk in chunks if chunk.path_in_schema == leaf), None)
        nulls += statistics.null_count if statistics is not None and statistics.has_null_count else 0
    return nulls


def _file(path: str, table: str, names: set[str]) -> str:
    """A file of the tree, by its path beside the table or, if it is not there, from the top."""
    beside = posixpath.normpath(posixpath.join(posixpath.dirname(table), path))
    top = posixpath.normpath(path)
    return top if top in names and beside not in names else beside


def _images(tree: SourceFiles, table: _Table, rows: Sequence[int]) -> Iterator[bytes]:
    """Rows of one file, a few in memory at a time; in one pass if they ascend."""
    with _opened(tree, table.name) as file:
        sizes = (file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups))
        groups = list(accumulate(sizes, initial=0))
        batch: Any = None
        start = end = 0
        for row in rows:
            group = bisect_right(groups, row) - 1
            if batch is None or row < start or groups[group] > end:
                batches = file.iter_batches(BATCH_ROWS, list(range(group, len(groups) - 1)), [table.image_column])
                start = end = groups[group]
            while row >= end:
                batch = next(batches)
                start, end = end, end + batch.num_rows
            value = batch.column(0)[row - start].as_py()
            image = value["bytes"] if isinstance(value, dict) else value
            if image is None:
                raise ImportRefused(f"{table.name}, row {row}: {table.image_column} must hold an image, and is empty.")
            yield image


SOURCES: tuple[Source, ...] = (
    Source(
        form="parquet",
        tasks=(),
        recognise=lambda tree: bool(tree.find("*.parquet")),
        listing=own_tables,
        where="your own Parquet files or those of a Hugging Face data set: train*.parquet, val*.parquet, test*.parquet",
    ),
)
"""The form that is tables."""
