"""VTAB's structured tasks from the files that their makers publish: DMLab, CLEVR and KITTI."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from trainer.data.importers.archive import ImportRefused, SourceFiles
from trainer.data.importers.formats.tfrecord import Place, offsets, open_shards, read_images, record_at, shard_names
from trainer.data.importers.source import Listing, Source, SourceRecord, source_files
from trainer.data.importers.sources.vtab_labels import (
    CLASS_NAMES,
    KITTI_VEHICLES,
    checked,
    clevr_count_label,
    clevr_distance_label,
    kitti_label,
)

DMLAB_PARTS = {"train": "train", "validation": "val", "test": "test"}


def list_dmlab(tree: SourceFiles, task: str) -> Listing:
    """DMLab's frames in its own three parts, each a set of TFRecord files."""
    records: list[SourceRecord] = []
    places: list[Place] = []
    for split, part in DMLAB_PARTS.items():
        if not (found := _dmlab_shards(tree, split)):
            raise ImportRefused(f"{tree.path} must hold dmlab-{split}.tfrecord-00000-of-0000n; there is none.")
        first = len(records)
        shards = shard_names(tree, found[0][: -len("-00000-of-00001")], int(found[0][-5:]))
        for shard, file in zip(shards, open_shards(tree, shards), strict=True):
            for offset in offsets(file, shard):
                key = f"{split}-{len(records) - first:06d}"
                label = record_at(file, shard, offset).one_int("label")
                records.append(SourceRecord(key, checked(label, CLASS_NAMES[task], key), part, len(records)))
                places.append((shard, offset))
    return Listing(
        records=records,
        class_names=list(CLASS_NAMES[task]),
        read=lambda wanted: read_images(tree, [places[int(record.place)] for record in wanted]),
        draw={"train": "train", "val": "val", "test": "test"},
    )


def _dmlab_shards(tree: SourceFiles, split: str) -> list[str]:
    """The files of a split that TFDS did not write: its own have the same names, beside a dataset_info.json."""
    prepared = {str(PurePosixPath(name).parent) for name in tree.find("dataset_info.json")}
    names = tree.find(f"dmlab-{split}.tfrecord-?????-of-?????")
    return [name for name in names if str(PurePosixPath(name).parent) not in prepared]


def list_clevr(tree: SourceFiles, task: str) -> Listing:
    """CLEVR's train and val images; those of its test set have no annotation."""
    there = set(tree.names)
    records: list[SourceRecord] = []
    repairs: list[str] = []
    for part in ("train", "val"):
        scenes = tree.one(f"scenes/CLEVR_{part}_scenes.json")
        folder = f"{scenes.rpartition('scenes/')[0]}images/{part}"
        for image, distances in _clevr_scenes(tree.read(scenes), scenes):
            if (place := f"{folder}/{image}") not in there:
                raise ImportRefused(f"{tree.path} lacks {place}, which {scenes} names. Unpack or download it again.")
            label = clevr_count_label(len(distances)) if task == "vtab/clevr_count" else clevr_distance_label(distances)
            records.append(SourceRecord(image, checked(label, CLASS_NAMES[task], image), part, place))
        listed = {record.place for record in records}
        repairs += _left_out([name for name in tree.find(f"{folder}/*.png") if name not in listed], "scene")
    return Listing(
        records=records,
        class_names=list(CLASS_NAMES[task]),
        read=source_files(tree),
        draw={"train": "train", "val": "train", "test": "val"},
        repairs=tuple(repairs),
    )


def _clevr_scenes(data: bytes, name: str) -> list[tuple[str, list[float]]]:
    """Each scene's image and the third pixel coordinates of its objects.

    Raises:
        ImportRefused: if the file is no list of scenes.
    """

    def shrink(node: dict[str, Any]) -> Any:
        # Called from the inside out: the train scenes would take gigabytes as dictionaries.
        if "pixel_coords" in node:
            return node["pixel_coords"][2]
        return (node["image_filename"], node["objects"]) if "objects" in node else node

    try:
        found = json.loads(data, object_hook=shrink)["scenes"]
        return [(str(image), [float(distance) for distance in distances]) for image, distances in found]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise ImportRefused(f"{name} is no list of CLEVR's scenes: {error!r}. Download it again.") from error


def list_kitti(tree: SourceFiles, task: str) -> Listing:
    """KITTI's labelled images; which of them are whose split is not in its files."""
    labels = _by_number(tree.find("label_2/*.txt"))
    images = _by_number([name for name in tree.find("image_2/*.png") if "/testing/" not in f"/{name}"])
    if missing := sorted(labels.keys() - images.keys()):
        raise ImportRefused(
            f"{tree.path} lacks the images of {len(missing)} labels, {labels[missing[0]]} first. Put "
            "data_object_image_2.zip beside data_object_label_2.zip."
        )
    records = []
    for (number, name), text in zip(labels.items(), tree.read_all(list(labels.values())), strict=True):
        key = PurePosixPath(images[number]).name
        label = checked(kitti_label(list(_vehicle_distances(text, name))), CLASS_NAMES[task], key)
        records.append(SourceRecord(key, label, "all", images[number]))
    return Listing(
        records=records,
        class_names=list(CLASS_NAMES[task]),
        read=source_files(tree),
        draw={"train": "all", "val": "all", "test": "all"},
        repairs=tuple(_left_out([images[number] for number in sorted(images.keys() - labels.keys())], "label")),
    )


def _vehicle_distances(text: bytes, name: str) -> Iterator[float]:
    """The third coordinate of each vehicle of a label file, a line an object: its type first, its place from 12th."""
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
    """Names by the number at the end of their stem, which a label and its image share."""
    return {found[1]: name for name in names if (found := re.search(r"(\d+)\.\w+$", name))}


def _left_out(names: list[str], what: str) -> list[str]:
    more = ", ..." if len(names) > 3 else ""
    return [f"{len(names)} images without a {what} left out: {', '.join(names[:3])}{more}"] if names else []


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
