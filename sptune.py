"""Entry point of the command `sptune`. It makes sure that the packages it imports are its own."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
PACKAGES = ("orchestrator", "trainer")


def main() -> None:
    """Run the command. Nothing is imported from the working directory, and a foreign package ends it in a sentence."""
    leave_working_directory()
    for name in PACKAGES:
        sentence = foreign_package(name)
        if sentence is not None:
            print(f"error: {sentence}", file=sys.stderr)
            sys.exit(2)

    from orchestrator.cli import main as run
    from orchestrator.environment.process import prepare_process

    prepare_process()
    run()


def leave_working_directory() -> None:
    """Take the working directory off the path, where an empty or relative entry of PYTHONPATH put it.

    Such entries are accidents: `PYTHONPATH=$PYTHONPATH:/packages` begins with one if the variable was empty.
    """
    # Without the variable Python adds nothing.
    if not os.environ.get("PYTHONPATH"):
        return

    entries = [Path(entry) for entry in os.environ["PYTHONPATH"].split(os.pathsep)]
    kept = [entry for entry in entries if entry.is_absolute()]
    dropped = {entry.absolute() for entry in entries} - {*kept, ROOT}
    os.environ["PYTHONPATH"] = os.pathsep.join(map(str, kept))
    sys.path[:] = [entry for entry in sys.path if Path(entry).absolute() not in dropped]


def foreign_package(name: str) -> str | None:
    """Return a sentence if the import of one of our packages finds another one of that name; None if it finds ours."""
    own = ROOT / name
    spec = importlib.util.find_spec(name)
    # A folder without `__init__.py` is a package, too, and has no origin.
    places = [] if spec is None else [spec.origin, *(spec.submodule_search_locations or ())]
    place = next((Path(each).resolve() for each in places if each), None)
    if place is not None and own in (place, place.parent):
        return None
    return (
        f"`import {name}` finds {place} instead of {own}, which belongs to sptune. Rename it, take its folder off "
        "PYTHONPATH, or install sptune into an environment of its own."
    )
