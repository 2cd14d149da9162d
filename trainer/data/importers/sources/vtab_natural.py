"""VTAB's natural tasks in the forms that their makers publish."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from trainer.data.importers.archive import ImportRefused, SourceFiles
from trainer.data.importers.formats.array_images import Row, numbered_records, png_rows
from trainer.data.importers.formats.class_folders import class_images, class_listing
from trainer.data.importers.formats.mat import mat_arrays, mat_shape
from trainer.data.importers.formats.split_lists import THREE_PARTS, TWO_PARTS, check_present, parse_label, read_lines
from trainer.data.importers.source import Listing, Source, SourceRecord, source_files
from trainer.data.importers.sources import cifar100, sun397
from trainer.plain_text import counted

CALTECH101 = "*_ObjectCategories"
CALTECH101_ARCHIVE = "101_ObjectCategories.tar.gz"
DTD_LISTS = {part: f"labels/{part}1.txt" for part in ("train", "val", "test")}
FLOWERS_IDS = {"train": "trnid", "val": "valid", "test": "tstid"}
FLOWERS_CLASSES = 102
PET_LISTS = {"train": "annotations/trainval.txt", "test": "annotations/test.txt"}
PET_CLASSES = 37


def _has_caltech101(tree: SourceFiles) -> bool:
    return bool(class_images(tree, CALTECH101) or tree.find(CALTECH101_ARCHIVE))


def _list_caltech101(tree: SourceFiles, task: str) -> Listing:
    # The published zip file contains the images in an archive of its own, and archives in archives are not read.
    return class_listing(
        tree, CALTECH101, otherwise=f"If {CALTECH101_ARCHIVE} is in a zip file, unpack the zip file first."
    )


def _has_dtd(tree: SourceFiles) -> bool:
    return all(tree.find(name) for name in DTD_LISTS.values())


def _list_dtd(tree: SourceFiles, task: str) -> Listing:
    """List fold 1 of ten, as TFDS does."""
    root = tree.one(DTD_LISTS["train"]).removesuffix(DTD_LISTS["train"])
    # The first folder of an image's path is its class.
    entries = [(key, part) for part, name in DTD_LISTS.items() for key in read_lines(tree, root + name)]

    class_names = sorted({key.partition("/")[0] for key, _ in entries})
    label_of = {name: label for label, name in enumerate(class_names)}
    records = [SourceRecord(key, label_of[key.partition("/")[0]], part, f"{root}images/{key}") for key, part in entries]

    check_present(tree, records, f"{root}labels")
    return Listing(records=records, class_names=class_names, read=source_files(tree), draw=THREE_PARTS)


def _has_flowers(tree: SourceFiles) -> bool:
    return bool(tree.find("imagelabels.mat") and tree.find("setid.mat"))


def _list_flowers(tree: SourceFiles, task: str) -> Listing:
    """List Oxford Flowers 102. The names of its classes are the numbers that its makers gave them."""
    folders = {name.rpartition("/")[0] for name in tree.find("jpg/image_*.jpg")}
    if len(folders) != 1:
        raise ImportRefused(
            f"{tree.path} must contain one folder jpg, it has {len(folders)}. "
            "Put 102flowers.tgz there, packed or unpacked."
        )
    folder = folders.pop()

    labels = mat_arrays(tree, tree.one("imagelabels.mat"), "labels")[0].ravel().astype(int).tolist()
    ids = mat_arrays(tree, tree.one("setid.mat"), *FLOWERS_IDS.values())

    records = []
    for part, numbers in zip(FLOWERS_IDS, ids, strict=True):
        for number in numbers.ravel().astype(int).tolist():
            key = f"image_{number:05d}.jpg"
            if not 1 <= number <= len(labels):
                raise ImportRefused(
                    f"{tree.path}: imagelabels.mat must have a label for {key}, which setid.mat names; it has "
                    f"{counted(len(labels), 'label')}. Download both again."
                )
            # Images are counted from 1.
            label = parse_label(key, labels[number - 1], 1, FLOWERS_CLASSES)
            records.append(SourceRecord(key, label, part, f"{folder}/{key}"))

    check_present(tree, records, "setid.mat")
    class_names = [str(label + 1) for label in range(FLOWERS_CLASSES)]
    return Listing(records=records, class_names=class_names, read=source_files(tree), draw=THREE_PARTS)


def _has_pet(tree: SourceFiles) -> bool:
    return all(tree.find(name) for name in PET_LISTS.values())


def _list_pet(tree: SourceFiles, task: str) -> Listing:
    """List Oxford-IIIT Pet. A line of its lists is `Abyssinian_100 1 1 1`: image, breed, species, breed in species."""
    root = tree.one(PET_LISTS["train"]).removesuffix(PET_LISTS["train"])

    records = []
    breeds: dict[int, str] = {}
    for part, name in PET_LISTS.items():
        for line in read_lines(tree, root + name):
            image, *numbers = line.split()
            label = parse_label(image, numbers[0] if numbers else "nothing", 1, PET_CLASSES)

            # The name of the breed is in the names of its images only.
            breed = image.rpartition("_")[0]
            if breeds.setdefault(label, breed) != breed:
                raise ImportRefused(
                    f"{tree.path}: {name} must give each breed a number of its own; {image} has {label + 1}, the "
                    f"number of {breeds[label]}. Download annotations.tar.gz again."
                )
            records.append(SourceRecord(f"{image}.jpg", label, part, f"{root}images/{image}.jpg"))

    # Class names are positions in a list, so no number may be left out.
    missing = [str(label + 1) for label in range(max(breeds, default=0)) if label not in breeds]
    if missing:
        raise ImportRefused(
            f"{tree.path}: the lists in {root}annotations must name an image of each breed; there is none of breed "
            f"{', '.join(missing)}. Download annotations.tar.gz again."
        )

    check_present(tree, records, f"{root}annotations")
    class_names = [breeds[label] for label in range(len(breeds))]
    return Listing(records=records, class_names=class_names, read=source_files(tree), draw=TWO_PARTS)


def _has_svhn(tree: SourceFiles) -> bool:
    return bool(tree.find("train_32x32.mat") and tree.find("test_32x32.mat"))


def _list_svhn(tree: SourceFiles, task: str) -> Listing:
    """List SVHN. X is ``[H, W, 3, N]``, and y gives the digit zero the number 10."""

    @contextmanager
    def open_part(part: str, folder: Path) -> Iterator[Row]:
        name = tree.one(f"{part}_32x32.mat")
        (images,) = mat_arrays(tree, name, "X")
        if images.dtype != np.uint8:
            raise ImportRefused(
                f"{tree.path}: X of {name} must contain bytes, it contains {images.dtype}. Download it again."
            )
        yield lambda i: images[:, :, :, i]

    records = []
    for part in ("train", "test"):
        name = tree.one(f"{part}_32x32.mat")
        labels = mat_arrays(tree, name, "y")[0].ravel()

        # The images are not read before they are needed.
        shape = mat_shape(tree, name, "X")
        if shape != (32, 32, 3, len(labels)):
            raise ImportRefused(
                f"{tree.path}: X of {name} must be 32 x 32 x 3 x {len(labels)}, as y has "
                f"{counted(len(labels), 'label')}; it is {' x '.join(map(str, shape))}. Download it again."
            )

        for record in numbered_records(part, labels, 10, first=1):
            # Numbers 1 to 10 are labels 0 to 9 by now; move the digit zero from the end to the start.
            records.append(SourceRecord(record.key, (record.label + 1) % 10, part, record.place))

    return Listing(records=records, class_names=list("0123456789"), read=png_rows(open_part), draw=TWO_PARTS)


SOURCES: tuple[Source, ...] = (
    Source(
        form="official",
        tasks=("vtab/cifar100",),
        recognise=cifar100.recognise,
        listing=cifar100.listing,
        where="the CIFAR page of Alex Krizhevsky: cifar-100-binary.tar.gz or cifar-100-python.tar.gz",
    ),
    Source(
        form="official",
        tasks=("vtab/caltech101",),
        recognise=_has_caltech101,
        listing=_list_caltech101,
        where="Caltech's data repository: caltech-101.zip, and in it 101_ObjectCategories.tar.gz",
    ),
    Source(
        form="official",
        tasks=("vtab/dtd",),
        recognise=_has_dtd,
        listing=_list_dtd,
        where="the Visual Geometry Group in Oxford: dtd-r1.0.1.tar.gz",
    ),
    Source(
        form="official",
        tasks=("vtab/oxford_flowers102",),
        recognise=_has_flowers,
        listing=_list_flowers,
        where="the Visual Geometry Group in Oxford: 102flowers.tgz, imagelabels.mat, setid.mat",
    ),
    Source(
        form="official",
        tasks=("vtab/oxford_iiit_pet",),
        recognise=_has_pet,
        listing=_list_pet,
        where="the Visual Geometry Group in Oxford: images.tar.gz, annotations.tar.gz",
    ),
    Source(
        form="official",
        tasks=("vtab/svhn",),
        recognise=_has_svhn,
        listing=_list_svhn,
        where="the SVHN page at Stanford: train_32x32.mat, test_32x32.mat",
    ),
    Source(
        form="official",
        tasks=("vtab/sun397",),
        recognise=sun397.recognise,
        listing=sun397.listing,
        where="the SUN page at Princeton: SUN397.tar.gz; TFDS's lists sun397_tfds_{tr,va,te}.txt next to it",
    ),
)
"""The official forms of the natural tasks."""
