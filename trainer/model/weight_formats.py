"""The formats in which ViT weights are published, converted to timm's names without running code from a file.

MAE ``.pth`` (key `model`), MoCo v3 ``.pth.tar`` (key `state_dict`, prefix `module.base_encoder.` or `module.`), timm's
``.safetensors`` and ``.pth``, JAX ``.npz``. Every key of a file is accounted for: it is loaded, it has a prefix in
`NOT_THE_NETWORK`, or it is an error.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import pickle
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from trainer.catalog import BACKBONES, BackboneRow
from trainer.model.weights import SUFFIXES, WeightsError

NOT_THE_NETWORK = ("head.", "head_dist.", "pre_logits.", "decoder_", "mask_token")
"""Prefixes of what pre-training stores beside the network: classifier, projector, MAE's decoder, DINOv2's mask."""
MOCO_PREFIX = "module.base_encoder."
BESIDE_MOCO = ("module.momentum_encoder.", "module.predictor.")
MAX_PROBLEMS = 4
"""Number of misfits that an error message lists."""


def load_weights(vit: VisionTransformer, path: Path, row: BackboneRow) -> str:
    """Load a file of any published format into a network.

    Position embeddings of another image size are resampled (bicubic, as timm does).

    Returns:
        The file's SHA-256.

    Raises:
        WeightsError: if the file is damaged, has an unknown format, or belongs to another network. The message names
            what was expected and what was found. The network's values are then undefined.
    """
    _check_origin(path, row)

    try:
        if path.name.endswith(".npz"):
            _load_jax(vit, path)
        else:
            _load_state(vit, _read_state(path, row), path)
    except WeightsError:
        raise
    # A damaged file makes its reader raise more kinds of errors than can be listed.
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        if isinstance(error, pickle.UnpicklingError):
            reason = "it is damaged, or holds other things than tensors, which could run code and are not loaded"
        raise WeightsError(f"{path} is not a complete file of {row.name}: {reason}. Download it again.") from error

    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_origin(path: Path, row: BackboneRow) -> None:
    """Raise WeightsError if the file's name or format alone shows that it belongs to another pre-training."""
    if not path.name.endswith(SUFFIXES):
        raise WeightsError(f"{path} must end in {', '.join(SUFFIXES)}.")

    published_rows = [candidate.name for candidate in BACKBONES.values() if candidate.published_as == path.name]
    if published_rows and row.name not in published_rows:
        raise WeightsError(f"{path} is published as the weights of {published_rows[0]}; {row.name} was asked for.")

    if path.name.endswith(".npz") and row.pretraining != "supervised":
        raise WeightsError(f"{path} is a JAX file of a supervised ViT; {row.name} was asked for.")


def _read_state(path: Path, row: BackboneRow) -> dict[str, Tensor]:
    """Return the network's tensors under timm's names."""
    state = safetensors.torch.load_file(path) if path.name.endswith(".safetensors") else _read_pickled_state(path)

    # The keys tell which pre-training wrote the file, whatever its name.
    if any(name.startswith(MOCO_PREFIX) for name in state):
        if row.pretraining != "moco_v3":
            raise WeightsError(f"{path} is a MoCo v3 checkpoint; {row.name} was asked for.")
        state = {name: value for name, value in state.items() if not name.startswith(BESIDE_MOCO)}
    if any(name.startswith("decoder_") for name in state) and row.pretraining != "mae":
        raise WeightsError(f"{path} is an MAE checkpoint, decoder included; {row.name} was asked for.")

    # The longer prefix first: both begin with "module.".
    for prefix in (MOCO_PREFIX, "module."):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return {name: value.float() for name, value in state.items() if not name.startswith(NOT_THE_NETWORK)}


def _read_pickled_state(path: Path) -> dict[str, Tensor]:
    # MAE stores its command-line arguments beside the weights; all other classes stay forbidden.
    with torch.serialization.safe_globals([argparse.Namespace]):
        content = torch.load(path, map_location="cpu", weights_only=True)

    for wrapper in ("model", "state_dict"):
        if isinstance(content, dict) and wrapper in content:
            content = content[wrapper]

    is_state = isinstance(content, dict) and all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    )
    if not is_state:
        raise WeightsError(f"{path} must hold tensors by name, bare or under `model` or `state_dict`.")
    state: dict[str, Tensor] = content
    return state


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
    vit.load_state_dict(state)


def _list_names(names: set[str]) -> str:
    """Return the first three names and the number of the rest."""
    text = ", ".join(sorted(names)[:3])
    return f"{text} and {len(names) - 3} more" if len(names) > 3 else text


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
        raise WeightsError(f"{path} holds {num_found:,} numbers; {_describe(vit)} has {num_expected:,}.")

    _load_state(vit, state, path)


def _describe(vit: VisionTransformer) -> str:
    patch = vit.patch_embed.patch_size[0]
    return f"a ViT of {len(vit.blocks)} layers, width {vit.embed_dim}, patches of {patch}"
