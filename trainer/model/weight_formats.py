"""The formats in which ViT weights are published, converted to timm's names without running code from a file.

MAE ``.pth``, MoCo v3 ``.pth.tar``, timm's ``.safetensors`` and ``.pth``, JAX ``.npz``. Every name of the network in a
file is accounted for: it is loaded, it has a prefix in `NOT_THE_NETWORK`, or it is an error. `checkpoint_layout` finds
the network among keys and prefixes.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import math
import pickle
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import safetensors.torch
import torch
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from trainer.catalog import BACKBONES, BackboneRow
from trainer.model.checkpoint_layout import FoundNetwork, choose_network, find_networks
from trainer.model.weights import SUFFIXES, WeightsError
from trainer.plain_text import counted

log = logging.getLogger(__name__)

T = TypeVar("T")

NOT_THE_NETWORK = ("head.", "head_dist.", "pre_logits.", "decoder_", "mask_token")
"""Prefixes of what pre-training stores beside the network: classifier, projector, MAE's decoder, DINOv2's mask."""
NOT_WEIGHTS = {
    b"version https://git-lfs": "it is a pointer of Git LFS and not the file itself (run `git lfs pull`)",
    b"<!doctype": "it is a web page",
    b"<html": "it is a web page",
    b"<?xml": "it is a web page",
    b"{": "it is text",
}
"""What a download may leave instead of weights: the first bytes, and the reason to give."""
UNSAFE = "it is damaged, or holds other things than tensors, which could run code and are not loaded"
MOCO_PART = "base_encoder"
MAX_PROBLEMS = 4
"""Number of misfits that an error message lists."""


@dataclass(frozen=True, slots=True)
class LoadedWeights:
    """What identifies the weights of a network."""

    sha256: str
    """SHA-256 of the file; of that and `part`, if versions before took another part."""
    part: str
    """Which of several networks in the file was loaded, such as `state_dict_ema`. Empty if it holds one."""


def load_weights(vit: VisionTransformer, path: Path, row: BackboneRow) -> LoadedWeights:
    """Load a file of any published format into a network.

    Position embeddings of another image size are resampled (bicubic, as timm does).

    Raises:
        WeightsError: if the file is damaged, has an unknown format, belongs to another network, or holds NaN. The
            message names what was expected and what was found. The network's values are then undefined.
    """
    check_origin(path, row)

    def load() -> str:
        if path.name.endswith(".npz"):
            _load_jax(vit, path)
            return ""
        state, part = _read_state(path, row)
        _load_state(vit, state, path)
        return part

    part = read_file(path, row.name, load)
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()

    # Versions before took another network of such a file. Prototypes and checkpoints of that one have its SHA-256.
    if part and MOCO_PART not in part.split("."):
        sha256 = hashlib.sha256(f"{sha256} {part}".encode()).hexdigest()
    return LoadedWeights(sha256, part)


def read_file(path: Path, name: str, read: Callable[[], T]) -> T:
    """Return what `read` makes of a weights file.

    Args:
        name: what the file should hold.

    Raises:
        WeightsError: if the file is damaged, or `read` raises any error.
    """
    try:
        _check_first_bytes(path)
        return read()
    except WeightsError:
        raise
    # A damaged file makes its reader raise more kinds of errors than can be listed.
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        if isinstance(error, pickle.UnpicklingError):
            reason = UNSAFE
        raise WeightsError(f"{path} is not a complete file of {name}: {reason}. Download it again.") from error


def _check_first_bytes(path: Path) -> None:
    """Raise ValueError if a file holds something else than weights that is found in their place."""
    with path.open("rb") as file:
        start = file.read(64).lstrip().lower()
    if not start:
        raise ValueError("it is empty")
    for beginning, reason in NOT_WEIGHTS.items():
        if start.startswith(beginning):
            raise ValueError(reason)


def check_origin(path: Path, row: BackboneRow) -> None:
    """Raise WeightsError if the file's name or format alone shows that it belongs to another pre-training."""
    if not path.name.endswith(SUFFIXES):
        raise WeightsError(f"{path} must end in {', '.join(SUFFIXES)}.")

    published_rows = [candidate.name for candidate in BACKBONES.values() if candidate.published_as == path.name]
    if published_rows and row.name not in published_rows:
        raise WeightsError(f"{path} is published as the weights of {published_rows[0]}; {row.name} was asked for.")

    if path.name.endswith(".npz") and row.pretraining != "supervised":
        raise WeightsError(f"{path} is a JAX file of a supervised ViT; {row.name} was asked for.")


def _read_state(path: Path, row: BackboneRow) -> tuple[dict[str, Tensor], str]:
    """Return the network's tensors under timm's names, and which of several networks they are; "" for the only one."""
    network, others = read_network(path)
    parts = network.part.split(".")

    # The names tell which pre-training wrote the file, whatever the file is called.
    if MOCO_PART in parts and row.pretraining != "moco_v3":
        raise WeightsError(f"{path} is a MoCo v3 checkpoint; {row.name} was asked for.")
    if any(name.startswith("decoder_") for name in network.values) and row.pretraining != "mae":
        raise WeightsError(f"{path} is an MAE checkpoint, decoder included; {row.name} was asked for.")

    state = {name: value for name, value in network.values.items() if not name.startswith(NOT_THE_NETWORK)}
    if not all(isinstance(value, Tensor) for value in state.values()):
        raise _no_tensors(path)

    if others and MOCO_PART not in parts:
        log.warning("%s also holds %s; %s is used.", path, " and ".join(others), network.part)
    return {name: value.float() for name, value in state.items()}, network.part if others else ""


def read_network(path: Path) -> tuple[FoundNetwork, list[str]]:
    """Return the network in a file, and the parts of the file that hold others.

    Raises:
        WeightsError: if the file holds no tensors by name, or several networks and nothing tells which one to use.
    """
    if path.name.endswith(".safetensors"):
        content: object = safetensors.torch.load_file(path)
    else:
        # MAE stores its command-line arguments beside the weights; all other classes stay forbidden.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)

    networks = find_networks(content)
    if not networks:
        return FoundNetwork(part="", values=_tensors_by_name(content, path)), []

    network = choose_network(networks)
    if network is None:
        parts = " and ".join(sorted(found.part or "one without a prefix" for found in networks))
        raise WeightsError(f"{path} holds several networks: {parts}. Save the one to use in a file of its own.")
    return network, sorted(found.part for found in networks if found is not network)


def _tensors_by_name(content: object, path: Path) -> dict[str, Any]:
    """Return the tensors of a file that has no patch embedding, for an error message that names them."""
    for wrapper in ("model", "state_dict"):
        if isinstance(content, dict) and wrapper in content:
            content = content[wrapper]

    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    ):
        raise _no_tensors(path)
    return content


def _no_tensors(path: Path) -> WeightsError:
    return WeightsError(f"{path} must hold tensors by name, bare or under `model` or `state_dict`.")


def _load_state(vit: VisionTransformer, state: dict[str, Tensor], path: Path) -> None:
    expected = vit.state_dict()

    positions = state.get("pos_embed")
    if positions is not None and _is_resizable(positions, expected["pos_embed"]):
        state["pos_embed"] = resample_abs_pos_embed(positions, list(vit.patch_embed.grid_size))

    problems = [
        f"{name} must be {list(expected[name].shape)}, found {list(state[name].shape)}"
        for name in expected
        if name in state and state[name].shape != expected[name].shape
    ]
    missing = expected.keys() - state.keys()
    if missing:
        problems.append(f"it lacks {_list_names(missing)}")
    unexpected = state.keys() - expected.keys()
    if unexpected:
        problems.append(f"it has, unexpected, {_list_names(unexpected)}")

    if problems:
        num_more = len(problems) - MAX_PROBLEMS
        more = f" (and {num_more} more)" if num_more > 0 else ""
        raise WeightsError(f"{path} does not fit {_describe(vit)}: {'; '.join(problems[:MAX_PROBLEMS])}{more}.")

    not_finite = [name for name, value in state.items() if not value.isfinite().all()]
    if not_finite:
        raise WeightsError(
            f"{path} holds NaN or infinite values in {_list_names(not_finite)}. The training that made it diverged, or "
            "the file is damaged: use an earlier checkpoint, or download it again."
        )
    vit.load_state_dict(state)


def _list_names(names: Iterable[str]) -> str:
    """Return the first three names and the number of the rest."""
    ordered = sorted(names)
    text = ", ".join(ordered[:3])
    return f"{text} and {len(ordered) - 3} more" if len(ordered) > 3 else text


def _is_resizable(positions: Tensor, expected: Tensor) -> bool:
    """Return whether positions are those of another image size: CLS and a square of patches, of the same width."""
    if positions.ndim != 3 or positions.shape == expected.shape or positions.shape[2] != expected.shape[2]:
        return False
    return math.isqrt(positions.shape[1] - 1) ** 2 == positions.shape[1] - 1


def _load_jax(vit: VisionTransformer, path: Path) -> None:
    with path.open("rb") as file, np.load(file) as arrays:
        array_sizes = {name: arrays[name].size for name in arrays.files}
        position_shapes = [arrays[name].shape for name in arrays.files if name.endswith("posembed_input/pos_embedding")]
    expected_sizes = {name: value.numel() for name, value in vit.state_dict().items()}

    # timm resamples the positions of this format in another way than those of the others. With room for all of them it
    # loads them unchanged, and `_load_state` resamples them.
    own_positions = vit.pos_embed
    if position_shapes:
        vit.pos_embed = nn.Parameter(torch.zeros(position_shapes[0]))

    # Given a name instead of an open file, timm leaves the file open when it raises.
    with path.open("rb") as file:
        vit.load_pretrained(file)
    state = vit.state_dict()
    vit.pos_embed = own_positions

    # timm ignores arrays that it does not expect: count the numbers to see that none is left over or repeated.
    position_names = ("Transformer/posembed_input/", "pos_embed")
    beside_network = ("head/", "pre_logits/", *position_names)
    num_found = sum(size for name, size in array_sizes.items() if not name.startswith(beside_network))
    num_expected = sum(size for name, size in expected_sizes.items() if name not in position_names)
    if num_found != num_expected:
        raise WeightsError(f"{path} holds {counted(num_found, 'number')}; {_describe(vit)} has {num_expected:,}.")

    _load_state(vit, state, path)


def _describe(vit: VisionTransformer) -> str:
    patch = vit.patch_embed.patch_size[0]
    return f"a ViT of {counted(len(vit.blocks), 'layer')}, width {vit.embed_dim}, patches of {patch}"
