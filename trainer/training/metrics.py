"""Scores of predictions, and the mutual information of prompts and patch tokens.

Scores come from counts: correct and seen images are added up and divided once.
Shapes: N inputs, K classes, C counts, P prompts, T tokens, D width, R rows, S bins.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.data.split import Split
from trainer.storage.integrity import BLANK_CHECKSUM, CHECKSUM_KEY, seal


def read_progress(total_loss: Tensor, weights: Iterable[Tensor]) -> tuple[float, bool]:
    """Return the sum of an epoch's losses, and whether all weights are finite. The call waits for the device once."""
    has_finite_weights = torch.stack([weight.isfinite().all() for weight in weights]).all()
    loss, is_finite = torch.stack([total_loss, has_finite_weights.to(total_loss.dtype)]).cpu().tolist()
    return loss, bool(is_finite)


def scores(logits_NK: Tensor, labels_N: Tensor) -> dict[str, float]:
    """Return fractions 0..1: `accuracy`, `accuracy_mean_class`, and `accuracy_top5` if there are more than 5 classes.

    `accuracy_mean_class` is the mean of the accuracies of the classes that occur, each class counting the same. The
    call waits for the device once.
    """
    num_images, num_classes = logits_NK.shape
    is_correct_N = logits_NK.argmax(dim=1) == labels_N
    counted = [torch.ones_like(is_correct_N), is_correct_N]
    if num_classes > 5:
        # Stable: of equal logits the first class ranks first, as in argmax.
        ranked_NK = logits_NK.argsort(dim=1, descending=True, stable=True)
        counted.append((ranked_NK[:, :5] == labels_N[:, None]).any(dim=1))

    # Counts by class. Only their copy waits for the device; bincount and boolean indices would wait, too.
    counted_CN = torch.stack(counted).long()
    counts_CK = counted_CN.new_zeros(len(counted), num_classes)
    counts_CK = counts_CK.scatter_add(1, labels_N.expand_as(counted_CN), counted_CN).cpu()

    num_seen_K = counts_CK[0]
    num_correct_K = counts_CK[1]
    values = {"accuracy": int(num_correct_K.sum()) / num_images}
    if num_classes > 5:
        values["accuracy_top5"] = int(counts_CK[2].sum()) / num_images
    occurs_K = num_seen_K > 0
    values["accuracy_mean_class"] = float((num_correct_K[occurs_K].double() / num_seen_K[occurs_K]).mean())
    return values


def predictions(logits_NK: Tensor, split: Split) -> bytes:
    """Return a Parquet file with a row per image: key, label, prediction, correct, confidence.

    The confidence is the softmax of the prediction.
    """
    predicted_N = logits_NK.argmax(dim=1)
    confidence_N = logits_NK.double().softmax(dim=1).gather(1, predicted_N[:, None])[:, 0]
    table = pa.table(
        {
            "key": list(split.keys),
            "label": split.labels_N.cpu().numpy(),
            "prediction": predicted_N.cpu().numpy(),
            "correct": (predicted_N == split.labels_N).cpu().numpy(),
            "confidence": confidence_N.cpu().numpy(),
        }
    )
    table = table.replace_schema_metadata({CHECKSUM_KEY: BLANK_CHECKSUM})
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return seal(buffer.getvalue())


def normalized_mutual_information(prompt_PD: Tensor, tokens_TD: Tensor) -> float:
    """Return how much a prompt says about a patch token, 0..1: the mean over all pairs of prompt and token.

    The D coordinates of a pair are D joint samples of two scalars, each cut into S = sqrt(D / 5) bins of equal count.
    NMI = I(p; t) / min(H(p), H(t)), the normalization of Estévez et al. (Normalized mutual information feature
    selection, IEEE Transactions on Neural Networks 20(2), 2009, eq. 9) with the plug-in estimate of I. Since the bins
    are equal, H is log S up to rounding.

    SPT's figure 2 plots such a quantity and gives no formula; this one is ours. It does not change under monotone maps
    of either vector. For independent vectors it is about 3 %, not 0, because D is finite.

    Two things raise it although neither vector says anything about the other. The numbers are for D = 96 and D = 768:

    - Ties. Equal coordinates are ranked by their position, which both vectors share. If half of the coordinates of each
      are equal, NMI is 13 % and 18 %; if three quarters are, 39 % and 46 %. Ties in one vector alone do nothing.
    - Channel offsets. If both vectors contain the same offset for each channel, with the variance of the rest, NMI is
      11 % and 8 %; with four times that variance, 28 % and 21 %. Patch tokens of one layer have such offsets and more
      in common. So NMI is high between any token and a prompt that is made of tokens. In the bundled network on
      demo/digits, it is 8 % to 22 % between two random tokens, depending on the layer, and 3 % to 4 % between a
      uniform prompt and a token.

    So compare a prompt with its own value before the first step (epoch 0) first, and two methods after that.
    """
    width = prompt_PD.shape[1]
    bins = max(2, math.isqrt(width // 5))

    def one_hot_bins(values_RD: Tensor) -> Tensor:
        # The rank of each coordinate in its row, scaled to bins: equal counts, whatever the values are. Stable, so that
        # the ranks of equal coordinates do not depend on the device.
        ranks_RD = values_RD.argsort(dim=1, stable=True).argsort(dim=1)
        return F.one_hot(ranks_RD * bins // width, bins).float()

    prompt_PDS = one_hot_bins(prompt_PD)
    tokens_TDS = one_hot_bins(tokens_TD)

    # Probabilities of bins: joint, and of prompts and tokens alone. Double, or the logarithms lose digits.
    joint_PTSS = torch.einsum("pds,tdu->ptsu", prompt_PDS, tokens_TDS).double() / width
    prompt_PS = prompt_PDS.double().mean(dim=1)
    tokens_TS = tokens_TDS.double().mean(dim=1)
    outer_PTSS = prompt_PS[:, None, :, None] * tokens_TS[None, :, None, :]

    # xlogy is 0 for empty bins, where the logarithm is not defined.
    information_PT = torch.special.xlogy(joint_PTSS, joint_PTSS / outer_PTSS).sum(dim=(2, 3))
    entropy_P = -torch.special.xlogy(prompt_PS, prompt_PS).sum(dim=1)
    entropy_T = -torch.special.xlogy(tokens_TS, tokens_TS).sum(dim=1)
    return float((information_PT / torch.minimum(entropy_P[:, None], entropy_T[None])).mean())
