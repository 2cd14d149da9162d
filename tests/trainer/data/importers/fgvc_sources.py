"""Small sources of the FGVC tasks, in the forms of their makers."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import savemat

from tests.trainer.data.importers.made_sources import Files, jpeg
from trainer.data.importers.archive import SourceFiles
from trainer.data.importers.source import Listing
from trainer.data.importers.sources.fgvc import SOURCES

TASKS = ("cub_200_2011", "nabirds", "oxford_flowers", "stanford_dogs", "stanford_cars")
Changes = Mapping[str, bytes | str | None]


def mat(**variables: Any) -> bytes:
    """Return a .mat file with these variables."""
    buffer = io.BytesIO()
    savemat(buffer, variables)
    return buffer.getvalue()


def cells(*values: str) -> Any:
    """Return a column of MATLAB cells, as in the lists of Stanford Dogs."""
    array = np.empty((len(values), 1), dtype=object)
    array[:, 0] = values
    return array


def annotated(*rows: dict[str, Any]) -> Any:
    """Return a MATLAB struct array, as in the devkit of Stanford Cars."""
    array = np.zeros((1, len(rows)), dtype=[(field, object) for field in rows[0]])
    for i, row in enumerate(rows):
        array[0, i] = tuple(row.values())
    return array


CUB: Files = {
    "CUB_200_2011/images.txt": "1 001.Auk/a_1.jpg\n2 001.Auk/a_2.jpg\n3 002.Wren/w_1.jpg\n4 003.Tit/t_1.jpg\n",
    "CUB_200_2011/image_class_labels.txt": "1 1\n2 1\n3 2\n4 3\n",
    "CUB_200_2011/train_test_split.txt": "1 1\n2 0\n3 1\n4 0\n",
    "CUB_200_2011/classes.txt": "1 001.Auk\n2 002.Wren\n3 003.Tit\n",
    "CUB_200_2011/images/001.Auk/a_1.jpg": jpeg(1),
    "CUB_200_2011/images/001.Auk/a_2.jpg": jpeg(2),
    "CUB_200_2011/images/002.Wren/w_1.jpg": jpeg(3),
    "CUB_200_2011/images/003.Tit/t_1.jpg": jpeg(4),
    "CUB_200_2011/attributes/class_attribute_labels_continuous.txt": "0 0\n",
    "attributes.txt": "1 has_bill_shape::curved\n",
}
NABIRDS: Files = {
    # Classes 0 to 2 and 740 have no images. The images of 817, 9 and 1010 are in no order.
    "nabirds/images.txt": "c-0 1010/c0.jpg\na-1 0817/a1.jpg\nb-2 0009/b2.jpg\nd-3 0817/d3.jpg\n",
    "nabirds/image_class_labels.txt": "a-1 817\nb-2 9\nc-0 1010\nd-3 817\n",
    "nabirds/train_test_split.txt": "a-1 1\nb-2 0\nc-0 1\nd-3 0\n",
    "nabirds/classes.txt": "0 Birds\n1 Ducks, Geese, and Swans\n2 Grouse\n9 Ibises\n740 Larks\n817 Oak Titmouse\n"
    "1010 Dark-eyed Junco (Red-backed/Gray-headed)\n",
    "nabirds/hierarchy.txt": "1 0\n2 0\n9 1\n740 1\n817 1\n1010 1\n",
    "nabirds/images/1010/c0.jpg": jpeg(1),
    "nabirds/images/0817/a1.jpg": jpeg(2),
    "nabirds/images/0009/b2.jpg": jpeg(3),
    "nabirds/images/0817/d3.jpg": jpeg(4),
}
FLOWERS: Files = {
    **{f"jpg/image_{i:05d}.jpg": jpeg(i) for i in range(1, 7)},
    "imagelabels.mat": mat(labels=np.array([[3, 3, 1, 2, 2, 1]], np.uint8)),
    "setid.mat": mat(
        trnid=np.array([[4, 1]], np.uint16), valid=np.array([[6, 2]], np.uint16), tstid=np.array([[5, 3]], np.uint16)
    ),
}
DOGS: Files = {
    "Images/n02085620-Chihuahua/n02085620_7.jpg": jpeg(1),
    "Images/n02085620-Chihuahua/n02085620_9.jpg": jpeg(2),
    "Images/n02085782-Japanese_spaniel/n02085782_2.jpg": jpeg(3),
    "train_list.mat": mat(
        file_list=cells("n02085782-Japanese_spaniel/n02085782_2.jpg", "n02085620-Chihuahua/n02085620_9.jpg"),
        labels=np.array([[2], [1]], np.uint8),
    ),
    "test_list.mat": mat(file_list=cells("n02085620-Chihuahua/n02085620_7.jpg"), labels=np.array([[1]], np.uint8)),
}
CARS: Files = {
    **{
        f"{folder}/0000{i}.jpg": jpeg(i + 9 * k) for k, folder in enumerate(("cars_train", "cars_test")) for i in (1, 2)
    },
    "devkit/cars_meta.mat": mat(class_names=cells("Acura RL", "Audi S4", "smart fortwo").T),
    "devkit/cars_train_annos.mat": mat(
        annotations=annotated(
            {"bbox_x1": 39, "class": 3, "fname": "00001.jpg"}, {"bbox_x1": 3, "class": 1, "fname": "00002.jpg"}
        )
    ),
    "devkit/cars_test_annos.mat": mat(
        annotations=annotated({"bbox_x1": 30, "fname": "00001.jpg"}, {"bbox_x1": 3, "fname": "00002.jpg"})
    ),
    "cars_test_annos_withlabels.mat": mat(
        annotations=annotated(
            {"bbox_x1": 30, "class": 1, "fname": "00001.jpg"}, {"bbox_x1": 3, "class": 2, "fname": "00002.jpg"}
        )
    ),
}
NEWER_CARS: Files = {
    **{f"car_ims/00000{i}.jpg": jpeg(i) for i in (1, 2, 3)},
    "cars_annos.mat": mat(
        annotations=annotated(
            {"relative_im_path": "car_ims/000001.jpg", "bbox_x1": 1, "class": 2, "test": 0},
            {"relative_im_path": "car_ims/000002.jpg", "bbox_x1": 1, "class": 1, "test": 1},
            {"relative_im_path": "car_ims/000003.jpg", "bbox_x1": 1, "class": 1, "test": 0},
        ),
        class_names=cells("Acura RL", "Audi S4").T,
    ),
}
OFFICIAL = dict(zip(TASKS, (CUB, NABIRDS, FLOWERS, DOGS, CARS), strict=True))


def listed(task_name: str, path: Path) -> Listing:
    """Return the listing of the task's source, which must recognise the path."""
    tree = SourceFiles(path)
    (source,) = (source for source in SOURCES if f"fgvc/{task_name}" in source.tasks)
    assert source.recognise(tree)
    return source.listing(tree, f"fgvc/{task_name}")


def changed(files: Files, changes: Changes) -> Files:
    """Return the files with some replaced, added, or (None) left out."""
    merged = {**files, **changes}
    return {name: content for name, content in merged.items() if content is not None}


def of_lists(listing: Listing) -> dict[str, tuple[int, str]]:
    """Return the label and the part of each image, by its key."""
    return {record.key: (record.label, record.part) for record in listing.records}
