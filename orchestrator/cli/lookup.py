"""Find a sweep by name: its home, its study database and the spec recorded there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from orchestrator.environment.connections import open_record
from orchestrator.environment.home import Home, home_at
from orchestrator.errors import UserError
from orchestrator.redaction import shown
from orchestrator.spec.loader import cluster_of, find_spec, load_spec, parse_spec
from orchestrator.spec.schema import SweepSpec
from trainer.validation import no_such

if TYPE_CHECKING:
    from orchestrator.study.storage.database import Record
    from orchestrator.study.study import Study


def recorded(home: Home, name: str) -> tuple[Record, SweepSpec]:
    """The record, and the spec in it of a sweep.

    Raises:
        UserError: if there is no such sweep, with those there are, or the record cannot be opened.
    """
    where = home.place if home.record_file else f"the record {shown(home.studies)}"
    if home.record_file is not None and not home.record_file.exists():
        raise UserError(f"{where} holds no sweep; start one with `sptune launch demo`, or give its --home.")
    if not home.studies:
        raise UserError("\n".join(home.problems()))
    record = open_record(home)
    specs = record.sweeps()
    if not specs:
        raise UserError(f"{where} holds no sweep yet; start one with `sptune launch demo`.")
    if name not in specs:
        raise UserError(f"{name}: {no_such(name, specs, f'a sweep in {where}')}")
    return record, parse_spec(specs[name], f"the recorded spec of {name}")


def found(home: str | None, sweep: str) -> tuple[Home, Record, SweepSpec]:
    """Where a sweep is, its record, and the spec in it.

    Args:
        sweep: its name, or its spec's file, whose `cluster` then says where to look.

    Raises:
        UserError: if there is no such sweep.
    """
    if sweep.endswith((".yaml", ".yml")):
        path = find_spec(sweep)
        record, spec = recorded(home_at(home, cluster_of(path)), load_spec(path).name)
    else:
        record, spec = recorded(home_at(home), sweep)
    return home_at(home, spec.cluster), record, spec


def opened(home: str | None, sweeps: Sequence[str], *, epochs: bool) -> list[Study]:
    """The studies of sweeps.

    Raises:
        UserError: if one is not there.
    """
    from orchestrator.study.study import open_studies

    studies = []
    for name in dict.fromkeys(sweeps):
        _, record, spec = found(home, name)
        studies += open_studies(spec, record, epochs=epochs)
    return studies


def together(home: str | None, sweeps: Sequence[str], *, epochs: bool) -> list[Study]:
    """The studies of sweeps, for one table or figure.

    Raises:
        UserError: if a sweep is not there, or two have the same study.
    """
    studies = opened(home, sweeps, epochs=epochs)
    if twice := [key for key, count in Counter(study.plan.key for study in studies).items() if count > 1]:
        raise UserError(f"{twice[0]} is in several of these sweeps and has one cell in a table: take them apart.")
    return studies
