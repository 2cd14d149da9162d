"""Transforms of an encoded image to the uint8 square that a backbone sees.

A `fixed` view is deterministic. It is used to evaluate, and to train on tasks without augmentation. A `whole` view
keeps all of the image, squashed to a larger square. Random crops are cut from it, a batch at a time.

Shapes: B batch, C 3, S side of a square, H W height and width.
"""

from __future__ import annotations

import io
import math
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
WHOLE = 1.5
"""Side of a whole view over the side of the crops that are cut from it."""


def decode(
    image: bytes, size: int, transform: TransformName, *, view: View = "fixed", augmented: bool = False
) -> Tensor:
    """Return the square of an encoded image, uint8 ``[3, size, size]`` (a whole view has ``WHOLE`` times that side).

    Fixed views at size 224:

    - VTAB by `spt`: short side resized to 224, bicubic, then the centre crop;
    - VTAB by `vpt`: squashed to 224x224, bilinear;
    - FGVC (`augmented`) by either: short side resized to 256, then the centre crop.
    """
    with Image.open(io.BytesIO(image)) as opened:
        picture = to_rgb(opened)

    interpolation = INTERPOLATION[transform]
    if view == "whole":
        side = side_of(size, view)
        square = TF.resize(picture, [side, side], interpolation=interpolation)
    elif transform == "vpt" and not augmented:
        square = TF.resize(picture, [size, size], interpolation=interpolation)
    else:
        short = round(size * MARGIN) if augmented else size
        resized = TF.resize(picture, [short], interpolation=interpolation)
        square = TF.center_crop(resized, [size, size])

    # torch needs an array of its own: Pillow's is read-only.
    pixels: NDArray[np.uint8] = np.asarray(square).transpose(2, 0, 1)
    return torch.from_numpy(pixels.copy())


def side_of(size: int, view: View) -> int:
    """Return the side of a view for a network that sees squares of side `size`."""
    return round(size * WHOLE) if view == "whole" else size


def aspect(image: bytes) -> float:
    """Return width over height of an encoded image."""
    with Image.open(io.BytesIO(image)) as opened:
        return opened.width / opened.height


def random_views(
    images_BCSS: Tensor, aspect_B: Tensor, size: int, transform: TransformName, generator: torch.Generator
) -> Tensor:
    """Return random crops of whole views, half of them mirrored: uint8 ``[B, 3, size, size]``.

    `spt`: a box of 8 to 100 % of the area and of shape 3:4 to 4:3 (Szegedy et al., CVPR 2015). `vpt`: a square whose
    side is 224/256 of the short side.

    Args:
        aspect_B: width over height of each image before it was squashed.
        generator: source of randomness, on the CPU.
    """
    return cut(images_BCSS, random_crops(aspect_B, transform, generator), size, transform)


def random_crops(aspect_B: Tensor, transform: TransformName, generator: torch.Generator) -> Tensor:
    """Draw a crop for each image: ``[B, 5]`` on the CPU.

    The columns are left, top, width and height as shares of the image, and -1 if the crop is mirrored, else 1.
    """
    draw_boxes = _any_area_boxes if transform == "spt" else _short_side_boxes
    boxes_B4 = draw_boxes(aspect_B.cpu().double(), generator)
    mirror_B1 = 1 - 2 * torch.randint(0, 2, (len(aspect_B), 1), generator=generator)
    return torch.cat([boxes_B4, mirror_B1], dim=1)


def cut(images_BCSS: Tensor, crops_B5: Tensor, size: int, transform: TransformName) -> Tensor:
    """Cut crops from whole views, the batch in one interpolation: uint8 ``[B, 3, size, size]``."""
    left_B, top_B, width_B, height_B, mirror_B = crops_B5.unbind(1)

    # An affine map a crop, from the square's coordinates to the view's; both run from -1 to 1.
    theta_B23 = torch.zeros(len(images_BCSS), 2, 3, dtype=torch.float64)
    theta_B23[:, 0, 0] = width_B * mirror_B
    theta_B23[:, 1, 1] = height_B
    theta_B23[:, 0, 2] = 2 * left_B + width_B - 1
    theta_B23[:, 1, 2] = 2 * top_B + height_B - 1
    grid_BSS2 = F.affine_grid(
        theta_B23.float().to(images_BCSS.device, non_blocking=True),
        [len(images_BCSS), 3, size, size],
        align_corners=False,
    )

    mode = "bicubic" if transform == "spt" else "bilinear"
    cut_BCSS = F.grid_sample(images_BCSS.float(), grid_BSS2, mode=mode, padding_mode="border", align_corners=False)
    # Bicubic interpolation overshoots at edges, and a value beyond 0..255 would wrap around in uint8.
    return cut_BCSS.round().clamp(0, 255).to(torch.uint8)


def _any_area_boxes(aspect_B: Tensor, generator: torch.Generator) -> Tensor:
    """Draw a box (left, top, width, height) ``[B, 4]`` for each image, as shares of it.

    The box is the first of ten draws that fits in the image. If none fits, it is the largest box of the nearest allowed
    shape, in the centre. Shapes: T tries.
    """
    count = len(aspect_B)
    tries = 10

    # All draws of area and shape (width over height, log-uniform), and the sides that follow from them.
    area_BT = torch.empty(count, tries, dtype=torch.float64).uniform_(0.08, 1, generator=generator)
    bound = math.log(4 / 3)
    shape_BT = torch.empty(count, tries, dtype=torch.float64).uniform_(-bound, bound, generator=generator).exp()
    size_BT2 = torch.stack([area_BT * shape_BT / aspect_B[:, None], area_BT * aspect_B[:, None] / shape_BT], 2).sqrt()

    # The first draw that fits, or the largest box of shape 3:4 to 4:3.
    fits_BT = (size_BT2 <= 1).all(dim=2)
    drawn_B2 = size_BT2[torch.arange(count), fits_BT.int().argmax(dim=1)]
    largest_B2 = torch.stack([(4 / 3 / aspect_B).clamp(max=1), (aspect_B / (3 / 4)).clamp(max=1)], dim=1)
    has_fit_B1 = fits_BT.any(dim=1)[:, None]
    size_B2 = torch.where(has_fit_B1, drawn_B2, largest_B2)

    offset_B2 = torch.rand(count, 2, dtype=torch.float64, generator=generator)
    corner_B2 = (1 - size_B2) * torch.where(has_fit_B1, offset_B2, 0.5)
    return torch.cat([corner_B2, size_B2], dim=1)


def _short_side_boxes(aspect_B: Tensor, generator: torch.Generator) -> Tensor:
    """Draw a square box (left, top, width, height) ``[B, 4]`` anywhere in each image, as shares of it."""
    # The short side as a share of width and of height: a square of the image is no square in shares of it.
    short_B2 = torch.stack([(1 / aspect_B).clamp(max=1), aspect_B.clamp(max=1)], dim=1)
    size_B2 = short_B2 / MARGIN

    offset_B2 = torch.rand(len(aspect_B), 2, dtype=torch.float64, generator=generator)
    return torch.cat([(1 - size_B2) * offset_B2, size_B2], dim=1)
