"""The five fine-grained tasks (FGVC) as their makers publish them, with VPT's lists of the splits if they are there."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.data.importers.archive import ImportRefused, SourceFiles
from trainer.data.importers.formats.mat import mat_arrays
from trainer.data.importers.formats.split_lists import TWO_PARTS, check_present, label_of
from trainer.data.importers.formats.two_columns import index_by_first, read_two_columns, whole
from trainer.data.importers.source import Listing, Source, SourceRecord, source_files
from trainer.data.importers.sources.vpt_lists import VPT_LISTS, vpt_records

BIRD_LISTS = ("images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt")
CUB_IMAGES = "images/[0-9][0-9][0-9].*/*.jpg"
NABIRDS_IMAGES = "images/[0-9][0-9][0-9][0-9]/*.jpg"
DOG_IMAGES = "Images/n[0-9]*-*/*.jpg"
CAR_LABELS = "cars_test_annos_withlabels*.mat"


def birds(tree: SourceFiles, task: str) -> Listing:
    """Lists CUB-200-2011 or NABirds, which have the same form; of NABirds' classes, those that have images.

    Raises:
        ImportRefused: if a list is damaged, contradicts another, or names an image that is not there.
    """
    lists = tree.find(BIRD_LISTS[1])
    root = _beside(tree.one(BIRD_LISTS[1])) if lists else _above(tree, "images")
    if (vpt := vpt_records(tree, root, "images/")) is not None:
        records, _ = vpt
        names = _folders(records)
        if task == "fgvc/nabirds" and f"{root}classes.txt" in tree.names:
            told = {
                line.first: line.second for line in read_two_columns(tree.read(f"{root}classes.txt"), "classes.txt")
            }
            names = [told.get(name.lstrip("0") or "0", name) for name in names]
        return Listing(records=records, class_names=names, read=source_files(tree))
    texts = tree.read_all([root + name for name in BIRD_LISTS])
    images, classes, parts, told_names = (
        index_by_first(read_two_columns(text, name)) for name, text in zip(BIRD_LISTS, texts, strict=True)
    )
    for name, other in zip(BIRD_LISTS[1:3], (classes, parts), strict=True):
        if odd := sorted(images.keys() ^ other.keys()):
            raise ImportRefused(f"{name} and images.txt must name the same images; {odd[0]} is in one only.")
    class_of = {image: line.number() for image, line in classes.items()}
    name_of = {whole(line.first, line.where): line.second for line in told_names.values()}
    for image, class_id in class_of.items():
        if class_id not in name_of:
            raise ImportRefused(f"{classes[image].where} must give a class of classes.txt, got {class_id}.")
    kept = sorted(set(class_of.values())) if task == "fgvc/nabirds" else sorted(name_of)
    label = {class_id: i for i, class_id in enumerate(kept)}
    records = []
    for image, line in images.items():
        if (is_train := parts[image].second) not in ("0", "1"):
            raise ImportRefused(f"{parts[image].where} must say 1 for train or 0 for test, got {is_train!r}.")
        part = "train" if is_train == "1" else "test"
        records.append(SourceRecord(line.second, label[class_of[image]], part, f"{root}images/{line.second}"))
    check_present(tree, records, "images.txt")
    return Listing(records=records, class_names=[name_of[i] for i in kept], read=source_files(tree), draw=TWO_PARTS)


def flowers(tree: SourceFiles, task: str) -> Listing:
    """Lists Oxford Flowers 102 with its official splits; its classes have numbers only.

    Raises:
        ImportRefused: if a list is damaged, or names an image that is not there.
    """
    root = _above(tree, "jpg")
    if not tree.find("setid.mat") and (vpt := vpt_records(tree, root, "")) is not None:
        return Listing(records=vpt[0], class_names=[str(i) for i in vpt[1]], read=source_files(tree))
    (labels,) = mat_arrays(tree, tree.one("imagelabels.mat"), "labels")
    image_sets = mat_arrays(tree, tree.one("setid.mat"), "trnid", "valid", "tstid")
    keys = [f"jpg/image_{i:05d}.jpg" for i in range(1, labels.size + 1)]
    counted = _labels(keys, _cells(labels, "imagelabels.mat"))
    records = []
    for part, numbers in zip(("train", "val", "test"), image_sets, strict=True):
        for i in _cells(numbers, "setid.mat"):
            at = label_of(f"{part} in setid.mat", _count(i), 1, labels.size)
            records.append(SourceRecord(keys[at], counted[at], part, root + keys[at]))
    check_present(tree, records, "setid.mat")
    return Listing(records=records, class_names=[str(i + 1) for i in range(max(counted) + 1)], read=source_files(tree))


def dogs(tree: SourceFiles, task: str) -> Listing:
    """Lists Stanford Dogs.

    Raises:
        ImportRefused: if a list is damaged, or names an image that is not there.
    """
    root = _above(tree, "Images")
    if (vpt := vpt_records(tree, root, "Images/")) is not None:
        return Listing(records=vpt[0], class_names=_folders(vpt[0]), read=source_files(tree))
    keys: list[str] = []
    labels: list[Any] = []
    parts: list[str] = []
    for part in ("train", "test"):
        name = f"{part}_list.mat"
        images, classes = (_cells(cells, name) for cells in mat_arrays(tree, tree.one(name), "file_list", "labels"))
        if len(images) != len(classes):
            raise ImportRefused(f"{name} must label each image, got {len(images)} images and {len(classes)} labels.")
        keys += images
        labels += classes
        parts += [part] * len(images)
    counted = _labels(keys, labels)
    records = [
        SourceRecord(key, label, part, f"{root}Images/{key}")
        for key, label, part in zip(keys, counted, parts, strict=True)
    ]
    check_present(tree, records, "train_list.mat or test_list.mat")
    return Listing(records=records, class_names=_folders(records), read=source_files(tree), draw=TWO_PARTS)


def cars(tree: SourceFiles, task: str) -> Listing:
    """Lists Stanford Cars in its first form (cars_train, cars_test) or its newer one (car_ims).

    Raises:
        ImportRefused: if the test list has no classes, a list is damaged, or names an image that is not there.
    """
    newer = bool(tree.find("car_ims/*"))
    root = _above(tree, "car_ims" if newer else "cars_train")
    meta = "cars_annos.mat" if newer else "cars_meta.mat"
    named = tree.find(meta)
    names = _cells(mat_arrays(tree, tree.one(meta), "class_names")[0], meta) if named else []
    if (vpt := vpt_records(tree, root, "")) is not None:
        records, ids = vpt
        names = names if len(names) == len(ids) else [str(i) for i in ids]
        return Listing(records=records, class_names=names, read=source_files(tree))
    if newer:
        rows = _annotations(tree, tree.one(meta), "relative_im_path", "class", "test")
        found = [(key, root, label, "test" if is_test else "train") for key, label, is_test in rows]
    else:
        train = _annotations(tree, tree.one("cars_train_annos.mat"), "fname", "class")
        test = _annotations(tree, tree.one(_car_labels(tree)), "fname", "class")
        test_root = _above(tree, "cars_test")
        found = [(f"cars_train/{name}", root, label, "train") for name, label in train]
        found += [(f"cars_test/{name}", test_root, label, "test") for name, label in test]
    keys = [key for key, _, _, _ in found]
    labels = _labels(keys, [label for _, _, label, _ in found], len(names))
    records = [
        SourceRecord(key, label, part, above + key) for (key, above, _, part), label in zip(found, labels, strict=True)
    ]
    check_present(tree, records, "its devkit")
    names = names or [str(i + 1) for i in range(max(labels) + 1)]
    return Listing(records=records, class_names=names, read=source_files(tree), draw=TWO_PARTS)


def _car_labels(tree: SourceFiles) -> str:
    """The pattern of the test list that has classes."""
    if tree.find(CAR_LABELS):
        return CAR_LABELS
    (annotations,) = mat_arrays(tree, tree.one("cars_test_annos.mat"), "annotations")
    if "class" not in (annotations.dtype.names or ()):
        raise ImportRefused(
            f"{tree.path}: cars_test_annos.mat has no classes. Put cars_test_annos_withlabels.mat, "
            "which the makers published apart from the devkit, beside it."
        )
    return "cars_test_annos.mat"


def _annotations(tree: SourceFiles, name: str, *fields: str) -> list[tuple[Any, ...]]:
    (found,) = mat_arrays(tree, name, "annotations")
    if lacking := [field for field in fields if field not in (found.dtype.names or ())]:
        raise ImportRefused(f"{tree.path}: the annotations of {name} lack {', '.join(lacking)}. Download it again.")
    return list(zip(*(_cells(found[field], name) for field in fields), strict=True))


def _cells(cells: NDArray[Any], name: str) -> list[Any]:
    """The single values of an array, or of MATLAB's cells."""
    values = [np.asarray(cell) for cell in cells.ravel()]
    if not values:
        raise ImportRefused(f"{name} is empty. Download it again.")
    if odd := [row for row, value in enumerate(values, start=1) if value.size != 1]:
        raise ImportRefused(f"{name}, row {odd[0]} must hold one value. Download it again.")
    return [value.item() for value in values]


def _labels(images: Sequence[str], values: Sequence[Any], num_classes: int = 0) -> list[int]:
    """Labels from 0, of classes that MATLAB counts from 1; as many as its largest number if their count is unknown."""
    counts = [_count(value) for value in values]
    last = num_classes or max((count for count in counts if isinstance(count, int)), default=1)
    return [label_of(image, count, 1, last) for image, count in zip(images, counts, strict=True)]


def _count(value: Any) -> int | str:
    """A whole number, which MATLAB may keep as a float; anything else as text, for the refusal."""
    return int(value) if isinstance(value, int | float) and float(value).is_integer() else str(value)


def _beside(name: str) -> str:
    """The folder of a file, with its `/`."""
    return name[: len(name) - len(posixpath.basename(name))]


def _above(tree: SourceFiles, folder: str) -> str:
    """The folder, with its `/`, that a data set's folder of images is in."""
    roots = {f"/{name}".rpartition(f"/{folder}/")[0] for name in tree.names if f"/{folder}/" in f"/{name}"}
    if len(roots) != 1:
        shown = f"has {len(roots)}" if roots else "has none"
        raise ImportRefused(f"{tree.path} must have one folder {folder}/ of images, and {shown}.")
    return f"{roots.pop()}/".removeprefix("/")


def _folders(records: Sequence[SourceRecord]) -> list[str]:
    """The names of classes whose images have a folder each, in the order of their labels."""
    names: dict[int, str] = {}
    labels: dict[str, int] = {}
    for record in records:
        folder = posixpath.dirname(record.key)
        if names.setdefault(record.label, folder) != folder or labels.setdefault(folder, record.label) != record.label:
            raise ImportRefused(
                f"each class must have a folder of its own; {record.key} has the label of {names[record.label]} "
                f"in the lists. Get the lists again."
            )
    return [names.get(label, str(label)) for label in range(max(names) + 1)]


def _has(*patterns: str) -> Callable[[SourceFiles], bool]:
    return lambda tree: all(tree.find(pattern) for pattern in patterns)


def _is_nabirds(tree: SourceFiles) -> bool:
    return bool(tree.find("hierarchy.txt") or tree.find(NABIRDS_IMAGES))


SOURCES = (
    Source(
        form="official",
        tasks=("fgvc/cub_200_2011",),
        recognise=lambda tree: (
            not _is_nabirds(tree) and (_has(*BIRD_LISTS)(tree) or _has(CUB_IMAGES, *VPT_LISTS)(tree))
        ),
        listing=birds,
        where="Caltech's data repository: CUB_200_2011.tgz",
    ),
    Source(
        form="official",
        tasks=("fgvc/nabirds",),
        recognise=lambda tree: (
            _is_nabirds(tree) and (_has(*BIRD_LISTS)(tree) or _has(NABIRDS_IMAGES, *VPT_LISTS)(tree))
        ),
        listing=birds,
        where="the Cornell Lab of Ornithology, after its form is filled in: nabirds.tar.gz",
    ),
    Source(
        form="official",
        tasks=("fgvc/oxford_flowers",),
        recognise=lambda tree: _has("setid.mat", "imagelabels.mat")(tree) or _has("jpg/*", *VPT_LISTS)(tree),
        listing=flowers,
        where="the Visual Geometry Group in Oxford: 102flowers.tgz, imagelabels.mat, setid.mat",
    ),
    Source(
        form="official",
        tasks=("fgvc/stanford_dogs",),
        recognise=lambda tree: _has("train_list.mat", "test_list.mat")(tree) or _has(DOG_IMAGES, *VPT_LISTS)(tree),
        listing=dogs,
        where="the Stanford Dogs page: images.tar, lists.tar",
    ),
    Source(
        form="official",
        tasks=("fgvc/stanford_cars",),
        recognise=lambda tree: any(
            bool(tree.find(name)) for name in ("cars_train_annos.mat", "cars_annos.mat", "cars_train/*", "car_ims/*")
        ),
        listing=cars,
        where="copies of the Stanford Cars page, which is gone: cars_train.tgz, cars_test.tgz, car_devkit.tgz and "
        "cars_test_annos_withlabels.mat; or car_ims.tgz and cars_annos.mat",
    ),
)
"""The official forms of the FGVC tasks, archives or unpacked."""
