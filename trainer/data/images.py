"""Encoded images: conversion to RGB, and the check that one can be decoded. Needs Pillow and numpy only."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

REPAIRED = {"CMYK": "CMYK, converted to RGB", "YCCK": "CMYK, converted to RGB", "I": "16 bits, scaled to 8"}
"""Repair that an image needs when it is read, by the beginning of Pillow's mode."""


def to_rgb(image: Image.Image) -> Image.Image:
    """Return the image with three channels of 8 bits.

    Grey is repeated, CMYK is converted, alpha is dropped, and 16 bits are scaled down, not clipped.
    """
    if image.mode.startswith("I"):
        # 65535 = 255 * 257. Pillow's own conversion clips at 255 instead.
        grey = np.asarray(image).astype(np.float64) / 257
        return Image.fromarray(grey.round().clip(0, 255).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")


def check_image(image: bytes) -> str | None:
    """Return the repair that an encoded image needs when it is read, or None if it needs none.

    Raises:
        ValueError: if the image cannot be decoded to its last pixel.
    """
    try:
        with Image.open(io.BytesIO(image)) as opened:
            mode = opened.mode
            # Faster: all bytes of a JPEG are read, but its pixels are computed coarsely.
            opened.draft("RGB", (64, 64))
            opened.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot be decoded: {error}") from error

    for prefix, repair in REPAIRED.items():
        if mode.startswith(prefix):
            return repair
    return None
