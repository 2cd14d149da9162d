"""Tasks that need no download: scikit-learn's real handwritten digits, and shapes drawn by code.

The shapes have dSprites' factors: square, ellipse or heart; 6 scales; 40 orientations; 32 x 32 positions.
"""

from __future__ import annotations

import io
import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from trainer.catalog import TASKS
from trainer.data.task_store import Example, write_task

CANVAS = 64
SPLIT_SEED = 0


def make_demo_task(root: str, task: str) -> None:
    """Make a task of the `demo` group and put it into the store."""
    if task == "demo/digits":
        examples, source, class_names = _digits(), "scikit-learn's load_digits (UCI, CC BY 4.0)", [*"0123456789"]
    else:
        examples = _shapes(task.removeprefix("demo/shapes_"))
        source, class_names = "drawn by trainer.data.rendered", [f"bin {i}" for i in range(16)]
    row, start, splits = TASKS[task], 0, {}
    for split, count in (("train", row.num_train), ("val", row.num_val), ("test", row.num_test)):
        splits[split] = examples[start : start + count]
        start += count
    write_task(root, task, splits, source=source, class_names=class_names, protocol=f"resampled with seed {SPLIT_SEED}")


def _encode(pixels_HW: NDArray[np.uint8]) -> bytes:
    """PNG without compression, so that the bytes do not depend on the version of a library."""
    buffer = io.BytesIO()
    Image.fromarray(pixels_HW).save(buffer, "PNG", compress_level=0)
    return buffer.getvalue()


def _digits() -> list[Example]:
    from sklearn.datasets import load_digits  # slow to import, and only needed here

    digits = load_digits()
    order = np.random.default_rng(SPLIT_SEED).permutation(len(digits.target))
    return [
        Example(
            key=f"digit-{i:04d}",
            label=int(digits.target[i]),
            image=_encode(np.rint(digits.images[i] * (255 / 16)).astype(np.uint8)),
        )
        for i in order
    ]


def _shapes(factor: str) -> list[Example]:
    """Three thousand shapes; the label is a sixteenth of the horizontal position (loc) or of the full turn (ori)."""
    rng = np.random.default_rng(SPLIT_SEED)
    shape_counts = (3, 6, 40, 32, 32)
    examples = []
    for flat in rng.choice(math.prod(shape_counts), size=3000, replace=False):
        shape, scale, turn, x, y = (int(i) for i in np.unravel_index(flat, shape_counts))
        image = Image.new("L", (CANVAS, CANVAS))
        ImageDraw.Draw(image).polygon(_outline(shape, scale, turn, x, y), fill=255)
        label = x * 16 // 32 if factor == "loc" else turn * 16 // 40
        key = f"shape{shape}-scale{scale}-turn{turn:02d}-x{x:02d}-y{y:02d}"
        examples.append(Example(key=key, label=label, image=_encode(np.asarray(image))))
    return examples


def _outline(shape: int, scale: int, turn: int, x: int, y: int) -> list[tuple[float, float]]:
    """The polygon of one shape on the canvas, in pixels."""
    angle = np.linspace(0, 2 * math.pi, 48, endpoint=False)
    if shape == 0:
        across, down = np.array([-1, 1, 1, -1]) * 0.8, np.array([-1, -1, 1, 1]) * 0.8
    elif shape == 1:
        across, down = np.cos(angle), 0.5 * np.sin(angle)
    else:
        across = np.sin(angle) ** 3
        down = -(13 * np.cos(angle) - 5 * np.cos(2 * angle) - 2 * np.cos(3 * angle) - np.cos(4 * angle)) / 16
    radius = 11 * (0.5 + 0.1 * scale)
    theta = 2 * math.pi * turn / 40
    centre_x, centre_y = (12 + 40 * place / 31 for place in (x, y))
    horizontal = centre_x + radius * (across * math.cos(theta) - down * math.sin(theta))
    vertical = centre_y + radius * (across * math.sin(theta) + down * math.cos(theta))
    return [(float(h), float(v)) for h, v in zip(horizontal, vertical, strict=True)]
