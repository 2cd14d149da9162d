"""SUN397: scenes in nested folders, and the splits that TFDS made of them."""

from __future__ import annotations

import re

from trainer.data.importers.archive import ImportRefused, SourceFiles
from trainer.data.importers.formats.split_lists import ONE_PART, THREE_PARTS, read_lines, refuse_missing
from trainer.data.importers.source import Listing, SourceRecord, source_files

LISTS = {"train": "sun397_tfds_tr.txt", "val": "sun397_tfds_va.txt", "test": "sun397_tfds_te.txt"}
UNDECODABLE = "t/track/outdoor/sun_aophkoiosslinihb.jpg"
IMAGE = re.compile(r"(?:^|/)(([a-z])/\2[^/]*(?:/[^/]+)?/sun_[^/]+\.jpg)$")
"""The folder of a class is a letter, a name that begins with it, and for some classes indoors, outdoors or the like."""


def recognise(tree: SourceFiles) -> bool:
    """Return whether the source has an image in a folder such as a/abbey."""
    return any(IMAGE.search(name) for name in tree.names)


def listing(tree: SourceFiles, task: str) -> Listing:
    """List SUN397. Without TFDS's lists, all images are one part.

    Raises:
        ImportRefused: if the lists name a missing image, or one of the three lists is missing.
    """
    keys = {}
    for name in tree.names:
        match = IMAGE.search(name)
        if match:
            keys[name] = match[1]

    # The one image that no decoder reads. A user may have removed it already.
    left_out = [name for name, key in keys.items() if key == UNDECODABLE]
    for name in left_out:
        del keys[name]

    part_of = _read_parts(tree)
    refuse_missing(tree, sorted(part_of.keys() - set(keys.values())), "sun397_tfds_{tr,va,te}.txt")

    class_names = sorted({_class_of(key) for key in part_of or keys.values()})
    label_of = {name: label for label, name in enumerate(class_names)}

    # Images that TFDS does not list are in no split.
    records = [
        SourceRecord(key, label_of[_class_of(key)], part_of.get(key, "all"), name)
        for name, key in keys.items()
        if not part_of or key in part_of
    ]

    return Listing(
        records=records,
        class_names=class_names,
        read=source_files(tree),
        draw=THREE_PARTS if part_of else ONE_PART,
        repairs=(f"left out {len(left_out)} image that no decoder reads: {UNDECODABLE}",) if left_out else (),
    )


def _read_parts(tree: SourceFiles) -> dict[str, str]:
    """Return the part of each image by TFDS's lists, or nothing if the source has none of the lists.

    Raises:
        ImportRefused: if only some of the lists are there, or an image is listed twice.
    """
    if not any(tree.find(name) for name in LISTS.values()):
        return {}

    part_of: dict[str, str] = {}
    for part, name in LISTS.items():
        for line in read_lines(tree, tree.one(name)):
            key = line.removeprefix("/")
            if key in part_of:
                raise ImportRefused(
                    f"{tree.path}: {name} must not name {line}, which is already in {LISTS[part_of[key]]}. "
                    "Download the lists again."
                )
            part_of[key] = part

    part_of.pop(UNDECODABLE, None)
    return part_of


def _class_of(key: str) -> str:
    return f"/{key.rpartition('/')[0]}"
