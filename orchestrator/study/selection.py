"""Which differences are more than chance: between the trials of a study on val, and between methods on test."""

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
"""Chance of calling anything different that is not, in a whole family of tests (Holm's correction)."""


def pack_correct(correct_N: Sequence[bool] | NDArray[np.bool_]) -> str:
    """Which images were classified right, in text: their number, then a bit an image."""
    bits = np.packbits(np.asarray(correct_N, dtype=bool)).tobytes()
    return f"{len(correct_N)}:{base64.b64encode(bits).decode()}"


def unpack_correct(packed: str) -> NDArray[np.bool_]:
    """What `pack` was given."""
    count, _, bits = packed.partition(":")
    return np.unpackbits(np.frombuffer(base64.b64decode(bits), np.uint8), count=int(count)).astype(bool)


def find_tied(trials: Sequence[Trial], level: float = LEVEL) -> list[Trial]:
    """The complete trials of a study that val cannot tell from the best of them, which is the first; by val accuracy.

    Each is compared with the best image by image: McNemar's exact test (two-sided) on the images that only one of the
    two classifies right, with Holm's correction (Scandinavian Journal of Statistics 6, 1979) for the number of
    candidates. A trial of which it is not known which images it got right, or that was scored on other images, counts
    as different.
    """
    by_val = rank_by_val(trials)
    if not by_val or "correct" not in by_val[0].provenance:
        return by_val[:1]
    best, *others = [
        trial for trial in by_val if "correct" in trial.provenance and _images(trial) == _images(by_val[0])
    ]
    best_N = unpack_correct(best.provenance["correct"])
    p_values = [mcnemar(best_N, unpack_correct(trial.provenance["correct"])) for trial in others]
    return [best, *(trial for trial, p in zip(others, holm(p_values), strict=True) if p > level)]


def select_best(trials: Sequence[Trial], select: Select) -> Trial | None:
    """The trial whose params a study's final trials repeat, by a spec's `final.select`; None while there is none."""
    if select == "simplest_tied":
        return simplest(found) if (found := find_tied(trials)) else None
    return min(_complete(trials), key=_rank_key, default=None)


def rank_by_val(trials: Sequence[Trial]) -> list[Trial]:
    """The complete trials by val accuracy at their last epoch, of equals the earliest first; a config once."""
    return sorted(_complete(trials), key=_rank_key)


def _complete(trials: Sequence[Trial]) -> list[Trial]:
    return [trial for trial in trials if trial.score is not None and trial.duplicate_of is None]


def _rank_key(trial: Trial) -> tuple[float, int]:
    """Better ones sort first, of equals the earlier."""
    assert trial.score is not None, "it is complete"
    return -trial.score, trial.number


def simplest(trials: Sequence[Trial]) -> Trial:
    """The trial that learns the fewest parameters; of equals the one of the higher val accuracy, then the earliest."""
    return min(
        trials,
        key=lambda trial: (
            trial.last_metrics.get(LEARNABLE_PARAMETERS, math.inf),
            -(trial.score or 0.0),
            trial.number,
        ),
    )


def _images(trial: Trial) -> tuple[str, ...]:
    """The images that a trial was scored on: the task's fingerprint, the split, the part; crops may vary."""
    return tuple(trial.provenance.get("scored_on", "").split("/")[:3])
