"""Choice of a study's best trial, and the trials that val cannot tell from it."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from orchestrator.spec.schema import Select
from orchestrator.study.statistics import holm, mcnemar
from orchestrator.study.trial import Trial
from trainer.metric_names import LEARNABLE_PARAMETERS

LEVEL = 0.05
"""Probability of calling any two equal trials different, over a whole family of tests (with Holm's correction)."""

CORRECT = "correct"
"""Key of a trial's provenance: which images it classified right, packed into text."""


def pack_correct(correct_N: Sequence[bool] | NDArray[np.bool_]) -> str:
    """Return as text which images were classified right: their number, then one bit for each image."""
    # Text, because MLflow tags and JSON hold no bytes; 200 images take 38 characters.
    bits = np.packbits(np.asarray(correct_N, dtype=bool)).tobytes()
    return f"{len(correct_N)}:{base64.b64encode(bits).decode()}"


def unpack_correct(packed: str) -> NDArray[np.bool_]:
    """Return what `pack_correct` was given."""
    count, _, bits = packed.partition(":")
    return np.unpackbits(np.frombuffer(base64.b64decode(bits), np.uint8), count=int(count)).astype(bool)


def find_tied(trials: Sequence[Trial], level: float = LEVEL) -> list[Trial]:
    """Return the complete trials that val cannot tell from the best one, which comes first; ordered by val accuracy.

    Each trial is compared with the best one image by image: McNemar's exact test (two-sided) on the images that only
    one of the two classifies right, with Holm's correction (Scandinavian Journal of Statistics 6, 1979) for the
    number of candidates. A trial counts as different if its single predictions are not known, or if it was scored on
    other images.
    """
    by_val = rank_by_val(trials)
    if not by_val or CORRECT not in by_val[0].provenance:
        return by_val[:1]

    # Accuracies on other images cannot be paired image by image.
    best, *others = [
        trial for trial in by_val if CORRECT in trial.provenance and _scored_images(trial) == _scored_images(by_val[0])
    ]
    best_N = unpack_correct(best.provenance[CORRECT])
    p_values = [mcnemar(best_N, unpack_correct(trial.provenance[CORRECT])) for trial in others]

    return [best, *(trial for trial, p in zip(others, holm(p_values), strict=True) if p > level)]


def select_best(trials: Sequence[Trial], select: Select) -> Trial | None:
    """Return the trial that a study's final trials repeat, by the spec's `final.select`; None while there is none."""
    if select == "simplest_tied":
        tied = find_tied(trials)
        return simplest(tied) if tied else None

    return min(_complete(trials), key=_rank_key, default=None)


def rank_by_val(trials: Sequence[Trial]) -> list[Trial]:
    """Return the complete trials ordered by val accuracy at their last epoch, without duplicates.

    Of equal trials, the earliest comes first.
    """
    return sorted(_complete(trials), key=_rank_key)


def _complete(trials: Sequence[Trial]) -> list[Trial]:
    return [trial for trial in trials if trial.score is not None and trial.duplicate_of is None]


def _rank_key(trial: Trial) -> tuple[float, int]:
    assert trial.score is not None, "it is complete"
    return -trial.score, trial.number


def simplest(trials: Sequence[Trial]) -> Trial:
    """Return the trial that learns the fewest parameters; of equal ones the best on val, then the earliest."""
    return min(
        trials,
        key=lambda trial: (
            trial.last_metrics.get(LEARNABLE_PARAMETERS, math.inf),
            -(trial.score or 0.0),
            trial.number,
        ),
    )


def _scored_images(trial: Trial) -> tuple[str, ...]:
    """Return what identifies the images that a trial was scored on: the task's fingerprint, the split and the part.

    What follows in `scored_on`, the crop, may differ.
    """
    return tuple(trial.provenance.get("scored_on", "").split("/")[:3])
