"""VFPT: Visual Fourier Prompt Tuning (Zeng et al., NeurIPS 2024, arXiv 2411.01327).

Shapes: L prompted layers, M transformed prompt tokens, X others, P prompt_length, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trainer.methods.prompts import Prompts
from trainer.model.backbone import Backbone
from trainer.model.prompted_vit import PromptedViT


class VFPT(Prompts):
    """Prompts at every layer, of which the first m enter as their two-dimensional Fourier transform (section 3.2).

    m is the share `fourier_share` (alpha) of the prompt tokens, rounded; the paper searches it for each task. The paper
    leaves two things open: the initial value, which is VPT's here, and dropout on prompts, of which there is none.
    """

    def model(self, backbone: Backbone, *, prompt_LPD: Tensor, **head: Any) -> PromptedViT:
        """Return the network with prompts of the given initial value."""
        model = FourierPromptedViT(backbone, prompt_LPD=prompt_LPD, prompt_dropout=self.prompt_dropout, **head)
        model.num_fourier = round(self.config.fourier_share * prompt_LPD.shape[1])
        return model


class FourierPromptedViT(PromptedViT):
    """A backbone with learnable prompts, some of which are transformed.

    Attributes:
        num_fourier: number of transformed prompt tokens of each layer, m.
    """

    num_fourier: int = 0

    def prompt_tokens(self) -> Tensor:
        """Return the prompts as they enter each layer: equation 4, the Fourier prompts before the others."""
        if not self.num_fourier:
            return self.prompt_LPD

        fourier_LMD, others_LXD = self.prompt_LPD.tensor_split([self.num_fourier], dim=1)
        # Equation 3: the real part of the transforms along sequence and width, unscaled as in equation 2.
        return torch.cat([torch.fft.fft2(fourier_LMD).real, others_LXD], dim=1)
