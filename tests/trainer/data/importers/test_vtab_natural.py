"""Tests of VTAB's natural tasks from the files of their makers: labels, parts, images, and wrong files."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.trainer.data.importers.vtab_sources import (
    FORMS,
    Made,
    changed,
    check,
    jpeg,
    listed,
    mat,
    noise,
    place,
    split_keys,
)
from trainer.data.importers.archive import ImportRefused
from trainer.data.importers.sources.vtab_natural import SOURCES

FINE_NAMES = ["apple", "aquarium_fish", "baby"]
FINE_LABELS = {"train": [2, 0, 1, 2], "test": [1, 0]}
PLANES = {"train": noise(4, 3072), "test": noise(2, 3072)}


def cifar100_expected(files: dict[str, bytes]) -> Made:
    expected = {}
    for part, planes in PLANES.items():
        for i, row in enumerate(planes):
            # Red, then green, then blue, each 32 rows of 32.
            expected[f"{part}/{i:06d}"] = np.stack(
                [row[c * 1024 : (c + 1) * 1024].reshape(32, 32) for c in range(3)], 2
            )
    return Made(
        files=files,
        class_names=FINE_NAMES,
        listed={f"{p}/{i:06d}": (label, p) for p, labels in FINE_LABELS.items() for i, label in enumerate(labels)},
        pixels=expected,
    )


def cifar100_binary() -> Made:
    files = {"cifar-100-binary/fine_label_names.txt": "\n".join([*FINE_NAMES, ""]).encode()}
    for part, labels in FINE_LABELS.items():
        # The coarse label, 19, goes before the fine one.
        rows = [bytes([19, label]) + planes.tobytes() for label, planes in zip(labels, PLANES[part], strict=True)]
        files[f"cifar-100-binary/{part}.bin"] = b"".join(rows)
    return cifar100_expected(files)


def python2_text(text: bytes) -> bytes:
    return b"T" + len(text).to_bytes(4, "little") + text


def python2_table(labels: list[int], planes: NDArray[np.uint8]) -> bytes:
    """Return a table as Python 2 pickled it: text as bytes, and an array through numpy.core."""
    rows = len(planes).to_bytes(1, "little")
    return (
        b"\x80\x02}("
        + python2_text(b"fine_labels")
        + b"]("
        + b"".join(b"K" + bytes([label]) for label in labels)
        + b"e"
        + python2_text(b"data")
        + b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K"
        + rows
        + b"M\x00\x0c\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R"
        + b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        + python2_text(planes.tobytes())
        + b"tbu."
    )


def cifar100_python() -> Made:
    names = b"](" + b"".join(python2_text(name.encode()) for name in FINE_NAMES) + b"e"
    files = {"cifar-100-python/meta": b"\x80\x02}" + python2_text(b"fine_label_names") + names + b"s."}
    for part, labels in FINE_LABELS.items():
        files[f"cifar-100-python/{part}"] = python2_table(labels, PLANES[part])
    return cifar100_expected(files)


def cifar100_python3() -> Made:
    files = {"cifar-100-python/meta": pickle.dumps({"fine_label_names": FINE_NAMES}, protocol=2)}
    for part, labels in FINE_LABELS.items():
        table = {b"fine_labels": labels, b"data": PLANES[part], b"filenames": [b"x.png"] * len(labels)}
        files[f"cifar-100-python/{part}"] = pickle.dumps(table, protocol=2)
    return cifar100_expected(files)


def caltech101() -> Made:
    # In the order of ASCII the folders would be BACKGROUND_Google, Faces, accordion, brain. TFDS sorts by lower case.
    labels = {"accordion": 0, "BACKGROUND_Google": 1, "brain": 2, "Faces": 3}
    keys = {f"{name}/image_000{i}.jpg": label for name, label in labels.items() for i in (1, 2)}
    images = {key: jpeg(i) for i, key in enumerate(keys)}
    return Made(
        files={f"101_ObjectCategories/{key}": data for key, data in images.items()}
        | {"101_ObjectCategories/BACKGROUND_Google/tmp": b"no image", "Annotations/brain/annotation_0001.mat": b""},
        class_names=list(labels),
        listed={key: (label, "all") for key, label in keys.items()},
        images=images,
    )


def dtd() -> Made:
    parts = {
        "train": ["banded/banded_0001.jpg", "woven/woven_0002.jpg"],
        "val": ["woven/woven_0001.jpg"],
        "test": ["dotted/dotted_0001.jpg", "banded/banded_0002.jpg"],
    }
    labels = {"banded": 0, "dotted": 1, "woven": 2}
    keys = [key for part in parts.values() for key in part]
    images = {key: jpeg(i) for i, key in enumerate(keys)}
    files = {f"dtd/images/{key}": data for key, data in images.items()}
    for part, names in parts.items():
        files[f"dtd/labels/{part}1.txt"] = "".join(f"{name}\n" for name in names).encode()
        # The other nine folds have other splits.
        files[f"dtd/labels/{part}2.txt"] = b"banded/banded_0001.jpg\n"
    return Made(
        files=files,
        class_names=list(labels),
        listed={key: (labels[key.split("/")[0]], part) for part, names in parts.items() for key in names},
        images=images,
    )


def oxford_flowers102() -> Made:
    images = {f"image_{i:05d}.jpg": jpeg(i) for i in range(1, 7)}
    return Made(
        files={f"jpg/{key}": data for key, data in images.items()}
        | {
            "imagelabels.mat": mat(labels=np.array([[77, 1, 102, 77, 5, 1]], np.uint8)),
            "setid.mat": mat(
                trnid=np.array([[3, 1]], np.uint16),
                valid=np.array([[2]], np.uint16),
                tstid=np.array([[6, 4, 5]], np.uint16),
            ),
        },
        class_names=[str(i) for i in range(1, 103)],
        listed={
            "image_00003.jpg": (101, "train"),
            "image_00001.jpg": (76, "train"),
            "image_00002.jpg": (0, "val"),
            "image_00006.jpg": (0, "test"),
            "image_00004.jpg": (76, "test"),
            "image_00005.jpg": (4, "test"),
        },
        images=images,
    )


def oxford_iiit_pet() -> Made:
    expected = {
        "Abyssinian_100.jpg": (0, "train"),
        "american_bulldog_1.jpg": (1, "train"),
        "Bengal_7.jpg": (2, "train"),
        "american_bulldog_22.jpg": (1, "test"),
        "Abyssinian_2.jpg": (0, "test"),
    }
    images = {key: jpeg(i) for i, key in enumerate(expected)}
    return Made(
        files={f"images/{key}": data for key, data in images.items()}
        | {
            "annotations/trainval.txt": b"Abyssinian_100 1 1 1\namerican_bulldog_1 2 2 1\nBengal_7 3 1 2\n",
            "annotations/test.txt": b"american_bulldog_22 2 2 1\nAbyssinian_2 1 1 1\n",
            "annotations/list.txt": b"#Image CLASS-ID SPECIES BREED ID\n",
            "images/Abyssinian_100.mat": b"",
        },
        class_names=["Abyssinian", "american_bulldog", "Bengal"],
        listed=expected,
        images=images,
    )


def svhn() -> Made:
    train, test = noise(32, 32, 3, 3), noise(32, 32, 3, 2)
    return Made(
        files={
            "train_32x32.mat": mat(X=train, y=np.array([[1], [10], [9]], np.uint8)),
            "test_32x32.mat": mat(X=test, y=np.array([[10], [5]], np.uint8)),
        },
        class_names=["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"],
        listed={
            "train/000000": (1, "train"),
            "train/000001": (0, "train"),
            "train/000002": (9, "train"),
            "test/000000": (0, "test"),
            "test/000001": (5, "test"),
        },
        pixels={f"train/{i:06d}": train[..., i] for i in range(3)} | {f"test/{i:06d}": test[..., i] for i in range(2)},
    )


SUN_LABELS = {
    "a/abbey/sun_aa.jpg": 0,
    "a/abbey/sun_ab.jpg": 0,
    "a/apartment_building/outdoor/sun_ac.jpg": 1,
    "t/track/outdoor/sun_ad.jpg": 2,
    "y/yard/sun_ae.jpg": 3,
}
SUN_CLASSES = ["/a/abbey", "/a/apartment_building/outdoor", "/t/track/outdoor", "/y/yard"]
SUN_UNDECODABLE = "t/track/outdoor/sun_aophkoiosslinihb.jpg"


def sun397_alone() -> Made:
    images = {key: jpeg(i) for i, key in enumerate(SUN_LABELS)}
    return Made(
        files={f"SUN397/{key}": data for key, data in images.items()} | {"SUN397/ClassName.txt": b"/a/abbey\n"},
        class_names=SUN_CLASSES,
        listed={key: (label, "all") for key, label in SUN_LABELS.items()},
        images=images,
    )


def sun397() -> Made:
    parts = dict(zip(SUN_LABELS, ("train", "val", "test", "train", "test"), strict=True))
    # An image that TFDS does not list is in no split.
    files = sun397_alone().files | {"SUN397/y/yard/sun_unlisted.jpg": jpeg(9)}
    for part, name in {"train": "tr", "val": "va", "test": "te"}.items():
        files[f"sun397_tfds_{name}.txt"] = "".join(f"/{key}\n" for key in parts if parts[key] == part).encode()
    return Made(
        files=files,
        class_names=SUN_CLASSES,
        listed={key: (label, parts[key]) for key, label in SUN_LABELS.items()},
        images=sun397_alone().images,
    )


MADE: list[tuple[str, Callable[[], Made]]] = [
    ("vtab/cifar100", cifar100_binary),
    ("vtab/cifar100", cifar100_python),
    ("vtab/cifar100", cifar100_python3),
    ("vtab/caltech101", caltech101),
    ("vtab/dtd", dtd),
    ("vtab/oxford_flowers102", oxford_flowers102),
    ("vtab/oxford_iiit_pet", oxford_iiit_pet),
    ("vtab/svhn", svhn),
    ("vtab/sun397", sun397_alone),
    ("vtab/sun397", sun397),
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("task", "make"), MADE, ids=[make.__name__ for _, make in MADE])
def test_each_published_form_becomes_its_task(task: str, make: Callable[[], Made], form: str, tmp_path: Path) -> None:
    made = make()
    check(SOURCES, task, made, place(made.files, tmp_path, form))


def test_each_natural_task_has_one_official_source() -> None:
    assert sorted(task for source in SOURCES for task in source.tasks) == sorted({task for task, _ in MADE})
    assert all(source.form == "official" and source.where for source in SOURCES)


def test_the_parts_of_an_archive_may_lie_apart(tmp_path: Path) -> None:
    """Pets are published as images.tar.gz and annotations.tar.gz, and SUN397's lists apart from its archive."""
    for task, made, inner in (
        ("vtab/oxford_iiit_pet", oxford_iiit_pet(), "images/"),
        ("vtab/oxford_flowers102", oxford_flowers102(), "jpg/"),
        ("vtab/sun397", sun397(), "SUN397/"),
    ):
        path = tmp_path / task
        for packed in (True, False):
            files = {name: data for name, data in made.files.items() if name.startswith(inner) == packed}
            place(files, path, "tar.gz" if packed else "folder")
        check(SOURCES, task, made, path)


@pytest.mark.parametrize(
    ("task", "make", "inner"),
    [
        ("vtab/cifar100", cifar100_binary, "cifar-100-binary"),
        ("vtab/cifar100", cifar100_python, "cifar-100-python"),
        ("vtab/caltech101", caltech101, "101_ObjectCategories"),
        ("vtab/dtd", dtd, "dtd"),
        ("vtab/sun397", sun397_alone, "SUN397"),
    ],
)
def test_the_inner_folder_gives_the_same_as_the_outer_one(
    task: str, make: Callable[[], Made], inner: str, tmp_path: Path
) -> None:
    made = make()
    check(SOURCES, task, made, place(made.files, tmp_path) / inner)


def test_both_forms_of_cifar100_give_the_same_splits(tmp_path: Path) -> None:
    splits = [
        split_keys(listed(SOURCES, "vtab/cifar100", place(make().files, tmp_path / make.__name__)), 2, 1, 2)
        for make in (cifar100_binary, cifar100_python)
    ]
    assert splits[0] == splits[1]
    # With both in one folder, the binary form is read.
    (tmp_path / "cifar100_binary" / "cifar-100-binary").rename(tmp_path / "cifar100_python" / "cifar-100-binary")
    (tmp_path / "cifar100_python" / "cifar-100-python" / "train").write_bytes(b"never read")
    assert split_keys(listed(SOURCES, "vtab/cifar100", tmp_path / "cifar100_python"), 2, 1, 2) == splits[0]


@pytest.mark.parametrize("make", [cifar100_binary, oxford_iiit_pet, svhn])
def test_val_is_drawn_from_train_if_the_makers_made_none(make: Callable[[], Made], tmp_path: Path) -> None:
    task = next(task for task, maker in MADE if maker is make)
    splits = split_keys(listed(SOURCES, task, place(make().files, tmp_path)), 2, 1, 2)
    part = {key: part for key, (_, part) in make().listed.items()}
    assert {part[key] for key in splits["train"] + splits["val"]} == {"train"}
    assert {part[key] for key in splits["test"]} == {"test"}
    assert len({*splits["train"], *splits["val"]}) == 3


@pytest.mark.parametrize("make", [sun397, sun397_alone])
def test_the_undecodable_image_of_sun397_is_left_out_by_name(make: Callable[[], Made], tmp_path: Path) -> None:
    made = make()
    assert listed(SOURCES, "vtab/sun397", place(made.files, tmp_path / "without")).repairs == ()
    files = made.files | {f"SUN397/{SUN_UNDECODABLE}": b"GIF"}
    if make is sun397:
        files["sun397_tfds_tr.txt"] += f"/{SUN_UNDECODABLE}\n".encode()
    path = place(files, tmp_path / "with")
    check(SOURCES, "vtab/sun397", made, path)
    expected = (f"left out 1 image that no decoder reads: {SUN_UNDECODABLE}",)
    assert listed(SOURCES, "vtab/sun397", path).repairs == expected
    # If the user has removed the image already, it is not missed.
    (path / "SUN397" / SUN_UNDECODABLE).unlink()
    assert listed(SOURCES, "vtab/sun397", path).repairs == ()


class Harmful:
    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.mkdir, ("harmed",)


CIFAR_TRAIN = "cifar-100-binary/train.bin"
PICKLE_TRAIN = "cifar-100-python/train"
BINARY, PICKLED = cifar100_binary().files, cifar100_python().files


@pytest.mark.parametrize(
    ("make", "name", "data", "words"),
    [
        (
            cifar100_binary,
            CIFAR_TRAIN,
            BINARY[CIFAR_TRAIN][:-1],
            ["train.bin must consist of records of 3074 bytes", "got 12,295 bytes"],
        ),
        (cifar100_binary, CIFAR_TRAIN, b"", ["records of 3074 bytes, got 0"]),
        (cifar100_binary, CIFAR_TRAIN, b"\0\3" + bytes(3072), ["label of train/000000 must be 0 to 2, got 3"]),
        (cifar100_python, PICKLE_TRAIN, PICKLED[PICKLE_TRAIN][:-700], ["train is not a complete pickle", "again"]),
        (cifar100_python, PICKLE_TRAIN, python2_table([3], noise(1, 3072)), ["train/000000 must be 0 to 2, got 3"]),
        (
            cifar100_python,
            PICKLE_TRAIN,
            python2_table([1, 2], noise(1, 3072)),
            ["fine_labels, and data with 3072 bytes"],
        ),
        (
            cifar100_python,
            "cifar-100-python/meta",
            pickle.dumps({}, 2),
            ["meta must contain the list fine_label_names"],
        ),
        (cifar100_python, "cifar-100-python/meta", pickle.dumps([], 2), ["meta is not a complete pickle"]),
        (
            dtd,
            "dtd/images/woven/woven_0001.jpg",
            None,
            ["does not contain dtd/images/woven/woven_0001.jpg, which dtd/labels"],
        ),
        (dtd, "dtd/labels/val1.txt", b"\xff\xfe", ["dtd/labels/val1.txt must be UTF-8"]),
        (
            oxford_flowers102,
            "imagelabels.mat",
            mat(labels=[[77, 1, 103, 77, 5, 1]]),
            ["label of image_00003.jpg must be 1 to 102, got 103"],
        ),
        (
            oxford_flowers102,
            "imagelabels.mat",
            mat(labels=[[0] * 6]),
            ["label of image_00003.jpg must be 1 to 102, got 0"],
        ),
        (oxford_flowers102, "imagelabels.mat", mat(labels=[[7] * 5]), ["a label for image_00006.jpg", "has 5 labels"]),
        (
            oxford_flowers102,
            "imagelabels.mat",
            mat(other=[[1]]),
            ["imagelabels.mat must contain the variable 'labels'"],
        ),
        (oxford_flowers102, "setid.mat", b"MATLAB 5.0", ["setid.mat is not a complete .mat file"]),
        (
            oxford_flowers102,
            "jpg/image_00002.jpg",
            None,
            ["does not contain jpg/image_00002.jpg, which setid.mat names"],
        ),
        (
            oxford_iiit_pet,
            "images/Bengal_7.jpg",
            None,
            ["does not contain images/Bengal_7.jpg, which annotations names"],
        ),
        (oxford_iiit_pet, "annotations/test.txt", b"Bengal_7 0 1 1", ["label of Bengal_7 must be 1 to 37, got 0"]),
        (oxford_iiit_pet, "annotations/test.txt", b"Bengal_7 38 1 1", ["label of Bengal_7 must be 1 to 37, got 38"]),
        (oxford_iiit_pet, "annotations/test.txt", b"Bengal_7", ["label of Bengal_7 must be 1 to 37, got nothing"]),
        (oxford_iiit_pet, "annotations/test.txt", b"Bengal_7 1 1 1", ["Bengal_7 has 1, the number of Abyssinian"]),
        (oxford_iiit_pet, "annotations/test.txt", b"pug_3 6 1 1", ["there is none of breed 4, 5"]),
        (
            svhn,
            "train_32x32.mat",
            svhn().files["train_32x32.mat"][:-300],
            ["train_32x32.mat must contain the variable 'y'", "it is truncated"],
        ),
        (svhn, "train_32x32.mat", mat(X=noise(32, 32, 3, 1), y=[[11]]), ["train/000000 must be 1 to 10, got 11"]),
        (svhn, "train_32x32.mat", mat(X=noise(32, 32, 3, 1), y=[[0]]), ["train/000000 must be 1 to 10, got 0"]),
        (
            svhn,
            "train_32x32.mat",
            mat(X=noise(32, 32, 3, 4), y=[[1]] * 3),
            ["32 x 32 x 3 x 3", "it is 32 x 32 x 3 x 4"],
        ),
        (svhn, "train_32x32.mat", mat(y=[[1]]), ["train_32x32.mat must contain the variable 'X'"]),
        (sun397, "sun397_tfds_va.txt", None, ["must hold one file sun397_tfds_va.txt; there is none"]),
        (
            sun397,
            "sun397_tfds_va.txt",
            b"/b/bar/sun_x.jpg",
            ["does not contain b/bar/sun_x.jpg, which sun397_tfds_{tr,va,te}.txt"],
        ),
        (sun397, "sun397_tfds_va.txt", b"/a/abbey/sun_aa.jpg", ["sun_aa.jpg, which is already in sun397_tfds_tr.txt"]),
    ],
)
def test_a_wrong_file_is_refused_by_name(
    make: Callable[[], Made], name: str, data: bytes | None, words: list[str], tmp_path: Path
) -> None:
    task = next(task for task, maker in MADE if maker is make)
    path = place(changed(make, name, data), tmp_path)
    with pytest.raises(ImportRefused) as refused:
        listed(SOURCES, task, path)
    for word in words:
        assert word in str(refused.value)


def test_a_pickle_that_would_run_code_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    harmful = pickle.dumps({b"data": Harmful()}, protocol=2)
    pickle.loads(harmful)
    # It does run code.
    assert (tmp_path / "harmed").exists()
    (tmp_path / "harmed").rmdir()
    path = place(changed(cifar100_python, PICKLE_TRAIN, harmful), tmp_path / "source")
    with pytest.raises(
        ImportRefused, match=r"train may contain only numbers, text and arrays, but it asks for .*not opened"
    ):
        listed(SOURCES, "vtab/cifar100", path)
    assert not (tmp_path / "harmed").exists()


def test_caltech101_within_a_zip_is_to_be_unpacked_first(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as inner:
        inner.writestr("nothing", b"")
    place({"caltech-101/101_ObjectCategories.tar.gz": buffer.getvalue()}, tmp_path, "zip")
    with pytest.raises(ImportRefused, match="unpack the zip file first"):
        listed(SOURCES, "vtab/caltech101", tmp_path)


def test_flowers_without_their_photographs_say_which_archive_has_them(tmp_path: Path) -> None:
    files = {name: data for name, data in oxford_flowers102().files.items() if name.endswith(".mat")}
    with pytest.raises(ImportRefused, match=r"must contain one folder jpg, it has 0. Put 102flowers.tgz there"):
        listed(SOURCES, "vtab/oxford_flowers102", place(files, tmp_path))


def test_an_image_listed_twice_is_refused(tmp_path: Path) -> None:
    files = changed(dtd, "dtd/labels/val1.txt", b"banded/banded_0001.jpg\n")
    with pytest.raises(ImportRefused, match=r"banded/banded_0001.jpg"):
        split_keys(listed(SOURCES, "vtab/dtd", place(files, tmp_path)), 1, 1, 1)
