"""Tests that benchmarks run to their end and compare like with like. Their figures need a quiet machine."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.benchmarks.machine import precisions
from tests.benchmarks.scale import fill_queue
from tests.benchmarks.step import CASES, Sides, config_of, random_network
from trainer.catalog import METHODS
from trainer.config import TrainConfig
from trainer.data.tasks import open_task

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
NANO = "vit_nano_patch4_32.mae"


def run_benchmark(module: str, *options: str, folder: Path) -> dict[str, Any]:
    """Run a benchmark, and return the JSON that it writes."""
    out = folder / "out.json"
    command = [sys.executable, "-m", f"tests.benchmarks.{module}", *options, "--device", "cpu", "--out", str(out)]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stdout + process.stderr

    results: dict[str, Any] = json.loads(out.read_text())
    assert results["machine"]["cores"], "figures name their machine"
    return results


def test_each_side_of_a_cell_is_measured(tmp_path: Path) -> None:
    cell = ["--methods", "spt_deep", "--prompt-lengths", "2", "--seconds", "0.1", "--batch-size", "4"]
    results = run_benchmark("throughput", "--backbones", NANO, *cell, folder=tmp_path)
    assert [row["side"] for row in results["cells"]] == ["published", *(f"ours {each}" for each in precisions("cpu"))]
    assert all(row["train_images_per_s"] > 0 and row["eval_images_per_s"] > 0 for row in results["cells"])


@pytest.mark.parametrize("case", CASES)
def test_a_plain_step_of_each_method_has_our_loss_and_gradients(case: str) -> None:
    config = config_of(case, backbone=NANO, prompt_length=3, batch_size=2)
    Sides(config, random_network(NANO, "cpu"), "cpu").check()


def test_a_step_of_every_method_is_measured(tmp_path: Path) -> None:
    sizes = ["--prompt-length", "3", "--batch-size", "2", "--steps", "1", "--threads", "1"]
    rows = run_benchmark("step", NANO, *sizes, folder=tmp_path)["methods"]
    assert METHODS.keys() <= {row["method"] for row in rows}
    assert all(row["processor_ratio"] > 0 and row["clock_ratio"] > 0 for row in rows)


@pytest.mark.timeout(600)  # a sweep, and 24 processes one after another
def test_commands_are_compared_with_the_import_of_torch(tmp_path: Path) -> None:
    rows = run_benchmark("command_line", "--rounds", "1", "--tasks", "demo/digits", folder=tmp_path)["commands"]
    commands = ["--help", "status", "report", "predict"]
    assert [row["command"] for row in rows] == [*commands, "Optuna opens the database", "import timm"]
    assert all(row["seconds"] > 0 and row["ratio"] > 0 for row in rows)


@pytest.mark.parametrize("one_by_one", [False, True])
def test_the_time_of_the_driver_and_its_queue_are_measured(one_by_one: bool) -> None:
    results = fill_queue(4, 1.0, 0.02, one_by_one=one_by_one)
    assert results["epochs per second"] > 0
    assert results["driver, ms per epoch"] > 0


def test_one_pass_of_several_trials_is_compared_with_passes_of_one(tmp_path: Path) -> None:
    results = run_benchmark(
        "lanes", "--backbones", NANO, "--batch-sizes", "2", "--lanes", "3", "--seconds", "0.1", folder=tmp_path
    )
    assert all(results["rows"][0][way] > 0 for way in ("alone", "together", "a core each"))


def test_crops_of_both_sides_are_measured_and_have_the_same_detail(tmp_path: Path) -> None:
    cell = ["--sizes", "320x240", "500x375", "--images", "6", "--seconds", "0.1", "--size", "64"]
    results = run_benchmark("crops", *cell, folder=tmp_path)
    for row in results["cells"]:
        assert row["published_crops_per_s"] > 0 and row["ours_crops_per_s"] > 0
        assert abs(row["relative_detail"] - 1) < 0.05

    # A photograph of 500 x 375 pixels is larger than crops of side 64 need.
    small, large = (row["cache_bytes_per_image"] for row in results["cells"])
    assert small == pytest.approx(3 * 320 * 240, rel=0.01) and large < 3 * 500 * 375


def test_all_sides_train_with_the_same_seeds(tmp_path: Path) -> None:
    # Few images to score; of those to train on, as many as teach something within an epoch.
    data = tmp_path / "data"
    open_task(str(data), "demo/digits")
    for split, count in (("train", 300), ("val", 20), ("test", 90)):
        file = data / f"demo/digits/{split}.parquet"
        pq.write_table(pq.read_table(file)[:count], file)

    results = run_benchmark(
        "accuracy", "--epochs", "1", "--lr", "0.2", "--seeds", "1", "2", "--data", str(data), folder=tmp_path
    )
    scores = results["test accuracy"]
    assert [*scores] == ["published", "ours", "ours, bf16"][: 1 + len(precisions("cpu"))]
    assert all(len(each) == 2 for each in scores.values())
    assert min(min(each) for each in scores.values()) > 0.1, "better than chance after an epoch"


def test_a_warm_trial_needs_only_the_trainer(tmp_path: Path) -> None:
    params = {"task": "demo/digits", "method": "spt_deep", "prompt_length": 2, "prompt_init": "random", "lr": 0.01}
    params |= {"train_size": 32, "epochs": 1, "warmup_epochs": 0}
    config = dataclasses.asdict(TrainConfig.from_params(params))
    asked = {"how": "warm", "configs": [config], "data": str(tmp_path / "data"), "folder": str(tmp_path)}
    without = "import sys; sys.modules |= dict.fromkeys(('ray', 'optuna', 'mlflow', 'pydantic', 'typer'))"
    command = [sys.executable, "-c", f"{without}; from tests.benchmarks import alone, trials; alone.main()"]
    request = json.dumps(asked | {"device": "cpu", "started": 0.0})
    process = subprocess.run(command, input=request, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr

    result = json.loads(process.stdout)
    # Linux counts pages for each thread and adds them up now and then, so its peak may lack some.
    assert result["metrics"]["val/accuracy"] > 0 and result["peak MB"] > 0.98 * result["resident MB"] > 0
    assert list(tmp_path.glob("trials/*/learning_curve.png")), "a worker draws the plots of its trials"
