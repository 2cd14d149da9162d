"""Scores from counts: correct and seen are added up and divided once.

Shapes: N inputs, K classes, P prompts, T tokens, D width, S bins.
"""

from __future__ import annotations

import io
import math

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.data.split import Split


def scores(logits_NK: Tensor, labels_N: Tensor) -> dict[str, float]:
    """Shares 0..1: `accuracy`; `accuracy_top5` where there are more than five classes; `accuracy_mean_class`.

    The last is the mean over the classes that occur, each class's accuracy counting the same.
    """
    right_N = logits_NK.argmax(dim=1) == labels_N
    found = {"accuracy": int(right_N.sum()) / len(labels_N)}
    if logits_NK.shape[1] > 5:
        ranked_NK = logits_NK.argsort(dim=1, descending=True, stable=True)  # of equals the first, as argmax has it
        among_N = (ranked_NK[:, :5] == labels_N[:, None]).any(dim=1)
        found["accuracy_top5"] = int(among_N.sum()) / len(labels_N)
    seen_K = labels_N.bincount(minlength=logits_NK.shape[1])
    right_K = labels_N[right_N].bincount(minlength=logits_NK.shape[1])
    occurs_K = seen_K > 0
    found["accuracy_mean_class"] = float((right_K[occurs_K].double() / seen_K[occurs_K]).mean())
    return found


def predictions(logits_NK: Tensor, split: Split) -> bytes:
    """A Parquet file, a row an image: key, label, prediction, correct, confidence (softmax of the prediction)."""
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
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def normalized_mutual_information(prompt_PD: Tensor, tokens_TD: Tensor) -> float:
    """How much a prompt tells of a patch token, 0..1: the mean over all pairs of prompt and token.

    The D coordinates of a pair are D joint samples of two scalars, each cut into S = sqrt(D / 5) bins of equal count.
    NMI = I(p; t) / min(H(p), H(t)), the normalisation of Estévez et al. (Normalized mutual information feature
    selection, IEEE Transactions on Neural Networks 20(2), 2009, eq. 9) with the plug-in estimate of I; the bins being
    equal, H is log S up to rounding. SPT's figure 2 plots such a quantity and gives no formula; this one is ours. It
    does not change under monotone maps of either vector; of independent vectors it is about 3 %, not 0, from finite D.
    """
    width = prompt_PD.shape[1]
    bins = max(2, math.isqrt(width // 5))

    def joint_bins(values_RD: Tensor) -> Tensor:
        return F.one_hot(values_RD.argsort(dim=1).argsort(dim=1) * bins // width, bins).float()

    prompt_PDS, tokens_TDS = joint_bins(prompt_PD), joint_bins(tokens_TD)
    joint_PTSS = torch.einsum("pds,tdu->ptsu", prompt_PDS, tokens_TDS).double() / width
    prompt_PS, tokens_TS = prompt_PDS.double().mean(dim=1), tokens_TDS.double().mean(dim=1)
    outer_PTSS = prompt_PS[:, None, :, None] * tokens_TS[None, :, None, :]
    information_PT = torch.special.xlogy(joint_PTSS, joint_PTSS / outer_PTSS).sum(dim=(2, 3))
    entropy_P, entropy_T = (-torch.special.xlogy(share, share).sum(dim=1) for share in (prompt_PS, tokens_TS))
    return float((information_PT / torch.minimum(entropy_P[:, None], entropy_T[None])).mean())
