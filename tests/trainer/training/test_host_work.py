"""What the host does beside the steps of an epoch is bounded: how often it waits for a GPU, and which files it writes.

Shapes: N images, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.trainer.fake_gpu import GPU, READS_VALUES, AnyValues, Waits, fake_gpu
from trainer.config import TrainConfig
from trainer.data.split import Split
from trainer.training.evaluation import logits_of
from trainer.training.loop import train
from trainer.training.metrics import read_progress, scores


@pytest.mark.parametrize("num_classes", [2, 6, 397])
def test_the_scores_of_an_epoch_wait_for_the_gpu_once(num_classes: int) -> None:
    with fake_gpu(), AnyValues(), Waits() as waits:
        scores(torch.empty(200, num_classes, device=GPU), torch.empty(200, dtype=torch.int64, device=GPU))
    assert waits.by_name == {"aten._to_copy.default": 1}


@pytest.mark.parametrize("num_weights", [2, 150])
def test_loss_and_weights_of_an_epoch_are_checked_in_one_wait(num_weights: int) -> None:
    with fake_gpu(), AnyValues(), Waits() as waits:
        read_progress(torch.zeros((), device=GPU), [torch.empty(4, 3, device=GPU) for _ in range(num_weights)])
    assert waits.by_name == {"aten._to_copy.default": 1}


@pytest.mark.parametrize("num_images", [1, 64, 1000])
def test_evaluation_waits_for_the_gpu_at_no_batch(num_images: int) -> None:
    with fake_gpu(), Waits() as waits:
        split = Split(
            images_R=torch.empty(num_images, 3, 4, 4, dtype=torch.uint8, device=GPU),
            rows_N=torch.arange(num_images, device=GPU),
            labels_N=torch.empty(num_images, dtype=torch.int64, device=GPU),
            keys=("",) * num_images,
            view="fixed",
            fingerprint="",
        )
        logits_NK = logits_of(lambda images_B: images_B.flatten(1)[:, :10].float(), Split.take, split, 64)
        assert logits_NK.shape == (num_images, 10)
    assert waits.total == 0


def test_what_waits_for_the_gpu_would_be_found() -> None:
    waiting: list[Callable[[Tensor], object]] = [
        lambda labels_N: labels_N.sum().item(),
        lambda labels_N: labels_N.bincount(minlength=5),
        lambda labels_N: labels_N[labels_N > 0],
        lambda labels_N: labels_N.cpu(),
        lambda labels_N: labels_N[torch.tensor([0, 1]).to(GPU)],
    ]
    with fake_gpu(), AnyValues():
        for wait in waiting:
            labels_N = torch.empty(5, dtype=torch.int64, device=GPU)
            with Waits() as waits:
                wait(labels_N)
            assert waits.total == 1


class Reads(TorchDispatchMode):
    """Counts the values that a run reads one by one, and the shapes that depend on values, on any device."""

    def __init__(self) -> None:
        super().__init__()
        self.num = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.num += func in READS_VALUES
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("method", ["vpt_deep", "full"])
def test_an_epoch_reads_its_three_scores_and_nothing_else_whatever_its_steps_and_its_weights(
    method: str, store: str, tiny: Callable[..., TrainConfig]
) -> None:
    # SGD, because AdamW counts its steps in tensors of the CPU.
    config = tiny(method, optimizer="sgd", batch_size=10, epochs=4, eval_every=3)
    run = train(config, data_root=store)
    num_read = []
    for _ in range(config.epochs):
        with Reads() as reads:
            next(run)
        num_read.append(reads.num)
    # The first epoch includes the start of the run. The second one is not scored.
    assert num_read[1:] == [0, 3, 3]


def versions_of(folder: Path) -> dict[str, tuple[int, int]]:
    """The files in a folder, each with what changes when it is replaced."""
    stats = {path.name: path.stat() for path in folder.iterdir() if path.suffix != ".part"}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in stats.items()}


def test_an_epoch_writes_its_checkpoint_and_the_last_one_the_results(
    store: str, tiny: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    before: dict[str, tuple[int, int]] = {}
    written = []
    for _ in train(tiny(epochs=4, warmup_epochs=1), data_root=store, folder=str(tmp_path)):
        after = versions_of(tmp_path)
        written.append({name for name in after if before.get(name) != after[name]})
        before = after

    # A checkpoint is written while the next epoch trains.
    results = {"predictions.parquet", "prompt.safetensors", "card.json", "checkpoint.pt"}
    assert all(names <= {"checkpoint.pt", "prototypes.safetensors"} for names in written[:3])
    assert written[3] == results
    assert {*before} == results | {"prototypes.safetensors"}
