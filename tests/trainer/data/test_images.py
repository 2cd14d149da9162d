"""Images of every mode, format and orientation: what is read is read faithfully, and the rest is refused."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from trainer.data.image_cache import load_decoded, load_whole
from trainer.data.images import is_turned, read_image, suffixes, to_rgb
from trainer.data.task_store import SPLITS, Card, Example, read_card, write_task
from trainer.data.transforms import decode, decode_whole
from trainer.data.verify import verify

SIDE = 32
GREY_HW = np.tile(np.linspace(0, 255, SIDE).round().astype(np.uint8), (SIDE, 1))
RGB_HW3 = np.stack([GREY_HW, GREY_HW.T, 255 - GREY_HW], axis=-1)
COLOUR = Image.fromarray(RGB_HW3)
GREY = Image.fromarray(GREY_HW)
GREY_HW3 = np.stack([GREY_HW] * 3, axis=-1)

PICTURES: dict[str, tuple[Image.Image, NDArray[np.uint8]]] = {
    "1": (GREY.point(lambda v: 255 * (v > 127)).convert("1"), (GREY_HW3 > 127).astype(np.uint8) * 255),
    "L": (GREY, GREY_HW3),
    "P": (GREY.convert("P"), GREY_HW3),
    "RGB": (COLOUR, RGB_HW3),
    "RGBA": (COLOUR.convert("RGBA"), RGB_HW3),
    "LA": (GREY.convert("LA"), GREY_HW3),
    "CMYK": (COLOUR.convert("CMYK"), RGB_HW3),
    "YCbCr": (COLOUR.convert("YCbCr"), RGB_HW3),
    "I;16": (Image.fromarray(GREY_HW.astype(np.uint16) * 257), GREY_HW3),
    "I": (Image.fromarray(GREY_HW.astype(np.int32)), GREY_HW3),
    "F": (Image.fromarray(GREY_HW.astype(np.float32) / 255), GREY_HW3),
}
"""A gradient in each mode, and its pixels in RGB."""
# A GIF has 256 colours. The others lose little.
TOLERANCE = {"GIF": 8.0}
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "SGI", "TGA", "TIFF", "WEBP")
# Pillow clips or loses pixels when it writes these modes, so the files hold no gradient.
WRITTEN_BADLY = {("I;16", "AVIF"), ("I;16", "GIF"), ("I;16", "WEBP"), ("I", "PPM"), ("I", "AVIF"), ("I", "GIF")} | {
    ("I", "WEBP"), ("F", "AVIF"), ("F", "GIF"), ("F", "WEBP"),
}  # fmt: skip


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def rgb_of(data: bytes, *, upright: bool = True) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(data)) as opened:
        return np.asarray(to_rgb(opened, upright=upright))


def difference(pixels: NDArray[np.uint8], expected: NDArray[np.uint8]) -> float:
    return float(np.abs(pixels.astype(int) - expected).mean())


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("mode", PICTURES)
def test_a_gradient_is_read_as_it_is_in_every_mode_and_format_or_refused(mode: str, kind: str) -> None:
    image, expected = PICTURES[mode]
    try:
        data = encoded(image, kind)
    except (OSError, KeyError, ValueError):
        pytest.skip(f"{kind} has no {mode}")
    if (mode, kind) in WRITTEN_BADLY:
        pytest.skip(f"Pillow does not write {mode} to {kind} as it is")

    if mode in {"I", "F"}:
        with pytest.raises(ValueError, match=rf"32-bit .* \(mode {mode}\), which have no fixed range"):
            read_image(data)
        with pytest.raises(ValueError, match="no fixed range"):
            decode(data, 8, "spt")
        return

    read_image(data)
    assert difference(rgb_of(data), expected) <= TOLERANCE.get(kind, 3.0)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("zero_is_white", [False, True])
def test_a_tiff_of_16_bits_is_scaled_in_either_byte_order_and_polarity(order: str, zero_is_white: bool) -> None:
    values = GREY_HW.astype(np.uint16) * 257
    data = bytearray(encoded(Image.fromarray(values), "TIFF"))
    if order == ">":
        data = bytearray(encoded(Image.fromarray(values.astype(">u2")), "TIFF"))
    if zero_is_white:
        # The entry of the tag: number, type SHORT, one value, and the value, here 1.
        endian: Literal["little", "big"] = "little" if data[:2] == b"II" else "big"
        entry = (262).to_bytes(2, endian) + (3).to_bytes(2, endian) + (1).to_bytes(4, endian)
        value = data.index(entry) + len(entry)
        data[value : value + 2] = b"\0\0"

    if zero_is_white and order == ">":
        # Pillow does not read it: refused, not inverted.
        with pytest.raises(ValueError, match="its format is unknown"):
            read_image(bytes(data))
        return

    expected = 255 - GREY_HW3 if zero_is_white else GREY_HW3
    assert difference(rgb_of(bytes(data)), expected) == 0
    assert read_image(bytes(data)).repairs == ("16 bits, scaled to 8",)


def test_what_reading_changes_is_told() -> None:
    transparent = COLOUR.convert("RGBA")
    transparent.putpixel((3, 4), (1, 2, 3, 9))
    pages = [GREY, GREY.rotate(90), GREY]
    changes = {
        encoded(COLOUR, "PNG"): (),
        encoded(COLOUR.convert("RGBA"), "PNG"): (),
        encoded(transparent, "PNG"): ("transparent in parts, transparency dropped",),
        encoded(COLOUR.convert("CMYK"), "JPEG"): ("CMYK, converted to RGB",),
        encoded(PICTURES["I;16"][0], "PNG"): ("16 bits, scaled to 8",),
        encoded(GREY, "TIFF", save_all=True, append_images=pages): ("several frames or pages, the first taken",),
        encoded(GREY, "GIF", save_all=True, append_images=pages): ("several frames or pages, the first taken",),
        encoded(GREY, "PNG", save_all=True, append_images=pages): ("several frames or pages, the first taken",),
    }
    for data, repairs in changes.items():
        assert read_image(data).repairs == repairs


UNTURN = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""How a camera stores an upright picture, by the orientation that it then writes."""
PHOTO = Image.fromarray(np.kron(np.arange(6).reshape(2, 3) * 40, np.ones((20, 20))).astype(np.uint8)).convert("RGB")
"""60 x 40 pixels, no two of its six squares alike."""


def photo(orientation: object, kind: str = "PNG") -> bytes:
    turn = UNTURN.get(orientation) if isinstance(orientation, int) else None
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(PHOTO if turn is None else PHOTO.transpose(turn), kind, exif=exif)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP", "AVIF", "MPO"])
@pytest.mark.parametrize("orientation", UNTURN)
def test_a_photograph_of_any_orientation_is_read_as_the_upright_one(orientation: int, kind: str) -> None:
    data = photo(orientation, kind)
    upright = np.asarray(PHOTO)
    assert rgb_of(data).shape == (40, 60, 3) and difference(rgb_of(data), upright) < 4
    assert is_turned(data) == read_image(data).is_turned == (orientation != 1)

    whole = decode_whole(data, 64)
    assert whole.shape == (40, 60, 3) and difference(whole, upright) < 4
    for transform in ("spt", "vpt"):
        for augmented in (False, True):
            square = decode(data, 32, transform, augmented=augmented)
            expected = decode(encoded(PHOTO, "PNG"), 32, transform, augmented=augmented)
            assert (square.float() - expected.float()).abs().mean() < 4


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_turns_nothing(orientation: int) -> None:
    assert difference(rgb_of(photo(orientation)), np.asarray(PHOTO)) == 0


@pytest.mark.filterwarnings("ignore")
def test_damaged_exif_does_not_keep_an_image_from_being_read() -> None:
    generator = np.random.default_rng(0)
    whole = photo(6, "JPEG")
    start = whole.index(b"Exif\0\0") + 6
    length = int.from_bytes(whole[start - 8 : start - 6], "big") - 8
    plain = rgb_of(whole, upright=False)
    for _ in range(60):
        data = bytearray(whole)
        for position in generator.integers(start, start + length, 3):
            data[position] = generator.integers(256)
        pixels = rgb_of(bytes(data))
        read_image(bytes(data))
        # It is turned or not, and never anything else.
        turns = [None, *filter(None, UNTURN.values())]
        candidates = [
            np.asarray(Image.fromarray(plain) if t is None else Image.fromarray(plain).transpose(t)) for t in turns
        ]
        assert any(pixels.shape == c.shape and (pixels == c).all() for c in candidates)


@pytest.mark.filterwarnings("ignore")
def test_any_damaged_bytes_are_one_kind_of_error() -> None:
    generator = np.random.default_rng(1)
    for kind in ("PNG", "JPEG", "TIFF", "WEBP", "GIF", "BMP", "TGA", "PPM", "ICO", "DDS", "QOI"):
        whole = encoded(COLOUR, kind)
        for _ in range(25):
            data = bytearray(whole[: int(generator.integers(1, len(whole) + 1))])
            for position in generator.integers(0, len(data), 4):
                data[position] = generator.integers(256)
            with contextlib.suppress(ValueError):
                read_image(bytes(data))

    with pytest.raises(ValueError) as caught:
        read_image(b"no image")
    assert str(caught.value) == "cannot be decoded: its format is unknown"


def own_task(root: str, name: str, make: Callable[[int], bytes]) -> Card:
    splits = {split: [Example(key=f"{split}{i}", label=i % 2, image=make(i)) for i in range(4)] for split in SPLITS}
    return write_task(root, name, splits, source="here", class_names=["a", "b"], protocol="drawn")


def test_a_task_of_ones_own_is_turned_and_its_fingerprint_says_so(tmp_path: object) -> None:
    root = str(tmp_path)
    own = own_task(root, "own/photos", lambda i: photo(6))
    plain = own_task(root, "own/plain", lambda i: photo(1))
    whole = load_whole(root, own, ("train",), 64, f"{root}/cache")
    assert whole.size_N2.tolist() == [[40, 60]] * 4, "crops are drawn from the upright photograph"
    upright = load_decoded(root, plain, ("train",), 16, "spt", f"{root}/cache").pixels_NCSS
    assert (load_decoded(root, own, ("train",), 16, "spt", f"{root}/cache").pixels_NCSS == upright).all()
    assert "12 images are turned upright by their EXIF orientation" in verify(root, "own/photos").notes

    # The bytes of a task of the catalog are read as the published code reads them.
    published = own_task(root, "vtab/dtd", lambda i: photo(6))
    assert load_whole(root, published, ("train",), 64, f"{root}/cache").size_N2.tolist() == [[60, 40]] * 4
    assert published.fingerprint != own.fingerprint
    assert read_card(root, "vtab/dtd") == published and not published.upright and own.upright


def test_the_suffixes_are_those_that_pillow_reads() -> None:
    assert {".jpg", ".jfif", ".png", ".webp", ".tif", ".gif", ".bmp", ".ppm"} <= suffixes()
    assert not suffixes() & {".pdf", ".h5", ".hdf", ".mpeg", ".eps", ".txt", ".npy", ".svg", ".raw", ""}
