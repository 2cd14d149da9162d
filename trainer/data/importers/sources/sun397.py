"""SUN397: scenes in folders that nest, and the division that TFDS made of them."""

from __future__ import annotations

import re

from trainer.data.importers.archive import ImportRefused, SourceFiles
from trainer.data.importers.formats.split_lists import ONE_PART, THREE_PARTS, read_lines, refuse_missing
from trainer.data.importers.source import Listing, SourceRecord, source_files

LISTS = {"train": "sun397_tfds_tr.txt", "val": "sun397_tfds_va.txt", "test": "sun397_tfds_te.txt"}
UNDECODABLE = "t/track/outdoor/sun_aophkoiosslinihb.jpg"
IMAGE = re.compile(r"(?:^|/)(([a-z])/\2[^/]*(?:/[^/]+)?/sun_[^/]+\.jpg)$")
"""A class is a letter, a name that begins with it, and for some indoors, outdoors or the like."""


def recognise(tree: SourceFiles) -> bool:
    """Whether there is an image in a folder such as a/abbey."""
    return any(IMAGE.search(name) for name in tree.names)


def listing(tree: SourceFiles, task: str) -> Listing:
    """Lists SUN397; in one part, if TFDS's lists are not beside it.

    Raises:
        ImportRefused: if the lists name an image that is not there, or one of the three lists is missing.
    """
    keys = {name: match[1] for name in tree.names if (match := IMAGE.search(name))}
    left_out = [name for name, key in keys.items() if key == UNDECODABLE]
    for name in left_out:
        del keys[name]
    part_of = _parts(tree)
    refuse_missing(tree, sorted(part_of.keys() - set(keys.values())), "sun397_tfds_{tr,va,te}.txt")
    classes = sorted({_class_of(key) for key in part_of or keys.values()})
    label = {name: i for i, name in enumerate(classes)}
    return Listing(
        records=[
            SourceRecord(key, label[_class_of(key)], part_of.get(key, "all"), name)
            for name, key in keys.items()
            if not part_of or key in part_of
        ],
        class_names=classes,
        read=source_files(tree),
        draw=THREE_PARTS if part_of else ONE_PART,
        repairs=(f"left out {len(left_out)} image that no decoder reads: {UNDECODABLE}",) if left_out else (),
    )


def _parts(tree: SourceFiles) -> dict[str, str]:
    """The part of each image by TFDS's lists; empty, if there is none of them.

    Raises:
        ImportRefused: if there is one and not all, or an image is listed twice.
    """
    part_of: dict[str, str] = {}
    if any(tree.find(name) for name in LISTS.values()):
        for part, name in LISTS.items():
            for line in read_lines(tree, tree.one(name)):
                key = line.removeprefix("/")
                if key in part_of:
                    raise ImportRefused(
                        f"{tree.path}: {name} must not name {line}, which is in {LISTS[part_of[key]]} already. "
                        "Download the lists again."
                    )
                part_of[key] = part
    part_of.pop(UNDECODABLE, None)
    return part_of


def _class_of(key: str) -> str:
    return f"/{key.rpartition('/')[0]}"
