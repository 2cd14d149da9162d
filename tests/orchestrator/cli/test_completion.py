"""The shell completes names of specs, sweeps, tasks, backbones and methods, quickly."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer._completion_classes import BashComplete
from typer.main import get_command

from orchestrator.cli import app
from orchestrator.spec.shipped import shipped_specs
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


def script_for(shell: str, *options: str) -> str:
    """Return the script that `--show-completion` prints, which asks its parent process which shell it is."""
    command = [need(shell), *options, "-c", "sptune --show-completion; true"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def need(shell: str) -> str:
    found = shutil.which(shell)
    if found is None:
        pytest.skip(f"{shell} is not installed")
    return found


@pytest.fixture
def on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the folder of the command before the others, as an activated environment does."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")


@pytest.mark.slow
@pytest.mark.usefixtures("on_path")
@pytest.mark.parametrize(
    ("line", "names"), [("sptune status di", ["digits"]), ("sptune launch vtab_s", ["vtab_supervised"])]
)
def test_fish_completes_names(tmp_path: Path, line: str, names: list[str]) -> None:
    (tmp_path / "completion.fish").write_text(script_for("fish"))
    code = f'source completion.fish; complete --do-complete "{line}"'
    done = subprocess.run([need("fish"), "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == names


@pytest.mark.slow
@pytest.mark.usefixtures("on_path")
def test_zsh_completes_names_at_a_press_of_tab(tmp_path: Path) -> None:
    (tmp_path / "completion.zsh").write_text(script_for("zsh", "-f"))
    child, terminal = pty.fork()
    if child == 0:
        os.execvpe("zsh", ["zsh", "-f", "-i"], {**os.environ, "TERM": "dumb"})

    def typed(keys: str, until: str) -> None:
        """Type into the terminal, and wait until it shows a text."""
        shown, end = "", time.monotonic() + 60
        os.write(terminal, keys.encode())
        while until not in shown:
            assert time.monotonic() < end, shown
            if select.select([terminal], [], [], 1)[0]:
                shown += os.read(terminal, 4096).decode(errors="replace")

    try:
        typed("autoload -Uz compinit; compinit -u -D; source completion.zsh; echo is-$((1+1))-ready\n", "is-2-ready")
        typed("sptune status di\t", "sptune status digits")
    finally:
        os.close(terminal)
        os.waitpid(child, 0)
