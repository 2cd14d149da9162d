"""Transforms: fixed views equal torchvision's, whole views keep the photograph, random crops are the published ones.

Shapes: B batch, C 3, S side of a square, H W height and width.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import ks_2samp, kstest
from sklearn.datasets import load_sample_image
from torch import Tensor
from torchvision import transforms as reference
from torchvision.transforms.v2 import functional as TF

from trainer.data.transforms import (
    TransformName,
    _any_area_boxes,
    _short_side_boxes,
    cut,
    decode,
    decode_whole,
    random_crops,
    whole_size,
)

BICUBIC, BILINEAR = reference.InterpolationMode.BICUBIC, reference.InterpolationMode.BILINEAR
NAMES: tuple[TransformName, ...] = ("spt", "vpt")
SIZES = [(300, 200), (200, 300), (224, 224), (51, 40), (40, 51), (257, 255), (500, 20), (7, 400)]
"""Widths and heights of images: landscape, portrait, square, small, odd, extreme."""


def photo(width: int, height: int) -> Image.Image:
    """Noise: no two parts of the image are equal."""
    pixels = np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def pixels_of(picture: Image.Image) -> Tensor:
    array: NDArray[np.uint8] = np.asarray(picture)
    return torch.from_numpy(array.copy()).permute(2, 0, 1)


def published(transform: TransformName, size: int, *, augmented: bool) -> Callable[[Image.Image], Image.Image]:
    """The transform of the two papers, in torchvision's classes."""
    interpolation = BICUBIC if transform == "spt" else BILINEAR
    if transform == "vpt" and not augmented:
        steps: list[torch.nn.Module] = [reference.Resize((size, size), interpolation)]
    else:
        steps = [
            reference.Resize(round(size * 256 / 224) if augmented else size, interpolation),
            reference.CenterCrop(size),
        ]
    composed: Callable[[Image.Image], Image.Image] = reference.Compose(steps)
    return composed


@pytest.mark.parametrize("augmented", [False, True], ids=["vtab", "fgvc"])
@pytest.mark.parametrize("size", [224, 32])
@pytest.mark.parametrize("transform", ["spt", "vpt"])
def test_a_fixed_view_equals_that_of_the_papers(transform: TransformName, size: int, augmented: bool) -> None:
    for width, height in SIZES:
        picture = photo(width, height)
        expected = pixels_of(published(transform, size, augmented=augmented)(picture))
        decoded = decode(png(picture), size, transform, augmented=augmented)
        assert decoded.dtype == torch.uint8 and decoded.shape == (3, size, size)
        assert torch.equal(decoded, expected), (width, height)


def test_the_four_fixed_views_are_different() -> None:
    image = png(photo(300, 200))
    views = [decode(image, 224, name, augmented=augmented) for name in NAMES for augmented in (False, True)]
    assert len({view.numpy().tobytes() for view in views}) == 4


def test_fixed_views_at_224_have_the_published_sides() -> None:
    # Column x of the image has colour x, so the colours of a view give its scale and offset.
    ramp = Image.fromarray(np.tile(np.arange(256, dtype=np.uint8), (256, 1))).convert("RGB")

    # FGVC: 256 stays 256, and the middle 224 are cut out as they are.
    assert decode(png(ramp), 224, "spt", augmented=True)[0, 0].tolist() == list(range(16, 240))

    # VTAB: all 256 columns are there, smaller.
    ends = decode(png(ramp), 224, "spt")[0, 0]
    assert int(ends[0]) <= 1 and int(ends[-1]) >= 254


# Whole views.


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_a_whole_view_has_the_pixels_of_a_photograph(width: int, height: int) -> None:
    picture = photo(width, height)
    assert np.array_equal(decode_whole(png(picture), 224), np.asarray(picture))


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1", "I;16"])
def test_a_whole_view_has_three_channels_whatever_the_mode(mode: str) -> None:
    buffer = io.BytesIO()
    grey = photo(30, 20).convert("L")
    picture = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257) if mode == "I;16" else grey.convert(mode)
    picture.save(buffer, "TIFF")
    whole_HWC = decode_whole(buffer.getvalue(), 224)

    assert whole_HWC.shape == (20, 30, 3) and whole_HWC.dtype == np.uint8
    if mode not in ("1", "P"):
        assert np.array_equal(whole_HWC[:, :, 0], np.asarray(grey))


@pytest.mark.parametrize("size", [32, 224, 448])
@pytest.mark.parametrize("shape", [1, 4 / 3, 2, 10, 17, 100])
def test_a_whole_view_of_a_huge_photograph_has_three_pixels_a_value_of_its_smallest_crop(
    size: int, shape: float
) -> None:
    height = 20_000
    width = round(height * shape)
    whole_width, whole_height = whole_size(width, height, size)
    assert whole_size(height, width, size) == (whole_height, whole_width)
    assert whole_width / whole_height == pytest.approx(shape, rel=0.01)

    # The smallest crops of the two transforms, in pixels of the view.
    smallest = min(0.08 * whole_width * whole_height, (whole_height * 224 / 256) ** 2)
    assert smallest == pytest.approx(3 * size**2, rel=0.03)


def test_whole_views_of_photographs_of_usual_size_are_not_shrunk() -> None:
    for width, height in ((500, 375), (1024, 768), (1600, 1100), (1, 5000), (3000, 20)):
        assert whole_size(width, height, 224) == (width, height)

    assert 3 * math.prod(whole_size(6000, 4000, 224)) < 5.7e6, "the most bytes of an image"


# Random crops. In a ramp the colour is the position, so the colours of a crop give the box that was cut.

Draw = Callable[[Tensor, torch.Generator], tuple[Tensor, Tensor]]


def drawn_boxes(draw: Draw, aspect_B: Tensor, seed: int) -> Tensor:
    """Draw boxes (left, top, width, height) ``[B, 4]``, as shares of the image."""
    share_B2, offset_B2 = draw(aspect_B, torch.Generator().manual_seed(seed))
    return torch.cat([(offset_B2 * (1 - share_B2)).flip(1), share_B2.flip(1)], dim=1)


def random_views(
    images: list[NDArray[np.uint8]], size: int, transform: TransformName, generator: torch.Generator
) -> Tensor:
    """Return a random crop of each image: what training sees."""
    size_B2 = torch.tensor([image.shape[:2] for image in images])
    return cut(images, random_crops(size_B2, transform, generator), size, transform)


def ramp(width: int, height: int) -> NDArray[np.uint8]:
    """Red is the share from the left, green the share from the top, blue a constant."""
    across_HW, down_HW = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
    return np.stack([across_HW * 255, down_HW * 255, np.full((height, width), 128)], axis=2).round().astype(np.uint8)


def line_through(values_BS: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Fit a line to each row of pixels. Return its values ``[B]`` at both ends, and the largest distance from it."""
    side = values_BS.shape[1]
    position_S = (torch.arange(side, dtype=torch.float64) + 0.5) / side - 0.5
    slope_B = (values_BS * position_S).sum(dim=1) / position_S.square().sum()
    middle_B = values_BS.mean(dim=1)
    distance_B = (values_BS - middle_B[:, None] - slope_B[:, None] * position_S).abs().amax(dim=1)
    return middle_B - slope_B / 2, middle_B + slope_B / 2, distance_B


def boxes_of(views_BCSS: Tensor) -> tuple[Tensor, Tensor]:
    """Return the boxes (left, top, width, height) ``[B, 4]`` cut from ramps, and which are mirrored ``[B]``."""
    shares_BCSS = views_BCSS.double() / 255

    # Red changes along x alone, green along y alone.
    assert float((shares_BCSS[:, 0] - shares_BCSS[:, 0, :1]).abs().max()) < 1.5 / 255
    assert float((shares_BCSS[:, 1] - shares_BCSS[:, 1, :, :1]).abs().max()) < 1.5 / 255

    start_B, end_B, distance_x_B = line_through(shares_BCSS[:, 0].mean(dim=1))
    top_B, bottom_B, distance_y_B = line_through(shares_BCSS[:, 1].mean(dim=2))
    # Both are straight to within rounding: every pixel is where it should be. At the border the ramp ends flat.
    assert float(torch.maximum(distance_x_B, distance_y_B).max()) < 3.5 / 255
    assert bool((top_B < bottom_B).all()), "none is upside down"

    mirrored_B = start_B > end_B
    left_B = torch.minimum(start_B, end_B)
    right_B = torch.maximum(start_B, end_B)
    return torch.stack([left_B, top_B, right_B - left_B, bottom_B - top_B], dim=1), mirrored_B


ASPECTS = (0.2, 0.75, 1.0, 1.5, 5.0)


@pytest.mark.parametrize("of_image", ASPECTS)
@pytest.mark.parametrize("transform", ["spt", "vpt"])
def test_a_crop_is_exactly_the_box_that_was_drawn_mirrored_or_not(transform: TransformName, of_image: float) -> None:
    count = 500
    image_HWC = ramp(round(200 * of_image), 200)
    size_B2 = torch.tensor([image_HWC.shape[:2]]).expand(count, 2)
    crops_B5 = random_crops(size_B2, transform, torch.Generator().manual_seed(3))
    views_BCSS = cut([image_HWC] * count, crops_B5, 32, transform)

    assert views_BCSS.shape == (count, 3, 32, 32) and views_BCSS.dtype == torch.uint8
    assert bool((views_BCSS[:, 2] == 128).all()), "a colour is kept"

    # The box that was cut, in shares of the image.
    cut_B4, mirrored_B = boxes_of(views_BCSS)
    corner_B2, box_B2 = crops_B5[:, :2] / size_B2, crops_B5[:, 2:4] / size_B2
    torch.testing.assert_close(cut_B4, torch.cat([corner_B2.flip(1), box_B2.flip(1)], 1).double(), rtol=0, atol=0.01)
    assert torch.equal(mirrored_B, crops_B5[:, 4] == 1)

    # Half are mirrored (500 tosses: 4 standard deviations are 45), whatever the box.
    assert abs(int(mirrored_B.sum()) - count / 2) < 45
    assert abs(float(corner_B2[mirrored_B, 1].mean() - corner_B2[~mirrored_B, 1].mean())) < 0.1


@pytest.mark.parametrize("of_image", ASPECTS)
@pytest.mark.parametrize("transform", ["spt", "vpt"])
def test_a_crop_is_the_drawn_box_in_whole_pixels(transform: TransformName, of_image: float) -> None:
    size_B2 = torch.tensor([[400, round(400 * of_image)]]).expand(500, 2)
    crops_B5 = random_crops(size_B2, transform, torch.Generator().manual_seed(3))
    draw = _any_area_boxes if transform == "spt" else _short_side_boxes
    left_B, top_B, width_B, height_B = drawn_boxes(draw, size_B2[:, 1] / size_B2[:, 0].double(), 3).T

    assert crops_B5.dtype == torch.int64
    shares_B4 = torch.stack([top_B, left_B, height_B, width_B], dim=1)
    assert float((crops_B5[:, :4] - shares_B4 * size_B2.repeat(1, 2)).abs().max()) <= 1.5
    assert float((crops_B5[:, 2:4] - shares_B4[:, 2:] * size_B2).abs().max()) <= 0.5


def test_each_position_is_equally_likely_as_in_torchvision() -> None:
    # Side 8: the box has 7 pixels, and fits at two places.
    crops_B5 = random_crops(torch.full((4000, 2), 8), "vpt", torch.Generator().manual_seed(0))
    assert crops_B5[:, 2:4].unique().tolist() == [7]
    for corner_B in crops_B5[:, :2].T:
        assert torch.bincount(corner_B).tolist() == pytest.approx([2000, 2000], abs=130), "4 standard deviations"


@pytest.mark.parametrize("transform", ["spt", "vpt"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (1, 300), (300, 1), (2, 40), (3000, 30)], ids=str)
def test_crops_of_tiny_and_of_very_long_images_lie_in_them(transform: TransformName, shape: tuple[int, int]) -> None:
    size_B2 = torch.tensor([shape]).expand(200, 2)
    crops_B5 = random_crops(size_B2, transform, torch.Generator().manual_seed(0))
    assert bool((crops_B5 >= 0).all() and (crops_B5[:, 2:4] >= 1).all())
    assert bool((crops_B5[:, :2] + crops_B5[:, 2:4] <= size_B2).all())

    picture = photo(shape[1], shape[0])
    views_BCSS = cut([np.asarray(picture)] * 3, crops_B5[:3], 32, transform)
    for view_CSS, crop_5 in zip(views_BCSS, crops_B5, strict=False):
        assert torch.equal(view_CSS, torchvisions_crop(pixels_of(picture), crop_5, 32, transform))


def torchvisions_crop(picture: Tensor, crop_5: Tensor, size: int, transform: TransformName) -> Tensor:
    """Return the crop of a picture by torchvision's own functions."""
    top, left, height, width, mirrored = crop_5.tolist()
    interpolation = BICUBIC if transform == "spt" else BILINEAR
    square: Tensor = TF.resized_crop(picture, top, left, height, width, [size, size], interpolation, antialias=True)
    return square.flip(2) if mirrored else square


@pytest.mark.parametrize("transform", ["spt", "vpt"])
@pytest.mark.parametrize("shape", [(640, 400), (37, 500), (64, 60)], ids=str)
def test_a_crop_equals_torchvisions_crop_of_the_photograph(transform: TransformName, shape: tuple[int, int]) -> None:
    picture = photo(*shape)
    whole_HWC = decode_whole(png(picture), 96)
    crops_B5 = random_crops(torch.tensor([whole_HWC.shape[:2]]).expand(12, 2), transform, torch.Generator())
    views_BCSS = cut([whole_HWC] * 12, crops_B5, 96, transform)

    assert set(crops_B5[:, 4].tolist()) == {0, 1}
    for view_CSS, crop_5 in zip(views_BCSS, crops_B5, strict=True):
        assert torch.equal(view_CSS, torchvisions_crop(pixels_of(picture), crop_5, 96, transform))


# The law of detail: a crop has the spectrum of a crop of the photograph itself.


def mosaic(width: int, height: int, seed: int) -> Image.Image:
    """A sharp picture of any size: pieces of real photographs, none of them scaled."""
    photographs = [load_sample_image(name) for name in ("china.jpg", "flower.jpg")]
    random = np.random.default_rng(seed)
    picture = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, 250):
        for left in range(0, width, 250):
            piece = picture[top : top + 250, left : left + 250]
            y, x = random.integers(0, (427 - 250, 640 - 250))
            piece[:] = photographs[random.integers(2)][y : y + piece.shape[0], x : x + piece.shape[1]]
    return Image.fromarray(picture)


def spectrum(squares_BCSS: Tensor) -> Tensor:
    """Return the energy in eight bands of frequency, the finest last, and that of the Laplacian."""
    grey_BSS = squares_BCSS.double().mean(dim=1)
    side = grey_BSS.shape[-1]
    window_S = torch.hann_window(side, dtype=torch.float64)
    smooth_BSS = (grey_BSS - grey_BSS.mean(dim=(1, 2), keepdim=True)) * window_S * window_S[:, None]
    power_SS = torch.fft.fft2(smooth_BSS).abs().square().sum(dim=0)

    frequency_S = torch.fft.fftfreq(side, dtype=torch.float64)
    radius_SS = (frequency_S.square() + frequency_S.square()[:, None]).sqrt()
    bands = [power_SS[(radius_SS >= band / 16) & (radius_SS < (band + 1) / 16)].sum() for band in range(8)]

    shifted = grey_BSS[:, 1:-1, :-2] + grey_BSS[:, 1:-1, 2:] + grey_BSS[:, :-2, 1:-1] + grey_BSS[:, 2:, 1:-1]
    return torch.stack([*bands, (shifted - 4 * grey_BSS[:, 1:-1, 1:-1]).square().sum()])


def crops_between(low: float, high: float, size_2: Tensor, transform: TransformName, count: int) -> Tensor:
    """Draw crops whose areas are between two shares of the image."""
    crops_B5 = random_crops(size_2.expand(2000, 2), transform, torch.Generator().manual_seed(0))
    share_B = crops_B5[:, 2:4].prod(dim=1) / size_2.prod()
    return crops_B5[(share_B >= low) & (share_B <= high)][:count]


@pytest.mark.parametrize(("low", "high"), [(0.08, 0.12), (0.08, 0.4), (0.4, 1.0)])
@pytest.mark.parametrize("side", [300, 500, 800, 2000])
def test_spt_crops_have_the_detail_of_crops_of_the_photograph(side: int, low: float, high: float) -> None:
    check_detail("spt", side * 4 // 3, side, low, high)


@pytest.mark.parametrize("side", [300, 500, 800, 2000])
def test_vpt_crops_have_the_detail_of_crops_of_the_photograph(side: int) -> None:
    check_detail("vpt", side * 4 // 3, side, 0, 1)


def check_detail(transform: TransformName, width: int, height: int, low: float, high: float) -> None:
    """Compare the spectrum of crops with that of Pillow's, which are cut from the photograph."""
    picture = mosaic(width, height, seed=height)
    buffer = io.BytesIO()
    picture.save(buffer, "BMP")
    whole_HWC = decode_whole(buffer.getvalue(), 224)
    size_2 = torch.tensor(whole_HWC.shape[:2])
    crops_B5 = crops_between(low, high, size_2, transform, count=6)
    ours_BCSS = cut([whole_HWC] * 6, crops_B5, 224, transform)

    # The same boxes of the photograph, where it was shrunk.
    scale = height / whole_HWC.shape[0]
    theirs = []
    for top, left, tall, wide, mirrored in crops_B5.tolist():
        box = [round(value * scale) for value in (left, top, left + wide, top + tall)]
        interpolation = Image.Resampling.BICUBIC if transform == "spt" else Image.Resampling.BILINEAR
        square_CSS = pixels_of(picture.crop(tuple(box)).resize((224, 224), interpolation))
        theirs.append(square_CSS.flip(2) if mirrored else square_CSS)

    ratio = spectrum(ours_BCSS) / spectrum(torch.stack(theirs))
    assert float((ratio - 1).abs().max()) < 0.05, ratio.tolist()


@pytest.mark.parametrize("transform", ["spt", "vpt"])
def test_crops_depend_on_the_generator_alone(transform: TransformName) -> None:
    images = [np.asarray(photo(48, 48)), np.asarray(photo(60, 40))] * 4
    views, same_seed, other_seed = (
        random_views(images, 32, transform, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )

    assert torch.equal(views, same_seed) and not torch.equal(views, other_seed)

    generator = torch.Generator().manual_seed(0)
    first, second = (random_views(images, 32, transform, generator) for _ in range(2))
    assert torch.equal(first, views) and not torch.equal(second, views), "a second batch has other crops"
    assert len({view.numpy().tobytes() for view in views}) == 8, "each image has a crop of its own"


@pytest.mark.parametrize("transform", ["spt", "vpt"])
def test_crops_have_the_same_bits_with_any_number_of_threads_and_in_any_batch(transform: TransformName) -> None:
    images = [np.asarray(photo(60 + 31 * i, 300 - 17 * i)) for i in range(12)]
    size_B2 = torch.tensor([image.shape[:2] for image in images])
    crops_B5 = random_crops(size_B2, transform, torch.Generator().manual_seed(0))

    threads = torch.get_num_threads()
    try:
        views = []
        for num_threads in (1, 2, 5):
            torch.set_num_threads(num_threads)
            views.append(cut(images, crops_B5, 96, transform))
    finally:
        torch.set_num_threads(threads)
    one_by_one = torch.cat([cut([images[i]], crops_B5[i : i + 1], 96, transform) for i in range(12)])

    assert all(torch.equal(each, one_by_one) for each in views)


def test_no_image_has_no_crop() -> None:
    crops_B5 = random_crops(torch.empty(0, 2, dtype=torch.int64), "spt", torch.Generator())
    assert crops_B5.shape == (0, 5) and cut([], crops_B5, 32, "spt").shape == (0, 3, 32, 32)


def test_each_image_of_a_batch_is_cut_by_its_own_shape() -> None:
    images = [ramp(40, 800), ramp(200, 200), ramp(800, 40)] * 50
    boxes_B4, _ = boxes_of(random_views(images, 32, "spt", torch.Generator().manual_seed(0)))

    # Of very long images no draw fits: the whole short side, and the middle of the long one.
    for start, expected in ((0, [0, 0.465, 1, 0.065]), (2, [0.465, 0, 0.065, 1])):
        torch.testing.assert_close(
            boxes_B4[start::3], torch.tensor(expected, dtype=torch.float64).expand(50, 4), rtol=0, atol=0.02
        )

    assert len({tuple(box) for box in boxes_B4[1::3].tolist()}) == 50


def test_extreme_colours_do_not_wrap_around_and_the_mean_is_kept() -> None:
    # Bicubic overshoots at edges: what is above 255 or below 0 must not wrap around.
    checks_HW = ((np.arange(48)[:, None] // 6 + np.arange(48) // 6) % 2 * 255).astype(np.uint8)
    images = [np.repeat(checks_HW[:, :, None], 3, axis=2)] * 64
    views = random_views(images, 32, "spt", torch.Generator().manual_seed(0)).double()

    # Far from the edges, black is black and white is white; wrapping would put bright dots into black fields.
    assert float((views < 64).double().mean()) > 0.25 and float((views > 192).double().mean()) > 0.25
    assert abs(float(views.mean()) - 127.5) < 15

    # A wrapped value would be a single pixel far from both its neighbours.
    steps = (views[..., 1:] - views[..., :-1]).abs()
    isolated = (steps[..., 1:] > 200) & (steps[..., :-1] > 200)
    assert not bool(isolated.any())


@pytest.mark.parametrize(("transform", "overshoots"), [("spt", True), ("vpt", False)])
def test_spt_crops_bicubic_and_vpt_bilinear(transform: TransformName, overshoots: bool) -> None:
    # Beside an edge bicubic interpolation goes beyond both colours; bilinear never does.
    stripes_HWC = np.broadcast_to((64 + 128 * (np.arange(48) // 6 % 2)).astype(np.uint8)[:, None], (48, 48, 3))
    views = random_views([stripes_HWC] * 16, 32, transform, torch.Generator().manual_seed(0))
    assert bool((views < 64).any() and (views > 192).any()) == overshoots


@pytest.mark.parametrize("of_image", ASPECTS)
def test_spt_boxes_are_distributed_as_torchvisions(of_image: float) -> None:
    # The published crop: RandomResizedCrop. On an image this large its rounding to pixels is nothing.
    height = 2000
    width = round(height * of_image)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        canvas = torch.empty(1, 1).expand(height, width)
        theirs = torch.tensor(
            [reference.RandomResizedCrop.get_params(canvas, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(3000)],
            dtype=torch.float64,
        )

    top, left, tall, wide = theirs.unbind(1)
    expected = torch.stack([left / width, top / height, wide / width, tall / height], dim=1)
    boxes_B4 = drawn_boxes(_any_area_boxes, torch.full((20_000,), of_image, dtype=torch.float64), 0)

    assert boxes_B4.shape == (20_000, 4)

    for name, ours, torchvisions in (
        *zip(("left", "top", "width", "height"), boxes_B4.T, expected.T, strict=True),
        ("area", boxes_B4[:, 2] * boxes_B4[:, 3], expected[:, 2] * expected[:, 3]),
        ("shape", boxes_B4[:, 2] / boxes_B4[:, 3], expected[:, 2] / expected[:, 3]),
    ):
        # Of 30 such comparisons the largest distance expected by chance is 0.03; values are rounded to a hundredth.
        distance = ks_2samp(ours.numpy().round(2), torchvisions.numpy().round(2)).statistic
        assert distance < 0.04, (name, distance)


@pytest.mark.parametrize("of_image", [0.05, *ASPECTS, 20.0])
def test_spt_boxes_lie_in_the_image_and_have_an_allowed_area_and_shape(of_image: float) -> None:
    aspect_B = torch.full((20_000,), of_image, dtype=torch.float64)
    left_B, top_B, width_B, height_B = drawn_boxes(_any_area_boxes, aspect_B, 1).unbind(1)
    tiny = 1e-12
    for start_B, length_B in ((left_B, width_B), (top_B, height_B)):
        assert bool((start_B >= 0).all() and (length_B > 0).all() and (start_B + length_B <= 1 + tiny).all())

    shape_B = width_B / height_B * of_image
    area_B = width_B * height_B

    assert bool((shape_B >= 3 / 4 - tiny).all() and (shape_B <= 4 / 3 + tiny).all())

    # Where no draw fits, the largest box of the nearest shape is taken, in the middle.
    nearest = min(max(of_image, 3 / 4), 4 / 3)
    largest = min(of_image, nearest) / max(of_image, nearest)
    fallback_B = (area_B - largest).abs() < tiny
    centred_B = (2 * left_B + width_B - 1).abs() + (2 * top_B + height_B - 1).abs() < tiny

    assert bool(centred_B[fallback_B].all())
    assert bool((area_B >= 0.08)[~fallback_B].all() and (area_B <= 1).all())

    # In an image of usual shape some draw always fits. At 1:5 sometimes none does, at 1:20 none ever does.
    low, high = {0.05: (1.0, 1.0), 20.0: (1.0, 1.0), 0.2: (0.2, 0.3), 5.0: (0.2, 0.3)}.get(of_image, (0.0, 0.005))
    assert low <= float(fallback_B.double().mean()) <= high


def test_spt_areas_of_a_square_image_reach_from_8_to_100_per_cent() -> None:
    boxes_B4 = drawn_boxes(_any_area_boxes, torch.ones(20_000, dtype=torch.float64), 0)
    area_B = boxes_B4[:, 2] * boxes_B4[:, 3]
    log_shape_B = (boxes_B4[:, 2] / boxes_B4[:, 3]).log() / math.log(4 / 3)

    assert 0.08 <= float(area_B.min()) < 0.081 and 0.98 < float(area_B.max()) <= 1

    # Small boxes always fit, so among them neither area nor shape is favoured.
    small_B = area_B < 0.5
    assert kstest(((area_B[small_B] - 0.08) / 0.42).numpy(), "uniform").statistic < 0.02
    assert kstest(((log_shape_B[small_B] + 1) / 2).numpy(), "uniform").statistic < 0.02


@pytest.mark.parametrize("of_image", [0.05, *ASPECTS, 20.0])
def test_vpt_boxes_are_squares_of_224_of_256_of_the_short_side_anywhere(of_image: float) -> None:
    aspect_B = torch.full((20_000,), of_image, dtype=torch.float64)
    left_B, top_B, width_B, height_B = drawn_boxes(_short_side_boxes, aspect_B, 0).unbind(1)

    # In units of the image's height: a square, whatever the image's shape.
    short = min(of_image, 1.0)
    torch.testing.assert_close(width_B * of_image, torch.full_like(width_B, short * 224 / 256))
    torch.testing.assert_close(height_B, torch.full_like(height_B, short * 224 / 256))
    for start_B, length_B in ((left_B, width_B), (top_B, height_B)):
        assert kstest((start_B / (1 - length_B)).numpy(), "uniform").statistic < 0.02
