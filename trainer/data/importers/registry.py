"""An import from start to end: which source a path is, and its images into the task store."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from trainer.catalog import OWN, TASKS, is_own
from trainer.data.images import check_image
from trainer.data.importers.archive import ImportRefused, SourceFiles
from trainer.data.importers.source import Source, SourceRecord, split_records
from trainer.data.importers.sources.folders import own_row
from trainer.data.task_store import Card, Example, write_task

FAMILIES = (
    "folders",
    "tfds",
    "vtab_natural",
    "vtab_specialized",
    "vtab_structured",
    "vtab_arrays",
    "fgvc",
    "parquet_tables",
)
"""The files of `sources/` that have sources; of two that recognise a path, the earlier is asked first."""

Progress = Callable[[int, int], None]
"""Told how many images are written, and how many there are."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A source that recognises a path, and a task that it can become."""

    source: Source
    tree: SourceFiles
    task: str


def sources() -> list[Source]:
    """Every form that can be imported."""
    families = [importlib.import_module(f"trainer.data.importers.sources.{family}") for family in FAMILIES]
    return [source for family in families for source in family.SOURCES]


def find_candidates(path: Path, task: str | None = None, form: str | None = None) -> list[Candidate]:
    """What a path holds: itself one source, or a folder of them.

    Args:
        task: the task that is wanted; None for all that the path can become.
        form: the form that it is, where a path could be several.

    Raises:
        ImportRefused: if nothing recognises it, or several forms do, with the choices.
    """
    if task is not None and task not in TASKS and not is_own(task):
        raise ImportRefused(
            f"{task!r} is not a task; see `sptune data list`, or name one of your own {OWN}NAME, "
            "in letters, digits and ._- alone."
        )
    known = [source for source in sources() if form in (None, source.form)]
    if not known:
        raise ImportRefused(f"{form!r} is no form; there are {', '.join(sorted({s.form for s in sources()}))}.")
    tree = SourceFiles(path)
    found = _recognised(known, tree, task)
    if not found and path.is_dir():
        for folder in sorted(folder for folder in path.iterdir() if folder.is_dir()):
            found += _recognised(known, SourceFiles(folder), task)
    if not found:
        raise ImportRefused(_unknown(path, tree, known, task))
    for name in {one.task for one in found}:
        forms = sorted({one.source.form for one in found if one.task == name})
        if len(forms) > 1:
            raise ImportRefused(f"{path} could be {name} as {' or '.join(forms)}; say which with --form.")
        if sum(one.task == name for one in found) > 1:
            places = ", ".join(str(one.tree.path) for one in found if one.task == name)
            raise ImportRefused(f"{name} is there several times: {places}; give one of them.")
    return found


def _recognised(known: list[Source], tree: SourceFiles, task: str | None) -> list[Candidate]:
    """Official forms first: a user's own task is taken only where its name is given."""
    found = []
    for source in known:
        names = source.tasks or ((task,) if task is not None and is_own(task) else ())
        wanted = [name for name in names if task in (None, name)]
        if wanted and source.recognise(tree):
            found += [Candidate(source=source, tree=tree, task=name) for name in wanted]
    return found


def _unknown(path: Path, tree: SourceFiles, known: list[Source], task: str | None) -> str:
    recognised = [source for source in known if source.recognise(tree)]
    if tasks := [name for source in recognised for name in source.tasks]:
        return f"{path} is {' or '.join(tasks)}, not {task}."
    if recognised:
        return f"{path} looks like images of your own: give them a name, such as --task {OWN}{path.stem.lower()}."
    shown = ", ".join(tree.names[:3]) or "nothing"
    wanted = f" of {task}" if task else ""
    where = "\n".join(f"  {source.form}: {source.where}" for source in known if task in source.tasks and source.where)
    cure = f"It can come from\n{where}" if where else "`sptune data list` says what is needed."
    return f"{path} is no source{wanted} that is known; it begins with {shown}. {cure}"


def import_task(root: str, found: Candidate, progress: Progress) -> Card:
    """Write a source's images to the task store.

    Raises:
        ImportRefused: if an image cannot be decoded, a label is out of range or a split would be empty; the store is
            as before.
        OSError: if the store cannot be written; the store is as before.
    """
    listing = found.source.listing(found.tree, found.task)
    row = TASKS.get(found.task) or own_row(listing, found.task)
    if len(listing.class_names) != row.num_classes:
        raise ImportRefused(f"{found.task} has {row.num_classes} classes, the source {len(listing.class_names)}.")
    if wrong := [one for one in listing.records if not 0 <= one.label < row.num_classes]:
        one = wrong[0]
        raise ImportRefused(
            f"{len(wrong)} labels are outside 0..{row.num_classes - 1}, the first {one.label} of {one.key}."
        )
    splits, protocol = split_records(listing, row)
    total, written = sum(map(len, splits.values())), 0
    repairs = list(listing.repairs)

    def examples(split: str, records: list[SourceRecord]) -> Iterator[Example]:
        nonlocal written
        repaired = Counter[str]()
        for record, image in zip(records, listing.read(records), strict=True):
            try:
                repair = check_image(image)
            except ValueError as error:
                raise ImportRefused(f"{record.key} {error}. Get the source again; nothing was imported.") from error
            repaired.update([repair] if repair else [])
            yield Example(key=record.key, label=record.label, image=image)
            written += 1
            progress(written, total)
        repairs.extend(f"{count} images of {split}: {repair}" for repair, count in repaired.items())

    return write_task(
        root,
        found.task,
        {split: examples(split, records) for split, records in splits.items()},
        source=f"{found.source.form}: {found.tree.path.name}",
        class_names=listing.class_names,
        protocol=protocol,
        importer=f"sptune {metadata.version('sptune')} {found.source.form}",
        licence=found.source.licence,
        repairs=repairs,
    )
