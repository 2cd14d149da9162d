"""The 19 VTAB tasks from directories that `tensorflow_datasets` (TFDS) prepared, with the published splits.

A slice refers to the order that TFDS gave one version of a data set: its shards in order, and in each its records.
"""

from __future__ import annotations

import io
import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from trainer.data.importers.archive import ImportRefused, SourceFiles
from trainer.data.importers.formats.tfrecord import (
    Example,
    RecordPosition,
    open_shards,
    read_images,
    read_record,
    record_offsets,
    shard_names,
)
from trainer.data.importers.source import Listing, Source, SourceRecord
from trainer.data.importers.sources.vtab_arrays import dsprites_png
from trainer.data.importers.sources.vtab_labels import (
    CLASS_NAMES,
    check_label,
    clevr_count_label,
    clevr_distance_label,
    dsprites_label,
    kitti_label,
    number_names,
)
from trainer.plain_text import counted

INFO = "dataset_info.json"
LABELS = "label.labels.txt"


# Labels, from the features of a record.


def _stored_label(example: Example) -> int:
    return example.one_int("label")


def _num_objects(example: Example) -> int:
    return clevr_count_label(len(example.ints("objects/size")))


def _nearest_object(example: Example) -> int:
    return clevr_distance_label(example.floats("objects/pixel_coords")[2::3])


def _nearest_vehicle(example: Example) -> int:
    types = example.ints("objects/type")
    locations = example.floats("objects/location")
    if len(locations) != 3 * len(types):
        raise ImportRefused(
            f"{example.where} must have 3 coordinates of {counted(len(types), 'object')}, got {len(locations)}. "
            "Prepare it again."
        )

    # TFDS numbers Car, Van and Truck before the other types.
    return kitti_label([distance for kind, distance in zip(types, locations[2::3], strict=True) if kind < 3])


def _position(example: Example) -> int:
    return dsprites_label(example.one_int("label_x_position"), 32)


def _orientation(example: Example) -> int:
    return dsprites_label(example.one_int("label_orientation"), 40)


def _azimuth(example: Example) -> int:
    return example.one_int("label_azimuth")


def _elevation(example: Example) -> int:
    return example.one_int("label_elevation")


# Images, from the encoded image of a record and its key.


def _unchanged(encoded: bytes, _: str) -> bytes:
    return encoded


def _black_and_white(encoded: bytes, key: str) -> bytes:
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            pixels = np.asarray(image.convert("L"))
    except OSError as error:
        raise ImportRefused(f"{key} of dsprites is not an image: {error}. Prepare the data set again.") from error

    return dsprites_png(pixels, f"{key} of dsprites")


@dataclass(frozen=True, slots=True)
class Prepared:
    """The slices of a data set prepared by TFDS that are a task's splits."""

    dataset: str
    """Its name, and after a `/` its config if it has one."""
    version: str
    num_classes: int
    train: str
    """A slice in the notation of TFDS."""
    val: str
    test: str
    label: Callable[[Example], int] = _stored_label
    image: Callable[[bytes, str], bytes] = _unchanged
    """Returns the image to store, given the encoded image of the record and its key."""

    @property
    def name(self) -> str:
        """The name of the data set without its config."""
        return self.dataset.partition("/")[0]


START = "train[:800]"
CLEVR_VAL = "train[63000:63200]"
SPRITES_VAL = "train[589824:590024]"
SPRITES_TEST = "train[663552:]"
RETINOPATHY = "diabetic_retinopathy_detection/btgraham-300"

PREPARED: Mapping[str, Prepared] = {
    "vtab/cifar100": Prepared("cifar100", "3.0.2", 100, START, "train[45000:45200]", "test"),
    "vtab/caltech101": Prepared("caltech101", "3.0.1", 102, START, "train[2754:2954]", "test"),
    "vtab/dtd": Prepared("dtd", "3.0.1", 47, START, "validation[:200]", "test"),
    "vtab/oxford_flowers102": Prepared("oxford_flowers102", "2.1.1", 102, START, "validation[:200]", "test"),
    "vtab/oxford_iiit_pet": Prepared("oxford_iiit_pet", "3.2.0", 37, START, "train[2944:3144]", "test"),
    "vtab/svhn": Prepared("svhn_cropped", "3.0.0", 10, START, "train[65931:66131]", "test"),
    "vtab/sun397": Prepared("sun397/tfds", "4.0.0", 397, START, "validation[:200]", "test"),
    "vtab/patch_camelyon": Prepared("patch_camelyon", "2.0.0", 2, START, "validation[:200]", "test"),
    "vtab/eurosat": Prepared("eurosat/rgb", "2.0.0", 10, START, "train[16200:16400]", "train[21600:]"),
    "vtab/resisc45": Prepared("resisc45", "3.0.0", 45, START, "train[18900:19100]", "train[25200:]"),
    "vtab/diabetic_retinopathy": Prepared(RETINOPATHY, "3.0.0", 5, START, "validation[:200]", "test"),
    "vtab/clevr_count": Prepared("clevr", "3.1.0", 8, START, CLEVR_VAL, "validation", _num_objects),
    "vtab/clevr_dist": Prepared("clevr", "3.1.0", 6, START, CLEVR_VAL, "validation", _nearest_object),
    "vtab/dmlab": Prepared("dmlab", "2.0.1", 6, START, "validation[:200]", "test"),
    "vtab/kitti": Prepared("kitti", "3.2.0", 4, START, "validation[:200]", "test", _nearest_vehicle),
    "vtab/dsprites_loc": Prepared(
        "dsprites", "2.0.0", 16, START, SPRITES_VAL, SPRITES_TEST, _position, _black_and_white
    ),
    "vtab/dsprites_ori": Prepared(
        "dsprites", "2.0.0", 16, START, SPRITES_VAL, SPRITES_TEST, _orientation, _black_and_white
    ),
    "vtab/smallnorb_azi": Prepared("smallnorb", "2.0.0", 18, START, "test[:200]", "test[12150:]", _azimuth),
    "vtab/smallnorb_ele": Prepared("smallnorb", "2.0.0", 9, START, "test[:200]", "test[12150:]", _elevation),
}
"""The slices of the VTAB benchmark, by task."""

LICENCES = {"clevr": "CC BY 4.0", "dsprites": "Apache-2.0", "kitti": "CC BY-NC-SA 3.0", "patch_camelyon": "CC0"}
"""Licences by data set, where known."""


def list_prepared(tree: SourceFiles, task: str, prepared: Prepared) -> Listing:
    """List the three slices of a task. The key of an image is its TFDS split and its number there.

    Raises:
        ImportRefused: if the source does not have the data set in that version, or has it incomplete.
    """
    directory = _find_directory(tree, prepared)
    class_names = _read_class_names(tree, task, prepared, directory)

    records: list[SourceRecord] = []
    positions: list[RecordPosition] = []
    for part, text in (("train", prepared.train), ("val", prepared.val), ("test", prepared.test)):
        for key, position, example in _read_slice(tree, prepared, directory, text):
            label = check_label(prepared.label(example), class_names, f"{key} of {prepared.dataset}")
            records.append(SourceRecord(key, label, part, len(positions)))
            positions.append(position)

    def read(requested: Sequence[SourceRecord]) -> Iterator[bytes]:
        images = read_images(tree, [positions[int(record.place)] for record in requested])
        return (prepared.image(image, record.key) for record, image in zip(requested, images, strict=True))

    return Listing(records=records, class_names=class_names, read=read)


@dataclass(frozen=True, slots=True)
class _Directory:
    """What TFDS wrote for one version of a data set."""

    folder: str
    """Folder of its files, with its `/`."""
    dataset: str
    version: str
    shard_lengths: Mapping[str, list[int]]
    """Number of records in each shard, by split."""


def _find_directory(tree: SourceFiles, prepared: Prepared) -> _Directory:
    directories = [_read_info(tree, folder, prepared) for folder in _find_folders(tree, prepared.name)]
    present = [f"{directory.dataset}:{directory.version}" for directory in directories]

    # Another version has another order, and its slices would hold other images.
    needed = f"{prepared.dataset}:{prepared.version}"
    if present.count(needed) != 1:
        raise ImportRefused(
            f"{tree.path} must contain {needed} once, because the published split refers to the order of its records; "
            f"it contains {', '.join(present) or 'none'}. Prepare it with tfds.load({needed!r}), in an older "
            "tensorflow_datasets if yours does not have this version. If there are several, give the path of one."
        )

    return directories[present.index(needed)]


def _find_folders(tree: SourceFiles, name: str) -> list[str]:
    """Return the folders that contain a dataset_info.json and files of the data set."""
    folders = [info.removesuffix(INFO) for info in tree.find(INFO)]
    return [folder for folder in folders if any(file.startswith(f"{folder}{name}-") for file in tree.names)]


def _read_info(tree: SourceFiles, folder: str, prepared: Prepared) -> _Directory:
    name = f"{folder}{INFO}"
    try:
        info = json.loads(tree.read(name))
        splits = [split for split in info["splits"] if "shardLengths" in split]
        lengths = {split["name"]: [int(length) for length in split["shardLengths"]] for split in splits}

        # An older TFDS writes the config only into the path: name/config/version.
        parent = (tree.path.resolve() / folder).parent.name
        config = info.get("configName") or (parent if parent != prepared.name else "")

        dataset = f"{prepared.name}/{config}" if "/" in prepared.dataset else prepared.name
        return _Directory(folder, dataset, str(info["version"]), lengths)

    except (ValueError, KeyError, TypeError, AttributeError) as error:
        # ImportRefused is a ValueError.
        if isinstance(error, ImportRefused):
            raise
        raise ImportRefused(f"{tree.path}/{name} was not written by TFDS: {error!r}. Prepare it again.") from error


def _read_class_names(tree: SourceFiles, task: str, prepared: Prepared, directory: _Directory) -> list[str]:
    # Tasks whose labels we compute have classes that TFDS does not know.
    if task in CLASS_NAMES:
        return list(CLASS_NAMES[task])

    file = f"{directory.folder}{LABELS}"
    if file not in tree.names:
        return list(number_names(prepared.num_classes))

    names = tree.read(file).decode().splitlines()
    if len(names) != prepared.num_classes:
        raise ImportRefused(
            f"{tree.path}/{file} must name {counted(prepared.num_classes, 'class')}, got {len(names)}. Prepare it "
            "again."
        )
    return names


def _read_slice(
    tree: SourceFiles, prepared: Prepared, directory: _Directory, text: str
) -> Iterator[tuple[str, RecordPosition, Example]]:
    """Yield key, position and features of each record of a slice. Shards outside of the slice are not opened."""
    # The split and the bounds of the slice.
    match = re.fullmatch(r"(\w+)(?:\[(\d*):(\d*)\])?", text)
    assert match, f"{text} is not a slice"
    split = match[1]
    if split not in directory.shard_lengths:
        raise ImportRefused(
            f"{prepared.dataset} must have a split {split}; it has {', '.join(directory.shard_lengths)}. "
            "Prepare it again."
        )

    lengths = directory.shard_lengths[split]
    total = sum(lengths)
    start = int(match[2] or 0)
    stop = int(match[3] or total)
    if not start < stop <= total:
        raise ImportRefused(
            f"{prepared.dataset} must have the records {text}; its split {split} has {total}. Prepare it again."
        )

    # The shards that the slice touches, each with the number of its first record.
    firsts = itertools.accumulate([0, *lengths[:-1]])
    shards = zip(_find_shards(tree, prepared, directory, split), firsts, lengths, strict=True)
    touched = [(name, first, length) for name, first, length in shards if first < stop and first + length > start]

    # Their records.
    for (name, first, length), file in zip(touched, open_shards(tree, [name for name, *_ in touched]), strict=True):
        offsets = list(record_offsets(file, name))
        if len(offsets) != length:
            raise ImportRefused(
                f"{name} must have {counted(length, 'record')}, as {INFO} says; it has {len(offsets)}. Prepare it "
                "again."
            )

        for index in range(max(start, first), min(stop, first + length)):
            offset = offsets[index - first]
            yield f"{split}-{index:06d}", (name, offset), read_record(file, name, offset)


def _find_shards(tree: SourceFiles, prepared: Prepared, directory: _Directory, split: str) -> list[str]:
    prefix = f"{directory.folder}{prepared.name}-{split}."

    # A newer TFDS writes another format by default.
    formats = {name.removeprefix(prefix).partition("-")[0] for name in tree.names if name.startswith(prefix)}
    if formats and "tfrecord" not in formats:
        raise ImportRefused(
            f"{prefix}{formats.pop()}-... is not a TFRecord file. Prepare the data set with "
            f"tfds.builder('{prepared.dataset}:{prepared.version}').download_and_prepare(file_format='tfrecord')."
        )

    return shard_names(tree, f"{prefix}tfrecord", len(directory.shard_lengths[split]))


def _source(name: str, tasks: tuple[str, ...]) -> Source:
    first = PREPARED[tasks[0]]
    return Source(
        form="tfds",
        tasks=tasks,
        recognise=lambda tree: bool(_find_folders(tree, name)),
        listing=lambda tree, task: list_prepared(tree, task, PREPARED[task]),
        where=f"tfds.load('{first.dataset}:{first.version}') of the package tensorflow_datasets",
        licence=LICENCES.get(name),
    )


SOURCES: tuple[Source, ...] = tuple(
    _source(name, tuple(task for task, prepared in PREPARED.items() if prepared.name == name))
    for name in dict.fromkeys(prepared.name for prepared in PREPARED.values())
)
"""The prepared data sets, one source each."""
