"""Find a sweep by its name: its home, its study database, and the spec recorded there."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.environment.connections import open_database, read_database
from orchestrator.environment.home import Home, home_at
from orchestrator.errors import SpecError, UserError
from orchestrator.spec.labels import study_text
from orchestrator.spec.shipped import SUFFIXES
from trainer.catalog import is_own
from trainer.validation import unknown_name

if TYPE_CHECKING:
    from orchestrator.spec.schema import SweepSpec
    from orchestrator.study.storage.database import StudyDatabase
    from orchestrator.study.study import Study


def find_sweep(
    home: str | None, sweep: str, *, strict: bool = False, writes: bool = False
) -> tuple[Home, StudyDatabase, SweepSpec]:
    """Return a sweep's home, its study database, and the spec recorded there.

    Args:
        sweep: its name, or its spec's file, or the name of a spec that ships. The file's `cluster` then says where to
            look, and its `name` what for, whatever else is wrong with the file today.
        strict: check the recorded spec as `launch` checks one. Without it, keys that this version does not know are
            ignored, so that a sweep of another version can be read and removed.
        writes: open the database for writing. Without it, the right to read is enough.

    Raises:
        UserError: if there is no such sweep, with the names of those there are.
    """
    from orchestrator.spec.loader import parse_recorded_spec, parse_spec

    place, name, database, raw = _locate(home, sweep)
    if writes:
        database.close()
        database = open_database(place)

    # Reading must not fail because a rule was added since.
    parse = parse_spec if strict else parse_recorded_spec
    spec = parse(raw, recorded_source(name))

    # Again, with the recorded cluster: a name alone did not say where MLflow and the tasks are.
    if place.holds_database:
        # The home may have been moved or copied since its address was recorded. It is where its database is.
        recorded = home_at(place.root, spec.cluster)
        return dataclasses.replace(recorded, database_url=place.database_url), database, spec
    return home_at(home, spec.cluster), database, spec


def _locate(home: str | None, sweep: str) -> tuple[Home, str, StudyDatabase, dict[str, object]]:
    """Return the home and the name of a sweep, its study database, open for reading, and its recorded spec."""
    from orchestrator.spec.loader import load_cluster, load_name

    path = _spec_file(sweep)
    if not sweep.endswith(SUFFIXES):
        # The name comes first: a file `demo` in the working directory must not hide the sweep.
        try:
            return _read_sweep(home_at(home), sweep)
        except UserError:
            if path is None:
                raise

    if path is not None:
        # The spec may say where its home is; the environment and --home still come first.
        return _read_sweep(home_at(home, load_cluster(path)), load_name(path))
    # The file is elsewhere today. Most sweeps have the name of their file.
    return _read_sweep(home_at(home), Path(sweep).stem)


def _spec_file(sweep: str) -> Path | None:
    """Return the file of a spec by its path, or by its name if it ships with sptune; None if there is none."""
    from orchestrator.spec.loader import find_spec

    try:
        path = find_spec(sweep)
    except SpecError:
        return None
    return None if path.is_dir() else path


def _read_sweep(home: Home, name: str) -> tuple[Home, str, StudyDatabase, dict[str, object]]:
    database, specs = recorded_specs(home)
    if name not in specs:
        problem = unknown_name(name, specs, f"a sweep in {_describe(home)}")
        raise UserError(f"{name}: {problem} Another home is named with --home.")
    # Before the spec is parsed, whose keys a newer version may use differently.
    database.check_version(name)
    return home, name, database, specs[name]


def recorded_source(name: str) -> str:
    """Return what the recorded spec of a sweep is called in errors."""
    return f"the recorded spec of {name}"


def recorded_specs(home: Home) -> tuple[StudyDatabase, dict[str, dict[str, object]]]:
    """Return the study database, open for reading, and the recorded spec of each of its sweeps.

    Raises:
        UserError: if there is none.
    """
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


def sweep_names(home: Home) -> list[str]:
    """Return the names of all sweeps of a home.

    Raises:
        UserError: if there is none.
    """
    database, specs = recorded_specs(home)
    database.close()
    return [*specs]


def _describe(home: Home) -> str:
    return home.root if home.database_file else f"the study database {home.database_name}"


def load_sweeps(home: str | None, sweeps: Sequence[str], *, epochs: bool) -> list[Study]:
    """Return the studies of several sweeps.

    Args:
        epochs: whether to read the metrics of every epoch, which are most of what there is to read.

    Raises:
        UserError: if there is no such sweep.
    """
    from orchestrator.study.study import load_studies

    studies: dict[tuple[str, str], list[Study]] = {}
    for sweep in dict.fromkeys(sweeps):
        place, database, spec = find_sweep(home, sweep)
        # A sweep that is named twice counts once, also if its name and its file are given.
        key = (place.database_url, spec.name)
        if key not in studies:
            studies[key] = load_studies(spec, database, epochs=epochs)
        # A process that reads a sweep again and again must not keep a connection for each time.
        database.close()
    return [study for each in studies.values() for study in each]


def load_combinable_sweeps(home: str | None, sweeps: Sequence[str], *, epochs: bool) -> list[Study]:
    """Return the studies of several sweeps that share a table or a figure.

    Raises:
        UserError: if there is no such sweep, or if two of them have the same study.
    """
    studies = load_sweeps(home, sweeps, epochs=epochs)
    counts = Counter(study_text(study.plan) for study in studies)
    shared = [name for name, count in counts.items() if count > 1]
    if shared:
        raise UserError(
            f"{shared[0]} is in several of these sweeps, and a table has one cell for it: report the sweeps one by one."
        )
    return studies


def few_images(studies: Sequence[Study], home: Home) -> list[str]:
    """Return a warning for each split of a user's own task that is too small for its purpose, as its import warned."""
    from trainer.data.task_store import read_card

    sentences = []
    for task in dict.fromkeys(study.plan.task for study in studies):
        try:
            card = read_card(home.data_root, task) if is_own(task) else None
        except OSError:
            # A store that does not answer hides no result.
            card = None
        if card is not None:
            sentences += [f"{task}: {warning}." for warning in card.warnings]
    return sentences
