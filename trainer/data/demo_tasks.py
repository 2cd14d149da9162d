"""Demo tasks, which need no download: scikit-learn's real handwritten digits, and shapes drawn by code.

The shapes vary in the factors of dSprites: square, ellipse or heart; 6 scales; 40 orientations; 32 x 32 positions.
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
"""Side of the square that a shape is drawn on, in pixels."""
SPLIT_SEED = 0
"""Seed of the choice of shapes, and of the order in which examples are divided among the splits."""


def make_demo_task(root: str, task: str) -> None:
    """Make a task of the `demo` group and write it to the task store.

    The bytes are the same on every machine, so that several processes may make the same task at the same time.

    Raises:
        OSError: if the store cannot be written.
    """
    if task == "demo/digits":
        examples = _digits()
        source = "scikit-learn's load_digits (UCI, CC BY 4.0)"
        class_names = [*"0123456789"]
    else:
        examples = _shapes(task.removeprefix("demo/shapes_"))
        # Stored in every card of these tasks, so it keeps this module's former name.
        source = "drawn by trainer.data.rendered"
        class_names = [f"bin {i}" for i in range(16)]

    # The examples come in random order, so each split is a contiguous part of them.
    row = TASKS[task]
    splits = {}
    start = 0
    for split, count in (("train", row.num_train), ("val", row.num_val), ("test", row.num_test)):
        splits[split] = examples[start : start + count]
        start += count

    write_task(root, task, splits, source=source, class_names=class_names, protocol=f"resampled with seed {SPLIT_SEED}")


def _encode(pixels_HW: NDArray[np.uint8]) -> bytes:
    """Encode as PNG without compression, so that the bytes do not depend on the version of a library."""
    buffer = io.BytesIO()
    Image.fromarray(pixels_HW).save(buffer, "PNG", compress_level=0)
    return buffer.getvalue()


def _digits() -> list[Example]:
    # Slow to import, and only needed here.
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(SPLIT_SEED).permutation(len(digits.target))

    return [
        Example(
            key=f"digit-{i:04d}",
            label=int(digits.target[i]),
            # scikit-learn's pixels run from 0 to 16.
            image=_encode(np.rint(digits.images[i] * (255 / 16)).astype(np.uint8)),
        )
        for i in order
    ]


def _shapes(factor: str) -> list[Example]:
    """Draw three thousand shapes, each another combination of the factors.

    The label is one of 16 bins: of the horizontal position (`loc`) or of the full turn (`ori`).
    """
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
    """Return the polygon of one shape on the canvas, in pixels."""
    # The outline in its own coordinates, within -1..1.
    angle = np.linspace(0, 2 * math.pi, 48, endpoint=False)
    if shape == 0:
        across = np.array([-1, 1, 1, -1]) * 0.8
        down = np.array([-1, -1, 1, 1]) * 0.8
    elif shape == 1:
        across = np.cos(angle)
        down = 0.5 * np.sin(angle)
    else:
        across = np.sin(angle) ** 3
        down = -(13 * np.cos(angle) - 5 * np.cos(2 * angle) - 2 * np.cos(3 * angle) - np.cos(4 * angle)) / 16

    # Scaled, turned and moved to its position.
    radius = 11 * (0.5 + 0.1 * scale)
    theta = 2 * math.pi * turn / 40
    centre_x = 12 + 40 * x / 31
    centre_y = 12 + 40 * y / 31
    horizontal = centre_x + radius * (across * math.cos(theta) - down * math.sin(theta))
    vertical = centre_y + radius * (across * math.sin(theta) + down * math.cos(theta))
    return [(float(h), float(v)) for h, v in zip(horizontal, vertical, strict=True)]
