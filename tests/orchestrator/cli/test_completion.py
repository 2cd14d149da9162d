"""The shell completes names of specs, sweeps, tasks, backbones and methods, quickly."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer._completion_classes import BashComplete
from typer.main import get_command

from orchestrator.cli import app
from orchestrator.spec.loader import shipped_specs
from trainer.catalog import BACKBONES, METHODS, TASKS


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with a spec, and a home with two sweeps and a task."""
    for name in ("SPTUNE_HOME", "SPTUNE_DATA", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "specs").mkdir()
    for file in ("mine.yaml", "notes.txt", "specs/other.yml"):
        (tmp_path / file).write_text("")
    for folder in ("sptune-home/sweeps/digits", "sptune-home/sweeps/vtab-mae", "sptune-home/data/own/photos"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "elsewhere/sweeps/far").mkdir(parents=True)


def completed(line: str) -> list[str]:
    """Return what bash is offered at the end of a line."""
    words = line.split(" ")
    shell = BashComplete(get_command(app), {}, "sptune", "_SPTUNE_COMPLETE")
    return [item.value for item in shell.get_completions(words[1:-1], words[-1])]


ROOT = Path(__file__).parents[3]
SWEEPS = ["digits", "vtab-mae", "mine.yaml"]
TABLE = [*TASKS, "own/photos"]


@pytest.mark.parametrize(
    ("line", "names"),
    [
        *(
            (f"sptune {command} ", [*shipped_specs(), "mine.yaml"])
            for command in ("launch", "plan", "replay", "doctor")
        ),
        *(
            (f"sptune {command} ", SWEEPS)
            for command in ("resume", "stop", "rm", "status", "failures", "report", "figures", "export", "register")
        ),
        ("sptune sync ", SWEEPS),
        ("sptune replay demo --like ", SWEEPS),
        ("sptune report digits ", ["vtab-mae", "mine.yaml"]),
        ("sptune report --home elsewhere ", ["far", "mine.yaml"]),
        ("sptune launch m", ["mine.yaml"]),
        ("sptune launch spe", ["specs/"]),
        ("sptune launch specs/", ["specs/other.yml"]),
        ("sptune launch no/such", []),
        ("sptune data show ", TABLE),
        ("sptune data verify own", ["own/photos"]),
        ("sptune data import x --task vtab/d", [name for name in TASKS if name.startswith("vtab/d")]),
        ("sptune new x.yaml --methods ", [*METHODS]),
        ("sptune new x.yaml --methods spt_deep vpt", ["vpt_deep", "vpt_shallow"]),
        ("sptune new x.yaml --methods spt_deep --backbone ", [*BACKBONES]),
        ("sptune new x.yaml --methods spt_deep --trials ", []),
        ("sptune new x.yaml --tasks demo/digits vtab/sv", ["vtab/svhn"]),
        ("sptune new x.yaml --tasks nat", ["natural"]),
        ("sptune new x.yaml --tasks demo/digits --met", ["--methods"]),
    ],
)
def test_names_are_completed(line: str, names: list[str]) -> None:
    assert completed(line) == names


def test_the_environment_says_where_the_home_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPTUNE_HOME", "elsewhere")
    assert completed("sptune status ") == ["far", "mine.yaml"]
    # No server is asked for a key press.
    monkeypatch.setenv("SPTUNE_HOME", "s3://bucket/home")
    assert completed("sptune status ") == ["mine.yaml"]


@pytest.mark.slow
def test_the_command_itself_answers_bash_without_a_big_library() -> None:
    code = """
import atexit, sys
atexit.register(lambda: print(*{"torch", "ray", "optuna", "mlflow"} & sys.modules.keys()))
sys.argv = ["sptune"]
from sptune import main
main()
"""
    variables = {"_SPTUNE_COMPLETE": "complete_bash", "COMP_WORDS": "sptune status di", "COMP_CWORD": "2"}
    environment = os.environ | variables | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("digits\n\n", "")
