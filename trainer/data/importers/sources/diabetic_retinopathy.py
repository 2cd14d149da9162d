"""Diabetic Retinopathy as Kaggle publishes it, with the preprocessing that TFDS calls btgraham-300.

B. Graham described it in his report on winning the competition of 2015: scale a photograph so that the radius of the
retina is 300 pixels, subtract the local mean colour, and fill what is beyond 90 % of the radius with grey. TFDS crops
to that disc and stores it as a JPEG of quality 72. Resampling and JPEG encoding use Pillow here and OpenCV in TFDS:
the images look the same but their bytes differ.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trainer.data.importers.archive import ImportRefused, SourceFiles
from trainer.data.importers.formats.split_lists import THREE_PARTS, check_present, parse_label, read_lines
from trainer.data.importers.source import Listing, SourceRecord
from trainer.plain_text import counted

GRADES = ["no retinopathy", "mild", "moderate", "severe", "proliferative"]
TRAIN_LABELS = "trainLabels.csv"
TEST_LABELS = "retinopathy_solution.csv"
PART_OF_USAGE = {"Public": "val", "Private": "test"}
"""The images of the public leaderboard are TFDS's validation split."""
RADIUS = 300
DISC = 270
"""90 % of the radius."""
GREY = 128
CONTRAST = 4
BLUR = RADIUS // 30
"""Standard deviation of the local mean, in pixels."""
REACH = DISC + 3 * BLUR + 1
"""Distance from the centre, in pixels, up to which a pixel influences the disc."""
JPEG_QUALITY = 72


def recognise(tree: SourceFiles) -> bool:
    """Return whether the source has the labels of the training photographs."""
    return bool(tree.find(TRAIN_LABELS))


def listing(tree: SourceFiles, task: str) -> Listing:
    """List all graded photographs.

    Raises:
        ImportRefused: if a table or a photograph is missing, or a grade is not 0 to 4.
    """
    # The photographs are next to the table, in train/ and test/.
    root = tree.one(TRAIN_LABELS).removesuffix(TRAIN_LABELS)

    records = []
    for row in _read_table(tree, tree.one(TRAIN_LABELS), "image", "level"):
        records.append(_record(f"{root}train", row["image"], row["level"], "train"))

    for row in _read_table(tree, tree.one(TEST_LABELS), "image", "level", "Usage"):
        if row["Usage"] not in PART_OF_USAGE:
            raise ImportRefused(
                f"{tree.path}: the Usage of {row['image']} in {TEST_LABELS} must be Public or Private, got "
                f"{row['Usage']!r}. Download the table again."
            )
        records.append(_record(f"{root}test", row["image"], row["level"], PART_OF_USAGE[row["Usage"]]))

    check_present(tree, records, f"{TRAIN_LABELS} or {TEST_LABELS}")

    def read(requested: Sequence[SourceRecord]) -> Iterator[bytes]:
        photos = tree.read_all([str(record.place) for record in requested])
        for record, photo in zip(requested, photos, strict=True):
            try:
                yield btgraham(photo)
            except OSError as error:
                raise ImportRefused(
                    f"{tree.path}: {record.place} is not a complete photograph: {error}. Download it again."
                ) from error

    return Listing(
        records=records,
        class_names=GRADES,
        read=read,
        draw=THREE_PARTS,
        repairs=(
            f"preprocessed {counted(len(records), 'photograph')} as Graham (2015) and TFDS's btgraham-300: radius "
            f"{RADIUS}, local mean subtracted, 90 % disc, JPEG of quality {JPEG_QUALITY}",
        ),
    )


def _record(folder: str, image: str, level: str, part: str) -> SourceRecord:
    key = f"{folder.rpartition('/')[2]}/{image}"
    return SourceRecord(key, parse_label(image, level, 0, len(GRADES)), part, f"{folder}/{image}.jpeg")


def _read_table(tree: SourceFiles, name: str, *columns: str) -> Iterator[dict[str, str]]:
    """Yield the rows of a CSV table with these columns.

    Raises:
        ImportRefused: if the table or a row lacks a column.
    """
    rows = csv.DictReader(read_lines(tree, name))
    for row in rows:
        missing = [column for column in columns if not row.get(column)]
        if missing:
            raise ImportRefused(
                f"{tree.path}: {name} must have the columns {', '.join(columns)}; line {rows.line_num} has no "
                f"{missing[0]}. Download it again."
            )
        yield row


def btgraham(photo: bytes) -> bytes:
    """Return the photograph of a retina with normalised size and light, as JPEG.

    Raises:
        OSError: if the photograph cannot be decoded.
    """
    from scipy.ndimage import gaussian_filter

    scaled, centre_y, centre_x = _scale(Image.open(io.BytesIO(photo)).convert("RGB"))

    # OpenCV blurs bytes with a kernel of 3 standard deviations to each side.
    mean = gaussian_filter(scaled, (BLUR, BLUR, 0), mode="mirror", truncate=3)
    flat = np.clip(CONTRAST * (scaled - np.rint(mean)) + GREY, 0, 255)

    # Grey out what is beyond the disc, after the blur: it needs the pixels around the disc.
    y, x = np.ogrid[: flat.shape[0], : flat.shape[1]]
    flat[(y - centre_y) ** 2 + (x - centre_x) ** 2 > DISC**2] = GREY

    top = max(centre_y - DISC, 0)
    left = max(centre_x - DISC, 0)
    disc = flat[top : centre_y + DISC, left : centre_x + DISC].astype(np.uint8)

    buffer = io.BytesIO()
    Image.fromarray(disc).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def _scale(photo: Image.Image) -> tuple[NDArray[np.float32], int, int]:
    """Scale a photograph so that the radius of its retina is RADIUS, and crop it to REACH around the centre.

    Returns:
        the pixels ``[H, W, 3]``, and the row and the column of the centre.
    """
    # The retina is the bright part of the middle row.
    middle = photo.height // 2
    light = np.asarray(photo.crop((0, middle, photo.width, middle + 1)))[0].sum(axis=1)
    radius = float(np.count_nonzero(light > light.mean() / 10)) / 2
    if radius < 1:
        # A black middle row has no retina to measure. TFDS takes the height of the photograph for its diameter.
        radius = photo.height / 2

    scale = RADIUS / radius
    width = round(photo.width * scale)
    height = round(photo.height * scale)
    left = max(width // 2 - REACH, 0)
    top = max(height // 2 - REACH, 0)
    size = (min(width // 2 + REACH, width) - left, min(height // 2 + REACH, height) - top)

    # Each new pixel is mixed from the four old ones around it, as OpenCV does. Pillow's resize would mix more.
    window = photo.transform(
        size,
        Image.Transform.AFFINE,
        (1 / scale, 0, left / scale, 0, 1 / scale, top / scale),
        Image.Resampling.BILINEAR,
    )

    return np.asarray(window).astype(np.float32), height // 2 - top, width // 2 - left
