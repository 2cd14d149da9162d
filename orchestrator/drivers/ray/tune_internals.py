"""Private parts of Ray and Ray Tune that this driver uses.

Each is looked up here and nowhere else. If a version of Ray has renamed one, a warning says so once and the driver
works without it: idle workers are restarted for each trial, a silent worker is not killed, or a Ray of our own ends
slowly. A contract test (`tests/orchestrator/drivers/ray/test_tune_internals.py`) fails first.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Any, Protocol

from ray._private import worker as ray_worker
from ray.tune import PlacementGroupFactory
from ray.tune.experiment import Trial
from ray.tune.progress_reporter import TrialProgressCallback

log = logging.getLogger(__name__)


class ActorCache(Protocol):
    """Tune's cache of idle workers (`ray.tune.utils.object_cache`)."""

    @property
    def num_cached_objects(self) -> int:
        """Number of workers that have no trial at present."""

    def increase_max(self, key: PlacementGroupFactory, by: int = 1) -> None:
        """Allow so many more idle workers of a kind; fewer if the number is negative."""


class OwnNode(Protocol):
    """What this process knows of the node that it started or joined (`ray._private.node`)."""

    all_processes: dict[str, list[Any]]
    """Ray's processes that this process started, by their kind. None for a cluster that it joined."""
    kill_all_processes: Callable[..., None]
    """Ends them. `ray.shutdown` calls it at its end, with `allow_graceful=True`: SIGTERM, and a second to end."""


class SilentProgress(TrialProgressCallback):
    """Takes the place of Tune's own progress, which says "completed" of a trial without a result, at any verbosity.

    Such a trial was interrupted or never started. Tune adds its own callback where there is none of this class.
    """

    def on_trial_result(self, *_: Any, **info: Any) -> None:
        """Print nothing."""

    def on_trial_error(self, *_: Any, **info: Any) -> None:
        """Print nothing."""

    def on_trial_complete(self, *_: Any, **info: Any) -> None:
        """Print nothing."""


def own_node() -> OwnNode | None:
    """Return the node that this process started or joined; None if there is none, or this version of Ray hides it."""
    node = getattr(ray_worker, "_global_node", None)
    if node is None:
        return None
    if not hasattr(node, "all_processes") or not hasattr(node, "kill_all_processes"):
        _warn("its processes; a Ray of our own takes seconds to end")
        return None

    typed: OwnNode = node
    return typed


def actor_cache(tune_controller: Any) -> ActorCache | None:
    """Return the cache of idle workers, given what a scheduler is given; None if this version of Ray hides it."""
    controller = getattr(tune_controller, "_tune_controller", None)
    actors = getattr(controller, "_actor_cache", None)
    if actors is None or not hasattr(actors, "increase_max") or not hasattr(actors, "num_cached_objects"):
        _warn("its cache of idle workers; each trial starts a new worker")
        return None

    # mypy cannot see that an object of unknown type meets the protocol.
    typed: ActorCache = actors
    return typed


def worker_of(trial: Trial) -> Any | None:
    """Return the Ray actor that runs one of Tune's trials; None if it has none, or this version of Ray hides it."""
    state = getattr(trial, "temporary_state", None)
    if state is None or not hasattr(state, "ray_actor"):
        _warn("the worker of a trial; a silent worker is not killed")
        return None

    # None as well for a trial that is not started, which is no reason to warn.
    return state.ray_actor


def error_of(trial: Trial) -> Exception | None:
    """Return why one of Tune's trials lost its worker, if Ray says so."""
    if not hasattr(trial, "get_pickled_error"):
        _warn("the error of a trial; a lost worker is reported without its reason")
        return None

    error: Exception | None = trial.get_pickled_error()
    return error


@cache
def _warn(consequence: str) -> None:
    """Warn once a process: the parts are used many times a second."""
    log.warning("this version of Ray hides %s", consequence)
