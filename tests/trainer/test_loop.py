"""The training loop: resumption bit for bit, learning, the splits it may look at, and its refusals."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from trainer.backbone import Backbone, load_backbone
from trainer.bank import first_prompt
from trainer.catalog import METHODS
from trainer.config import TrainConfig
from trainer.data.store import load_split
from trainer.loop import EpochMetrics, TrainingDiverged, train

Whole = tuple[TrainConfig, list[EpochMetrics], Path]


def without_speed(epochs: list[EpochMetrics]) -> list[tuple[int, dict[str, float]]]:
    return [(e.epoch, {k: v for k, v in e.metrics.items() if k != "train/images_per_s"}) for e in epochs]


@pytest.fixture(scope="module", params=METHODS)
def whole(
    request: pytest.FixtureRequest,
    data_root: str,
    tiny: Callable[..., TrainConfig],
    tmp_path_factory: pytest.TempPathFactory,
) -> Whole:
    """An uninterrupted run of each method: its config, its epochs, its folder."""
    config, folder = tiny(request.param), tmp_path_factory.mktemp("whole")
    return config, list(train(config, data_root=data_root, folder=str(folder))), folder


@pytest.fixture(scope="module")
def store_without_test(
    data_root: str, tiny: Callable[..., TrainConfig], tmp_path_factory: pytest.TempPathFactory
) -> str:
    """A task store in which any look at demo/digits' test images fails."""
    load_split(data_root, "demo/digits", "test", 1.0, 32)
    root = tmp_path_factory.mktemp("no-test") / "data"
    shutil.copytree(data_root, root)
    (root / "demo/digits/test.parquet").write_bytes(b"not to be opened")
    return str(root)


@pytest.mark.parametrize("finished", [1, 2, 3])
def test_an_interrupted_run_ends_with_the_bits_of_an_uninterrupted_one(
    whole: Whole, finished: int, data_root: str, tmp_path: Path
) -> None:
    config, epochs, folder = whole
    assert [epoch.epoch for epoch in epochs] == [1, 2, 3]
    run = train(config, data_root=data_root, folder=str(tmp_path))
    before = [next(run) for _ in range(finished)]
    del run  # a generator without an owner is closed
    torch.manual_seed(finished)  # another process would have drawn other numbers
    after = list(train(config, data_root=data_root, folder=str(tmp_path)))
    # The finished epochs are told again to the last digit, speed included: they were not trained again.
    assert after[:finished] == before
    assert without_speed(after) == without_speed(epochs)
    assert {file.name: file.read_bytes() for file in tmp_path.glob("*.safetensors")} == {
        file.name: file.read_bytes() for file in folder.glob("*.safetensors")
    }


def test_a_run_reports_its_epochs_and_leaves_its_prototypes_and_what_it_learnt(whole: Whole) -> None:
    config, epochs, folder = whole
    for epoch in epochs:
        assert epoch.metrics.keys() == {"train/loss", "train/lr", "train/images_per_s", "val/accuracy"}
        assert 0 <= epoch.metrics["val/accuracy"] <= 1
    learnt = load_file(folder / "prompt.safetensors")
    prompts = {"spt_deep": (5, 3, 96), "spt_shallow": (1, 3, 96), "vpt_deep": (5, 3, 96)}
    shapes = {"head.weight": (10, 96), "head.bias": (10,)}
    if config.method in prompts:
        shapes["prompt"] = prompts[config.method]
        # Every prompt token of every layer has moved away from where it started.
        moved = learnt["prompt"] - load_file(folder / "prototypes.safetensors")["prompt"]
        assert bool((moved.abs().amax(dim=2) > 1e-4).all())
    assert {name: tuple(tensor.shape) for name, tensor in learnt.items()} == shapes


def test_prompts_on_a_frozen_network_learn_the_digits(data_root: str, tiny: Callable[..., TrainConfig]) -> None:
    config = tiny(prompt_length=5, prompt_init="mean_pool", train_size=0.1, batch_size=8, lr=5e-2)
    first, *_, last = train(config, data_root=data_root)
    assert last.metrics["train/loss"] < 0.85 * first.metrics["train/loss"]
    assert last.metrics["val/accuracy"] > 0.35  # chance is 0.1


def test_every_epoch_takes_the_images_in_another_order(data_root: str, tiny: Callable[..., TrainConfig]) -> None:
    # Nothing learns at this rate, so the loss tells which images an epoch saw: 32 of 40.
    losses = [epoch.metrics["train/loss"] for epoch in train(tiny("linear", lr=1e-30), data_root=data_root)]
    assert min(abs(losses[0] - losses[1]), abs(losses[1] - losses[2]), abs(losses[0] - losses[2])) > 1e-3


def test_a_search_run_never_looks_at_test(store_without_test: str, tiny: Callable[..., TrainConfig]) -> None:
    assert len(list(train(tiny("linear"), data_root=store_without_test))) == 3


def test_a_final_run_looks_at_test_at_its_last_epoch_only(
    store_without_test: str, data_root: str, tiny: Callable[..., TrainConfig]
) -> None:
    config = tiny("linear", eval_split="test")
    scores = [epoch.metrics.keys() & {"val/accuracy", "test/accuracy"} for epoch in train(config, data_root=data_root)]
    assert scores == [set(), set(), {"test/accuracy"}]
    run: Iterator[EpochMetrics] = train(config, data_root=store_without_test)
    assert [next(run).epoch, next(run).epoch] == [1, 2]
    with pytest.raises(ValueError, match="Parquet"):
        next(run)


@pytest.mark.parametrize(("eval_split", "parts"), [("val", ["train"]), ("test", ["train", "val"])])
def test_prototypes_are_made_of_the_images_that_are_learnt_from(
    eval_split: str,
    parts: list[str],
    data_root: str,
    backbone: Backbone,
    tmp_path: Path,
    tiny: Callable[..., TrainConfig],
) -> None:
    # One k-means centre is the mean of all tokens, so it tells whose they are.
    config = tiny("spt_deep", prompt_length=1, prompt_init="kmeans", eval_split=eval_split, warmup_epochs=0)
    next(train(config, data_root=data_root, folder=str(tmp_path)))
    images = torch.cat([load_split(data_root, "demo/digits", part, 0.05, 32).images_NCHW for part in parts])
    means_LPD = torch.stack([tokens_BND.mean(dim=(0, 1)) for tokens_BND in backbone.patch_tokens(images)])[:, None]
    prototypes_LPD = load_file(tmp_path / "prototypes.safetensors")["prompt"]
    torch.testing.assert_close(prototypes_LPD, means_LPD, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "epoch", "loss"),
    [
        # One step an epoch: the first has rate 0, the second goes out of all bounds, and the third's loss shows it.
        ({"batch_size": 32, "lr": 1e30}, 3, "nan"),
        # The weights overflow at the only step, whose own loss is still a number.
        ({"batch_size": 32, "lr": 1e30, "weight_decay": 3e8, "epochs": 1, "warmup_epochs": 0}, 1, r"\d\.\d+"),
    ],
)
def test_a_run_that_diverges_ends_with_epoch_loss_and_rate_and_leaves_no_result(
    changes: dict[str, float], epoch: int, loss: str, data_root: str, tmp_path: Path, tiny: Callable[..., TrainConfig]
) -> None:
    run = train(tiny(**changes), data_root=data_root, folder=str(tmp_path))
    assert [next(run).epoch for _ in range(1, epoch)] == list(range(1, epoch))
    with pytest.raises(TrainingDiverged, match="NaN") as caught:
        next(run)
    assert re.fullmatch(
        rf"loss or weights became infinite or NaN in epoch {epoch} \(train/loss={loss}, task=demo/digits, "
        rf"lr={re.escape(str(changes['lr']))}\)\. A smaller lr is the usual cure\.",
        str(caught.value),
    )
    assert not (tmp_path / "prompt.safetensors").exists()


def test_a_folder_of_another_config_is_refused(
    data_root: str, tmp_path: Path, tiny: Callable[..., TrainConfig]
) -> None:
    list(train(tiny(), data_root=data_root, folder=str(tmp_path)))
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(ValueError, match="another config") as caught:
        list(train(tiny(seed=43), data_root=data_root, folder=str(tmp_path)))
    assert str(caught.value) == (
        f"{tmp_path} holds a checkpoint of another config; choose another folder or remove it."
    )
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before, "refused means untouched"


def test_prompt_and_head_start_from_streams_of_their_own(data_root: str, tiny: Callable[..., TrainConfig]) -> None:
    purposes, epochs = ("head", "order"), (0, 1)
    seeds = [tiny(seed=s).stream_seed(purpose, epoch) for s in (0, 1) for purpose in purposes for epoch in epochs]
    assert len(set(seeds)) == len(seeds)
    assert max(seeds) < 2**63, "torch takes no larger one"
    correlations = []
    for seed in range(3):
        config = tiny("vpt_deep", prompt_length=3, seed=seed)
        images = load_split(data_root, "demo/digits", "train", 0.05, 32)
        first = first_prompt(config, load_backbone(config.backbone), images, data_root=data_root, bank=None)
        generator = torch.Generator().manual_seed(config.stream_seed("head"))
        head = torch.nn.init.trunc_normal_(torch.empty(960), std=0.02, generator=generator)
        correlations.append(abs(float(torch.corrcoef(torch.stack([first.prompt_LPD.flatten()[:960], head]))[0, 1])))
    assert max(correlations) < 0.15


def test_a_batch_larger_than_the_data_is_refused(data_root: str, tiny: Callable[..., TrainConfig]) -> None:
    # A share of 0.03 is 24 of 800 images, but 23 when each class is rounded.
    with pytest.raises(ValueError, match="batch_size") as caught:
        list(train(tiny("linear", train_size=0.03, batch_size=24), data_root=data_root))
    assert str(caught.value) == (
        "batch_size=24 exceeds the 23 images of demo/digits train at train_size=0.03; use a smaller batch_size."
    )
