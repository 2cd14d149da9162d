"""Settings of a study: all that its trials depend on beside their numbers. A change would mix two experiments."""

from __future__ import annotations

from typing import Any

from orchestrator.spec.labels import format_setting
from orchestrator.spec.plan import StudyPlan
from orchestrator.spec.schema import BEFORE_KEY_EXISTED
from orchestrator.spec.space import widens


def study_settings(plan: StudyPlan) -> dict[str, Any]:
    """Return the settings by their keys in the spec, such as `search.seed`. They are stored with the study."""
    # More trials extend a study, so their number is no setting.
    values = plan.search.model_dump(exclude={"trials"})

    settings = (
        {f"search.{name}": value for name, value in values.items()}
        | {f"space.{name}": dimension.model_dump() for name, dimension in plan.space.items()}
        | {f"fixed.{name}": value for name, value in plan.fixed.items()}
    )

    # Left out where they are what version 0.1.0 did, so that the settings of its studies are unchanged.
    if plan.val_size != BEFORE_KEY_EXISTED["val_size"]:
        settings["val_size"] = plan.val_size
    if plan.search.eval_every == 1:
        del settings["search.eval_every"]
    return settings


def setting_conflicts(old: dict[str, Any], new: dict[str, Any], plan: StudyPlan) -> list[str]:
    """Return a sentence for each setting that changed. Wider ranges are no conflict."""
    old, new = BEFORE_KEY_EXISTED | old, BEFORE_KEY_EXISTED | new
    changed = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]

    return [
        f"{name} was {_in_words(name, old)}, is {_in_words(name, new)}{_cure(name, old)}"
        for name in changed
        if not _is_widened(name, old, plan)
    ]


def _in_words(name: str, settings: dict[str, Any]) -> str:
    return format_setting(settings[name]) if name in settings else "not set"


def _cure(name: str, old: dict[str, Any]) -> str:
    """Return what to write where a key is newer than the trials. The user may have edited nothing then."""
    if name not in BEFORE_KEY_EXISTED or old[name] != BEFORE_KEY_EXISTED[name]:
        return ""

    return f"; to go on with these trials, write `{name}: {old[name]}` in the spec"


def _is_widened(name: str, old: dict[str, Any], plan: StudyPlan) -> bool:
    if name not in old or not name.startswith("space."):
        return False

    dimension = plan.space.get(name.removeprefix("space."))
    return dimension is not None and widens(old[name], dimension)
