"""No option of any command answers a user's mistake with a stack trace. Options that are added later are held to it."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from orchestrator.cli import app, main
from orchestrator.spec.loader import parse_spec
from orchestrator.study.storage.database import StudyDatabase
from orchestrator.sweep.sweep import Sweep
from orchestrator.sweep.tracker import MemoryTracker
from tests.orchestrator.conftest import RAW_SPEC, drive, new_sweep

# No secrets, no servers, and nothing that takes more than a moment.
AWKWARD = [
    "", " ", "-1", "99999", "nan", "9" * 5000, "x" * 5000, "a/../../b", "..", "e\u0301", "\udcff", "\n", "'", "[",
    "[red]x[/", "%s", "a=b", "study=[", "lr='", "-", "2024-13-45", "/dev/null/x", "~nobody/x", "\x1b[31m", "home",
    "binary", "empty", "missing.yaml", "home.yaml",
]  # fmt: skip

NUMBERS = ["", "-1", "0", "1.5", "99999999", "x", "9" * 5000]
"""For options with a range or a list of names."""


@pytest.fixture(scope="module")
def corner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a finished sweep, and files that are no specs."""
    folder = tmp_path_factory.mktemp("corner")
    (folder / "home").mkdir()
    small = {"trials": 1, "sampler": "random"}
    raw = RAW_SPEC | {"tasks": ["demo/digits"], "methods": ["linear"], "search": small, "final": {"seeds": [42]}}
    raw |= {"fixed": {"epochs": 1, "warmup_epochs": 0}, "space": {"lr": RAW_SPEC["space"]["lr"]}}
    drive(new_sweep(parse_spec(raw, "small"), f"sqlite:///{folder / 'home/studies.db'}"))
    (folder / "spec.yaml").write_text(yaml.safe_dump(raw))
    # Refused before anything is started, whatever the options.
    (folder / "mistaken.yaml").write_text(yaml.safe_dump(raw | {"methods": ["linaer"]}))
    (folder / "binary").write_bytes(bytes(range(256)) * 4)
    (folder / "empty").write_bytes(b"")
    return folder


ARGUMENTS: dict[str, list[str]] = {
    "plan": ["spec.yaml"],
    "replay": ["spec.yaml", "--like", "nothing"],
    # These would start a sweep, or look for servers.
    "doctor": ["mistaken.yaml"],
    "launch": ["mistaken.yaml"],
    "resume": ["nothing"],
    "register": ["small"],
    "rm": ["small"],
    "figures": ["nothing"],
    "predict": ["abc", "binary"],
    "ui": [],
    "backbones": [],
    "data import": ["empty"],
    "data list": [],
    "data verify": ["own/nothing"],
    "data show": ["own/nothing"],
    "data rm": ["own/nothing"],
}
"""Arguments with which a command is quickly at its end. Others get the finished sweep."""


def commands() -> Iterator[tuple[str, Any]]:
    root: Any = typer.main.get_command(app)
    for name, command in root.commands.items():
        for inner, subcommand in getattr(command, "commands", {}).items():
            yield f"{name} {inner}", subcommand
        if not hasattr(command, "commands"):
            yield name, command


COMMANDS = [*commands()]


def run(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> str | None:
    """Run the command in this process. Return what is wrong with its answer, or None."""
    monkeypatch.setattr(sys, "argv", ["sptune", *arguments])
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    shown = f"sptune {' '.join(argument[:60] for argument in arguments)}"
    try:
        main()
    except SystemExit as ended:
        return None if ended.code in (None, 0, 1, 2) else f"{shown}: status {ended.code}"
    except BaseException as error:
        return f"{shown}: {type(error).__name__}: {error!s:.200}"
    return f"{shown}: did not exit"


@pytest.fixture(autouse=True)
def _in_the_corner(corner: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(corner)
    monkeypatch.setenv("SPTUNE_HOME", str(corner / "home"))
    for name in ("SPTUNE_DATA", "SPTUNE_WEIGHTS", "SPTUNE_STUDIES", "MLFLOW_TRACKING_URI", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)


def values_of(index: int, option: Any, seen: set[str]) -> list[str]:
    """Return the values to try. What several commands share is tried with all of them once, then with a few each."""
    # Click reads numbers and names of a list, and does so alike for all options.
    if option.type_descriptor.annotation not in (str, Path):
        return NUMBERS
    if option.name in seen:
        return AWKWARD[index % 10 :: 10]

    seen.add(option.name)
    return AWKWARD


def option_cases() -> Iterator[tuple[str, list[list[str]]]]:
    """Yield each command with the command lines to try."""
    seen: set[str] = set()
    for index, (name, command) in enumerate(COMMANDS):
        lines = []
        start = [*name.split(), *ARGUMENTS.get(name, ["small"])]
        for option in command.params:
            if option.param_type_name == "option" and not option.is_flag:
                lines += [[*start, f"{option.opts[0]}={value}"] for value in values_of(index, option, seen)]

        count = sum(parameter.param_type_name == "argument" for parameter in command.params)
        if count:
            lines += [[*name.split(), *[value] * count] for value in AWKWARD[index % 5 :: 5]]
        yield name, lines


CASES = [*option_cases()]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "lines"), CASES, ids=[name for name, _ in CASES])
def test_no_command_line_ends_in_a_stack_trace(
    name: str, lines: list[list[str]], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    problems = [problem for line in lines if (problem := run(line, monkeypatch)) is not None]
    told = capfd.readouterr()
    assert problems == []
    assert not any(word in told.out + told.err for word in ("Traceback", "alid string", "nput should", "Value error"))


@pytest.mark.parametrize("arguments", [["figures", "small"], ["export", "small"], ["data", "show", "demo/digits"]])
@pytest.mark.parametrize("out", ["binary", "binary/x", "/dev/null/x"])
def test_a_place_that_cannot_be_written_is_named(
    arguments: list[str], out: str, store: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    if arguments[0] == "data" and out == "binary":
        out = "home"
    monkeypatch.setenv("SPTUNE_DATA", str(store))
    assert run([*arguments, "--out", out], monkeypatch) is None
    told = capfd.readouterr().err
    assert told.startswith("error: ")
    assert out.partition("/x")[0] in told


@pytest.mark.parametrize("command", [["status", "small"], ["report", "small"], ["resume", "small", "--inline"]])
def test_a_seed_that_was_recorded_before_it_was_refused_is_told_in_a_sentence(
    command: list[str], tmp_path: Path, raw_study: dict[str, Any], monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / "home").mkdir()
    raw_study["search"] = {"trials": 1, "sampler": "random"}
    database = StudyDatabase(f"sqlite:///{tmp_path / 'home/studies.db'}")
    sweep = Sweep.resume(parse_spec(raw_study, "a test"), database, MemoryTracker())
    drive(sweep)
    recorded = sweep.spec.model_dump(mode="json")
    database.save_sweep("small", recorded | {"final": recorded["final"] | {"seeds": [2**32]}})

    assert run([*command, "--home", str(tmp_path / "home")], monkeypatch) is None
    told = capfd.readouterr()
    assert "2^32-1" in told.err
    assert "Traceback" not in told.out + told.err
