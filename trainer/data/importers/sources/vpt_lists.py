"""VPT's lists of the FGVC splits: train.json, val.json and test.json map file names to class numbers."""

from __future__ import annotations

import json
from typing import Any

from trainer.data.importers.archive import ImportRefused, SourceFiles
from trainer.data.importers.formats.split_lists import check_present
from trainer.data.importers.formats.two_columns import parse_whole_number
from trainer.data.importers.source import SourceRecord

VPT_LISTS = ("train.json", "val.json", "test.json")


def vpt_records(tree: SourceFiles, root: str, images: str) -> tuple[list[SourceRecord], list[int]] | None:
    """Read the records of VPT's lists, and the sorted class numbers that they use.

    Args:
        root: the folder of the data set, with its `/`. The lists are there or at the top of the source.
        images: the folder of the images below `root`, with its `/`.

    Returns:
        None if the source has none of the lists.

    Raises:
        ImportRefused: if a list is missing or damaged, an image is listed twice, or an image is missing.
    """
    folders = [folder for folder in (root, "") if any(folder + name in tree.names for name in VPT_LISTS)]
    if not folders:
        return None

    # Next to the images before the top of the source.
    folder = folders[0]
    missing = [name for name in VPT_LISTS if folder + name not in tree.names]
    if missing:
        raise ImportRefused(
            f"{tree.path} must contain all three of VPT's lists or none; {', '.join(missing)} is missing. Add it, or "
            "remove the other lists to let sptune draw the splits."
        )

    # The number of the class and the split, by image.
    entries: dict[str, tuple[int, str]] = {}
    for name, text in zip(VPT_LISTS, tree.read_all([folder + name for name in VPT_LISTS]), strict=True):
        for image, class_id in _read_pairs(text, name):
            if image in entries:
                raise ImportRefused(
                    f"{name} must not name {image}, which is already in {entries[image][1]}.json. "
                    "Download the lists again."
                )
            entries[image] = (parse_whole_number(str(class_id), f"{name}: {image}"), name.removesuffix(".json"))

    # VPT's class numbers need not be consecutive.
    class_ids = sorted({class_id for class_id, _ in entries.values()})
    label_of = {class_id: label for label, class_id in enumerate(class_ids)}

    records = [
        SourceRecord(image, label_of[class_id], split, f"{root}{images}{image}")
        for image, (class_id, split) in entries.items()
    ]
    check_present(tree, records, "VPT's train.json, val.json or test.json")
    return records, class_ids


def _read_pairs(text: bytes, name: str) -> list[tuple[str, Any]]:
    """Return the items of a JSON object. A name that is there twice is returned twice."""
    try:
        items = json.loads(text, object_pairs_hook=list)
    except ValueError as error:
        raise ImportRefused(f"{name} must be JSON: {error}. Download it again.") from error

    if not isinstance(items, list) or not items or not all(isinstance(item, tuple) for item in items):
        raise ImportRefused(f"{name} must map file names to classes, with at least one image. Download it again.")
    return items
