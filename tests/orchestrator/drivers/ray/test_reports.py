"""Short epochs through real Ray: they come together, and the sweep is the one that a single process finds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import ray

from orchestrator.drivers.context import TrialContext
from orchestrator.drivers.ray.cluster import shut_down
from orchestrator.drivers.ray.driver import RayDriver
from orchestrator.spec.loader import parse_spec
from orchestrator.study.trial import Epoch
from tests.orchestrator.conftest import curve, drive, new_sweep, outcome
from trainer.config import TrainConfig

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module", autouse=True)
def _two_cores() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    shut_down()


def short_epochs(config: TrainConfig, context: TrialContext, stop: Callable[[], bool]) -> Iterator[Epoch]:
    """A trial on a synthetic curve, whose epochs take a fiftieth of a second."""
    for epoch, metrics in enumerate(curve(config), start=1):
        time.sleep(0.02)
        stop()
        yield Epoch(epoch=epoch, metrics=metrics)


def test_short_epochs_come_together_and_the_sweep_is_the_same(raw_study: dict[str, Any], tmp_path: Path) -> None:
    raw_study["fixed"]["epochs"] = 31
    spec = parse_spec(raw_study, "a test")
    alone = new_sweep(spec, f"sqlite:///{tmp_path / 'alone.db'}")
    drive(alone)

    together = new_sweep(spec, f"sqlite:///{tmp_path / 'together.db'}")
    sizes: list[int] = []
    on_epochs = together.on_epochs

    def counted(trial_id: str, epochs: Sequence[Epoch]) -> bool:
        sizes.append(len(epochs))
        return on_epochs(trial_id, epochs)

    together.on_epochs = counted  # type: ignore[method-assign]
    folder = str(tmp_path)
    context = TrialContext(data_root=folder, trials_folder=folder, prototype_cache=folder, weights=None, cpus=1, gpus=0)
    RayDriver(context, short_epochs).run(together)
    assert together.is_done
    assert outcome(together) == outcome(alone)
    assert max(sizes) > 1
