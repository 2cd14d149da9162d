"""The private parts of Ray Tune: this version has them, and the driver works without them."""

from __future__ import annotations

import inspect
import logging
from types import SimpleNamespace

import pytest
from ray._private import worker as ray_worker
from ray._private.node import Node
from ray.tune import Callback, PlacementGroupFactory
from ray.tune.execution.tune_controller import TuneController, _FakeRayTrialExecutor
from ray.tune.experiment import Trial
from ray.tune.experiment.trial import _TemporaryTrialState
from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.utils.callback import _create_default_callbacks as create_default_callbacks
from ray.tune.utils.object_cache import _ObjectCache

from orchestrator.drivers.ray import tune_internals
from orchestrator.drivers.ray.own_ray import kill_at_shutdown
from orchestrator.drivers.ray.warm_workers import WarmWorkerPool

KIND = PlacementGroupFactory([{"CPU": 1}])


def scheduler_view(cache: object) -> object:
    """What Tune hands to a scheduler."""
    return _FakeRayTrialExecutor(SimpleNamespace(_actor_cache=cache))  # type: ignore[arg-type]


def test_this_version_of_ray_has_every_private_part() -> None:
    assert "_actor_cache" in TuneController.__init__.__code__.co_names
    cache = _ObjectCache()
    assert tune_internals.actor_cache(scheduler_view(cache)) is cache
    assert "ray_actor" in vars(_TemporaryTrialState())
    assert callable(Trial.get_pickled_error)
    assert hasattr(ray_worker, "_global_node")
    assert "all_processes" in Node.__init__.__code__.co_names
    # A Ray of our own gets another `kill_all_processes`, which `ray.shutdown` must call with keywords.
    assert "allow_graceful" in inspect.signature(Node.kill_all_processes).parameters
    assert "_global_node.kill_all_processes(" in inspect.getsource(inspect.unwrap(ray_worker.shutdown))


def test_idle_workers_are_kept_in_the_number_that_is_wanted() -> None:
    cache, pool = _ObjectCache(), WarmWorkerPool()
    pool.resize(cache, {KIND: 2})
    assert cache._max_num_objects[KIND] == 2
    pool.resize(cache, {KIND: 5})
    assert cache._max_num_objects[KIND] == 5, "the difference is added, not the number"
    pool.resize(cache, {})
    assert cache._max_num_objects[KIND] == 0


@pytest.mark.parametrize("progress", [[], [tune_internals.SilentProgress()]], ids=["of Tune", "of ours"])
def test_tune_says_nothing_of_trials_because_our_callback_takes_the_place_of_its_own(
    progress: list[Callback], capsys: pytest.CaptureFixture[str]
) -> None:
    callbacks = create_default_callbacks(progress, air_verbosity=None)
    trial = Trial("x", stub=True)
    for callback in callbacks:
        if isinstance(callback, TrialProgressCallback):
            callback.on_trial_complete(iteration=0, trials=[trial], trial=trial)
    assert ("completed" in capsys.readouterr().out) == (progress == []), "Tune's own one prints at any verbosity"


def test_without_the_cache_a_warning_says_so_once_and_nothing_fails(caplog: pytest.LogCaptureFixture) -> None:
    tune_internals._warn.cache_clear()
    hidden = scheduler_view(None)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert tune_internals.actor_cache(hidden) is None
            WarmWorkerPool().resize(None, {KIND: 2})
    assert [entry.getMessage() for entry in caplog.records] == [
        "this version of Ray hides its cache of idle workers; each trial starts a new worker"
    ]


def test_without_the_worker_of_a_trial_none_is_killed() -> None:
    tune_internals._warn.cache_clear()
    assert tune_internals.worker_of(SimpleNamespace()) is None  # type: ignore[arg-type]
    assert tune_internals.error_of(SimpleNamespace()) is None  # type: ignore[arg-type]


def test_without_the_processes_of_a_ray_of_our_own_it_ends_as_ray_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    tune_internals._warn.cache_clear()
    monkeypatch.setattr(ray_worker, "_global_node", SimpleNamespace())
    assert tune_internals.own_node() is None
    kill_at_shutdown()
