"""Choice of a study's best trial, and the trials that val cannot tell from it."""

from __future__ import annotations

import base64
import functools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from orchestrator.spec.schema import Select
from orchestrator.study.statistics import find_worse
from orchestrator.study.trial import Trial
from trainer.metric_names import LEARNABLE_PARAMETERS

LEVEL = 0.05
"""Probability of calling any of several equal trials worse than the best one."""

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

    The others are significantly worse than the best one on the same images (`find_worse`). The test accounts for the
    number of trials, and for choosing the best on these images. If all trials are equally good, all are tied in 95 % of
    cases. A trial is never tied if its single predictions are not known, or if it was scored on other images.
    """
    by_val = rank_by_val(trials)
    if not by_val or CORRECT not in by_val[0].provenance:
        return by_val[:1]

    # Accuracies on other images cannot be paired image by image.
    comparable = [
        trial for trial in by_val if CORRECT in trial.provenance and _scored_images(trial) == _scored_images(by_val[0])
    ]
    is_worse = _find_worse_packed(tuple(trial.provenance[CORRECT] for trial in comparable), level)

    return [trial for trial, is_trial_worse in zip(comparable, is_worse, strict=True) if not is_trial_worse]


# Large enough for every study of a sweep: drivers ask for the best trial of each study again and again.
@functools.lru_cache(maxsize=4096)
def _find_worse_packed(packed: tuple[str, ...], level: float) -> tuple[bool, ...]:
    """Return which trials are significantly worse than the best one, by their packed images."""
    return tuple(find_worse(np.stack([unpack_correct(text) for text in packed]), level).tolist())


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
    """Return what identifies the images that a trial was scored on: fingerprint of the task, split, part and number.

    What follows in `scored_on`, the crop, may differ.
    """
    num_images = trial.provenance.get(CORRECT, "").partition(":")[0]
    return (*trial.provenance.get("scored_on", "").split("/")[:3], num_images)
