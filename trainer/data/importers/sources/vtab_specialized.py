"""The specialized tasks of VTAB in the forms that their makers publish."""

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


def _camelyon_name(tree: SourceFiles, part: str, axis: str) -> str:
    plain = CAMELYON.format(CAMELYON_PARTS[part], axis)
    return tree.one(plain if tree.find(plain) else f"{plain}.gz")


def _has_camelyon(tree: SourceFiles) -> bool:
    return bool(tree.find(CAMELYON.format("train", "x") + "*"))


@contextmanager
def _camelyon_array(tree: SourceFiles, part: str, axis: str, folder: Path) -> Iterator[Any]:
    """The array x (images) or y (labels) of a part, open on disk; unpacked to `folder` if it must be."""
    import h5py

    name = _camelyon_name(tree, part, axis)
    path = tree.local(name, folder)
    try:
        if name.endswith(".gz"):
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
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk is full, not the file damaged
        raise ImportRefused(
            f"{tree.path}: {name} is no whole HDF5 file with {axis}: {error}. Download it again."
        ) from error


def _camelyon(tree: SourceFiles, task: str) -> Listing:
    @contextmanager
    def open_part(part: str, folder: Path) -> Iterator[Row]:
        with _camelyon_array(tree, part, "x", folder) as images:
            if images.shape != (counts[part], 96, 96, 3) or images.dtype != "uint8":
                raise ImportRefused(
                    f"{tree.path}: {_camelyon_name(tree, part, 'x')} must be {counts[part]} x 96 x 96 x 3 bytes, an "
                    f"image a label; it is {' x '.join(map(str, images.shape))} of {images.dtype}. Download both again."
                )
            yield lambda i: images[i]

    records, counts = [], {}
    for part in CAMELYON_PARTS:
        images_name = _camelyon_name(tree, part, "x")
        with tempfile.TemporaryDirectory() as folder:
            with _camelyon_array(tree, part, "y", Path(folder)) as labels:
                records += numbered_records(part, labels[:].ravel(), 2)
                counts[part] = labels.size
            if not images_name.endswith(".gz"):
                with open_part(part, Path(folder)):
                    pass
    return Listing(records=records, class_names=["no tumour", "tumour"], read=png_rows(open_part), draw=THREE_PARTS)


def _has_eurosat(tree: SourceFiles) -> bool:
    return bool(class_images(tree, *EUROSAT) or tree.find(EUROSAT_BANDS))


def _eurosat(tree: SourceFiles, task: str) -> Listing:
    return class_listing(
        tree, *EUROSAT, otherwise="The .tif files of 13 bands are no images; get EuroSAT.zip, which holds JPEGs."
    )


def _has_resisc45(tree: SourceFiles) -> bool:
    return bool(class_images(tree, RESISC45) or tree.find(RESISC45_RAR))


def _resisc45(tree: SourceFiles, task: str) -> Listing:
    return class_listing(tree, RESISC45, otherwise="If you have NWPU-RESISC45.rar, unpack it first, with unrar or 7z.")


SOURCES: tuple[Source, ...] = (
    Source(
        form="official",
        tasks=("vtab/patch_camelyon",),
        recognise=_has_camelyon,
        listing=_camelyon,
        where="the PatchCamelyon page of Bas Veeling: the six files camelyonpatch_level_2_split_*.h5.gz",
        licence="CC0",
    ),
    Source(
        form="official",
        tasks=("vtab/eurosat",),
        recognise=_has_eurosat,
        listing=_eurosat,
        where="the EuroSAT page of Patrick Helber: EuroSAT.zip, the RGB images",
    ),
    Source(
        form="official",
        tasks=("vtab/resisc45",),
        recognise=_has_resisc45,
        listing=_resisc45,
        where="the NWPU-RESISC45 page of Gong Cheng: NWPU-RESISC45.rar, to be unpacked",
    ),
    Source(
        form="official",
        tasks=("vtab/diabetic_retinopathy",),
        recognise=retina.recognise,
        listing=retina.listing,
        where="Kaggle's Diabetic Retinopathy Detection (account needed): train/, trainLabels.csv, test/, "
        "retinopathy_solution.csv",
    ),
)
