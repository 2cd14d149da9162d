"""Messages from workers to the driver: the events of a report, or what a trial does instead, as a result of Tune.

They are in a list, because Tune flattens dicts. They are JSON, because Ray keeps the text of each other object that
Tune saves, until the driver ends.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from orchestrator.study.trial import Epoch, Failure, FailureCause


def to_result(events: Iterable[Epoch | Failure]) -> dict[str, Any]:
    """Return a report as a result of Tune."""
    return {"events": [_to_dict(event) for event in events]}


def phase_result(phase: str) -> dict[str, Any]:
    """Return a report of a trial that has no event yet, as a result of Tune.

    Args:
        phase: what the trial does.
    """
    return {"events": [], "phase": phase}


def phase_of(result: dict[str, Any]) -> str:
    """Return the phase in a result that `phase_result` made; empty for a report of events."""
    return str(result.get("phase", ""))


def from_result(result: dict[str, Any]) -> list[Epoch | Failure]:
    """Return the events of a result that `to_result` made."""
    return [_from_dict(event) for event in result["events"]]


def _to_dict(event: Epoch | Failure) -> dict[str, Any]:
    fields = dataclasses.asdict(event)
    return fields | {"cause": event.cause.value} if isinstance(event, Failure) else fields


def _from_dict(fields: dict[str, Any]) -> Epoch | Failure:
    if "cause" in fields:
        return Failure(**fields | {"cause": FailureCause(fields["cause"])})
    return Epoch(**fields)
