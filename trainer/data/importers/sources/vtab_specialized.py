"""VTAB's specialized tasks in the forms that their makers publish."""

from __future__ import annotations

import gzip
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trainer.data.importers.archive import ImportRefused, SourceFiles
from trainer.data.importers.formats.array_images import Row, numbered_records, png_rows
from trainer.data.importers.formats.class_folders import class_images, class_listing
from trainer.data.importers.formats.split_lists import THREE_PARTS
from trainer.data.importers.source import Listing, Source
from trainer.data.importers.sources import diabetic_retinopathy as retina

CAMELYON = "camelyonpatch_level_2_split_{}_{}.h5"
CAMELYON_PARTS = {"train": "train", "val": "valid", "test": "test"}
EUROSAT = ("2750", "EuroSAT_RGB", "EuroSAT")
EUROSAT_BANDS = "tif/*/*_*.tif"
RESISC45 = "NWPU-RESISC45"
RESISC45_RAR = "NWPU-RESISC45*.rar"


def _camelyon_file(tree: SourceFiles, part: str, axis: str) -> str:
    """Return the file of the array x or y of a part, the unpacked one if both are there."""
    unpacked = CAMELYON.format(CAMELYON_PARTS[part], axis)
    return tree.one(unpacked if tree.find(unpacked) else f"{unpacked}.gz")


def _has_camelyon(tree: SourceFiles) -> bool:
    return bool(tree.find(CAMELYON.format("train", "x") + "*"))


@contextmanager
def _camelyon_array(tree: SourceFiles, part: str, axis: str, folder: Path) -> Iterator[Any]:
    """Yield the array x (images) or y (labels) of a part, open on disk, unpacked to `folder` if necessary."""
    import h5py

    name = _camelyon_file(tree, part, axis)
    path = tree.local(name, folder)
    try:
        if name.endswith(".gz"):
            # h5py seeks, which a gzip stream cannot do fast.
            unpacked = folder / path.name.removesuffix(".gz")
            with gzip.open(path) as packed, unpacked.open("wb") as file:
                shutil.copyfileobj(packed, file)
            path = unpacked

        with h5py.File(path) as opened:
            array = opened[axis]
            if not isinstance(array, h5py.Dataset):
                raise KeyError(axis)
            yield array

    except (OSError, EOFError, KeyError, zlib.error) as error:
        # An error number comes from the system: the disk is full, for example, and the file is not damaged.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ImportRefused(
            f"{tree.path}: {name} is not a complete HDF5 file with {axis}: {error}. Download it again."
        ) from error


def _list_camelyon(tree: SourceFiles, task: str) -> Listing:
    @contextmanager
    def open_part(part: str, folder: Path) -> Iterator[Row]:
        with _camelyon_array(tree, part, "x", folder) as images:
            if images.shape != (num_labels[part], 96, 96, 3) or images.dtype != "uint8":
                raise ImportRefused(
                    f"{tree.path}: {_camelyon_file(tree, part, 'x')} must be {num_labels[part]} x 96 x 96 x 3 bytes, "
                    f"one image per label; it is {' x '.join(map(str, images.shape))} of {images.dtype}. "
                    "Download both files again."
                )
            yield lambda i: images[i]

    # Labels are few and read whole; `open_part` compares their number with that of the images.
    records = []
    num_labels = {}
    for part in CAMELYON_PARTS:
        images_file = _camelyon_file(tree, part, "x")
        with tempfile.TemporaryDirectory() as folder:
            with _camelyon_array(tree, part, "y", Path(folder)) as labels:
                records += numbered_records(part, labels[:].ravel(), 2)
                num_labels[part] = labels.size

            # Check the images now if that costs nothing. A packed file is checked when its images are read.
            if not images_file.endswith(".gz"):
                with open_part(part, Path(folder)):
                    pass

    return Listing(records=records, class_names=["no tumour", "tumour"], read=png_rows(open_part), draw=THREE_PARTS)


def _has_eurosat(tree: SourceFiles) -> bool:
    # The .tif files are recognised too, so that the error can name the right download.
    return bool(class_images(tree, *EUROSAT) or tree.find(EUROSAT_BANDS))


def _list_eurosat(tree: SourceFiles, task: str) -> Listing:
    return class_listing(
        tree,
        *EUROSAT,
        otherwise="The .tif files have 13 bands and are not images; download EuroSAT.zip, which contains JPEGs.",
    )


def _has_resisc45(tree: SourceFiles) -> bool:
    # The .rar file is recognised too, so that the error can say that it must be unpacked.
    return bool(class_images(tree, RESISC45) or tree.find(RESISC45_RAR))


def _list_resisc45(tree: SourceFiles, task: str) -> Listing:
    return class_listing(tree, RESISC45, otherwise="If you have NWPU-RESISC45.rar, unpack it first, with unrar or 7z.")


SOURCES: tuple[Source, ...] = (
    Source(
        form="official",
        tasks=("vtab/patch_camelyon",),
        recognise=_has_camelyon,
        listing=_list_camelyon,
        where="the PatchCamelyon page of Bas Veeling: the six files camelyonpatch_level_2_split_*.h5.gz",
        licence="CC0",
    ),
    Source(
        form="official",
        tasks=("vtab/eurosat",),
        recognise=_has_eurosat,
        listing=_list_eurosat,
        where="the EuroSAT page of Patrick Helber: EuroSAT.zip, the RGB images",
    ),
    Source(
        form="official",
        tasks=("vtab/resisc45",),
        recognise=_has_resisc45,
        listing=_list_resisc45,
        where="the NWPU-RESISC45 page of Gong Cheng: NWPU-RESISC45.rar, which you unpack first",
    ),
    Source(
        form="official",
        tasks=("vtab/diabetic_retinopathy",),
        recognise=retina.recognise,
        listing=retina.listing,
        where="Kaggle's Diabetic Retinopathy Detection (needs an account): train/, trainLabels.csv, test/, "
        "retinopathy_solution.csv",
    ),
)
"""The official forms of the specialized tasks."""
