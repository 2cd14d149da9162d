"""VPT's lists of the FGVC splits: train.json, val.json and test.json, from file names to class numbers."""

from __future__ import annotations

import json
from typing import Any

from trainer.data.importers.archive import ImportRefused, SourceFiles
from trainer.data.importers.formats.split_lists import check_present
from trainer.data.importers.formats.two_columns import whole
from trainer.data.importers.source import SourceRecord

VPT_LISTS = ("train.json", "val.json", "test.json")


def vpt_records(tree: SourceFiles, root: str, images: str) -> tuple[list[SourceRecord], list[int]] | None:
    """What VPT's lists hold, if they are there, and the numbers that they give the classes, in order."""
    at = next((folder for folder in (root, "") if any(folder + name in tree.names for name in VPT_LISTS)), None)
    if at is None:
        return None
    if lacking := [name for name in VPT_LISTS if at + name not in tree.names]:
        raise ImportRefused(
            f"{tree.path} has some of VPT's lists and lacks {', '.join(lacking)}. Add what lacks, or take the others "
            "away for splits of our own."
        )
    found: dict[str, tuple[int, str]] = {}
    for name, text in zip(VPT_LISTS, tree.read_all([at + name for name in VPT_LISTS]), strict=True):
        for image, class_id in _json_pairs(text, name):
            if image in found:
                raise ImportRefused(f"{name} names {image} again; {found[image][1]}.json has it already.")
            found[image] = whole(str(class_id), f"{name}: {image}"), name.removesuffix(".json")
    ids = sorted({class_id for class_id, _ in found.values()})
    label = {class_id: i for i, class_id in enumerate(ids)}
    records = [SourceRecord(image, label[i], split, f"{root}{images}{image}") for image, (i, split) in found.items()]
    check_present(tree, records, "VPT's train.json, val.json or test.json")
    return records, ids


def _json_pairs(text: bytes, name: str) -> list[tuple[str, Any]]:
    """The items of a JSON object, a name that comes twice twice."""
    try:
        items = json.loads(text, object_pairs_hook=list)
    except ValueError as error:
        raise ImportRefused(f"{name} must be JSON: {error}. Get it again.") from error
    if not isinstance(items, list) or not items or not all(isinstance(item, tuple) for item in items):
        raise ImportRefused(f"{name} must map file names to classes, and name an image. Get it again.")
    return items
