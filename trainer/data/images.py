"""Encoded images: what kinds there are, and which are whole. Pillow and numpy only."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

REPAIRED = {"CMYK": "CMYK, converted to RGB", "YCCK": "CMYK, converted to RGB", "I": "16 bits, scaled to 8"}
"""Kinds of images that are read as something else than they are, by the beginning of Pillow's mode."""


def to_rgb(image: Image.Image) -> Image.Image:
    """Three channels of 8 bits: grey is repeated, CMYK converted, alpha dropped, 16 bits scaled down (not clipped)."""
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.float64) / 257
        return Image.fromarray(grey.round().clip(0, 255).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")


def check(image: bytes) -> str | None:
    """How an image is repaired when it is read, or None if it need not be.

    Raises:
        ValueError: if it cannot be decoded to its last pixel.
    """
    try:
        with Image.open(io.BytesIO(image)) as opened:
            mode = opened.mode
            opened.draft("RGB", (64, 64))  # a JPEG's bytes are all read, its pixels only coarsely computed
            opened.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot be decoded: {error}") from error
    return next((repair for kind, repair in REPAIRED.items() if mode.startswith(kind)), None)
