"""Blocks compiled by torch: their small operations become a few fused kernels.

One graph serves all layers of a network and all lengths of the prompt.

Shapes: B batch, A prompts in a batch, X context tokens, T tokens, D width.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from timm.models.vision_transformer import Block
from torch import Tensor
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from trainer.model.backbone import run_block

KERNEL_CACHE = "TORCHINDUCTOR_CACHE_DIR"
"""Environment variable that names the folder of compiled kernels."""
MAX_GRAPHS = 64
"""Graphs of `run_block` that a process keeps. Stochastic depth has another rate, so another graph, at each layer. torch
runs a block uncompiled from its ninth graph on, without a word."""


def keep_kernels_in(folder: Path) -> None:
    """Keep compiled kernels in a folder, which processes of this machine share. A folder that the user chose stays."""
    # torch sets the variable to its own default as soon as a part of the compiler is imported.
    if os.environ.get(KERNEL_CACHE) in (None, default_cache_dir()):
        os.environ[KERNEL_CACHE] = str(folder)


def pack_kernels() -> bytes | None:
    """Return the kernels that this process has compiled or loaded, for another machine; None if there are none."""
    artifacts = torch.compiler.save_cache_artifacts()
    return None if artifacts is None else artifacts[0]


def unpack_kernels(data: bytes) -> None:
    """Add kernels of `pack_kernels` to this machine's folder. Those of another torch or GPU are never used."""
    torch.compiler.load_cache_artifacts(data)


def run_compiled_block(
    block: Block, tokens_BTD: Tensor, *, context_AXD: Tensor | None = None, **options: Any
) -> Tensor:
    """Return what `run_block` returns for the same arguments, up to rounding. The first call of a process compiles.

    Raises:
        RuntimeError: if it cannot be compiled, in many classes of torch.
    """
    if context_AXD is not None:
        # Otherwise a second length compiles again. A Parameter's size would be fixed.
        torch._dynamo.maybe_mark_dynamic(context_AXD, 1)

    with torch._dynamo.config.patch(recompile_limit=MAX_GRAPHS):
        result_BTD: Tensor = _compiled()(block, tokens_BTD, context_AXD=context_AXD, **options)
        return result_BTD


@functools.cache
def _compiled() -> Callable[..., Any]:
    # Random numbers of the generators that the block uses uncompiled: dropped paths are the same then.
    return torch.compile(run_block, fullgraph=True, options={"fallback_random": True})
