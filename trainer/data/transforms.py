"""Transforms of an encoded image to the uint8 square that a backbone sees.

A `fixed` view is deterministic. It is used to evaluate, and to train on tasks without augmentation. A `whole` view
keeps the photograph at its own shape, with enough pixels for the smallest crop. Random crops are cut from it.

Shapes: B batch, C 3, S side of a square, H W height and width.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from trainer.data.images import to_rgb

TransformName = Literal["spt", "vpt"]
View = Literal["fixed", "whole"]

INTERPOLATION = {"spt": InterpolationMode.BICUBIC, "vpt": InterpolationMode.BILINEAR}
MARGIN = 256 / 224
"""Short side over the side of the centre crop, for tasks that train on random crops."""
SMALLEST_AREA = 0.08
"""Area of the smallest random crop, as a share of the image."""
OVERSAMPLING = 3
"""Pixels of a whole view in its smallest crop, over the pixels that the network sees of it.

With 3, crops of a shrunken photograph have the detail of crops of the photograph to within 5 %. With 4 / 3, the
smallest crops lose a fifth of their finest detail.
"""


def decode(
    image: bytes, size: int, transform: TransformName, *, augmented: bool = False, upright: bool = True
) -> Tensor:
    """Return the fixed view of an encoded image, uint8 ``[3, size, size]``.

    Fixed views at size 224:

    - VTAB by `spt`: short side resized to 224, bicubic, then the centre crop;
    - VTAB by `vpt`: squashed to 224x224, bilinear;
    - FGVC (`augmented`) by either: short side resized to 256, then the centre crop.

    Args:
        upright: turn the image by its EXIF orientation first.
    """
    with Image.open(io.BytesIO(image)) as opened:
        picture = to_rgb(opened, upright=upright)

    interpolation = INTERPOLATION[transform]
    if transform == "vpt" and not augmented:
        square = TF.resize(picture, [size, size], interpolation=interpolation)
    else:
        short = round(size * MARGIN) if augmented else size
        resized = TF.resize(picture, [short], interpolation=interpolation)
        square = TF.center_crop(resized, [size, size])

    # torch needs an array of its own: Pillow's is read-only.
    pixels: NDArray[np.uint8] = np.asarray(square).transpose(2, 0, 1)
    return torch.from_numpy(pixels.copy())


def decode_whole(image: bytes, size: int, *, upright: bool = True) -> NDArray[np.uint8]:
    """Return the whole view of an encoded image, ``[H, W, 3]``, for a network that sees squares of side `size`.

    It has the pixels of the photograph, unless they are more than `whole_size` allows.

    Args:
        upright: turn the image by its EXIF orientation first.
    """
    with Image.open(io.BytesIO(image)) as opened:
        picture = to_rgb(opened, upright=upright)

    width, height = whole_size(picture.width, picture.height, size)
    # Lanczos keeps more of the finest detail than the filter of the crops, which comes after it.
    return np.asarray(picture.resize((width, height), Image.Resampling.LANCZOS))


def whole_size(width: int, height: int, size: int) -> tuple[int, int]:
    """Return width and height of the whole view of a photograph, for a network that sees squares of side `size`.

    The view has at most ``OVERSAMPLING * size ** 2 / SMALLEST_AREA`` pixels: 1.9 million, or 5.6 MB, at size 224. Of a
    photograph that is more than ten times as long as wide, it has more.
    """
    # The crops of a long photograph are squares in it, so they can be a smaller share than that.
    short_over_long = min(width, height) / max(width, height)
    smallest_area = min(SMALLEST_AREA, short_over_long / MARGIN**2)

    most_pixels = OVERSAMPLING * size**2 / smallest_area
    scale = min(1.0, math.sqrt(most_pixels / (width * height)))
    return max(1, round(width * scale)), max(1, round(height * scale))


def random_crops(size_B2: Tensor, transform: TransformName, generator: torch.Generator) -> Tensor:
    """Draw a crop for each image: int64 ``[B, 5]`` on the CPU.

    The columns are top, left, height and width of a box in whole pixels, and 1 if the crop is mirrored, else 0.

    `spt`: a box of 8 to 100 % of the area and of shape 3:4 to 4:3 (Szegedy et al., CVPR 2015). `vpt`: a square whose
    side is 224/256 of the short side. Half of the crops are mirrored.

    Args:
        size_B2: height and width of each image, in pixels; on the CPU.
        generator: source of randomness, on the CPU.
    """
    draw_boxes = _any_area_boxes if transform == "spt" else _short_side_boxes
    share_B2, offset_B2 = draw_boxes(size_B2[:, 1].double() / size_B2[:, 0], generator)
    mirrored_B1 = torch.randint(0, 2, (len(size_B2), 1), generator=generator)

    # Whole pixels, as in torchvision: each position at which the box fits is equally likely.
    box_B2 = (share_B2 * size_B2).round().clamp(min=1).long()
    corner_B2 = (offset_B2 * (size_B2 - box_B2 + 1)).floor().long()
    return torch.cat([corner_B2, box_B2, mirrored_B1], dim=1)


def cut(images: Sequence[NDArray[np.uint8]], crops_B5: Tensor, size: int, transform: TransformName) -> Tensor:
    """Cut one crop from each whole view ``[H, W, 3]``, resized with antialias: uint8 ``[B, 3, size, size]``.

    The pixels depend neither on the batch nor on the number of threads.

    Args:
        crops_B5: as `random_crops` returns them.
    """
    mode = "bicubic" if transform == "spt" else "bilinear"
    squares_BCSS = np.empty((len(images), 3, size, size), np.uint8)

    def cut_one(row: int) -> None:
        top, left, height, width, mirrored = crops_B5[row].tolist()
        # A copy by numpy: torch would share out each small copy among its threads, which takes longer.
        box_HWC = images[row][top : top + height, left : left + width].copy()
        assert box_HWC.shape == (height, width, 3), "a crop lies in its image"
        box_1CHW = torch.from_numpy(box_HWC).permute(2, 0, 1)[None]
        square_CSS = F.interpolate(box_1CHW, size=(size, size), mode=mode, antialias=True)[0].numpy()
        squares_BCSS[row] = square_CSS[:, :, ::-1] if mirrored else square_CSS

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        # Taking the results raises what a thread raised.
        list(pool.map(cut_one, range(len(images))))

    return torch.from_numpy(squares_BCSS)


def _any_area_boxes(aspect_B: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw a box for each image. Return its height and width ``[B, 2]``, and its offset from top and left ``[B, 2]``.

    Height and width are shares of the image's. An offset is a share of the space that the box leaves, below 1.

    The box is the first of ten draws that fits in the image. If none fits, it is the largest box of the nearest allowed
    shape, in the centre. Shapes: T tries.

    Args:
        aspect_B: width over height of each image, float64.
    """
    count = len(aspect_B)
    tries = 10

    # All draws of area and shape (width over height, log-uniform), and the sides that follow from them.
    area_BT = torch.empty(count, tries, dtype=torch.float64).uniform_(SMALLEST_AREA, 1, generator=generator)
    bound = math.log(4 / 3)
    shape_BT = torch.empty(count, tries, dtype=torch.float64).uniform_(-bound, bound, generator=generator).exp()
    share_BT2 = torch.stack([area_BT * aspect_B[:, None] / shape_BT, area_BT * shape_BT / aspect_B[:, None]], 2).sqrt()

    # The first draw that fits, or the largest box of shape 3:4 to 4:3.
    fits_BT = (share_BT2 <= 1).all(dim=2)
    drawn_B2 = share_BT2[torch.arange(count), fits_BT.int().argmax(dim=1)]
    largest_B2 = torch.stack([(aspect_B / (3 / 4)).clamp(max=1), (4 / 3 / aspect_B).clamp(max=1)], dim=1)
    has_fit_B1 = fits_BT.any(dim=1)[:, None]
    offset_B2 = torch.rand(count, 2, dtype=torch.float64, generator=generator)

    return torch.where(has_fit_B1, drawn_B2, largest_B2), torch.where(has_fit_B1, offset_B2, 0.5)


def _short_side_boxes(aspect_B: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw a square box anywhere in each image. Return height and width, and offsets, as `_any_area_boxes` does."""
    # The short side as a share of height and of width: a square of the image is no square in shares of it.
    short_B2 = torch.stack([aspect_B.clamp(max=1), (1 / aspect_B).clamp(max=1)], dim=1)
    offset_B2 = torch.rand(len(aspect_B), 2, dtype=torch.float64, generator=generator)

    return short_B2 / MARGIN, offset_B2
