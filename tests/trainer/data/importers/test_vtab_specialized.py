"""Tests of VTAB's specialized tasks from the files of their makers: labels, parts, images, and wrong files."""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.trainer.data.importers.vtab_sources import (
    FORMS,
    Made,
    changed,
    check,
    jpeg,
    listed,
    noise,
    pixels_of,
    place,
    split_keys,
)
from trainer.data.importers.archive import ImportRefused, SourceFiles
from trainer.data.importers.sources.diabetic_retinopathy import btgraham
from trainer.data.importers.sources.vtab_specialized import SOURCES


def hdf5(name: str, array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.create_dataset(name, data=array)
    return buffer.getvalue()


def patch_camelyon() -> Made:
    labels = {"train": [1, 0, 1], "valid": [0], "test": [0, 1]}
    images = {part: noise(len(values), 96, 96, 3) for part, values in labels.items()}
    files = {}
    for part, values in labels.items():
        start = f"camelyonpatch_level_2_split_{part}"
        files[f"{start}_x.h5"] = hdf5("x", images[part])
        files[f"{start}_y.h5"] = hdf5("y", np.array(values, np.uint8).reshape(-1, 1, 1, 1))
    return Made(
        files=files,
        class_names=["no tumour", "tumour"],
        listed={
            "train/000000": (1, "train"),
            "train/000001": (0, "train"),
            "train/000002": (1, "train"),
            "val/000000": (0, "val"),
            "test/000000": (0, "test"),
            "test/000001": (1, "test"),
        },
        pixels={
            "train/000000": images["train"][0],
            "train/000002": images["train"][2],
            "val/000000": images["valid"][0],
            "test/000001": images["test"][1],
        },
    )


def patch_camelyon_gz() -> Made:
    made = patch_camelyon()
    files = {f"{name}.gz": gzip.compress(data) for name, data in made.files.items()}
    return Made(files=files, class_names=made.class_names, listed=made.listed, pixels=made.pixels)


def eurosat() -> Made:
    labels = {"AnnualCrop": 0, "Highway": 1, "SeaLake": 2}
    keys = {f"{name}/{name}_{i}.jpg": label for name, label in labels.items() for i in (1, 2)}
    images = {key: jpeg(i) for i, key in enumerate(keys)}
    bands = "ds/images/remote_sensing/otherDatasets/sentinel_2/tif"
    return Made(
        files={f"2750/{key}": data for key, data in images.items()} | {f"{bands}/Forest/Forest_1.tif": b"13 bands"},
        class_names=list(labels),
        listed={key: (label, "all") for key, label in keys.items()},
        images=images,
    )


def resisc45() -> Made:
    labels = {"airplane": 0, "baseball_diamond": 1, "desert": 2}
    keys = {f"{name}/{name}_00{i}.jpg": label for name, label in labels.items() for i in (1, 2)}
    images = {key: jpeg(i) for i, key in enumerate(keys)}
    return Made(
        files={f"NWPU-RESISC45/{key}": data for key, data in images.items()},
        class_names=list(labels),
        listed={key: (label, "all") for key, label in keys.items()},
        images=images,
    )


def diabetic_retinopathy() -> Made:
    photo = jpeg(200, (60, 40))
    return Made(
        files={
            "trainLabels.csv": b"image,level\n10_left,0\n10_right,4\n",
            "retinopathy_solution.csv": b"image,level,Usage\r\n1_left,2,Public\r\n1_right,1,Private\r\n"
            b"2_left,3,Private\r\n",
            "train/10_left.jpeg": photo,
            "train/10_right.jpeg": photo,
            "test/1_left.jpeg": photo,
            "test/1_right.jpeg": photo,
            "test/2_left.jpeg": photo,
            "sample/10_left.jpeg": photo,
        },
        class_names=["no retinopathy", "mild", "moderate", "severe", "proliferative"],
        listed={
            "train/10_left": (0, "train"),
            "train/10_right": (4, "train"),
            "test/1_left": (2, "val"),
            "test/1_right": (1, "test"),
            "test/2_left": (3, "test"),
        },
        images={"train/10_left": btgraham(photo)},
    )


MADE: list[tuple[str, Callable[[], Made]]] = [
    ("vtab/patch_camelyon", patch_camelyon),
    ("vtab/patch_camelyon", patch_camelyon_gz),
    ("vtab/eurosat", eurosat),
    ("vtab/resisc45", resisc45),
    ("vtab/diabetic_retinopathy", diabetic_retinopathy),
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("task", "make"), MADE, ids=[make.__name__ for _, make in MADE])
def test_each_published_form_becomes_its_task(task: str, make: Callable[[], Made], form: str, tmp_path: Path) -> None:
    made = make()
    check(SOURCES, task, made, place(made.files, tmp_path, form))


def test_each_specialized_task_has_one_official_source() -> None:
    assert sorted(task for source in SOURCES for task in source.tasks) == sorted({task for task, _ in MADE})
    assert all(source.form == "official" and source.where for source in SOURCES)
    assert {source.tasks[0]: source.licence for source in SOURCES}["vtab/patch_camelyon"] == "CC0"


@pytest.mark.parametrize(("make", "folder"), [(eurosat, "2750"), (resisc45, "NWPU-RESISC45")])
def test_a_folder_of_classes_may_be_given_itself(make: Callable[[], Made], folder: str, tmp_path: Path) -> None:
    task = next(task for task, maker in MADE if maker is make)
    made = make()
    check(SOURCES, task, made, place(made.files, tmp_path) / folder)


def test_an_archive_without_the_folder_around_the_classes_is_known_by_its_name(tmp_path: Path) -> None:
    made = eurosat()
    files = {name.removeprefix("2750/"): data for name, data in made.files.items() if name.startswith("2750/")}
    archive = (place(files, tmp_path, "zip") / "source.zip").rename(tmp_path / "EuroSAT.zip")
    check(SOURCES, "vtab/eurosat", made, archive)


def test_the_leaderboards_of_retinopathy_are_val_and_test(tmp_path: Path) -> None:
    listing = listed(SOURCES, "vtab/diabetic_retinopathy", place(diabetic_retinopathy().files, tmp_path))
    splits = split_keys(listing, 2, 1, 2)
    assert splits == {
        "train": ["train/10_left", "train/10_right"],
        "val": ["test/1_left"],
        "test": ["test/1_right", "test/2_left"],
    }
    assert listing.repairs == (
        "preprocessed 5 photographs as Graham (2015) and TFDS's btgraham-300: radius 300, local mean subtracted, "
        "90 % disc, JPEG of quality 72",
    )


def photograph(height: int, width: int, radius: float, pattern: NDArray[np.uint8] | int = 120) -> bytes:
    """Return a disc in the middle of a black photograph, as PNG so that nothing is lost to JPEG."""
    y, x = np.ogrid[:height, :width]
    inside = (y - (height - 1) / 2) ** 2 + (x - (width - 1) / 2) ** 2 < radius**2
    buffer = io.BytesIO()
    Image.fromarray(np.where(inside[..., None], pattern, 0).astype(np.uint8).repeat(3, 2)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("height", "width", "radius", "expected"),
    [
        (200, 300, 90, (540, 540)),  # scaled up, the whole disc is visible
        (2000, 3000, 950, (540, 540)),  # scaled down
        (800, 1300, 500, (480, 540)),  # cut off above and below: 800 / 500 * 300 = 480 rows
    ],
)
def test_every_retina_gets_the_same_size(height: int, width: int, radius: int, expected: tuple[int, int]) -> None:
    assert pixels_of(btgraham(photograph(height, width, radius))).shape == (*expected, 3)


def test_a_retina_without_detail_is_grey_whatever_its_light() -> None:
    dark, bright = (pixels_of(btgraham(photograph(400, 600, 190, light))) for light in (60, 240))
    # Within 230 pixels of the centre the blur (30 pixels at most) never meets the black around the retina.
    y, x = np.ogrid[:540, :540]
    for image in (dark, bright):
        assert np.abs(image[(y - 270) ** 2 + (x - 270) ** 2 < 230**2].astype(int) - 128).max() <= 3
        # Beyond 90 % of the radius everything is grey: the corners of the square.
        assert np.abs(image[:50, :50].astype(int) - 128).max() <= 3


def test_a_spot_is_shown_at_four_times_its_contrast() -> None:
    pattern = np.full((600, 900, 1), 100, np.uint8)
    pattern[290:310, 440:460] = 110
    image = pixels_of(btgraham(photograph(600, 900, 300, pattern))).astype(int)
    # A square of 20 under a Gaussian of 10 raises the mean at its centre by 10 * erf(1 / sqrt 2) ** 2 = 4.66:
    # 4 * (110 - 104.66) + 128 = 149.
    assert abs(int(image[268:272, 268:272].mean()) - 149) <= 4


def test_a_black_photograph_is_scaled_by_its_height() -> None:
    assert pixels_of(btgraham(photograph(300, 400, 0))).shape == (540, 540, 3)


def read_all(task: str, path: Path) -> list[bytes]:
    listing = listed(SOURCES, task, path)
    return list(listing.read(listing.records))


CAMELYON = "camelyonpatch_level_2_split_"
PATCHES, PACKED = patch_camelyon().files, patch_camelyon_gz().files


@pytest.mark.parametrize(
    ("make", "name", "data", "words"),
    [
        (patch_camelyon, f"{CAMELYON}valid_x.h5", None, [f"must hold one file {CAMELYON}valid_x.h5.gz; there is none"]),
        (patch_camelyon, f"{CAMELYON}test_y.h5", hdf5("y", np.array([0, 2])), ["test/000001 must be 0 to 1, got 2"]),
        (
            patch_camelyon,
            f"{CAMELYON}test_y.h5",
            hdf5("z", np.array([0, 1])),
            ["test_y.h5 is not a complete HDF5 file with y"],
        ),
        (
            patch_camelyon,
            f"{CAMELYON}test_x.h5",
            PATCHES[f"{CAMELYON}test_x.h5"][:-9],
            ["test_x.h5 is not a complete HDF5 file with x", "Download it again"],
        ),
        (
            patch_camelyon,
            f"{CAMELYON}test_x.h5",
            hdf5("x", noise(3, 96, 96, 3)),
            ["test_x.h5 must be 2 x 96 x 96 x 3 bytes", "it is 3 x 96 x 96 x 3 of uint8"],
        ),
        (
            patch_camelyon_gz,
            f"{CAMELYON}train_y.h5.gz",
            PACKED[f"{CAMELYON}train_y.h5.gz"][:-9],
            ["train_y.h5.gz is not a complete HDF5 file"],
        ),
        (
            patch_camelyon_gz,
            f"{CAMELYON}train_x.h5.gz",
            gzip.compress(hdf5("x", noise(2, 96, 96, 3))),
            ["train_x.h5.gz must be 3 x 96 x 96 x 3 bytes"],
        ),
        (
            patch_camelyon_gz,
            f"{CAMELYON}train_x.h5.gz",
            PACKED[f"{CAMELYON}train_x.h5.gz"][:-9],
            ["train_x.h5.gz is not a complete HDF5 file"],
        ),
        (
            diabetic_retinopathy,
            "train/10_right.jpeg",
            None,
            ["does not contain train/10_right.jpeg, which trainLabels.csv or"],
        ),
        (diabetic_retinopathy, "retinopathy_solution.csv", None, ["must hold one file retinopathy_solution.csv"]),
        (diabetic_retinopathy, "trainLabels.csv", b"image,level\n10_left,5\n", ["10_left must be 0 to 4, got 5"]),
        (diabetic_retinopathy, "trainLabels.csv", b"image,level\n10_left,bad\n", ["10_left must be 0 to 4, got bad"]),
        (diabetic_retinopathy, "trainLabels.csv", b"image\n10_left\n", ["columns image, level; line 2 has no level"]),
        (
            diabetic_retinopathy,
            "retinopathy_solution.csv",
            b"image,level,Usage\n1_left,0,Secret\n",
            ["the Usage of 1_left in retinopathy_solution.csv must be Public or Private, got 'Secret'"],
        ),
        (
            diabetic_retinopathy,
            "train/10_left.jpeg",
            jpeg(200, (60, 40))[:-200],
            ["train/10_left.jpeg is not a complete photograph"],
        ),
    ],
)
def test_a_wrong_file_is_refused_by_name(
    make: Callable[[], Made], name: str, data: bytes | None, words: list[str], tmp_path: Path
) -> None:
    task = next(task for task, maker in MADE if maker is make)
    path = place(changed(make, name, data), tmp_path)
    with pytest.raises(ImportRefused) as refused:
        # Some files are opened only when an image is read.
        read_all(task, path)
    for word in words:
        assert word in str(refused.value)


def test_the_bands_of_eurosat_are_no_images(tmp_path: Path) -> None:
    files = {name: data for name, data in eurosat().files.items() if name.endswith(".tif")}
    path = place(files, tmp_path)
    with pytest.raises(ImportRefused, match=r"13 bands and are not images; download EuroSAT.zip"):
        listed(SOURCES, "vtab/eurosat", path)


def test_a_rar_of_resisc45_is_to_be_unpacked_first(tmp_path: Path) -> None:
    files = {"NWPU-RESISC45.rar": b"Rar!"}
    path = place(files, tmp_path)
    assert [source.tasks for source in SOURCES if source.recognise(SourceFiles(path))] == [("vtab/resisc45",)]
    with pytest.raises(ImportRefused, match=r"NWPU-RESISC45.rar, unpack it first, with unrar or 7z"):
        listed(SOURCES, "vtab/resisc45", path)
    # Next to its contents, the archive does no harm.
    check(SOURCES, "vtab/resisc45", resisc45(), place(resisc45().files, tmp_path))
