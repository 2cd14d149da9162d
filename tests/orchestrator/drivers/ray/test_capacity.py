"""Trials on real Ray with GPUs that it only counts: how many at once, with which share, of which kind."""

from __future__ import annotations

import functools
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from orchestrator.drivers.context import TrialContext
from orchestrator.drivers.ray.driver import RayDriver
from orchestrator.drivers.ray.worker import RunTrial
from orchestrator.errors import ClusterError
from orchestrator.spec.loader import parse_spec
from orchestrator.study.storage.database import StudyDatabase
from orchestrator.study.trial import Epoch, TrialState
from orchestrator.sweep.sweep import Sweep
from orchestrator.sweep.tracker import MemoryTracker
from trainer.config import TrainConfig

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module", autouse=True)
def _two_gpus() -> Iterator[None]:
    """A Ray that believes in eight cores and two GPUs of a kind."""
    ray.init(
        address="local", num_cpus=8, num_gpus=2, resources={"accelerator_type:A100": 1}, include_dashboard=False,
        log_to_driver=False,
    )  # fmt: skip
    yield
    ray.shutdown()


def begin(config: TrainConfig, workplace: TrialContext, together: int) -> None:
    """Write down which process has a trial, and wait until so many of its kind have begun, for workers start slowly."""
    folder, split, end = Path(workplace.trials_folder), config.eval_split, time.monotonic() + 60
    (folder / f"{split} {config.lr} {config.seed}").write_text(str(os.getpid()))
    while len([*folder.glob(f"{split} *")]) < together and time.monotonic() < end:
        time.sleep(0.05)


def thirty_percent(config: TrainConfig, workplace: TrialContext, stop: Callable[[], bool]) -> Iterator[Epoch]:
    """A trial that uses 30 % of its GPU's memory, and writes down what it was given and when."""
    given = ray.get_runtime_context().get_assigned_resources()
    began = time.time()
    begin(config, workplace, together=int(2 / given["GPU"]) if config.eval_split == "val" else 1)
    time.sleep(0.5)
    told = {"gpus": given.get("GPU", 0), "workplace": workplace.gpus, "began": began, "ended": time.time()}
    with Path(workplace.trials_folder, f"{began}-{config.lr}.json").open("w") as file:
        json.dump(told, file)
    yield Epoch(
        epoch=1,
        metrics={
            f"{config.eval_split}/accuracy": config.lr,
            "epoch/seconds": 0.5,
            "memory/peak_gb": 24.0,
            "memory/device_gb": 80.0,
        },
    )


def drive_small(raw: dict[str, Any], folder: Path, run_trial: RunTrial) -> Sweep:
    """A sweep of trials of an epoch, after its end."""
    raw |= {"fixed": {"epochs": 1, "warmup_epochs": 0}}
    sweep = Sweep.resume(parse_spec(raw, "a test"), StudyDatabase(f"sqlite:///{folder}/studies.db"), MemoryTracker())
    place = TrialContext(
        data_root=str(folder), trials_folder=str(folder), prototype_cache=str(folder), weights=None, cpus=1, gpus=0
    )
    RayDriver(place, run_trial).run(sweep)
    return sweep


def run(raw_study: dict[str, Any], resources: dict[str, Any], folder: Path) -> list[dict[str, float]]:
    """What each trial of a sweep of 11 was given, in the order in which they began."""
    raw = raw_study | {
        "search": {"trials": 10, "max_concurrent": 8},
        "final": {"seeds": [1]},
        "resources": resources,
    }
    drive_small(raw, folder, thirty_percent)
    told = [json.loads(file.read_text()) for file in folder.glob("*.json")]
    assert len(told) == 11
    return sorted(told, key=lambda one: one["began"])


def most_at_once(told: list[dict[str, float]]) -> int:
    """The largest number of trials that were under way together."""
    return max(sum(one["began"] <= other["began"] < one["ended"] for one in told) for other in told)


def test_trials_of_half_a_gpu_run_in_twos_on_each(raw_study: dict[str, Any], tmp_path: Path) -> None:
    told = run(raw_study, {"gpus": 0.5}, tmp_path)
    assert {one["gpus"] for one in told} == {0.5}
    assert {one["workplace"] for one in told} == {0.5}
    assert most_at_once(told) == 4


def test_an_automatic_share_begins_with_whole_gpus_and_goes_on_as_measured(
    raw_study: dict[str, Any], tmp_path: Path
) -> None:
    told = run(raw_study, {"gpus": "auto", "accelerator_type": "A100"}, tmp_path)
    assert told[0]["gpus"] == 1.0, "nothing like it was measured"
    assert told[-1]["gpus"] == pytest.approx(1 / 3, abs=1e-3), "three times 30 % fit in 90 %"


def test_what_no_node_can_run_is_refused_with_what_there_is(raw_study: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ClusterError) as refused:
        run(raw_study, {"gpus": 1, "accelerator_type": "H100"}, tmp_path)
    assert "a trial of vit_nano_patch4_32.mae asks for 1 CPUs and 1 GPUs of type H100" in str(refused.value)
    assert "8 CPUs and 2 GPUs (A100)" in str(refused.value)
    assert "Lower `resources` in the spec, give --address of another cluster" in str(refused.value)


def one_waits_for_the_other(config: TrainConfig, workplace: TrialContext, stop: Callable[[], bool]) -> Iterator[Epoch]:
    """Of two trials, one tells two epochs and is at its third; the other tells none until that has been given up."""
    folder = Path(workplace.trials_folder)
    (folder / f"{config.lr}.begun").touch()
    told = {"val/accuracy": 0.5, "epoch/seconds": 1.0}
    try:
        (folder / "first").touch(exist_ok=False)
    except FileExistsError:
        for _ in range(200):
            if (folder / "given up").exists():
                (folder / "seen").touch()
                break
            time.sleep(0.1)
        yield Epoch(epoch=1, metrics=told)
        return
    for epoch in (1, 2):
        time.sleep(0.5)
        yield Epoch(epoch=epoch, metrics=told)
    try:
        while not stop():
            time.sleep(0.05)
    finally:
        (folder / "given up").touch()


def test_a_sweep_that_stops_at_once_gives_up_what_is_ahead_and_begins_no_trial_that_waited_for_a_worker(
    raw_study: dict[str, Any], tmp_path: Path
) -> None:
    raw = raw_study | {"fixed": {"epochs": 3, "warmup_epochs": 0}, "resources": {"gpus": 1}}
    raw |= {"search": {"trials": 8, "max_concurrent": 8, "pruner": {"type": "none"}}}
    sweep = Sweep.resume(parse_spec(raw, "a test"), StudyDatabase(f"sqlite:///{tmp_path}/studies.db"), MemoryTracker())
    place = TrialContext(
        data_root=str(tmp_path),
        trials_folder=str(tmp_path),
        prototype_cache=str(tmp_path),
        weights=None,
        cpus=1,
        gpus=0,
    )
    handed: list[int] = []

    def stop_at_the_first_epoch() -> None:
        trials = sweep.studies[0].search_table.trials
        handed.append(len(trials))
        if any(trial.epochs for trial in trials):
            sweep.stop("enough")

    RayDriver(place, one_waits_for_the_other).run(sweep, stop_at_the_first_epoch)
    sweep.close()
    assert max(handed) == 3, "one waits for the two GPUs"
    assert len(list(tmp_path.glob("*.begun"))) == 2
    assert (tmp_path / "seen").exists()
    assert {trial.state for trial in sweep.studies[0].search_table.trials} == {TrialState.WAITING}


def together(count: int, config: TrainConfig, workplace: TrialContext, stop: Callable[[], bool]) -> Iterator[Epoch]:
    """One of so many trials that run at the same time."""
    begin(config, workplace, count)
    yield Epoch(epoch=1, metrics={f"{config.eval_split}/accuracy": config.lr, "epoch/seconds": 1.0})


def processes(raw: dict[str, Any], folder: Path, count: int) -> dict[str, list[str]]:
    """Those that had a sweep's search and final trials, so many at the same time."""
    drive_small(raw, folder, functools.partial(together, count))
    return {split: [file.read_text() for file in folder.glob(f"{split} *")] for split in ("val", "test")}


def test_workers_that_wait_for_the_end_of_a_search_stay_for_the_final_trials(
    raw_study: dict[str, Any], tmp_path: Path
) -> None:
    raw = raw_study | {"resources": {"cpus": 2}, "final": {"seeds": [1, 2, 3, 4]}}
    raw |= {"search": {"trials": 4, "max_concurrent": 4, "pruner": {"type": "none"}}}
    found = processes(raw, tmp_path, 4)
    assert len({*found["val"]}) == 4
    assert sorted(found["test"]) == sorted(found["val"])


def test_workers_that_wait_give_way_to_trials_that_need_more(
    raw_study: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = "vit_tiny_patch16_224.augreg_in21k"
    raw = raw_study | {"backbones": [*raw_study["backbones"], large], "final": {"seeds": [1]}}
    raw |= {"resources": {"cpus": 2, "backbones": {large: {"cpus": 8}}}}
    raw |= {"search": {"trials": 4, "max_concurrent": 4, "pruner": {"type": "none"}}}
    # Otherwise the idle workers end by themselves after a minute.
    monkeypatch.setattr("orchestrator.drivers.ray.warm_workers.IDLE_TIMEOUT_S", 1e9)
    assert len(processes(raw, tmp_path, 1)["test"]) == 2


def num_alive(files: list[Path]) -> int:
    """How many of the processes that these files name are there."""
    return sum(psutil.pid_exists(int(file.read_text())) for file in files)


def three_of_four_go(config: TrainConfig, workplace: TrialContext, stop: Callable[[], bool]) -> Iterator[Epoch]:
    """A trial whose process is told to go, or killed, once it rests; the last one sees that they are gone."""
    folder, judged = Path(workplace.trials_folder), config.eval_split
    begin(config, workplace, together=4 if judged == "val" else 1)
    files = sorted(folder.glob("val *"))
    if judged == "val":
        place = files.index(folder / f"val {config.lr} {config.seed}")
        if place > 0:
            how = signal.SIGKILL if place == 1 else signal.SIGTERM
            threading.Timer(1.5, os.kill, (os.getpid(), how)).start()
        else:
            deadline = time.monotonic() + 30
            while (left := num_alive(files)) > 1 and time.monotonic() < deadline:
                time.sleep(0.1)
            (folder / "left").write_text(str(left))
    yield Epoch(epoch=1, metrics={f"{judged}/accuracy": config.lr, "epoch/seconds": 1.0})


def test_workers_that_rest_go_at_once_when_told_and_are_replaced(raw_study: dict[str, Any], tmp_path: Path) -> None:
    raw = raw_study | {"resources": {"cpus": 2}, "final": {"seeds": [1, 2, 3, 4]}}
    raw |= {"search": {"trials": 4, "max_concurrent": 4, "pruner": {"type": "none"}}}
    sweep = drive_small(raw, tmp_path, three_of_four_go)
    assert (tmp_path / "left").read_text() == "1"
    assert sweep.is_done
    assert {trial.state for trial in sweep.studies[0].trials} == {TrialState.COMPLETE}
