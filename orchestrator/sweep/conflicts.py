"""Compare a spec with the trials in the study database."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from orchestrator.errors import ConflictError
from orchestrator.spec.labels import study_text
from orchestrator.spec.overrides import merge_params, overrides_of, search_key
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
            text = f"{difference}{_origin(spec, study.plan, difference)}"
            plans_by_difference.setdefault(text, []).append(study.plan)

    if not plans_by_difference:
        return

    lines = []
    for difference, plans in plans_by_difference.items():
        more = f" and {len(plans) - 1} more" if len(plans) > 1 else ""
        lines.append(f"  {difference} (in {study_text(plans[0])}{more})")
    raise ConflictError(
        f"sweep {spec.name} already has trials that were run under other settings:\n" + "\n".join(lines) + "\n"
        "Undo the edit, or give the spec another name. You can add trials, tasks, methods, seeds and sizes, and widen "
        "ranges, without a new name."
    )


def delete_obsolete_trials(studies: Iterable[Study], on_delete: Callable[[Study], None]) -> None:
    """Delete the trials of studies that produced nothing before their spec was corrected.

    Args:
        on_delete: called with a study before its trials are deleted.
    """
    for study in studies:
        if study.is_obsolete:
            on_delete(study)
            study.delete_trials()


def _origin(spec: SweepSpec, plan: StudyPlan, difference: str) -> str:
    """Return the entry of `per` that gives a study its changed value, in words; empty if no entry does."""
    overrides = overrides_of(spec, plan.task, plan.backbone, plan.method)
    setting = difference.partition(" was ")[0]
    part, _, name = setting.partition(".")
    keys = merge_params(spec, overrides).keys

    key = search_key(name, overrides) if part == "search" else keys.get(name, setting)
    return f", from {key}" if key.startswith("per.") else ""
