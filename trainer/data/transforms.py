"""From an encoded image to the uint8 pixels that a backbone sees."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F


def decode(image: bytes, size: int) -> NDArray[np.uint8]:
    """SPT's transform for VTAB: short side to `size`, bicubic, then the centre crop.

    Returns:
        uint8 ``[3, size, size]``.
    """
    with Image.open(io.BytesIO(image)) as opened:
        resized = F.resize(opened.convert("RGB"), [size], interpolation=InterpolationMode.BICUBIC)
    return np.asarray(F.center_crop(resized, [size, size])).transpose(2, 0, 1)
