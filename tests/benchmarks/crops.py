"""Cost of random crops for training: torchvision's from encoded photographs, and ours from the image cache.

Run `python -m tests.benchmarks.crops --sizes 500x375 1024x768`. Photographs of each size are made of pieces of the two
that scikit-learn ships, unscaled, and stored as JPEGs. `--folder` takes real ones instead. Both sides cut batches in
turns, on one thread. A rate is per second of the processor, so that other programs change it little. For the detail,
both cut the same boxes.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_sample_image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as TF

from tests.benchmarks.machine import default_device, describe, write_json
from trainer.catalog import OWN
from trainer.data.split import Split, load_split
from trainer.data.task_store import Example, write_task
from trainer.data.transforms import random_crops

BATCH = 64
PIECE = 200
"""Side of the pieces that photographs are made of, in pixels."""


def make_photographs(images: int, width: int, height: int) -> Iterator[bytes]:
    """Yield JPEGs that are as sharp as real photographs, at any size."""
    photographs = [load_sample_image(name) for name in ("china.jpg", "flower.jpg")]
    random = np.random.default_rng(0)

    for _ in range(images):
        picture = np.empty((height, width, 3), np.uint8)
        for top in range(0, height, PIECE):
            for left in range(0, width, PIECE):
                part = picture[top : top + PIECE, left : left + PIECE]
                y, x = random.integers(0, (427 - PIECE, 640 - PIECE))
                part[:] = photographs[random.integers(2)][y : y + part.shape[0], x : x + part.shape[1]]

        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "JPEG", quality=90)
        yield buffer.getvalue()


def published_crops(encoded: list[bytes], size: int) -> Tensor:
    """Return random crops as published code makes them: each photograph is decoded, cut, resized and mirrored."""
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(size, interpolation=InterpolationMode.BICUBIC),
            v2.RandomHorizontalFlip(),
            v2.PILToTensor(),
        ]
    )

    def crop(image: bytes) -> Tensor:
        with Image.open(io.BytesIO(image)) as opened:
            pixels: Tensor = transform(opened.convert("RGB"))
        return pixels

    return torch.stack([crop(image) for image in encoded])


def our_crops(split: Split, rows_B: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Return random crops as a training step takes them."""
    crops_B5 = random_crops(split.whole_sizes(rows_B), "spt", generator)
    return split.take_crops(rows_B, crops_B5, size, "spt")


def laplacian_energy(squares_BCSS: Tensor) -> float:
    """Return the mean energy of the finest detail."""
    grey_BSS = squares_BCSS.double().mean(dim=1)
    around = grey_BSS[:, 1:-1, :-2] + grey_BSS[:, 1:-1, 2:] + grey_BSS[:, :-2, 1:-1] + grey_BSS[:, 2:, 1:-1]
    return float((around - 4 * grey_BSS[:, 1:-1, 1:-1]).square().mean())


def relative_detail(split: Split, encoded: list[bytes], size: int) -> float:
    """Return the finest detail of our crops over that of torchvision's, which are cut from the photographs."""
    rows_B = torch.arange(len(split))
    size_B2 = split.whole_sizes(rows_B)
    crops_B5 = random_crops(size_B2, "spt", torch.Generator().manual_seed(0))

    theirs = []
    for image, crop_5, (whole_height, _) in zip(encoded, crops_B5.tolist(), size_B2.tolist(), strict=True):
        with Image.open(io.BytesIO(image)) as opened:
            picture = opened.convert("RGB")
        # The same box of the photograph, where the cache holds a smaller one.
        box = [round(value * picture.height / whole_height) for value in crop_5[:4]]
        square = TF.resized_crop(picture, *box, [size, size], InterpolationMode.BICUBIC, antialias=True)
        theirs.append(TF.pil_to_tensor(square))

    ours_BCSS = split.take_crops(rows_B, crops_B5, size, "spt").cpu()
    return laplacian_energy(ours_BCSS) / laplacian_energy(torch.stack(theirs))


def memory_mb(field: str) -> float:
    """Return a line of Linux's memory counters of this process, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(f"{field}:"))


def rate(cut: Callable[[], Tensor], seconds: float) -> float:
    """Return crops per second of the processor."""
    num_crops = 0
    started = time.process_time()
    while time.process_time() - started < seconds:
        num_crops += len(cut())
    return num_crops / (time.process_time() - started)


def measure(name: str, encoded: list[bytes], options: argparse.Namespace) -> dict[str, object]:
    """Return what crops of some photographs cost on both sides."""
    with tempfile.TemporaryDirectory() as folder:
        examples = [Example(key=f"{i:06d}", label=0, image=image) for i, image in enumerate(encoded)]
        splits = {"train": examples, "val": examples[:1], "test": examples[:1]}
        task = f"{OWN}photographs"
        write_task(folder, task, splits, source="benchmark", class_names=["0"], protocol="published")

        started = time.process_time()
        split = load_split.__wrapped__(
            folder, task, "train", 1.0, options.size, options.device, "spt", "whole", f"{folder}/cache"
        )
        filled = time.process_time() - started
        cache_bytes = sum(file.stat().st_size for file in Path(f"{folder}/cache").iterdir())

        # In turns, so that both sides meet the same moments of the machine. Each round is a batch at least.
        generator = torch.Generator().manual_seed(0)
        order = torch.Generator().manual_seed(0)

        def rows() -> Tensor:
            return torch.randint(0, len(split), (BATCH,), generator=order)

        def ours() -> Tensor:
            return our_crops(split, rows(), options.size, generator)

        def published() -> Tensor:
            return published_crops([encoded[row] for row in rows().tolist()], options.size).to(options.device)

        ours()
        anonymous = memory_mb("RssAnon")
        rounds = [(rate(published, options.seconds), rate(ours, options.seconds)) for _ in range(3)]
        # One pass over all images: what grows with them is in files.
        for rows_B in torch.arange(len(split)).split(BATCH):
            our_crops(split, rows_B, options.size, generator)

        return {
            "photographs": name,
            "images": len(encoded),
            "published_crops_per_s": statistics.median(each for each, _ in rounds),
            "ours_crops_per_s": statistics.median(each for _, each in rounds),
            "ratio": statistics.median(each / plain for plain, each in rounds),
            "decoded_per_s": (len(encoded) + 1) / filled,
            "encoded_bytes_per_image": sum(map(len, encoded)) / len(encoded),
            "cache_bytes_per_image": cache_bytes / (len(encoded) + 1),
            "anonymous_mb_more": memory_mb("RssAnon") - anonymous,
            "peak_mb": memory_mb("VmHWM"),
            "relative_detail": relative_detail(split, encoded, options.size),
        }


def main() -> None:
    """Measure each size, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", default=["500x375", "1024x768", "2000x1500"])
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--folder", type=Path, help="folder of real photographs, instead of sizes")
    parser.add_argument("--size", type=int, default=224, help="side of the crops")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each of three rounds")
    parser.add_argument("--device", default=default_device())
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)

    if options.folder:
        files = sorted(options.folder.rglob("*.jpg"))[: options.images]
        sets = {options.folder.name: [file.read_bytes() for file in files]}
    else:
        sides = {name: map(int, name.split("x")) for name in options.sizes}
        sets = {name: list(make_photographs(options.images, *each)) for name, each in sides.items()}

    cells = [measure(name, encoded, options) for name, encoded in sets.items()]
    write_json(options.out, {"machine": describe(options.device), "cells": cells})

    table = Table(*cells[0], title=f"Crops of side {options.size}, one thread, {options.device}")
    for cell in cells:
        table.add_row(*(f"{value:,.2f}" if isinstance(value, float) else str(value) for value in cell.values()))
    Console(width=200).print(table)


if __name__ == "__main__":
    main()
