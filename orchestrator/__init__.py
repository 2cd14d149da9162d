"""Decides which configs to train, where they run, and what is stored.

The Python API is in `orchestrator.launch`: `launch`, `resume` and `open_sweep`.
"""

import importlib.util
from pathlib import Path

__version__ = "0.1.0"

__all__ = ["__version__"]


def _check_trainer() -> None:
    """Raise if the import of `trainer` finds another package of that name, in a script, a worker or a model server.

    Raises:
        ImportError: with the file that is found, and the way out.
    """
    # As in `sptune.py`, which nothing here can import safely: it may be a foreign one, too.
    own = Path(__file__).resolve().parents[1] / "trainer"
    spec = importlib.util.find_spec("trainer")
    # A folder without `__init__.py` is a package, too, and has no origin.
    places = [] if spec is None else [spec.origin, *(spec.submodule_search_locations or ())]
    place = next((Path(each).resolve() for each in places if each), None)
    if place is None or own not in (place, place.parent):
        raise ImportError(
            f"`import trainer` finds {place} instead of {own}, which belongs to sptune. Rename it, take its folder "
            "off PYTHONPATH, or install sptune into an environment of its own. `python -P` leaves out the folder of a "
            "script."
        )


_check_trainer()
