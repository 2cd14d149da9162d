"""Which real image patches a prompt is like: the patch tokens nearest to it, layer by layer.

Shapes: L prompted layers, P prompts, D width, B images of a batch, N patch tokens an image, R tokens of a batch,
K nearest.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.prompt_init.token_stream import TokenStream

EQUAL = 1e-5
"""Squared distances that differ by less than this share of the prompt's squared length count as the same: the same
patch in two images gives tokens that differ in their last bits, by their place in the batch."""
NONE_YET = torch.iinfo(torch.int64).max


@dataclass(frozen=True, kw_only=True, slots=True)
class NearestPatches:
    """The K patch tokens nearest to each prompt, the nearest first; on the CPU."""

    image_LPK: Tensor
    """int64, rows of the stream's images."""
    patch_LPK: Tensor
    """int64, counted from the top left, row by row."""
    distance_LPK: Tensor
    """float64, squared Euclidean."""


def nearest_patches(prompt_LPD: Tensor, stream: TokenStream, *, nearest: int = 3) -> NearestPatches:
    """The tokens that are nearest to each prompt among all that enter its layer, by squared Euclidean distance.

    Images go through the network once, a batch at a time; memory holds one layer's tokens of one batch. Of tokens
    equally near the one of the earlier image comes first, of one image the earlier patch, whatever the batches are.

    Raises:
        ValueError: if the stream has fewer tokens than asked for, or not the prompt's layers.
    """
    num_layers, prompt_length, _ = prompt_LPD.shape
    per_image = stream.backbone.num_patches
    if stream.num_layers != num_layers:
        raise ValueError(f"the prompt has {num_layers} layers, the stream {stream.num_layers}.")
    if nearest > (total := stream.num_images * per_image):
        raise ValueError(f"{nearest} nearest tokens were asked for, and there are {total}; use more images.")
    device = stream.backbone.mean_C11.device
    # In double: a difference of large squares would lose what makes one token nearer than another.
    wide_LPD = prompt_LPD.to(device, torch.float64)
    squares_LP1 = wide_LPD.square().sum(dim=2, keepdim=True)
    # A token's rank is one whole number, its distance in steps and then its place, so that no two are equal.
    rank_LPK = torch.full((num_layers, prompt_length, nearest), NONE_YET, device=device)
    distance_LPK = torch.full_like(rank_LPK, torch.inf, dtype=torch.float64)

    def compare(rows_B: Tensor, layer: int, tokens_BND: Tensor) -> None:
        tokens_RD = tokens_BND.flatten(0, 1).double()
        prompt_PD, squares_P1 = wide_LPD[layer], squares_LP1[layer]
        distance_PR = squares_P1 - 2 * prompt_PD @ tokens_RD.T + tokens_RD.square().sum(dim=1)
        distance_PR.clamp_(min=0)
        place_R = (rows_B.to(device)[:, None] * per_image + torch.arange(per_image, device=device)).flatten()
        steps_PR = (distance_PR / (EQUAL * squares_P1).clamp(min=1e-9)).clamp(max=NONE_YET // (2 * total)).long()
        found_PR = steps_PR * total + place_R
        # Told again of images (where memory ended), it forgets what it knew of them.
        known_PK = rank_LPK[layer]
        again_PK = torch.isin(known_PK % total // per_image, rows_B.to(device)) & (known_PK != NONE_YET)
        rank_PX = torch.cat([known_PK.masked_fill(again_PK, NONE_YET), found_PR], dim=1)
        best_PK = rank_PX.topk(nearest, dim=1, largest=False, sorted=True)
        rank_LPK[layer] = best_PK.values
        distance_LPK[layer] = torch.cat([distance_LPK[layer], distance_PR], dim=1).gather(1, best_PK.indices)

    stream.for_each_batch(torch.arange(stream.num_images), compare)
    place_LPK = (rank_LPK % total).cpu()
    return NearestPatches(
        image_LPK=place_LPK // per_image, patch_LPK=place_LPK % per_image, distance_LPK=distance_LPK.cpu()
    )
