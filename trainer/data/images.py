"""Encoded images: how they become RGB, what that changes, and whether one can be read. Needs Pillow and numpy only."""

from __future__ import annotations

import functools
import io
import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

TURNED = "turned upright by their EXIF orientation"
"""What is done to images of the user's own that have an orientation."""
CONVERTED_MODES = ("CMYK", "YCCK", "LAB", "HSV", "YCbCr")
"""Modes of Pillow that are converted by a rule for colours."""
DARK = 4095
"""Largest value of 12 bits. Images that have no larger one in 16 bits would be read as black."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""How an image becomes upright, by the value of its EXIF orientation."""
_HEADERS_ONLY = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
"""Formats of which Pillow alone knows the headers and not the pixels."""
_PHOTOMETRIC = 262
"""Tag of a TIFF that says whether zero is white (0) or black (1)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """What an encoded image is, and what is changed when it is read."""

    repairs: tuple[str, ...] = ()
    """Changes that lose or convert something, as they are counted in a card."""
    is_turned: bool = False
    """Whether its EXIF orientation says that it lies on a side, on its head, or is mirrored."""
    brightest: int | None = None
    """Largest value 0..65535 of an image that has one channel of 16 bits, else None."""


@functools.cache
def suffixes() -> frozenset[str]:
    """Return the suffixes of the files that this Pillow reads, in lower case, each with its dot."""
    # Registered once all plugins are loaded, which `registered_extensions` does.
    registered = Image.registered_extensions()
    return frozenset(suffix for suffix, kind in registered.items() if kind in Image.OPEN and kind not in _HEADERS_ONLY)


def to_rgb(image: Image.Image, *, upright: bool = True) -> Image.Image:
    """Return the image with three channels of 8 bits.

    Grey is repeated, colours are converted, alpha is dropped, the first of several frames is taken, and 16 bits are
    scaled down, not clipped.

    Args:
        upright: turn the image by its EXIF orientation, as viewers do.

    Raises:
        ValueError: if its pixels have no fixed range: 32-bit floats and integers.
    """
    image.load()

    if image.mode.startswith(("I", "F")):
        # 65535 = 255 * 257. Pillow's own conversion clips at 255 instead.
        grey = _sixteen_bits(image).astype(np.float64) / 257
        rgb = Image.fromarray(grey.round().astype(np.uint8)).convert("RGB")
    else:
        rgb = image.convert("RGB")

    turn = _TURNS.get(_orientation(image)) if upright else None
    return rgb if turn is None else rgb.transpose(turn)


def is_turned(image: bytes) -> bool:
    """Return whether an encoded image has an EXIF orientation that turns or mirrors it. False if it cannot be read."""
    try:
        with Image.open(io.BytesIO(image)) as opened:
            return _orientation(opened) in _TURNS
    # It can have no orientation if it is no image. Pillow's plugins raise errors of every kind for damaged bytes.
    except Exception:
        return False


def read_image(image: bytes) -> Reading:
    """Read an encoded image to its last pixel, and return what it is.

    Raises:
        ValueError: if it cannot be decoded, or its pixels have no fixed range.
    """
    try:
        with Image.open(io.BytesIO(image)) as opened:
            return _read(opened)
    # Pillow's plugins raise errors of every kind for damaged bytes, also IndexError and struct.error.
    except Exception as error:
        raise ValueError(f"cannot be decoded: {reason_of(error)}") from error


def reason_of(error: Exception) -> str:
    """Return why Pillow could not read an image, as a text."""
    # Its own text names a BytesIO object at some address.
    if isinstance(error, UnidentifiedImageError):
        return "its format is unknown"
    if isinstance(error, MemoryError):
        return "it needs more memory than there is"
    return str(error).rstrip(".") or type(error).__name__


def _read(opened: Image.Image) -> Reading:
    mode = opened.mode
    is_deep = mode.startswith("I") or _has_deep_colours(opened)
    is_tiff = opened.format == "TIFF"
    # A TIFF is turned while it is loaded, and forgets its orientation then.
    is_turned_tiff = is_tiff and _orientation(opened) in _TURNS

    # Faster: all bytes of a JPEG are read, but its pixels are computed coarsely.
    opened.draft("RGB", (64, 64))
    opened.load()

    repairs = []
    brightest = None
    if mode in CONVERTED_MODES:
        repairs.append(f"{mode}, converted to RGB")
    if mode.startswith(("I", "F")):
        brightest = int(_sixteen_bits(opened).max(initial=0))
    elif mode not in {"L", "RGB"}:
        # Raises if this Pillow has no conversion.
        opened.convert("RGB")
    if is_deep:
        repairs.append("16 bits, scaled to 8")
    if _is_transparent(opened):
        repairs.append("transparent in parts, transparency dropped")

    is_turned = is_turned_tiff or _orientation(opened) in _TURNS
    # Last, because it goes through the frames.
    if _has_frames(opened):
        repairs.append("several frames or pages, the first taken")
    return Reading(repairs=tuple(repairs), is_turned=is_turned, brightest=brightest)


def _sixteen_bits(image: Image.Image) -> NDArray[np.uint16]:
    """Return the pixels ``[H, W]`` of an image with one channel of 16 bits, 0 for black.

    Raises:
        ValueError: if its pixels have 32 bits.
    """
    # Pillow has 16 bits of these two formats in a mode of 32 bits, too.
    has_range = image.mode.startswith("I;16") or (image.mode == "I" and image.format in {"PNG", "PPM"})
    if not has_range:
        kind = "floats" if image.mode == "F" else "integers"
        raise ValueError(
            f"its pixels are 32-bit {kind} (mode {image.mode}), which have no fixed range, so nobody knows which value "
            "is white. Convert it to 8 or 16 bits per channel"
        )

    pixels = np.asarray(image).clip(0, 65535).astype(np.uint16)
    # Pillow inverts 8 bits, but not 16 bits.
    is_white_zero = getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == 0
    return 65535 - pixels if is_white_zero else pixels


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of an image: 1 to 8, and 1 if it has none or EXIF is damaged."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    # EXIF is written by every camera and editor, and Pillow raises errors of every kind where it is wrong.
    except Exception:
        return 1
    return orientation if isinstance(orientation, int) else 1


def _has_deep_colours(opened: Image.Image) -> bool:
    """Return whether an opened image has several channels of 16 bits, of which Pillow takes the upper 8."""
    tiles = getattr(opened, "tile", [])
    return opened.format in {"PNG", "TIFF", "SGI"} and ";16" in str([tile[3] for tile in tiles])


def _is_transparent(image: Image.Image) -> bool:
    """Return whether any pixel is not opaque."""
    if not image.has_transparency_data:
        return False
    # Read as ``(lowest, highest)``.
    lowest = image.convert("RGBA").getchannel("A").getextrema()[0]
    return isinstance(lowest, int | float) and lowest < 255


def _has_frames(image: Image.Image) -> bool:
    # The layers of these are not frames: Pillow reads the picture that they make up.
    if image.format == "PSD":
        return False
    try:
        return bool(getattr(image, "n_frames", 1) > 1)
    # The first frame has been read. What is wrong with a later one changes nothing.
    except (EOFError, OSError, SyntaxError, ValueError, struct.error):
        return False
