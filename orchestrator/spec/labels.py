"""Names of studies, params, settings and durations, as people read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trainer.config import TrainConfig
from trainer.plain_text import format_train_size
from trainer.validation import is_full

if TYPE_CHECKING:
    from orchestrator.spec.plan import StudyPlan

SETTING = ("backbone", "train_size", "draw")
"""Fields that tell studies of one task and method apart."""


def varying_fields(plans: Sequence[StudyPlan], names: tuple[str, ...]) -> tuple[list[str], str]:
    """Return which of these fields differ among the studies, and the values of the others in words.

    A table needs a column for the fields that differ, and names the others in its title. Draw 0 is not named there: it
    is the only draw unless a spec asks for more.
    """
    # A dict instead of a set, to keep the order of the spec.
    values = {name: dict.fromkeys(f"{getattr(plan, name)}" for plan in plans) for name in names}
    common = [f"{name} {next(iter(distinct))}" for name, distinct in values.items() if len(distinct) == 1]
    common = [text for text in common if text != "draw 0"]

    return [name for name, distinct in values.items() if len(distinct) > 1], ", ".join(common)


def study_label(plan: StudyPlan, names: Sequence[str]) -> tuple[str, ...]:
    """Return the table cells that name a study."""
    return tuple(str(getattr(plan, name)) for name in names)


def study_text(study: StudyPlan | TrainConfig) -> str:
    """Return the name of a study for people: its key, with the train size named.

    Args:
        study: the study, or the config of one of its trials.
    """
    draw = f" draw {study.draw}" if study.draw else ""
    return f"{study.task} {study.method} {study.backbone} train_size {study.train_size}{draw}"


def setting_text(plan: StudyPlan) -> str:
    """Return a study in words: task, method, backbone, train size and, of several, the draw."""
    draw = f", draw {plan.draw}" if plan.draw else ""
    return f"{plan.task}, {plan.method}, {plan.backbone}, {train_size_text(plan.train_size)}{draw}"


def train_size_text(train_size: float | int | str) -> str:
    """Return a train size in words. As a number, all images could be taken for one."""
    return "all training images" if is_full(train_size) else f"train size {format_train_size(train_size)}"


def format_value(value: Any) -> str:
    """Return a plain value as YAML writes it: `null`, `true`, 0.1."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def format_params(params: Mapping[str, Any]) -> str:
    """Return params on one line, floats with three digits."""
    return ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {format_value(value)}"
        for name, value in params.items()
    )


def format_setting(value: Any) -> str:
    """Return a setting in YAML's flow style, without empty entries."""
    if isinstance(value, dict):
        entries = [f"{name}: {format_setting(entry)}" for name, entry in value.items() if entry not in ({}, None)]
        return "{" + ", ".join(entries) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(format_setting, value))}]"

    return format_value(value)


def format_duration(seconds: float) -> str:
    """Return seconds as h:mm:ss, or as m:ss if shorter than an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)

    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
