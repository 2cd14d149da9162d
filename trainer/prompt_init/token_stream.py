"""Patch tokens of the training images, layer by layer and batch by batch.

Shapes: M images, B images of a batch, N patch tokens an image, D width.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.config import TrainConfig
from trainer.data.split import Split
from trainer.data.subsets import nested_subset
from trainer.data.transforms import random_crops
from trainer.model.backbone import Backbone
from trainer.model.device_memory import total_bytes
from trainer.model.execution import run_in_micro_batches
from trainer.model.gpu_kernels import gpu_arithmetic


def token_stream(
    config: TrainConfig, backbone: Backbone, images: Split, num_layers: int, size: float | int
) -> TokenStream:
    """Return the tokens of training images, which are cropped as in training.

    Args:
        num_layers: number of layers, from the first.
        size: share (float) or number (int) of images; all, if there are fewer.
    """
    size = min(size, len(images)) if isinstance(size, int) else size
    rows_M = torch.from_numpy(nested_subset(images.labels_N.cpu().numpy(), size))

    @functools.cache
    def draw_crops() -> Tensor:
        # All at once: batches become smaller when memory runs out, and an image's crop must not depend on its batch.
        # Only when an image is needed: a set of prototypes in the cache needs none.
        generator = torch.Generator().manual_seed(config.stream_seed("prototype crops"))
        return random_crops(images.whole_sizes(rows_M), config.transform, generator)

    def images_of(rows_B: Tensor) -> Tensor:
        if images.view == "fixed":
            return images.take(rows_M[rows_B])
        return images.take_crops(rows_M[rows_B], draw_crops()[rows_B], config.pixels, config.transform)

    return TokenStream(backbone=backbone, num_images=len(rows_M), images_of=images_of, num_layers=num_layers)


TOKEN_BYTES = 5 * 2**28
"""Memory for the sample of tokens that k-means clusters, all layers together: 1.25 GiB, or 36,408 tokens a layer of
ViT-B."""
BYTES_PER_VALUE = 4
"""Tokens are kept in float32, on every device."""
ALL_TOKENS_SHARE = 0.4
"""Largest part of a GPU's total memory that k-means fills with tokens, if it clusters all of them. Of the total, not of
what is free: the same kind of GPU clusters the same tokens, whatever else runs there."""
MOST_GROUPS = 4
"""Most groups of layers whose tokens are clustered one after the other. The images pass through the network once for
each: four groups cost two and a half passes, twelve would cost six and a half."""


@dataclass(frozen=True, kw_only=True)
class TokenStream:
    """The patch tokens of many images, a batch at a time, in float32 for every precision of training."""

    backbone: Backbone
    num_images: int
    images_of: Callable[[Tensor], Tensor]
    """Returns the uint8 images ``[B, 3, H, W]`` of rows ``[B]``, on the backbone's device."""
    num_layers: int
    """Number of layers, from the first: 1 for shallow prompts, all for deep ones."""
    batch_size: int = 64
    token_bytes: int = TOKEN_BYTES
    layers_at_once: int = 0
    """Number of layers of which k-means holds and clusters all tokens together; 0 clusters a sample of all layers that
    fits in `token_bytes`."""

    @property
    def num_clustered(self) -> int:
        """Number of tokens of a layer that k-means clusters."""
        num_tokens = self.num_images * self.backbone.num_patches
        if self.layers_at_once:
            return num_tokens
        return min(num_tokens, self.token_bytes // (BYTES_PER_VALUE * self.num_layers * self.backbone.embed_dim))

    def for_each_batch(self, rows_M: Tensor, callback: Callable[[Tensor, int, Tensor], None]) -> None:
        """Send rows of images through the network and call back with the tokens that enter each layer.

        Args:
            callback: is called with the rows of a batch ``[B]``, the layer and its tokens ``[B, N, D]``. If memory runs
                out it is called again for parts of the batch, so it must overwrite instead of adding up.
        """

        def pass_through(rows_B: Tensor) -> None:
            tokens = self.backbone.patch_tokens(self.images_of(rows_B))
            # `zip` takes from the range first, so it ends before a layer that is not needed is computed.
            for layer, tokens_BND in zip(range(self.num_layers), tokens, strict=False):
                callback(rows_B, layer, tokens_BND)

        with gpu_arithmetic("fp32", self.backbone.mean_C11.device):
            run_in_micro_batches(pass_through, rows_M, self.batch_size, "prototypes")


def with_all_tokens(stream: TokenStream) -> TokenStream:
    """Return the stream with all its tokens for k-means, if it is on a GPU that has room for them, or as it is."""
    device = stream.backbone.mean_C11.device
    if device.type != "cuda":
        return stream

    layer_bytes = BYTES_PER_VALUE * stream.num_images * stream.backbone.num_patches * stream.backbone.embed_dim
    room = int(ALL_TOKENS_SHARE * total_bytes(device))
    return dataclasses.replace(stream, layers_at_once=layers_that_fit(stream.num_layers, layer_bytes, room))


def layers_that_fit(num_layers: int, layer_bytes: int, room_bytes: int) -> int:
    """Return of how many layers the tokens are held at once: of all, of the layers of a group, or 0 for a sample.

    Groups are as equal as possible. There are at most `MOST_GROUPS`.
    """
    num_fitting = min(num_layers, room_bytes // layer_bytes)
    if num_fitting == 0:
        return 0

    num_groups = math.ceil(num_layers / num_fitting)
    return math.ceil(num_layers / num_groups) if num_groups <= MOST_GROUPS else 0
