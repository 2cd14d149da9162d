"""What images cost between the disk and the network: a plain `DataLoader` over JPEG files, and the decoded array.

`python -m tests.benchmarks.reading --images 1000 --size 224`. Both read the same JPEGs, large as photographs (noise,
500 x 375), which are made first; `--folder` takes real ones. Random batches of 64.
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
    """A data set as research scripts write it: open, decode, resize, crop, for each image of each epoch."""

    def __init__(self, files: list[Path], size: int) -> None:
        self.files = files
        self.transform = v2.Compose([v2.Resize(size, InterpolationMode.BICUBIC), v2.CenterCrop(size), v2.PILToTensor()])

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> Tensor:
        with Image.open(self.files[row]) as opened:
            pixels: Tensor = self.transform(opened.convert("RGB"))
        return pixels


def made_up(folder: Path, images: int) -> Iterator[Path]:
    """JPEGs of the size and compression of photographs."""
    noise = np.random.default_rng(0)
    for i in range(images):
        coarse = Image.fromarray(noise.integers(0, 256, (30, 40, 3), dtype=np.uint8))
        place = folder / f"{i:06d}.jpg"
        coarse.resize((500, 375), Image.Resampling.BICUBIC).save(place, quality=90)
        yield place


def seconds_of(root: str, task: str, size: int, split: str) -> float:
    """How long until the images of a split can be indexed, in a process that has not seen them."""
    load_split.cache_clear()
    started = time.perf_counter()
    load_split(root, task, split, 1.0, size)
    return time.perf_counter() - started


def main() -> None:
    """Measure, and print a line each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--folder", type=Path, help="real photographs, instead of made-up ones")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SPTUNE_CACHE"] = f"{folder}/cache"
        files = sorted(options.folder.rglob("*.jpg"))[: options.images] if options.folder else []
        files = files or list(made_up(Path(folder), options.images))
        bytes_of = [Example(key=file.name, label=i % 10, image=file.read_bytes()) for i, file in enumerate(files)]
        cut = len(files) * 8 // 10
        splits = {"train": bytes_of[:cut], "val": bytes_of[cut:], "test": bytes_of[:10]}
        task = f"{OWN}photographs"
        write_task(folder, task, splits, source="benchmark", class_names=[*"0123456789"], protocol="published")
        size_kb = statistics.mean(len(example.image) for example in bytes_of) / 1000
        print(
            f"{len(files):,} JPEGs of {size_kb:.0f} kB each, at {options.size} x {options.size}, {os.cpu_count()} cores"
        )

        loader = DataLoader(JpegFiles(files, options.size), BATCH, shuffle=True, num_workers=options.workers)
        started = time.perf_counter()
        seen = sum(len(batch) for batch in loader)
        plain = seen / (time.perf_counter() - started)
        print(f"DataLoader over JPEGs, {options.workers} workers: {plain:,.0f} images/s, each epoch")

        print(f"decoded once a node: {len(files) / seconds_of(folder, task, options.size, 'trainval'):,.0f} images/s")
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
