"""Section of a report on the params that each study chose on val, and on the trials tied with them."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.report.blocks import NOTHING, TableBlock, cells
from orchestrator.spec.labels import SETTING, format_params, study_label, varying_fields
from orchestrator.study.selection import find_tied
from orchestrator.study.study import Study
from orchestrator.study.trial import Trial

MAX_TIED = 6
"""Number of tied trials that a row lists."""


def chosen_block(studies: Sequence[Study]) -> TableBlock:
    """Return the params that each study chose on val, and the trials that are tied with the chosen one."""
    varying, same = varying_fields([study.plan for study in studies], SETTING)

    rows = []
    for study in studies:
        best = study.best
        if best is None or best.score is None:
            continue
        rows.append(
            cells(
                *study_label(study.plan, ["task", "method", *varying]),
                f"{100 * best.score:.1f}",
                str(best.number),
                _tied_text(study, best),
                format_params(best.params),
            )
        )

    return TableBlock(
        title=f"chosen on val\n{same}",
        header=("task", "method", *varying, "val %", "trial", "tied", "params"),
        rows=rows,
        names=2 + len(varying),
        last_is_text=True,
        is_reference=True,
    )


def _tied_text(study: Study, best: Trial) -> str:
    """Return the numbers of the trials tied with the best one, or why there are none."""
    tied = find_tied(study.requested_search_trials)
    numbers = [str(trial.number) for trial in tied if trial.trial_id != best.trial_id]
    if numbers:
        more = f" and {len(numbers) - MAX_TIED} more" if len(numbers) > MAX_TIED else ""
        return f"{', '.join(numbers[:MAX_TIED])}{more}"

    # Without the images that the best trial got right, no other trial can be tested against it.
    return "none" if "correct" in best.provenance else NOTHING


def selection_text(studies: Sequence[Study]) -> str:
    """Return how params were chosen, and what tied means."""
    explanations = {
        "last_val": "the one with the best val accuracy at the last epoch, the earliest among equals",
        "simplest_tied": "among the tied trials, the one with the fewest learnable parameters",
    }
    rules = dict.fromkeys(study.spec.final.select for study in studies)
    chosen = " or ".join(f"{explanations[rule]} (select: {rule})" for rule in rules)

    return (
        f"trial: the search trial whose params the final trials use. It is {chosen}.\n"
        "tied: trials that are not significantly worse than the best trial on val (5 %; max-T test by sign flips on "
        "single images). The test accounts for the number of trials and for choosing the best on the same images."
    )
