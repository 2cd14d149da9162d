"""Imports: which source lies at a path, and the writing of its images to the task store."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from trainer.catalog import OWN, TASKS, is_own
from trainer.data.importers.archive import ImportRefused, SourceFiles
from trainer.data.importers.formats.own_layout import describe
from trainer.data.importers.image_tally import ImageTally
from trainer.data.importers.names import is_system_name, printable
from trainer.data.importers.source import Source, SourceRecord, split_records
from trainer.data.importers.sources.folders import VTAB_1K_LISTS, VTAB_1K_TASKS, own_row
from trainer.data.task_store import SPLITS, Card, Example, write_task
from trainer.plain_text import counted

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
"""Modules of `sources/` that have a table SOURCES. Candidates and messages list their sources in this order."""

Progress = Callable[[int, int], None]
"""Called after each image with the number of images written and their total."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A source that recognises a path, and a task that it can become."""

    source: Source
    tree: SourceFiles
    task: str


def sources() -> list[Source]:
    """Return every form that can be imported."""
    families = [importlib.import_module(f"trainer.data.importers.sources.{family}") for family in FAMILIES]
    return [source for family in families for source in family.SOURCES]


def find_candidates(path: Path, task: str | None = None, form: str | None = None) -> list[Candidate]:
    """Return the tasks that a path can become, one candidate per task. The path is a source, or a folder of sources.

    Args:
        task: the task to import; None for all that the path can become.
        form: the form of the source, needed if the path matches several.

    Raises:
        ImportRefused: if no source recognises the path, or several recognise it as the same task. The message names the
            choices.
    """
    if task is not None and task not in TASKS and not is_own(task):
        raise ImportRefused(
            f"{task!r} is not a task; see `sptune data list`, or name one of your own {OWN}NAME, "
            "in letters, digits and ._- alone."
        )

    allowed = [source for source in sources() if form in (None, source.form)]
    if not allowed:
        forms = sorted({source.form for source in sources()})
        raise ImportRefused(f"{form!r} is no form; there are {', '.join(forms)}.")

    # The path itself, or else each folder in it.
    tree = SourceFiles(path)
    candidates = _match(allowed, tree, task)
    if not candidates and path.is_dir():
        for folder in sorted(
            folder for folder in path.iterdir() if folder.is_dir() and not is_system_name(folder.name)
        ):
            candidates += _match(allowed, SourceFiles(folder), task)
    if not candidates:
        raise ImportRefused(_no_match_message(path, tree, allowed, task))

    _check_unambiguous(path, candidates)
    return candidates


def unknown_folders(path: Path, candidates: list[Candidate]) -> list[str]:
    """Return the names of the folders at a path that are no known source, where others are one."""
    if not path.is_dir():
        return []

    known = {candidate.tree.path.name for candidate in candidates}
    if any(candidate.tree.path == path for candidate in candidates):
        known = _vtab_1k_folders_at(candidates[0])
        # A source of one task has no folders of others.
        if not known:
            return []
    folders = [entry.name for entry in path.iterdir() if entry.is_dir() and not is_system_name(entry.name)]
    return sorted(name for name in folders if name not in known)


def _vtab_1k_folders_at(candidate: Candidate) -> set[str]:
    """Return the folders at the top of a source of the vtab-1k layout that hold tasks; none for other sources."""
    if candidate.source.form != "vtab-1k":
        return set()
    lists = [name.split("/") for name in candidate.tree.find(VTAB_1K_LISTS["train"])]
    return {folders[0] for *folders, _ in lists if folders and folders[-1] in VTAB_1K_TASKS}


def _match(allowed: list[Source], tree: SourceFiles, task: str | None) -> list[Candidate]:
    """Return a candidate for each source that recognises the files, and for each task that it can become."""
    candidates = []
    for source in allowed:
        # Any folder of images could be a user's own task, so that is a candidate only if its name is given.
        own = (task,) if task is not None and is_own(task) else ()
        names = [name for name in source.tasks or own if task in (None, name)]
        if names and source.recognise(tree):
            candidates += [Candidate(source=source, tree=tree, task=name) for name in names]
    return candidates


def _check_unambiguous(path: Path, candidates: list[Candidate]) -> None:
    """Raise ImportRefused if two candidates are for the same task."""
    for task in dict.fromkeys(candidate.task for candidate in candidates):
        of_task = [candidate for candidate in candidates if candidate.task == task]
        forms = sorted({candidate.source.form for candidate in of_task})
        if len(forms) > 1:
            raise ImportRefused(f"{path} could be {task} as {' or '.join(forms)}; choose one of them with --form.")
        if len(of_task) > 1:
            paths = ", ".join(str(candidate.tree.path) for candidate in of_task)
            raise ImportRefused(f"{path} holds {task} several times: {paths}. Import one of these paths.")


def _no_match_message(path: Path, tree: SourceFiles, allowed: list[Source], task: str | None) -> str:
    """Return the message for a path that is not a source of the task: what it is instead, or what it should be."""
    recognising = [source for source in allowed if source.recognise(tree)]
    tasks = [name for source in recognising for name in source.tasks]
    if tasks:
        return f"{path} is {' or '.join(tasks)}, not {task}."
    if recognising:
        return f"{path} looks like images of your own: give them a name, such as --task {OWN}{path.stem.lower()}."

    names = ", ".join(map(printable, tree.names[:3])) or "nothing"
    if len(tree.names) > 3:
        names += f"; it has {describe(tree.names)}"
    of_task = f" of {task}" if task else ""
    forms = [f"  {source.form}: {source.where}" for source in allowed if task in source.tasks and source.where]
    way_out = "It can come from\n" + "\n".join(forms) if forms else "`sptune data list` says what is needed."
    return f"{path} is no known source{of_task}; it begins with {names}. {way_out}"


def import_task(root: str, candidate: Candidate, progress: Progress) -> Card:
    """Write the images of a source to the task store and return the card.

    Raises:
        ImportRefused: if images cannot be decoded, with the names of the first 20, a label is out of range or a split
            would be empty. The store is unchanged.
        OSError: if the store cannot be written. The store is unchanged.
    """
    source = candidate.source
    task = candidate.task

    # The list of images, checked before the first is read.
    listing = source.listing(candidate.tree, task)
    row = TASKS.get(task) or own_row(listing, task)
    if len(listing.class_names) != row.num_classes:
        raise ImportRefused(f"{task} has {counted(row.num_classes, 'class')}, the source {len(listing.class_names)}.")

    outside = [record for record in listing.records if not 0 <= record.label < row.num_classes]
    if outside:
        raise ImportRefused(
            f"{counted(len(outside), 'label is', 'labels are')} outside 0..{row.num_classes - 1}, the first "
            f"{outside[0].label} of {outside[0].key}."
        )
    splits, protocol = split_records(listing, row)

    # The images are read one by one while `write_task` writes them.
    total = sum(map(len, splits.values()))
    num_read = 0
    tally = ImageTally(upright=is_own(task))

    def read_examples(split: str, records: list[SourceRecord]) -> Iterator[Example]:
        nonlocal num_read
        for record, image in zip(records, listing.read(records), strict=True):
            if tally.add(split, listing.where(record), image):
                yield Example(key=record.key, label=record.label, image=image)
            num_read += 1
            progress(num_read, total)

        # All that is wrong with the images is said at once, after the last of them.
        if split == SPLITS[-1]:
            tally.check()
            # `write_task` reads them after the last image.
            repairs.extend(tally.repairs())

    repairs = list(listing.repairs)
    return write_task(
        root,
        task,
        {split: read_examples(split, splits[split]) for split in SPLITS},
        source=f"{source.form}: {candidate.tree.path.name}",
        class_names=listing.class_names,
        protocol=protocol,
        importer=f"sptune {metadata.version('sptune')} {source.form}",
        licence=source.licence,
        repairs=repairs,
    )
