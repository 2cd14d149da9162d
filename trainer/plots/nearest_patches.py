"""Nearest patches: the real image patches whose tokens are nearest to each prompt, layer by layer.

Shapes: L prompted layers, P prompts, D width, B images of a batch, N patch tokens per image, R tokens of a batch,
K nearest, X candidates.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.plain_text import counted
from trainer.prompt_init.token_stream import TokenStream

EQUAL = 1e-5
"""Squared distances count as equal if they differ by less than this fraction of the prompt's squared length.

The tokens of one patch in two images differ in their last bits, depending on their position in the batch.
"""
NONE_YET = torch.iinfo(torch.int64).max
"""Rank of a free slot: larger than that of any token."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NearestPatches:
    """The K patch tokens nearest to each prompt, the nearest first. All tensors are on the CPU."""

    image_LPK: Tensor
    """int64, rows of the stream's images."""
    patch_LPK: Tensor
    """int64, counted from the top left, row by row."""
    distance_LPK: Tensor
    """float64, squared Euclidean distance."""


def nearest_patches(prompt_LPD: Tensor, stream: TokenStream, *, nearest: int = 3) -> NearestPatches:
    """Return the tokens nearest to each prompt among all that enter its layer, by squared Euclidean distance.

    Images go through the network once, a batch at a time. Memory holds one layer's tokens of one batch. Of tokens at
    equal distance, the one of the earlier image comes first, and within an image the earlier patch. So the result does
    not depend on the batches.

    Raises:
        ValueError: if the stream has fewer tokens than asked for, or another number of layers than the prompt.
    """
    num_layers, prompt_length, _ = prompt_LPD.shape
    num_patches = stream.backbone.num_patches
    num_tokens = stream.num_images * num_patches
    if stream.num_layers != num_layers:
        raise ValueError(f"the prompt has {counted(num_layers, 'layer')}, the stream {stream.num_layers}.")
    if nearest > num_tokens:
        raise ValueError(
            f"{counted(nearest, 'nearest token was', 'nearest tokens were')} asked for, and there are {num_tokens}; "
            "use more images."
        )

    # In double: the distance is a difference of large squares, and float32 would lose what tells tokens apart.
    device = stream.backbone.mean_C11.device
    wide_LPD = prompt_LPD.to(device, torch.float64)
    squares_LP1 = wide_LPD.square().sum(dim=2, keepdim=True)

    # The rank of a token is one whole number: its distance in steps of EQUAL, then its index. No two are equal.
    rank_LPK = torch.full((num_layers, prompt_length, nearest), NONE_YET, device=device)
    distance_LPK = torch.full_like(rank_LPK, torch.inf, dtype=torch.float64)

    def compare(rows_B: Tensor, layer: int, tokens_BND: Tensor) -> None:
        """Keep the nearest tokens of those kept so far and those of a batch."""
        tokens_RD = tokens_BND.flatten(0, 1).double()
        prompt_PD = wide_LPD[layer]
        squares_P1 = squares_LP1[layer]
        distance_PR = squares_P1 - 2 * prompt_PD @ tokens_RD.T + tokens_RD.square().sum(dim=1)
        distance_PR.clamp_(min=0)

        index_R = (rows_B.to(device)[:, None] * num_patches + torch.arange(num_patches, device=device)).flatten()
        # Clamped, so that a rank fits into int64 however far a token is.
        steps_PR = (distance_PR / (EQUAL * squares_P1).clamp(min=1e-9)).clamp(max=NONE_YET // (2 * num_tokens)).long()
        rank_PR = steps_PR * num_tokens + index_R

        # If memory runs out, a batch comes again in parts: its tokens are dropped first, or they would count twice.
        kept_PK = rank_LPK[layer]
        is_repeated_PK = torch.isin(kept_PK % num_tokens // num_patches, rows_B.to(device)) & (kept_PK != NONE_YET)
        rank_PX = torch.cat([kept_PK.masked_fill(is_repeated_PK, NONE_YET), rank_PR], dim=1)

        best_PK = rank_PX.topk(nearest, dim=1, largest=False, sorted=True)
        rank_LPK[layer] = best_PK.values
        distance_LPK[layer] = torch.cat([distance_LPK[layer], distance_PR], dim=1).gather(1, best_PK.indices)

    stream.for_each_batch(torch.arange(stream.num_images), compare)
    index_LPK = (rank_LPK % num_tokens).cpu()
    return NearestPatches(
        image_LPK=index_LPK // num_patches, patch_LPK=index_LPK % num_patches, distance_LPK=distance_LPK.cpu()
    )
