"""Check that a spec matches the trials in the study database."""

from __future__ import annotations

from collections.abc import Iterable

from orchestrator.errors import ConflictError
from orchestrator.spec.plan import StudyPlan
from orchestrator.spec.schema import SweepSpec
from orchestrator.study.study import Study


def check_spec_matches_trials(spec: SweepSpec, studies: Iterable[Study]) -> None:
    """Raise if trials were run under settings that the spec has changed.

    Raises:
        ConflictError: with every difference.
    """
    # Most edits change all studies in the same way, so each difference is listed once.
    plans_by_difference: dict[str, list[StudyPlan]] = {}
    for study in studies:
        for difference in study.conflicts():
            plans_by_difference.setdefault(difference, []).append(study.plan)

    if not plans_by_difference:
        return

    lines = []
    for difference, plans in plans_by_difference.items():
        more = f" and {len(plans) - 1} more" if len(plans) > 1 else ""
        lines.append(f"  {difference} (in {plans[0].key}{more})")
    raise ConflictError(
        f"sweep {spec.name} already has trials that were run under other settings:\n" + "\n".join(lines) + "\n"
        "Undo the edit, or give the spec another name. You can add trials, tasks, methods, seeds and sizes, and widen "
        "ranges, without a new name."
    )
