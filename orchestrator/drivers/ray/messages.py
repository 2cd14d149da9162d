"""Messages from workers to the driver: the events of a report, as a result of Tune.

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
