"""Whether a spec fits the trials that the record already holds."""

from __future__ import annotations

from collections.abc import Iterable

from orchestrator.errors import ConflictError
from orchestrator.spec.plan import StudyPlan
from orchestrator.spec.schema import SweepSpec
from orchestrator.study.study import Study


def check_spec_matches_trials(spec: SweepSpec, opened: Iterable[Study]) -> None:
    """See that a spec fits the trials that are there.

    Raises:
        ConflictError: with every difference.
    """
    places: dict[str, list[StudyPlan]] = {}
    for study in opened:
        for difference in study.conflicts():
            places.setdefault(difference, []).append(study.plan)
    if places:
        told = [
            f"  {difference} (in {plans[0].key}{f' and {len(plans) - 1} more' if len(plans) > 1 else ''})"
            for difference, plans in places.items()
        ]
        raise ConflictError(
            f"sweep {spec.name} already has trials made under other settings:\n" + "\n".join(told) + "\n"
            "Undo the edit, or give the spec another name. More trials, tasks, methods, seeds and sizes, and wider "
            "ranges, are no contradiction."
        )
