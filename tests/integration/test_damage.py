"""Whatever happens to a file that a run leaves, reading it again gives the same result or a sentence that names it.

The files are those that are there, so a file that is added later is held to this law, too.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import trainer
from tests.damage import DAMAGES, damage
from trainer.config import TrainConfig
from trainer.data.split import load_split
from trainer.training.loop import TrainingInterrupted, train

pytestmark = pytest.mark.slow

CONFIG = TrainConfig.from_params(
    {
        "task": "demo/digits",
        "method": "spt_deep",
        "train_size": 0.05,
        "batch_size": 16,
        "epochs": 2,
        "warmup_epochs": 1,
        "prompt_length": 3,
        "prompt_init": "mean_pool",
    }
)
RESULTS = ("prompt.safetensors", "predictions.parquet")
NOT_READ = (".lock", "log.txt")


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """The network is so small that a second thread only waits for the first."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run(folder: Path, stop: Callable[[], bool] = lambda: False) -> dict[str, bytes]:
    """Train with everything that a run reads and writes in one folder, and return its results."""
    load_split.cache_clear()
    list(
        train(
            CONFIG,
            stop=stop,
            data_root=str(folder / "data"),
            folder=str(folder / "out"),
            cache=str(folder / "cache"),
            prototype_cache=str(folder / "prototypes"),
        )
    )
    trainer.load(folder / "out")
    return {name: (folder / "out" / name).read_bytes() for name in RESULTS}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """The folder of a finished run, and its results."""
    folder = tmp_path_factory.mktemp("finished")
    return folder, run(folder)


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was stopped in its second epoch."""
    folder = tmp_path_factory.mktemp("interrupted")
    calls = iter(range(1000))
    with pytest.raises(TrainingInterrupted):
        run(folder, stop=lambda: next(calls) == 4)
    return folder


@pytest.mark.parametrize("state", ["finished", "interrupted"])
@pytest.mark.parametrize("kinds", [DAMAGES[:1], DAMAGES[1:]], ids=["a flipped bit", "other damage"])
def test_a_damaged_file_gives_the_same_result_or_is_named(
    kinds: tuple[str, ...],
    state: str,
    finished: tuple[Path, dict[str, bytes]],
    interrupted: Path,
    tmp_path: Path,
) -> None:
    complete, expected = finished
    original = complete if state == "finished" else interrupted
    generator = random.Random(f"{kinds} {state}")
    files = [file.relative_to(original) for file in sorted(original.rglob("*")) if file.is_file()]
    assert len(files) > 10
    problems = []

    for index, name in enumerate(file for file in files if not file.name.endswith(NOT_READ)):
        folder = tmp_path / str(index)
        shutil.copytree(original, folder)
        # All kinds by turns: a run for each kind and file would take minutes.
        kind = kinds[index % len(kinds)]
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(damage(data, kind, generator))

        try:
            found = run(folder)
        except (ValueError, OSError) as error:
            # The task store cannot be made again here.
            if name.name not in str(error) or "\n" in str(error) or name.parts[0] != "data":
                problems.append(f"{name}, {kind}: {error}")
        else:
            if found != expected:
                problems.append(f"{name}, {kind}: another result, without a word")
        shutil.rmtree(folder)
    assert problems == []
