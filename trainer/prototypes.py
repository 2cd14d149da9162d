"""Prototypes: what the frozen network makes of real images, as the prompt's first value (SPT, section 3).

Shapes: M images, B images of a batch, L prompted layers, N patch tokens an image, P prompt_length, D width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.backbone import Backbone
from trainer.kmeans import kmeans


@dataclass(frozen=True, kw_only=True)
class TokenStream:
    """The patch tokens of many images, a batch at a time."""

    backbone: Backbone
    images_MCHW: Tensor
    num_layers: int
    """Layers looked at, from the first: 1 for shallow prompts, all for deep ones."""
    batch_size: int = 256

    @property
    def num_patches(self) -> int:
        """N, patch tokens an image."""
        return (self.backbone.image_size // self.backbone.patch_size) ** 2

    def batches(self, rows_M: Tensor) -> Iterator[tuple[Tensor, list[Tensor]]]:
        """The rows of a batch ``[B]`` and, for each layer, the tokens ``[B, N, D]`` that enter it."""
        for rows_B in rows_M.split(self.batch_size):
            images_BCHW = self.images_MCHW[rows_B.to(self.images_MCHW.device)]
            yield rows_B, self.backbone.patch_tokens(images_BCHW)[: self.num_layers]


def build_prototypes(stream: TokenStream, *, prompt_init: str, prompt_length: int, seed: int) -> Tensor:
    """Prototypes ``[L, P, D]`` of the stream's images, the same for the same seed.

    Raises:
        ValueError: if there are fewer tokens than prompts, or windows than tokens.
    """
    generator = torch.Generator().manual_seed(seed)
    return PROMPT_INITS[prompt_init](stream, prompt_length, generator)


def pool_windows(tokens_BND: Tensor, prompt_length: int, pool: str) -> Tensor:
    """Each image's tokens cut into P contiguous windows that cover every token exactly once, pooled: ``[B, P, D]``.

    Raises:
        ValueError: if P exceeds N: a window would be empty.
    """
    if prompt_length > tokens_BND.shape[1]:
        raise ValueError(f"prompt_length={prompt_length} exceeds the {tokens_BND.shape[1]} patch tokens of an image.")
    windows = tokens_BND.tensor_split(prompt_length, dim=1)
    return torch.stack([w.mean(dim=1) if pool == "mean" else w.amax(dim=1) for w in windows], dim=1)


def _draw(
    candidates: Callable[[Tensor, int], Tensor], stream: TokenStream, prompt_length: int, generator: torch.Generator
) -> Tensor:
    """P of all images' candidates a layer, uniformly, without replacement; only the images drawn are looked at."""
    per_image = candidates(torch.zeros(1, stream.num_patches, 1), prompt_length).shape[1]
    total = len(stream.images_MCHW) * per_image
    if prompt_length > total:
        raise ValueError(f"prompt_length={prompt_length} exceeds the {total} tokens of the images; use more images.")
    drawn_LP = torch.stack(
        [torch.randperm(total, generator=generator)[:prompt_length] for _ in range(stream.num_layers)]
    )
    image_LP, slot_LP = drawn_LP // per_image, drawn_LP % per_image
    prototypes_LPD = torch.empty(
        stream.num_layers, prompt_length, stream.backbone.embed_dim, device=stream.images_MCHW.device
    )
    for rows_B, layers in stream.batches(image_LP.unique()):
        for layer, tokens_BND in enumerate(layers):
            here = torch.isin(image_LP[layer], rows_B).nonzero()[:, 0]
            place = torch.searchsorted(rows_B, image_LP[layer, here])
            prototypes_LPD[layer, here] = candidates(tokens_BND, prompt_length)[place, slot_LP[layer, here]]
    return prototypes_LPD


def _cluster(stream: TokenStream, prompt_length: int, generator: torch.Generator) -> Tensor:
    """The P cluster centres of all tokens, layer by layer."""
    batches = [layers for _, layers in stream.batches(torch.arange(len(stream.images_MCHW)))]
    return torch.stack(
        [
            kmeans(torch.cat([layers[layer] for layers in batches]).flatten(0, 1), prompt_length, generator)
            for layer in range(stream.num_layers)
        ]
    )


PROMPT_INITS: dict[str, Callable[[TokenStream, int, torch.Generator], Tensor]] = {
    "random": functools.partial(_draw, lambda tokens_BND, _: tokens_BND),
    "mean_pool": functools.partial(_draw, functools.partial(pool_windows, pool="mean")),
    "max_pool": functools.partial(_draw, functools.partial(pool_windows, pool="max")),
    "kmeans": _cluster,
}
