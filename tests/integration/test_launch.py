"""The command itself, as a process with real Ray, SQLite and MLflow: killed, started again, asked for its table."""

from __future__ import annotations

import copy
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import optuna
import pyarrow.parquet as pq
import pytest
import yaml
from mlflow import MlflowClient

from orchestrator.study.trial import TrialState
from tests.integration.processes import outcome, sptune, started, trials_told
from trainer.config import TrainConfig

pytestmark = pytest.mark.timeout(600)  # a fixture that runs a whole sweep counts as part of a test
TINY: dict[str, Any] = {
    "name": "tiny",
    "tasks": ["demo/digits"],
    "backbones": ["vit_nano_patch4_32.mae"],
    "methods": ["spt_deep", "linear"],
    "train_sizes": [0.2],
    "fixed": {"epochs": 4, "warmup_epochs": 1},
    "space": {
        # One of the values diverges at once: a failing trial belongs to the picture.
        "lr": {"type": "choice", "values": [0.01, 0.02, 0.03, 1e30]},
        "prompt_length": {"type": "choice", "values": [2, 4]},
        "prompt_init": {"type": "choice", "values": ["mean_pool", "kmeans"]},
    },
    "search": {"trials": 6, "max_concurrent": 2, "startup_trials": 2, "seed": 1,
               "pruner": {"type": "asha", "min_epochs": 1, "reduction": 2}},
    "final": {"seeds": [42, 44]},
}  # fmt: skip


def table(output: str) -> str:
    """The result of a launch, without progress; somebody may commit while tests run."""
    found = output[output.index("test accuracy") : output.index("Every trial in MLflow")]
    return re.sub(r"^commit: .*\n", "", found, flags=re.MULTILINE)


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory, store: Path) -> Path:
    path = tmp_path_factory.mktemp("spec") / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return path


@pytest.fixture(scope="module")
def undisturbed(spec: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A sweep that ran in one piece, in one process without Ray, and its table."""
    home = tmp_path_factory.mktemp("undisturbed")
    done = sptune("launch", spec, "--inline", home=home)
    assert done.returncode == 0, done.stderr
    return home, table(done.stdout)


@pytest.fixture(scope="module")
def killed(spec: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A sweep through Ray whose driver was killed in the middle and that was launched again, and its table."""
    home = tmp_path_factory.mktemp("killed")
    driver = started("launch", spec, home=home)
    assert driver.stdout is not None
    for line in driver.stdout:
        if (found := re.search(r"(\d+) of 16 trials finished", line)) and int(found[1]) >= 5:
            break
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    driver.stdout.close()
    again = sptune("launch", spec, home=home)
    assert again.returncode == 0, again.stderr
    first = re.search(r"tiny: (\d+) of 16 trials finished", again.stdout)
    assert first is not None and int(first[1]) >= 5, "what was finished stayed finished"
    return home, table(again.stdout)


def test_launching_a_finished_sweep_starts_nothing_and_prints_its_table(
    spec: Path, undisturbed: tuple[Path, str]
) -> None:
    home, expected = undisturbed
    written = {path: path.stat().st_mtime_ns for path in (home / "sweeps").rglob("*")}
    started = time.monotonic()
    again = sptune("launch", spec, home=home)
    assert time.monotonic() - started < 60, "7 s on an idle machine"
    assert "nothing to run" in again.stdout
    assert table(again.stdout) == expected
    assert {path: path.stat().st_mtime_ns for path in (home / "sweeps").rglob("*")} == written


def test_resume_status_and_report_need_only_the_name(undisturbed: tuple[Path, str]) -> None:
    home, expected = undisturbed
    assert table(sptune("resume", "tiny", home=home).stdout) == expected
    assert table(sptune("report", "tiny", home=home).stdout + "\nEvery trial in MLflow") == expected
    status = sptune("status", "tiny", home=home).stdout
    assert status.count("8/8") == 2


def test_a_trial_of_the_sweep_classifies_images_as_it_was_scored(
    undisturbed: tuple[Path, str], store: Path, tmp_path: Path
) -> None:
    home, _ = undisturbed
    for method in ("spt_deep", "linear"):
        cards = [json.loads(path.read_text()) for path in home.glob("sweeps/tiny/trials/*/card.json")]
        configs = [TrainConfig.from_params(card["config"]) for card in cards]
        config = next(c for c in configs if (c.method, c.eval_split, c.seed) == (method, "test", 42))
        trial = config.fingerprint()
        scored = pq.read_table(home / "sweeps/tiny/trials" / trial / "predictions.parquet").to_pylist()[:3]
        images = pq.read_table(store / "demo/digits/test.parquet").to_pylist()[:3]
        lines = []
        for row, image in zip(scored, images, strict=True):
            (tmp_path / f"{row['key']}.png").write_bytes(image["image"])
            lines.append(f"{tmp_path / row['key']}.png: {row['prediction']} {100 * row['confidence']:.1f} %")
        files = [tmp_path / f"{row['key']}.png" for row in scored]
        done = sptune("predict", trial[:11], *files, "--top", "1", home=home)
        assert (done.returncode, done.stdout.splitlines()) == (0, lines), done.stderr


def test_a_killed_driver_changes_nothing_in_the_table(killed: tuple[Path, str], undisturbed: tuple[Path, str]) -> None:
    assert killed[1] == undisturbed[1]


def test_no_trial_runs_twice_and_none_has_two_runs(killed: tuple[Path, str]) -> None:
    client = MlflowClient(tracking_uri=f"sqlite:///{killed[0] / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    children = [run for run in runs if "trial_id" in run.data.tags]
    assert max(Counter(run.data.tags["trial_id"] for run in children).values()) == 1
    assert {run.info.status for run in runs} <= {"FINISHED", "KILLED", "FAILED"}, "none is left running"
    for run in children:
        steps = [metric.step for metric in client.get_metric_history(run.info.run_id, "train/loss")]
        assert steps == [*range(1, len(steps) + 1)], "no epoch is missing or doubled"


def test_record_and_mlflow_agree_on_how_each_trial_ended(killed: tuple[Path, str]) -> None:
    url = f"sqlite:///{killed[0] / 'studies.db'}"
    client = MlflowClient(tracking_uri=f"sqlite:///{killed[0] / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    runs = {
        run.data.tags["trial_id"]: run
        for run in client.search_runs([experiment.experiment_id], max_results=1000)
        if "trial_id" in run.data.tags
    }
    told = Counter[str]()
    drivers = optuna.load_study(study_name="tiny", storage=url).trials
    assert [driver.state.name for driver in drivers] == ["FAIL", "COMPLETE"], "one was killed, one came to the end"
    for name in set(optuna.get_all_study_names(url)) - {"tiny"}:
        for trial in optuna.load_study(study_name=name, storage=url).trials:
            run = runs[trial.user_attrs["trial_id"]]
            assert run.data.tags["state"] == {"FAIL": "failed"}.get(trial.state.name, trial.state.name.lower())
            told[trial.state.name] += 1
            if trial.state.name == "FAIL":
                assert run.data.tags["error"] == trial.user_attrs["error"].splitlines()[0]
                assert "TrainingDiverged" in run.data.tags["error"]
            if trial.state.name == "COMPLETE":
                wanted = {"prompt.safetensors", "predictions.parquet", "card.json"}
                wanted |= {"learning_curve.png", "confusion.png"}
                spt = run.data.tags["method"] == "spt_deep"
                wanted |= {"prototypes.safetensors", "prototypes.png"} if spt else set()
                wanted |= {"model"} if run.data.tags["phase"] == "final" else set()
                assert {artifact.path for artifact in client.list_artifacts(run.info.run_id)} == wanted
    assert told["FAIL"] > 0
    assert told["PRUNED"] > 0
    assert told["COMPLETE"] > 0


def test_mistakes_are_told_together_and_nothing_is_started(tmp_path: Path) -> None:
    bad = copy.deepcopy(TINY)
    bad["tasks"] = ["demo/digit"]
    bad["space"]["lr"] = {"type": "float", "low": "1e-4", "high": 1}
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump(bad))
    (tmp_path / "file").write_text("")
    refused = sptune("launch", path, home=tmp_path / "file" / "home")
    assert refused.returncode == 2
    assert f"{path} has 3 problems:" in refused.stderr
    for told in ("did you mean 'demo/digits'", "YAML reads 1e-4 as text", "cannot be written: "):
        assert told in refused.stderr
    assert "Traceback" not in refused.stderr
    assert sorted(file.name for file in tmp_path.iterdir()) == ["bad.yaml", "file"]


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["report", "nothing"], "holds no sweep; start one with `sptune launch demo`"),
        (["launch", "dmo"], "did you mean 'demo'?"),
        (["ui"], "has no MLflow database yet"),
        (["launch", "demo", "--address", "127.0.0.1:1"], "no Ray cluster at 127.0.0.1:1"),
    ],
)
def test_a_users_mistake_is_a_sentence_and_no_trace(tmp_path: Path, command: list[str], told: str) -> None:
    refused = sptune(*command, home=tmp_path)
    assert refused.returncode == 2
    assert told in refused.stderr
    assert "Traceback" not in refused.stderr + refused.stdout


def test_a_trial_that_no_node_can_hold_is_refused_with_what_there_is(tmp_path: Path) -> None:
    path = tmp_path / "large.yaml"
    path.write_text(yaml.safe_dump({**TINY, "resources": {"cpus": 1, "gpus": 1000}}))
    refused = sptune("launch", path, home=tmp_path)
    assert refused.returncode == 2
    assert "a trial of vit_nano_patch4_32.mae asks for 1 CPUs and 1000 GPUs. Ray's nodes have: " in refused.stderr
    assert "Traceback" not in refused.stderr


def test_ctrl_c_once_saves_what_runs_and_resume_goes_on_as_if_nothing_had_been(
    spec: Path, undisturbed: tuple[Path, str], tmp_path: Path
) -> None:
    with started("launch", spec, home=tmp_path) as driver:
        assert driver.stdout is not None
        assert any(re.search(r"[1-9]\d* of 16", line) for line in driver.stdout)
        os.killpg(driver.pid, signal.SIGINT)  # as a terminal does: everything that was started hears it
        told = driver.stdout.read()
    assert driver.returncode == 130, told
    assert "stopping after the current epoch of each trial; press Ctrl-C again to stop immediately" in told
    assert "stopped by SIGINT; `sptune resume tiny` goes on." in told
    assert "Traceback" not in told
    states = [entry[5] for entry in outcome(tmp_path, "tiny")]
    assert TrialState.RUNNING not in states
    statuses = {status for status, *_ in trials_told(f"sqlite:///{tmp_path / 'mlflow.db'}", "tiny").values()}
    assert "RUNNING" not in statuses
    assert "stopped by SIGINT" in sptune("status", "tiny", home=tmp_path).stdout
    resumed = sptune("resume", "tiny", home=tmp_path)
    assert table(resumed.stdout) == undisturbed[1]
    assert outcome(tmp_path, "tiny") == outcome(undisturbed[0], "tiny")


def test_ctrl_c_twice_stops_at_once(spec: Path, tmp_path: Path) -> None:
    with started("launch", spec, home=tmp_path) as driver:
        assert driver.stdout is not None
        told = driver.stdout.readline()
        for _ in range(2):
            driver.send_signal(signal.SIGINT)
            time.sleep(0.2)
        told += driver.stdout.read()
    assert driver.returncode == 130, told
    assert "stopped; `sptune resume tiny` goes on from the last finished epochs." in told
    assert "Traceback" not in told
    assert TrialState.RUNNING not in [entry[5] for entry in outcome(tmp_path, "tiny")]


def test_of_two_launches_one_runs_and_stop_from_a_third_terminal_ends_it(store: Path, tmp_path: Path) -> None:
    long = tmp_path / "tiny.yaml"
    long.write_text(yaml.safe_dump({**TINY, "fixed": {"epochs": 1000, "warmup_epochs": 1}}))
    with started("launch", long, home=tmp_path) as driver:
        assert driver.stdout is not None
        driver.stdout.readline()
        second = sptune("launch", long, home=tmp_path)
        assert second.returncode == 2
        assert f"tiny is driven by process {driver.pid} on" in second.stderr
        assert "`sptune stop tiny` ends it" in second.stderr
        assert f"driven by process {driver.pid}" in sptune("status", "tiny", home=tmp_path).stdout
        refused = sptune("rm", "tiny", "--yes", home=tmp_path)
        assert refused.returncode == 2 and "is driven by" in refused.stderr
        stopped = sptune("stop", "tiny", home=tmp_path)
        assert (stopped.returncode, stopped.stdout.strip()) == (0, "tiny has stopped; `sptune resume tiny` goes on.")
        told = driver.stdout.read()
    assert driver.returncode == 130, told
    assert "as `sptune stop` requested" in told


def test_a_short_trial_of_each_method_tells_what_the_sweep_will_cost(spec: Path, tmp_path: Path) -> None:
    planned = sptune("plan", spec, "--calibrate", home=tmp_path)
    assert planned.returncode == 0, planned.stderr
    assert re.search(r"at most \d+:\d\d of work, \d+:\d\d on \d+ workers\n", planned.stdout)
    assert planned.stdout.count("of the device with those beside it: fits") == 2
    assert "0 are done" in planned.stdout and not (tmp_path / "sweeps").exists()


def test_plan_answers_at_once_and_without_torch() -> None:
    code = (
        "import sys; from orchestrator.cli import app\n"
        "try: app(['plan', 'demo'])\nfinally: print('torch' in sys.modules)"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    planned = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert seconds < 3, "0.5 s of computing, whatever else the machine does"
    assert planned.stdout.endswith("False\n")
    assert "6 studies, 24 search trials, 12 final trials" in planned.stdout
