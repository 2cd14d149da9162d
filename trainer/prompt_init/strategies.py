"""Prototypes: what the frozen network makes of real images, as the prompt's first value (SPT, section 3).

Images go through the network once, a batch at a time; of each layer's tokens only those are kept that a strategy
asks for. Shapes: M images, B images of a batch, L prompted layers, N patch tokens an image, P prompt_length, D width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.model.backbone import Backbone
from trainer.model.execution import in_parts
from trainer.prompt_init.kmeans import kmeans

TOKEN_BYTES = 5 * 2**28
"""Memory for the tokens that k-means looks at, all layers together: 1.25 GiB. 36,408 tokens a layer of ViT-B."""


@dataclass(frozen=True, kw_only=True)
class TokenStream:
    """The patch tokens of many images, a batch at a time."""

    backbone: Backbone
    num_images: int
    images_of: Callable[[Tensor], Tensor]
    """The uint8 images ``[B, 3, H, W]``, on the backbone's device, of rows ``[B]``."""
    num_layers: int
    """Layers looked at, from the first: 1 for shallow prompts, all for deep ones."""
    batch_size: int = 64
    token_bytes: int = TOKEN_BYTES

    def look(self, rows_M: Tensor, see: Callable[[Tensor, int, Tensor], None]) -> None:
        """Send rows of images through the network, and show the tokens ``[B, N, D]`` that enter each layer.

        Args:
            see: told the rows of a batch ``[B]``, the layer and its tokens; where memory ends, told again of a part.
        """

        def pass_through(rows_B: Tensor) -> None:
            tokens = self.backbone.patch_tokens(self.images_of(rows_B))
            for layer, tokens_BND in zip(range(self.num_layers), tokens, strict=False):
                see(rows_B, layer, tokens_BND)

        in_parts(pass_through, rows_M, self.batch_size, "prototypes")


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


def draw(candidates: Callable[[Tensor], Tensor], stream: TokenStream, count: int, generator: torch.Generator) -> Tensor:
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

    stream.look(image_LP.unique(), keep)
    return drawn_LPD


def _pooled(pool: str, stream: TokenStream, prompt_length: int, generator: torch.Generator) -> Tensor:
    """P of all images' pooled windows, layer by layer."""
    windows = functools.partial(pool_windows, prompt_length=prompt_length, pool=pool)
    return draw(windows, stream, prompt_length, generator)


def _cluster(stream: TokenStream, prompt_length: int, generator: torch.Generator) -> Tensor:
    """The P cluster centres of the tokens, layer by layer; of a uniform sample of them where they do not fit."""
    fit = stream.token_bytes // (4 * stream.num_layers * stream.backbone.embed_dim)
    total = stream.num_images * stream.backbone.num_patches
    if prompt_length > min(fit, total):
        raise ValueError(f"kmeans needs as many tokens as clusters, got {min(fit, total)} for {prompt_length}.")
    tokens_LRD = draw(_tokens, stream, min(fit, total), generator)
    return torch.stack([kmeans(tokens_RD, prompt_length, generator) for tokens_RD in tokens_LRD])


def _tokens(tokens_BND: Tensor) -> Tensor:
    return tokens_BND


PROMPT_INITS: dict[str, Callable[[TokenStream, int, torch.Generator], Tensor]] = {
    "random": functools.partial(draw, _tokens),
    "mean_pool": functools.partial(_pooled, "mean"),
    "max_pool": functools.partial(_pooled, "max"),
    "kmeans": _cluster,
}
