"""Tests of TFRecord files, and of the 19 VTAB tasks from data sets that TFDS prepared."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import shutil
import tracemalloc
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.trainer.data.importers.tfrecord_writer import (
    Value,
    example,
    feature,
    field,
    framed,
    varint,
    write_prepared,
    write_shards,
)
from tests.trainer.data.importers.tfrecord_writer import crc32c as byte_by_byte
from trainer.catalog import TASKS, Task
from trainer.data.importers.archive import ImportRefused, SourceFiles
from trainer.data.importers.formats.crc32c import crc32c
from trainer.data.importers.formats.tfrecord import parse_example, read_record, record_offsets
from trainer.data.importers.source import Listing, split_records
from trainer.data.importers.sources.tfds import PREPARED, SOURCES, Prepared, list_prepared

PUBLISHED = """
cifar100 cifar100:3.0.2 100 train[:800] train[45000:45200] test 10000
caltech101 caltech101:3.0.1 102 train[:800] train[2754:2954] test 6084
dtd dtd:3.0.1 47 train[:800] validation[:200] test 1880
oxford_flowers102 oxford_flowers102:2.1.1 102 train[:800] validation[:200] test 6149
oxford_iiit_pet oxford_iiit_pet:3.2.0 37 train[:800] train[2944:3144] test 3669
svhn svhn_cropped:3.0.0 10 train[:800] train[65931:66131] test 26032
sun397 sun397/tfds:4.0.0 397 train[:800] validation[:200] test 21750
patch_camelyon patch_camelyon:2.0.0 2 train[:800] validation[:200] test 32768
eurosat eurosat/rgb:2.0.0 10 train[:800] train[16200:16400] train[21600:] 5400
resisc45 resisc45:3.0.0 45 train[:800] train[18900:19100] train[25200:] 6300
diabetic_retinopathy diabetic_retinopathy_detection/btgraham-300:3.0.0 5 train[:800] validation[:200] test 42670
clevr_count clevr:3.1.0 8 train[:800] train[63000:63200] validation 15000
clevr_dist clevr:3.1.0 6 train[:800] train[63000:63200] validation 15000
dmlab dmlab:2.0.1 6 train[:800] validation[:200] test 22735
kitti kitti:3.2.0 4 train[:800] validation[:200] test 711
dsprites_loc dsprites:2.0.0 16 train[:800] train[589824:590024] train[663552:] 73728
dsprites_ori dsprites:2.0.0 16 train[:800] train[589824:590024] train[663552:] 73728
smallnorb_azi smallnorb:2.0.0 18 train[:800] test[:200] test[12150:] 12150
smallnorb_ele smallnorb:2.0.0 9 train[:800] test[:200] test[12150:] 12150
"""
"""Task, TFDS name and version, number of classes, the three slices, and the number of test images."""

SIZES = {
    "cifar100": {"train": 50_000, "test": 10_000},
    "caltech101": {"train": 3_059, "test": 6_084},
    "dtd": {"train": 1_880, "validation": 1_880, "test": 1_880},
    "oxford_flowers102": {"train": 1_020, "validation": 1_020, "test": 6_149},
    "oxford_iiit_pet": {"train": 3_680, "test": 3_669},
    "svhn_cropped": {"train": 73_257, "test": 26_032, "extra": 200},
    "sun397": {"train": 76_128, "validation": 10_875, "test": 21_750},
    "patch_camelyon": {"train": 262_144, "validation": 32_768, "test": 32_768},
    "eurosat": {"train": 27_000},
    "resisc45": {"train": 31_500},
    "diabetic_retinopathy_detection": {"sample": 100, "train": 35_126, "validation": 10_906, "test": 42_670},
    "clevr": {"train": 70_000, "validation": 15_000, "test": 15_000},
    "dmlab": {"train": 65_550, "validation": 22_628, "test": 22_735},
    "kitti": {"train": 6_347, "validation": 423, "test": 711},
    "dsprites": {"train": 737_280},
    "smallnorb": {"train": 24_300, "test": 24_300},
}
"""Number of records of each split."""

# Third pixel coordinates, and the labels of the two tasks.
CLEVR_SCENES = [
    ((10.5, 7.9, 12.0), 0, 0),
    ((9.2, 8.0, 9.9, 11.0), 1, 0),
    ((8.25, 9.0, 9.0, 9.0, 9.0), 2, 1),
    ((8.5, 8.75, 9.0, 9.25, 9.5, 9.75), 3, 1),
    ((8.75,) * 7, 4, 2),
    ((9.25,) * 8, 5, 3),
    ((9.75,) * 9, 6, 4),
    ((10.25,) * 10, 7, 5),
]
# Types (0 Car, 1 Van, 2 Truck, 3 Pedestrian, 6 Tram), distances and the label.
KITTI_SCENES = [
    ((0, 3), (7.5, 1.0), 0),
    ((1, 2), (30.0, 8.5), 1),
    ((2, 6, 3), (20.5, 2.0, 3.0), 2),
    ((3, 6), (5.0, 6.0), 3),
    ((), (), 3),
]


def sprite(index: int) -> bytes:
    """Return a PNG of zeros and ones, as in dSprites, different for each index."""
    buffer = io.BytesIO()
    pixels = np.array([index >> bit & 1 for bit in range(16)], np.uint8).reshape(4, 4)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def record(name: str, split: str, index: int) -> dict[str, Value]:
    """Return the features of a record as TFDS writes them, as far as the tasks need them."""
    image = f"image {index} of {split}".encode()
    if name == "clevr":
        distances, _, _ = CLEVR_SCENES[index % len(CLEVR_SCENES)]
        coordinates = [number for distance in distances for number in (1.0, 2.0, distance)]
        objects: dict[str, Value] = {"objects/size": [0] * len(distances), "objects/pixel_coords": coordinates}
        return {"image": image, "file_name": b"CLEVR.png", "question_answer/question": b"?"} | objects
    if name == "kitti":
        types, distances, _ = KITTI_SCENES[index % len(KITTI_SCENES)]
        locations = [number for distance in distances for number in (-1.5, 0.5, distance)]
        return {"image": image, "image/file_name": b"1.png", "objects/type": types, "objects/location": locations}
    if name == "dsprites":
        labels: dict[str, Value] = {"label_x_position": [index % 32], "label_orientation": [index % 40]}
        return {"image": sprite(index), "value_x_position": [0.5]} | labels
    if name == "smallnorb":
        angles: dict[str, Value] = {"label_azimuth": [index % 18], "label_elevation": [index % 9]}
        return {"image": image, "image2": b"the other camera", "label_category": [4]} | angles
    return {"image": image, "label": [index % prepared_of(name).num_classes]}


def prepared_of(name: str) -> Prepared:
    return next(prepared for prepared in PREPARED.values() if prepared.name == name)


LABELS: Mapping[str, Callable[[int], int]] = {
    "vtab/clevr_count": lambda index: CLEVR_SCENES[index % 8][1],
    "vtab/clevr_dist": lambda index: CLEVR_SCENES[index % 8][2],
    "vtab/kitti": lambda index: KITTI_SCENES[index % 5][2],
    "vtab/dsprites_loc": lambda index: index % 32 // 2,
    "vtab/dsprites_ori": lambda index: (0, 0, 0, 1, 1)[index % 5] + 2 * (index % 40 // 5),
    "vtab/smallnorb_azi": lambda index: index % 18,
    "vtab/smallnorb_ele": lambda index: index % 9,
}


def task_of(task: str, prepared: Prepared, counts: tuple[int, int, int]) -> Task:
    train, val, test = counts
    return Task(name=task, group="any", num_classes=prepared.num_classes, num_train=train, num_val=val, num_test=test)


def scaled(prepared: Prepared) -> Prepared:
    """Return the same slices for a data set with a hundredth of the records."""

    def hundredth(text: str) -> str:
        return re.sub(r"\d+", lambda number: str(int(number[0]) // 100), text)

    train, val, test = map(hundredth, (prepared.train, prepared.val, prepared.test))
    return dataclasses.replace(prepared, train=train, val=val, test=test)


def write_scaled(root: Path, prepared: Prepared, version: str | None = None) -> Path:
    """Write a hundredth of the records of a data set, in shards of 40."""
    splits = {}
    for split, size in SIZES[prepared.name].items():
        records = [framed(example(record(prepared.name, split, index))) for index in range(size // 100)]
        splits[split] = [records[start : start + 40] for start in range(0, len(records), 40)]
    return write_prepared(root, prepared.dataset, version or prepared.version, splits)


def indices(text: str, size: int) -> tuple[str, range]:
    """Return the split of a slice, and the numbers of its records."""
    split, _, bounds = text.rstrip("]").partition("[")
    start, _, stop = bounds.partition(":")
    return split, range(size)[int(start or 0) : int(stop or size)]


def written(tmp_path: Path, task: str, root: str = "") -> tuple[Listing, Prepared]:
    """Write the scaled data set of a task; return its listing, from the root or from a folder below, and its slices."""
    prepared = scaled(PREPARED[task])
    folder = write_scaled(tmp_path, prepared)
    return list_prepared(SourceFiles(folder if root == "version" else tmp_path / root), task, prepared), prepared


def test_the_slices_are_the_published_ones() -> None:
    assert len(PREPARED) == 19
    for line in PUBLISHED.split("\n")[1:-1]:
        task, dataset, num_classes, train, val, test, size = line.split()
        row = PREPARED[f"vtab/{task}"]
        assert (f"{row.dataset}:{row.version}", str(row.num_classes)) == (dataset, num_classes)
        assert (row.train, row.val, row.test) == (train, val, test)
        split, taken = indices(test, SIZES[row.name][test.partition("[")[0]])
        assert (TASKS[f"vtab/{task}"].num_classes, TASKS[f"vtab/{task}"].num_test) == (row.num_classes, int(size))
        # The number of test images follows from the slice and the split.
        assert (split in SIZES[row.name], len(taken)) == (True, int(size))


def test_each_task_has_one_source_and_each_source_knows_where_to_get_it() -> None:
    tasks = [task for source in SOURCES for task in source.tasks]
    assert sorted(tasks) == sorted(PREPARED) and {source.form for source in SOURCES} == {"tfds"}
    assert all("tfds.load('" in source.where for source in SOURCES)


@pytest.mark.parametrize("task", PREPARED)
def test_every_task_has_its_slices_with_their_labels_and_images(task: str, tmp_path: Path) -> None:
    listing, prepared = written(tmp_path, task)
    label_of = LABELS.get(task, lambda index: index % prepared.num_classes)
    expected = {}
    for part, text in (("train", prepared.train), ("val", prepared.val), ("test", prepared.test)):
        split, taken = indices(text, SIZES[prepared.name][text.partition("[")[0]] // 100)
        expected[part] = [(f"{split}-{index:06d}", split, index) for index in taken]
    counts = len(expected["train"]), len(expected["val"]), len(expected["test"])
    splits, protocol = split_records(listing, task_of(task, prepared, counts))
    assert protocol == "published" and len(listing.class_names) == prepared.num_classes
    for part, wanted in expected.items():
        # The slice's records and no others, in the order of the shards.
        assert [listed.key for listed in splits[part]] == [key for key, _, _ in wanted]
        assert [listed.label for listed in splits[part]] == [label_of(index) for _, _, index in wanted]
        images = list(listing.read(splits[part]))
        if prepared.name == "dsprites":
            # Zeros and ones are stored black and white.
            read_pixels = [np.asarray(Image.open(io.BytesIO(image))) for image in images]
            stored = [np.asarray(Image.open(io.BytesIO(sprite(index)))) for _, _, index in wanted]
            assert all((a == 255 * b).all() for a, b in zip(read_pixels, stored, strict=True))
        else:
            # The bytes are those of the record.
            assert images == [f"image {index} of {split}".encode() for _, split, index in wanted]
    recognised = [source.tasks for source in SOURCES if source.recognise(SourceFiles(tmp_path))]
    assert len(recognised) == 1 and task in recognised[0]


SMALL = ("vtab/dtd", "vtab/kitti", "vtab/smallnorb_azi")


@pytest.mark.parametrize(
    "task", [task if task in SMALL else pytest.param(task, marks=pytest.mark.slow) for task in PREPARED]
)
def test_every_task_has_its_published_sizes_in_a_data_set_of_its_real_size(task: str, tmp_path: Path) -> None:
    prepared = PREPARED[task]
    splits = {}
    for split, size in SIZES[prepared.name].items():
        # The same record every time: only the count is real.
        records = [framed(example(record(prepared.name, split, 7)))] * size
        splits[split] = [records[start : start + 20_000] for start in range(0, size, 20_000)]
    write_prepared(tmp_path, prepared.dataset, prepared.version, splits)
    listing = list_prepared(SourceFiles(tmp_path), task, prepared)
    published = next(line for line in PUBLISHED.split("\n") if f"vtab/{line.partition(' ')[0]}" == task)
    counts = 800, 200, int(published.split()[-1])
    divided, _ = split_records(listing, task_of(task, prepared, counts))
    assert tuple(len(divided[split]) for split in ("train", "val", "test")) == counts
    assert sum(1 for _ in listing.read(divided["val"])) == 200


@pytest.mark.parametrize("root", ["", "sun397", "sun397/tfds", "version"])
def test_a_data_set_is_found_from_the_root_and_from_each_folder_below(root: str, tmp_path: Path) -> None:
    listing, _ = written(tmp_path, "vtab/sun397", root)
    assert len(listing.records) == 8 + 2 + 217


def test_a_zip_of_a_data_set_is_read_as_the_folder_is(tmp_path: Path) -> None:
    listing, prepared = written(tmp_path, "vtab/eurosat")
    packed = tmp_path / "packed.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        for file in sorted((tmp_path / "eurosat").rglob("*")):
            archive.write(file, file.relative_to(tmp_path))
    unpacked = list(listing.read(listing.records))
    zipped = list_prepared(SourceFiles(packed), "vtab/eurosat", prepared)
    assert (zipped.records, list(zipped.read(zipped.records))) == (listing.records, unpacked)


def test_images_come_in_the_order_asked_for(tmp_path: Path) -> None:
    listing, _ = written(tmp_path, "vtab/eurosat")
    backwards = listing.records[::-1]
    assert list(listing.read(backwards)) == list(listing.read(listing.records))[::-1]


def test_an_older_tfds_names_the_config_in_the_path_only(tmp_path: Path) -> None:
    prepared = dataclasses.replace(PREPARED["vtab/eurosat"], train="train[:1]", val="train[1:2]", test="train[2:]")
    records = [framed(example(record("eurosat", "train", index))) for index in range(4)]
    folder = write_prepared(tmp_path, "eurosat/rgb", "2.0.0", {"train": [records]}, older=True)
    for path in (tmp_path, folder.parent, folder):
        assert len(list_prepared(SourceFiles(path), "vtab/eurosat", prepared).records) == 4
    folder.parent.rename(folder.parent.with_name("all"))
    with pytest.raises(ImportRefused) as refused:
        list_prepared(SourceFiles(tmp_path), "vtab/eurosat", prepared)
    # The error names the config that is there and the one that is needed.
    assert "eurosat/rgb:2.0.0" in str(refused.value) and "eurosat/all:2.0.0" in str(refused.value)


def test_a_newer_tfds_names_the_config_in_its_record_and_folders_may_have_other_names(tmp_path: Path) -> None:
    prepared = scaled(PREPARED["vtab/eurosat"])
    write_scaled(tmp_path, prepared).parent.rename(tmp_path / "my_copy")
    assert len(list_prepared(SourceFiles(tmp_path / "my_copy"), "vtab/eurosat", prepared).records) == 8 + 2 + 54


def test_another_version_is_refused_with_both_named(tmp_path: Path) -> None:
    write_scaled(tmp_path, PREPARED["vtab/kitti"], version="3.3.0")
    source = next(source for source in SOURCES if "vtab/kitti" in source.tasks)
    with pytest.raises(ImportRefused) as refused:
        source.listing(SourceFiles(tmp_path), "vtab/kitti")
    assert "must contain kitti:3.2.0 once" in str(refused.value) and "it contains kitti:3.3.0" in str(refused.value)
    assert "tfds.load('kitti:3.2.0')" in str(refused.value)


def test_the_right_version_is_taken_of_several(tmp_path: Path) -> None:
    prepared = scaled(PREPARED["vtab/kitti"])
    write_scaled(tmp_path, prepared, version="3.3.0")
    write_scaled(tmp_path, prepared)
    assert len(list_prepared(SourceFiles(tmp_path), "vtab/kitti", prepared).records) == 8 + 2 + 7


def test_class_names_are_those_that_tfds_wrote_else_numbers(tmp_path: Path) -> None:
    listing, prepared = written(tmp_path, "vtab/eurosat")
    assert listing.class_names == ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]
    names = tmp_path / "eurosat/rgb/2.0.0/label.labels.txt"
    names.write_text("".join(f"land {index}\n" for index in range(10)))
    assert list_prepared(SourceFiles(tmp_path), "vtab/eurosat", prepared).class_names[3] == "land 3"
    names.write_text("land\n")
    with pytest.raises(ImportRefused, match=r"label\.labels\.txt must name 10 classes, got 1\."):
        list_prepared(SourceFiles(tmp_path), "vtab/eurosat", prepared)


def four(tmp_path: Path, change: Callable[[int, dict[str, Value]], None] = lambda *_: None) -> tuple[Path, Prepared]:
    """Write a data set of four records in two shards, each changed before it is written."""
    prepared = Prepared("four", "1.0.0", 3, "train[:1]", "train[1:2]", "train[3:]")
    records = []
    for index in range(4):
        features: dict[str, Value] = {"image": b"image %d" % index, "label": [index % 3]}
        change(index, features)
        records.append(framed(example(features)))
    return write_prepared(tmp_path, "four", "1.0.0", {"train": [records[:2], records[2:]]}), prepared


def refusal(folder: Path, prepared: Prepared) -> str:
    with pytest.raises(ImportRefused) as refused:
        list_prepared(SourceFiles(folder), "vtab/four", prepared)
    return str(refused.value)


def test_records_outside_the_slices_are_not_read(tmp_path: Path) -> None:
    def change(index: int, features: dict[str, Value]) -> None:
        # The third record is in no slice, and has no label.
        if index == 2:
            del features["label"]

    folder, prepared = four(tmp_path, change)
    assert [listed.key for listed in list_prepared(SourceFiles(folder), "vtab/four", prepared).records] == [
        "train-000000",
        "train-000001",
        "train-000003",
    ]
    # A shard without any of these records is not opened.
    (folder / "four-train.tfrecord-00001-of-00002").write_bytes(b"")
    first = dataclasses.replace(prepared, test="train[1:2]", val="train[:1]")
    assert len(list_prepared(SourceFiles(folder), "vtab/four", first).records) == 3


def test_a_label_out_of_range_is_refused_with_its_image(tmp_path: Path) -> None:
    def change(index: int, features: dict[str, Value]) -> None:
        features["label"] = [3 if index == 3 else -1 if index == 2 else 0]

    folder, prepared = four(tmp_path, change)
    assert "train-000003 of four: the label must be in 0..2, got 3;" in refusal(folder, prepared)
    text = refusal(folder, dataclasses.replace(prepared, test="train[2:]"))
    assert "train-000002 of four: the label must be in 0..2, got -1;" in text


def test_a_slice_beyond_the_split_is_refused(tmp_path: Path) -> None:
    folder, prepared = four(tmp_path)
    text = refusal(folder, dataclasses.replace(prepared, test="train[3:5]"))
    assert text == "four must have the records train[3:5]; its split train has 4. Prepare it again."
    text = refusal(folder, dataclasses.replace(prepared, test="test"))
    assert text == "four must have a split test; it has train. Prepare it again."


def test_a_directory_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    folder, prepared = four(tmp_path)
    shard = folder / "four-train.tfrecord-00001-of-00002"
    data = shard.read_bytes()
    # Cut between two records: only the number of records shows it.
    shard.write_bytes(data[: len(data) // 2])
    assert "00001-of-00002 must have 2 records, as dataset_info.json says; it has 1." in refusal(folder, prepared)
    # Cut within a record: the error says where the record starts.
    shard.write_bytes(data[:-1])
    assert f"00001-of-00002 is truncated: it ends within the record at byte {len(data) // 2}." in refusal(
        folder, prepared
    )
    shard.unlink()
    text = refusal(folder, prepared)
    assert "must contain all 2 shards of four-train.tfrecord; missing shards: 1, the first is " in text
    assert "the first is four-train.tfrecord-00001-of-00002." in text
    (folder / "dataset_info.json").write_text('{"version": "1.0.0"}')
    assert "dataset_info.json was not written by TFDS: KeyError('splits')" in refusal(folder, prepared)
    (folder / "dataset_info.json").write_text('{"version": ')
    assert "dataset_info.json was not written by TFDS: JSONDecodeError" in refusal(folder, prepared)


def test_another_file_format_is_refused_with_the_way_to_this_one(tmp_path: Path) -> None:
    folder, prepared = four(tmp_path)
    for shard in folder.glob("*.tfrecord-*"):
        shard.rename(folder / shard.name.replace("tfrecord", "array_record"))
    text = refusal(folder, prepared)
    assert "four-train.array_record-... is not a TFRecord file." in text
    assert "tfds.builder('four:1.0.0').download_and_prepare(file_format='tfrecord')" in text


def test_a_data_set_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    folder, prepared = four(tmp_path / "a")
    shutil.copytree(folder, tmp_path / "b")
    assert "it contains four:1.0.0, four:1.0.0." in refusal(tmp_path, prepared)


def test_a_kitti_record_without_all_coordinates_is_refused(tmp_path: Path) -> None:
    prepared = dataclasses.replace(PREPARED["vtab/kitti"], train="train[:1]")
    features: dict[str, Value] = {"image": b"", "objects/type": [0, 0], "objects/location": [1.0, 2.0, 3.0]}
    write_prepared(tmp_path, "kitti", "3.2.0", {"train": [[framed(example(features))]]})
    with pytest.raises(ImportRefused, match="byte 0 must have 3 coordinates of 2 objects, got 3"):
        list_prepared(SourceFiles(tmp_path), "vtab/kitti", prepared)


def test_a_sprite_that_is_no_picture_of_zeros_and_ones_is_refused(tmp_path: Path) -> None:
    prepared = dataclasses.replace(PREPARED["vtab/dsprites_loc"], train="train[:1]", val="train[1:2]", test="train[:2]")
    buffer = io.BytesIO()
    Image.new("L", (4, 4), 255).save(buffer, "PNG")
    records = [
        framed(example({"image": image, "label_x_position": [0], "label_orientation": [0]}))
        for image in (b"no picture", buffer.getvalue())
    ]
    write_prepared(tmp_path, "dsprites", "2.0.0", {"train": [records]})
    listing = list_prepared(SourceFiles(tmp_path), "vtab/dsprites_loc", prepared)
    with pytest.raises(ImportRefused, match="train-000000 of dsprites is not an image"):
        list(listing.read(listing.records[:1]))
    with pytest.raises(ImportRefused, match="train-000001 of dsprites must have pixels of 0 and 1, got 255"):
        list(listing.read(listing.records[1:2]))


def test_images_are_never_all_in_memory(tmp_path: Path) -> None:
    size, count = 200_000, 60
    folder, prepared = four(tmp_path)
    records = [framed(example({"image": bytes(size), "label": [0]}))] * count
    write_shards(folder / "four-train.tfrecord", [records])
    (folder / "four-train.tfrecord-00001-of-00002").unlink()
    info = {"version": "1.0.0", "splits": [{"name": "train", "shardLengths": [count]}]}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    tree = SourceFiles(folder)
    # The tables of the checksum stay in memory.
    crc32c(bytes(size))
    tracemalloc.start()
    listing = list_prepared(tree, "vtab/four", prepared)
    assert len(listing.records) == 2 + count - 3
    for image in listing.read(listing.records):
        assert len(image) == size
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # A few copies of one image, not the 12 MB of all.
    assert peak < 12 * size


@pytest.mark.parametrize(
    ("data", "crc"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ],
)
def test_the_checksum_is_the_published_one(data: bytes, crc: int) -> None:
    # The examples of RFC 3720, B.4.
    assert crc32c(data) == byte_by_byte(data) == crc


@pytest.mark.parametrize("size", [1, 7, 8, 1023, 1024, 1025, 1039, 1040, 1041, 2048, 5000, 16 * 77 + 3, 40_001])
def test_the_checksum_of_many_bytes_is_that_of_byte_by_byte(size: int) -> None:
    data = np.random.default_rng(size).bytes(size)
    assert crc32c(data) == byte_by_byte(data)


def records_of(data: bytes) -> list[bytes]:
    file = io.BytesIO(data)
    offsets = record_offsets(file, "some.tfrecord")
    return [read_record(file, "some.tfrecord", offset).one_bytes("image") for offset in offsets]


def test_a_file_cut_within_a_record_is_refused_with_its_name_and_offset() -> None:
    records = [framed(example({"image": b"a" * 30})), framed(example({"image": b"b" * 40}))]
    data = b"".join(records)
    border = len(records[0])
    assert records_of(data) == [b"a" * 30, b"b" * 40]
    for size in range(len(data)):
        if size in {0, border}:
            assert len(records_of(data[:size])) == size // border
            continue
        start = 0 if size < border else border
        text = f"some.tfrecord is truncated: it ends within the record at byte {start}."
        with pytest.raises(ImportRefused, match=re.escape(text)):
            # Records outside the slices are not read, so only their offsets show it.
            list(record_offsets(io.BytesIO(data[:size]), "some.tfrecord"))
        with pytest.raises(ImportRefused, match=re.escape(text)):
            read_record(io.BytesIO(data[:size]), "some.tfrecord", start)


def test_a_byte_changed_anywhere_is_refused() -> None:
    data = framed(example({"image": b"a" * 30}))
    for position in range(len(data)):
        damaged = data[:position] + bytes([data[position] ^ 4]) + data[position + 1 :]
        with pytest.raises(ImportRefused, match=r"some\.tfrecord is damaged"):
            records_of(damaged)


def test_a_file_that_is_no_tfrecord_is_refused() -> None:
    with pytest.raises(ImportRefused, match="is damaged or is not a TFRecord file: the length at byte 0"):
        records_of(b"a text that is longer than a head")


@pytest.mark.parametrize("packed", [True, False])
def test_lists_are_read_packed_and_one_by_one(packed: bool) -> None:
    ints = [0, 1, 127, 128, 300, 2**31, 2**63 - 1, -1, -(2**63)]
    data = example({"ints": ints, "floats": [0.5, -2.0, 3.25], "bytes": b"\x00\xff", "none": []}, packed)
    parsed = parse_example(data, "here")
    assert (parsed.ints("ints"), parsed.floats("floats")) == (ints, [0.5, -2.0, 3.25])
    assert (parsed.one_bytes("bytes"), parsed.ints("none"), parsed.floats("none")) == (b"\x00\xff", [], [])


def test_fields_that_no_task_needs_are_skipped() -> None:
    unknown = varint(9 << 3) + varint(5) + varint(9 << 3 | 1) + bytes(8) + varint(9 << 3 | 5) + bytes(4)
    entry = field(1, b"label") + field(2, feature([3]) + unknown) + unknown
    # A feature without a list has no values of any kind.
    empty = field(1, b"empty") + field(2, b"")
    parsed = parse_example(field(1, field(1, entry) + unknown + field(1, empty)) + unknown, "here")
    assert (parsed.one_int("label"), parsed.floats("empty")) == (3, [])


def test_a_feature_that_is_not_as_needed_is_refused() -> None:
    parsed = parse_example(example({"label": [1, 2], "image": b"", "empty": []}), "x.tfrecord at byte 9")
    with pytest.raises(
        ImportRefused, match=r"x\.tfrecord at byte 9 must have the feature 'size'; it has empty, image, label\."
    ):
        parsed.ints("size")
    with pytest.raises(ImportRefused, match=r"must have one value of the feature 'label', got 2\."):
        parsed.one_int("label")
    with pytest.raises(ImportRefused, match=r"must have one value of the feature 'empty', got 0\."):
        parsed.one_int("empty")
    with pytest.raises(ImportRefused, match="'image' must be int64s, got bytes"):
        parsed.ints("image")


@pytest.mark.parametrize(
    "data",
    [b"\x0a\x05ab", b"\x0b", b"\x80", b"\xff" * 11, field(1, field(1, field(1, b"\xff\xfe") + field(2, b"")))],
)
def test_data_that_is_no_example_is_refused(data: bytes) -> None:
    with pytest.raises(ImportRefused, match=r"here is not a tf\.train\.Example"):
        parse_example(data, "here")
