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
from orchestrator.drivers.ray.cluster import shut_down
from orchestrator.drivers.ray.driver import RayDriver
from orchestrator.drivers.ray.worker import RunTrial
from orchestrator.errors import ClusterError
from orchestrator.spec.loader import parse_spec
from orchestrator.study.storage.database import StudyDatabase
from orchestrator.study.trial import Epoch, Failure, FailureCause, TrialState
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
    shut_down()


def begin(config: TrainConfig, context: TrialContext, together: int) -> None:
    """Write down which process has a trial, and wait until so many of its kind have begun, for workers start slowly."""
    folder, split, end = Path(context.trials_folder), config.eval_split, time.monotonic() + 60
    (folder / f"{split} {config.lr} {config.seed}").write_text(str(os.getpid()))
    while len([*folder.glob(f"{split} *")]) < together and time.monotonic() < end:
        time.sleep(0.05)


def writes_down(config: TrainConfig, context: TrialContext, stop: Callable[[], bool]) -> Iterator[Epoch]:
    """A trial that writes down what it was given and when."""
    given = ray.get_runtime_context().get_assigned_resources()
    began = time.time()
    begin(config, context, together=int(2 / given["GPU"]) if config.eval_split == "val" else 1)
    time.sleep(0.5)
    measured = {"gpus": given.get("GPU", 0), "context": context.gpus, "began": began, "ended": time.time()}
    with Path(context.trials_folder, f"{began}-{config.lr}.json").open("w") as file:
        json.dump(measured, file)
    yield Epoch(epoch=1, metrics={f"{config.eval_split}/accuracy": config.lr, "epoch/seconds": 0.5})


def shares(config: TrainConfig, context: TrialContext, stop: Callable[[], bool]) -> Iterator[Epoch]:
    """A trial that is as fast beside others as alone. The first four of half a GPU wait for each other."""
    folder, began = Path(context.trials_folder), time.time()
    if context.gpus == 0.5:
        (folder / f"half {os.getpid()} {config.lr} {config.seed}").touch()
        while len([*folder.glob("half *")]) < 4 and time.time() < began + 60:
            time.sleep(0.05)

    (gpu,) = ray.get_gpu_ids()
    for epoch in range(1, 7):
        time.sleep(0.1)
        metrics = {
            "train/images_per_s": 100.0,
            "epoch/seconds": 0.0,
            "memory/peak_gb": 8.0,
            "memory/device_gb": 80.0,
        }
        if epoch == 6 or config.eval_split == "val":
            metrics[f"{config.eval_split}/accuracy"] = config.lr
        if epoch == 6:
            measured = {"gpus": context.gpus, "began": began, "ended": time.time()}
            (folder / f"{began}-{config.lr}.json").write_text(json.dumps(measured))
        facts = {"gpu": f"GPU {gpu} of here", "device": "A100", "mps": "yes"}
        yield Epoch(epoch=epoch, metrics=metrics, provenance=facts)


def drive_small(raw: dict[str, Any], folder: Path, run_trial: RunTrial, epochs: int = 1) -> Sweep:
    """A sweep of trials of an epoch or more, after its end."""
    raw |= {"fixed": {"epochs": epochs, "warmup_epochs": 0}}
    sweep = Sweep.resume(parse_spec(raw, "a test"), StudyDatabase(f"sqlite:///{folder}/studies.db"), MemoryTracker())
    context = TrialContext(
        data_root=str(folder), trials_folder=str(folder), prototype_cache=str(folder), weights=None, cpus=1, gpus=0
    )
    RayDriver(context, run_trial).run(sweep)
    return sweep


def run(
    raw_study: dict[str, Any],
    resources: dict[str, Any],
    folder: Path,
    run_trial: RunTrial = writes_down,
    trials: int = 10,
    epochs: int = 1,
) -> list[dict[str, float]]:
    """What each trial of a sweep was given, in the order in which they began. One of them is a final trial."""
    raw = raw_study | {
        "search": {"trials": trials, "max_concurrent": 8, "pruner": {"type": "none"}},
        "final": {"seeds": [1]},
        "resources": resources,
    }
    drive_small(raw, folder, run_trial, epochs)
    given = [json.loads(file.read_text()) for file in folder.glob("*.json")]
    assert len(given) == trials + 1
    return sorted(given, key=lambda trial: trial["began"])


def most_at_once(trials: list[dict[str, float]]) -> int:
    """The largest number of trials that ran at the same time."""
    starts = [trial["began"] for trial in trials]
    return max(sum(trial["began"] <= start < trial["ended"] for trial in trials) for start in starts)


def test_trials_of_half_a_gpu_run_in_twos_on_each(raw_study: dict[str, Any], tmp_path: Path) -> None:
    trials = run(raw_study, {"gpus": 0.5}, tmp_path)
    assert {trial["gpus"] for trial in trials} == {0.5}
    assert {trial["context"] for trial in trials} == {0.5}
    assert most_at_once(trials) == 4


def test_an_automatic_share_begins_with_whole_gpus_and_then_more_trials_run_at_once(
    raw_study: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.sweep.gpu_occupancy.REPORT_DELAY_S", 0.0)
    trials = run(raw_study, {"gpus": "auto", "accelerator_type": "A100"}, tmp_path, shares, trials=16, epochs=6)
    assert [trial["gpus"] for trial in trials[:2]] == [1.0, 1.0], "nothing like them was measured"
    assert most_at_once([trial for trial in trials if trial["gpus"] == 0.5]) >= 4, "two on each GPU"


def test_trials_that_fit_no_node_are_refused_with_the_resources_that_exist(
    raw_study: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(ClusterError) as refused:
        run(raw_study, {"gpus": 1, "accelerator_type": "H100"}, tmp_path)
    assert "a trial of vit_nano_patch4_32.mae asks for 1 CPU and 1 GPU of type H100" in str(refused.value)
    assert "8 CPUs and 2 GPUs (A100)" in str(refused.value)
    assert "Lower `resources` in the spec, give --address of another cluster" in str(refused.value)


def one_waits_for_the_other(config: TrainConfig, context: TrialContext, stop: Callable[[], bool]) -> Iterator[Epoch]:
    """Of two trials, one yields two epochs and trains its third; the other yields none until the first is cancelled."""
    folder = Path(context.trials_folder)
    (folder / f"{config.lr}.begun").touch()
    metrics = {"val/accuracy": 0.5, "epoch/seconds": 1.0}
    try:
        (folder / "first").touch(exist_ok=False)
    except FileExistsError:
        for _ in range(1200):
            if (folder / "cancelled").exists():
                (folder / "seen").touch()
                break
            time.sleep(0.1)
        yield Epoch(epoch=1, metrics=metrics)
        return
    # A worker may start much later than the other.
    end = time.monotonic() + 120
    while len([*folder.glob("*.begun")]) < 2 and time.monotonic() < end:
        time.sleep(0.05)
    for epoch in (1, 2):
        time.sleep(0.5)
        yield Epoch(epoch=epoch, metrics=metrics)
    try:
        while not stop():
            time.sleep(0.05)
    finally:
        (folder / "cancelled").touch()


def test_a_sweep_that_stops_immediately_cancels_epochs_ahead_and_starts_no_prefetched_trial(
    raw_study: dict[str, Any], tmp_path: Path
) -> None:
    raw = raw_study | {"fixed": {"epochs": 3, "warmup_epochs": 0}, "resources": {"gpus": 1}}
    raw |= {"search": {"trials": 8, "max_concurrent": 8, "pruner": {"type": "none"}}}
    sweep = Sweep.resume(parse_spec(raw, "a test"), StudyDatabase(f"sqlite:///{tmp_path}/studies.db"), MemoryTracker())
    context = TrialContext(
        data_root=str(tmp_path),
        trials_folder=str(tmp_path),
        prototype_cache=str(tmp_path),
        weights=None,
        cpus=1,
        gpus=0,
    )
    num_trials: list[int] = []

    def stop_at_the_first_epoch() -> None:
        trials = sweep.studies[0].search_table.trials
        num_trials.append(len(trials))
        if any(trial.epochs for trial in trials):
            sweep.stop("enough")

    RayDriver(context, one_waits_for_the_other).run(sweep, stop_at_the_first_epoch)
    sweep.close()
    assert max(num_trials) == 3, "one waits for the two GPUs"
    assert len(list(tmp_path.glob("*.begun"))) == 2
    assert (tmp_path / "seen").exists()
    assert {trial.state for trial in sweep.studies[0].search_table.trials} == {TrialState.WAITING}


def together(count: int, config: TrainConfig, context: TrialContext, stop: Callable[[], bool]) -> Iterator[Epoch]:
    """One of so many trials that run at the same time."""
    begin(config, context, count)
    yield Epoch(epoch=1, metrics={f"{config.eval_split}/accuracy": config.lr, "epoch/seconds": 1.0})


def processes(raw: dict[str, Any], folder: Path, count: int) -> dict[str, list[str]]:
    """Those that had a sweep's search and final trials, so many at the same time."""
    drive_small(raw, folder, functools.partial(together, count))
    return {split: [file.read_text() for file in folder.glob(f"{split} *")] for split in ("val", "test")}


def test_idle_workers_stay_for_the_final_trials(raw_study: dict[str, Any], tmp_path: Path) -> None:
    raw = raw_study | {"resources": {"cpus": 2}, "final": {"seeds": [1, 2, 3, 4]}}
    raw |= {"search": {"trials": 4, "max_concurrent": 4, "pruner": {"type": "none"}}}
    processes_by_split = processes(raw, tmp_path, 4)
    assert len({*processes_by_split["val"]}) == 4
    assert sorted(processes_by_split["test"]) == sorted(processes_by_split["val"])


def test_idle_workers_end_if_a_trial_needs_their_resources(
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


def three_of_four_go(config: TrainConfig, context: TrialContext, stop: Callable[[], bool]) -> Iterator[Epoch]:
    """A trial whose process is terminated or killed once it is idle; the last one sees that they are gone."""
    folder, judged = Path(context.trials_folder), config.eval_split
    begin(config, context, together=4 if judged == "val" else 1)
    files = sorted(folder.glob("val *"))
    if judged == "val":
        index = files.index(folder / f"val {config.lr} {config.seed}")
        if index > 0:
            how = signal.SIGKILL if index == 1 else signal.SIGTERM
            threading.Timer(1.5, os.kill, (os.getpid(), how)).start()
        else:
            deadline = time.monotonic() + 30
            while (left := num_alive(files)) > 1 and time.monotonic() < deadline:
                time.sleep(0.1)
            (folder / "left").write_text(str(left))
    yield Epoch(epoch=1, metrics={f"{judged}/accuracy": config.lr, "epoch/seconds": 1.0})


def test_idle_workers_end_immediately_at_sigterm_and_are_replaced(raw_study: dict[str, Any], tmp_path: Path) -> None:
    raw = raw_study | {"resources": {"cpus": 2}, "final": {"seeds": [1, 2, 3, 4]}}
    raw |= {"search": {"trials": 4, "max_concurrent": 4, "pruner": {"type": "none"}}}
    sweep = drive_small(raw, tmp_path, three_of_four_go)
    assert (tmp_path / "left").read_text() == "1"
    assert sweep.is_done
    assert {trial.state for trial in sweep.studies[0].trials} == {TrialState.COMPLETE}


def loses_its_gpu(config: TrainConfig, context: TrialContext, stop: Callable[[], bool]) -> Iterator[Epoch | Failure]:
    """A trial after which each call of CUDA in the same process fails, if it is one of the first two."""
    folder = Path(context.trials_folder)
    is_lost = len([*folder.glob("lost *")]) < 2
    if is_lost:
        (folder / f"lost {os.getpid()}").touch()
    if (folder / f"lost {os.getpid()}").exists():
        error = "AcceleratorError: CUDA error: an illegal memory access was encountered"
        cause = FailureCause.LOST if is_lost else FailureCause.ERROR
        yield Failure(cause=cause, error=error, ends_process=is_lost)
    else:
        yield Epoch(epoch=1, metrics={f"{config.eval_split}/accuracy": config.lr, "epoch/seconds": 1.0})


def test_a_process_that_has_lost_its_gpu_gets_no_other_trial(raw_study: dict[str, Any], tmp_path: Path) -> None:
    raw = raw_study | {"resources": {"gpus": 1}, "retries": 0}
    raw |= {"search": {"trials": 6, "max_concurrent": 1, "pruner": {"type": "none"}}, "final": {"seeds": [1]}}
    sweep = drive_small(raw, tmp_path, loses_its_gpu)
    trials = [*sweep.studies[0].search_table.trials, *sweep.studies[0].final_table.trials]
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}, [trial.error for trial in trials]
    assert len([*tmp_path.glob("lost *")]) == 2, "two processes"
    assert sum(trial.attempt for trial in trials) == len(trials) + 2
    assert sum(trial.failures for trial in trials) == 0
    assert sweep.halt is None
