"""Precisions: what the products of a network are computed in.

fp32 is float32. tf32 is float32, but a GPU rounds the factors of products to TF32, a mantissa of ten bits. bf16 is
autocast to bfloat16.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Collection

from torch import nn

from trainer.model.backbone import Backbone


@functools.lru_cache(maxsize=2)
def with_bf16_products(backbone: Backbone) -> Backbone:
    """Return a copy of a frozen network whose linear and convolution weights are bfloat16. The process keeps two.

    Under autocast it computes the same bits as the network itself, which autocast would cast in every step. The copy
    shares norms, CLS token and position embedding with the network, in float32.
    """
    # `deepcopy` returns the objects of its memo as they are: no weight is copied in float32.
    copied = copy.deepcopy(backbone, {id(parameter): parameter for parameter in backbone.parameters()})

    for module in copied.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            for name, parameter in list(module.named_parameters(recurse=False)):
                setattr(module, name, nn.Parameter(parameter.detach().bfloat16(), requires_grad=False))

    return copied


def training_variant(
    backbone: Backbone, precision: str, *, learns: bool | Collection[str], drop_path: float
) -> Backbone:
    """Return a copy of the network for one training run, as `Backbone.variant` does, with weights for a precision.

    A network that learns, or a part of which learns, keeps float32 weights: in bfloat16, small steps would be rounded
    away.
    """
    if precision == "bf16" and not learns:
        backbone = with_bf16_products(backbone)
    return backbone.variant(learns=learns, drop_path=drop_path)
