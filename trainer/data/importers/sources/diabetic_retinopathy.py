"""Diabetic Retinopathy as Kaggle hands it out, and the preprocessing that TFDS calls btgraham-300.

B. Graham described it in his report on winning the competition of 2015: scale a photograph so that the retina's radius
is 300 pixels, subtract the local mean colour, grey out what is beyond 90 % of the radius. TFDS crops to that disc and
keeps it as a JPEG of quality 72. The resampling and the JPEG encoder here are Pillow's, TFDS's are OpenCV's: the
images look the same and their bytes differ.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trainer.data.importers.archive import ImportRefused, SourceFiles
from trainer.data.importers.formats.split_lists import THREE_PARTS, check_present, label_of, read_lines
from trainer.data.importers.source import Listing, SourceRecord

GRADES = ["no retinopathy", "mild", "moderate", "severe", "proliferative"]
TRAIN_LABELS, TEST_LABELS = "trainLabels.csv", "retinopathy_solution.csv"
PART_OF_USAGE = {"Public": "val", "Private": "test"}
"""The public leaderboard's images are TFDS's validation split."""
RADIUS = 300
DISC = 270
"""90 % of the radius."""
GREY = 128
CONTRAST = 4
BLUR = RADIUS // 30
"""Standard deviation of the local mean, in pixels."""
REACH = DISC + 3 * BLUR + 1
"""How far from the centre a pixel counts."""
JPEG_QUALITY = 72


def recognise(tree: SourceFiles) -> bool:
    """Whether the labels of the training photographs are there."""
    return bool(tree.find(TRAIN_LABELS))


def listing(tree: SourceFiles, task: str) -> Listing:
    """Lists all graded photographs.

    Raises:
        ImportRefused: if a table or a photograph is missing, or a grade is not 0 to 4.
    """
    root = tree.one(TRAIN_LABELS).removesuffix(TRAIN_LABELS)
    records = [
        _listed(f"{root}train", row["image"], row["level"], "train")
        for row in _table(tree, tree.one(TRAIN_LABELS), "image", "level")
    ]
    for row in _table(tree, tree.one(TEST_LABELS), "image", "level", "Usage"):
        if row["Usage"] not in PART_OF_USAGE:
            raise ImportRefused(
                f"{tree.path}: the Usage of {row['image']} in {TEST_LABELS} must be Public or Private, got "
                f"{row['Usage']!r}. Download it again."
            )
        records.append(_listed(f"{root}test", row["image"], row["level"], PART_OF_USAGE[row["Usage"]]))
    check_present(tree, records, f"{TRAIN_LABELS} or {TEST_LABELS}")

    def read(chosen: Sequence[SourceRecord]) -> Iterator[bytes]:
        for record, photo in zip(chosen, tree.read_all([str(record.place) for record in chosen]), strict=True):
            try:
                yield btgraham(photo)
            except OSError as error:
                raise ImportRefused(
                    f"{tree.path}: {record.place} is no whole photograph: {error}. Download it again."
                ) from error

    return Listing(
        records=records,
        class_names=GRADES,
        read=read,
        draw=THREE_PARTS,
        repairs=(
            f"preprocessed {len(records)} photographs as Graham (2015) and TFDS's btgraham-300: radius {RADIUS}, "
            f"local mean subtracted, 90 % disc, JPEG of quality {JPEG_QUALITY}",
        ),
    )


def _listed(folder: str, image: str, level: str, part: str) -> SourceRecord:
    place = f"{folder}/{image}.jpeg"
    return SourceRecord(f"{folder.rpartition('/')[2]}/{image}", label_of(image, level, 0, len(GRADES)), part, place)


def _table(tree: SourceFiles, name: str, *columns: str) -> Iterator[dict[str, str]]:
    """The rows of a CSV table that has these columns.

    Raises:
        ImportRefused: if it lacks one, or a row does.
    """
    rows = csv.DictReader(read_lines(tree, name))
    for row in rows:
        if missing := [column for column in columns if not row.get(column)]:
            raise ImportRefused(
                f"{tree.path}: {name} must have the columns {', '.join(columns)}; line {rows.line_num} has no "
                f"{missing[0]}. Download it again."
            )
        yield row


def btgraham(photo: bytes) -> bytes:
    """A photograph of a retina at one size and in one light.

    Raises:
        OSError: if the photograph cannot be decoded.
    """
    from scipy.ndimage import gaussian_filter

    scaled, centre_y, centre_x = _scaled(Image.open(io.BytesIO(photo)).convert("RGB"))
    # OpenCV blurs bytes with a kernel of 3 standard deviations to each side.
    mean = gaussian_filter(scaled, (BLUR, BLUR, 0), mode="mirror", truncate=3)
    flat = np.clip(CONTRAST * (scaled - np.rint(mean)) + GREY, 0, 255)
    y, x = np.ogrid[: flat.shape[0], : flat.shape[1]]
    flat[(y - centre_y) ** 2 + (x - centre_x) ** 2 > DISC**2] = GREY
    top, left = max(centre_y - DISC, 0), max(centre_x - DISC, 0)
    disc = flat[top : centre_y + DISC, left : centre_x + DISC].astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(disc).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def _scaled(photo: Image.Image) -> tuple[NDArray[np.float32], int, int]:
    """A photograph with a retina of RADIUS, as far as the disc and its blur reach, and where in it the centre is."""
    middle = photo.height // 2
    light = np.asarray(photo.crop((0, middle, photo.width, middle + 1)))[0].sum(axis=1)
    radius = float(np.count_nonzero(light > light.mean() / 10)) / 2
    if radius < 1:
        # Black along its middle row, so there is no retina to measure; TFDS takes the photograph's height for it.
        radius = photo.height / 2
    scale = RADIUS / radius
    width, height = round(photo.width * scale), round(photo.height * scale)
    left, top = max(width // 2 - REACH, 0), max(height // 2 - REACH, 0)
    # Each new pixel is mixed from the four old ones around it, as OpenCV does; Pillow's resize would mix more.
    window = photo.transform(
        (min(width // 2 + REACH, width) - left, min(height // 2 + REACH, height) - top),
        Image.Transform.AFFINE,
        (1 / scale, 0, left / scale, 0, 1 / scale, top / scale),
        Image.Resampling.BILINEAR,
    )
    return np.asarray(window).astype(np.float32), height // 2 - top, width // 2 - left
