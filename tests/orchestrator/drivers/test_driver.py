"""All drivers meet one protocol, and give the same sweep the same end."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.drivers.context import TrialContext
from orchestrator.drivers.driver import Driver
from orchestrator.drivers.inline import InlineDriver
from orchestrator.drivers.ray.driver import RayDriver
from orchestrator.drivers.replay import Clock, ReplayDriver, SyntheticCurves


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
