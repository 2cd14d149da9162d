"""VTAB's structured tasks in the forms that their makers publish: DMLab, CLEVR and KITTI."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from trainer.data.importers.archive import ImportRefused, SourceFiles
from trainer.data.importers.formats.tfrecord import (
    RecordPosition,
    open_shards,
    read_images,
    read_record,
    record_offsets,
    shard_names,
)
from trainer.data.importers.source import Listing, Source, SourceRecord, source_files
from trainer.data.importers.sources.vtab_labels import (
    CLASS_NAMES,
    KITTI_VEHICLES,
    check_label,
    clevr_count_label,
    clevr_distance_label,
    kitti_label,
)
from trainer.plain_text import counted

DMLAB_PARTS = {"train": "train", "validation": "val", "test": "test"}


def list_dmlab(tree: SourceFiles, task: str) -> Listing:
    """List the frames of DMLab in its own three parts, each a set of TFRecord files."""
    records: list[SourceRecord] = []
    positions: list[RecordPosition] = []

    for split, part in DMLAB_PARTS.items():
        present = _dmlab_shards(tree, split)
        if not present:
            raise ImportRefused(
                f"{tree.path} must contain dmlab-{split}.tfrecord-00000-of-0000n; there is none. "
                "Unpack or download dmlab.tar.gz again."
            )

        # Names end in -00000-of-0000n: the prefix of all shards, and their number.
        shards = shard_names(tree, present[0][: -len("-00000-of-00001")], int(present[0][-5:]))

        first = len(records)
        for shard, file in zip(shards, open_shards(tree, shards), strict=True):
            # Records have no names, so the key is the number of the record in its split.
            for offset in record_offsets(file, shard):
                key = f"{split}-{len(records) - first:06d}"
                label = check_label(read_record(file, shard, offset).one_int("label"), CLASS_NAMES[task], key)
                records.append(SourceRecord(key, label, part, len(records)))
                positions.append((shard, offset))

    return Listing(
        records=records,
        class_names=list(CLASS_NAMES[task]),
        read=lambda requested: read_images(tree, [positions[int(record.place)] for record in requested]),
        draw={"train": "train", "val": "val", "test": "test"},
    )


def _dmlab_shards(tree: SourceFiles, split: str) -> list[str]:
    """Return the files of a split that TFDS did not write.

    TFDS's own files have the same names, but next to a dataset_info.json.
    """
    prepared = {str(PurePosixPath(name).parent) for name in tree.find("dataset_info.json")}
    names = tree.find(f"dmlab-{split}.tfrecord-?????-of-?????")
    return [name for name in names if str(PurePosixPath(name).parent) not in prepared]


def list_clevr(tree: SourceFiles, task: str) -> Listing:
    """List the train and val images of CLEVR. Its test images have no annotations."""
    names = set(tree.names)
    records: list[SourceRecord] = []
    repairs: list[str] = []

    for part in ("train", "val"):
        scenes = tree.one(f"scenes/CLEVR_{part}_scenes.json")
        folder = f"{scenes.rpartition('scenes/')[0]}images/{part}"

        for image, distances in _clevr_scenes(tree.read(scenes), scenes):
            name = f"{folder}/{image}"
            if name not in names:
                raise ImportRefused(
                    f"{tree.path} does not contain {name}, which {scenes} names. Unpack or download it again."
                )
            label = clevr_count_label(len(distances)) if task == "vtab/clevr_count" else clevr_distance_label(distances)
            records.append(SourceRecord(image, check_label(label, CLASS_NAMES[task], image), part, name))

        # What is in the folder but in no scene is named on the card.
        listed = {record.place for record in records}
        repairs += _left_out([name for name in tree.find(f"{folder}/*.png") if name not in listed], "scene")

    # As in VTAB: the published val part is the test split.
    return Listing(
        records=records,
        class_names=list(CLASS_NAMES[task]),
        read=source_files(tree),
        draw={"train": "train", "val": "train", "test": "val"},
        repairs=tuple(repairs),
    )


def _clevr_scenes(data: bytes, name: str) -> list[tuple[str, list[float]]]:
    """Return the image of each scene, and the third pixel coordinates of its objects.

    Raises:
        ImportRefused: if the file is not a list of scenes.
    """

    def shrink(node: dict[str, Any]) -> Any:
        # json calls it from the inside out. The train scenes would take gigabytes as dictionaries.
        if "pixel_coords" in node:
            return node["pixel_coords"][2]
        if "objects" in node:
            return (node["image_filename"], node["objects"])
        return node

    try:
        scenes = json.loads(data, object_hook=shrink)["scenes"]
        return [(str(image), [float(distance) for distance in distances]) for image, distances in scenes]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise ImportRefused(f"{name} is not a list of CLEVR's scenes: {error!r}. Download it again.") from error


def list_kitti(tree: SourceFiles, task: str) -> Listing:
    """List the labelled images of KITTI as one part. Its files do not contain the split of VTAB."""
    labels = _by_number(tree.find("label_2/*.txt"))
    images = _by_number([name for name in tree.find("image_2/*.png") if "/testing/" not in f"/{name}"])

    # The images are a download of their own, which may be incomplete.
    missing = sorted(labels.keys() - images.keys())
    if missing:
        raise ImportRefused(
            f"{tree.path} must contain an image for each label; missing images: {len(missing)}, the first is that of "
            f"{labels[missing[0]]}. Put data_object_image_2.zip next to data_object_label_2.zip."
        )

    records = []
    for (number, name), text in zip(labels.items(), tree.read_all(list(labels.values())), strict=True):
        key = PurePosixPath(images[number]).name
        label = check_label(kitti_label(list(_vehicle_distances(text, name))), CLASS_NAMES[task], key)
        records.append(SourceRecord(key, label, "all", images[number]))

    return Listing(
        records=records,
        class_names=list(CLASS_NAMES[task]),
        read=source_files(tree),
        draw={"train": "all", "val": "all", "test": "all"},
        repairs=tuple(_left_out([images[number] for number in sorted(images.keys() - labels.keys())], "label")),
    )


def _vehicle_distances(text: bytes, name: str) -> Iterator[float]:
    """Yield the third coordinate of each vehicle in a label file.

    A line is one object: its type is the first field, its coordinates are fields 12 to 14.
    """
    for line in text.decode(errors="replace").splitlines():
        fields = line.split()
        if not fields:
            continue

        try:
            distance = float(fields[13])
        except (IndexError, ValueError) as error:
            raise ImportRefused(f"{name} must have 15 fields a line, got {line!r}. Download it again.") from error

        if fields[0] in KITTI_VEHICLES:
            yield distance


def _by_number(names: list[str]) -> dict[str, str]:
    """Return names by the number at the end of their stem, which a label and its image have in common."""
    index = {}
    for name in names:
        match = re.search(r"(\d+)\.\w+$", name)
        if match:
            index[match[1]] = name

    return index


def _left_out(names: list[str], missing: str) -> list[str]:
    """Return the line of the card that names the images without a scene or label, if there are any."""
    if not names:
        return []

    more = ", ..." if len(names) > 3 else ""
    return [f"{counted(len(names), 'image')} without a {missing} left out: {', '.join(names[:3])}{more}"]


SOURCES: tuple[Source, ...] = (
    Source(
        form="official",
        tasks=("vtab/dmlab",),
        recognise=lambda tree: bool(_dmlab_shards(tree, "train")),
        listing=list_dmlab,
        where="https://storage.googleapis.com/dmlab-vtab/dmlab.tar.gz (2.8 GB)",
    ),
    Source(
        form="official",
        tasks=("vtab/clevr_count", "vtab/clevr_dist"),
        recognise=lambda tree: bool(tree.find("scenes/CLEVR_train_scenes.json")),
        listing=list_clevr,
        where="https://cs.stanford.edu/people/jcjohns/clevr/: CLEVR_v1.0.zip (18 GB)",
        licence="CC BY 4.0",
    ),
    Source(
        form="official",
        tasks=("vtab/kitti",),
        recognise=lambda tree: bool(tree.find("label_2/*.txt")),
        listing=list_kitti,
        where="https://www.cvlibs.net/datasets/kitti/eval_object.php: data_object_image_2.zip, data_object_label_2.zip "
        "(12 GB)",
        licence="CC BY-NC-SA 3.0",
    ),
)
"""The official forms of DMLab, CLEVR and KITTI."""
