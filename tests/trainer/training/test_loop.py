"""The training loop: resumption bit for bit, what each option does, the splits it may look at, and its refusals."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.layers.drop import DropPath
from torch import Tensor

import trainer
from tests.trainer.training.checkpoints import checkpoint_after
from trainer.catalog import BACKBONES, BUNDLED, METHODS, TASKS
from trainer.config import InvalidConfig, TrainConfig, field_types, unused_fields
from trainer.data.split import load_split
from trainer.data.task_store import Example, write_task
from trainer.data.tasks import open_task
from trainer.methods.protocol import build_model
from trainer.model.backbone import Backbone, load_backbone
from trainer.model.execution import backward
from trainer.model.weights import find_weights
from trainer.prompt_init.initial_prompt import initial_prompt
from trainer.training import step
from trainer.training.checkpoint import load_state, save_state
from trainer.training.feature_cache import frozen_features
from trainer.training.loop import EpochMetrics, TrainingDiverged, TrainingInterrupted, train

Whole = tuple[TrainConfig, list[EpochMetrics], Path]

RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    **{method: (method, {}) for method in METHODS},
    "average": ("spt_shallow", {"ema_decay": 0.5}),
    "averaged network": ("full", {"ema_decay": 0.9, "drop_path": 0.3, "precision": "bf16"}),
    "linear under drop path": ("linear", {"drop_path": 0.5}),
    "momentum": ("linear", {"optimizer": "sgd", "lr": 1.0}),
    "all at once": (
        "vpt_deep",
        {"optimizer": "sgd", "ema_decay": 0.9, "drop_path": 0.2, "precision": "bf16", "nmi": True},
    ),
    "other views": ("spt_deep", {"transform": "vpt", "normalize": "imagenet", "image_size": 24, "init_images": 7}),
}
"""Runs of every method, and of every option that adds something to what is kept between epochs."""

PROMPTS_AND_ENDS = ("spt_deep", "spt_shallow", "vpt_deep", "vpt_shallow", "linear", "full")
"""Methods whose learnable parameters are prompts, or none, or all."""

KEYS_OF_VERSION_1 = ("config", "backbone", "learnable", "average", "optimizer", "part", "epochs", "under_way")
KEYS_WITHIN_AN_EPOCH = {"done", "loss", "seconds", "crops", "dropout"}

CLOCKS = {"train/images_per_s", "prototypes/seconds"}


def without_clocks(epochs: list[EpochMetrics]) -> list[tuple[int, dict[str, float]]]:
    return [(e.epoch, {k: v for k, v in e.metrics.items() if k not in CLOCKS}) for e in epochs]


def card_without_clocks(folder: Path) -> dict[str, Any]:
    card: dict[str, Any] = json.loads((folder / "card.json").read_text())
    card["metrics"] = {k: v for k, v in card["metrics"].items() if k not in CLOCKS}
    return {key: value for key, value in card.items() if key not in ("prototypes_seconds", "checksum")}


def results_in(folder: Path) -> dict[str, bytes]:
    """The files in a folder that hold results, without those that hold clocks."""
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.suffix in (".safetensors", ".parquet")}


def tensors_in(value: object) -> Iterator[Tensor]:
    """All tensors of a checkpoint, at any depth."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from tensors_in(part)


@pytest.fixture(
    scope="module",
    params=[name if name in METHODS else pytest.param(name, marks=pytest.mark.slow) for name in RUNS],
)
def whole(
    request: pytest.FixtureRequest,
    store: str,
    tiny: Callable[..., TrainConfig],
    tmp_path_factory: pytest.TempPathFactory,
) -> Whole:
    """An uninterrupted run: its config, its epochs, its folder."""
    method, changes = RUNS[request.param]
    config, folder = tiny(method, **changes), tmp_path_factory.mktemp("whole")
    return config, list(train(config, data_root=store, folder=str(folder))), folder


@pytest.fixture(scope="module")
def store_without_test(store: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A task store in which any look at demo/digits' test images fails."""
    root = tmp_path_factory.mktemp("no-test") / "data"
    shutil.copytree(store, root)
    (root / "demo/digits/test.parquet").write_bytes(b"not to be opened")
    return str(root)


@pytest.fixture
def augmented(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """For one test, demo/digits is a task that is learnt from random crops."""
    monkeypatch.setitem(TASKS, "demo/digits", dataclasses.replace(TASKS["demo/digits"], augmented=True))
    load_split.cache_clear()  # its keys name the task, not the row
    yield
    load_split.cache_clear()


def interrupted(config: TrainConfig, root: str, folder: Path) -> list[EpochMetrics]:
    """The epochs of a run that dies after every one of them, and is started again."""
    told: list[EpochMetrics] = []
    for finished in range(1, config.epochs + 1):
        torch.manual_seed(finished)  # another process would have drawn other numbers
        run = train(config, data_root=root, folder=str(folder))
        again = [next(run) for _ in range(finished)]
        assert again[:-1] == told, "finished epochs are told again to the last digit, speed included: not trained again"
        told = again
        del run  # a generator without an owner is closed
    assert list(train(config, data_root=root, folder=str(folder))) == told
    return told


def test_an_interrupted_run_ends_with_the_bits_of_an_uninterrupted_one(
    whole: Whole, store: str, tmp_path: Path
) -> None:
    config, epochs, folder = whole
    assert [epoch.epoch for epoch in epochs] == [1, 2, 3]
    assert without_clocks(interrupted(config, store, tmp_path)) == without_clocks(epochs)
    assert results_in(tmp_path) == results_in(folder)
    assert card_without_clocks(tmp_path) == card_without_clocks(folder)


def test_a_run_reports_its_epochs(whole: Whole) -> None:
    config, epochs, folder = whole
    method = METHODS[config.method]
    each = {"train/loss", "train/lr", "train/images_per_s"}
    each |= {"val/accuracy", "val/accuracy_top5", "val/accuracy_mean_class"}
    each |= {"val/accuracy_ema"} if config.ema_decay else set()
    layers = {"all": 5, "first": 1, "none": 0}[method.prompted_layers]
    each |= {f"nmi/layer_{layer:02d}" for layer in range(layers)} if config.nmi else set()
    once = {"learnable/parameters", "learnable/share", "train/images", "train/labels"}
    once |= {f"initial/nmi/layer_{layer:02d}" for layer in range(layers)} if config.nmi else set()
    once |= {"prototypes/seconds"} if METHODS[config.method].has_prototypes else set()
    assert [set(epoch.metrics) for epoch in epochs] == [each | once, each, each]
    for epoch in epochs:
        shares = {name: value for name, value in epoch.metrics.items() if "nmi/" in name or name.startswith("val/")}
        assert all(0 <= value <= 1 for value in shares.values()), shares
        assert epoch.metrics["val/accuracy"] <= epoch.metrics["val/accuracy_top5"]
        assert epoch.metrics["train/images_per_s"] > 0
    # Learnt numbers: 970 of the head for 10 classes, 3 prompts of 96 a layer, and the network's own if it learns. Other
    # methods have theirs in tests/trainer/methods.
    network = dict(load_backbone(config.backbone, image_size=config.pixels).named_parameters())
    learnt = load_file(folder / "prompt.safetensors")
    count = 970 + layers * 3 * 96 + sum(weight.numel() for weight in network.values() if config.method == "full")
    if config.method not in PROMPTS_AND_ENDS:
        count = sum(weight.numel() for weight in learnt.values())
    added = sum(weight.numel() for name, weight in learnt.items() if name.removeprefix("backbone.") not in network)
    assert epochs[0].metrics["learnable/parameters"] == count
    total = added + sum(weight.numel() for weight in network.values())
    assert epochs[0].metrics["learnable/share"] == count / total


def test_a_run_leaves_what_it_started_from_and_what_it_learnt(whole: Whole) -> None:
    config, epochs, folder = whole
    layers = {"all": 5, "first": 1, "none": 0}[METHODS[config.method].prompted_layers]
    files = {"checkpoint.pt", "prompt.safetensors", "predictions.parquet", "card.json"}
    assert {file.name for file in folder.iterdir()} == files | ({"prototypes.safetensors"} if layers else set())
    learnt = load_file(folder / "prompt.safetensors")
    shapes = {"head.weight": (10, 96), "head.bias": (10,)}
    if layers:
        shapes["prompt"] = (layers, 3, 96)
        start = load_file(folder / "prototypes.safetensors")
        assert start.keys() == {"prompt"}
        assert start["prompt"].shape == (layers, 3, 96)
        if config.method in PROMPTS_AND_ENDS:
            # Every prompt token of every layer has moved away from where it started.
            assert bool(((learnt["prompt"] - start["prompt"]).abs().amax(dim=2) > 1e-4).all())
    if config.method == "full":
        network = load_backbone(config.backbone, image_size=config.pixels)
        shapes |= {f"backbone.{name}": tuple(weight.shape) for name, weight in network.named_parameters()}
        moved = {name for name, weight in network.named_parameters() if not learnt[f"backbone.{name}"].equal(weight)}
        assert moved == {name for name, _ in network.named_parameters()}
    if config.method not in PROMPTS_AND_ENDS:
        # What else it learns, all of which has moved.
        frozen = load_backbone(config.backbone)
        first = build_model(config, frozen, num_classes=10, prompt_LPD=torch.zeros(layers, 3, 96)).learnable()
        assert [name for name, weight in first.items() if learnt[name].equal(weight)] == []
        shapes |= {name: tuple(weight.shape) for name, weight in first.items()}
    assert {name: tuple(tensor.shape) for name, tensor in learnt.items()} == shapes
    card = json.loads((folder / "card.json").read_text())
    assert TrainConfig.from_params(card["config"]) == config
    assert card["class_names"] == [*"0123456789"]
    assert card["backbone_sha256"] == load_backbone(config.backbone).sha256
    assert card["learnable"] == {name: list(shape) for name, shape in shapes.items()}
    assert card["metrics"] == epochs[-1].metrics


def test_each_prediction_is_kept_and_together_they_are_the_accuracy(whole: Whole, store: str) -> None:
    _, epochs, folder = whole
    shown = pq.read_table(folder / "predictions.parquet").to_pydict()
    judged = pq.read_table(f"{store}/demo/digits/val.parquet").to_pydict()
    assert (shown["key"], shown["label"]) == (judged["key"], judged["label"])
    right = [label == prediction for label, prediction in zip(shown["label"], shown["prediction"], strict=True)]
    assert shown["correct"] == right
    assert sum(right) / len(right) == epochs[-1].metrics["val/accuracy"]
    of_class = [[r for r, label in zip(right, shown["label"], strict=True) if label == k] for k in {*shown["label"]}]
    mean = sum(sum(part) / len(part) for part in of_class) / len(of_class)
    assert mean == pytest.approx(epochs[-1].metrics["val/accuracy_mean_class"])
    assert all(0.1 <= confidence <= 1 for confidence in shown["confidence"]), "of ten classes the best has a tenth"


def test_a_checkpoint_is_little_more_than_what_learns(whole: Whole) -> None:
    config, _, folder = whole
    state = load_state(folder / "checkpoint.pt")
    assert state is not None
    learnable = sum(tensor.nbytes for tensor in state["learnable"].values())
    copies = {"adamw": 3, "sgd": 2}[config.optimizer] + (config.ema_decay is not None)
    steps = 4 * len(state["learnable"])  # AdamW counts each parameter's
    tensors = sum(tensor.nbytes for tensor in tensors_in(state))
    assert copies * learnable <= tensors <= copies * learnable + steps
    # Beside them: names, options, and the metrics of the epochs.
    names = 1600 * len(state["learnable"]) + 2000
    assert (folder / "checkpoint.pt").stat().st_size <= tensors + names


@pytest.mark.parametrize("method", ["linear", "spt_shallow"])
def test_the_average_follows_each_step_and_is_what_accuracy_ema_scores(
    method: str, store: str, tmp_path: Path, tiny: Callable[..., TrainConfig]
) -> None:
    # One step an epoch, the first at rate 0: every checkpoint shows a step, the first one where it all began.
    config = tiny(method, ema_decay=0.75, optimizer="sgd", lr=2.0, batch_size=40, epochs=4)
    judged = pq.read_table(f"{store}/demo/digits/val.parquet").to_pydict()
    epochs, before = [], None
    for epoch in train(config, data_root=store, folder=str(tmp_path / "run")):
        state = checkpoint_after(epoch.epoch, tmp_path / "run")
        assert state["average"].keys() == state["learnable"].keys()
        for name, value in state["average"].items():
            last = before[name] if before is not None else value
            torch.testing.assert_close(value, last + 0.25 * (state["learnable"][name] - last))
        epochs.append((epoch, state["average"]))
        before = state["average"]
    for epoch, average in epochs:
        (tmp_path / "average").mkdir(exist_ok=True)
        shutil.copy(tmp_path / "run/card.json", tmp_path / "average/card.json")
        save_file(average, tmp_path / "average/prompt.safetensors")
        found = [best.class_name for (best,) in trainer.load(tmp_path / "average").classify(judged["image"], top=1)]
        right = sum(int(name) == label for name, label in zip(found, judged["label"], strict=True))
        assert epoch.metrics["val/accuracy_ema"] == right / 40
    assert epoch.metrics["val/accuracy_ema"] != epoch.metrics["val/accuracy"], "the average lags behind"


def result_of(config: TrainConfig, root: str, folder: Path) -> tuple[list[float], bytes]:
    """What a run came to: the loss of each epoch, and what was learnt."""
    losses = [epoch.metrics["train/loss"] for epoch in train(config, data_root=root, folder=str(folder))]
    return losses, (folder / "prompt.safetensors").read_bytes()


EFFECTS: dict[str, Any] = {
    "prompt_length": 4, "prompt_init": "mean_pool", "init_images": 7, "init_task": "demo/shapes_loc",
    "train_size": 0.1, "transform": "vpt", "normalize": "imagenet", "image_size": 24,
    "epochs": 3, "warmup_epochs": 1, "batch_size": 8, "optimizer": "sgd", "lr": 0.04, "weight_decay": 0.02,
    "head_weight_decay": 0.6, "drop_path": 0.2, "precision": "bf16", "seed": 43,
    "final_norm": "fresh", "draw": 1,
}  # fmt: skip
"""A value of each field that must change the result of two epochs of spt_shallow at the defaults."""
MEASURES = {"ema_decay": 0.9, "nmi": True, "eval_every": 2}
"""Fields that only decide which metrics there are."""
ELSEWHERE = {"task", "backbone", "method", "eval_split", "measure_peeking", "val_size", "train_on"}
OF_A_METHOD: dict[str, Any] = {"lora_rank": 4, "adapter_dim": 8, "adapter_form": "parallel", "gate_init": 1.0,
    "fourier_share": 1.0, "bpt_rank": 4, "key_value_length": 2}  # fmt: skip
"""A value of each field that few methods have, which must change the result of those."""


@pytest.mark.slow
def test_every_option_has_an_effect_or_only_measures(
    store: str, tmp_path: Path, tiny: Callable[..., TrainConfig]
) -> None:
    # A new field needs a value here.
    assert EFFECTS.keys() | MEASURES.keys() | OF_A_METHOD.keys() | ELSEWHERE == field_types().keys()
    two = {"epochs": 2, "warmup_epochs": 0}
    base = result_of(tiny("spt_shallow", **two), store, tmp_path / "base")
    assert base == result_of(tiny("spt_shallow", **two), store, tmp_path / "again")
    same = []
    for name, value in EFFECTS.items():
        losses, learnt = result_of(tiny("spt_shallow", **(two | {name: value})), store, tmp_path / name)
        if losses[:2] == base[0] or learnt == base[1]:
            same.append(name)
    # The decays are applied after a step, so they show in the weights, and in the second epoch's loss.
    assert same == [], "without effect"
    assert base == result_of(tiny("spt_shallow", **two, **MEASURES), store, tmp_path / "measured")


@pytest.mark.parametrize("name", OF_A_METHOD)
def test_a_field_of_few_methods_changes_the_result_of_each_of_them(
    name: str, store: str, tmp_path: Path, tiny: Callable[..., TrainConfig]
) -> None:
    methods = [method for method, row in METHODS.items() if name in row.fields]
    assert methods
    for method in methods:
        config = tiny(method, epochs=2, warmup_epochs=0)
        base = result_of(config, store, tmp_path / f"{method} base")
        changed = dataclasses.replace(config, **{name: OF_A_METHOD[name]})
        assert result_of(changed, store, tmp_path / method)[1] != base[1]


def test_options_that_have_no_effect_on_a_method_are_refused_or_change_nothing(
    store: str, tmp_path: Path, tiny: Callable[..., TrainConfig]
) -> None:
    values = EFFECTS | MEASURES | OF_A_METHOD | {"prompt_init": "random"}
    for method in METHODS:
        base = None
        for name in sorted(unused_fields(method)):
            problems: dict[str, str] = {}
            try:
                config = tiny(method, epochs=1, warmup_epochs=0, **{name: values[name]})
            except InvalidConfig as error:
                problems = error.problems
            if problems:
                assert problems.keys() == {name}
                continue
            base = base or result_of(tiny(method, epochs=1, warmup_epochs=0), store, tmp_path / method)
            assert result_of(config, store, tmp_path / f"{method} {name}") == base, (method, name)


def test_linear_heads_see_each_image_through_the_network_once_a_process_and_learn_as_if_they_saw_it_each_epoch(
    store: str, tmp_path: Path, tiny: Callable[..., TrainConfig]
) -> None:
    config = tiny("linear", optimizer="sgd", lr=1.0)
    network = load_backbone(config.backbone, image_size=32, normalize="backbone", weights=None, device="cpu")
    frozen_features.cache_clear()  # of tests before this one
    looked_at: list[int] = []
    hook = network.vit.patch_embed.register_forward_hook(lambda _, inputs, __: looked_at.append(len(inputs[0])))
    try:
        cached = list(train(config, data_root=store, folder=str(tmp_path / "cached")))
        assert sum(looked_at) == 40 + 40, "train and val"
        list(train(tiny("linear", lr=0.5, seed=7), data_root=store))
        assert sum(looked_at) == 40 + 40, "another trial shares them"
        next(train(tiny("linear", precision="bf16"), data_root=store))
        assert sum(looked_at) == 2 * (40 + 40), "but not in another precision"
        looked_at.clear()
        # So rare a drop that none happens: but now a layer varies, and every image must go through.
        through = list(train(tiny("linear", optimizer="sgd", lr=1.0, drop_path=1e-12), data_root=store,
                             folder=str(tmp_path / "through")))  # fmt: skip
        assert sum(looked_at) == 3 * (32 + 40)
    finally:
        hook.remove()
    for one, other in zip(cached, through, strict=True):
        assert one.metrics["train/loss"] == pytest.approx(other.metrics["train/loss"], abs=1e-5)
        assert one.metrics["val/accuracy"] == other.metrics["val/accuracy"]
    for name, weight in load_file(tmp_path / "through/prompt.safetensors").items():
        torch.testing.assert_close(load_file(tmp_path / "cached/prompt.safetensors")[name], weight, rtol=0, atol=1e-5)


def test_a_run_leaves_the_frozen_network_as_it_is_published(store: str, tiny: Callable[..., TrainConfig]) -> None:
    path = find_weights(BACKBONES[BUNDLED], None).path
    assert path is not None
    for method in METHODS:
        next(train(tiny(method, warmup_epochs=0, drop_path=0.5), data_root=store))
        network = load_backbone(BUNDLED, image_size=32, normalize="backbone", weights=None, device="cpu")
        assert not any(parameter.requires_grad for parameter in network.parameters())
        assert not any(isinstance(module, DropPath) for module in network.modules())
        assert all(network.vit.state_dict()[name].equal(value) for name, value in load_file(path).items()), method


def test_a_task_with_augmentation_is_learnt_from_crops_that_vary_and_judged_on_a_view_that_does_not(
    augmented: None, store: str, tiny: Callable[..., TrainConfig]
) -> None:
    # All images in one batch, at a rate at which nothing is learnt: only the view can change the loss.
    for method in ("linear", "spt_shallow"):
        epochs = list(train(tiny(method, batch_size=40, lr=1e-30), data_root=store))
        losses = [epoch.metrics["train/loss"] for epoch in epochs]
        assert min(abs(losses[0] - losses[1]), abs(losses[1] - losses[2]), abs(losses[0] - losses[2])) > 1e-3
        assert len({epoch.metrics["val/accuracy"] for epoch in epochs}) == 1


def test_a_task_without_augmentation_is_learnt_from_views_that_stay(
    store: str, tiny: Callable[..., TrainConfig]
) -> None:
    epochs = train(tiny("spt_shallow", batch_size=40, lr=1e-30), data_root=store)
    assert len({round(epoch.metrics["train/loss"], 5) for epoch in epochs}) == 1


def preempted(config: TrainConfig, root: str, folder: Path) -> list[EpochMetrics]:
    """The epochs of a run that is asked to stop at every fourth question, and is started again."""
    questions = itertools.count(1)
    while True:
        torch.manual_seed(next(questions))  # another process would have drawn other numbers
        run = train(config, data_root=root, folder=str(folder), stop=lambda: next(questions) % 4 == 0)
        try:
            return list(run)
        except TrainingInterrupted as error:
            told = str(error)
        assert re.search(r"asked to stop in epoch \d, after \d+ of \d+ steps", told)


def test_a_run_interrupted_within_its_epochs_ends_with_the_same_bits(whole: Whole, store: str, tmp_path: Path) -> None:
    config, epochs, folder = whole
    assert without_clocks(preempted(config, store, tmp_path)) == without_clocks(epochs)
    assert results_in(tmp_path) == results_in(folder)


def test_a_run_with_crops_interrupted_within_its_epochs_ends_with_the_same_bits(
    augmented: None, tiny: Callable[..., TrainConfig], store: str, tmp_path: Path
) -> None:
    config = tiny("vpt_deep", epochs=2)
    epochs = list(train(config, data_root=store, folder=str(tmp_path / "whole")))
    assert without_clocks(preempted(config, store, tmp_path / "parts")) == without_clocks(epochs)
    assert results_in(tmp_path / "parts") == results_in(tmp_path / "whole")


def test_an_interruption_without_a_folder_leaves_nothing(tiny: Callable[..., TrainConfig], store: str) -> None:
    with pytest.raises(TrainingInterrupted):
        next(train(tiny("linear"), data_root=store, stop=lambda: True))


@pytest.mark.parametrize("method", ["spt_deep", "linear"])
def test_an_interrupted_run_on_a_task_with_augmentation_ends_with_the_same_bits(
    augmented: None, method: str, store: str, tmp_path: Path, tiny: Callable[..., TrainConfig]
) -> None:
    config = tiny(method)
    epochs = list(train(config, data_root=store, folder=str(tmp_path / "whole")))
    load_split.cache_clear()
    assert without_clocks(interrupted(config, store, tmp_path / "parts")) == without_clocks(epochs)
    assert results_in(tmp_path / "parts") == results_in(tmp_path / "whole")


def test_prototypes_of_a_task_with_augmentation_are_of_crops_and_the_same_each_time(
    augmented: None, store: str, tmp_path: Path, tiny: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    def prototypes(folder: str, **changes: Any) -> Tensor:
        next(train(tiny(prompt_init="mean_pool", **changes), data_root=store, folder=str(tmp_path / folder)))
        return load_file(tmp_path / folder / "prototypes.safetensors")["prompt"]

    of_crops = prototypes("one")
    assert prototypes("two").equal(of_crops)
    assert not prototypes("other seed", seed=43).equal(of_crops)
    monkeypatch.setitem(TASKS, "demo/digits", dataclasses.replace(TASKS["demo/digits"], augmented=False))
    load_split.cache_clear()
    assert not prototypes("fixed").equal(of_crops)


def test_each_crop_is_of_the_image_of_its_label_whatever_the_shapes(
    augmented: None, tmp_path: Path, tiny: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    # An image of class k has the colour 25 k. All shapes differ, so a box of another image would not fit.
    splits = {}
    for split, count in (("train", 60), ("val", 20), ("test", 10)):
        examples = []
        for i in range(count):
            buffer = io.BytesIO()
            Image.new("L", (3 + i * 7 % 61, 3 + i * 11 % 67), 25 * (i % 10)).save(buffer, "PNG")
            examples.append(Example(key=f"{split}{i}", label=i % 10, image=buffer.getvalue()))
        splits[split] = examples
    write_task(str(tmp_path), "demo/digits", splits, source="here", class_names=[*"0123456789"], protocol="published")

    def checked_backward(
        network: object, weights: object, images_BCSS: Tensor, labels_B: Tensor, *options: object
    ) -> Any:
        expected_BCSS = (25 * labels_B)[:, None, None, None].expand(-1, 3, 32, 32)
        assert torch.equal(images_BCSS.long(), expected_BCSS)
        return backward(network, weights, images_BCSS, labels_B, *options)  # type: ignore[arg-type]

    monkeypatch.setattr(step, "backward", checked_backward)
    for transform in ("spt", "vpt"):
        config = tiny(train_size=1.0, epochs=2, transform=transform, prompt_init="mean_pool")
        assert len(list(train(config, data_root=str(tmp_path), cache=str(tmp_path)))) == 2


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


def test_a_final_run_is_scored_on_test_at_its_last_epoch_only(
    store: str, tmp_path: Path, tiny: Callable[..., TrainConfig]
) -> None:
    config = tiny("linear", eval_split="test", ema_decay=0.9)
    epochs = list(train(config, data_root=store, folder=str(tmp_path)))
    scored = [{name for name in epoch.metrics if name.startswith(("val/", "test/"))} for epoch in epochs]
    assert scored[:2] == [set(), set()]
    assert scored[2] == {
        f"test/{name}" for name in ("accuracy", "accuracy_top5", "accuracy_mean_class", "accuracy_ema")
    }
    shown = pq.read_table(tmp_path / "predictions.parquet").to_pydict()
    judged = pq.read_table(f"{store}/demo/digits/test.parquet").to_pydict()
    assert (shown["key"], shown["label"]) == (judged["key"], judged["label"])
    assert sum(shown["correct"]) / 30 == epochs[-1].metrics["test/accuracy"]


@pytest.mark.parametrize(
    ("method", "changes", "eval_every", "scored"),
    [
        ("linear", {}, 2, [2, 3]),
        ("linear", {}, 3, [3]),
        ("linear", {}, 7, [3]),
        # Dropout draws random numbers, and the average is scored, too.
        ("vpt_shallow", {"ema_decay": 0.9}, 2, [2, 3]),
    ],
)
def test_a_run_that_is_scored_less_often_has_gaps_and_the_same_bits(
    method: str,
    changes: dict[str, Any],
    eval_every: int,
    scored: list[int],
    store: str,
    tmp_path: Path,
    tiny: Callable[..., TrainConfig],
) -> None:
    often = tiny(method, **changes)
    seldom = dataclasses.replace(often, eval_every=eval_every)
    runs = {
        name: list(train(config, data_root=store, folder=str(tmp_path / name)))
        for name, config in (("often", often), ("seldom", seldom))
    }
    assert results_in(tmp_path / "seldom") == results_in(tmp_path / "often"), "learnt tensors and predictions"
    for full, sparse in zip(without_clocks(runs["often"]), without_clocks(runs["seldom"]), strict=True):
        epoch, metrics = full
        assert any(name.startswith("val/") for name in metrics)
        kept = {name: value for name, value in metrics.items() if epoch in scored or not name.startswith("val/")}
        assert sparse == (epoch, kept)
    assert without_clocks(interrupted(seldom, store, tmp_path / "parts")) == without_clocks(runs["seldom"])


def damaged_test_splits() -> dict[str, Callable[[Path], object]]:
    """What may be wrong with a file of test images, by what does it to a file."""

    def spoil_an_image(file: Path) -> None:
        table = pq.read_table(file)
        images = table["image"].to_pylist()
        images[7] = b"not an image"
        pq.write_table(table.set_column(table.column_names.index("image"), "image", [images]), file)

    return {
        "missing": lambda file: file.unlink(),
        "empty": lambda file: file.write_bytes(b""),
        "no Parquet": lambda file: file.write_bytes(b"not to be opened"),
        "cut off": lambda file: file.write_bytes(file.read_bytes()[:-500]),
        "damaged pages": lambda file: file.write_bytes(file.read_bytes()[:8] + bytes(200) + file.read_bytes()[208:]),
        "a damaged image": spoil_an_image,
    }


@pytest.mark.parametrize("damage", damaged_test_splits())
def test_a_final_run_whose_test_images_cannot_be_read_ends_before_its_first_step(
    damage: str, store: str, tmp_path: Path, tiny: Callable[..., TrainConfig]
) -> None:
    root, run = tmp_path / "data", tmp_path / "run"
    shutil.copytree(store, root)
    damaged_test_splits()[damage](root / "demo/digits/test.parquet")
    steps = itertools.count()
    final = train(
        tiny(eval_split="test"),
        data_root=str(root),
        folder=str(run),
        prototype_cache=str(tmp_path / "prototypes"),
        cache=str(tmp_path / "cache"),
        stop=lambda: next(steps) < 0,
    )
    with pytest.raises((ValueError, OSError)) as caught:
        next(final)
    assert "demo/digits" in str(caught.value) and "test.parquet" in str(caught.value)
    assert str(caught.value).endswith(("Import the task again.", "import the task again."))
    assert isinstance(caught.value, ValueError) == (damage in ("empty", "no Parquet", "cut off")), "as it was before"
    assert next(steps) == 0, "no step was asked for"
    assert not run.exists() and not (tmp_path / "prototypes").exists(), "no checkpoint, and no prototypes either"


def test_decoded_images_go_to_the_given_cache_and_nowhere_else(
    store: str, tmp_path: Path, tiny: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The same digits as a task of another name.
    other = tmp_path / "data/own/digits"
    shutil.copytree(store, tmp_path / "data")
    shutil.copytree(f"{store}/demo/digits", other)
    card = json.loads((other / "card.json").read_text())
    del card["checksum"]
    (other / "card.json").write_text(json.dumps(card).replace("demo/digits", "own/digits"))

    monkeypatch.setenv("SPTUNE_CACHE", str(tmp_path / "default"))
    changes: dict[str, Any] = {"init_task": "own/digits", "init_images": 7, "prompt_init": "random"}
    config = tiny(**changes, transform="vpt", eval_split="test", epochs=1, warmup_epochs=0)
    list(train(config, data_root=str(tmp_path / "data"), cache=str(tmp_path / "given")))
    assert not (tmp_path / "default").exists()
    arrays = [file for file in (tmp_path / "given").iterdir() if file.suffix == ".u8"]
    assert len(arrays) == 2, "train with val, which the other task shares, and test"


@pytest.mark.parametrize(
    ("method", "prompt_init"),
    [("spt_deep", "random"), ("vpt_shallow", "uniform"), ("vfpt", "uniform"), ("bpt_shallow", "uniform")],
)
def test_mutual_information_is_measured_before_the_first_step_too(
    method: str, prompt_init: str, store: str, tmp_path: Path, tiny: Callable[..., TrainConfig]
) -> None:
    measured: dict[str, Any] = {"nmi": True, "prompt_init": prompt_init, "epochs": 1, "warmup_epochs": 0}
    # Nothing moves at this rate, so the first epoch ends where it began.
    still = next(train(tiny(method, **measured, lr=1e-30, optimizer="sgd"), data_root=store)).metrics
    layers = {name.removeprefix("nmi/") for name in still if name.startswith("nmi/")}
    assert len(layers) == {"all": 5, "first": 1}[METHODS[method].prompted_layers]
    assert all(still[f"initial/nmi/{layer}"] == still[f"nmi/{layer}"] for layer in layers)

    # And at one at which much moves, it is still the value of the beginning, at whatever step the run is interrupted.
    config = tiny(method, **measured, lr=0.5)
    whole = list(train(config, data_root=store))
    for layer in layers:
        assert whole[0].metrics[f"initial/nmi/{layer}"] == still[f"nmi/{layer}"] != whole[0].metrics[f"nmi/{layer}"]
    for checks in (2, 3):
        asked = itertools.count(1)
        folder = str(tmp_path / f"parts {checks}")
        with pytest.raises(TrainingInterrupted, match=f"in epoch 1, after {checks - 1} of 2 steps"):
            next(train(config, data_root=store, folder=folder, stop=lambda: next(asked) == checks))  # noqa: B023
        assert without_clocks(list(train(config, data_root=store, folder=folder))) == without_clocks(whole)


@pytest.mark.parametrize("method", METHODS)
def test_a_fresh_norm_changes_the_features_and_neither_the_prototypes_nor_what_is_learnt(
    method: str, store: str, tmp_path: Path, tiny: Callable[..., TrainConfig]
) -> None:
    cache = tmp_path / "prototypes"
    runs = {}
    for name in ("pretrained", "fresh"):
        config = tiny(method, final_norm=name, epochs=1, warmup_epochs=0)
        folder = tmp_path / name
        runs[name] = list(train(config, data_root=store, folder=str(folder), prototype_cache=str(cache)))
    pretrained, fresh = runs["pretrained"][0].metrics, runs["fresh"][0].metrics
    assert fresh["train/loss"] != pretrained["train/loss"]
    assert fresh["learnable/parameters"] == pretrained["learnable/parameters"]
    assert len([*cache.iterdir()] if cache.exists() else []) == METHODS[method].has_prototypes, "one set"

    learnt = load_file(tmp_path / "fresh/prompt.safetensors")
    assert learnt.keys() == load_file(tmp_path / "pretrained/prompt.safetensors").keys()
    if method == "full":
        # It started at 1 and learnt from there: in two steps it stays closer to 1 than the pretrained one.
        norm = learnt["backbone.vit.norm.weight"]
        assert not norm.equal(torch.ones(96)) and float((norm - 1).abs().max()) < 0.5
    assert not load_backbone(BUNDLED).vit.state_dict()["norm.weight"].equal(torch.ones(96)), (
        "the shared network keeps its norm"
    )


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
    images = torch.cat([load_split(data_root, "demo/digits", part, 0.05, 32).all_images() for part in parts])
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


def test_a_checkpoint_without_schema_version_resumes_to_the_same_bits(
    store: str, tmp_path: Path, tiny: Callable[..., TrainConfig]
) -> None:
    # Dropout, a moving average and AdamW: something under each key.
    config, folder = tiny("vpt_deep", ema_decay=0.9), tmp_path / "whole"
    epochs = list(train(config, data_root=store, folder=str(folder)))
    # After an epoch, and within one: both states of a checkpoint.
    between, within = tmp_path / "between", tmp_path / "within"
    run = train(config, data_root=store, folder=str(between))
    next(run)
    del run  # a generator without an owner is closed
    checks = itertools.count(1)
    with pytest.raises(TrainingInterrupted, match=r"after [1-9] of"):
        list(train(config, data_root=store, folder=str(within), stop=lambda: next(checks) == 5))
    for unversioned in (between, within):
        state = load_state(unversioned / "checkpoint.pt")
        assert state is not None and state.keys() == {
            "schema_version",
            "images",
            "device",
            "engine",
            *KEYS_OF_VERSION_1,
        }
        assert (state["under_way"] is not None) == (unversioned == within)
        assert state["under_way"] is None or state["under_way"].keys() == KEYS_WITHIN_AN_EPOCH
        # 0.1.0 wrote neither its version, nor the images that a run learns from, nor device and engine.
        del state["schema_version"], state["images"], state["device"], state["engine"]
        save_state(unversioned / "checkpoint.pt", state)
        assert without_clocks(list(train(config, data_root=store, folder=str(unversioned)))) == without_clocks(epochs)
        assert results_in(unversioned) == results_in(folder)
        assert card_without_clocks(unversioned) == card_without_clocks(folder)


def test_a_checkpoint_of_another_import_of_the_images_is_refused(
    data_root: str, tmp_path: Path, tiny: Callable[..., TrainConfig]
) -> None:
    next(train(tiny("linear"), data_root=data_root, folder=str(tmp_path)))
    state = checkpoint_after(1, tmp_path)
    assert state["images"].startswith(open_task(data_root, "demo/digits").fingerprint)
    save_state(tmp_path / "checkpoint.pt", {**state, "images": f"{'0' * 16}/train"})
    with pytest.raises(ValueError, match="holds a checkpoint of another import of the task's images"):
        next(train(tiny("linear"), data_root=data_root, folder=str(tmp_path)))


def test_a_checkpoint_of_a_newer_schema_is_refused(
    data_root: str, tmp_path: Path, tiny: Callable[..., TrainConfig]
) -> None:
    next(train(tiny("linear"), data_root=data_root, folder=str(tmp_path)))
    state = checkpoint_after(1, tmp_path)
    # Other keys may have changed too, so none is read before the version.
    save_state(tmp_path / "checkpoint.pt", {"schema_version": state["schema_version"] + 1})
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(ValueError, match="schema_version") as caught:
        list(train(tiny("linear"), data_root=data_root, folder=str(tmp_path)))
    assert str(caught.value) == (
        f"{tmp_path} holds a checkpoint of schema_version 2, and this version of sptune reads up to 1; "
        "upgrade sptune, choose another folder or remove it."
    )
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before, "refused means untouched"


def test_a_folder_of_another_networks_weights_is_refused(
    store: str, tmp_path: Path, tiny: Callable[..., TrainConfig]
) -> None:
    bundled = find_weights(BACKBONES[BUNDLED], None).path
    assert bundled is not None
    weights = load_file(bundled)
    save_file(weights | {"norm.bias": weights["norm.bias"] + 0.1}, tmp_path / f"{BUNDLED}.safetensors")
    config, folder = tiny("linear"), tmp_path / "run"
    first = next(train(config, data_root=store, folder=str(folder), weights=str(tmp_path)))
    assert first.metrics["train/loss"] != next(train(config, data_root=store)).metrics["train/loss"]
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(ValueError, match="another backbone") as caught:
        list(train(config, data_root=store, folder=str(folder)))
    assert str(caught.value) == (
        f"{folder} holds a checkpoint of another backbone's weights; choose another folder or remove it."
    )
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before, "refused means untouched"
    assert [e.epoch for e in train(config, data_root=store, folder=str(folder), weights=str(tmp_path))] == [1, 2, 3]


@pytest.mark.parametrize("name", ["predictions.parquet", "prompt.safetensors", "card.json"])
def test_an_end_that_cannot_be_written_is_no_end(
    name: str, store: str, tmp_path: Path, tiny: Callable[..., TrainConfig]
) -> None:
    whole = without_clocks(list(train(tiny("linear"), data_root=store, folder=str(tmp_path / "whole"))))
    (tmp_path / "run" / name / "in the way").mkdir(parents=True)
    run = train(tiny("linear"), data_root=store, folder=str(tmp_path / "run"))
    assert without_clocks([next(run), next(run)]) == whole[:2]
    with pytest.raises(OSError, match=name):
        next(run)
    state = load_state(tmp_path / "run/checkpoint.pt")
    assert state is not None and len(state["epochs"]) == 2, "bytes first, then the word that they exist"
    shutil.rmtree(tmp_path / "run" / name)
    assert without_clocks(list(train(tiny("linear"), data_root=store, folder=str(tmp_path / "run")))) == whole
    assert results_in(tmp_path / "run") == results_in(tmp_path / "whole")


def test_prompt_and_head_start_from_streams_of_their_own(data_root: str, tiny: Callable[..., TrainConfig]) -> None:
    purposes, epochs = ("head", "order"), (0, 1)
    seeds = [tiny(seed=s).stream_seed(purpose, epoch) for s in (0, 1) for purpose in purposes for epoch in epochs]
    assert len(set(seeds)) == len(seeds)
    assert max(seeds) < 2**63, "torch takes no larger one"
    correlations = []
    for seed in range(3):
        config = tiny("vpt_deep", prompt_length=3, seed=seed)
        images = load_split(data_root, "demo/digits", "train", 0.05, 32)
        first = initial_prompt(
            config, load_backbone(config.backbone), images, data_root=data_root, prototype_cache=None
        )
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


@pytest.mark.parametrize(("method", "changes"), [("spt_deep", {}), ("linear", {}), ("vpt_deep", {"ema_decay": 0.9})])
def test_peeking_tells_what_it_would_have_gained_and_changes_no_bit_of_the_run(
    method: str, changes: dict[str, Any], store: str, tmp_path: Path, tiny: Callable[..., TrainConfig]
) -> None:
    honest = tiny(method, eval_split="test", epochs=4, lr=3.0, **changes)  # so high that accuracy goes up and down
    peeking = dataclasses.replace(honest, measure_peeking=True)
    assert honest.fingerprint() != peeking.fingerprint(), "a trial that tells more is another trial"
    runs = {
        name: list(train(config, data_root=store, folder=str(tmp_path / name)))
        for name, config in (("honest", honest), ("peeking", peeking))
    }
    assert results_in(tmp_path / "honest") == results_in(tmp_path / "peeking"), "learnt tensors and predictions"
    for plain, peeked in zip(runs["honest"], runs["peeking"], strict=True):
        own = {name for name in peeked.metrics if name.startswith("peeking/")}
        assert own == {"peeking/accuracy", "peeking/gain"}, "after every epoch"
        rest = dataclasses.replace(peeked, metrics={k: v for k, v in peeked.metrics.items() if k not in own})
        assert without_clocks([rest]) == without_clocks([plain]), "test/accuracy too, and only at the last epoch"
    scored = [epoch.metrics["peeking/accuracy"] for epoch in runs["peeking"]]
    assert scored[-1] == runs["peeking"][-1].metrics["test/accuracy"], "the weights, not their average"
    gains = [epoch.metrics["peeking/gain"] for epoch in runs["peeking"]]
    assert gains == [max(scored[: place + 1]) - scored[place] for place in range(4)]
    assert min(gains) == gains[0] == 0 < max(gains)


def test_an_interrupted_run_has_peeked_as_much_as_an_uninterrupted_one(
    store: str, tmp_path: Path, tiny: Callable[..., TrainConfig]
) -> None:
    config = tiny("linear", eval_split="test", epochs=4, lr=0.2, measure_peeking=True)
    whole = list(train(config, data_root=store, folder=str(tmp_path / "whole")))
    assert without_clocks(interrupted(config, store, tmp_path / "parts")) == without_clocks(whole)


def test_peeking_is_refused_for_runs_that_are_not_scored_on_test(tiny: Callable[..., TrainConfig]) -> None:
    with pytest.raises(InvalidConfig) as caught:
        tiny(measure_peeking=True)
    assert str(caught.value) == (
        "measure_peeking: is for runs that are scored on test: leave it out, or set eval_split: test."
    )
