"""Accuracy of the methods on real images with the bundled backbone, and the cost of each prototype strategy.

Run `python -m tests.benchmarks.methods --caltech101 vtab-1k/caltech101 --cifar10 cifar10 --epochs 20`. The lr of each
method is chosen on val from a short grid. With it the method is trained on train + val and scored on test once, at the
last epoch. CIFAR-10 is cut to 800 + 200 + 2,000 images.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from rich.console import Console
from rich.table import Table

from trainer.catalog import METHODS, PROTOTYPE_INITS, TASKS, Task
from trainer.config import TrainConfig
from trainer.data.task_store import Example, write_task
from trainer.training.loop import train

GRID = {"full": (1e-4, 1e-3), "linear": (1e-2, 1e-1)}
COMPARED = ("spt_deep", "vpt_deep", "linear", "full")


def read_caltech101(folder: Path) -> dict[str, list[Example]]:
    """Read the `vtab-1k` layout: one list per split, one `images/... label` per line."""
    lists = {"train": "train800.txt", "val": "val200.txt", "test": "test.txt"}
    return {
        split: [
            Example(key=path, label=int(label), image=(folder / path).read_bytes())
            for path, label in (line.rsplit(maxsplit=1) for line in (folder / name).read_text().splitlines())
        ]
        for split, name in lists.items()
    }


def read_cifar10(folder: Path) -> dict[str, list[Example]]:
    """Read a thousand training images and two thousand test images."""
    rows = {}
    # The images are stored class by class, so they are shuffled first.
    for name in ("train", "test"):
        table = pq.read_table(folder / f"{name}.parquet")
        rows[name] = table.take(np.random.default_rng(0).permutation(len(table))[:2000]).to_pylist()
    examples = {
        name: [Example(key=row["key"], label=row["label"], image=row["image"]) for row in table_rows]
        for name, table_rows in rows.items()
    }
    return {"train": examples["train"][:800], "val": examples["train"][800:1000], "test": examples["test"]}


def store(root: str, name: str, splits: Mapping[str, Sequence[Example]]) -> None:
    """Add a task to the catalog, and write it to the store."""
    classes = 1 + max(example.label for examples in splits.values() for example in examples)
    num_train, num_val, num_test = (len(splits[split]) for split in ("train", "val", "test"))
    TASKS[name] = Task(
        name=name, group="benchmark", num_classes=classes, num_train=num_train, num_val=num_val, num_test=num_test
    )
    write_task(
        root, name, splits, source="local", class_names=[str(k) for k in range(classes)], protocol="as benchmarked"
    )


def last_metrics(root: str, **params: Any) -> tuple[dict[str, float], float]:
    """Return the metrics of a whole run, those of its first and last epoch together, and its seconds."""
    started = time.perf_counter()
    epochs = list(train(TrainConfig.from_params(params), data_root=root))
    return epochs[0].metrics | epochs[-1].metrics, time.perf_counter() - started


def main() -> None:
    """Train, and print two tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--caltech101", type=Path)
    parser.add_argument("--cifar10", type=Path)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--prompt-length", type=int, default=10)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    console = Console(width=110)

    with tempfile.TemporaryDirectory() as root:
        sources = (("caltech101", options.caltech101, read_caltech101), ("cifar10", options.cifar10, read_cifar10))
        for name, folder, read in sources:
            if folder is not None:
                store(root, f"local/{name}", read(folder))
        tasks = [name for name in TASKS if name.startswith("local/")]

        # Accuracies.
        table = Table("task", "method", "learnable", "share", "lr", "val", "test", "s/epoch", title="accuracy")
        for task in tasks:
            for method in COMPARED:
                fixed = {
                    "task": task,
                    "method": method,
                    "epochs": options.epochs,
                    "warmup_epochs": options.epochs // 10,
                }
                if METHODS[method].prompt_inits:
                    fixed |= {"prompt_length": options.prompt_length}
                if METHODS[method].has_prototypes:
                    fixed |= {"prompt_init": "mean_pool"}
                results = {lr: last_metrics(root, **fixed, lr=lr) for lr in GRID.get(method, (5e-3, 5e-2))}
                lr = max(results, key=lambda lr: (results[lr][0]["val/accuracy"], -lr))
                searched, seconds = results[lr]
                final, _ = last_metrics(root, **fixed, lr=lr, eval_split="test")
                table.add_row(
                    task,
                    method,
                    f"{int(searched['learnable/parameters']):,}",
                    f"{100 * searched['learnable/share']:.1f} %",
                    f"{lr:g}",
                    f"{100 * searched['val/accuracy']:.1f}",
                    f"{100 * final['test/accuracy']:.1f}",
                    f"{seconds / options.epochs:.2f}",
                )
        console.print(table)

        # Prototypes.
        costs = Table("task", "layers", *PROTOTYPE_INITS, title="seconds to build prototypes")
        for task in tasks:
            for method in ("spt_deep", "spt_shallow"):
                seconds_of = [
                    last_metrics(
                        root,
                        task=task,
                        method=method,
                        prompt_length=options.prompt_length,
                        prompt_init=init,
                        epochs=1,
                        warmup_epochs=0,
                    )[0]["prototypes/seconds"]
                    for init in PROTOTYPE_INITS
                ]
                layers = "all" if method == "spt_deep" else "first"
                costs.add_row(task, layers, *(f"{seconds:.2f}" for seconds in seconds_of))
        console.print(costs)


if __name__ == "__main__":
    main()
