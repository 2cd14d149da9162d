"""Sources that are folders of images: the widely used vtab-1k layout, and the user's own images."""

from __future__ import annotations

import functools
import posixpath
from collections import Counter
from collections.abc import Collection, Mapping

from trainer.catalog import TASKS, Task
from trainer.data.importers.archive import ImportRefused, SourceFiles
from trainer.data.importers.formats.own_layout import (
    check_class_names,
    check_folders,
    class_name,
    describe,
    is_image_name,
    left_out,
)
from trainer.data.importers.formats.shards import PART_OF, check_counted
from trainer.data.importers.formats.split_lists import ONE_PART, TWO_PARTS, check_present
from trainer.data.importers.formats.two_columns import read_two_columns
from trainer.data.importers.source import Listing, Source, SourceRecord, source_files

VTAB_1K_LISTS = {"train": "train800.txt", "val": "val200.txt", "test": "test.txt"}
VTAB_1K_TASKS = {
    "caltech101": "vtab/caltech101",
    "cifar": "vtab/cifar100",
    "clevr_count": "vtab/clevr_count",
    "clevr_dist": "vtab/clevr_dist",
    "diabetic_retinopathy": "vtab/diabetic_retinopathy",
    "dmlab": "vtab/dmlab",
    "dsprites_loc": "vtab/dsprites_loc",
    "dsprites_ori": "vtab/dsprites_ori",
    "dtd": "vtab/dtd",
    "eurosat": "vtab/eurosat",
    "kitti": "vtab/kitti",
    "oxford_flowers102": "vtab/oxford_flowers102",
    "oxford_iiit_pet": "vtab/oxford_iiit_pet",
    "patch_camelyon": "vtab/patch_camelyon",
    "resisc45": "vtab/resisc45",
    "smallnorb_azi": "vtab/smallnorb_azi",
    "smallnorb_ele": "vtab/smallnorb_ele",
    "sun397": "vtab/sun397",
    "svhn": "vtab/svhn",
}
"""Tasks by the names of their folders in the vtab-1k layout."""

LICENCES = {
    "clevr_count": "CC BY 4.0",
    "clevr_dist": "CC BY 4.0",
    "dsprites_loc": "Apache-2.0",
    "dsprites_ori": "Apache-2.0",
    "kitti": "CC BY-NC-SA 3.0",
    "patch_camelyon": "CC0",
}
"""Licences by folder, where known."""

ONE_IN = 10
"""If a user's own data has no val or no test part, one image in this many is drawn for it."""


def vtab_1k(tree: SourceFiles, task: str) -> Listing:
    """List a task's folder of the vtab-1k layout. The source is that folder or contains several such folders.

    Raises:
        ImportRefused: if the folder is missing, or a list is damaged or empty, or names a missing image.
    """
    folders = _vtab_1k_folders(tree, task)
    if len(folders) != 1 or not _is_vtab_1k(tree, task):
        folder_name = next(name for name, folder_task in VTAB_1K_TASKS.items() if folder_task == task)
        present = ", ".join(sorted(folders.values())) or "none"
        raise ImportRefused(
            f"{tree.path} must contain one folder with train800.txt, val200.txt and test.txt for {task}, called "
            f"{folder_name}; it has {present}. Rename the folder, or give the path of the right one."
        )

    (root,) = folders
    # A task of the layout need not be in the catalog.
    task_row = TASKS.get(task)

    records = []
    texts = tree.read_all([root + name for name in VTAB_1K_LISTS.values()])
    for (part, name), text in zip(VTAB_1K_LISTS.items(), texts, strict=True):
        for line in read_two_columns(text, root + name, split_at="last"):
            label = line.number()
            if task_row is not None and label >= task_row.num_classes:
                raise ImportRefused(
                    f"{line.where} must give a class from 0 to {task_row.num_classes - 1}, got {label}. "
                    f"Check that the lists are those of {task}."
                )
            records.append(SourceRecord(line.first, label, part, root + line.first))

    check_present(tree, records, f"{root}{', '.join(VTAB_1K_LISTS.values())}")

    # Lists may leave out the last classes of the task.
    num_classes = 1 + max(record.label for record in records)
    if task_row is not None:
        num_classes = max(num_classes, task_row.num_classes)
    return Listing(records=records, class_names=[str(i) for i in range(num_classes)], read=source_files(tree))


def _vtab_1k_folders(tree: SourceFiles, task: str) -> dict[str, str]:
    """Return the folders, with their `/`, that contain such lists, and their names.

    If a folder has the name of the task, only such folders are returned. Otherwise all are: a single folder with a
    name that is no other task's is accepted.
    """
    roots = [name.removesuffix(VTAB_1K_LISTS["train"]) for name in tree.find(VTAB_1K_LISTS["train"])]

    # The lists at the top of the source have no folder in their names, so the source itself names it.
    source_name = tree.path.resolve().name.split(".")[0]
    name_of = {root: posixpath.basename(root[:-1]) if root else source_name for root in roots}

    of_task = {root: name for root, name in name_of.items() if VTAB_1K_TASKS.get(name) == task}
    return of_task or name_of


def _is_vtab_1k(tree: SourceFiles, task: str) -> bool:
    return any(VTAB_1K_TASKS.get(name, task) == task for name in _vtab_1k_folders(tree, task).values())


def own_folder(tree: SourceFiles, task: str) -> Listing:
    """List a user's own images, `train/cat/1.jpg` or `cat/1.jpg`. Folders around all images are ignored.

    Raises:
        ImportRefused: if no images are in class folders, a folder beside the classes has none, an archive of a series
            is missing, or the parts are not train, val and test, or train and test, or train, or none.
    """
    images = [name for name in tree.names if is_image_name(name)]
    if not images:
        raise ImportRefused(
            f"{tree.path} must contain one folder of images per class, and has no image that Pillow reads; it has "
            f"{describe(tree.names) or 'no files'}. Give the folder above the class folders, or convert the files to "
            "JPEG or PNG."
        )

    check_counted(tree.archives)

    # Which part each image is in, if it is in one.
    prefix = _common_prefix(images)
    paths = {name: name[len(prefix) :].split("/") for name in images}
    part_of = {name: PART_OF.get(path[0].lower()) if len(path) > 1 else None for name, path in paths.items()}
    parts = {part for part in part_of.values() if part is not None}

    outside = [name for name, part in part_of.items() if part is None]
    if parts and outside:
        raise ImportRefused(
            f"{outside[0]} must be in one of the folders {', '.join(sorted(parts))}, as other images are. "
            "Move it there, or move all images out of these folders."
        )

    # All images must be at the same depth: a deeper one leaves its class open.
    class_depth = 1 if parts else 0
    misplaced = [name for name, path in paths.items() if len(path) != class_depth + 2]
    if misplaced:
        layout = "train/class/image.jpg" if parts else "class/image.jpg"
        raise ImportRefused(f"{misplaced[0]} must be at the same depth as the other images: {layout}. Move it.")

    # Neither a class nor a part is lost because nothing in it can be read.
    expected = _class_folders(tree, prefix, class_depth)
    check_folders(tree, expected, images)
    for part in sorted({path[0] for path in paths.values()} if parts else {""}):
        check_class_names(
            {path[class_depth] for path in paths.values() if not parts or path[0] == part}, "names of folders"
        )

    class_of = {name: class_name(path[class_depth]) for name, path in paths.items()}
    class_names = sorted(set(class_of.values()))
    label_of = {name: label for label, name in enumerate(class_names)}
    records = [
        SourceRecord(name[len(prefix) :], label_of[class_of[name]], part_of[name] or "all", name) for name in paths
    ]

    draw = own_draw({record.part for record in records})
    check_classes(records, class_names)

    repairs = tuple(left_out(tree, paths.keys()))
    return Listing(records=records, class_names=class_names, read=source_files(tree), draw=draw, repairs=repairs)


def _class_folders(tree: SourceFiles, prefix: str, class_depth: int) -> set[str]:
    """Return the folders that are parts or classes by where they are, whether or not they hold images.

    Args:
        prefix: the folder around all images, with its `/`.
        class_depth: 1 if the folders below it are parts, 0 if they are classes.
    """
    folders = set()
    for folder in tree.folders:
        path = folder.removeprefix(prefix).split("/")
        # Beside the parts there may be other folders, such as annotations.
        is_there = folder.startswith(prefix) and (class_depth == 0 or path[0].lower() in PART_OF)
        if is_there and len(path) <= class_depth + 1:
            folders.add(folder)
    return folders


def own_draw(parts: Collection[str]) -> Mapping[str, str] | None:
    """Return the part of a user's own data that each split is drawn from, or None if the user made all three parts.

    Raises:
        ImportRefused: if there is no rule for these parts.
    """
    rules: dict[tuple[str, ...], Mapping[str, str] | None] = {
        ("test", "train", "val"): None,
        ("test", "train"): TWO_PARTS,
        ("train",): dict.fromkeys(ONE_PART, "train"),
        ("all",): ONE_PART,
    }

    # Sorted as the keys above are.
    present = tuple(sorted(parts))
    if present not in rules:
        raise ImportRefused(
            "the parts must be train, val and test; or train and test (val is drawn from train); or train or no parts "
            f"(all three are drawn); got {' and '.join(present)}. Give the part to be tested on the name test."
        )
    return rules[present]


def check_classes(records: Collection[SourceRecord], class_names: Collection[str]) -> None:
    """Raise ImportRefused if a user's own task has only one class, or a class that no training image has."""
    if len(class_names) < 2:
        raise ImportRefused(
            f"a task must have two classes or more, got {', '.join(class_names) or 'none'}. "
            "Give the folder or table that contains all classes."
        )

    trained = {record.label for record in records if record.part in ("train", "all")}
    untrained = [record for record in records if record.label not in trained]
    if untrained:
        name = list(class_names)[untrained[0].label]
        raise ImportRefused(
            f"{untrained[0].key} must be of a class that train has, got {name!r}. Check the spelling of the class, or "
            "add training images of it."
        )


def own_row(listing: Listing, name: str) -> Task:
    """Return the catalog's row of a user's own task `own/...`.

    A split has the size of its part, or a tenth of the tuning images if the user made no such part.
    """
    counts = Counter(record.part for record in listing.records)

    if listing.draw is None:
        train = counts["train"]
        val = counts["val"]
        test = counts["test"]
    else:
        num_tuning = counts[listing.draw["train"]]
        val = max(1, num_tuning // ONE_IN)
        has_test_part = listing.draw["test"] != listing.draw["train"]
        test = counts[listing.draw["test"]] if has_test_part else val
        train = max(0, num_tuning - val - (0 if has_test_part else test))

    return Task(
        name=name,
        group="own",
        num_classes=len(listing.class_names),
        num_train=train,
        num_val=val,
        num_test=test,
    )


def _common_prefix(images: Collection[str]) -> str:
    """Return the folders around all images that are neither parts nor classes, with their `/`."""
    # Go down while all images are in one folder, and stop above the class folders at the latest.
    prefix = ""
    while True:
        folders = {image[len(prefix) :].partition("/")[0] for image in images}
        depth = min(image.count("/", len(prefix)) for image in images)
        are_parts = {folder.lower() for folder in folders} <= PART_OF.keys()
        if len(folders) > 1 or depth < 2 or are_parts:
            return prefix
        prefix += f"{folders.pop()}/"


SOURCES: tuple[Source, ...] = (
    *(
        Source(
            form="vtab-1k",
            tasks=(task,),
            recognise=functools.partial(_is_vtab_1k, task=task),
            listing=vtab_1k,
            where=f"a copy of the vtab-1k folder: {folder}, with train800.txt, val200.txt, test.txt and images/",
            licence=LICENCES.get(folder),
        )
        for folder, task in VTAB_1K_TASKS.items()
    ),
    Source(
        form="folder",
        tasks=(),
        recognise=lambda tree: any("/" in name and is_image_name(name) for name in tree.names),
        listing=own_folder,
        where="your own images, one folder per class, below train, val and test, or train and test, or neither",
    ),
)
"""The forms that are folders of images."""
