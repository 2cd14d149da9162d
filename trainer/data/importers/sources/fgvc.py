"""The five fine-grained tasks (FGVC) as their makers publish them, with VPT's lists of the splits if present."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.data.importers.archive import ImportRefused, SourceFiles
from trainer.data.importers.formats.mat import mat_arrays
from trainer.data.importers.formats.split_lists import TWO_PARTS, check_present, parse_label
from trainer.data.importers.formats.two_columns import index_by_first, parse_whole_number, read_two_columns
from trainer.data.importers.source import Listing, Source, SourceRecord, source_files
from trainer.data.importers.sources.vpt_lists import VPT_LISTS, vpt_records
from trainer.plain_text import counted

BIRD_LISTS = ("images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt")
CUB_IMAGES = "images/[0-9][0-9][0-9].*/*.jpg"
NABIRDS_IMAGES = "images/[0-9][0-9][0-9][0-9]/*.jpg"
DOG_IMAGES = "Images/n[0-9]*-*/*.jpg"
CAR_LABELS = "cars_test_annos_withlabels*.mat"


def list_birds(tree: SourceFiles, task: str) -> Listing:
    """List CUB-200-2011 or NABirds, which have the same form.

    Only those classes of NABirds are used that have images.

    Raises:
        ImportRefused: if a list is damaged, contradicts another list, or names a missing image.
    """
    has_lists = bool(tree.find(BIRD_LISTS[1]))
    root = _folder_of(tree.one(BIRD_LISTS[1])) if has_lists else _folder_above(tree, "images")

    # VPT's splits.
    vpt = vpt_records(tree, root, "images/")
    if vpt is not None:
        records, _ = vpt
        names = _folder_names(records)
        if task == "fgvc/nabirds" and f"{root}classes.txt" in tree.names:
            rows = read_two_columns(tree.read(f"{root}classes.txt"), "classes.txt")
            name_by_id = {row.first: row.second for row in rows}
            # A folder is the number of its class with leading zeros.
            names = [name_by_id.get(name.lstrip("0") or "0", name) for name in names]
        return Listing(records=records, class_names=names, read=source_files(tree))

    # The official lists: image ids with their paths, classes and parts.
    texts = tree.read_all([root + name for name in BIRD_LISTS])
    images, classes, parts, name_rows = (
        index_by_first(read_two_columns(text, name)) for name, text in zip(BIRD_LISTS, texts, strict=True)
    )
    for name, index in zip(BIRD_LISTS[1:3], (classes, parts), strict=True):
        only_in_one = sorted(images.keys() ^ index.keys())
        if only_in_one:
            raise ImportRefused(
                f"{name} and images.txt must name the same images; {only_in_one[0]} is in only one of them. "
                "Download both again."
            )

    class_of = {image: row.number() for image, row in classes.items()}
    name_of = {parse_whole_number(row.first, row.where): row.second for row in name_rows.values()}
    for image, class_id in class_of.items():
        if class_id not in name_of:
            raise ImportRefused(
                f"{classes[image].where} must give a class of classes.txt, got {class_id}. Download both again."
            )

    # NABirds also numbers the groups above its species, and these have no images.
    class_ids = sorted(set(class_of.values())) if task == "fgvc/nabirds" else sorted(name_of)
    label_by_id = {class_id: label for label, class_id in enumerate(class_ids)}

    records = []
    for image, row in images.items():
        is_train = parts[image].second
        if is_train not in ("0", "1"):
            raise ImportRefused(
                f"{parts[image].where} must say 1 for train or 0 for test, got {is_train!r}. Download the list again."
            )
        part = "train" if is_train == "1" else "test"
        records.append(SourceRecord(row.second, label_by_id[class_of[image]], part, f"{root}images/{row.second}"))

    check_present(tree, records, "images.txt")
    class_names = [name_of[class_id] for class_id in class_ids]
    return Listing(records=records, class_names=class_names, read=source_files(tree), draw=TWO_PARTS)


def list_flowers(tree: SourceFiles, task: str) -> Listing:
    """List Oxford Flowers 102 with its official splits. Its classes have only numbers.

    Raises:
        ImportRefused: if a list is damaged or names a missing image.
    """
    root = _folder_above(tree, "jpg")

    # The official splits are the published ones, so VPT's lists are used only without them.
    vpt = None if tree.find("setid.mat") else vpt_records(tree, root, "")
    if vpt is not None:
        records, class_ids = vpt
        return Listing(records=records, class_names=list(map(str, class_ids)), read=source_files(tree))

    # The official lists: the class of each image, and the images of each part.
    (labels,) = mat_arrays(tree, tree.one("imagelabels.mat"), "labels")
    image_sets = mat_arrays(tree, tree.one("setid.mat"), "trnid", "valid", "tstid")
    keys = [f"jpg/image_{i:05d}.jpg" for i in range(1, labels.size + 1)]
    image_labels = _parse_labels(keys, _cells(labels, "imagelabels.mat"))

    records = []
    for part, numbers in zip(("train", "val", "test"), image_sets, strict=True):
        for number in _cells(numbers, "setid.mat"):
            # Images are counted from 1, as classes are.
            index = parse_label(f"{part} in setid.mat", _whole_or_text(number), 1, labels.size)
            records.append(SourceRecord(keys[index], image_labels[index], part, root + keys[index]))

    check_present(tree, records, "setid.mat")
    class_names = [str(label + 1) for label in range(max(image_labels) + 1)]
    return Listing(records=records, class_names=class_names, read=source_files(tree))


def list_dogs(tree: SourceFiles, task: str) -> Listing:
    """List Stanford Dogs.

    Raises:
        ImportRefused: if a list is damaged or names a missing image.
    """
    root = _folder_above(tree, "Images")

    # VPT's splits.
    vpt = vpt_records(tree, root, "Images/")
    if vpt is not None:
        records, _ = vpt
        return Listing(records=records, class_names=_folder_names(records), read=source_files(tree))

    # The official lists: paths and classes, one file per part.
    keys: list[str] = []
    class_ids: list[Any] = []
    parts: list[str] = []
    for part in ("train", "test"):
        name = f"{part}_list.mat"
        images, classes = (_cells(cells, name) for cells in mat_arrays(tree, tree.one(name), "file_list", "labels"))
        if len(images) != len(classes):
            raise ImportRefused(
                f"{name} must label each image, got {counted(len(images), 'image')} and "
                f"{counted(len(classes), 'label')}. Download it again."
            )
        keys += images
        class_ids += classes
        parts += [part] * len(images)

    records = [
        SourceRecord(key, label, part, f"{root}Images/{key}")
        for key, label, part in zip(keys, _parse_labels(keys, class_ids), parts, strict=True)
    ]
    check_present(tree, records, "train_list.mat or test_list.mat")
    return Listing(records=records, class_names=_folder_names(records), read=source_files(tree), draw=TWO_PARTS)


def list_cars(tree: SourceFiles, task: str) -> Listing:
    """List Stanford Cars in its first form (cars_train, cars_test) or its newer form (car_ims).

    Raises:
        ImportRefused: if the test list has no classes, or a list is damaged or names a missing image.
    """
    is_newer = bool(tree.find("car_ims/*"))
    root = _folder_above(tree, "car_ims" if is_newer else "cars_train")
    meta = "cars_annos.mat" if is_newer else "cars_meta.mat"

    class_names: list[str] = []
    if tree.find(meta):
        class_names = _cells(mat_arrays(tree, tree.one(meta), "class_names")[0], meta)

    # VPT's splits.
    vpt = vpt_records(tree, root, "")
    if vpt is not None:
        records, class_ids = vpt
        if len(class_names) != len(class_ids):
            class_names = [str(class_id) for class_id in class_ids]
        return Listing(records=records, class_names=class_names, read=source_files(tree))

    # The official lists. An entry is the key, the folder that contains it, the class counted from 1, and the part.
    if is_newer:
        rows = _annotations(tree, tree.one(meta), "relative_im_path", "class", "test")
        entries = [(key, root, class_id, "test" if is_test else "train") for key, class_id, is_test in rows]
    else:
        train = _annotations(tree, tree.one("cars_train_annos.mat"), "fname", "class")
        test = _annotations(tree, tree.one(_car_test_labels(tree)), "fname", "class")
        test_root = _folder_above(tree, "cars_test")
        entries = [(f"cars_train/{name}", root, class_id, "train") for name, class_id in train]
        entries += [(f"cars_test/{name}", test_root, class_id, "test") for name, class_id in test]

    labels = _parse_labels(
        [key for key, _, _, _ in entries], [class_id for _, _, class_id, _ in entries], len(class_names)
    )
    records = [
        SourceRecord(key, label, part, folder + key)
        for (key, folder, _, part), label in zip(entries, labels, strict=True)
    ]
    check_present(tree, records, "its devkit")

    if not class_names:
        class_names = [str(label + 1) for label in range(max(labels) + 1)]
    return Listing(records=records, class_names=class_names, read=source_files(tree), draw=TWO_PARTS)


def _car_test_labels(tree: SourceFiles) -> str:
    """Return the pattern of the test list that has classes."""
    if tree.find(CAR_LABELS):
        return CAR_LABELS

    # Some copies have the classes under the name of the list without them.
    (annotations,) = mat_arrays(tree, tree.one("cars_test_annos.mat"), "annotations")
    if "class" not in (annotations.dtype.names or ()):
        raise ImportRefused(
            f"{tree.path}: cars_test_annos.mat has no classes. Put cars_test_annos_withlabels.mat next to it; "
            "its makers published it apart from the devkit."
        )
    return "cars_test_annos.mat"


def _annotations(tree: SourceFiles, name: str, *fields: str) -> list[tuple[Any, ...]]:
    """Return the fields of each image in the devkit's `annotations`."""
    (annotations,) = mat_arrays(tree, name, "annotations")

    missing = [field for field in fields if field not in (annotations.dtype.names or ())]
    if missing:
        raise ImportRefused(
            f"{tree.path}: the annotations of {name} must have the fields {', '.join(fields)}; "
            f"{', '.join(missing)} is missing. Download it again."
        )

    return list(zip(*(_cells(annotations[field], name) for field in fields), strict=True))


def _cells(cells: NDArray[Any], name: str) -> list[Any]:
    """Return the single values of an array or of MATLAB's cells."""
    values = [np.asarray(cell) for cell in cells.ravel()]
    if not values:
        raise ImportRefused(f"{name} must have rows, but it is empty. Download it again.")

    wrong_rows = [row for row, value in enumerate(values, start=1) if value.size != 1]
    if wrong_rows:
        raise ImportRefused(f"{name}, row {wrong_rows[0]} must contain one value. Download it again.")

    return [value.item() for value in values]


def _parse_labels(images: Sequence[str], class_ids: Sequence[Any], num_classes: int = 0) -> list[int]:
    """Return labels counted from 0, given class numbers that MATLAB counts from 1.

    Args:
        num_classes: 0 if unknown; then the largest class number is used.
    """
    numbers = [_whole_or_text(class_id) for class_id in class_ids]
    last = num_classes or max((number for number in numbers if isinstance(number, int)), default=1)
    return [parse_label(image, number, 1, last) for image, number in zip(images, numbers, strict=True)]


def _whole_or_text(value: Any) -> int | str:
    """Return a whole number, which MATLAB may store as a float. Return anything else as text, for the error."""
    if isinstance(value, int | float) and float(value).is_integer():
        return int(value)
    return str(value)


def _folder_of(name: str) -> str:
    """Return the folder of a file, with its `/`."""
    return name[: len(name) - len(posixpath.basename(name))]


def _folder_above(tree: SourceFiles, folder: str) -> str:
    """Return the folder, with its `/`, that contains a data set's folder of images."""
    roots = {f"/{name}".rpartition(f"/{folder}/")[0] for name in tree.names if f"/{folder}/" in f"/{name}"}
    if len(roots) != 1:
        raise ImportRefused(
            f"{tree.path} must have one folder {folder}/ of images, it has {len(roots) or 'none'}. "
            "Put the images there, or name the folder of one data set."
        )

    return f"{roots.pop()}/".removeprefix("/")


def _folder_names(records: Sequence[SourceRecord]) -> list[str]:
    """Return the names of classes whose images have one folder per class, in the order of their labels."""
    names: dict[int, str] = {}
    labels: dict[str, int] = {}
    for record in records:
        folder = posixpath.dirname(record.key)
        if names.setdefault(record.label, folder) != folder or labels.setdefault(folder, record.label) != record.label:
            raise ImportRefused(
                f"each class must have a folder of its own; the lists give {record.key} the label of "
                f"{names[record.label]}. Download the lists again."
            )

    # A label without images has no folder.
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
        listing=list_birds,
        where="Caltech's data repository: CUB_200_2011.tgz",
    ),
    Source(
        form="official",
        tasks=("fgvc/nabirds",),
        recognise=lambda tree: (
            _is_nabirds(tree) and (_has(*BIRD_LISTS)(tree) or _has(NABIRDS_IMAGES, *VPT_LISTS)(tree))
        ),
        listing=list_birds,
        where="the Cornell Lab of Ornithology, after you fill in its form: nabirds.tar.gz",
    ),
    Source(
        form="official",
        tasks=("fgvc/oxford_flowers",),
        recognise=lambda tree: _has("setid.mat", "imagelabels.mat")(tree) or _has("jpg/*", *VPT_LISTS)(tree),
        listing=list_flowers,
        where="the Visual Geometry Group in Oxford: 102flowers.tgz, imagelabels.mat, setid.mat",
    ),
    Source(
        form="official",
        tasks=("fgvc/stanford_dogs",),
        recognise=lambda tree: _has("train_list.mat", "test_list.mat")(tree) or _has(DOG_IMAGES, *VPT_LISTS)(tree),
        listing=list_dogs,
        where="the Stanford Dogs page: images.tar, lists.tar",
    ),
    Source(
        form="official",
        tasks=("fgvc/stanford_cars",),
        recognise=lambda tree: any(
            bool(tree.find(name)) for name in ("cars_train_annos.mat", "cars_annos.mat", "cars_train/*", "car_ims/*")
        ),
        listing=list_cars,
        where="copies of the former Stanford Cars page: cars_train.tgz, cars_test.tgz, car_devkit.tgz and "
        "cars_test_annos_withlabels.mat; or car_ims.tgz and cars_annos.mat",
    ),
)
"""The official forms of the FGVC tasks, in archives or unpacked."""
