"""Find a sweep by name: its home, its study database and the spec recorded there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from orchestrator.environment.connections import open_database
from orchestrator.environment.home import Home, home_at
from orchestrator.errors import UserError
from orchestrator.redaction import redact
from orchestrator.spec.loader import find_spec, load_cluster, load_spec, parse_recorded_spec, parse_spec
from orchestrator.spec.schema import SweepSpec
from trainer.validation import unknown_name

if TYPE_CHECKING:
    from orchestrator.study.storage.database import StudyDatabase
    from orchestrator.study.study import Study


def load_recorded_spec(home: Home, name: str, *, to_run: bool = False) -> tuple[StudyDatabase, SweepSpec]:
    """The record, and the spec in it of a sweep.

    Args:
        to_run: whether trials will run, so that the spec must be valid today; else unknown keys are ignored.

    Raises:
        UserError: if there is no such sweep, with those there are, or the record cannot be opened.
    """
    where = home.root if home.database_file else f"the record {redact(home.database_url)}"
    if home.database_file is not None and not home.database_file.exists():
        raise UserError(f"{where} holds no sweep; start one with `sptune launch demo`, or give its --home.")
    if not home.database_url:
        raise UserError("\n".join(home.problems()))
    record = open_database(home)
    specs = record.sweeps()
    if not specs:
        raise UserError(f"{where} holds no sweep yet; start one with `sptune launch demo`.")
    if name not in specs:
        raise UserError(f"{name}: {unknown_name(name, specs, f'a sweep in {where}')}")
    record.check_version(name)
    parse = parse_spec if to_run else parse_recorded_spec
    return record, parse(specs[name], f"the recorded spec of {name}")


def find_sweep(home: str | None, sweep: str, *, to_run: bool = False) -> tuple[Home, StudyDatabase, SweepSpec]:
    """Where a sweep is, its record, and the spec in it.

    Args:
        sweep: its name, or its spec's file, whose `cluster` then says where to look.
        to_run: as in `load_recorded_spec`.

    Raises:
        UserError: if there is no such sweep.
    """
    if sweep.endswith((".yaml", ".yml")):
        path = find_spec(sweep)
        record, spec = load_recorded_spec(home_at(home, load_cluster(path)), load_spec(path).name, to_run=to_run)
    else:
        record, spec = load_recorded_spec(home_at(home), sweep, to_run=to_run)
    return home_at(home, spec.cluster), record, spec


def load_sweeps(home: str | None, sweeps: Sequence[str], *, epochs: bool) -> list[Study]:
    """The studies of sweeps.

    Raises:
        UserError: if one is not there.
    """
    from orchestrator.study.study import load_studies

    studies = []
    for name in dict.fromkeys(sweeps):
        _, record, spec = find_sweep(home, name)
        studies += load_studies(spec, record, epochs=epochs)
    return studies


def load_combinable_sweeps(home: str | None, sweeps: Sequence[str], *, epochs: bool) -> list[Study]:
    """The studies of sweeps, for one table or figure.

    Raises:
        UserError: if a sweep is not there, or two have the same study.
    """
    studies = load_sweeps(home, sweeps, epochs=epochs)
    if twice := [key for key, count in Counter(study.plan.key for study in studies).items() if count > 1]:
        raise UserError(f"{twice[0]} is in several of these sweeps and has one cell in a table: take them apart.")
    return studies
