"""What a weights file says about itself: which backbones it fits, without building a network."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trainer.catalog import BackboneRow
from trainer.model.checkpoint_layout import ANCHOR
from trainer.model.weight_formats import MOCO_PART, check_origin, read_file, read_network
from trainer.model.weights import WeightsError
from trainer.plain_text import counted

JAX_PATCHES = "embedding/kernel"


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightFacts:
    """The shape of the network in a weights file, and what the file tells about its pre-training."""

    path: Path
    num_layers: int
    embed_dim: int
    patch_size: int
    pretraining: str | None
    """As in a row of the catalog; None if the tensors do not tell."""
    has_layer_scale: bool
    """As only DINOv2 has among the catalog's backbones."""
    part: str
    """Which of several networks in the file is used; empty for the only one."""

    def problem(self, row: BackboneRow) -> str | None:
        """Return why the file cannot be the weights of a backbone, or None if it can."""
        try:
            check_origin(self.path, row)
        except WeightsError as error:
            return str(error)

        found = (self.num_layers, self.embed_dim, self.patch_size)
        if found != (row.num_layers, row.embed_dim, row.patch_size):
            return f"it has {counted(self.num_layers, 'layer')}, width {self.embed_dim}, patch {self.patch_size}"

        if self.pretraining not in (None, row.pretraining) or self.has_layer_scale != (row.pretraining == "dinov2"):
            return "it is of another pre-training"
        return None


def read_facts(path: Path) -> WeightFacts:
    """Return the facts of a weights file.

    Raises:
        WeightsError: if the file is damaged, or holds no network that is known.
    """
    return read_file(path, "weights", lambda: _jax_facts(path) if path.name.endswith(".npz") else _torch_facts(path))


def _torch_facts(path: Path) -> WeightFacts:
    network, others = read_network(path)
    names = network.values
    if ANCHOR not in names:
        raise WeightsError(f"{path} holds no ViT under timm's names: it lacks {ANCHOR}.")
    width, _, patch_size, _ = names[ANCHOR].shape

    pretraining = None
    if any(name.startswith("decoder_") for name in names):
        pretraining = "mae"
    elif MOCO_PART in network.part.split("."):
        pretraining = "moco_v3"
    return WeightFacts(
        path=path,
        num_layers=_count_layers(r"blocks\.(\d+)\.", names),
        embed_dim=width,
        patch_size=patch_size,
        pretraining=pretraining,
        has_layer_scale=any(name.endswith(".ls1.gamma") for name in names),
        part=network.part if others else "",
    )


def _jax_facts(path: Path) -> WeightFacts:
    with path.open("rb") as file, np.load(file) as arrays:
        patch_size, _, _, width = arrays[JAX_PATCHES].shape
        num_layers = _count_layers(r"Transformer/encoderblock_(\d+)/", dict.fromkeys(arrays.files))
    return WeightFacts(
        path=path,
        num_layers=num_layers,
        embed_dim=width,
        patch_size=patch_size,
        pretraining="supervised",
        has_layer_scale=False,
        part="",
    )


def _count_layers(pattern: str, names: dict[str, Any]) -> int:
    """Return the number of layers whose tensors match a pattern with the index of a layer."""
    return len({match[1] for name in names if (match := re.match(pattern, name))})
