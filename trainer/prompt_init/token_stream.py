"""Patch tokens of the training images, layer by layer and batch by batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.config import TrainConfig
from trainer.data.split import Split
from trainer.data.subsets import nested_subset
from trainer.data.transforms import cut, random_crops
from trainer.model.backbone import Backbone
from trainer.model.execution import run_in_micro_batches


def token_stream(
    config: TrainConfig, backbone: Backbone, images: Split, num_layers: int, size: float | int
) -> TokenStream:
    """The tokens of a share or number of the images (all, if there are fewer), seen as training sees them."""
    most = min(size, len(images)) if isinstance(size, int) else size
    rows_M = torch.from_numpy(nested_subset(images.labels_N.cpu().numpy(), most))
    generator = torch.Generator().manual_seed(config.stream_seed("prototype crops"))
    # Each image has its crop whatever batch it comes in: batches are cut smaller where memory is short.
    crops_M5 = random_crops(images.aspect_N[rows_M], config.transform, generator) if images.view == "whole" else None

    def images_of(rows_B: Tensor) -> Tensor:
        chosen_BCHW = images.take(rows_M[rows_B])
        return chosen_BCHW if crops_M5 is None else cut(chosen_BCHW, crops_M5[rows_B], config.pixels, config.transform)

    return TokenStream(backbone=backbone, num_images=len(rows_M), images_of=images_of, num_layers=num_layers)


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

    def for_each_batch(self, rows_M: Tensor, callback: Callable[[Tensor, int, Tensor], None]) -> None:
        """Send rows of images through the network, and show the tokens ``[B, N, D]`` that enter each layer.

        Args:
            see: told the rows of a batch ``[B]``, the layer and its tokens; where memory ends, told again of a part.
        """

        def pass_through(rows_B: Tensor) -> None:
            tokens = self.backbone.patch_tokens(self.images_of(rows_B))
            for layer, tokens_BND in zip(range(self.num_layers), tokens, strict=False):
                callback(rows_B, layer, tokens_BND)

        run_in_micro_batches(pass_through, rows_M, self.batch_size, "prototypes")
