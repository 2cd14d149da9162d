"""The formats in which ViT weights are published, read into timm's names without running code from a file.

MAE ``.pth`` (key `model`), MoCo v3 ``.pth.tar`` (key `state_dict`, `module.base_encoder.` or `module.`), timm's
``.safetensors`` and ``.pth``, JAX ``.npz``. Every key of a file is accounted for.
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
"""What pre-training leaves in a file beside the network: classifier, projector, MAE's decoder, DINOv2's mask."""
MOCO_PREFIX = "module.base_encoder."
BESIDE_MOCO = ("module.momentum_encoder.", "module.predictor.")


def load_weights(vit: VisionTransformer, path: Path, row: BackboneRow) -> str:
    """Fill a network from a file of any published format.

    Position embeddings of another image size are resampled (bicubic, as timm does).

    Returns:
        The file's SHA-256.

    Raises:
        WeightsError: if the file is damaged, of an unknown format, or of another network, with what was expected and
            found. The network's values are then undefined.
    """
    _check_origin(path, row)
    try:
        if path.name.endswith(".npz"):
            _load_jax(vit, path)
        else:
            _load_state(vit, _read_state(path, row), path)
    except WeightsError:
        raise
    except Exception as error:  # a damaged file breaks its reader in more ways than can be listed
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        if isinstance(error, pickle.UnpicklingError):
            reason = "it is damaged, or holds other things than tensors, which could run code and are not loaded"
        raise WeightsError(f"{path} is no whole file of {row.name}: {reason}. Download it again.") from error
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_origin(path: Path, row: BackboneRow) -> None:
    """A file whose very name or format says that it is of another pre-training is not taken."""
    if not path.name.endswith(SUFFIXES):
        raise WeightsError(f"{path} must end in {', '.join(SUFFIXES)}.")
    others = [other.name for other in BACKBONES.values() if other.published_as == path.name]
    if others and row.name not in others:
        raise WeightsError(f"{path} is published as the weights of {others[0]}; {row.name} was asked for.")
    if path.name.endswith(".npz") and row.pretraining != "supervised":
        raise WeightsError(f"{path} is a JAX file of a supervised ViT; {row.name} was asked for.")


def _read_state(path: Path, row: BackboneRow) -> dict[str, Tensor]:
    """The network's tensors under timm's names."""
    state: dict[str, Tensor]
    if path.name.endswith(".safetensors"):
        state = safetensors.torch.load_file(path)
    else:
        with torch.serialization.safe_globals([argparse.Namespace]):  # MAE keeps its arguments beside the weights
            loaded = torch.load(path, map_location="cpu", weights_only=True)
        for wrapper in ("model", "state_dict"):
            loaded = loaded[wrapper] if isinstance(loaded, dict) and wrapper in loaded else loaded
        if not isinstance(loaded, dict) or not all(
            isinstance(name, str) and isinstance(value, Tensor) for name, value in loaded.items()
        ):
            raise WeightsError(f"{path} must hold tensors by name, bare or under `model` or `state_dict`.")
        state = loaded
    if any(name.startswith(MOCO_PREFIX) for name in state):
        if row.pretraining != "moco_v3":
            raise WeightsError(f"{path} is a MoCo v3 checkpoint; {row.name} was asked for.")
        state = {name: value for name, value in state.items() if not name.startswith(BESIDE_MOCO)}
    if any(name.startswith("decoder_") for name in state) and row.pretraining != "mae":
        raise WeightsError(f"{path} is an MAE checkpoint, decoder included; {row.name} was asked for.")
    for prefix in (MOCO_PREFIX, "module."):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return {name: value.float() for name, value in state.items() if not name.startswith(NOT_THE_NETWORK)}


def _load_state(vit: VisionTransformer, state: dict[str, Tensor], path: Path) -> None:
    expected = vit.state_dict()
    if (positions := state.get("pos_embed")) is not None and _fits_resampled(positions, expected["pos_embed"]):
        state["pos_embed"] = resample_abs_pos_embed(positions, list(vit.patch_embed.grid_size))
    problems = [
        f"{name} must be {list(expected[name].shape)}, found {list(state[name].shape)}"
        for name in expected
        if name in state and state[name].shape != expected[name].shape
    ]
    for names, what in (
        (expected.keys() - state.keys(), "lacks"),
        (state.keys() - expected.keys(), "has, unexpected,"),
    ):
        if names:
            shown = ", ".join(sorted(names)[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            problems.append(f"it {what} {shown}")
    if problems:
        more = f" (and {len(problems) - 4} more)" if len(problems) > 4 else ""
        raise WeightsError(f"{path} does not fit {_describe(vit)}: {'; '.join(problems[:4])}{more}.")
    vit.load_state_dict(state)


def _fits_resampled(positions: Tensor, wanted: Tensor) -> bool:
    """Whether positions are those of another image size: CLS and a square of patches, of the same width."""
    if positions.ndim != 3 or positions.shape == wanted.shape or positions.shape[2] != wanted.shape[2]:
        return False
    return math.isqrt(positions.shape[1] - 1) ** 2 == positions.shape[1] - 1


def _load_jax(vit: VisionTransformer, path: Path) -> None:
    with path.open("rb") as file, np.load(file) as arrays:
        sizes = {name: arrays[name].size for name in arrays.files}
        places = [arrays[name].shape for name in arrays.files if name.endswith("posembed_input/pos_embedding")]
    expected = {name: value.numel() for name, value in vit.state_dict().items()}
    # timm would resample positions in another way than those of other formats: it is given room for all of them.
    own = vit.pos_embed
    if places:
        vit.pos_embed = nn.Parameter(torch.zeros(places[0]))
    with path.open("rb") as file:  # by its name, timm would leave it open where it raises
        vit.load_pretrained(file)
    state, vit.pos_embed = vit.state_dict(), own
    positions = ("Transformer/posembed_input/", "pos_embed")
    found = sum(size for name, size in sizes.items() if not name.startswith(("head/", "pre_logits/", *positions)))
    wanted = sum(size for name, size in expected.items() if name not in positions)
    if found != wanted:
        raise WeightsError(f"{path} holds {found:,} numbers; {_describe(vit)} has {wanted:,}.")
    _load_state(vit, state, path)


def _describe(vit: VisionTransformer) -> str:
    patch = vit.patch_embed.patch_size[0]
    return f"a ViT of {len(vit.blocks)} layers, width {vit.embed_dim}, patches of {patch}"
