"""Names for the completion of shells. They come from tables and folders alone, so that an answer takes no torch.

Only names on this machine are read: a bucket or a database would answer too slowly for a key press.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import typer

from orchestrator.environment.home import DEFAULT_HOME
from orchestrator.spec.shipped import SUFFIXES, shipped_specs
from trainer.catalog import BACKBONES, METHODS, OWN, TASKS


def complete_spec(incomplete: str) -> list[str]:
    """Return the specs that ship, and YAML files."""
    return _matching([*shipped_specs(), *_spec_files(incomplete)], incomplete)


def complete_sweep(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the sweeps of the home, and YAML files."""
    names = _folders(_home(ctx) / "sweeps")
    # A command that takes several sweeps has those that were typed.
    typed = ctx.params.get("sweeps") or ()
    return _matching([name for name in (*names, *_spec_files(incomplete)) if name not in typed], incomplete)


def complete_task(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the tasks of the catalog, and the user's own in the task store."""
    data = ctx.params.get("data") or os.environ.get("SPTUNE_DATA")
    store = Path(str(data)) if data else _home(ctx) / "data"
    return _matching([*TASKS, *(f"{OWN}{name}" for name in _folders(store / OWN))], incomplete)


def complete_tasks_or_group(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return tasks, and the groups and benchmarks that stand for several."""
    groups = [task.group for task in TASKS.values()] + [name.partition("/")[0] for name in TASKS]
    return _matching([*dict.fromkeys(groups), *complete_task(ctx, "")], incomplete)


def complete_backbone(incomplete: str) -> list[str]:
    """Return the backbones of the catalog."""
    return _matching([*BACKBONES], incomplete)


def complete_method(incomplete: str) -> list[str]:
    """Return the methods of the catalog."""
    return _matching([*METHODS], incomplete)


def _home(ctx: typer.Context) -> Path:
    return Path(str(ctx.params.get("home") or os.environ.get("SPTUNE_HOME") or DEFAULT_HOME))


def _matching(names: list[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


def _folders(folder: Path) -> list[str]:
    """Return the names of the folders in a folder; none if it cannot be read."""
    try:
        return sorted(path.name for path in folder.iterdir() if path.is_dir())
    except OSError:
        return []


def _spec_files(incomplete: str) -> Iterator[str]:
    """Yield the YAML files, and the folders, of the folder that a path begins with."""
    folder, _, _ = incomplete.rpartition("/")
    start = f"{folder}/" if "/" in incomplete else ""
    try:
        paths = sorted(Path(start or ".").iterdir())
    except OSError:
        return

    for path in paths:
        if path.suffix in SUFFIXES:
            yield f"{start}{path.name}"
        # Not before a letter is typed: most folders have nothing to do with specs.
        elif incomplete and path.is_dir():
            yield f"{start}{path.name}/"
