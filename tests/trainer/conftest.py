"""What the trainer's tests share: one task store, one frozen network, and small configs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from trainer.catalog import METHODS
from trainer.config import TrainConfig
from trainer.data.split import load_split
from trainer.model.backbone import Backbone, load_backbone


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """The networks here are so small that a second thread only waits for the first."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A task store in which demo tasks are made at first use; read it, never write to it."""
    return str(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def store(data_root: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digits, with the first 40 of val and 30 of test only: quickly scored. Read it, never write to it."""
    load_split(data_root, "demo/digits", "train", 0.05, 32)
    folder = tmp_path_factory.mktemp("store") / "demo/digits"
    shutil.copytree(f"{data_root}/demo/digits", folder)
    for split, count in (("val", 40), ("test", 30)):
        pq.write_table(pq.read_table(folder / f"{split}.parquet")[:count], folder / f"{split}.parquet")
    return str(folder.parent.parent)


@pytest.fixture(scope="session")
def backbone() -> Backbone:
    """The bundled network, the very object that training uses; copy it before changing it."""
    return load_backbone("vit_nano_patch4_32.mae")


@pytest.fixture(scope="session")
def tiny() -> Callable[..., TrainConfig]:
    """Configs of three epochs on 40 digits, for any method, with changes."""

    def config(method: str = "spt_deep", **changes: Any) -> TrainConfig:
        params: dict[str, Any] = {"task": "demo/digits", "method": method, "train_size": 0.05, "batch_size": 16}
        params |= {"epochs": 3, "warmup_epochs": 1}
        if METHODS[method].prompted_layers != "none":
            params |= {"prompt_length": 3, "prompt_init": METHODS[method].prompt_inits[-1]}
        if METHODS[method].first_lr and not METHODS[method].backbone_learns:
            # The default is that of prompts. Weights in the network would be lost at it.
            params["lr"] = 3e-2
        return TrainConfig.from_params(params | changes)

    return config
