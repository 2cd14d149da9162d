"""The frozen ViT: which networks there are, their weights, and the tokens that enter each layer.

Shapes: B batch, C 3, H W image height and width, L layers, N patch tokens, D embedding width.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from importlib import resources

import torch
from safetensors.torch import load
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from trainer.catalog import BACKBONES


def vit_nano_patch4_32() -> VisionTransformer:
    """The bundled network for 32x32 images: 64 patches, 5 layers of width 96, 0.57 M parameters."""
    return VisionTransformer(img_size=32, patch_size=4, embed_dim=96, depth=5, num_heads=3, num_classes=0)


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
    """

    mean_C11: Tensor
    std_C11: Tensor

    def __init__(self, vit: VisionTransformer, *, readout: str, sha256: str) -> None:
        super().__init__()
        self.vit = vit.requires_grad_(False).eval()
        self.readout = readout
        self.sha256 = sha256
        self.embed_dim: int = vit.embed_dim
        self.num_layers = len(vit.blocks)
        self.patch_size: int = vit.patch_embed.patch_size[0]
        self.image_size: int = vit.patch_embed.img_size[0]
        self.register_buffer("mean_C11", torch.full((3, 1, 1), 0.5), persistent=False)
        self.register_buffer("std_C11", torch.full((3, 1, 1), 0.5), persistent=False)

    def train(self, mode: bool = True) -> Backbone:
        """A frozen network never leaves evaluation mode, whatever its owner does."""
        return super().train(False)

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

    def layers(self) -> Iterator[nn.Module]:
        """The transformer blocks, first to last."""
        yield from self.vit.blocks

    def read_out(self, tokens_BTD: Tensor) -> Tensor:
        """Tokens after the last block, CLS first, prompts included, to features ``[B, D]``."""
        read_BD = tokens_BTD[:, 1:].mean(dim=1) if self.readout == "mean" else tokens_BTD[:, 0]
        features_BD: Tensor = self.vit.norm(read_BD)
        return features_BD

    @torch.no_grad()
    def patch_tokens(self, images_BCHW: Tensor) -> list[Tensor]:
        """The patch tokens ``[B, N, D]`` that enter each layer of the plain network, without CLS.

        Layer 0 sees the patch embedding's output without position embedding, layer i the output of block i-1
        (SPT, section 3: what its prototypes are made of).
        """
        cls_B1D, positioned_BND, patches_BND = self.embed(images_BCHW)
        tokens_BTD = torch.cat([cls_B1D, positioned_BND], dim=1)
        entering = [patches_BND]
        for block in list(self.layers())[:-1]:
            tokens_BTD = block(tokens_BTD)
            entering.append(tokens_BTD[:, 1:])
        return entering


@functools.lru_cache(maxsize=2)
def load_backbone(name: str, device: str = "cpu") -> Backbone:
    """The frozen backbone of that full timm name, kept in the process.

    Raises:
        ValueError: if the name is not in the catalog.
        RuntimeError: if the weights do not fit the network, with the keys that differ.
    """
    if name not in BACKBONES:
        raise ValueError(f"backbone {name!r} is unknown; there are {', '.join(BACKBONES)}.")
    row = BACKBONES[name]
    data = resources.files("trainer").joinpath("assets", f"{name}.safetensors").read_bytes()
    vit = vit_nano_patch4_32()
    vit.load_state_dict({key: value.float() for key, value in load(data).items()})
    return Backbone(vit, readout=row.readout, sha256=hashlib.sha256(data).hexdigest()).to(device)
