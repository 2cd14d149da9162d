"""The user's own images in Parquet files, as Hugging Face's `datasets` writes them or with other columns."""

from __future__ import annotations

import json
import posixpath
import sys
import tempfile
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from trainer.data.importers.archive import ImportRefused, SourceFiles
from trainer.data.importers.formats.own_layout import check_class_names
from trainer.data.importers.formats.shards import PART_OF, check_counted, check_numbered, part_of_file, without_number
from trainer.data.importers.formats.split_lists import check_present
from trainer.data.importers.names import first_names
from trainer.data.importers.source import Listing, Source, SourceRecord
from trainer.data.importers.sources.folders import check_classes, own_draw
from trainer.plain_text import counted

IMAGE_COLUMNS = ("image", "img", "path", "file_name")
LABEL_COLUMNS = ("label", "labels", "class", "target")
BATCH_ROWS = 32
"""Rows in memory at a time."""
BUFFER_BYTES = 1 << 16
MAX_ROWS = 20
"""Rows with a wrong label that are named in an error, after the first."""


@dataclass(frozen=True, slots=True)
class _Table:
    """What the header and the labels of one Parquet file say."""

    name: str
    part: str
    num_rows: int
    labels: list[int | str]
    class_names: tuple[str, ...]
    """Empty if the file does not name its classes."""
    image_column: str
    paths: list[str] | None
    """Paths of the images; None if the file itself contains them."""


def own_tables(tree: SourceFiles, task: str) -> Listing:
    """List Parquet files of train, val and test; or train and test; or one table.

    The name of a file begins with the part or has it as a word, or its folder has that name.

    Raises:
        ImportRefused: if a file is damaged or has no images and labels, files contradict one another, or a shard is
            missing.
    """
    tables = _read_tables(tree, _find_parts(tree))
    class_names, label_of = _rank_classes(tables)

    # Rows are numbered through all tables: row r of table t is row first_rows[t] + r.
    first_rows = list(accumulate((table.num_rows for table in tables), initial=0))
    names = set(tree.names)

    records: list[SourceRecord] = []
    last_of_part: dict[str, int] = {}
    for first_row, table in zip(first_rows, tables, strict=False):
        for row, value in enumerate(table.labels):
            if table.paths is None:
                # The key is the row within the part, so that it does not depend on the division into shards.
                last_of_part[table.part] = last_of_part.get(table.part, -1) + 1
                key = f"{table.part}/{last_of_part[table.part]:08d}"
                records.append(SourceRecord(key, label_of[value], table.part, first_row + row))
            else:
                name = _resolve(table.paths[row], table.name, names)
                records.append(SourceRecord(name, label_of[value], table.part, name))

    draw = own_draw({table.part for table in tables})
    check_classes(records, class_names)
    check_present(tree, [record for record in records if isinstance(record.place, str)], "its Parquet file")

    def read(requested: Sequence[SourceRecord]) -> Iterator[bytes]:
        for is_in_files, group in groupby(requested, key=lambda record: isinstance(record.place, str)):
            if is_in_files:
                yield from tree.read_all([str(record.place) for record in group])
                continue

            rows = (int(record.place) for record in group)
            for index, rows_of_table in groupby(rows, key=lambda row: bisect_right(first_rows, row) - 1):
                yield from _read_images(tree, tables[index], [row - first_rows[index] for row in rows_of_table])

    def where(record: SourceRecord) -> str:
        if isinstance(record.place, str):
            return record.place
        index = bisect_right(first_rows, record.place) - 1
        return f"{tables[index].name}, row {record.place - first_rows[index]}"

    return Listing(records=records, class_names=class_names, read=read, draw=draw, where=where)


def _find_parts(tree: SourceFiles) -> dict[str, str]:
    """Return the Parquet files with the part that each belongs to, the shards of a part in order."""
    names = tree.find("*.parquet")

    parts: dict[str, str] = {}
    folders: set[str] = set()
    for name in names:
        folder, stem = posixpath.split(name)
        parent = posixpath.basename(folder).lower()
        part = part_of_file(stem)
        parts[name] = part or PART_OF.get(parent, "all")
        # The folder of a part is not the folder of the data set.
        folders.add(posixpath.dirname(folder) if part is None and parent in PART_OF else folder)

    if not names or len(folders) > 1:
        raise ImportRefused(
            f"{tree.path} must contain the Parquet files of one data set; they are in {sorted(folders)}. "
            "Give the path of one of these folders."
        )
    check_counted(names)
    check_numbered(names)

    # Only one table may have no part in its name, in one file or in shards.
    unnamed = {without_number(name) for name in names if parts[name] == "all"}
    if len(unnamed) > 1:
        raise ImportRefused(
            f"the names of {', '.join(sorted(unnamed)[:3])} must begin with train, val or test. Rename the files."
        )

    return parts


@contextmanager
def _open(tree: SourceFiles, name: str) -> Iterator[Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = tree.local(name, Path(folder))
        try:
            # Read in small pieces: a row group can be as large as the file, and would otherwise be read at once.
            with pq.ParquetFile(path, pre_buffer=False, buffer_size=BUFFER_BYTES) as file:
                yield file
        except (pa.ArrowException, OSError) as error:
            raise ImportRefused(f"{name} is not a complete Parquet file: {error}. Get it again.") from error


def _read_tables(tree: SourceFiles, parts: Mapping[str, str]) -> list[_Table]:
    """Read all files, given the part of each.

    Raises:
        ImportRefused: with what is wrong with any of them.
    """
    tables = []
    problems = []
    for name, part in parts.items():
        try:
            tables.append(_read_table(tree, name, part))
        except ImportRefused as error:
            problems.append(str(error))

    if problems:
        raise ImportRefused("\n".join(problems))
    return tables


def _read_table(tree: SourceFiles, name: str, part: str) -> _Table:
    with _open(tree, name) as file:
        schema = file.schema_arrow
        num_rows = file.metadata.num_rows
        if num_rows == 0:
            raise ImportRefused(f"{name} must have rows, but it is empty. Get it again, or remove it.")

        features = _features(schema)
        image_column = _find_column(name, schema, features, "Image", IMAGE_COLUMNS)
        label_column = _find_column(name, schema, features, "ClassLabel", LABEL_COLUMNS)

        class_names = tuple(features.get(label_column, {}).get("names") or ())
        labels = _parse_labels(file.read(columns=[label_column]).column(0), name, len(class_names))
        paths = _read_paths(file, name, image_column)
        return _Table(name, part, num_rows, labels, class_names, image_column, paths)


def _features(schema: Any) -> dict[str, dict[str, Any]]:
    """Return what `datasets` stores about its columns. Nothing if another library wrote the file."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (TypeError, KeyError, ValueError, AttributeError):
        return {}


def _find_column(name: str, schema: Any, features: dict[str, dict[str, Any]], kind: str, usual: Sequence[str]) -> str:
    """Return the column that `datasets` stores as this kind, or else the first with one of the usual names."""
    declared = [column for column, feature in features.items() if feature.get("_type") == kind]
    declared = [column for column in declared if column in schema.names]
    if len(declared) == 1:
        return declared[0]

    for column in usual:
        if column in schema.names:
            return column

    content = "class" if kind == "ClassLabel" else "bytes or path"
    raise ImportRefused(
        f"{name} must have a column with each image's {content}, called {', '.join(usual)}; "
        f"its columns are {', '.join(schema.names)}. Rename one."
    )


def _parse_labels(column: Any, name: str, num_classes: int) -> list[int | str]:
    """Return the labels of a file: whole numbers from 0, or text.

    Args:
        num_classes: number of classes that the file names; 0 if it names none.

    Raises:
        ImportRefused: if a row has another value.
    """
    # pandas writes categories as dictionaries.
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)

    labels: list[Any] = column.to_pylist()
    is_text = any(isinstance(label, str) for label in labels)
    last = num_classes - 1 if num_classes else sys.maxsize

    wrong: dict[int, str] = {}
    for row, label in enumerate(labels):
        # pandas writes whole numbers as floats where a column once had a gap. NaN % 1 is NaN, so NaN is refused.
        is_number = isinstance(label, int | float) and label % 1 == 0
        is_valid = isinstance(label, str) and bool(label.strip()) if is_text else is_number
        if not is_valid:
            wrong[row] = f"a label must be a whole number, or text in all rows, got {label}. Correct or remove the row."
        elif not is_text and not 0 <= label <= last:
            rule = f"{counted(num_classes, 'class is', 'classes are')} named" if num_classes else "labels count from 0"
            wrong[row] = f"{label} is not a label; {rule}. If the part has no labels (-1), remove its files."

    if wrong:
        first, *others = wrong
        more = f" Other rows with a wrong label: {first_names([*map(str, others)], MAX_ROWS)}." if others else ""
        raise ImportRefused(f"{name}, row {first}: {wrong[first]}{more}")

    return labels if is_text else [int(label) for label in labels]


def _rank_classes(tables: Sequence[_Table]) -> tuple[list[str], dict[int | str, int]]:
    """Return the names of the classes, and the label of each value in the files.

    If the files do not name the classes, the label of a value is its rank.
    """
    named = {table.class_names for table in tables}
    if len(named) > 1:
        raise ImportRefused(
            "all files must name the same classes in the same order, or none. Write them with the same features."
        )
    (class_names,) = named

    values = {label for table in tables for label in table.labels}
    if len({type(value) for value in values}) > 1:
        raise ImportRefused("the labels must be numbers in all files, or text in all files. Convert one of them.")

    if class_names and all(isinstance(value, int) for value in values):
        return list(class_names), {label: label for label in range(len(class_names))}

    if any(isinstance(value, str) for value in values):
        check_class_names([str(value) for value in values], "labels")

    # Numbers in the order of numbers: 7 before 10.
    ordered = sorted(values, key=lambda value: (value if isinstance(value, int) else 0, str(value)))
    return [str(value) for value in ordered], {value: label for label, value in enumerate(ordered)}


def _read_paths(file: Any, name: str, column: str) -> list[str] | None:
    """Return the paths of the images, or None if the column contains their bytes."""
    # How many rows have no bytes: all rows if the column has only paths.
    kind = file.schema_arrow.field(column).type
    fields = {kind.field(i).name for i in range(kind.num_fields)} if pa.types.is_struct(kind) else set()
    is_binary = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or fields == {"path"}:
        num_nulls = file.metadata.num_rows
    elif is_binary or "bytes" in fields:
        num_nulls = _count_nulls(file, f"{column}.bytes" if "bytes" in fields else column)
    else:
        raise ImportRefused(f"{name}: {column} must hold bytes, paths, or a struct of both, not {kind}. Convert it.")

    if num_nulls == 0:
        return None
    if num_nulls < file.metadata.num_rows or is_binary:
        raise ImportRefused(
            f"{name}: {column} must hold an image in each row; {counted(num_nulls, 'row has', 'rows have')} none. "
            "Fill or remove these rows."
        )

    values = file.read(columns=[f"{column}.path" if fields else column]).column(0).to_pylist()
    paths = [value["path"] if isinstance(value, dict) else value for value in values]
    if None in paths:
        raise ImportRefused(
            f"{name}, row {paths.index(None)}: {column} must hold an image or its path. Fill or remove this row."
        )
    return paths


def _count_nulls(file: Any, column: str) -> int:
    """Return the number of rows without a value by the file's statistics.

    It is 0 for a file without statistics. Reading such a row raises an error later.
    """
    metadata = file.metadata

    num_nulls = 0
    for group in range(metadata.num_row_groups):
        chunks = [metadata.row_group(group).column(i) for i in range(metadata.num_columns)]
        statistics = next((chunk.statistics for chunk in chunks if chunk.path_in_schema == column), None)
        if statistics is not None and statistics.has_null_count:
            num_nulls += statistics.null_count

    return num_nulls


def _resolve(path: str, table: str, names: set[str]) -> str:
    """Return the name of a file in the source, given its path relative to the table or to the top of the source."""
    beside = posixpath.normpath(posixpath.join(posixpath.dirname(table), path))
    top = posixpath.normpath(path)
    return top if top in names and beside not in names else beside


def _read_images(tree: SourceFiles, table: _Table, rows: Sequence[int]) -> Iterator[bytes]:
    """Yield the images of some rows of one file, with few rows in memory. Ascending rows are read in one pass."""
    with _open(tree, table.name) as file:
        sizes = (file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups))
        first_rows = list(accumulate(sizes, initial=0))

        # The batch in memory has the rows from start to end.
        batch: Any = None
        start = end = 0
        for row in rows:
            # Start again at the row's group if the row is behind, or if its group is still ahead.
            group = bisect_right(first_rows, row) - 1
            if batch is None or row < start or first_rows[group] > end:
                batches = file.iter_batches(BATCH_ROWS, list(range(group, len(first_rows) - 1)), [table.image_column])
                start = end = first_rows[group]

            while row >= end:
                batch = next(batches)
                start = end
                end = end + batch.num_rows

            value = batch.column(0)[row - start].as_py()
            image = value["bytes"] if isinstance(value, dict) else value
            if image is None:
                raise ImportRefused(
                    f"{table.name}, row {row}: {table.image_column} must hold an image, but it is empty. "
                    "Fill or remove this row."
                )
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
"""The form that is Parquet tables."""
