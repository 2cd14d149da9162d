"""The frozen ViT and the tokens that enter each of its layers.

Shapes: B batch, C 3, H W image height and width, L layers, T tokens, N patch tokens, X context tokens,
Q keys that no token has, D width.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Collection, Iterator

import timm
import torch
import torch.nn.functional as F
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers.attention import Attention
from timm.layers.drop import DropPath
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from trainer import phase
from trainer.catalog import BACKBONES, BUNDLED, BackboneRow
from trainer.model.gpu_kernels import fix_cublas_workspace
from trainer.model.weight_formats import load_weights
from trainer.model.weights import fetch_weights

MEAN_AND_STD = {
    "imagenet": (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
    "half": ((0.5,) * 3, (0.5,) * 3),
}
"""Mean and standard deviation of pixels in 0..1, a value a colour channel, by name."""


def vit_nano_patch4_32(img_size: int = 32) -> VisionTransformer:
    """Return the bundled network for 32x32 images: 64 patches, 5 layers of width 96, 0.57 M parameters."""
    return VisionTransformer(img_size=img_size, patch_size=4, embed_dim=96, depth=5, num_heads=3, num_classes=0)


def cls_and_positions(vit: VisionTransformer) -> tuple[nn.Parameter, nn.Parameter]:
    """Return the CLS token ``[1, 1, D]`` and the position embedding ``[1, 1 + N, D]``; all ViTs here have both."""
    assert vit.cls_token is not None and vit.pos_embed is not None, "a ViT with CLS and positions"
    return vit.cls_token, vit.pos_embed


class Backbone(nn.Module):
    """A frozen timm ViT in evaluation mode, split into the steps between which prompts are inserted.

    Args:
        vit: the network; its parameters stop requiring gradients.
        readout: ``mean`` averages all tokens except CLS and then applies the norm (MAE);
            ``cls`` applies the norm to the CLS token (supervised, MoCo v3).
        sha256: hash of the weights file; it is part of every result's provenance.
        part: which of several networks in the weights file it is; empty for the only one.
        mean_and_std: name of the pixel normalisation, a key of `MEAN_AND_STD`.
    """

    mean_C11: Tensor
    std_C11: Tensor

    def __init__(
        self, vit: VisionTransformer, *, readout: str, sha256: str, part: str = "", mean_and_std: str = "half"
    ) -> None:
        super().__init__()
        self.vit = vit.requires_grad_(False).eval()

        self.readout = readout
        self.sha256 = sha256
        self.part = part
        self.embed_dim: int = vit.embed_dim
        self.num_layers = len(vit.blocks)
        self.patch_size: int = vit.patch_embed.patch_size[0]
        self.image_size: int = vit.patch_embed.img_size[0]

        # Not persistent: the normalisation belongs to the run's config, not to the weights.
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in MEAN_AND_STD[mean_and_std])
        self.register_buffer("mean_C11", mean, persistent=False)
        self.register_buffer("std_C11", std, persistent=False)

    @property
    def num_patches(self) -> int:
        """Number of patch tokens of one image, N."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def head_dim(self) -> int:
        """Width of an attention head."""
        attention = next(self.layers()).attn
        assert isinstance(attention, Attention), "the attention of the catalog's ViTs"
        return attention.head_dim

    def train(self, mode: bool = True) -> Backbone:
        """Keep the network in evaluation mode; only stochastic depth follows `mode`.

        The module that contains the backbone calls this, so `model.train()` cannot unfreeze anything else.
        """
        super().train(False)

        for module in self.modules():
            if isinstance(module, DropPath):
                module.train(mode)

        return self

    def variant(self, *, learns: bool | Collection[str], drop_path: float) -> Backbone:
        """Return a copy of this network for one training run, with stochastic depth.

        Args:
            learns: whether the copy's weights are trained, or the names of those that are. The copy has trained weights
                of its own, and shares this network's others.
            drop_path: rate of stochastic depth at the last layer; it rises linearly from 0 at the first
                (Huang et al., ECCV 2016).
        """
        named = dict(self.named_parameters())
        if isinstance(learns, bool):
            learns = named.keys() if learns else ()

        # `deepcopy` returns the objects of its memo as they are: frozen weights stay in memory once.
        memo = {id(parameter): parameter for name, parameter in named.items() if name not in learns}
        variant = copy.deepcopy(self, memo)
        for name in learns:
            variant.get_parameter(name).requires_grad_(True)

        rates = torch.linspace(0, drop_path, self.num_layers, device="cpu").tolist()
        for block, rate in zip(variant.layers(), rates, strict=True):
            block.drop_path1 = DropPath(rate) if rate else nn.Identity()
            block.drop_path2 = DropPath(rate) if rate else nn.Identity()

        return variant

    def embed(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Turn uint8 images into tokens.

        Returns:
            the CLS token with position embedding ``[B, 1, D]``, the patch tokens with position embedding ``[B, N, D]``,
            and the patch tokens without it ``[B, N, D]``.
        """
        cls_11D, positions_1TD = cls_and_positions(self.vit)

        normalized_BCHW = (images_BCHW.to(self.mean_C11.dtype) / 255 - self.mean_C11) / self.std_C11
        patches_BND = self.vit.patch_embed(normalized_BCHW)

        cls_B1D = (cls_11D + positions_1TD[:, :1]).expand(len(patches_BND), -1, -1)
        return cls_B1D, patches_BND + positions_1TD[:, 1:], patches_BND

    def layers(self) -> Iterator[Block]:
        """Yield the transformer blocks, first to last."""
        for block in self.vit.blocks:
            assert isinstance(block, Block), "the catalog's ViTs are made of timm's plain blocks"
            yield block

    def read_out(self, tokens_BTD: Tensor) -> Tensor:
        """Return the features ``[B, D]`` of the tokens that leave the last block: CLS first, prompts included."""
        read_BD = tokens_BTD[:, 1:].mean(dim=1) if self.readout == "mean" else tokens_BTD[:, 0]

        features_BD: Tensor = self.vit.norm(read_BD)
        return features_BD

    @torch.no_grad()
    def patch_tokens(self, images_BCHW: Tensor) -> Iterator[Tensor]:
        """Yield the patch tokens ``[B, N, D]`` that enter each layer of the plain network, layer by layer, without CLS.

        Layer 0 has the output of the patch embedding without position embedding, layer i the output of block i-1.
        SPT builds its prototypes from these tokens (section 3). A layer is computed when the iterator reaches it.
        """
        cls_B1D, positioned_BND, patches_BND = self.embed(images_BCHW)
        yield patches_BND

        tokens_BTD = torch.cat([cls_B1D, positioned_BND], dim=1)
        # No layer takes the last block's output: it is not run.
        for block in list(self.layers())[:-1]:
            tokens_BTD = block(tokens_BTD)
            yield tokens_BTD[:, 1:]


def run_block(
    block: Block,
    tokens_BTD: Tensor,
    *,
    context_AXD: Tensor | None = None,
    num_outputs: int | None = None,
    output_context: bool = False,
    key_value_1QD: Tensor | None = None,
) -> Tensor:
    """Return a block's output for the first `num_outputs` tokens (default: all), which also attend to a context.

    The result equals that of the block over tokens and context together, without the outputs that nothing reads.
    For those outputs neither the queries nor the MLP are computed. If only the context learns, no gradient reaches
    the tokens' projections.

    Args:
        context_AXD: tokens that the others attend to. A context may serve several images: with A < B each serves B / A
            consecutive images and is projected once.
        num_outputs: number of tokens, from the first, whose output is computed.
        output_context: whether the context's outputs are computed too; they follow those of the tokens.
        key_value_1QD: keys, which are the values too, that every token attends to beside those of the tokens.
    """
    if context_AXD is None and num_outputs is None and key_value_1QD is None:
        plain_BTD: Tensor = block(tokens_BTD)
        return plain_BTD

    attention = block.attn
    assert isinstance(attention, Attention) and attention.gate is None, "the attention of the catalog's ViTs"

    # The rows of the joint projection are queries, keys and values, `width` each.
    width = attention.attn_dim
    query_rows = slice(0, width)
    key_value_rows = slice(width, None)

    def project(normed_BTD: Tensor, rows: slice) -> Tensor:
        return project_rows(attention.qkv, normed_BTD, rows)

    def split_heads(flat_BTD: Tensor) -> Tensor:
        heads_BTHd: Tensor = flat_BTD.unflatten(2, (attention.num_heads, attention.head_dim))
        return heads_BTHd.transpose(1, 2)

    def append_context(tokens_BTD: Tensor, context_AXD: Tensor) -> Tensor:
        context_BXD = context_AXD.unsqueeze(1).expand(-1, len(tokens_BTD) // len(context_AXD), -1, -1).flatten(0, 1)
        return torch.cat([tokens_BTD, context_BXD], dim=1)

    # Queries of the tokens that have an output; keys and values of all of them.
    normed_BTD = block.norm1(tokens_BTD)
    output_BTD = tokens_BTD[:, :num_outputs]
    query_BTD = project(normed_BTD[:, :num_outputs], query_rows)
    key_value_BTD = project(normed_BTD, key_value_rows)

    if context_AXD is not None:
        # The context is projected before it is repeated for its images.
        normed_AXD = block.norm1(context_AXD)
        key_value_BTD = append_context(key_value_BTD, project(normed_AXD, key_value_rows))
        if output_context:
            query_BTD = append_context(query_BTD, project(normed_AXD, query_rows))
            output_BTD = append_context(output_BTD, context_AXD)

    if key_value_1QD is not None:
        key_value_BTD = append_context(key_value_BTD, key_value_1QD.repeat(1, 1, 2))

    key_BTD, value_BTD = key_value_BTD.chunk(2, dim=2)
    query_BHTd = attention.q_norm(split_heads(query_BTD))
    key_BHTd = attention.k_norm(split_heads(key_BTD))
    mixed_BHTd = F.scaled_dot_product_attention(query_BHTd, key_BHTd, split_heads(value_BTD))
    mixed_BTD = attention.proj(attention.norm(mixed_BHTd.transpose(1, 2).flatten(2)))

    # The block's two residual branches.
    output_BTD = output_BTD + block.drop_path1(block.ls1(mixed_BTD))
    result_BTD: Tensor = output_BTD + block.drop_path2(block.ls2(block.mlp(block.norm2(output_BTD))))
    return result_BTD


def project_rows(projection: nn.Module, inputs_BTD: Tensor, rows: slice) -> Tensor:
    """Return some of the outputs of a linear layer, without computing the others.

    Args:
        projection: a linear layer with bias, or a module of a method that takes its place. Such a module is called with
            the inputs and the rows.
    """
    if isinstance(projection, nn.Linear):
        assert projection.bias is not None, "the projections of the catalog's ViTs have one"
        return F.linear(inputs_BTD, projection.weight[rows], projection.bias[rows])

    outputs_BTD: Tensor = projection(inputs_BTD, rows)
    return outputs_BTD


def build_vit(row: BackboneRow, image_size: int | None = None) -> VisionTransformer:
    """Return the network of a catalog row with random weights and without a classifier.

    Args:
        image_size: side of its images in pixels; None for the row's own.
    """
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
    """Return the frozen backbone of a full timm name. The process keeps the last two.

    Args:
        image_size: side of its images in pixels; None for the catalog row's own.
        normalize: ``backbone`` for the mean and std it was trained with, ``imagenet`` for ImageNet's.
        weights: path or URI of a weights file, or of a folder that is searched first.

    Raises:
        WeightsError: if no weights are found, or they do not fit the network.
        OSError: if a URI cannot be read.
    """
    row = BACKBONES[name]
    phase.begin(f"loading the weights of {name}")
    # Whatever computes on a GPU begins with a backbone there.
    fix_cublas_workspace(device)

    vit = build_vit(row, image_size)
    loaded = load_weights(vit, fetch_weights(row, weights), row)

    mean_and_std = row.mean_and_std if normalize == "backbone" else normalize
    return Backbone(vit, readout=row.readout, sha256=loaded.sha256, part=loaded.part, mean_and_std=mean_and_std).to(
        device
    )


@functools.lru_cache(maxsize=1)
def with_fresh_norm(backbone: Backbone) -> Backbone:
    """Return a copy of the network whose last norm has weight 1 and bias 0. The process keeps the last one.

    The copy shares all other weights with the network.
    """
    # `deepcopy` returns the objects of its memo as they are, so only the norm is copied.
    own = {id(parameter) for parameter in backbone.vit.norm.parameters()}
    memo = {id(parameter): parameter for parameter in backbone.parameters() if id(parameter) not in own}
    copied = copy.deepcopy(backbone, memo)

    norm = copied.vit.norm
    assert isinstance(norm, nn.LayerNorm), "the last norm of the catalog's ViTs"
    nn.init.ones_(norm.weight)
    nn.init.zeros_(norm.bias)
    return copied
