"""Sources that are folders of images: the widely used vtab-1k layout, and a user's own."""

from __future__ import annotations

import functools
import posixpath
from collections import Counter
from collections.abc import Collection, Mapping

from trainer.catalog import TASKS, Task
from trainer.data.importers.archive import ImportRefused, SourceFiles
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
"""Tasks by their folders in the vtab-1k layout."""

LICENCES = {
    "clevr_count": "CC BY 4.0",
    "clevr_dist": "CC BY 4.0",
    "dsprites_loc": "Apache-2.0",
    "dsprites_ori": "Apache-2.0",
    "kitti": "CC BY-NC-SA 3.0",
    "patch_camelyon": "CC0",
}
"""Those that are known."""

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
PART_OF = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""What users call the parts."""
ONE_IN = 10
"""One image in so many is drawn for val, and for test, where a user's own data has none."""


def vtab_1k(tree: SourceFiles, task: str) -> Listing:
    """Lists a task's folder of the vtab-1k layout, given alone or with the others beside it.

    Raises:
        ImportRefused: if the folder is not there, a list is damaged or empty, or names an image that is not there.
    """
    folders = _vtab_1k_folders(tree, task)
    if len(folders) != 1 or not _is_vtab_1k(tree, task):
        shown = ", ".join(sorted(folders.values())) or "none"
        raise ImportRefused(
            f"{tree.path} must hold one folder with train800.txt, val200.txt and test.txt for {task}, called "
            f"{next(name for name, other in VTAB_1K_TASKS.items() if other == task)}; it has {shown}."
        )
    (root,) = folders
    row = TASKS.get(task)
    records = []
    texts = tree.read_all([root + name for name in VTAB_1K_LISTS.values()])
    for (part, name), text in zip(VTAB_1K_LISTS.items(), texts, strict=True):
        for line in read_two_columns(text, root + name, split_at="last"):
            label = line.number()
            if row is not None and label >= row.num_classes:
                raise ImportRefused(f"{line.where} must give a class from 0 to {row.num_classes - 1}, got {label}.")
            records.append(SourceRecord(line.first, label, part, root + line.first))
    check_present(tree, records, f"{root}{', '.join(VTAB_1K_LISTS.values())}")
    num_classes = max(row.num_classes if row else 0, 1 + max(record.label for record in records))
    return Listing(records=records, class_names=[str(i) for i in range(num_classes)], read=source_files(tree))


def _vtab_1k_folders(tree: SourceFiles, task: str) -> dict[str, str]:
    """The folders, with their `/`, that hold such lists, and their names: the task's own, or all if there is none.

    A lone folder whose name is no other task's is taken for the task's own.
    """
    roots = [name.removesuffix(VTAB_1K_LISTS["train"]) for name in tree.find(VTAB_1K_LISTS["train"])]
    called = {root: posixpath.basename(root[:-1]) if root else tree.path.resolve().name.split(".")[0] for root in roots}
    return {root: name for root, name in called.items() if VTAB_1K_TASKS.get(name) == task} or called


def _is_vtab_1k(tree: SourceFiles, task: str) -> bool:
    return any(VTAB_1K_TASKS.get(name, task) == task for name in _vtab_1k_folders(tree, task).values())


def own_folder(tree: SourceFiles, task: str) -> Listing:
    """Lists a user's own images, `train/cat/1.jpg` or `cat/1.jpg`; folders around all of them do not matter.

    Raises:
        ImportRefused: if there are no images in class folders, or the parts are not train, val and test, or train and
            test, or none.
    """
    images = [name for name in tree.names if name.lower().endswith(IMAGE_SUFFIXES) and not _hidden(name)]
    if not images:
        raise ImportRefused(f"{tree.path} must hold images in a folder a class ({', '.join(IMAGE_SUFFIXES)}).")
    around = _around(images)
    paths = {name: name[len(around) :].split("/") for name in images}
    named = {name: PART_OF.get(path[0].lower()) if len(path) > 1 else None for name, path in paths.items()}
    parts = {part for part in named.values() if part is not None}
    if parts and (odd := [name for name, part in named.items() if part is None]):
        raise ImportRefused(
            f"{odd[0]} is in none of the folders {', '.join(sorted(parts))} beside it. Move it or them."
        )
    above = 1 if parts else 0
    if misplaced := [name for name, path in paths.items() if len(path) != above + 2]:
        form = "train/class/image.jpg" if parts else "class/image.jpg"
        raise ImportRefused(f"{misplaced[0]} must be where the others are: {form}. Move it.")
    classes = sorted({path[above] for path in paths.values()})
    label = {name: i for i, name in enumerate(classes)}
    records = [
        SourceRecord(name[len(around) :], label[path[above]], named[name] or "all", name)
        for name, path in paths.items()
    ]
    draw = own_draw({record.part for record in records})
    check_classes(records, classes)
    others = [name for name in tree.names if name not in paths]
    left_out = (f"left out {len(others)} files that are no images: {', '.join(others[:3])}",) if others else ()
    return Listing(
        records=records,
        class_names=classes,
        read=source_files(tree),
        draw=draw,
        repairs=left_out,
    )


def own_draw(parts: Collection[str]) -> Mapping[str, str] | None:
    """From which part of a user's own data each split is drawn; None if the user made all three.

    Raises:
        ImportRefused: if no rule fits the parts.
    """
    rules: dict[tuple[str, ...], Mapping[str, str] | None] = {
        ("test", "train", "val"): None,
        ("test", "train"): TWO_PARTS,
        ("train",): dict.fromkeys(ONE_PART, "train"),
        ("all",): ONE_PART,
    }
    made = tuple(sorted(parts))
    if made not in rules:
        raise ImportRefused(
            "the parts must be train, val and test; or train and test, val then being drawn from train; or train alone "
            f"or none, all three then being drawn; got {' and '.join(made)}. Name the part to be tested on test."
        )
    return rules[made]


def check_classes(records: Collection[SourceRecord], class_names: Collection[str]) -> None:
    """See that a user's own task can be learnt.

    Raises:
        ImportRefused: if it has one class, or a class is tested that no training image shows.
    """
    if len(class_names) < 2:
        raise ImportRefused(f"a task must have two classes or more, got {', '.join(class_names) or 'none'}.")
    tuned = {record.label for record in records if record.part in ("train", "all")}
    if unseen := [record for record in records if record.label not in tuned]:
        name = list(class_names)[unseen[0].label]
        raise ImportRefused(f"{unseen[0].key} must be of a class that train has, got {name!r}. Is it spelt the same?")


def own_row(listing: Listing, name: str) -> Task:
    """The catalog's row of a user's own task `own/...`: its parts' sizes, or a tenth for each split that has none."""
    counts = Counter(record.part for record in listing.records)
    if listing.draw is None:
        train, val, test = counts["train"], counts["val"], counts["test"]
    else:
        tuning = counts[listing.draw["train"]]
        val = max(1, tuning // ONE_IN)
        is_made = listing.draw["test"] != listing.draw["train"]
        test = counts[listing.draw["test"]] if is_made else val
        train = max(0, tuning - val - (0 if is_made else test))
    return Task(
        name=name,
        group="own",
        num_classes=len(listing.class_names),
        num_train=train,
        num_val=val,
        num_test=test,
    )


def _around(images: Collection[str]) -> str:
    """The folders around all images that are neither parts nor classes, with their `/`."""
    around = ""
    while True:
        folders = {image[len(around) :].partition("/")[0] for image in images}
        inner = min(image.count("/", len(around)) for image in images)
        if len(folders) > 1 or inner < 2 or {folder.lower() for folder in folders} <= PART_OF.keys():
            return around
        around += f"{folders.pop()}/"


def _hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


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
        recognise=lambda tree: any("/" in name and name.lower().endswith(IMAGE_SUFFIXES) for name in tree.names),
        listing=own_folder,
        where="your own images in a folder a class, below train, val and test, or train and test, or neither",
    ),
)
"""The forms that are folders."""
