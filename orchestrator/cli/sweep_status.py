"""What is known of a sweep from outside: its progress, and whether a driver runs it. Nothing is written."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from orchestrator.environment.home import Home
from orchestrator.environment.lookup import find_sweep, recorded_source, recorded_specs
from orchestrator.errors import UserError
from orchestrator.spec.loader import parse_recorded_spec
from orchestrator.study.storage.database import StudyDatabase
from orchestrator.study.storage.lease import DriverStatus
from orchestrator.study.study import Study, load_studies
from orchestrator.study.summary import StudySummary
from orchestrator.sweep.checkpoint_retention import CheckpointRetention
from orchestrator.sweep.device_kinds import mixed_devices

SweepState = Literal["running", "done", "stopped", "dead", "unreadable"]
"""running: a driver runs it. done: nothing is left to run. dead: its driver died before that. stopped: its driver ended
before that. unreadable: this version cannot read it."""
MAX_LOOKS_AT_ONCE = 16
"""Sweeps whose drivers are looked for at the same time: each may have to be watched for seconds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepStatus:
    """Progress of a sweep, its driver and its size on disk."""

    name: str
    state: SweepState
    summaries: list[StudySummary]
    alive: DriverStatus | None
    """The driver that runs it."""
    dead: DriverStatus | None
    """A driver that died without releasing the sweep."""
    halt: str | None
    """Why the last driver ended before the sweep was done."""
    mixed_devices: list[str]
    num_checkpoints: int
    checkpoint_bytes: int
    trial_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ListedSweep:
    """A sweep in the list of a home."""

    name: str
    state: SweepState
    num_studies: int = 0
    num_planned: int = 0
    num_finished: int = 0
    num_failed: int = 0
    note: str = ""
    """Why it does not go on, if that is known."""


def read_status(home: str | None, sweep: str) -> SweepStatus:
    """Read how far a sweep is.

    Raises:
        UserError: if there is no such sweep.
    """
    place, database, spec = find_sweep(home, sweep)
    with contextlib.closing(database):
        # Epochs are read too: the time that is left is computed from them.
        studies = load_studies(spec, database)
        drivers = database.lease(spec.name).drivers()
        halt = database.halt_reason(spec.name)

    files = CheckpointRetention(place.trials_folder(spec.name), spec.keep).size()
    num_checkpoints, checkpoint_bytes, trial_bytes = files
    return SweepStatus(
        name=spec.name,
        state=_state(studies, drivers),
        summaries=[study.summary() for study in studies],
        alive=next((driver for driver in drivers if driver.is_alive), None),
        dead=next((driver for driver in drivers if not driver.is_alive), None),
        halt=halt,
        mixed_devices=mixed_devices(studies),
        num_checkpoints=num_checkpoints,
        checkpoint_bytes=checkpoint_bytes,
        trial_bytes=trial_bytes,
    )


def list_sweeps(home: Home) -> list[ListedSweep]:
    """Return all sweeps of a home, in the order of their first launches.

    Raises:
        UserError: if there is none.
    """
    database, specs = recorded_specs(home)
    # One after another, sweeps with drivers on other machines could take ten seconds each.
    with contextlib.closing(database), ThreadPoolExecutor(MAX_LOOKS_AT_ONCE) as pool:
        drivers = pool.map(lambda name: database.lease(name).drivers(), specs)
        return [_list(database, name, raw, found) for (name, raw), found in zip(specs.items(), drivers, strict=True)]


def _list(database: StudyDatabase, name: str, raw: dict[str, object], drivers: Sequence[DriverStatus]) -> ListedSweep:
    try:
        database.check_version(name)
        studies = load_studies(parse_recorded_spec(raw, recorded_source(name)), database, epochs=False)
    except UserError as error:
        # One that a newer version wrote hides no other.
        return ListedSweep(name=name, state="unreadable", note=str(error))

    state = _state(studies, drivers)
    summaries = [study.summary() for study in studies]
    reason = database.halt_reason(name) or ""
    if state == "dead":
        reason = drivers[0].describe_last_heartbeat()
    return ListedSweep(
        name=name,
        state=state,
        num_studies=len(studies),
        num_planned=sum(summary.num_planned for summary in summaries),
        num_finished=sum(summary.num_finished for summary in summaries),
        num_failed=sum(len(summary.failed_trials) for summary in summaries),
        note=reason,
    )


def _state(studies: Sequence[Study], drivers: Sequence[DriverStatus]) -> SweepState:
    if any(driver.is_alive for driver in drivers):
        return "running"
    if all(study.is_closed for study in studies):
        return "done"
    return "dead" if drivers else "stopped"
