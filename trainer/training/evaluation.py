"""Metrics of an epoch that take the network to compute: scores on a split, and mutual information of the prompts.

Shapes: N images, K classes, L prompted layers, P prompt_length, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trainer.config import TrainConfig
from trainer.data.split import Split
from trainer.metric_names import PEEKING_ACCURACY, PEEKING_GAIN, nmi_of
from trainer.model.backbone import Backbone
from trainer.model.execution import Network, evaluate_in_batches
from trainer.prompt_init.strategies import sample_tokens
from trainer.prompt_init.token_stream import token_stream
from trainer.training.feature_cache import InputsOf
from trainer.training.metrics import normalized_mutual_information

NMI_TOKENS = 256
"""Patch tokens per layer that prompts are compared with."""


def logits_of(network: Network, inputs_of: InputsOf, split: Split, batch_size: int) -> Tensor:
    """Return the network's logits ``[N, K]`` of a whole split."""
    # Where the images are, so that no batch waits for a copy of its own.
    rows = torch.arange(len(split), device=split.rows_N.device).split(batch_size)
    return torch.cat([evaluate_in_batches(network, inputs_of(split, rows_B)) for rows_B in rows])


def peeking_metrics(accuracy: float, earlier: Sequence[float]) -> dict[str, float]:
    """Return the test accuracy of an epoch, and what the best epoch so far would have gained over it.

    Args:
        accuracy: test accuracy of this epoch.
        earlier: test accuracies of the epochs before it.
    """
    return {PEEKING_ACCURACY: accuracy, PEEKING_GAIN: max([accuracy, *earlier]) - accuracy}


def sample_nmi_tokens(config: TrainConfig, backbone: Backbone, split: Split, num_layers: int) -> Tensor:
    """Return random patch tokens ``[L, T, D]`` of a split, at most `NMI_TOKENS` per layer."""
    # Drawn once a run: what changes from epoch to epoch is the prompt alone.
    stream = token_stream(config, backbone, split, num_layers, 1.0)
    generator = torch.Generator().manual_seed(config.stream_seed("nmi"))
    num_tokens = min(NMI_TOKENS, stream.num_images * backbone.num_patches)

    return sample_tokens(lambda tokens_BND: tokens_BND, stream, num_tokens, generator)


def nmi_metrics(prompt_LPD: Tensor, tokens_LTD: Tensor) -> dict[str, float]:
    """Return the normalized mutual information of prompts and patch tokens, by layer."""
    pairs = enumerate(zip(prompt_LPD, tokens_LTD, strict=True))
    return {
        nmi_of(layer): normalized_mutual_information(prompt_PD, tokens_TD) for layer, (prompt_PD, tokens_TD) in pairs
    }
