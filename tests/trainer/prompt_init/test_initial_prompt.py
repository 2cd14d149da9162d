"""The prototype cache: when two sets are the same, which images they are made of, and that each is built once.

Shapes: M images, B batch, L prompted layers, N patch tokens, P prompt_length, D width.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.damage import DAMAGES, damage
from trainer.config import TrainConfig
from trainer.data.split import Split, load_split
from trainer.data.subsets import nested_subset
from trainer.data.transforms import View
from trainer.model.backbone import Backbone, load_backbone, vit_nano_patch4_32
from trainer.prompt_init import initial_prompt as initial
from trainer.prompt_init.initial_prompt import InitialPrompt, initial_prompt
from trainer.prompt_init.strategies import build_prototypes
from trainer.prompt_init.token_stream import ALL_TOKENS_SHARE, TokenStream, token_stream, with_all_tokens

Configs = Callable[..., TrainConfig]


@pytest.fixture
def digits(data_root: str) -> Split:
    """Return the 40 digits that the small configs learn from."""
    return load_split(data_root, "demo/digits", "train", 0.05, 32)


@pytest.fixture
def build(backbone: Backbone, digits: Split, data_root: str, tmp_path: Path) -> Callable[..., InitialPrompt]:
    """Return the initial prompt of a config: bundled network, 40 digits, cache in `tmp_path/prototypes`."""

    def build(config: TrainConfig, network: Backbone = backbone, images: Split = digits) -> InitialPrompt:
        return initial_prompt(
            config, network, images, data_root=data_root, prototype_cache=str(tmp_path / "prototypes")
        )

    return build


def files_of(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "prototypes").rglob("*"))


def mean_tokens(backbone: Backbone, images_MCHW: Tensor) -> Tensor:
    """Return the mean patch token of the images at each layer ``[L, D]``, which is k-means with one centre."""
    return torch.stack([tokens_MND.flatten(0, 1).mean(dim=0) for tokens_MND in backbone.patch_tokens(images_MCHW)])


MARK, SECONDS = 7.0, 123.456
"""Values that the tests write into a built set, to recognise it."""


def mark(file: Path) -> None:
    """Replace the values and the duration of a built set. Its other metadata stays, except the checksum."""
    with safe_open(file, "pt") as opened:
        notes = opened.metadata()
    # Like a file of an earlier version.
    del notes["checksum"]
    marked = torch.full_like(load_file(file)["prompt"], MARK)
    save_file({"prompt": marked}, file, metadata=notes | {"seconds": repr(SECONDS)})


@pytest.mark.parametrize("prompt_init", ["random", "mean_pool", "max_pool", "kmeans"])
def test_a_set_is_built_once_and_then_read(
    prompt_init: str, tiny: Configs, build: Callable[..., InitialPrompt], tmp_path: Path
) -> None:
    config = tiny(prompt_init=prompt_init)
    built = build(config)
    (file,) = files_of(tmp_path)
    content = file.read_bytes()
    read = build(config)
    assert torch.equal(read.prompt_LPD, built.prompt_LPD) and read.prompt_LPD.shape == (5, 3, 96)
    # The seconds are those of the build, to the last bit, also when they are read.
    assert read.seconds == built.seconds > 0
    assert (files_of(tmp_path), file.read_bytes()) == ([file], content)
    # Another call returns the content of the file: nothing is computed.
    mark(file)
    marked = build(config)
    assert marked.prompt_LPD.eq(MARK).all() and marked.seconds == SECONDS


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_set_is_set_aside_and_built_again(
    kind: str, tiny: Configs, build: Callable[..., InitialPrompt], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    built = build(tiny())
    (file,) = files_of(tmp_path)
    damaged = damage(file.read_bytes(), kind, random.Random(0))
    file.write_bytes(damaged)
    assert torch.equal(build(tiny()).prompt_LPD, built.prompt_LPD)
    assert caplog.messages[0].startswith(f"{file} is damaged: ")
    assert file.with_name(f"{file.name}.damaged").read_bytes() == damaged
    assert torch.equal(load_file(file)["prompt"], built.prompt_LPD), "the next run reads it"


@pytest.mark.parametrize("prompt_init", ["random", "mean_pool", "max_pool", "kmeans"])
def test_without_a_cache_the_values_are_the_same(
    prompt_init: str,
    tiny: Configs,
    build: Callable[..., InitialPrompt],
    backbone: Backbone,
    digits: Split,
    data_root: str,
    tmp_path: Path,
) -> None:
    config = tiny(prompt_init=prompt_init)
    alone = initial_prompt(config, backbone, digits, data_root=data_root, prototype_cache=None)
    assert files_of(tmp_path) == [] and alone.seconds > 0
    assert torch.equal(alone.prompt_LPD, build(config).prompt_LPD)


def test_configs_that_differ_only_in_training_share_a_set(
    tiny: Configs, build: Callable[..., InitialPrompt], tmp_path: Path
) -> None:
    plain = tiny()
    first = build(plain)
    mark(files_of(tmp_path)[0])
    for changes in (
        {"lr": 0.001, "weight_decay": 0.0, "head_weight_decay": 0.0, "optimizer": "sgd"},
        {"epochs": 9, "warmup_epochs": 0, "batch_size": 4, "ema_decay": 0.9, "nmi": True},
        {"drop_path": 0.1, "precision": "bf16", "image_size": 32, "final_norm": "fresh"},
    ):
        assert bool(build(dataclasses.replace(plain, **changes)).prompt_LPD.eq(MARK).all()), changes
    assert len(files_of(tmp_path)) == 1 and not bool(first.prompt_LPD.eq(MARK).any())


@pytest.fixture
def on_gpu(
    tiny: Configs, backbone: Backbone, digits: Split, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str, int], Split]:
    """Return the digits as on a GPU of some kind and with room for all tokens of some layers. A CPU computes."""
    with FakeTensorMode():
        labels_N = torch.empty(len(digits), dtype=torch.int64, device="cuda:0")
    stream = token_stream(tiny(), backbone, digits, 5, 10)
    monkeypatch.setattr(initial, "token_stream", lambda *_: stream)

    def on_gpu(kind: str, layers_at_once: int) -> Split:
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: kind)
        monkeypatch.setattr(
            initial, "with_all_tokens", lambda stream: dataclasses.replace(stream, layers_at_once=layers_at_once)
        )
        return dataclasses.replace(digits, labels_N=labels_N)

    return on_gpu


def test_each_kind_of_gpu_has_sets_of_its_own_and_no_cpu_reads_them(
    tiny: Configs, digits: Split, build: Callable[..., InitialPrompt], on_gpu: Callable[..., Split], tmp_path: Path
) -> None:
    counts = []
    for prompt_init in ("kmeans", "random"):
        for kind in ("", "NVIDIA H200", "NVIDIA A100", "NVIDIA H200"):
            build(tiny(prompt_init=prompt_init), images=on_gpu(kind, 0) if kind else digits)
            counts.append(len(files_of(tmp_path)))
    assert counts == [1, 2, 3, 3, 4, 5, 6, 6]


def test_the_tokens_that_kmeans_clusters_on_a_gpu_are_part_of_the_key(
    tiny: Configs,
    build: Callable[..., InitialPrompt],
    on_gpu: Callable[..., Split],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    freed: list[int] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: freed.append(len(files_of(tmp_path))))
    for count, (prompt_init, layers_at_once) in enumerate(
        [("kmeans", 0), ("kmeans", 2), ("kmeans", 5), ("random", 0)], start=1
    ):
        build(tiny(prompt_init=prompt_init), images=on_gpu("NVIDIA H200", layers_at_once))
        assert len(files_of(tmp_path)) == count
    # The other strategies do not depend on it.
    build(tiny(prompt_init="random"), images=on_gpu("NVIDIA H200", 5))
    build(tiny(), images=on_gpu("NVIDIA H200", 2))
    assert len(files_of(tmp_path)) == 4
    # The memory of all tokens is free for other processes as soon as a set is built.
    assert freed == [1, 2]


def test_kmeans_clusters_a_sample_if_the_memory_for_all_tokens_is_taken(
    tiny: Configs,
    build: Callable[..., InitialPrompt],
    on_gpu: Callable[..., Split],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    sample = build(tiny(), images=on_gpu("NVIDIA H200", 0))
    (file,) = files_of(tmp_path)

    def without_room(stream: TokenStream, **options: Any) -> Tensor:
        assert stream.layers_at_once == 5, "the sample is in the cache"
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 40.35 GiB.")

    monkeypatch.setattr(initial, "build_prototypes", without_room)
    assert torch.equal(build(tiny(), images=on_gpu("NVIDIA H200", 5)).prompt_LPD, sample.prompt_LPD)
    assert caplog.messages == [
        "out of memory in k-means over all 640 tokens of each of 5 layers: it clusters a sample of 640 tokens a "
        "layer instead, so prototypes differ from those of the same GPU with more free memory"
    ]

    # Its set is not taken for one of all tokens, which the next run with enough memory builds.
    assert files_of(tmp_path) == [file]
    monkeypatch.setattr(initial, "build_prototypes", build_prototypes)
    build(tiny(), images=on_gpu("NVIDIA H200", 5))
    assert len(files_of(tmp_path)) == 2

    # Any other error is an error.
    monkeypatch.setattr(initial, "build_prototypes", without_luck)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        build(tiny(seed=1), images=on_gpu("NVIDIA H200", 5))


def without_luck(stream: TokenStream, **options: Any) -> Tensor:
    if stream.layers_at_once:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    return torch.zeros(5, 3, 96)


@pytest.mark.parametrize(("device", "at_once"), [("cuda:0", 5), ("cuda:1", 2), ("cuda:2", 0), ("cpu", 0)])
def test_a_gpu_clusters_what_fits_in_a_part_of_its_total_memory(
    device: str, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer_bytes = 40 * 64 * 96 * 4
    # One byte less than a further layer takes; the third GPU lacks room for a layer.
    room = {"cuda:0": 6 * layer_bytes - 1, "cuda:1": 3 * layer_bytes - 1, "cuda:2": layer_bytes - 1}
    monkeypatch.setattr(
        torch.cuda,
        "get_device_properties",
        lambda device: SimpleNamespace(total_memory=int(room[str(device)] / ALL_TOKENS_SHARE)),
    )
    network = Backbone(vit_nano_patch4_32(), readout="mean", sha256="")
    with FakeTensorMode():
        network.mean_C11 = torch.empty(3, 1, 1, device=device)
    stream = TokenStream(backbone=network, num_images=40, images_of=lambda rows_B: rows_B, num_layers=5)
    assert with_all_tokens(stream).layers_at_once == at_once


def test_sets_of_a_cpu_have_the_key_of_the_first_version(
    tiny: Configs, build: Callable[..., InitialPrompt], backbone: Backbone, digits: Split, tmp_path: Path
) -> None:
    build(tiny())
    content = {
        "backbone": backbone.sha256,
        "normalize": "backbone",
        "images": digits.fingerprint,
        "init_images": 1.0,
        "layers": 5,
        "prompt_init": "kmeans",
        "prompt_length": 3,
        "seed": 42,
    }
    key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
    assert [file.stem for file in files_of(tmp_path)] == [key]


def test_any_change_of_the_content_builds_another_set(
    tiny: Configs, build: Callable[..., InitialPrompt], backbone: Backbone, data_root: str, tmp_path: Path
) -> None:
    plain = tiny()
    build(plain)
    other_network = Backbone(backbone.vit, readout=backbone.readout, sha256="0" * 64)
    imagenet = load_backbone.__wrapped__("vit_nano_patch4_32.mae", normalize="imagenet")
    half = load_split(data_root, "demo/digits", "train", 0.025, 32)
    squashed = load_split(data_root, "demo/digits", "train", 0.05, 32, "cpu", "vpt")
    val = load_split(data_root, "demo/digits", "val", 0.05, 32)
    other_task = load_split(data_root, "demo/shapes_ori", "train", 0.05, 32)
    others: dict[str, Callable[[], InitialPrompt]] = {
        "seed": lambda: build(tiny(seed=43)),
        "length": lambda: build(tiny(prompt_length=4)),
        "strategy": lambda: build(tiny(prompt_init="random")),
        "share of images": lambda: build(tiny(init_images=0.5)),
        "number of images": lambda: build(tiny(init_images=40)),
        "one image, which is not the share 1.0": lambda: build(tiny(init_images=1)),
        "another task's images": lambda: build(tiny(init_task="demo/shapes_loc", init_images=20)),
        "depth": lambda: build(tiny("spt_shallow", prompt_init="kmeans")),
        "the network's weights": lambda: build(plain, other_network),
        "normalisation": lambda: build(tiny(normalize="imagenet"), imagenet),
        "fewer images": lambda: build(plain, images=half),
        "images squashed": lambda: build(plain, images=squashed),
        "images of another split": lambda: build(plain, images=val),
        "images of a task": lambda: build(plain, images=other_task),
    }
    for number, (what, make) in enumerate(others.items(), start=2):
        make()
        assert len(files_of(tmp_path)) == number, what


def test_methods_that_have_no_prototypes_do_not_touch_the_cache(
    tiny: Configs, build: Callable[..., InitialPrompt], tmp_path: Path
) -> None:
    for method, shape in (
        ("vpt_deep", (5, 3, 96)),
        ("vpt_shallow", (1, 3, 96)),
        ("linear", (0, 0, 96)),
        ("full", (0, 0, 96)),
    ):
        first = build(tiny(method))
        assert (first.prompt_LPD.shape, first.seconds) == (shape, 0.0)
    assert not (tmp_path / "prototypes").exists()


@pytest.mark.parametrize(("method", "num_layers"), [("spt_deep", 5), ("spt_shallow", 1)])
def test_prototypes_are_made_for_the_layers_that_have_prompts(
    method: str, num_layers: int, tiny: Configs, build: Callable[..., InitialPrompt], backbone: Backbone, digits: Split
) -> None:
    first = build(tiny(method, prompt_length=1))
    expected_LD = mean_tokens(backbone, digits.all_images())[:num_layers]
    torch.testing.assert_close(first.prompt_LPD[:, 0], expected_LD, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("init_images", [1.0, 0.5, 0.01, 1, 7, 10, 39, 40, 10_000], ids=repr)
def test_prototypes_are_made_of_the_requested_nested_subset(
    init_images: float | int, tiny: Configs, build: Callable[..., InitialPrompt], backbone: Backbone, digits: Split
) -> None:
    most = min(init_images, 40) if isinstance(init_images, int) else init_images
    rows = torch.from_numpy(nested_subset(digits.labels_N.numpy(), most))
    config = tiny(prompt_length=1, init_images=init_images)
    stream = token_stream(config, backbone, digits, 5, init_images)
    assert torch.equal(stream.images_of(torch.arange(stream.num_images)), digits.all_images()[rows])
    expected_LD = mean_tokens(backbone, digits.all_images()[rows])
    torch.testing.assert_close(build(config).prompt_LPD[:, 0], expected_LD, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("eval_split", "split"), [("val", "train"), ("test", "trainval")])
@pytest.mark.parametrize("init_images", [1.0, 20])
def test_an_init_task_provides_all_its_training_images_at_any_train_size(
    init_images: float | int,
    eval_split: str,
    split: str,
    tiny: Configs,
    build: Callable[..., InitialPrompt],
    backbone: Backbone,
    digits: Split,
    data_root: str,
    tmp_path: Path,
) -> None:
    own_config = tiny(prompt_init="random", init_images=init_images, eval_split=eval_split)
    config = dataclasses.replace(own_config, init_task="demo/shapes_loc")
    other = load_split(data_root, "demo/shapes_loc", split, 1.0, 32)
    lent = initial_prompt(config, backbone, digits, data_root=data_root, prototype_cache=None)
    own = initial_prompt(own_config, backbone, other, data_root=data_root, prototype_cache=None)
    assert torch.equal(lent.prompt_LPD, own.prompt_LPD)
    # The same images for the same purpose: one set, whichever task asks for it.
    build(config)
    build(own_config, images=other)
    assert len(files_of(tmp_path)) == 1


def test_prototypes_of_an_init_task_are_made_of_its_images(
    tiny: Configs, build: Callable[..., InitialPrompt], backbone: Backbone, digits: Split, data_root: str
) -> None:
    other = load_split(data_root, "demo/shapes_loc", "train", 1.0, 32)
    rows = torch.from_numpy(nested_subset(other.labels_N.numpy(), 20))
    first = build(tiny(prompt_length=1, init_task="demo/shapes_loc", init_images=20))
    expected_LD = mean_tokens(backbone, other.all_images()[rows])
    torch.testing.assert_close(first.prompt_LPD[:, 0], expected_LD, rtol=1e-4, atol=1e-4)
    assert float((first.prompt_LPD[:, 0] - mean_tokens(backbone, digits.all_images())).abs().max()) > 0.1


def test_prototypes_of_an_augmented_task_are_made_of_seeded_random_crops(
    tiny: Configs, build: Callable[..., InitialPrompt], backbone: Backbone, data_root: str
) -> None:
    whole = load_split(data_root, "demo/digits", "train", 0.05, 32, "cpu", "spt", "whole")
    crops, again, others = (
        token_stream(tiny(seed=seed), backbone, whole, 5, 1.0).images_of(torch.arange(40)) for seed in (1, 1, 2)
    )
    assert crops.shape == (40, 3, 32, 32) and crops.dtype == torch.uint8
    assert torch.equal(crops, again) and not torch.equal(crops, others)
    config = tiny(prompt_length=1, seed=1)
    expected_LD = mean_tokens(backbone, crops)
    torch.testing.assert_close(build(config, images=whole).prompt_LPD[:, 0], expected_LD, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("view", ["fixed", "whole"])
def test_prototypes_are_the_same_when_memory_runs_out(
    view: View, tiny: Configs, backbone: Backbone, data_root: str
) -> None:
    config = tiny()
    images = load_split(data_root, "demo/digits", "train", 0.05, 32, "cpu", "spt", view)

    def prototypes(at_once: int) -> Tensor:
        """Return the prototypes of a machine with memory for `at_once` images."""
        stream = token_stream(config, backbone, images, 5, 1.0)

        def images_of(rows_B: Tensor) -> Tensor:
            images_BCHW = stream.images_of(rows_B)
            if len(rows_B) > at_once:
                raise torch.OutOfMemoryError("no room")
            return images_BCHW

        with_less = dataclasses.replace(stream, images_of=images_of)
        return build_prototypes(with_less, prompt_init="mean_pool", prompt_length=3, seed=0)

    torch.testing.assert_close(prototypes(5), prototypes(64), rtol=1e-5, atol=1e-5)


def test_more_prompts_than_tokens_are_refused_and_not_cached(
    tiny: Configs, build: Callable[..., InitialPrompt], tmp_path: Path
) -> None:
    for prompt_init, said in (
        ("random", "prompt_length: 65 exceeds the 64 patch tokens of the images; use more init_images."),
        ("kmeans", "prompt_length: 65 exceeds the 64 patch tokens of the images; use more init_images."),
    ):
        with pytest.raises(ValueError, match="65") as caught:
            build(tiny(prompt_init=prompt_init, prompt_length=65, init_images=1))
        assert str(caught.value) == said
    assert files_of(tmp_path) == []


def test_a_cache_that_cannot_be_written_is_an_error(
    tiny: Configs, backbone: Backbone, digits: Split, data_root: str, tmp_path: Path
) -> None:
    (tmp_path / "prototypes").write_text("a file where a folder should be")
    with pytest.raises(OSError, match="prototypes"):
        initial_prompt(tiny(), backbone, digits, data_root=data_root, prototype_cache=str(tmp_path / "prototypes"))
    assert (tmp_path / "prototypes").read_text() == "a file where a folder should be"


RACE = """
import hashlib, sys, time
from pathlib import Path
import torch
from trainer.config import TrainConfig
from trainer.data.split import load_split
from trainer.model.backbone import load_backbone
from trainer.prompt_init.initial_prompt import initial_prompt

torch.set_num_threads(1)
data_root, cache, meeting, name = sys.argv[1:]
backbone, images = load_backbone("vit_nano_patch4_32.mae"), load_split(data_root, "demo/digits", "train", 0.05, 32)
# All tokens of the 40 images at the first layer: quick to build, a megabyte to write.
values = {"task": "demo/digits", "method": "spt_shallow", "prompt_length": 2560, "prompt_init": "random"}
(Path(meeting) / name).touch()
while len(list(Path(meeting).iterdir())) < 2:
    time.sleep(0.001)
for seed in range(60):
    config = TrainConfig.from_params(values | {"seed": seed})
    first = initial_prompt(config, backbone, images, data_root=data_root, prototype_cache=cache)
    print(hashlib.sha256(first.prompt_LPD.numpy().tobytes()).hexdigest())
"""


@pytest.mark.slow
def test_two_processes_that_build_the_same_sets_leave_complete_files(data_root: str, tmp_path: Path) -> None:
    load_split(data_root, "demo/digits", "train", 0.05, 32)  # the task is there before they start
    meeting = tmp_path / "meeting"
    meeting.mkdir()
    command = [sys.executable, "-c", RACE, data_root, str(tmp_path / "prototypes"), str(meeting)]
    processes = [subprocess.Popen([*command, name], stdout=subprocess.PIPE, text=True) for name in ("one", "two")]
    said = [process.communicate(timeout=120)[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert len(set(said[0])) == 60 and said[0] == said[1]
    files = files_of(tmp_path)
    assert len(files) == 60 and {file.suffix for file in files} == {".safetensors"}
    kept = [hashlib.sha256(load_file(file)["prompt"].numpy().tobytes()).hexdigest() for file in files]
    assert sorted(kept) == sorted(said[0])
