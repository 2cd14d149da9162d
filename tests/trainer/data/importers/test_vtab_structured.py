"""Tests of VTAB's structured tasks from the files of their makers, and of the rules of their labels."""

from __future__ import annotations

import gzip
import io
import json
import struct
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.trainer.data.importers.tfrecord_writer import Value, example, framed, write_prepared, write_shards
from trainer.catalog import Task
from trainer.data.importers.archive import ImportRefused, SourceFiles
from trainer.data.importers.source import Listing, encode_png, split_records
from trainer.data.importers.sources.tfds import PREPARED
from trainer.data.importers.sources.vtab_arrays import SOURCES as ARRAYS
from trainer.data.importers.sources.vtab_labels import (
    CLASS_NAMES,
    clevr_count_label,
    clevr_distance_label,
    dsprites_label,
    kitti_label,
    smallnorb_azimuth_label,
)
from trainer.data.importers.sources.vtab_structured import SOURCES as STRUCTURED

SOURCES = {task: source for source in STRUCTURED + ARRAYS for task in source.tasks}
SPRITES = "dsprites_ndarray_co1sh3sc6or40x32y32_64x64"
NORB = {"train": "smallnorb-5x46789x9x18x6x2x96x96-training", "test": "smallnorb-5x01235x9x18x6x2x96x96-testing"}


def listed(path: Path, task: str) -> Listing:
    """Return the listing of a task's source, which alone must recognise the path."""
    tree = SourceFiles(path)
    assert [source for source in dict.fromkeys(SOURCES.values()) if source.recognise(tree)] == [SOURCES[task]]
    return SOURCES[task].listing(tree, task)


def refusal(path: Path, task: str) -> str:
    with pytest.raises(ImportRefused) as refused:
        listed(path, task)
    return str(refused.value)


def parts_of(listing: Listing, counts: tuple[int, int, int]) -> dict[str, list[tuple[str, str]]]:
    """Return the part and the key of each split's images, after drawing the splits."""
    train, val, test = counts
    row = Task(name="any", group="any", num_classes=2, num_train=train, num_val=val, num_test=test)
    splits, protocol = split_records(listing, row)
    assert protocol == "resampled with seed 0"
    drawn = {split: [(record.part, record.key) for record in records] for split, records in splits.items()}
    # No image is in two splits.
    keys = [key for records in drawn.values() for _, key in records]
    assert len(keys) == len(set(keys)) and tuple(map(len, drawn.values())) == counts
    return drawn


def labels(listing: Listing) -> list[int]:
    return [record.label for record in listing.records]


def test_the_structured_tasks_have_a_source_each_and_as_many_classes_as_at_tfds() -> None:
    assert sorted(SOURCES) == sorted(CLASS_NAMES)
    for task, source in SOURCES.items():
        assert len(CLASS_NAMES[task]) == PREPARED[task].num_classes == len(set(CLASS_NAMES[task]))
        assert source.form == "official" and source.where.startswith("https://")
    licences = {task: source.licence for task, source in SOURCES.items() if source.licence}
    assert licences == {
        "vtab/clevr_count": "CC BY 4.0",
        "vtab/clevr_dist": "CC BY 4.0",
        "vtab/dsprites_loc": "Apache-2.0",
        "vtab/dsprites_ori": "Apache-2.0",
        "vtab/kitti": "CC BY-NC-SA 3.0",
    }


# The rules.


def test_clevr_counts_from_three() -> None:
    assert [clevr_count_label(count) for count in (2, 3, 10, 11)] == [-1, 0, 7, 8]


@pytest.mark.parametrize(
    ("distances", "label"),
    [
        ((0.001,), 0),
        ((12.0, 7.99, 9.0), 0),
        ((8.0,), 0),  # not below itself
        ((8.001,), 1),
        ((8.5,), 1),
        ((8.50000001,), 1),  # 8.5 as float32
        ((8.6, 11.0), 2),
        ((9.1,), 3),
        ((9.6,), 4),
        ((10.0,), 4),
        ((10.1, 99.0), 5),
        ((100.1,), 6),  # no class
        ((0.0,), -1),
        ((), -1),
    ],
)
def test_clevr_distance_is_the_last_threshold_below_the_nearest(distances: tuple[float, ...], label: int) -> None:
    assert clevr_distance_label(distances) == label


@pytest.mark.parametrize(
    ("distances", "label"),
    [
        ((), 3),
        ((7.99, 30.0), 0),
        ((8.0,), 0),
        ((8.01,), 1),
        ((20.0,), 1),
        ((20.01, 50.0), 2),
        ((999.5,), 3),
        ((-1.2,), 0),
    ],
)
def test_kitti_is_the_nearest_vehicle_in_three_bins_or_none(distances: tuple[float, ...], label: int) -> None:
    assert kitti_label(distances) == label


def test_dsprites_has_two_positions_or_two_and_a_half_orientations_a_class() -> None:
    assert [dsprites_label(x, 32) for x in (0, 1, 2, 3, 30, 31)] == [0, 0, 1, 1, 15, 15]
    assert [dsprites_label(o, 40) for o in (0, 2, 3, 4, 5, 7, 8, 37, 38, 39)] == [0, 0, 1, 1, 2, 2, 3, 14, 15, 15]
    # Every class has its share of the values, and there is no other class.
    counts = np.bincount([dsprites_label(o, 40) for o in range(40)])
    assert counts.tolist() == [3, 2] * 8


def test_smallnorb_azimuth_is_half_the_annotated() -> None:
    assert [smallnorb_azimuth_label(value) for value in (0, 2, 34, 36, 3)] == [0, 1, 17, 18, -1]


# DMLab.


def frame(part: str, index: int, label: int) -> bytes:
    features: dict[str, Value] = {"image": f"jpeg {index} of {part}".encode(), "label": [label], "filename": b"f"}
    return framed(example(features))


def write_dmlab(folder: Path) -> None:
    for split, sizes in {"train": (2, 3), "validation": (2,), "test": (1, 2)}.items():
        first, shards = 0, []
        for size in sizes:
            shards.append([frame(split, index, index + 1) for index in range(first, first + size)])
            first += size
        write_shards(folder / f"dmlab-{split}.tfrecord", shards)


def test_dmlab_has_its_makers_parts(tmp_path: Path) -> None:
    write_dmlab(tmp_path / "dmlab")
    listing = listed(tmp_path, "vtab/dmlab")
    # The number of a record in its split, plus one.
    assert labels(listing) == [1, 2, 3, 4, 5, 1, 2, 1, 2, 3] and len(listing.class_names) == 6
    drawn = parts_of(listing, (4, 1, 3))
    assert {split: {part for part, _ in drawn[split]} for split in drawn} == {s: {s} for s in ("train", "val", "test")}
    images = list(listing.read(listing.records))
    assert images[:2] == [b"jpeg 0 of train", b"jpeg 1 of train"] and images[-1] == b"jpeg 2 of test"
    assert list(listing.read(listing.records[::-1])) == images[::-1]


def test_dmlab_is_read_from_its_archive(tmp_path: Path) -> None:
    write_dmlab(tmp_path / "dmlab")
    with tarfile.open(tmp_path / "dmlab.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "dmlab", "dmlab")
    unpacked, packed = listed(tmp_path / "dmlab", "vtab/dmlab"), listed(tmp_path / "dmlab.tar.gz", "vtab/dmlab")
    assert list(packed.read(packed.records)) == list(unpacked.read(unpacked.records))
    assert [record.key for record in packed.records] == [record.key for record in unpacked.records]


def test_dmlab_is_refused_with_what_is_missing_or_wrong(tmp_path: Path) -> None:
    write_dmlab(tmp_path)
    shard = tmp_path / "dmlab-train.tfrecord-00001-of-00002"
    data = shard.read_bytes()
    shard.write_bytes(data[:-3])
    text = refusal(tmp_path, "vtab/dmlab")
    assert f"00001-of-00002 is truncated: it ends within the record at byte {len(data) * 2 // 3}." in text
    shard.write_bytes(frame("train", 0, 6))
    assert refusal(tmp_path, "vtab/dmlab").startswith("train-000002: the label must be in 0..5, got 6;")
    shard.unlink()
    text = refusal(tmp_path, "vtab/dmlab")
    assert "must contain all 2 shards of dmlab-train.tfrecord; missing shards: 1, the first is " in text
    assert "the first is dmlab-train.tfrecord-00001-of-00002." in text
    shard.write_bytes(data)
    (tmp_path / "dmlab-validation.tfrecord-00000-of-00001").unlink()
    assert "must contain dmlab-validation.tfrecord-00000-of-0000n; there is none." in refusal(tmp_path, "vtab/dmlab")


def test_dmlab_prepared_by_tfds_is_not_taken_for_the_official_files(tmp_path: Path) -> None:
    write_prepared(tmp_path, "dmlab", "2.0.1", {"train": [[frame("train", 0, 0)]]})
    assert not SOURCES["vtab/dmlab"].recognise(SourceFiles(tmp_path))
    write_dmlab(tmp_path / "raw")
    assert SOURCES["vtab/dmlab"].recognise(SourceFiles(tmp_path))


# CLEVR.


def scene(image: str, distances: Sequence[float]) -> dict[str, object]:
    """Return a scene as in CLEVR's files."""
    objects = [
        {"color": "red", "shape": "cube", "3d_coords": [1.0, 2.0, 0.7], "rotation": 9.5, "pixel_coords": [240, 160, d]}
        for d in distances
    ]
    return {"image_filename": image, "image_index": 0, "objects": objects, "relationships": {"left": [[1], [0]]}}


def write_clevr(folder: Path, scenes: dict[str, list[dict[str, object]]], unlabelled: tuple[str, ...] = ()) -> None:
    (folder / "scenes").mkdir(parents=True)
    names = list(unlabelled)
    for part, scenes_of_part in scenes.items():
        info = {"split": part, "license": "Creative Commons Attribution (CC BY 4.0)"}
        text = json.dumps({"info": info, "scenes": scenes_of_part})
        (folder / f"scenes/CLEVR_{part}_scenes.json").write_text(text)
        names += [f"images/{part}/{item['image_filename']}" for item in scenes_of_part]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(f"png {name}".encode())


CLEVR = {
    "train": [
        scene("CLEVR_train_000000.png", (11.5, 9.2, 10.0)),
        scene("CLEVR_train_000001.png", (7.0, 9.2, 10.0, 12.0)),
        scene("CLEVR_train_000002.png", (10.5,) * 10),
        scene("CLEVR_train_000003.png", (9.0, 8.75, 9.0)),
    ],
    "val": [scene("CLEVR_val_000000.png", (8.25,) * 5), scene("CLEVR_val_000001.png", (9.75,) * 9)],
}


@pytest.mark.parametrize(
    ("task", "expected"),
    [("vtab/clevr_count", [0, 1, 7, 0, 2, 6]), ("vtab/clevr_dist", [3, 0, 5, 2, 1, 4])],
)
@pytest.mark.parametrize("packed", [False, True])
def test_clevr_tests_on_its_val_part(task: str, expected: list[int], packed: bool, tmp_path: Path) -> None:
    folder = tmp_path / "CLEVR_v1.0"
    write_clevr(folder, CLEVR, unlabelled=("images/test/CLEVR_test_000000.png",))
    path = tmp_path
    if packed:
        path = tmp_path / "CLEVR_v1.0.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for file in sorted(folder.rglob("*")):
                archive.write(file, file.relative_to(tmp_path))
    listing = listed(path, task)
    assert labels(listing) == expected and listing.repairs == ()
    drawn = parts_of(listing, (2, 1, 2))
    # An image is named by its file; the test split is all of the part val.
    assert drawn["test"] == [("val", "CLEVR_val_000000.png"), ("val", "CLEVR_val_000001.png")]
    assert {part for part, _ in drawn["train"] + drawn["val"]} == {"train"}
    assert next(iter(listing.read(listing.records[4:]))).endswith(b"images/val/CLEVR_val_000000.png")


@pytest.mark.parametrize(
    ("distances", "task", "text"),
    [
        ((9.0,) * 2, "vtab/clevr_count", "broken.png: the label must be in 0..7, got -1;"),
        ((9.0,) * 11, "vtab/clevr_count", "broken.png: the label must be in 0..7, got 8;"),
        ((101.0,) * 3, "vtab/clevr_dist", "broken.png: the label must be in 0..5, got 6;"),
        ((-1.0,) * 3, "vtab/clevr_dist", "broken.png: the label must be in 0..5, got -1;"),
    ],
)
def test_a_scene_of_no_class_is_refused(distances: tuple[float, ...], task: str, text: str, tmp_path: Path) -> None:
    write_clevr(tmp_path, {"train": [scene("broken.png", distances)], "val": []})
    assert refusal(tmp_path, task).startswith(text)


def test_clevr_is_refused_with_what_is_missing(tmp_path: Path) -> None:
    write_clevr(tmp_path, CLEVR)
    (tmp_path / "images/train/CLEVR_train_000002.png").rename(tmp_path / "images/train/CLEVR_train_000009.png")
    text = refusal(tmp_path, "vtab/clevr_count")
    assert "does not contain images/train/CLEVR_train_000002.png, which scenes/CLEVR_train_scenes.json names." in text
    scenes = tmp_path / "scenes/CLEVR_train_scenes.json"
    for broken in (
        '{"scenes": [{"objects": []}]}',
        '{"scenes": [{"objects": ',
        "[]",
        '{"scenes": [{"image_filename": 1}]}',
    ):
        scenes.write_text(broken)
        assert "CLEVR_train_scenes.json is not a list of CLEVR's scenes: " in refusal(tmp_path, "vtab/clevr_count")
    scenes.write_text('{"scenes": [{"image_filename": "a.png", "objects": [{"pixel_coords": [1, 2]}]}]}')
    assert "is not a list of CLEVR's scenes: IndexError" in refusal(tmp_path, "vtab/clevr_count")
    (tmp_path / "scenes/CLEVR_val_scenes.json").unlink()
    scenes.write_text('{"scenes": []}')
    assert "must hold one file scenes/CLEVR_val_scenes.json; there is none." in refusal(tmp_path, "vtab/clevr_count")


def test_an_image_without_a_scene_is_left_out_and_named(tmp_path: Path) -> None:
    write_clevr(tmp_path, CLEVR, unlabelled=("images/train/more.png",))
    listing = listed(tmp_path, "vtab/clevr_count")
    assert len(listing.records) == 6
    assert listing.repairs == ("1 image without a scene left out: images/train/more.png",)


# KITTI.


def kitti_line(kind: str, distance: float) -> str:
    return f"{kind} 0.00 0 -1.58 587.01 173.33 614.12 200.12 1.65 1.67 3.64 -0.65 1.71 {distance:.2f} -1.59"


KITTI = {
    "000000": [kitti_line("Pedestrian", 8.41)],
    "000001": [kitti_line("Truck", 69.44), kitti_line("Car", 58.49), kitti_line("DontCare", -1000.0)],
    "000002": [kitti_line("Misc", 6.0), kitti_line("Car", 7.86)],
    "000003": [kitti_line("Van", 19.99), kitti_line("Cyclist", 2.0), ""],
    "000004": [],
    "000007": [kitti_line("Tram", 3.0), kitti_line("Person_sitting", 3.0), kitti_line("Truck", 8.01)],
}


def write_kitti(folder: Path, images: Sequence[str] = tuple(KITTI)) -> None:
    for part in ("training/label_2", "training/image_2", "testing/image_2"):
        (folder / part).mkdir(parents=True)
    for number, lines in KITTI.items():
        (folder / f"training/label_2/{number}.txt").write_text("\n".join(lines))
    for number in images:
        (folder / f"training/image_2/{number}.png").write_bytes(f"png {number}".encode())
        (folder / f"testing/image_2/{number}.png").write_bytes(b"another image")
    (folder / "testing/image_2/000099.png").write_bytes(b"another image")


def zip_kitti(folder: Path, target: Path) -> None:
    target.mkdir()
    for kind in ("label", "image"):
        with zipfile.ZipFile(target / f"data_object_{kind}_2.zip", "w") as archive:
            for file in sorted(folder.rglob(f"{kind}_2/*")):
                archive.write(file, file.relative_to(folder))


@pytest.mark.parametrize("form", ["unpacked", "training", "zips"])
def test_kitti_bins_the_nearest_vehicle(form: str, tmp_path: Path) -> None:
    write_kitti(tmp_path / "unpacked")
    zip_kitti(tmp_path / "unpacked", tmp_path / "zips")
    listing = listed(tmp_path / ("unpacked/training" if form == "training" else form), "vtab/kitti")
    # None, above 20 m, below 8 m, up to 20 m, none, up to 20 m.
    assert labels(listing) == [3, 2, 0, 1, 3, 1]
    assert [record.key for record in listing.records] == [f"{number}.png" for number in KITTI]
    assert list(listing.read(listing.records)) == [f"png {number}".encode() for number in KITTI]
    # Images of the test set have no labels, and are no omission.
    assert listing.repairs == ()
    drawn = parts_of(listing, (3, 1, 2))
    assert {part for records in drawn.values() for part, _ in records} == {"all"}


def test_kitti_is_refused_with_what_is_missing_or_wrong(tmp_path: Path) -> None:
    write_kitti(tmp_path / "a", images=("000000", "000009"))
    text = refusal(tmp_path / "a", "vtab/kitti")
    assert (
        "must contain an image for each label; missing images: 5, the first is that of training/label_2/000001.txt."
        in text
    )
    write_kitti(tmp_path / "b")
    (tmp_path / "b/training/label_2/000002.txt").write_text("Car 0.00 0")
    text = refusal(tmp_path / "b", "vtab/kitti")
    assert text.startswith("training/label_2/000002.txt must have 15 fields a line, got 'Car 0.00 0'.")
    (tmp_path / "b/training/label_2/000002.txt").write_text(kitti_line("Car", -200.0))
    assert refusal(tmp_path / "b", "vtab/kitti").startswith("000002.png: the label must be in 0..3, got -1;")


def test_an_image_without_a_label_is_left_out_and_named(tmp_path: Path) -> None:
    write_kitti(tmp_path, images=(*KITTI, "000005"))
    listing = listed(tmp_path, "vtab/kitti")
    assert len(listing.records) == 6
    assert listing.repairs == ("1 image without a label left out: training/image_2/000005.png",)


# dSprites.

# Color, shape, scale, orientation, x, y.
CLASSES = [
    (0, 2, 3, 31, 16, 14),
    (0, 1, 2, 22, 24, 28),
    (0, 0, 0, 1, 11, 19),
    (0, 1, 4, 15, 28, 6),
    (0, 0, 0, 39, 0, 31),
    (0, 0, 0, 0, 31, 0),
    (0, 2, 5, 5, 1, 3),
]
SPRITE_LABELS = {"vtab/dsprites_loc": [8, 12, 5, 14, 0, 15, 0], "vtab/dsprites_ori": [12, 8, 0, 6, 15, 0, 2]}
PIXELS = (np.random.default_rng(0).random((7, 64, 64)) < 0.3).astype(np.uint8)


def write_hdf5(path: Path, pixels: NDArray[np.uint8] = PIXELS, classes: object = CLASSES) -> Path:
    with h5py.File(path, "w") as file:
        # As in the published file, a row lies in many chunks, and a chunk holds several rows.
        file.create_dataset("imgs", data=pixels, chunks=(3, 2, 4), compression="gzip")
        file.create_dataset("latents/classes", data=np.array(classes))
        file.create_dataset("latents/values", data=np.zeros((7, 6)))
    return path


def write_npz(path: Path, pixels: NDArray[np.uint8] = PIXELS, classes: object = CLASSES) -> Path:
    metadata = np.array({"title": "dSprites"}, dtype=object)
    values = np.zeros((7, 6))
    np.savez_compressed(path, metadata=metadata, imgs=pixels, latents_classes=np.array(classes), latents_values=values)
    return path


WRITERS: dict[str, Callable[..., Path]] = {"hdf5": write_hdf5, "npz": write_npz}


@pytest.mark.parametrize("suffix", WRITERS)
@pytest.mark.parametrize("task", SPRITE_LABELS)
def test_dsprites_stores_zeros_and_ones_as_black_and_white(suffix: str, task: str, tmp_path: Path) -> None:
    WRITERS[suffix](tmp_path / f"{SPRITES}.{suffix}")
    listing = listed(tmp_path, task)
    assert labels(listing) == SPRITE_LABELS[task]
    drawn = parts_of(listing, (3, 1, 3))
    assert {part for records in drawn.values() for part, _ in records} == {"all"}
    # In any order, each row is its own image.
    for order in (range(7), (6, 0, 5, 1), (2,)):
        records = [listing.records[row] for row in order]
        for row, image in zip(order, listing.read(records), strict=True):
            decoded = Image.open(io.BytesIO(image))
            assert (decoded.mode, decoded.size) == ("L", (64, 64))
            assert (np.asarray(decoded) == 255 * PIXELS[row]).all()


def test_dsprites_is_the_same_from_each_of_its_files_and_from_tfds(tmp_path: Path) -> None:
    images = []
    for suffix, write in WRITERS.items():
        (tmp_path / suffix).mkdir()
        write(tmp_path / suffix / f"{SPRITES}.{suffix}")
        listing = listed(tmp_path / suffix, "vtab/dsprites_loc")
        images.append(list(listing.read(listing.records)))
    stored = [PREPARED["vtab/dsprites_loc"].image(encode_png(pixels), "train-000000") for pixels in PIXELS]
    assert images == [stored, stored]


@pytest.mark.parametrize("suffix", WRITERS)
def test_dsprites_is_refused_with_what_is_wrong(suffix: str, tmp_path: Path) -> None:
    name = f"{SPRITES}.{suffix}"
    path = tmp_path / name
    write = WRITERS[suffix]
    write(path, classes=[*CLASSES[:6], (0, 0, 0, 40, 32, 0)])
    for task in SPRITE_LABELS:
        assert refusal(tmp_path, task).startswith(f"row 6 of {name}: the label must be in 0..15, got 16;")
    write(path, pixels=PIXELS * np.uint8(200))
    listing = listed(tmp_path, "vtab/dsprites_loc")
    with pytest.raises(ImportRefused, match=f"row 0 of {name} must have pixels of 0 and 1, got 200"):
        list(listing.read(listing.records))
    write(path, classes=CLASSES[:6])
    assert f"{name} must have 6 attributes of each of 7 images, got (6, 6)." in refusal(tmp_path, "vtab/dsprites_loc")
    path.write_bytes(path.read_bytes()[:-200])
    assert f"{name} is damaged: " in refusal(tmp_path, "vtab/dsprites_loc")


def test_dsprites_images_cut_short_are_refused(tmp_path: Path) -> None:
    path = tmp_path / f"{SPRITES}.npz"
    write_npz(path)
    with np.load(path) as arrays:
        classes = arrays["latents_classes"]
    head = io.BytesIO()
    np.lib.format.write_array(head, PIXELS)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("imgs.npy", head.getvalue()[:-100])
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, classes)
        archive.writestr("latents_classes.npy", buffer.getvalue())
    listing = listed(tmp_path, "vtab/dsprites_loc")
    assert sum(1 for _ in listing.read(listing.records[:6])) == 6
    with pytest.raises(ImportRefused, match=f"{SPRITES}.npz is damaged: cannot reshape"):
        list(listing.read(listing.records))


# smallNORB.

# Instance, elevation, azimuth, lighting.
INFO = {
    "train": [(4, 0, 0, 0), (6, 8, 34, 5), (7, 3, 10, 2), (8, 4, 2, 1)],
    "test": [(0, 2, 12, 3), (1, 5, 20, 0), (2, 1, 32, 4), (3, 7, 18, 5), (5, 6, 6, 1)],
}
NORB_IMAGES = {part: np.random.default_rng(1).integers(0, 256, (len(INFO[part]), 2, 6, 5), np.uint8) for part in INFO}


def norb_matrix(values: NDArray[np.uint8] | NDArray[np.int32]) -> bytes:
    """Return a matrix in NORB's format: magic number, dimensions (three at least), and numbers."""
    magic = 0x1E3D4C55 if values.dtype == np.uint8 else 0x1E3D4C54
    shape = [*values.shape, *[1] * (3 - values.ndim)]
    return struct.pack(f"<II{len(shape)}i", magic, values.ndim, *shape) + values.tobytes()


def write_norb(folder: Path, packed: bool = False) -> None:
    for part, stem in NORB.items():
        matrices = {
            "dat": norb_matrix(NORB_IMAGES[part]),
            "cat": norb_matrix(np.zeros(len(INFO[part]), np.int32)),
            "info": norb_matrix(np.array(INFO[part], np.int32)),
        }
        for kind, data in matrices.items():
            path = folder / f"{stem}-{kind}.mat"
            if packed:
                path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(data))
            else:
                path.write_bytes(data)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("vtab/smallnorb_azi", [0, 17, 5, 1, 6, 10, 16, 9, 3]),
        ("vtab/smallnorb_ele", [0, 8, 3, 4, 2, 5, 1, 7, 6]),
    ],
)
def test_smallnorb_tunes_and_tests_on_its_test_part(
    task: str, expected: list[int], packed: bool, tmp_path: Path
) -> None:
    write_norb(tmp_path, packed)
    listing = listed(tmp_path, task)
    assert labels(listing) == expected
    drawn = parts_of(listing, (4, 2, 3))
    parts = {split: {part for part, _ in records} for split, records in drawn.items()}
    assert parts == {"train": {"train"}, "val": {"test"}, "test": {"test"}}
    # The image of the first camera, in any order.
    for records in (listing.records, listing.records[::-1], listing.records[3:6]):
        for record, image in zip(records, listing.read(records), strict=True):
            decoded = Image.open(io.BytesIO(image))
            assert decoded.mode == "L"
            assert (np.asarray(decoded) == NORB_IMAGES[record.part][int(record.place), 0]).all()


def test_smallnorb_in_an_archive_is_read_from_it(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    write_norb(tmp_path / "files")
    with tarfile.open(tmp_path / "norb.tar", "w") as tar:
        tar.add(tmp_path / "files", "files")
    unpacked = listed(tmp_path / "files", "vtab/smallnorb_azi")
    packed = listed(tmp_path / "norb.tar", "vtab/smallnorb_azi")
    assert list(packed.read(packed.records)) == list(unpacked.read(unpacked.records))


def test_smallnorb_is_refused_with_what_is_wrong(tmp_path: Path) -> None:
    write_norb(tmp_path)
    info, images = (tmp_path / f"{NORB['test']}-{kind}.mat" for kind in ("info", "dat"))
    good_info, good_images = info.read_bytes(), images.read_bytes()

    info.write_bytes(norb_matrix(np.array([(0, 9, 13, 0)] * 5, np.int32)))
    image = f"row 0 of {images.name}"
    assert refusal(tmp_path, "vtab/smallnorb_azi").startswith(f"{image}: the label must be in 0..17, got -1;")
    assert refusal(tmp_path, "vtab/smallnorb_ele").startswith(f"{image}: the label must be in 0..8, got 9;")

    info.write_bytes(good_info[:-4])
    assert f"{info.name} is truncated: it ends within the 80 bytes from 20." in refusal(tmp_path, "vtab/smallnorb_azi")
    info.write_bytes(good_info[:7])
    assert f"{info.name} is truncated: it ends within the 20 bytes from 0." in refusal(tmp_path, "vtab/smallnorb_azi")
    info.write_bytes(b"MATLAB 5.0 MAT-file, and more")
    assert f"{info.name} must start with 0x1e3d4c54 and 2" in refusal(tmp_path, "vtab/smallnorb_azi")
    info.write_bytes(norb_matrix(np.array(INFO["test"][:4], np.int32)))
    assert f"{images.name} must have the 4 images that -info.mat annotates, got 5." in refusal(
        tmp_path, "vtab/smallnorb_azi"
    )

    info.write_bytes(good_info)
    images.write_bytes(good_images[:-31])
    listing = listed(tmp_path, "vtab/smallnorb_azi")
    with pytest.raises(ImportRefused, match=f"{images.name} is truncated"):
        list(listing.read(listing.records))
    images.unlink()
    assert "must hold one file smallnorb-*-testing-dat.mat.gz; there is none." in refusal(
        tmp_path, "vtab/smallnorb_azi"
    )
    images.with_name(f"{images.name}.gz").write_bytes(gzip.compress(good_images)[:-90])
    listing = listed(tmp_path, "vtab/smallnorb_azi")
    with pytest.raises(ImportRefused, match=r"dat\.mat\.gz is damaged: Compressed file ended"):
        list(listing.read(listing.records))
