"""A home is one folder: it is moved, copied, read by others, and named as people like."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from orchestrator.launch import launch, open_sweep, resume
from tests.integration.processes import SPTUNE, outcome
from tests.orchestrator.conftest import Sptune

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SPEC: dict[str, Any] = {
    "name": "homes",
    "tasks": ["demo/digits"],
    "backbones": ["vit_nano_patch4_32.mae"],
    "methods": ["spt_shallow"],
    "train_sizes": [100],
    "fixed": {"epochs": 1, "warmup_epochs": 0, "batch_size": 32, "prompt_length": 2, "prompt_init": "kmeans"},
    "space": {"lr": {"type": "float", "low": 0.005, "high": 0.05, "log": True}},
    "search": {"trials": 1, "startup_trials": 1, "max_concurrent": 1, "seed": 0},
    "final": {"seeds": [42]},
}
MORE = SPEC | {"search": SPEC["search"] | {"trials": 2}}
COLLEAGUE = 45_679
"""A user id that owns nothing here."""


@pytest.fixture(scope="module", autouse=True)
def _one_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One MLflow for all homes: this is about the rest of a home, and MLflow's tables take seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db")
        yield


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, store: Path) -> Path:
    """A home with its first launch, whose task store and prototypes are inside. Copied by the tests."""
    home = tmp_path_factory.mktemp("homes") / "first"
    shutil.copytree(store, home / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("SPTUNE_DATA")
        assert launch(SPEC, home=str(home), driver="inline").is_done
    return home


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, first: Path) -> list[tuple[object, ...]]:
    """What the longer sweep decides and finds in a home that stays where it is."""
    home = tmp_path_factory.mktemp("homes") / "undisturbed"
    launch(MORE, home=str(home), driver="inline")
    return outcome(home, "homes")


@pytest.fixture(autouse=True)
def _data_of_the_home(first: Path, undisturbed: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPTUNE_DATA", raising=False)


def files(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_a_home_that_is_moved_between_two_launches_goes_on(
    first: Path, undisturbed: list[tuple[object, ...]], tmp_path: Path
) -> None:
    old = tmp_path / "old"
    new = tmp_path / "elsewhere" / "new?x=1"
    shutil.copytree(first, old)
    new.parent.mkdir()
    shutil.move(old, new)

    prototypes = files(new / "prototypes")
    assert launch(MORE, home=str(new), driver="inline").is_done
    assert outcome(new, "homes") == undisturbed
    assert files(new / "prototypes") == prototypes, "they are found in the new place"
    assert resume("homes", home=str(new), driver="inline").was_finished
    assert not any((old / name).exists() for name in ("studies.db", "data", "sweeps", "prototypes"))


def test_a_home_that_is_copied_and_its_copy_both_go_on_and_the_copy_can_be_emptied(
    first: Path, undisturbed: list[tuple[object, ...]], tmp_path: Path, sptune: Sptune, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, copy = tmp_path / "original", tmp_path / "copy"
    shutil.copytree(first, original)
    shutil.copytree(first, copy)
    # Each has an MLflow of its own from here on, which is not what this is about.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    for home in (copy, original):
        assert launch(MORE, home=str(home), driver="inline").is_done
        assert outcome(home, "homes") == undisturbed

    before = files(original)
    assert sptune("rm", "homes", "--yes", "--home", copy)[0] == 0
    assert not (copy / "sweeps/homes").exists()
    assert files(original) == before, "nothing outside the home is deleted"


def test_a_sweep_runs_and_is_read_in_a_home_of_an_awkward_name(first: Path, tmp_path: Path, sptune: Sptune) -> None:
    # In the working directory, where a URL that is parsed wrongly leaves its files.
    home = tmp_path / "100% [what?x=1]#{a} num_tokens=50 größe"
    shutil.copytree(first, home)
    assert launch(MORE, home=str(home), driver="inline").is_done
    assert [path.name for path in tmp_path.iterdir()] == [home.name]

    trials = open_sweep("homes", str(home)).trials()
    assert [*trials["state"]] == ["complete"] * len(trials)
    image = tmp_path / "image.png"
    Image.new("RGB", (8, 8)).save(image)
    trial = trials["trial_id"].iloc[-1]
    for command in (
        ("status", "homes"),
        ("report", "homes"),
        ("failures", "homes"),
        ("figures", "homes", "--out", tmp_path / "figures"),
        ("export", "homes", "--out", tmp_path / "export"),
        ("predict", trial, image),
    ):
        code, _, complaint = sptune(*command, "--home", home)
        assert (command, code, complaint) == (command, 0, "")
    assert pq.read_table(tmp_path / "export/predictions.parquet").num_rows > 0


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="only root can become another user")
def test_a_colleague_with_the_right_to_read_alone_looks_at_everything_and_changes_nothing(first: Path) -> None:
    # pytest's own folders are closed to other users.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        home = folder / "home"
        shutil.copytree(first, home)
        subprocess.run(["chmod", "-R", "a+rX", str(home)], check=True)
        own = folder / "own"
        own.mkdir()
        os.chown(own, COLLEAGUE, COLLEAGUE)
        (own / "homes.yaml").write_text(yaml.safe_dump(SPEC))
        before = files(home)

        def run(*arguments: str) -> subprocess.CompletedProcess[str]:
            user = ["setpriv", "--reuid", str(COLLEAGUE), "--regid", str(COLLEAGUE), "--clear-groups"]
            environment = {"PATH": os.environ["PATH"], "HOME": str(own), "TMPDIR": str(own), "SPTUNE_CACHE": str(own)}
            command = [*user, SPTUNE, *arguments, "--home", str(home)]
            return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=own)

        for arguments in (
            ("status", "homes"),
            ("report", "homes"),
            ("plan", "homes.yaml"),
            ("figures", "homes"),
            ("export", "homes"),
        ):
            done = run(*arguments)
            assert (arguments, done.returncode, done.stderr) == (arguments, 0, "")

        for command in (("stop", "homes"), ("rm", "homes", "--yes"), ("resume", "homes", "--inline")):
            done = run(*command)
            assert done.returncode == 2 and done.stderr.startswith("error: ")
            assert "permission" in done.stderr and "Traceback" not in done.stderr
        assert files(home) == before


def test_workers_of_ray_find_what_relative_paths_name(first: Path, tmp_path: Path) -> None:
    shutil.copytree(first / "data", tmp_path / "store")
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(SPEC))
    environment = os.environ | {"SPTUNE_DATA": "store", "SPTUNE_CACHE": "cache", "SPTUNE_HOME": "home"}
    command = [SPTUNE, "launch", "spec.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"store", "cache", "home", "spec.yaml"}
    assert any((tmp_path / "cache").iterdir()), "images are decoded into the one cache"
    assert not (tmp_path / "home/data").exists()
