"""The frozen ViT: which networks there are, and the tokens that enter each layer.

Shapes: B batch, C 3, H W image height and width, L layers, T tokens, N patch tokens, X context tokens, D width.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator

import timm
import torch
import torch.nn.functional as F
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers.attention import Attention
from timm.layers.drop import DropPath
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from trainer.catalog import BACKBONES, BUNDLED, BackboneRow
from trainer.model.weight_formats import load_weights
from trainer.model.weights import fetch_weights

MEAN_AND_STD = {"imagenet": (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD), "half": ((0.5,) * 3, (0.5,) * 3)}


def vit_nano_patch4_32(img_size: int = 32) -> VisionTransformer:
    """The bundled network for 32x32 images: 64 patches, 5 layers of width 96, 0.57 M parameters."""
    return VisionTransformer(img_size=img_size, patch_size=4, embed_dim=96, depth=5, num_heads=3, num_classes=0)


def cls_and_positions(vit: VisionTransformer) -> tuple[nn.Parameter, nn.Parameter]:
    """The CLS token ``[1, 1, D]`` and the position embedding ``[1, 1 + N, D]``, which every ViT here has."""
    assert vit.cls_token is not None and vit.pos_embed is not None, "a ViT with CLS and positions"
    return vit.cls_token, vit.pos_embed


class Backbone(nn.Module):
    """A frozen timm ViT in evaluation mode, taken apart where prompts go in.

    Args:
        vit: the network; its parameters stop requiring gradients.
        readout: ``mean`` reads the mean over all tokens but CLS, then the norm (MAE);
            ``cls`` reads the norm's CLS token (supervised, MoCo v3).
        sha256: hash of the weights file, part of every result's provenance.
        mean_and_std: the normalisation of its pixels, by name.
    """

    mean_C11: Tensor
    std_C11: Tensor

    def __init__(self, vit: VisionTransformer, *, readout: str, sha256: str, mean_and_std: str = "half") -> None:
        super().__init__()
        self.vit = vit.requires_grad_(False).eval()
        self.readout = readout
        self.sha256 = sha256
        self.embed_dim: int = vit.embed_dim
        self.num_layers = len(vit.blocks)
        self.patch_size: int = vit.patch_embed.patch_size[0]
        self.image_size: int = vit.patch_embed.img_size[0]
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in MEAN_AND_STD[mean_and_std])
        self.register_buffer("mean_C11", mean, persistent=False)
        self.register_buffer("std_C11", std, persistent=False)

    @property
    def num_patches(self) -> int:
        """Patch tokens of one image, N."""
        return (self.image_size // self.patch_size) ** 2

    def train(self, mode: bool = True) -> Backbone:
        """The network never leaves evaluation mode, whatever its owner does; stochastic depth alone follows."""
        super().train(False)
        for module in self.modules():
            if isinstance(module, DropPath):
                module.train(mode)
        return self

    def variant(self, *, learns: bool, drop_path: float) -> Backbone:
        """This network for one training run: with stochastic depth up to a rate, and weights of its own if it learns.

        The rate rises linearly over the layers, from 0 to `drop_path` (Huang et al., ECCV 2016).
        """
        shared = {} if learns else {id(parameter): parameter for parameter in self.parameters()}
        other = copy.deepcopy(self, shared)
        other.vit.requires_grad_(learns)
        for block, rate in zip(other.layers(), torch.linspace(0, drop_path, self.num_layers).tolist(), strict=True):
            block.drop_path1, block.drop_path2 = (DropPath(rate) if rate else nn.Identity() for _ in range(2))
        return other

    def embed(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Cut uint8 images into tokens.

        Returns:
            CLS with its position ``[B, 1, D]``, patches with theirs ``[B, N, D]``, patches without ``[B, N, D]``.
        """
        cls_11D, positions_1TD = cls_and_positions(self.vit)
        normalized_BCHW = (images_BCHW.to(self.mean_C11.dtype) / 255 - self.mean_C11) / self.std_C11
        patches_BND = self.vit.patch_embed(normalized_BCHW)
        cls_B1D = (cls_11D + positions_1TD[:, :1]).expand(len(patches_BND), -1, -1)
        return cls_B1D, patches_BND + positions_1TD[:, 1:], patches_BND

    def layers(self) -> Iterator[Block]:
        """The transformer blocks, first to last."""
        for block in self.vit.blocks:
            assert isinstance(block, Block), "the catalog's ViTs are made of timm's plain blocks"
            yield block

    def read_out(self, tokens_BTD: Tensor) -> Tensor:
        """Tokens after the last block, CLS first, prompts included, to features ``[B, D]``."""
        read_BD = tokens_BTD[:, 1:].mean(dim=1) if self.readout == "mean" else tokens_BTD[:, 0]
        features_BD: Tensor = self.vit.norm(read_BD)
        return features_BD

    @torch.no_grad()
    def patch_tokens(self, images_BCHW: Tensor) -> Iterator[Tensor]:
        """The patch tokens ``[B, N, D]`` that enter each layer of the plain network, without CLS, layer by layer.

        Layer 0 sees the patch embedding's output without position embedding, layer i the output of block i-1
        (SPT, section 3: what its prototypes are made of). A layer is computed when it is asked for.
        """
        cls_B1D, positioned_BND, patches_BND = self.embed(images_BCHW)
        yield patches_BND
        tokens_BTD = torch.cat([cls_B1D, positioned_BND], dim=1)
        for block in list(self.layers())[:-1]:
            tokens_BTD = block(tokens_BTD)
            yield tokens_BTD[:, 1:]


def run_block(
    block: Block,
    tokens_BTD: Tensor,
    *,
    context_AXD: Tensor | None = None,
    leaving: int | None = None,
    context_leaves: bool = False,
) -> Tensor:
    """A block's output for the first `leaving` tokens (default: all), which also attend to a context.

    Equal to the block over tokens and context together, less the outputs that nobody reads: of those, neither the
    queries nor the perceptron are computed. A context that is the same for several images (A < B: each for B / A of
    them, in order) is projected once, and where only the context learns, no gradient reaches the tokens' projections.

    Args:
        context_leaves: whether its outputs are read too; they come behind the tokens'.
    """
    if context_AXD is None and leaving is None:
        out_BTD: Tensor = block(tokens_BTD)
        return out_BTD
    attention = block.attn
    assert isinstance(attention, Attention) and attention.gate is None and attention.qkv.bias is not None, (
        "the attention of the catalog's ViTs"
    )
    width = attention.attn_dim

    def project(normed_BTD: Tensor, part: slice) -> Tensor:
        joint_BTD: Tensor = F.linear(normed_BTD, attention.qkv.weight[part], attention.qkv.bias[part])
        return joint_BTD

    def heads(flat_BTD: Tensor) -> Tensor:
        heads_BTHd: Tensor = flat_BTD.unflatten(2, (attention.num_heads, attention.head_dim))
        return heads_BTHd.transpose(1, 2)

    def with_context(tokens_BTD: Tensor, context_AXD: Tensor) -> Tensor:
        context_BXD = context_AXD.unsqueeze(1).expand(-1, len(tokens_BTD) // len(context_AXD), -1, -1).flatten(0, 1)
        return torch.cat([tokens_BTD, context_BXD], dim=1)

    normed_BTD, leaving_BTD = block.norm1(tokens_BTD), tokens_BTD[:, :leaving]
    query_BTD, joint_BTD = project(normed_BTD[:, :leaving], slice(width)), project(normed_BTD, slice(width, None))
    if context_AXD is not None:
        normed_AXD = block.norm1(context_AXD)
        joint_BTD = with_context(joint_BTD, project(normed_AXD, slice(width, None)))
        if context_leaves:
            query_BTD = with_context(query_BTD, project(normed_AXD, slice(0, width)))
            leaving_BTD = with_context(leaving_BTD, context_AXD)
    key_BTD, value_BTD = joint_BTD.chunk(2, dim=2)
    query_BHTd, key_BHTd = attention.q_norm(heads(query_BTD)), attention.k_norm(heads(key_BTD))
    mixed_BHTd = F.scaled_dot_product_attention(query_BHTd, key_BHTd, heads(value_BTD))
    mixed_BTD = attention.proj(attention.norm(mixed_BHTd.transpose(1, 2).flatten(2)))
    leaving_BTD = leaving_BTD + block.drop_path1(block.ls1(mixed_BTD))
    left_BTD: Tensor = leaving_BTD + block.drop_path2(block.ls2(block.mlp(block.norm2(leaving_BTD))))
    return left_BTD


def build_vit(row: BackboneRow, image_size: int | None = None) -> VisionTransformer:
    """The network of a row with random weights, for images of a size, without a classifier."""
    side = image_size or row.image_size
    if row.name == BUNDLED:
        return vit_nano_patch4_32(side)
    vit = timm.create_model(row.architecture, pretrained=False, img_size=side, num_classes=0)
    assert isinstance(vit, VisionTransformer), row.name
    return vit


@functools.lru_cache(maxsize=2)
def load_backbone(
    name: str,
    *,
    image_size: int | None = None,
    normalize: str = "backbone",
    weights: str | None = None,
    device: str = "cpu",
) -> Backbone:
    """The frozen backbone of that full timm name, kept in the process.

    Args:
        image_size: side in pixels; None for the row's own.
        normalize: ``backbone`` for the mean and std it was trained with, ``imagenet`` for ImageNet's.
        weights: a file, or a folder of files, to look in first.

    Raises:
        WeightsError: if the weights are nowhere, or do not fit the network.
    """
    row = BACKBONES[name]
    vit = build_vit(row, image_size)
    sha256 = load_weights(vit, fetch_weights(row, weights), row)
    mean_and_std = row.mean_and_std if normalize == "backbone" else normalize
    return Backbone(vit, readout=row.readout, sha256=sha256, mean_and_std=mean_and_std).to(device)
