"""What people and scripts see of sweeps: at every width, as JSON, all at once, and while they run."""

from __future__ import annotations

import copy
import json
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from orchestrator.cli import options, status
from orchestrator.drivers.replay import Clock, Curve, ReplayDriver, SyntheticCurves
from orchestrator.spec.loader import parse_spec
from orchestrator.spec.plan import plan_sweep
from orchestrator.study.storage.database import StudyDatabase
from orchestrator.study.study import load_studies
from orchestrator.study.trial import Failure, FailureCause, Trial
from orchestrator.sweep.sweep import Sweep
from orchestrator.sweep.tracker import MemoryTracker
from tests.orchestrator.conftest import RAW_SPEC, Sptune, drive, new_sweep

RAW: dict[str, Any] = copy.deepcopy(RAW_SPEC) | {
    "tasks": ["demo/digits"],
    "train_sizes": [0.5, 1.0],
    "fixed": {"epochs": 2, "warmup_epochs": 1},
    "search": {"trials": 2, "startup_trials": 2, "max_concurrent": 2, "pruner": {"type": "none"}},
    "final": {"seeds": [42, 44]},
    "retries": 0,
}
"""Four studies of four trials, whose table is wider than 80 columns."""
TINY = RAW | {"train_sizes": [1.0], "methods": ["linear"], "space": {"lr": RAW["space"]["lr"]}}
"""One study, for what is simulated anew for each look."""
DOCUMENT = Path(__file__).parents[3] / "search_spaces/README.md"
LEAVES = ("driver", "dead_driver", "chosen_params", "test_accuracies")
"""Keys whose values may be objects with keys of their own."""


def url(home: Path) -> str:
    return f"sqlite:///{home / 'studies.db'}"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a finished sweep and one that was stopped before its first trial, and the spec beside it."""
    home = tmp_path_factory.mktemp("finished")
    spec = parse_spec(RAW, "a test")
    curves = SyntheticCurves(plan_sweep(spec).studies)

    def curve(trial: Trial) -> Curve:
        if (trial.phase, trial.number, trial.config.train_size) == ("search", 0, 1.0):
            yield Failure(cause=FailureCause.ERROR, error="OSError: no disk\n\nTraceback:\n  here"), 1.0
        yield from curves(trial)

    clock = Clock()
    database = StudyDatabase(url(home))
    sweep = Sweep.resume(spec, database, MemoryTracker(), clock=clock)
    ReplayDriver(curve, clock, workers=2).run(sweep)
    sweep.close()
    sweep.studies[0].search_table.save_stop_reason("ValueError: no such image")

    database.save_sweep("other", parse_spec(RAW | {"name": "other"}, "a test").model_dump(mode="json"))
    database.save_halt_reason("other", "paused: failures in a row")
    database.close()
    (home / "photos.yaml").write_text(yaml.safe_dump(RAW))
    (home / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    return home


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """The console believes that a person reads it."""
    monkeypatch.setattr(options.console, "_force_terminal", True)


def words(text: str) -> list[str]:
    """Return the words of a text that have a digit, without what stands beside them."""
    return [word for word in re.split(r"[\s│┃,;:()]+", text) if re.search(r"\d", word)]


@pytest.mark.parametrize("command", ["status", "list", "plan", "replay", "report"])
@pytest.mark.usefixtures("terminal")
def test_no_number_and_no_header_is_cut_at_any_width(
    command: str, finished: Path, sptune: Sptune, monkeypatch: pytest.MonkeyPatch
) -> None:
    what = [] if command == "list" else [finished / ("tiny.yaml" if command == "replay" else "photos.yaml")]
    texts = {}
    for width in (60, 80, 120, 200):
        monkeypatch.setenv("COLUMNS", str(width))
        monkeypatch.setattr(options.console, "_width", None)
        code, texts[width], error = sptune(command, *what, "--home", finished)
        assert (code, error) == (0, "")

    wide = words(texts[200])
    assert len(wide) > (16 if command in ("status", "plan", "report") else 3)
    for width, text in texts.items():
        shown = words(text)
        assert {*wide} <= {*shown}, (width, {*wide} - {*shown})
        assert "…" not in text
        # A path or a command to copy is no table: only such a line may be longer.
        longest = [line for line in text.splitlines() if len(line.rstrip()) > width]
        assert all(line.startswith(("no driver", "other: ", "small: ", "sweeps in")) for line in longest), longest
        for header in {"status": ("done", "val %", "test %"), "plan": ("trials", "work")}.get(command, ()):
            assert header in text, width


def test_a_table_is_stacked_only_where_it_does_not_fit(
    finished: Path, sptune: Sptune, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    said = sptune("status", "small", "--home", finished)[1].splitlines()
    start = said.index("demo/digits, spt_deep, train_size 1.0")
    assert re.fullmatch(r"  done: 4/4, failed: 1, val %: [\d.]+, test %: [\d.]+", said[start + 1])
    monkeypatch.setenv("COLUMNS", "120")
    said = sptune("status", "small", "--home", finished)[1].splitlines()
    header = "task method train_size done run wait pruned failed val % test % left"
    assert header in [" ".join(line.split()) for line in said]


@pytest.mark.parametrize("like", [(), ("--like", "small")])
def test_every_number_of_a_simulation_says_that_it_is_synthetic(
    like: tuple[str, ...], finished: Path, sptune: Sptune
) -> None:
    replay = ("replay", finished / "tiny.yaml", "--home", finished, *like)
    _, said, _ = sptune(*replay)
    assert said.startswith("synthetic: ")
    assert said.splitlines()[-1].startswith("synthetic: ")
    assert "synthetic val %" in said and "synthetic test %" in said


def paths(value: Any, path: str = "") -> Iterator[str]:
    """Yield the keys of a JSON object: `a.b`, `a[].b` in a list, `a.*.b` where the keys are names of columns."""
    if isinstance(value, dict) and value and path.rpartition(".")[2] not in LEAVES:
        for key, entry in value.items():
            name = "*" if path.endswith("scores") else key
            yield from paths(entry, f"{path}.{name}" if path else name)
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for entry in value:
            yield from paths(entry, f"{path}[]")
    else:
        yield path


def documented() -> dict[str, set[str]]:
    """Return the keys that the documents promise, by command."""
    section = DOCUMENT.read_text().partition("### JSON for scripts")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `sptune ([\w ]+)` \| (.+) \|$", section, flags=re.MULTILINE)
    return {command: {*re.findall(r"`([^`]+)`", keys)} for command, keys in rows}


@pytest.mark.parametrize(
    ("command", "what"),
    [
        ("list", []),
        ("status", ["small"]),
        ("plan", ["photos.yaml"]),
        ("replay", ["tiny.yaml"]),
        ("failures", ["small"]),
        ("report", ["small", "--cost"]),
        ("doctor", []),
        ("data list", []),
        ("data verify", ["demo/digits"]),
        ("backbones", []),
    ],
)
def test_json_has_the_documented_keys_and_nothing_beside_it(
    command: str,
    what: list[str],
    finished: Path,
    store: Path,
    sptune: Sptune,
    monkeypatch: pytest.MonkeyPatch,
    terminal: None,
) -> None:
    monkeypatch.chdir(finished)
    place = ("--data", store) if command.startswith("data") else ("--home", finished)
    _, said, _ = sptune(*command.split(), *what, *(() if command == "backbones" else place), "--json")
    shown = json.loads(said)
    assert {*paths(shown)} == documented()[command]
    assert said == json.dumps(shown, indent=2) + "\n"
    if command == "replay":
        assert [shown["synthetic"], *(study["synthetic"] for study in shown["studies"])] == [True, True]


def test_every_command_with_json_is_documented() -> None:
    from orchestrator.cli import app, data

    for group, prefix in ((app, ""), (data.app, "data ")):
        for command in group.registered_commands:
            assert command.callback is not None
            name = prefix + (command.name or command.callback.__name__)
            assert ("as_json" in command.callback.__annotations__) == (name in documented()), name


def test_status_without_a_sweep_lists_all_of_the_home(finished: Path, sptune: Sptune, tmp_path: Path) -> None:
    code, said, _ = sptune("list", "--home", finished)
    assert code == 0
    assert [line.split() for line in said.splitlines()[1:4]] == [
        ["sweep", "state", "done", "failed", "studies"],
        ["small", "done", "16/16", "2", "4"],
        ["other", "stopped", "0/16", "4"],
    ]
    assert said.splitlines()[4:] == [
        f"small: 2 trials failed; `sptune failures small --home {finished}` shows why.",
        "other: paused: failures in a row",
    ]
    assert sptune("status", "--home", finished)[1] == said
    assert sptune("status", "--json", "--home", finished) == sptune("list", "--json", "--home", finished)

    code, _, complaint = sptune("list", "--home", tmp_path)
    assert (code, "holds no sweep; start one with `sptune launch demo`" in complaint) == (2, True)


def test_a_sweep_that_cannot_be_read_hides_no_other(finished: Path, sptune: Sptune, tmp_path: Path) -> None:
    home = shutil.copytree(finished, tmp_path / "home")
    database = StudyDatabase(url(home))
    database._storage.set_study_user_attr(database._sweep_id("other"), "schema_version", 999)
    database.close()
    listed = json.loads(sptune("list", "--json", "--home", home)[1])["sweeps"]
    assert [each["state"] for each in listed] == ["done", "unreadable"]
    assert "newer version of sptune" in listed[1]["note"]


@pytest.mark.parametrize(
    ("command", "code", "says"),
    [
        (("status",), 0, "small: 16 of 16 trials finished"),
        (("report",), 0, "test accuracy"),
        (("failures",), 0, "× error: OSError: no disk"),
        (("stop",), 2, "no driver is running small"),
        (("rm", "--trial", "ffff", "--yes"), 2, "no trial of small matches"),
        (("resume", "--where", "error=KeyError*", "--inline"), 2, "no failed trial of small matches"),
        (("register", "--where", "task=none"), 2, "no complete final trial of small matches"),
        (("replay", "demo", "--like"), 2, "the earlier sweep has no search trial of demo/digits"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_a_sweep_is_found_by_the_file_of_its_spec(
    command: tuple[str, ...], code: int, says: str, finished: Path, sptune: Sptune, tmp_path: Path
) -> None:
    home = shutil.copytree(finished, tmp_path / "home")
    # What is wrong with the file today does not matter to what it once started. Only `resume` reads whom it notifies.
    broken = "name: small\nmethods: [spt_depe]\nnovel: 1\n"
    (tmp_path / "photos.yaml").write_text(yaml.safe_dump(RAW) if command[0] == "resume" else broken)
    # The last one is not there any more, and only its name is left.
    for file in (tmp_path / "photos.yaml", tmp_path / "elsewhere/small.yaml"):
        ended, said, complaint = sptune(*command, file, "--home", home)
        assert (ended, says in said + complaint) == (code, True), (file, said, complaint)


def test_a_name_comes_before_a_file_and_a_shipped_spec_has_the_name_of_its_file(
    finished: Path, sptune: Sptune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = shutil.copytree(finished, tmp_path / "home")
    StudyDatabase(url(home)).save_sweep("vtab-mae", RAW | {"name": "vtab-mae"})
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small").write_text("name: other\n")
    assert "small: 16 of 16" in sptune("status", "small", "--home", home)[1]
    assert "vtab-mae: 0 of 16" in sptune("status", "vtab_mae", "--home", home)[1]
    (tmp_path / "photos").write_text("name: small\n")
    assert "small: 16 of 16" in sptune("status", "photos", "--home", home)[1]
    once = sptune("report", "small", "--home", home)
    (tmp_path / "photos.yaml").write_text("name: small\n")
    assert sptune("report", "small", "photos.yaml", "--home", home) == once, "named twice, it counts once"


def test_a_sweep_is_watched_until_its_driver_ends(
    finished: Path, sptune: Sptune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    sweep = new_sweep(parse_spec(RAW, "a test"), url(home))
    lease = StudyDatabase(url(home)).lease("small")
    lease.acquire("small")
    looks: list[float] = []

    def work(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 1:
            drive(sweep, events=8)
        elif len(looks) == 3:
            drive(sweep)
            lease.release()

    monkeypatch.setattr(options, "time", SimpleNamespace(sleep=work, monotonic=time.monotonic))
    code, said, _ = sptune("status", "small", "--watch", "--home", home)
    first, second, third = said.splitlines()
    assert code == 0 and min(looks) >= status.REDRAW_EVERY_S
    assert re.match(r"small: 0 of 16 trials finished; driven by process \d+", first)
    assert re.match(r"small: 4 of 16 trials finished; driven by process \d+", second), "printed once"
    assert third == "small: 16 of 16 trials finished; no driver is running it"


@pytest.mark.usefixtures("terminal")
def test_watching_in_a_terminal_ends_with_ctrl_c_and_leaves_the_sweep_alone(
    sptune: Sptune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drive(new_sweep(parse_spec(RAW, "a test"), url(tmp_path)), events=9)
    lease = StudyDatabase(url(tmp_path)).lease("small")
    lease.acquire("small")

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(options, "time", SimpleNamespace(sleep=interrupt, monotonic=time.monotonic))
    code, said, complaint = sptune("status", "small", "--watch", "--home", tmp_path)
    assert (code, complaint) == (0, "")
    assert "small: 4 of 16 trials finished" in said and "val %" in said
    assert [driver.is_alive for driver in lease.drivers()] == [True]
    lease.release()

    for more in (("--json",), ()):
        code, _, complaint = sptune("status", *(("small",) if more else ()), "--watch", *more, "--home", tmp_path)
        assert (code, complaint.startswith("error: --watch shows one sweep to a person")) == (2, True)


def test_looking_writes_nothing(finished: Path, sptune: Sptune) -> None:
    def content() -> dict[str, bytes]:
        # Locks of readers are in SQLite's shared memory, `-shm`, if a driver has left it.
        files = [path for path in finished.rglob("*") if path.is_file() and path.suffix != ".db-shm"]
        return {str(path): path.read_bytes() for path in files}

    before = content()
    for command in (("list",), ("status", "small", "--watch"), ("failures", "small", "--json"), ("report", "small")):
        assert sptune(*command, "--home", finished)[0] == 0
    assert content() == before


def test_a_small_screen_shows_the_studies_that_run(tmp_path: Path) -> None:
    from rich.console import Console

    from orchestrator.cli.progress import progress_table

    sweep = new_sweep(parse_spec(RAW, "a test"), url(tmp_path))
    drive(sweep, events=9)
    assert sweep.next_trial() is not None
    running = [study.plan for study in load_studies(sweep.spec, StudyDatabase(url(tmp_path))) if study.unfinished()]
    for width, lines in ((60, 4), (200, 2)):
        console = Console(width=width)
        with console.capture() as captured:
            console.print(progress_table(sweep.summaries(), lines))
        said = captured.get()
        assert all(plan.task in said and plan.method in said for plan in running)
        assert re.search(r"and \d more: sptune status", said)
