"""A network is found under every wrapper and prefix; of several networks the one is taken that timm takes."""

from __future__ import annotations

import argparse
import hashlib
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from timm.models import load_state_dict as timm_load_state_dict
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from trainer.catalog import BACKBONES, BUNDLED
from trainer.model.weight_facts import read_facts
from trainer.model.weight_formats import LoadedWeights, load_weights
from trainer.model.weights import WeightsError

ROW = BACKBONES[BUNDLED]
State = dict[str, Tensor]

KEYS = ["state_dict", "model", "state_dict_ema", "model_ema", "teacher", "student", "network", "odd key"]
PREFIXES = [
    "module.",
    "_orig_mod.",
    "_orig_mod.module.",
    "module._orig_mod.",
    "_fsdp_wrapped_module.",
    "_fsdp_wrapped_module._checkpoint_wrapped_module.",
    "backbone.",
    "encoder.",
    "model.",
    "net.",
    "module.backbone._orig_mod.",
    "trunk.0.",
]


def network(seed: int) -> VisionTransformer:
    """Return a small network of the bundled one's shape with random numbers."""
    vit = VisionTransformer(img_size=32, patch_size=4, embed_dim=96, depth=5, num_heads=3, num_classes=0)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.normal_(generator=generator)
    return vit


@pytest.fixture(scope="module")
def states() -> list[State]:
    """The values of three networks."""
    return [dict(network(seed).state_dict()) for seed in range(3)]


def load(path: Path) -> tuple[State, LoadedWeights]:
    vit = network(9)
    loaded = load_weights(vit, path, ROW)
    return dict(vit.state_dict()), loaded


def refusal(path: Path) -> str:
    with pytest.raises(WeightsError) as caught:
        load(path)
    return str(caught.value)


def same(found: State, expected: State) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def prefixed(state: State, prefix: str) -> State:
    return {f"{prefix}{name}": value for name, value in state.items()}


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("key", [None, *KEYS])
def test_a_network_is_found_under_every_key(key: str | None, states: list[State], tmp_path: Path) -> None:
    content: Any = states[0] if key is None else {"epoch": 3, key: states[0], "args": argparse.Namespace(lr=0.1)}
    torch.save(content, tmp_path / "any.pth")
    found, loaded = load(tmp_path / "any.pth")
    assert same(found, states[0])
    assert (loaded.sha256, loaded.part) == (sha256_of(tmp_path / "any.pth"), ""), "the key of such a file stays"


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_network_is_found_behind_every_prefix(prefix: str, suffix: str, states: list[State], tmp_path: Path) -> None:
    path = tmp_path / f"any{suffix}"
    (torch.save if suffix == ".pth" else save_file)(prefixed(states[0], prefix), path)
    assert same(load(path)[0], states[0])


def test_what_lies_beside_the_prefix_of_a_network_is_not_the_network(states: list[State], tmp_path: Path) -> None:
    beside = {
        "criterion.weight": torch.ones(3),
        "dino_head.mlp.0.weight": torch.ones(2, 96),
        "n_averaged": torch.ones(()),
    }
    save_file(prefixed(states[0], "backbone.") | beside, tmp_path / "any.safetensors")
    assert same(load(tmp_path / "any.safetensors")[0], states[0])
    save_file(
        prefixed(states[0], "backbone.") | {"backbone.reg_token": torch.ones(1, 4, 96)}, tmp_path / "any.safetensors"
    )
    assert refusal(tmp_path / "any.safetensors").endswith("it has, unexpected, reg_token.")


def test_a_network_is_found_under_any_nesting_of_keys_and_prefixes(states: list[State], tmp_path: Path) -> None:
    generator = random.Random(0)
    for _ in range(12):
        prefix = "".join(generator.choices(PREFIXES, k=generator.randrange(4)))
        content: Any = prefixed(states[0], prefix)
        for key in generator.choices(KEYS, k=generator.randrange(4)):
            content = {key: content, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}}
        torch.save(content, tmp_path / "any.pth")
        assert same(load(tmp_path / "any.pth")[0], states[0]), (prefix, content.keys())


def test_blocks_that_are_compiled_or_sharded_one_by_one_are_found(states: list[State], tmp_path: Path) -> None:
    for inside in ("_orig_mod.", "_checkpoint_wrapped_module.", "_fsdp_wrapped_module._orig_mod."):
        content = {
            name.replace("blocks.1.", f"blocks.1.{inside}").replace("attn.", f"attn.{inside}"): value
            for name, value in states[0].items()
        }
        torch.save({"model": content}, tmp_path / "any.pth")
        assert same(load(tmp_path / "any.pth")[0], states[0])


def test_what_pytorch_itself_writes_is_read(tmp_path: Path) -> None:
    vit = network(1)
    wrapped = nn.DataParallel(AveragedModel(vit))
    torch.save({"model_ema": wrapped.state_dict()}, tmp_path / "any.pth")
    assert same(load(tmp_path / "any.pth")[0], dict(vit.state_dict()))


@pytest.mark.parametrize(
    "keys",
    [
        ("state_dict", "state_dict_ema"),
        ("model", "model_ema"),
        ("model_ema", "state_dict"),
        ("model_ema", "state_dict_ema"),
        ("model", "state_dict"),
    ],
)
def test_of_two_networks_the_one_is_taken_that_timm_takes(
    keys: tuple[str, str], states: list[State], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "any.pth"
    torch.save({key: prefixed(state, "module.") for key, state in zip(keys, states, strict=False)}, path)
    found, loaded = load(path)
    assert same(found, timm_load_state_dict(str(path)))
    (other,) = set(keys) - {loaded.part}
    assert caplog.messages == [f"{path} also holds {other}; {loaded.part} is used."]
    # Versions before may have taken the other one: its prototypes and checkpoints are not those of this one.
    assert loaded.sha256 != sha256_of(path)
    assert read_facts(path).part == loaded.part


@pytest.mark.parametrize(
    ("taken", "other"),
    [
        ("teacher.backbone.", "student.backbone."),
        ("teacher.module.backbone.", "student.module.backbone."),
        ("ema_model.", "model."),
        ("model_ema.module.", "model.module."),
        ("backbone.", "momentum_backbone."),
    ],
)
def test_of_a_network_and_its_average_behind_prefixes_the_usual_one_is_taken(
    taken: str, other: str, states: list[State], tmp_path: Path
) -> None:
    save_file(prefixed(states[0], taken) | prefixed(states[1], other), tmp_path / "any.safetensors")
    assert same(load(tmp_path / "any.safetensors")[0], states[0])


def test_an_empty_average_is_passed_over_as_timm_does(states: list[State], tmp_path: Path) -> None:
    torch.save({"state_dict": states[0], "state_dict_ema": None, "model_ema": {}}, tmp_path / "any.pth")
    found, loaded = load(tmp_path / "any.pth")
    assert same(found, states[0]) and loaded.part == ""


def test_two_networks_of_which_nothing_tells_the_right_one_are_refused(states: list[State], tmp_path: Path) -> None:
    path = tmp_path / "any.pth"
    torch.save({"left": states[0], "right": states[1]}, path)
    assert refusal(path) == f"{path} holds several networks: left and right. Save the one to use in a file of its own."


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_nan_in_the_weights_is_refused_with_the_parameters_name(
    value: float, dtype: torch.dtype, states: list[State], tmp_path: Path
) -> None:
    path = tmp_path / "any.safetensors"
    state = {name: tensor.to(dtype, copy=True) for name, tensor in states[0].items()}
    state["blocks.3.mlp.fc1.weight"][5, 7] = value
    save_file(state, path)
    assert refusal(path).startswith(f"{path} holds NaN or infinite values in blocks.3.mlp.fc1.weight. ")


def test_nan_beside_the_network_does_not_matter(states: list[State], tmp_path: Path) -> None:
    save_file(states[0] | {"head.weight": torch.full((2, 96), float("nan"))}, tmp_path / "any.safetensors")
    assert same(load(tmp_path / "any.safetensors")[0], states[0])


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".pth.tar"])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "it is a pointer of Git LFS"),
        (b"\n<!DOCTYPE html><html></html>", "it is a web page"),
        (b'{"message": "Not Found"}', "it is text"),
        (b"", "it is empty"),
    ],
)
def test_what_a_download_leaves_instead_of_weights_is_named(
    content: bytes, reason: str, suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"any{suffix}"
    path.write_bytes(content)
    message = refusal(path)
    assert message.startswith(f"{path} is not a complete file of {BUNDLED}: {reason}")
    assert message.endswith(" Download it again.") and "\n" not in message


def test_a_file_tells_which_backbones_it_fits(tmp_path: Path) -> None:
    vit = VisionTransformer(img_size=32, patch_size=16, embed_dim=192, depth=12, num_heads=3, num_classes=0)
    path = tmp_path / "any.pth"
    torch.save({"model": prefixed(dict(vit.state_dict()), "_orig_mod.")}, path)
    facts = read_facts(path)
    fitting = [row.name for row in BACKBONES.values() if facts.problem(row) is None]
    assert fitting == [row.name for row in BACKBONES.values() if (row.size, row.patch_size) == ("tiny", 16)]
    assert facts.problem(ROW) == "it has 12 layers, width 192, patch 16"
