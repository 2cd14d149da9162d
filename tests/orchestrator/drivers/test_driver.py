"""All drivers meet one protocol, and give the same sweep the same end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.drivers import inline
from orchestrator.drivers.context import TrialContext
from orchestrator.drivers.driver import Driver
from orchestrator.drivers.inline import InlineDriver
from orchestrator.drivers.ray.driver import RayDriver
from orchestrator.drivers.replay import Clock, ReplayDriver, SyntheticCurves
from orchestrator.spec.loader import parse_spec
from orchestrator.study.storage.database import StudyDatabase
from orchestrator.study.trial import Failure, FailureCause, TrialState
from orchestrator.sweep.sweep import Sweep
from orchestrator.sweep.tracker import MemoryTracker


@pytest.fixture
def context(tmp_path: Path) -> TrialContext:
    folder = str(tmp_path)
    return TrialContext(data_root=folder, trials_folder=folder, prototype_cache=folder, weights=None, cpus=1, gpus=0)


def test_every_driver_meets_the_protocol(context: TrialContext) -> None:
    # mypy checks the signatures; this line keeps the list complete.
    drivers: list[Driver] = [
        InlineDriver(context),
        RayDriver(context),
        ReplayDriver(SyntheticCurves([]), Clock(), workers=1),
    ]
    assert all(callable(driver.run) for driver in drivers)


def test_an_inline_sweep_stops_where_its_own_process_has_lost_the_gpu(
    raw_study: dict[str, Any], context: TrialContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = "AcceleratorError: CUDA error: an illegal memory access was encountered"

    def loses_its_gpu(*_: object, **__: object) -> Iterator[Failure]:
        yield Failure(cause=FailureCause.LOST, error=error, ends_process=True)

    monkeypatch.setattr(inline, "run_trial", loses_its_gpu)
    sweep = Sweep.resume(
        parse_spec(raw_study, "a test"), StudyDatabase(f"sqlite:///{tmp_path}/studies.db"), MemoryTracker()
    )
    InlineDriver(context).run(sweep)
    assert sweep.halt is not None
    assert sweep.halt.reason == "stopped: the GPU failed, and this process cannot use it any more"
    [trial] = sweep.studies[0].search_table.trials
    assert (trial.state, trial.error) == (TrialState.WAITING, error), "another process continues it"
