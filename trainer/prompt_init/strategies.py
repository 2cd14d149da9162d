"""Prototypes: patch tokens of real images in the frozen network, as the prompt's initial value (SPT, section 3).

Images pass through the network a batch at a time: once, or once for each group of layers whose tokens are clustered
together. Only the tokens that a strategy draws or clusters are kept.
Shapes: M images, B images of a batch, L prompted layers, l layers of a group, N patch tokens an image, S samples,
R tokens of a layer, P prompt_length, D width.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from trainer.model.backbone import Backbone
from trainer.model.gpu_kernels import gpu_arithmetic
from trainer.plain_text import counted
from trainer.prompt_init.batched_kmeans import batched_kmeans
from trainer.prompt_init.kmeans import kmeans
from trainer.prompt_init.token_stream import TokenStream


def build_prototypes(stream: TokenStream, *, prompt_init: str, prompt_length: int, seed: int) -> Tensor:
    """Return the prototypes ``[L, P, D]`` of the stream's images. The same seed gives the same prototypes.

    Raises:
        ValueError: if there are fewer tokens than prompts, or fewer patch tokens of an image than windows.
    """
    generator = torch.Generator().manual_seed(seed)
    return PROMPT_INITS[prompt_init](stream, prompt_length, generator)


def pool_windows(tokens_BND: Tensor, prompt_length: int, pool: str) -> Tensor:
    """Return the pooled windows ``[B, P, D]`` of each image's tokens.

    The P windows are contiguous and cover every token exactly once.

    Args:
        pool: ``mean`` or ``max``.

    Raises:
        ValueError: if P exceeds N, because a window would be empty.
    """
    num_tokens = tokens_BND.shape[1]
    if prompt_length > num_tokens:
        raise ValueError(f"prompt_length={prompt_length} exceeds the {counted(num_tokens, 'patch token')} of an image.")

    windows = tokens_BND.tensor_split(prompt_length, dim=1)
    if pool == "mean":
        pooled = [window_BnD.mean(dim=1) for window_BnD in windows]
    else:
        pooled = [window_BnD.amax(dim=1) for window_BnD in windows]
    return torch.stack(pooled, dim=1)


def sample_tokens(
    candidates: Callable[[Tensor], Tensor], stream: TokenStream, num_samples: int, generator: torch.Generator
) -> Tensor:
    """Return `num_samples` candidates per layer ``[L, S, D]``, drawn uniformly without replacement from all images.

    Only images from which a candidate is drawn pass through the network.

    Args:
        candidates: maps the tokens ``[B, N, D]`` of images to their candidates ``[B, n, D]``.

    Raises:
        ValueError: if there are fewer candidates than samples.
    """
    # The number of candidates is known from a dummy image, before any image is read.
    num_per_image = candidates(torch.zeros(1, stream.backbone.num_patches, 1)).shape[1]
    num_candidates = stream.num_images * num_per_image
    if num_samples > num_candidates:
        raise ValueError(
            f"prompt_length={num_samples} exceeds the {counted(num_candidates, 'token')} of the images; use more "
            "images."
        )

    # Draw all positions first: candidate i belongs to image i // num_per_image.
    drawn_LS = torch.stack(
        [torch.randperm(num_candidates, generator=generator)[:num_samples] for _ in range(stream.num_layers)]
    )
    image_LS = drawn_LS // num_per_image
    slot_LS = drawn_LS % num_per_image

    device = stream.backbone.mean_C11.device
    drawn_LSD = torch.empty(stream.num_layers, num_samples, stream.backbone.embed_dim, device=device)

    def keep_drawn(rows_B: Tensor, layer: int, tokens_BND: Tensor) -> None:
        # The samples whose image is in this batch, and the image's row in it.
        samples_n = torch.isin(image_LS[layer], rows_B).nonzero()[:, 0]
        batch_rows_n = torch.searchsorted(rows_B, image_LS[layer, samples_n])
        chosen_nD = candidates(tokens_BND)[batch_rows_n, slot_LS[layer, samples_n]]
        drawn_LSD[layer, samples_n] = chosen_nD.to(drawn_LSD.dtype)

    # `unique` sorts, as `searchsorted` needs it.
    stream.for_each_batch(image_LS.unique(), keep_drawn)
    return drawn_LSD


def _pool_tokens(pool: str, stream: TokenStream, prompt_length: int, generator: torch.Generator) -> Tensor:
    """Return P of all images' pooled windows, layer by layer."""
    windows = functools.partial(pool_windows, prompt_length=prompt_length, pool=pool)
    return sample_tokens(windows, stream, prompt_length, generator)


def _cluster_tokens(stream: TokenStream, prompt_length: int, generator: torch.Generator) -> Tensor:
    """Return P cluster centres of the tokens, layer by layer.

    Which tokens are clustered is up to the stream: all of some layers at a time, or a uniform sample of all layers.
    """
    num_tokens = stream.num_clustered
    if prompt_length > num_tokens:
        raise ValueError(f"kmeans needs as many tokens as clusters, got {num_tokens} for {prompt_length}.")

    device = stream.backbone.mean_C11.device
    if stream.layers_at_once:
        starts = range(0, stream.num_layers, stream.layers_at_once)
        groups = [range(start, min(start + stream.layers_at_once, stream.num_layers)) for start in starts]
        with gpu_arithmetic("fp32", device):
            # No name for the tokens: those of two groups would be in memory.
            return torch.cat(
                [batched_kmeans(_tokens_of_layers(stream, layers), prompt_length, generator) for layers in groups]
            )

    tokens_LRD = sample_tokens(_all_tokens, stream, num_tokens, generator)
    if device.type == "cuda":
        with gpu_arithmetic("fp32", device):
            return batched_kmeans(tokens_LRD, prompt_length, generator)

    # On a CPU the batch takes twice as long, and prototypes keep their bits.
    return torch.stack([kmeans(tokens_RD, prompt_length, generator) for tokens_RD in tokens_LRD])


def _tokens_of_layers(stream: TokenStream, layers: range) -> Tensor:
    """Return all tokens ``[l, R, D]`` that enter l consecutive layers, image after image."""
    device = stream.backbone.mean_C11.device
    shape = (len(layers), stream.num_images, stream.backbone.num_patches, stream.backbone.embed_dim)
    tokens_lMND = torch.empty(shape, device=device)

    def keep(rows_B: Tensor, layer: int, tokens_BND: Tensor) -> None:
        if layer in layers:
            # The rows of a batch follow each other: a slice needs no copy of them on the device.
            first = int(rows_B[0])
            tokens_lMND[layer - layers.start, first : first + len(rows_B)] = tokens_BND

    dataclasses.replace(stream, num_layers=layers.stop).for_each_batch(torch.arange(stream.num_images), keep)
    return tokens_lMND.flatten(1, 2)


def _all_tokens(tokens_BND: Tensor) -> Tensor:
    return tokens_BND


PROMPT_INITS: dict[str, Callable[[TokenStream, int, torch.Generator], Tensor]] = {
    "random": functools.partial(sample_tokens, _all_tokens),
    "mean_pool": functools.partial(_pool_tokens, "mean"),
    "max_pool": functools.partial(_pool_tokens, "max"),
    "kmeans": _cluster_tokens,
}


def uniform_prompt(backbone: Backbone, *, num_layers: int, prompt_length: int, generator: torch.Generator) -> Tensor:
    """Return VPT's initial value ``[L, P, D]``, uniform within ± `uniform_bound`."""
    bound = uniform_bound(backbone)
    prompt_LPD = torch.empty(num_layers, prompt_length, backbone.embed_dim)
    return prompt_LPD.uniform_(-bound, bound, generator=generator)


def uniform_bound(backbone: Backbone) -> float:
    """Return the bound of VPT's initial values: sqrt(6 / (3 p² + D)), p the patch size (section 3.2)."""
    return math.sqrt(6 / (3 * backbone.patch_size**2 + backbone.embed_dim))
