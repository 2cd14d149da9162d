"""Weights: every published format loads completely, everything else is refused, and files are searched in order.

Shapes: D width, N patch tokens.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gc
import hashlib
import http.server
import itertools
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from trainer.catalog import BACKBONES, BUNDLED, BackboneRow
from trainer.model.backbone import build_vit, load_backbone
from trainer.model.weight_formats import load_weights
from trainer.model.weights import WeightsError, fetch_weights, find_weights

NANO = BACKBONES[BUNDLED]
MAE_B, MOCO_B = BACKBONES["vit_base_patch16_224.mae"], BACKBONES["vit_base_patch16_224.moco_v3"]
TINY = BACKBONES["vit_tiny_patch16_224.augreg_in21k"]
State = dict[str, Tensor]


def filled(vit: VisionTransformer, seed: int, std: float = 1.0) -> VisionTransformer:
    """Return the network with random numbers, so that no two values are equal."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.normal_(std=std, generator=generator)
    return vit


def nano(seed: int = 0, **changes: Any) -> VisionTransformer:
    """Return a network of the bundled one's shape, or with changes."""
    shape = {"img_size": 32, "patch_size": 4, "embed_dim": 96, "depth": 5, "num_heads": 3}
    return filled(VisionTransformer(num_classes=0, **(shape | changes)), seed)


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(9))


def write_safetensors(vit: VisionTransformer, path: Path) -> None:
    save_file(dict(vit.state_dict()), path, metadata={"format": "pt"})


def write_bare(vit: VisionTransformer, path: Path) -> None:
    """Write the format of timm and DINO: the network only."""
    torch.save(vit.state_dict(), path)


def write_classifier(vit: VisionTransformer, path: Path) -> None:
    """Write a supervised network with its classifiers (DeiT has two) and its representation layer."""
    beside = {"head.weight": noise(21, vit.embed_dim), "head.bias": noise(21), "head_dist.bias": noise(21)}
    torch.save(vit.state_dict() | beside | {"pre_logits.fc.weight": noise(7, vit.embed_dim)}, path)


def write_mae(vit: VisionTransformer, path: Path) -> None:
    """Write the format of MAE: network and decoder under `model`, beside the arguments and the optimizer."""
    decoder = {"mask_token": noise(1, 1, 64), "decoder_embed.weight": noise(64, vit.embed_dim)}
    decoder |= {"decoder_pos_embed": noise(1, 65, 64), "decoder_blocks.0.norm1.weight": noise(64)}
    arguments = argparse.Namespace(lr=1.5e-4, model="mae_vit", betas=(0.9, 0.95), resume="", distributed=True)
    optimizer = {"state": {0: {"exp_avg": noise(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    torch.save({"model": vit.state_dict() | decoder, "optimizer": optimizer, "epoch": 800, "args": arguments}, path)


def moco_state(vit: VisionTransformer) -> State:
    """Return a state of MoCo v3: the network, its projector, a momentum copy of both, and the predictor."""
    base = dict(vit.state_dict()) | {"head.0.weight": noise(8, vit.embed_dim), "head.1.running_mean": noise(8)}
    base |= {"head.1.num_batches_tracked": torch.tensor(7)}
    state = {f"module.base_encoder.{name}": value for name, value in base.items()}
    state |= {f"module.momentum_encoder.{name}": value + 1 for name, value in base.items()}
    return state | {"module.predictor.0.weight": noise(8, 8)}


def write_moco(vit: VisionTransformer, path: Path) -> None:
    torch.save({"epoch": 300, "arch": "vit_base", "state_dict": moco_state(vit), "scaler": {"scale": 2.0}}, path)


def write_moco_linear(vit: VisionTransformer, path: Path) -> None:
    """Write MoCo v3 after linear probing: the network under `module.`, with a classifier."""
    state = dict(vit.state_dict()) | {"head.weight": noise(10, vit.embed_dim), "head.bias": noise(10)}
    torch.save({"epoch": 90, "state_dict": {f"module.{name}": value for name, value in state.items()}}, path)


def write_dinov2(vit: VisionTransformer, path: Path) -> None:
    torch.save(dict(vit.state_dict()) | {"mask_token": noise(1, vit.embed_dim)}, path)


def write_as_before_2020(vit: VisionTransformer, path: Path) -> None:
    """Write the format of torch before 1.6, which is not a zip file."""
    torch.save({"model": vit.state_dict()}, path, _use_new_zipfile_serialization=False)


def jax_arrays(vit: VisionTransformer) -> dict[str, NDArray[np.float32]]:
    """Return the arrays of Google's ViT files: kernels as [in, out], attention by head, images as HWIO."""
    own = {name: value.numpy() for name, value in vit.state_dict().items()}
    width, heads = vit.embed_dim, 3  # the bundled network and ViT-Ti have three
    arrays = {
        "embedding/kernel": own["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": own["patch_embed.proj.bias"],
        "cls": own["cls_token"],
        "Transformer/posembed_input/pos_embedding": own["pos_embed"],
        "Transformer/encoder_norm/scale": own["norm.weight"],
        "Transformer/encoder_norm/bias": own["norm.bias"],
        "head/kernel": np.ones((width, 21), np.float32),
        "head/bias": np.ones(21, np.float32),
        "pre_logits/kernel": np.ones((width, width), np.float32),
        "pre_logits/bias": np.ones(width, np.float32),
    }
    for layer in range(len(vit.blocks)):
        ours, theirs = f"blocks.{layer}", f"Transformer/encoderblock_{layer}"
        for norm, place in (("norm1", "LayerNorm_0"), ("norm2", "LayerNorm_2")):
            arrays[f"{theirs}/{place}/scale"] = own[f"{ours}.{norm}.weight"]
            arrays[f"{theirs}/{place}/bias"] = own[f"{ours}.{norm}.bias"]
        attention = f"{theirs}/MultiHeadDotProductAttention_1"
        weights, biases = (np.split(own[f"{ours}.attn.qkv.{kind}"], 3) for kind in ("weight", "bias"))
        for name, weight, bias in zip(("query", "key", "value"), weights, biases, strict=True):
            arrays[f"{attention}/{name}/kernel"] = weight.T.reshape(width, heads, -1)
            arrays[f"{attention}/{name}/bias"] = bias.reshape(heads, -1)
        arrays[f"{attention}/out/kernel"] = own[f"{ours}.attn.proj.weight"].T.reshape(heads, -1, width)
        arrays[f"{attention}/out/bias"] = own[f"{ours}.attn.proj.bias"]
        for i in range(2):
            arrays[f"{theirs}/MlpBlock_3/Dense_{i}/kernel"] = own[f"{ours}.mlp.fc{i + 1}.weight"].T
            arrays[f"{theirs}/MlpBlock_3/Dense_{i}/bias"] = own[f"{ours}.mlp.fc{i + 1}.bias"]
    return arrays


def save_arrays(path: Path, arrays: dict[str, Any]) -> None:
    np.savez(path, **arrays)


def write_jax(vit: VisionTransformer, path: Path) -> None:
    save_arrays(path, jax_arrays(vit))


FORMATS: dict[str, tuple[str, str, Callable[[VisionTransformer, Path], None]]] = {
    "timm_safetensors": ("any.safetensors", "supervised", write_safetensors),
    "timm_pth": ("any.pth", "dino", write_bare),
    "classifier_pth": ("any.pth", "supervised", write_classifier),
    "mae_pth": ("any.pth", "mae", write_mae),
    "moco_v3": ("any.pth.tar", "moco_v3", write_moco),
    "moco_v3_linear": ("any.pth.tar", "moco_v3", write_moco_linear),
    "dinov2_pth": ("any.pth", "dinov2", write_dinov2),
    "jax_npz": ("any.npz", "supervised", write_jax),
}
"""Each published format: a file name, its pre-training, and the function that writes it."""


def row_of(pretraining: str) -> BackboneRow:
    """Return the bundled row with another pre-training."""
    return dataclasses.replace(NANO, pretraining=pretraining)  # type: ignore[arg-type]


def assert_equal(vit: VisionTransformer, expected: State) -> None:
    own = vit.state_dict()
    assert own.keys() == expected.keys()
    assert [name for name in own if not torch.equal(own[name], expected[name])] == []


def refusal(vit: VisionTransformer, path: Path, row: BackboneRow = NANO) -> str:
    """Return the error message for a file that is refused."""
    with pytest.raises(WeightsError) as caught:
        load_weights(vit, path, row)
    return str(caught.value)


@pytest.mark.parametrize("published", FORMATS)
def test_every_number_of_a_published_file_is_loaded(published: str, tmp_path: Path) -> None:
    name, pretraining, write = FORMATS[published]
    changes = {"init_values": 1e-5} if pretraining == "dinov2" else {}  # DINOv2 has LayerScale
    written, vit = nano(1, **changes), nano(2, **changes)
    write(written, tmp_path / name)
    sha256 = load_weights(vit, tmp_path / name, row_of(pretraining)).sha256
    assert_equal(vit, written.state_dict())
    assert sha256 == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
def test_a_file_of_torch_before_1_6_is_read(tmp_path: Path) -> None:
    written, vit = nano(1), nano(2)
    write_as_before_2020(written, tmp_path / "old.pth")
    load_weights(vit, tmp_path / "old.pth", NANO)
    assert_equal(vit, written.state_dict())


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_of_another_precision_become_float32(precision: torch.dtype, suffix: str, tmp_path: Path) -> None:
    written, path = nano(1).to(precision), tmp_path / f"any{suffix}"
    (write_bare if suffix == ".pth" else write_safetensors)(written, path)
    expected = {name: value.to(torch.float32) for name, value in written.state_dict().items()}
    for side, positions in ((32, expected["pos_embed"]), (64, resample_abs_pos_embed(expected["pos_embed"], [16, 16]))):
        vit = nano(2, img_size=side)
        load_weights(vit, path, NANO)
        assert_equal(vit, expected | {"pos_embed": positions})


@pytest.mark.parametrize(
    ("name", "write"), [("a.safetensors", write_safetensors), ("a.pth", write_classifier), ("a.npz", write_jax)]
)
def test_a_timm_network_loads_from_each_of_its_formats(
    name: str, write: Callable[[VisionTransformer, Path], None], tmp_path: Path
) -> None:
    written = filled(build_vit(TINY), 1)
    write(written, tmp_path / name)
    backbone = load_backbone.__wrapped__(TINY.name, weights=str(tmp_path / name))
    assert_equal(backbone.vit, written.state_dict())
    assert backbone.sha256 == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
    assert (backbone.num_layers, backbone.embed_dim, backbone.num_patches) == (12, 192, 196)
    assert (backbone.readout, backbone.vit.num_classes) == ("cls", 0)


@pytest.mark.parametrize(
    "row", [row for row in BACKBONES.values() if row.size in {"nano", "tiny", "small"}], ids=lambda row: row.name
)
def test_a_row_describes_its_network(row: BackboneRow) -> None:
    vit = build_vit(row)
    state = vit.state_dict()
    assert (len(vit.blocks), vit.embed_dim, vit.patch_embed.patch_size) == (
        row.num_layers, row.embed_dim, (row.patch_size,) * 2,
    )  # fmt: skip
    assert state["pos_embed"].shape == (1, 1 + row.num_patches(), row.embed_dim)
    assert not any(name.startswith(("head.", "fc_norm.")) for name in state)
    assert any("ls1.gamma" in name for name in state) == (row.pretraining == "dinov2")


@pytest.mark.slow
def test_mae_vit_b_loads_from_its_published_form_and_runs(tmp_path: Path) -> None:
    written = filled(build_vit(MAE_B), 1, std=0.02)
    write_mae(written, tmp_path / MAE_B.published_as)
    backbone = load_backbone.__wrapped__(MAE_B.name, weights=str(tmp_path))
    assert_equal(backbone.vit, written.state_dict())
    image_1CHW = torch.randint(0, 256, (1, 3, 224, 224), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    layers = list(backbone.patch_tokens(image_1CHW))
    assert [tokens.shape for tokens in layers] == [(1, 196, 768)] * 12
    assert all(bool(tokens.isfinite().all()) for tokens in layers)


# Files that are refused.


@pytest.mark.filterwarnings("ignore:unclosed file")
@pytest.mark.parametrize("share", [0, 1e-6, 0.01, 0.5, 0.999])
@pytest.mark.parametrize("published", FORMATS)
def test_a_truncated_file_is_refused(published: str, share: float, tmp_path: Path) -> None:
    name, pretraining, write = FORMATS[published]
    write(nano(1), tmp_path / name)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: int(share * len(data))])
    message = refusal(nano(2), tmp_path / name, row_of(pretraining))
    assert message.startswith(f"{tmp_path / name} is not a complete file of {BUNDLED}: ") and message.endswith(
        ". Download it again."
    )
    if name.endswith(".npz"):
        # numpy leaves a truncated archive open. A collection takes a second in a process that has torch.
        gc.collect()


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
def test_a_file_of_torch_before_1_6_that_is_truncated_is_refused(tmp_path: Path) -> None:
    write_as_before_2020(nano(1), tmp_path / "old.pth")
    data = (tmp_path / "old.pth").read_bytes()
    for length in (0, 1, 3, 16, 18, 22, 28, 1000, len(data) // 2, len(data) - 1):
        (tmp_path / "old.pth").write_bytes(data[:length])
        assert refusal(nano(2), tmp_path / "old.pth").startswith(f"{tmp_path / 'old.pth'} is not a complete file of")


@pytest.mark.parametrize("name", ["weights", "model.bin", "model.pt", "model.pth.zip", "model.tar", "safetensors"])
def test_a_file_of_an_unknown_suffix_is_refused(name: str, tmp_path: Path) -> None:
    write_bare(nano(1), tmp_path / name)
    assert refusal(nano(2), tmp_path / name) == f"{tmp_path / name} must end in .safetensors, .pth, .pth.tar, .npz."


def without(state: State, *names: str) -> State:
    return {name: value for name, value in state.items() if name not in names}


NETWORK = "a ViT of 5 layers, width 96, patches of 4"
PROJECTION = "patch_embed.proj.weight must be [96, 3, 4, 4], found"
MISFITS: dict[str, tuple[Callable[[], State], str]] = {
    "one key less": (lambda: without(nano().state_dict(), "norm.bias"), "it lacks norm.bias"),
    "no positions": (lambda: without(nano().state_dict(), "pos_embed"), "it lacks pos_embed"),
    "nothing": (
        dict,
        "it lacks blocks.0.attn.proj.bias, blocks.0.attn.proj.weight, blocks.0.attn.qkv.bias and 63 more",
    ),
    "one key more": (
        lambda: nano().state_dict() | {"fc_norm.weight": noise(96)},
        "it has, unexpected, fc_norm.weight",
    ),
    "registers": (
        lambda: nano(reg_tokens=4).state_dict(),
        "pos_embed must be [1, 65, 96], found [1, 69, 96]; it has, unexpected, reg_token",
    ),
    "LayerScale": (
        lambda: nano(init_values=1.0).state_dict(),
        "it has, unexpected, blocks.0.ls1.gamma, blocks.0.ls2.gamma, blocks.1.ls1.gamma and 7 more",
    ),
    "a layer less": (
        lambda: nano(depth=4).state_dict(),
        "it lacks blocks.4.attn.proj.bias, blocks.4.attn.proj.weight, blocks.4.attn.qkv.bias and 9 more",
    ),
    "a layer more": (
        lambda: nano(depth=6).state_dict(),
        "it has, unexpected, blocks.5.attn.proj.bias, blocks.5.attn.proj.weight, blocks.5.attn.qkv.bias and 9 more",
    ),
    "half the width": (
        lambda: nano(embed_dim=48).state_dict(),
        "cls_token must be [1, 1, 96], found [1, 1, 48]; pos_embed must be [1, 65, 96], found [1, 65, 48]; "
        f"{PROJECTION} [48, 3, 4, 4]; patch_embed.proj.bias must be [96], found [48] (and 62 more)",
    ),
    "larger patches": (lambda: nano(patch_size=8).state_dict(), f"{PROJECTION} [96, 3, 8, 8]"),
    "larger patches and images": (lambda: nano(patch_size=8, img_size=64).state_dict(), f"{PROJECTION} [96, 3, 8, 8]"),
    "two channels": (lambda: nano(in_chans=2).state_dict(), f"{PROJECTION} [96, 2, 4, 4]"),
    "a narrower perceptron": (
        lambda: nano().state_dict() | {"blocks.2.mlp.fc1.bias": noise(383)},
        "blocks.2.mlp.fc1.bias must be [384], found [383]",
    ),
    "positions that are no square": (
        lambda: nano().state_dict() | {"pos_embed": noise(1, 64, 96)},
        "pos_embed must be [1, 65, 96], found [1, 64, 96]",
    ),
    "both": (
        lambda: without(nano().state_dict(), "norm.bias") | {"norm.offset": noise(96)},
        "it lacks norm.bias; it has, unexpected, norm.offset",
    ),
}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("misfit", MISFITS)
def test_tensors_of_another_network_are_refused_with_what_was_expected_and_found(
    misfit: str, suffix: str, tmp_path: Path
) -> None:
    state_of, found = MISFITS[misfit]
    path = tmp_path / f"any{suffix}"
    (torch.save if suffix == ".pth" else save_file)(state_of(), path)
    assert refusal(nano(2), path) == f"{path} does not fit {NETWORK}: {found}."


def broken_array(name: str, change: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> Callable[[Path], None]:
    """Return a function that writes a JAX file with one array changed."""

    def write(path: Path) -> None:
        arrays = jax_arrays(nano())
        save_arrays(path, arrays | {name: change(arrays[name])})

    return write


JAX_MISFITS: dict[str, tuple[Callable[[Path], None], str]] = {
    "a layer less": (lambda path: write_jax(nano(depth=4), path), "encoderblock_4/LayerNorm_0/scale"),
    "a layer more": (
        lambda path: write_jax(nano(depth=6), path),
        "holds 676,032 numbers; a ViT of 5 layers, width 96, patches of 4 has 564,192.",
    ),
    "half the width": (lambda path: write_jax(nano(embed_dim=48), path), "size of tensor"),
    "larger patches": (
        lambda path: write_jax(nano(patch_size=8), path),
        "holds 578,016 numbers; a ViT of 5 layers, width 96, patches of 4 has 564,192.",
    ),
    "positions that are no square": (
        broken_array("Transformer/posembed_input/pos_embedding", lambda array: array[:, :60]),
        "pos_embed must be [1, 65, 96], found [1, 60, 96].",
    ),
    "one number for many": (
        broken_array("Transformer/encoderblock_2/MlpBlock_3/Dense_0/bias", lambda array: array[:1]),
        "holds 563,809 numbers; a ViT of 5 layers, width 96, patches of 4 has 564,192.",
    ),
    "nothing of a ViT": (lambda path: save_arrays(path, {"a": noise(3).numpy()}), "JAX/Flax parameter layout"),
}


@pytest.mark.parametrize("misfit", JAX_MISFITS)
def test_a_jax_file_of_another_network_is_refused(misfit: str, tmp_path: Path) -> None:
    write, found = JAX_MISFITS[misfit]
    write(tmp_path / "any.npz")
    message = refusal(nano(2), tmp_path / "any.npz", row_of("supervised"))
    assert message.startswith(f"{tmp_path / 'any.npz'} ") and found in message


@pytest.mark.parametrize("content", [[noise(3)], {"model": {"a": 1.0}}, {"model": noise(3)}, {"epoch": 3}], ids=str)
def test_a_file_that_holds_no_tensors_by_name_is_refused(content: object, tmp_path: Path) -> None:
    path = tmp_path / "any.pth"
    torch.save(content, path)
    rule = "must hold tensors by name, bare or under `model` or `state_dict`."
    assert refusal(nano(), path) == f"{path} {rule}"


@pytest.mark.parametrize("content", [{0: noise(3)}, {"model": {0: noise(3)}}], ids=["bare", "model"])
def test_tensors_under_numbers_are_refused(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "any.pth")
    assert "must hold tensors by name" in refusal(nano(), tmp_path / "any.pth")


def test_a_single_array_in_an_npz_file_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "any.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    assert "any.npz" in refusal(nano(), tmp_path / "any.npz", row_of("supervised"))


class Touch:
    """Content of a malicious file: unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str, int], int], tuple[str, int]]:
        return os.open, (str(self.path), os.O_CREAT)


@pytest.mark.parametrize("place", ["alone", "beside", "within", "raw", "npz"])
def test_a_file_that_would_run_code_is_refused_and_does_not_run_it(place: str, tmp_path: Path) -> None:
    marker, path = tmp_path / "was here", tmp_path / ("any.npz" if place == "npz" else "any.pth")
    bomb, state = Touch(marker), dict(nano().state_dict())
    os.close(pickle.loads(pickle.dumps(bomb)))
    assert marker.exists(), "as a pickle it does run"
    marker.unlink()
    if place == "raw":
        path.write_bytes(pickle.dumps(bomb, protocol=2))
    elif place == "npz":
        save_arrays(path, jax_arrays(nano()) | {"embedding/kernel": np.array([bomb], dtype=object)})
    else:
        content = {"alone": bomb, "beside": {"model": state, "args": bomb}, "within": {"model": state | {"norm": bomb}}}
        torch.save(content[place], path)
    message = refusal(nano(), path, row_of("supervised"))
    reason = "it is damaged, or holds other things than tensors, which could run code and are not loaded"
    if path.suffix == ".npz":
        reason = "Object arrays cannot be loaded when allow_pickle=False"
    assert message == f"{path} is not a complete file of {BUNDLED}: {reason}. Download it again."
    assert not marker.exists()


def test_a_file_published_for_another_network_is_refused_by_its_name(tmp_path: Path) -> None:
    for name, owner, row in (
        ("mae_pretrain_vit_base.pth", MAE_B, MOCO_B),
        ("vit-b-300ep.pth.tar", MOCO_B, MAE_B),
        ("mae_pretrain_vit_large.pth", BACKBONES["vit_large_patch16_224.mae"], MAE_B),
        ("ViT-B_16.npz", BACKBONES["vit_base_patch16_224.orig_in21k"], BACKBONES["vit_base_patch16_224.augreg_in21k"]),
        ("dino_vitbase16_pretrain.pth", BACKBONES["vit_base_patch16_224.dino"], NANO),
    ):
        (tmp_path / name).write_bytes(b"never opened")
        expected = f"{tmp_path / name} is published as the weights of {owner.name}; {row.name} was asked for."
        assert refusal(nano(), tmp_path / name, row) == expected


def test_a_file_published_for_the_row_is_loaded(tmp_path: Path) -> None:
    row = dataclasses.replace(MAE_B, size="nano")
    write_mae(nano(1), tmp_path / row.published_as)
    vit = nano(2)
    load_weights(vit, tmp_path / row.published_as, row)
    assert_equal(vit, nano(1).state_dict())


@pytest.mark.parametrize("pretraining", ["mae", "supervised", "dino", "dinov2"])
def test_a_moco_file_is_refused_for_other_rows(pretraining: str, tmp_path: Path) -> None:
    path = tmp_path / "any.pth.tar"
    write_moco(nano(1), path)
    expected = f"{path} is a MoCo v3 checkpoint; {BUNDLED} was asked for."
    assert refusal(nano(2), path, row_of(pretraining)) == expected


@pytest.mark.parametrize("pretraining", ["mae", "moco_v3", "dino", "dinov2"])
def test_a_jax_file_is_refused_for_rows_that_are_not_supervised(pretraining: str, tmp_path: Path) -> None:
    write_jax(nano(1), tmp_path / "any.npz")
    expected = f"{tmp_path / 'any.npz'} is a JAX file of a supervised ViT; {BUNDLED} was asked for."
    assert refusal(nano(2), tmp_path / "any.npz", row_of(pretraining)) == expected


# Positions of another image size.


@pytest.mark.parametrize("side", [4, 20, 28, 36, 64])
@pytest.mark.parametrize("published", [name for name in FORMATS if name not in {"jax_npz", "dinov2_pth"}])
def test_positions_are_resampled_as_in_timm_and_the_rest_is_unchanged(
    published: str, side: int, tmp_path: Path
) -> None:
    name, pretraining, write = FORMATS[published]
    written, vit = nano(1), nano(2, img_size=side)
    write(written, tmp_path / name)
    load_weights(vit, tmp_path / name, row_of(pretraining))
    state = written.state_dict()
    resampled = resample_abs_pos_embed(state["pos_embed"], [side // 4, side // 4])
    assert resampled.shape == (1, 1 + (side // 4) ** 2, 96)
    assert_equal(vit, dict(state) | {"pos_embed": resampled})


def test_positions_of_larger_images_are_resampled_too(tmp_path: Path) -> None:
    # DINOv2 is published for 518 pixels and used at 224.
    written, vit = nano(1, img_size=148, init_values=1e-5), nano(2, init_values=1e-5)
    write_dinov2(written, tmp_path / "any.pth")
    load_weights(vit, tmp_path / "any.pth", row_of("dinov2"))
    state = written.state_dict()
    assert state["pos_embed"].shape[1] == 1 + 37**2
    assert_equal(vit, dict(state) | {"pos_embed": resample_abs_pos_embed(state["pos_embed"], [8, 8])})


def test_positions_do_not_depend_on_the_file_format(tmp_path: Path) -> None:
    by_suffix = {}
    for suffix, write in ((".npz", write_jax), (".safetensors", write_safetensors)):
        vit, path = nano(2, img_size=64), tmp_path / f"any{suffix}"
        write(nano(1), path)
        load_weights(vit, path, row_of("supervised"))
        by_suffix[suffix] = vit.state_dict()
    torch.testing.assert_close(by_suffix[".npz"], by_suffix[".safetensors"])


@pytest.mark.parametrize("image_size", [None, 4, 32, 64])
def test_the_bundled_network_runs_at_other_image_sizes(image_size: int | None) -> None:
    own = load_backbone.__wrapped__(BUNDLED)
    backbone = load_backbone.__wrapped__(BUNDLED, image_size=image_size)
    side = image_size or 32
    images_BCHW = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8)
    layers = list(backbone.patch_tokens(images_BCHW))
    assert (backbone.image_size, backbone.num_patches) == (side, (side // 4) ** 2)
    assert [tokens.shape for tokens in layers] == [(2, (side // 4) ** 2, 96)] * 5
    assert all(bool(tokens.isfinite().all()) for tokens in layers)
    assert backbone.sha256 == own.sha256
    changed = [name for name, value in own.vit.state_dict().items() if not value.equal(backbone.vit.state_dict()[name])]
    assert changed == ([] if side == 32 else ["pos_embed"])


def test_normalisation_is_that_of_the_backbone_or_of_imagenet() -> None:
    for normalize, mean, std in (
        ("backbone", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ("imagenet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ):
        backbone = load_backbone.__wrapped__(BUNDLED, normalize=normalize)
        torch.testing.assert_close(backbone.mean_C11.flatten(), torch.tensor(mean))
        torch.testing.assert_close(backbone.std_C11.flatten(), torch.tensor(std))


# Where files are searched.

FILE_NAMES = (
    "mae_pretrain_vit_base.pth",
    "vit_base_patch16_224.mae.safetensors",
    "vit_base_patch16_224.mae.pth",
    "vit_base_patch16_224.mae.pth.tar",
    "vit_base_patch16_224.mae.npz",
    "vit_base_patch16_224.mae/model.safetensors",
)
"""File names of MAE ViT-B in a folder; the first that exists is used."""


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


@pytest.mark.parametrize("name", ["mae_pretrain_vit_base.pth", "any name", "vit-b-300ep.pth.tar"])
def test_a_named_file_is_used_whatever_its_name(name: str, tmp_path: Path) -> None:
    path = touch(tmp_path / name)
    source = find_weights(MAE_B, str(path))
    assert (source.kind, source.path, str(source)) == ("file", path, str(path))
    assert fetch_weights(MAE_B, str(path)) == path


@pytest.mark.parametrize("first", FILE_NAMES)
def test_a_folder_is_searched_for_published_and_timm_names(first: str, tmp_path: Path) -> None:
    for name in FILE_NAMES[FILE_NAMES.index(first) :]:
        touch(tmp_path / name)
    for another in ("mae_pretrain_vit_large.pth", "vit_base_patch16_224.moco_v3.pth", "model.safetensors"):
        touch(tmp_path / another)
    source = find_weights(MAE_B, str(tmp_path))
    assert (source.kind, source.path) == ("file", tmp_path / first)


def test_a_tilde_in_a_path_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    path = touch(tmp_path / "weights" / "mae_pretrain_vit_base.pth")
    assert find_weights(MAE_B, "~/weights").path == find_weights(MAE_B, "~/weights/" + path.name).path == path


@pytest.mark.parametrize("row", [NANO, MAE_B, MOCO_B], ids=lambda row: row.name)
def test_a_missing_path_is_refused_even_if_weights_exist_elsewhere(row: BackboneRow, tmp_path: Path) -> None:
    with pytest.raises(WeightsError) as caught:
        find_weights(row, str(tmp_path / "nowhere"))
    assert str(caught.value) == f"weights {tmp_path / 'nowhere'}: there is no such file or folder."


def test_weights_in_a_named_folder_replace_the_bundled_ones(tmp_path: Path) -> None:
    for named in (None, str(tmp_path)):
        source = find_weights(NANO, named)
        assert (source.kind, str(source)) == ("bundled", "in this package")
        assert source.path is not None and source.path.is_file()
    others = touch(tmp_path / f"{BUNDLED}.safetensors")
    assert find_weights(NANO, str(tmp_path)).path == others


@pytest.mark.parametrize("named", [False, True])
def test_missing_weights_that_are_not_on_the_hub_are_refused_with_the_way_out(named: bool, tmp_path: Path) -> None:
    folder = str(tmp_path)
    for row, names in (
        (MOCO_B, "vit-b-300ep.pth.tar or vit_base_patch16_224.moco_v3.safetensors"),
        (BACKBONES["vit_large_patch16_224.moco_v3"], "vit_large_patch16_224.moco_v3.safetensors"),
    ):
        with pytest.raises(WeightsError) as caught:
            fetch_weights(row, folder if named else None)
        assert str(caught.value) == (
            f"{row.name} has no weights on timm's hub{f', nor in {folder}' if named else ''}. "
            f"Name a file, or a folder that holds {names}, with --weights or SPTUNE_WEIGHTS."
        )


ASK = """
import sys
from trainer.catalog import BACKBONES
from trainer.model.weights import WeightsError, fetch_weights, find_weights
assert "torch" not in sys.modules, "finding weights needs no torch"
row, named = BACKBONES["vit_base_patch16_224.mae"], None if sys.argv[2] == "-" else sys.argv[2]
try:
    if sys.argv[1] == "fetch":
        print(fetch_weights(row, named))
    else:
        source = find_weights(row, named)
        print(source.kind, source.path, source, sep="|")
except WeightsError as error:
    print(error)
"""
WAY_OUT = (
    "a folder that holds mae_pretrain_vit_base.pth or vit_base_patch16_224.mae.safetensors, "
    "with --weights or SPTUNE_WEIGHTS."
)


def ask(what: str, named: Path | None = None, **environment: object) -> str:
    """Return the answer of a new process about MAE ViT-B: the hub's library reads its environment only once."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGINGFACE_"))}
    values = {name: str(value) for name, value in environment.items()}
    return subprocess.run(
        [sys.executable, "-c", ASK, what, str(named or "-")],
        env=inherited | {"NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"} | values,
        stdout=subprocess.PIPE,
        text=True,
        timeout=200,
        check=True,
    ).stdout.strip()


COMMIT = "0123456789" * 4


def cache_with_weights(cache: Path) -> Path:
    """Create a Hugging Face cache with MAE ViT-B in it, and return the file."""
    repository = cache / "models--timm--vit_base_patch16_224.mae"
    touch(repository / "refs" / "main").write_text(COMMIT)
    return touch(repository / "snapshots" / COMMIT / "model.safetensors")


def test_the_hugging_face_cache_is_searched_after_the_named_folder(tmp_path: Path) -> None:
    cached, named = cache_with_weights(tmp_path / "cache"), tmp_path / "named"
    named.mkdir()
    for folder, offline in ((None, 0), (None, 1), (named, 1)):  # the named folder is still empty
        found = ask("find", folder, HF_HUB_CACHE=tmp_path / "cache", HF_HUB_OFFLINE=offline)
        assert found == f"cache|{cached}|Hugging Face cache"
    assert ask("fetch", None, HF_HUB_CACHE=tmp_path / "cache", HF_HUB_OFFLINE=1) == str(cached)
    file = touch(named / "mae_pretrain_vit_base.pth")
    assert ask("find", named, HF_HUB_CACHE=tmp_path / "cache") == f"file|{file}|{file}"


def test_missing_weights_come_from_the_hub_unless_it_is_offline(tmp_path: Path) -> None:
    assert ask("find", tmp_path, HF_HUB_CACHE=tmp_path / "cache") == "hub|None|timm's hub"
    for named, among in ((None, ""), (tmp_path, f", nor in {tmp_path}")):
        assert ask("fetch", named, HF_HUB_CACHE=tmp_path / "cache", HF_HUB_OFFLINE=1) == (
            f"vit_base_patch16_224.mae is not in the Hugging Face cache ({tmp_path / 'cache'}){among}, "
            f"and HF_HUB_OFFLINE forbids downloads. Name a file, or {WAY_OUT}"
        )


@contextlib.contextmanager
def hub(content: bytes | None) -> Iterator[str]:
    """Yield the address of a local hub that has only this file, or nothing."""

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            known = content if self.path == "/timm/vit_base_patch16_224.mae/resolve/main/model.safetensors" else None
            self.send_response(404 if known is None else 200)
            self.send_header("Content-Length", str(len(known or b"")))
            self.send_header("X-Repo-Commit", COMMIT)
            if known is None:
                self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("ETag", '"an-etag"')
            self.end_headers()

        def do_GET(self) -> None:
            self.do_HEAD()
            self.wfile.write(content or b"")

        def log_message(self, *_: object) -> None:
            """Keep the terminal quiet."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def test_weights_are_downloaded_once(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with hub(b"weights") as endpoint:
        path = Path(ask("fetch", HF_HUB_CACHE=cache, HF_ENDPOINT=endpoint))
    assert path.name == "model.safetensors" and path.read_bytes() == b"weights"
    # The hub is gone, and it is not needed any more.
    assert ask("fetch", HF_HUB_CACHE=cache, HF_ENDPOINT=endpoint) == str(path)
    assert ask("find", HF_HUB_CACHE=cache) == f"cache|{path}|Hugging Face cache"


def assert_not_downloaded(message: str, cache: Path) -> None:
    start = "vit_base_patch16_224.mae could not be downloaded from timm's hub: "
    assert message.startswith(start) and "\n" not in message
    way_out = f"{WAY_OUT.rstrip('.')}; or copy that machine's Hugging Face cache to {cache}."
    assert message.endswith(f" Download it where there is a network and name the file, or {way_out}")
    reason = message.removeprefix(start).partition(" Download it")[0]
    assert len(reason) > 10 and reason.endswith(".")


def test_a_hub_without_the_weights_is_reported_with_the_way_out(tmp_path: Path) -> None:
    with hub(None) as endpoint:
        message = ask("fetch", HF_HUB_CACHE=tmp_path, HF_ENDPOINT=endpoint)
    assert_not_downloaded(message, tmp_path)
    assert "404" in message


@pytest.mark.slow  # the hub's library tries six times, for 23 s
def test_no_network_is_reported_with_the_way_out(tmp_path: Path) -> None:
    assert_not_downloaded(ask("fetch", HF_HUB_CACHE=tmp_path, HF_ENDPOINT="http://127.0.0.1:9"), tmp_path)


def test_a_published_file_name_belongs_to_one_row() -> None:
    published = [row.published_as for row in BACKBONES.values() if row.published_as]
    assert len(published) == len(set(published))
    for row, other in itertools.permutations(BACKBONES.values(), 2):
        assert row.published_as not in {f"{other.name}{suffix}" for suffix in (".safetensors", ".pth", ".npz")}


def test_an_mae_file_is_refused_for_other_pre_trainings_under_any_name(tmp_path: Path) -> None:
    decoder = {"decoder_pos_embed": noise(1, 65, 64)}
    torch.save({"model": dict(nano(1).state_dict()) | decoder}, tmp_path / "renamed.pth")
    load_weights(nano(2), tmp_path / "renamed.pth", row_of("mae"))
    for pretraining in ("moco_v3", "supervised", "dino", "dinov2"):
        message = refusal(nano(2), tmp_path / "renamed.pth", row_of(pretraining))
        assert message == f"{tmp_path / 'renamed.pth'} is an MAE checkpoint, decoder included; {BUNDLED} was asked for."
