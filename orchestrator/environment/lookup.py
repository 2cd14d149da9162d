"""Find a sweep by its name: its home, its study database, and the spec recorded there."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from orchestrator.environment.connections import open_database, read_database
from orchestrator.environment.home import Home, home_at
from orchestrator.errors import UserError
from orchestrator.spec.loader import find_spec, load_cluster, load_spec, parse_recorded_spec, parse_spec
from orchestrator.spec.schema import SweepSpec
from trainer.validation import unknown_name

if TYPE_CHECKING:
    from orchestrator.study.storage.database import StudyDatabase
    from orchestrator.study.study import Study


def find_sweep(
    home: str | None, sweep: str, *, strict: bool = False, writes: bool = False
) -> tuple[Home, StudyDatabase, SweepSpec]:
    """Return a sweep's home, its study database, and the spec recorded there.

    Args:
        sweep: its name, or its spec's file. The file's `cluster` then says where to look.
        strict: check the recorded spec as `launch` checks one. Without it, keys that this version does not know are
            ignored, so that a sweep of another version can be read and removed.
        writes: open the database for writing. Without it, the right to read is enough.

    Raises:
        UserError: if there is no such sweep, with the names of those there are.
    """
    if sweep.endswith((".yaml", ".yml")):
        path = find_spec(sweep)
        # The spec may say where its home is; the environment and --home still come first.
        place = home_at(home, load_cluster(path))
        name = load_spec(path).name
    else:
        place = home_at(home)
        name = sweep

    database, raw = _load_recorded_spec(place, name, writes=writes)
    # Reading must not fail because a rule was added since.
    parse = parse_spec if strict else parse_recorded_spec
    spec = parse(raw, f"the recorded spec of {name}")

    # Again, with the recorded cluster: a name alone did not say where MLflow and the tasks are.
    if place.holds_database:
        # The home may have been moved or copied since its address was recorded. It is where its database is.
        recorded = home_at(place.root, spec.cluster)
        return dataclasses.replace(recorded, database_url=place.database_url), database, spec
    return home_at(home, spec.cluster), database, spec


def sweep_names(home: Home) -> list[str]:
    """Return the names of all sweeps of a home.

    Raises:
        UserError: if there is none.
    """
    database, specs = _recorded_specs(home)
    database.close()
    return [*specs]


def _load_recorded_spec(home: Home, name: str, *, writes: bool) -> tuple[StudyDatabase, dict[str, object]]:
    database, specs = _recorded_specs(home)
    if name not in specs:
        raise UserError(f"{name}: {unknown_name(name, specs, f'a sweep in {_describe(home)}')}")
    # Before the spec is parsed, whose keys a newer version may use differently.
    database.check_version(name)

    if writes:
        database.close()
        database = open_database(home)
    return database, specs[name]


def _describe(home: Home) -> str:
    return home.root if home.database_file else f"the study database {home.database_name}"


def _recorded_specs(home: Home) -> tuple[StudyDatabase, dict[str, dict[str, object]]]:
    """Return the study database, open for reading, and the recorded spec of each of its sweeps."""
    if not home.database_url:
        raise UserError("\n".join(home.problems()))

    # For reading: a database that does not exist must not be created here.
    database = read_database(home)
    specs = database.sweeps() if database is not None else {}
    if database is None or not specs:
        raise UserError(
            f"{_describe(home)} holds no sweep; start one with `sptune launch demo`, or name another with --home."
        )
    return database, specs


def load_sweeps(home: str | None, sweeps: Sequence[str], *, epochs: bool) -> list[Study]:
    """Return the studies of several sweeps.

    Args:
        epochs: whether to read the metrics of every epoch, which are most of what there is to read.

    Raises:
        UserError: if there is no such sweep.
    """
    from orchestrator.study.study import load_studies

    studies = []
    # A sweep that is named twice counts once.
    for name in dict.fromkeys(sweeps):
        _, database, spec = find_sweep(home, name)
        studies += load_studies(spec, database, epochs=epochs)
        # A process that reads a sweep again and again must not keep a connection for each time.
        database.close()
    return studies


def load_combinable_sweeps(home: str | None, sweeps: Sequence[str], *, epochs: bool) -> list[Study]:
    """Return the studies of several sweeps that share a table or a figure.

    Raises:
        UserError: if there is no such sweep, or if two of them have the same study.
    """
    studies = load_sweeps(home, sweeps, epochs=epochs)
    counts = Counter(study.plan.key for study in studies)
    shared = [key for key, count in counts.items() if count > 1]
    if shared:
        raise UserError(
            f"{shared[0]} is in several of these sweeps, and a table has one cell for it: report the sweeps one by one."
        )
    return studies
