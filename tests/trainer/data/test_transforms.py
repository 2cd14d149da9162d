"""Transforms: fixed views equal torchvision's, whole views keep the whole image, random crops are the published ones.

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
from PIL import Image, ImageFilter, ImageOps
from scipy.stats import ks_2samp, kstest
from torch import Tensor
from torchvision import transforms as reference

from trainer.data.transforms import TransformName, _any_area_boxes, _short_side_boxes, aspect, decode, random_views

BICUBIC, BILINEAR = reference.InterpolationMode.BICUBIC, reference.InterpolationMode.BILINEAR
NAMES: tuple[TransformName, ...] = ("spt", "vpt")
SIZES = [(300, 200), (200, 300), (224, 224), (51, 40), (40, 51), (257, 255), (500, 20), (7, 400)]
"""Widths and heights of images: landscape, portrait, square, small, odd, extreme."""


def photo(width: int, height: int) -> Image.Image:
    """Noise: no two parts of the image are equal."""
    pixels = np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def clouds(width: int, height: int) -> Image.Image:
    """Smooth noise: no two parts are equal, and without edges the image looks the same at every size."""
    return ImageOps.autocontrast(photo(width, height).filter(ImageFilter.GaussianBlur(20)))


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


@pytest.mark.parametrize("augmented", [False, True])
@pytest.mark.parametrize(("size", "side"), [(224, 336), (32, 48), (4, 6), (14, 21)])
@pytest.mark.parametrize("transform", ["spt", "vpt"])
def test_a_whole_view_is_the_whole_image_at_one_and_a_half_times_the_side(
    transform: TransformName, size: int, side: int, augmented: bool
) -> None:
    interpolation = BICUBIC if transform == "spt" else BILINEAR
    for width, height in SIZES:
        picture = photo(width, height)
        expected = pixels_of(reference.Resize((side, side), interpolation)(picture))
        assert torch.equal(decode(png(picture), size, transform, view="whole", augmented=augmented), expected)


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_aspect_is_width_over_height(width: int, height: int) -> None:
    assert aspect(png(photo(width, height))) == width / height


# Random crops. In a ramp the colour is the position, so the colours of a crop give the box that was cut.

RAMP_SIDE = 48


def ramps(count: int) -> Tensor:
    """Whole views: red is the share from the left, green the share from the top, blue a constant."""
    share_S = (torch.arange(RAMP_SIDE) + 0.5) / RAMP_SIDE
    plane = torch.ones(RAMP_SIDE, RAMP_SIDE)
    ramp_CSS = torch.stack([plane * share_S, plane * share_S[:, None], plane / 2]) * 255
    return ramp_CSS.round().to(torch.uint8).expand(count, -1, -1, -1)


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
    assert float(torch.maximum(distance_x_B, distance_y_B).max()) < 2.5 / 255
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
    aspect_B = torch.full((count,), of_image, dtype=torch.float64)
    views_BCSS = random_views(ramps(count), aspect_B, 32, transform, torch.Generator().manual_seed(3))

    assert views_BCSS.shape == (count, 3, 32, 32) and views_BCSS.dtype == torch.uint8
    assert bool((views_BCSS[:, 2] == 128).all()), "a colour is kept"

    cut_B4, mirrored_B = boxes_of(views_BCSS)
    drawn = (_any_area_boxes if transform == "spt" else _short_side_boxes)(aspect_B, torch.Generator().manual_seed(3))
    torch.testing.assert_close(cut_B4, drawn, rtol=0, atol=2.5 / 255)

    # Half are mirrored (500 tosses: 4 standard deviations are 45), whatever the box.
    assert abs(int(mirrored_B.sum()) - count / 2) < 45

    left_B = drawn[:, 0]
    assert abs(float(left_B[mirrored_B].mean() - left_B[~mirrored_B].mean())) < 0.1


@pytest.mark.parametrize("transform", ["spt", "vpt"])
def test_a_bright_corner_stays_at_the_top_and_changes_sides_when_mirrored(transform: TransformName) -> None:
    corner = torch.zeros(200, 3, RAMP_SIDE, RAMP_SIDE, dtype=torch.uint8)
    corner[:, :, : RAMP_SIDE // 2, : RAMP_SIDE // 2] = 255
    views = random_views(corner, torch.ones(200), 32, transform, torch.Generator().manual_seed(0)).double()
    _, mirrored_B = boxes_of(random_views(ramps(200), torch.ones(200), 32, transform, torch.Generator().manual_seed(0)))
    top, bottom, left, right = (views[part].mean(dim=(1, 2, 3)) for part in (
        (slice(None), slice(None), slice(0, 16)), (slice(None), slice(None), slice(16, 32)),
        (..., slice(0, 16)), (..., slice(16, 32)),
    ))  # fmt: skip

    assert bool((top > bottom - 1).all()) and float((top - bottom).mean()) > 20
    assert bool((left > right - 1)[~mirrored_B].all()) and float((left - right)[~mirrored_B].mean()) > 20
    assert bool((right > left - 1)[mirrored_B].all()) and float((right - left)[mirrored_B].mean()) > 20


@pytest.mark.parametrize("transform", ["spt", "vpt"])
def test_crops_depend_on_the_generator_alone(transform: TransformName) -> None:
    images = torch.stack([pixels_of(photo(48, 48)), pixels_of(photo(48, 48).rotate(90))] * 4)
    aspect_B = torch.ones(8)
    views, same_seed, other_seed = (
        random_views(images, aspect_B, 32, transform, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )

    assert torch.equal(views, same_seed) and not torch.equal(views, other_seed)

    generator = torch.Generator().manual_seed(0)
    first, second = (random_views(images, aspect_B, 32, transform, generator) for _ in range(2))
    assert torch.equal(first, views) and not torch.equal(second, views), "a second batch has other crops"
    assert len({view.numpy().tobytes() for view in views}) == 8, "each image has a crop of its own"


def test_each_image_of_a_batch_is_cut_by_its_own_aspect() -> None:
    aspect_B = torch.tensor([0.05, 1.0, 20.0] * 50, dtype=torch.float64)
    boxes_B4, _ = boxes_of(random_views(ramps(150), aspect_B, 32, "spt", torch.Generator().manual_seed(0)))

    # Of very long images no draw fits: the whole short side, and the middle of the long one.
    for start, expected in ((0, [0, (1 - 1 / 15) / 2, 1, 1 / 15]), (2, [(1 - 1 / 15) / 2, 0, 1 / 15, 1])):
        torch.testing.assert_close(
            boxes_B4[start::3], torch.tensor(expected, dtype=torch.float64).expand(50, 4), rtol=0, atol=1.5 / 255
        )

    assert len({tuple(box) for box in boxes_B4[1::3].tolist()}) == 50


def test_extreme_colours_do_not_wrap_around_and_the_mean_is_kept() -> None:
    # Bicubic overshoots at edges: what is above 255 or below 0 must not wrap around.
    checks = ((torch.arange(48)[:, None] // 6 + torch.arange(48) // 6) % 2 * 255).to(torch.uint8).expand(64, 3, -1, -1)
    views = random_views(checks, torch.ones(64), 32, "spt", torch.Generator().manual_seed(0)).double()

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
    stripes = (64 + 128 * (torch.arange(48) // 6 % 2)).to(torch.uint8).expand(16, 3, 48, 48)
    views = random_views(stripes, torch.ones(16), 32, transform, torch.Generator().manual_seed(0))
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
    boxes_B4 = _any_area_boxes(torch.full((20_000,), of_image, dtype=torch.float64), torch.Generator().manual_seed(0))

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
    left_B, top_B, width_B, height_B = _any_area_boxes(
        torch.full((20_000,), of_image, dtype=torch.float64), torch.Generator().manual_seed(1)
    ).unbind(1)
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
    boxes_B4 = _any_area_boxes(torch.ones(20_000, dtype=torch.float64), torch.Generator().manual_seed(0))
    area_B = boxes_B4[:, 2] * boxes_B4[:, 3]
    log_shape_B = (boxes_B4[:, 2] / boxes_B4[:, 3]).log() / math.log(4 / 3)

    assert 0.08 <= float(area_B.min()) < 0.081 and 0.98 < float(area_B.max()) <= 1

    # Small boxes always fit, so among them neither area nor shape is favoured.
    small_B = area_B < 0.5
    assert kstest(((area_B[small_B] - 0.08) / 0.42).numpy(), "uniform").statistic < 0.02
    assert kstest(((log_shape_B[small_B] + 1) / 2).numpy(), "uniform").statistic < 0.02


@pytest.mark.parametrize("of_image", [0.05, *ASPECTS, 20.0])
def test_vpt_boxes_are_squares_of_224_of_256_of_the_short_side_anywhere(of_image: float) -> None:
    left_B, top_B, width_B, height_B = _short_side_boxes(
        torch.full((20_000,), of_image, dtype=torch.float64), torch.Generator().manual_seed(0)
    ).unbind(1)

    # In units of the image's height: a square, whatever the image's shape.
    short = min(of_image, 1.0)
    torch.testing.assert_close(width_B * of_image, torch.full_like(width_B, short * 224 / 256))
    torch.testing.assert_close(height_B, torch.full_like(height_B, short * 224 / 256))
    for start_B, length_B in ((left_B, width_B), (top_B, height_B)):
        assert kstest((start_B / (1 - length_B)).numpy(), "uniform").statistic < 0.02


def full_box_seed() -> int:
    """Find a seed whose first box is nearly the whole of a square image."""
    for seed in range(10_000):
        box = _any_area_boxes(torch.ones(1, dtype=torch.float64), torch.Generator().manual_seed(seed))[0]
        if float(box[2:].min()) > 0.99:
            return seed
    raise AssertionError("one box in some hundred is that large")


@pytest.mark.parametrize("size", [32, 224])
def test_a_crop_of_the_full_image_is_a_plain_resize(size: int) -> None:
    picture = clouds(400, 400)
    seed = full_box_seed()
    whole = decode(png(picture), size, "spt", view="whole")[None]
    view = random_views(whole, torch.ones(1), size, "spt", torch.Generator().manual_seed(seed))[0].double()
    plain = pixels_of(reference.Resize((size, size), BICUBIC)(picture)).double()

    assert float(plain.std()) > 20, "there is something to see"

    difference, mirrored = ((view - candidate).abs().mean() for candidate in (plain, plain.flip(2)))
    assert min(float(difference), float(mirrored)) < 2
    assert max(float(difference), float(mirrored)) > 8


@pytest.mark.parametrize("of_image", [(640, 400), (400, 640), (400, 400)], ids=str)
def test_a_crop_equals_the_same_box_of_the_original(of_image: tuple[int, int]) -> None:
    # The squashed whole view gives back the original's proportions.
    picture = clouds(*of_image)
    aspect_B = torch.tensor([of_image[0] / of_image[1]], dtype=torch.float64)
    whole = decode(png(picture), 64, "vpt", view="whole")[None]

    for seed in range(20):
        left, top, wide, tall = _short_side_boxes(aspect_B, torch.Generator().manual_seed(seed))[0].tolist()
        corners = (
            left * of_image[0], top * of_image[1], (left + wide) * of_image[0], (top + tall) * of_image[1],
        )  # fmt: skip

        expected = pixels_of(picture.resize((64, 64), Image.Resampling.BILINEAR, box=corners)).double()
        view = random_views(whole, aspect_B, 64, "vpt", torch.Generator().manual_seed(seed))[0].double()
        differences = [float((view - candidate).abs().mean()) for candidate in (expected, expected.flip(2))]
        assert min(differences) < 2 and max(differences) > 8, (seed, differences)
