"""Other packages with the names of ours: never imported from the working directory, and named if they come first."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import orchestrator
import sptune
from orchestrator.spec.loader import find_spec
from trainer.catalog import BACKBONES, BUNDLED
from trainer.model.weights import find_weights

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-P", "-c", "import sptune; sptune.main()", "--version"]
"""The console script, whatever version of it is installed."""


def run(command: list[str], folder: Path, **environment: str) -> tuple[int, str]:
    """Run a command in a folder. Our packages are on the path, as if they were installed."""
    code = f"import sys; sys.path.append({str(ROOT)!r}); "
    place = command.index("-c") + 1
    done = subprocess.run(
        [*command[:place], code + command[place], *command[place + 1 :]],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def write_package(folder: Path, name: str, kind: str) -> Path:
    """Write a foreign package, and return the path that a message must name."""
    if kind == "file":
        file = folder / f"{name}.py"
    elif kind == "package":
        file = folder / name / "__init__.py"
    else:
        # A folder without `__init__.py` is a package, too.
        file = folder / name / "other.py"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("raise SystemExit('the foreign one runs')\n")
    return file.parent if kind == "folder" else file


@pytest.mark.parametrize(
    ("name", "kind"),
    [("trainer", "file"), ("trainer", "package"), ("orchestrator", "package")],
)
def test_a_foreign_package_that_comes_first_is_named_by_the_command(name: str, kind: str, tmp_path: Path) -> None:
    file = write_package(tmp_path, name, kind)
    status, text = run(COMMAND, ROOT, PYTHONPATH=str(tmp_path))
    assert status == 2
    assert text.count("\n") == 1
    assert text.startswith(f"error: `import {name}` finds {file} instead of {ROOT / name}, which belongs to sptune. ")
    assert "PYTHONPATH" in text


def test_a_foreign_trainer_beside_a_script_is_named_at_the_first_import(tmp_path: Path) -> None:
    file = write_package(tmp_path, "trainer", "file")
    status, text = run([sys.executable, "-c", "import orchestrator.launch"], tmp_path)
    assert status == 1
    assert text.splitlines()[-1].startswith(f"ImportError: `import trainer` finds {file} instead of {ROOT / 'trainer'}")


def test_a_relative_entry_of_the_path_is_no_reason_to_import_from_the_working_directory(tmp_path: Path) -> None:
    for name in ("trainer", "orchestrator", "yaml", "random"):
        write_package(tmp_path, name, "file")
    status, text = run(COMMAND, tmp_path, PYTHONPATH=os.pathsep.join(["", ".", "/nowhere"]))
    assert (status, text) == (0, f"sptune {orchestrator.__version__}\n")


def test_only_relative_entries_are_dropped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), "/one", str(tmp_path / "sub"), "/two"])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", "/one", "sub", "/two"]))
    sptune.leave_working_directory()
    assert os.environ["PYTHONPATH"] == os.pathsep.join(["/one", "/two"])
    assert sys.path == ["/one", "/two"]

    # Named as an absolute path, it is there on purpose.
    monkeypatch.setattr(sys, "path", [str(tmp_path), "/one"])
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    sptune.leave_working_directory()
    assert sys.path == [str(tmp_path), "/one"]


def test_a_folder_without_init_is_foreign_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = write_package(tmp_path, "trainer_without_init", "folder")
    monkeypatch.syspath_prepend(tmp_path)
    sentence = sptune.foreign_package("trainer_without_init")
    assert sentence is not None
    assert f"finds {place} instead of" in sentence
    assert "finds None instead of" in str(sptune.foreign_package("no_such_package"))
    assert sptune.foreign_package("trainer") is None


def test_resources_are_found_beside_the_module_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    import search_spaces
    import trainer

    # Whatever the names stand for at that moment.
    monkeypatch.setattr(search_spaces, "__path__", ["/nowhere"])
    monkeypatch.setattr(trainer, "__path__", ["/nowhere"])
    assert find_spec("demo") == ROOT / "search_spaces/demo.yaml"
    source = find_weights(BACKBONES[BUNDLED], None)
    assert source.path == ROOT / f"trainer/assets/{BUNDLED}.safetensors"


def test_the_console_script_enters_through_the_check() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert 'sptune = "sptune:main"' in text
    assert 'py-modules = ["sptune"]' in text
