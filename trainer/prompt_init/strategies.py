"""Prototypes: what the frozen network makes of real images, as the prompt's first value (SPT, section 3).

Images go through the network once, a batch at a time; of each layer's tokens only those are kept that a strategy
asks for. Shapes: M images, B images of a batch, L prompted layers, N patch tokens an image, P prompt_length, D width.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from trainer.model.backbone import Backbone
from trainer.prompt_init.kmeans import kmeans
from trainer.prompt_init.token_stream import TokenStream


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


def sample_tokens(
    candidates: Callable[[Tensor], Tensor], stream: TokenStream, count: int, generator: torch.Generator
) -> Tensor:
    """`count` of all images' candidates a layer ``[L, count, D]``, uniformly, without replacement.

    Only images of which a candidate is drawn are looked at.

    Args:
        candidates: an image's tokens ``[B, N, D]`` to what is drawn from ``[B, n, D]``.
    """
    per_image = candidates(torch.zeros(1, stream.backbone.num_patches, 1)).shape[1]
    total = stream.num_images * per_image
    if count > total:
        raise ValueError(f"prompt_length={count} exceeds the {total} tokens of the images; use more images.")
    drawn_LP = torch.stack([torch.randperm(total, generator=generator)[:count] for _ in range(stream.num_layers)])
    image_LP, slot_LP = drawn_LP // per_image, drawn_LP % per_image
    device = stream.backbone.mean_C11.device
    drawn_LPD = torch.empty(stream.num_layers, count, stream.backbone.embed_dim, device=device)

    def keep(rows_B: Tensor, layer: int, tokens_BND: Tensor) -> None:
        here = torch.isin(image_LP[layer], rows_B).nonzero()[:, 0]
        place = torch.searchsorted(rows_B, image_LP[layer, here])
        drawn_LPD[layer, here] = candidates(tokens_BND)[place, slot_LP[layer, here]].to(drawn_LPD.dtype)

    stream.for_each_batch(image_LP.unique(), keep)
    return drawn_LPD


def _pool_tokens(pool: str, stream: TokenStream, prompt_length: int, generator: torch.Generator) -> Tensor:
    """P of all images' pooled windows, layer by layer."""
    windows = functools.partial(pool_windows, prompt_length=prompt_length, pool=pool)
    return sample_tokens(windows, stream, prompt_length, generator)


def _cluster_tokens(stream: TokenStream, prompt_length: int, generator: torch.Generator) -> Tensor:
    """The P cluster centres of the tokens, layer by layer; of a uniform sample of them where they do not fit."""
    fit = stream.token_bytes // (4 * stream.num_layers * stream.backbone.embed_dim)
    total = stream.num_images * stream.backbone.num_patches
    if prompt_length > min(fit, total):
        raise ValueError(f"kmeans needs as many tokens as clusters, got {min(fit, total)} for {prompt_length}.")
    tokens_LRD = sample_tokens(_flatten, stream, min(fit, total), generator)
    return torch.stack([kmeans(tokens_RD, prompt_length, generator) for tokens_RD in tokens_LRD])


def _flatten(tokens_BND: Tensor) -> Tensor:
    return tokens_BND


PROMPT_INITS: dict[str, Callable[[TokenStream, int, torch.Generator], Tensor]] = {
    "random": functools.partial(sample_tokens, _flatten),
    "mean_pool": functools.partial(_pool_tokens, "mean"),
    "max_pool": functools.partial(_pool_tokens, "max"),
    "kmeans": _cluster_tokens,
}


def uniform_prompt(backbone: Backbone, *, num_layers: int, prompt_length: int, generator: torch.Generator) -> Tensor:
    """VPT's first value ``[L, P, D]``: uniform in ± sqrt(6 / (3 p² + D)), p the patch size (VPT, section 3.2)."""
    bound = math.sqrt(6 / (3 * backbone.patch_size**2 + backbone.embed_dim))
    prompt_LPD = torch.empty(num_layers, prompt_length, backbone.embed_dim)
    return prompt_LPD.uniform_(-bound, bound, generator=generator)
