"""The command itself, as a process with real Ray, SQLite and MLflow: killed, started again, asked for its table."""

from __future__ import annotations

import copy
import json
import re
import resource
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

from tests.integration.processes import launch_here, printed_table, read_until, run_sptune, start_sptune
from tests.orchestrator.conftest import Sptune
from trainer.config import TrainConfig

ROOT = Path(__file__).parents[2]
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


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory, store: Path) -> Path:
    path = tmp_path_factory.mktemp("spec") / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return path


@pytest.fixture
def command(sptune: Sptune, store: Path, monkeypatch: pytest.MonkeyPatch) -> Sptune:
    """The command in this process, as wide as in a process that writes to a pipe."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("SPTUNE_DATA", str(store))
    return sptune


@pytest.fixture(scope="module")
def undisturbed(spec: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A sweep that ran in one piece, in one process without Ray, and its table."""
    home = tmp_path_factory.mktemp("undisturbed")
    return home, printed_table(launch_here(spec, home))


@pytest.mark.slow
def test_launching_a_finished_sweep_starts_nothing_and_prints_its_table(
    spec: Path, undisturbed: tuple[Path, str], command: Sptune
) -> None:
    home, expected = undisturbed
    written = {path: path.stat().st_mtime_ns for path in (home / "sweeps").rglob("*")}
    started = time.monotonic()
    code, output, _ = command("launch", spec, "--home", home)
    assert code == 0
    assert time.monotonic() - started < 60, "3 s on an idle machine"
    assert "nothing to run" in output
    assert printed_table(output) == expected
    assert {path: path.stat().st_mtime_ns for path in (home / "sweeps").rglob("*")} == written


@pytest.mark.slow
def test_resume_status_and_report_need_only_the_name(undisturbed: tuple[Path, str], command: Sptune) -> None:
    home, expected = undisturbed
    assert printed_table(command("resume", "tiny", "--home", home)[1]) == expected
    assert printed_table(command("report", "tiny", "--home", home)[1] + "\nEvery trial in MLflow") == expected
    assert command("status", "tiny", "--home", home)[1].count("8/8") == 2


@pytest.mark.slow
def test_a_trial_of_the_sweep_classifies_images_as_it_was_scored(
    undisturbed: tuple[Path, str], store: Path, tmp_path: Path, command: Sptune
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
        code, output, _ = command("predict", trial[:11], *files, "--top", "1", "--home", home)
        assert (code, output.splitlines()) == (0, lines)


@pytest.mark.slow
def test_record_and_mlflow_agree_on_how_each_trial_ended(undisturbed: tuple[Path, str]) -> None:
    home, _ = undisturbed
    url = f"sqlite:///{home / 'studies.db'}"
    client = MlflowClient(tracking_uri=f"sqlite:///{home / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    runs = {
        run.data.tags["trial_id"]: run
        for run in client.search_runs([experiment.experiment_id], max_results=1000)
        if "trial_id" in run.data.tags
    }
    told = Counter[str]()
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


@pytest.mark.slow
def test_the_readme_shows_what_the_demo_comes_to(tmp_path: Path) -> None:
    spec = yaml.safe_load((ROOT / "search_spaces/demo.yaml").read_text())
    only = {name: spec["space"][name] for name in ("lr", "head_weight_decay")}
    path = tmp_path / "demo.yaml"
    spec |= {"tasks": ["demo/digits"], "methods": ["linear"], "space": only}
    # The sampler draws parameters in the order of the file.
    path.write_text(yaml.safe_dump(spec, sort_keys=False))

    printed = launch_here(path, tmp_path / "home", SPTUNE_DATA=str(tmp_path / "data"))
    row = r"│ linear +│ +[\d.]+ │ +([\d.]+ ± [\d.]+) │"
    assert re.findall(row, printed) == re.findall(row, (ROOT / "README.md").read_text()) != []


def test_mistakes_are_told_together_and_nothing_is_started(tmp_path: Path) -> None:
    bad = copy.deepcopy(TINY)
    bad["tasks"] = ["demo/digit"]
    bad["space"]["lr"] = {"type": "float", "low": "1e-4", "high": 1}
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump(bad))
    (tmp_path / "file").write_text("")
    refused = run_sptune("launch", path, home=tmp_path / "file" / "home")
    assert refused.returncode == 2
    assert f"{path} has 3 problems:" in refused.stderr
    for told in ("did you mean 'demo/digits'", "YAML reads 1e-4 as text", "cannot be written: "):
        assert told in refused.stderr
    assert "Traceback" not in refused.stderr
    assert sorted(file.name for file in tmp_path.iterdir()) == ["bad.yaml", "file"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["report", "nothing"], "holds no sweep; start one with `sptune launch demo`"),
        (["launch", "dmo"], "did you mean 'demo'?"),
        (["ui"], "has no MLflow database yet"),
        (["launch", "demo", "--address", "127.0.0.1:1"], "no Ray cluster at 127.0.0.1:1"),
    ],
)
def test_a_users_mistake_is_a_sentence_and_no_trace(
    sptune: Sptune, tmp_path: Path, arguments: list[str], told: str
) -> None:
    code, _, complaint = sptune(*arguments, "--home", tmp_path)
    assert code == 2
    assert told in complaint


@pytest.mark.slow
def test_of_two_launches_one_runs_and_stop_from_a_third_terminal_ends_it(command: Sptune, tmp_path: Path) -> None:
    long = tmp_path / "tiny.yaml"
    long.write_text(yaml.safe_dump({**TINY, "methods": ["spt_deep"], "fixed": {"epochs": 1000, "warmup_epochs": 1}}))
    home = ("--home", tmp_path)
    with start_sptune("launch", long, home=tmp_path) as driver:
        read_until(driver, 0)
        code, _, complaint = command("launch", long, *home)
        assert code == 2
        assert f"tiny is driven by process {driver.pid} on" in complaint
        assert "`sptune stop tiny` stops it" in complaint
        assert f"driven by process {driver.pid}" in command("status", "tiny", *home)[1]
        code, _, complaint = command("rm", "tiny", "--yes", *home)
        assert code == 2 and "is driven by" in complaint
        code, output, _ = command("stop", "tiny", *home)
        assert code == 0
        assert output.strip() == f"tiny has stopped. Run `sptune resume tiny --home {tmp_path}` to continue."
        assert driver.stdout is not None
        rest = driver.stdout.read()
    assert driver.returncode == 130, rest
    assert "as `sptune stop` requested" in rest


def test_a_short_trial_of_each_method_tells_what_the_sweep_will_cost(
    spec: Path, tmp_path: Path, command: Sptune
) -> None:
    code, output, steps = command("plan", spec, "--calibrate", "--home", tmp_path)
    assert code == 0
    # A terminal has a spinner instead.
    assert steps == "timing spt_deep on demo/digits, 1 of 2\ntiming linear on demo/digits, 2 of 2\n"
    assert re.search(r"at most \d+:\d\d of work, \d+:\d\d on \d+ workers\n", output)
    assert output.count("of the memory for all trials at once: fits") == 2
    assert "0 are finished" in " ".join(output.split()), "the line may be wrapped"
    assert not (tmp_path / "sweeps").exists()


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
    assert "6 studies, 18 search trials, 12 final trials" in planned.stdout
