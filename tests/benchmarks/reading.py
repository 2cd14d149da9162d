"""Cost of images between disk and network: a plain `DataLoader` over JPEG files, and the cache of decoded images.

Run `python -m tests.benchmarks.reading --images 1000 --size 224`. Both read the same JPEGs in random batches of 64. The
JPEGs have the size of photographs (noise, 500 x 375) and are made first. `--folder` takes real ones instead.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import InterpolationMode, v2

from trainer.catalog import OWN
from trainer.data.split import load_split
from trainer.data.task_store import Example, write_task

BATCH = 64


class JpegFiles(Dataset[Tensor]):
    """A data set as research scripts write it: each epoch opens, decodes, resizes and crops each image."""

    def __init__(self, files: list[Path], size: int) -> None:
        self.files = files
        self.transform = v2.Compose([v2.Resize(size, InterpolationMode.BICUBIC), v2.CenterCrop(size), v2.PILToTensor()])

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> Tensor:
        with Image.open(self.files[row]) as opened:
            pixels: Tensor = self.transform(opened.convert("RGB"))
        return pixels


def make_photographs(folder: Path, images: int) -> Iterator[Path]:
    """Write JPEGs with the size and compression of photographs, and yield their paths."""
    noise = np.random.default_rng(0)
    for i in range(images):
        coarse = Image.fromarray(noise.integers(0, 256, (30, 40, 3), dtype=np.uint8))
        path = folder / f"{i:06d}.jpg"
        coarse.resize((500, 375), Image.Resampling.BICUBIC).save(path, quality=90)
        yield path


def seconds_of(root: str, task: str, size: int, split: str) -> float:
    """Return the seconds until a split can be indexed, in a process that has not opened it before."""
    load_split.cache_clear()
    started = time.perf_counter()
    load_split(root, task, split, 1.0, size)
    return time.perf_counter() - started


def main() -> None:
    """Measure, and print one line per measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--folder", type=Path, help="folder of real photographs")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SPTUNE_CACHE"] = f"{folder}/cache"
        files = sorted(options.folder.rglob("*.jpg"))[: options.images] if options.folder else []
        files = files or list(make_photographs(Path(folder), options.images))
        examples = [Example(key=file.name, label=i % 10, image=file.read_bytes()) for i, file in enumerate(files)]
        cut = len(files) * 8 // 10
        splits = {"train": examples[:cut], "val": examples[cut:], "test": examples[:10]}
        task = f"{OWN}photographs"
        write_task(folder, task, splits, source="benchmark", class_names=[*"0123456789"], protocol="published")
        size_kb = statistics.mean(len(example.image) for example in examples) / 1000
        print(
            f"{len(files):,} JPEGs of {size_kb:.0f} kB each, at {options.size} x {options.size}, {os.cpu_count()} cores"
        )

        # The DataLoader, in one epoch.
        loader = DataLoader(JpegFiles(files, options.size), BATCH, shuffle=True, num_workers=options.workers)
        started = time.perf_counter()
        seen = sum(len(batch) for batch in loader)
        plain = seen / (time.perf_counter() - started)
        print(f"DataLoader over JPEGs, {options.workers} workers: {plain:,.0f} images/s, each epoch")

        # Ours: decode once, then open the array that all processes share.
        print(f"decoded once per node: {len(files) / seconds_of(folder, task, options.size, 'trainval'):,.0f} images/s")
        opened = statistics.median(seconds_of(folder, task, options.size, "trainval") for _ in range(5))
        print(f"opened again, by any process: {1000 * opened:.0f} ms")
        split = load_split(folder, task, "trainval", 1.0, options.size)

        rates = []
        for _ in range(10):
            started = time.perf_counter()
            for rows_B in torch.randperm(len(split)).split(BATCH):
                split.take(rows_B)
            rates.append(len(split) / (time.perf_counter() - started))
        ours = statistics.median(rates)
        print(f"random batches of {BATCH} from it: {ours:,.0f} images/s, {ours / plain:,.0f} times the DataLoader")


if __name__ == "__main__":
    main()
