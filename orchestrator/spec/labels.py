"""How studies, sizes and times are named wherever people read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.spec.plan import StudyPlan


def varying_fields(plans: Sequence[StudyPlan], names: tuple[str, ...]) -> tuple[list[str], str]:
    """Which of these differ among the studies and need a column; the others in words, for a title."""
    values = {name: dict.fromkeys(f"{getattr(plan, name)}" for plan in plans) for name in names}
    same = [f"{name} {next(iter(found))}" for name, found in values.items() if len(found) == 1]
    return [name for name, found in values.items() if len(found) > 1], ", ".join(same)


def study_label(plan: StudyPlan, names: Sequence[str]) -> tuple[str, ...]:
    """The cells that name a study."""
    return tuple(str(getattr(plan, name)) for name in names)


def format_params(params: Mapping[str, Any]) -> str:
    """Parameters in a line."""
    return ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in params.items()
    )


def format_setting(value: Any) -> str:
    """A setting as YAML would say it."""
    if isinstance(value, dict):
        return (
            "{"
            + ", ".join(f"{name}: {format_setting(entry)}" for name, entry in value.items() if entry not in ({}, None))
            + "}"
        )
    return str(value)


def format_duration(seconds: float) -> str:
    """Seconds as h:mm:ss, or m:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
