"""`run_trial` takes a config and yields epochs, or a failure."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import platform
import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from orchestrator.drivers import trial_runner
from orchestrator.drivers.context import TrialContext
from orchestrator.drivers.trial_runner import run_trial
from orchestrator.environment.home import home_at
from orchestrator.study.selection import unpack_correct
from orchestrator.study.trial import Epoch, Failure, FailureCause
from trainer.catalog import BACKBONES, BUNDLED
from trainer.config import TrainConfig
from trainer.data.tasks import open_task
from trainer.model.weights import find_weights
from trainer.training.checkpoint import load_state, save_state


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digits, with the first 20 of val only."""
    root = tmp_path_factory.mktemp("data")
    open_task(str(root), "demo/digits")
    pq.write_table(pq.read_table(root / "demo/digits/val.parquet")[:20], root / "demo/digits/val.parquet")
    return str(root)


@pytest.fixture
def context(data_root: str, tmp_path: Path) -> TrialContext:
    home = home_at(str(tmp_path))
    return TrialContext(
        data_root=data_root,
        trials_folder=home.trials_folder("tiny"),
        prototype_cache=home.prototype_cache,
        weights=None,
        cpus=1,
        gpus=0,
    )


def config_of(**changes: Any) -> TrainConfig:
    params = {"task": "demo/digits", "method": "spt_shallow", "prompt_length": 2, "prompt_init": "mean_pool"}
    return TrainConfig.from_params(params | {"epochs": 2, "warmup_epochs": 0, "train_size": 0.1} | changes)


def run(config: TrainConfig, context: TrialContext) -> tuple[list[int], Failure | None]:
    """The epochs of a trial, and its failure if it had one."""
    events = list(run_trial(config, context))
    last = events[-1]
    epochs = [event.epoch for event in events if isinstance(event, Epoch)]
    failure = last if isinstance(last, Failure) else None
    assert len(epochs) + (failure is not None) == len(events), "a failure comes last"
    return epochs, failure


def test_a_trial_has_a_folder_of_its_own_and_shares_its_prototypes(
    context: TrialContext,
) -> None:
    first, second = config_of(lr=0.01), config_of(lr=0.02)
    for config in (first, second):
        assert run(config, context) == ([1, 2], None)
    folders = {path.name: path for path in Path(context.trials_folder).iterdir()}
    assert folders.keys() == {first.fingerprint(), second.fingerprint()}
    (kept,) = Path(context.prototype_cache).glob("*.safetensors")
    assert len([*Path(context.prototype_cache).glob("*.png")]) == 1, "both trials share one picture of their prototypes"
    for folder in folders.values():
        assert (folder / "card.json").exists() and (folder / "checkpoint.pt").exists()
        assert all((folder / f"{name}.png").exists() for name in ("learning_curve", "confusion", "prototypes"))
        assert load_file(folder / "prototypes.safetensors")["prompt"].equal(load_file(kept)["prompt"])


def test_a_plot_that_cannot_be_drawn_costs_no_result(context: TrialContext, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ValueError("no font")

    monkeypatch.setattr("orchestrator.drivers.trial_runner.draw_run_plots", broken)
    *_, last = run_trial(config_of(), context)
    assert isinstance(last, Epoch) and last.epoch == 2
    assert last.provenance["pictures"] == "not drawn: ValueError: no font"


def test_provenance_names_the_machine_and_the_correct_images(context: TrialContext) -> None:
    config = config_of()
    first, last = run_trial(config, context)
    assert isinstance(first, Epoch) and isinstance(last, Epoch)
    assert first.provenance.keys() >= {"host", "device", "software"}
    assert "correct" not in first.provenance, "it is known at the end"
    assert (last.provenance["device"], last.provenance["arithmetic"]) == (platform.machine(), "fp32, eager")
    right = unpack_correct(last.provenance["correct"])
    assert right.mean() == last.metrics["val/accuracy"]
    assert (
        last.provenance["scored_on"].split("/")[1] == "val" and last.provenance["learnt_from"].split("/")[1] == "train"
    )


def test_a_trial_resumes_from_its_checkpoint_unless_its_weights_have_changed(
    context: TrialContext, tmp_path: Path
) -> None:
    config = config_of()
    before = next(run_trial(config, context))
    bundled = find_weights(BACKBONES[BUNDLED], None).path
    assert bundled is not None
    weights = load_file(bundled)
    save_file(weights | {"norm.bias": weights["norm.bias"] + 0.1}, tmp_path / f"{BUNDLED}.safetensors")
    epochs, failure = run(config, dataclasses.replace(context, weights=str(tmp_path)))
    assert epochs == [] and failure is not None and failure.cause is FailureCause.INVALID
    assert failure.error.splitlines()[0] == (
        f"ValueError: {context.trials_folder}/{config.fingerprint()} holds a checkpoint of another backbone's "
        "weights; "
        "choose another folder or remove it."
    )
    after = next(run_trial(config, context))
    assert isinstance(before, Epoch) and isinstance(after, Epoch)
    measured = {"epoch/seconds", "memory/peak_gb"}
    assert measured <= before.metrics.keys()
    assert after.metrics == {name: value for name, value in before.metrics.items() if name not in measured}


def test_a_failure_has_a_cause_and_a_message(context: TrialContext, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    no, file = str(tmp_path / "no"), str(tmp_path / "file")
    for broken, config, cause, message in (
        (
            dataclasses.replace(context, weights=no),
            config_of(),
            FailureCause.INVALID,
            rf"WeightsError: weights {no}: there is no such file or folder\.",
        ),
        (
            context,
            config_of(lr=1e30, epochs=3),
            FailureCause.DIVERGED,
            r"TrainingDiverged: loss or weights .* A smaller lr .*\.",
        ),
        (dataclasses.replace(context, trials_folder=file), config_of(), FailureCause.ERROR, rf"\w+: .*{file}.*"),
        (dataclasses.replace(context, prototype_cache=file), config_of(), FailureCause.ERROR, rf"\w+: .*{file}.*"),
    ):
        epochs, failure = run(config, broken)
        assert failure is not None and len(epochs) < config.epochs
        assert failure.cause is cause
        assert re.fullmatch(message, failure.error.splitlines()[0]), failure.error
        assert "Traceback" in failure.error, "the study database stores the trace"


def test_a_trial_that_is_asked_to_stop_resumes_with_the_same_numbers(context: TrialContext) -> None:
    config = config_of(seed=1)
    undisturbed = [event.metrics["train/loss"] for event in run_trial(config, context)
                   if isinstance(event, Epoch)]  # fmt: skip
    shutil.rmtree(f"{context.trials_folder}/{config.fingerprint()}")
    questions = itertools.count()
    *epochs, lost = run_trial(config, context, lambda: next(questions) == 1)
    assert isinstance(lost, Failure)
    assert (epochs, lost.cause) == ([], FailureCause.LOST)
    log = Path(context.trials_folder, config.fingerprint(), "log.txt").read_text()
    assert "training on demo/digits" in log, "what it does before its first step"
    assert re.search(r"asked to stop in epoch 1, after 1 of \d+ steps", log)
    resumed = [*run_trial(config, context)]
    assert [event.metrics["train/loss"] for event in resumed if isinstance(event, Epoch)] == undisturbed


def test_warnings_of_the_trainer_reach_the_terminal_and_the_log(
    context: TrialContext, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # As in a process of a user, where nothing else listens.
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    config = config_of(seed=2)
    for event in run_trial(config, context):
        assert isinstance(event, Epoch)
        if event.epoch == 1:
            logging.getLogger("trainer").warning("No space left: trying again")
    assert capsys.readouterr().err == "No space left: trying again\n"
    assert "No space left: trying again" in Path(context.trials_folder, config.fingerprint(), "log.txt").read_text()


@pytest.mark.parametrize(
    ("error", "cause", "ends_process"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), FailureCause.MEMORY, False),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), FailureCause.MEMORY, False),
        (MemoryError(), FailureCause.MEMORY, False),
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), FailureCause.LOST, True),
        (RuntimeError("CUDA error: invalid configuration argument"), FailureCause.ERROR, False),
    ],
    ids=repr,
)
def test_an_error_of_a_device_says_what_happens_next(
    error: Exception, cause: FailureCause, ends_process: bool, context: TrialContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(trial_runner, "train", fails)
    [failure] = run_trial(config_of(), context)
    assert isinstance(failure, Failure)
    assert (failure.cause, failure.ends_process) == (cause, ends_process)
    # Named only if it is the GPU that failed.
    assert (" of " in failure.lost_gpu) is ends_process


def test_a_trial_without_a_gpu_records_the_processor_of_a_machine_that_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert trial_runner._AttemptLog("cpu").device == platform.machine()


def test_a_worker_of_another_kind_of_device_refuses_a_trial_before_it_trains(context: TrialContext) -> None:
    epochs, failure = run(config_of(), dataclasses.replace(context, required_device="NVIDIA H200"))
    assert epochs == [] and failure is not None
    assert (failure.cause, failure.stops_sweep, failure.ends_process) == (FailureCause.LOST, True, False)
    assert failure.error.startswith(
        "WrongDevice: resources.mix_devices is false, the study's first trials ran on NVIDIA H200, and a worker has "
    )
    assert not Path(context.trials_folder, config_of().fingerprint(), "checkpoint.pt").exists()
    assert run(config_of(), dataclasses.replace(context, required_device=platform.machine())) == ([1, 2], None)


def test_a_checkpoint_of_another_kind_of_device_is_continued_only_if_kinds_may_mix(
    context: TrialContext, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_of()
    folder = f"{context.trials_folder}/{config.fingerprint()}"
    next(run_trial(config, context))
    state = load_state(f"{folder}/checkpoint.pt")
    assert state is not None and state["device"] == platform.machine()

    for mix_devices, is_resumed in ((False, False), (True, True)):
        save_state(f"{folder}/checkpoint.pt", state | {"device": "NVIDIA H200"})
        first = next(run_trial(config, dataclasses.replace(context, mix_devices=mix_devices)))
        # Nothing is measured for an epoch that comes from a checkpoint.
        assert isinstance(first, Epoch) and ("epoch/seconds" not in first.metrics) is is_resumed
    sentence = f"{folder}: it ran on NVIDIA H200, and this is {platform.machine()}. It starts again."
    assert [record.getMessage() for record in caplog.records if "NVIDIA" in record.getMessage()] == [sentence]
