"""The doctor names each condition of a machine that stops a sweep or slows it down, with the way out."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import Distribution, PathDistribution
from pathlib import Path

import pytest

from orchestrator.doctor import machine
from orchestrator.doctor.checks import Finding
from orchestrator.environment.home import home_at
from trainer.machine import Limit, usable_cores

CODE = """
from orchestrator.doctor.machine import check_machine
from orchestrator.environment.home import home_at
from orchestrator.environment.process import prepare_process

prepare_process()
for finding in check_machine(home_at("/tmp/h")):
    print(finding.subject, finding.verdict, finding.detail, finding.remedy, sep="|")
"""
ROOT = Path(__file__).parents[3]
NO_USERS = "mount --bind /dev/null /etc/passwd; mount --bind /dev/null /etc/nsswitch.conf"
"""Commands after which no user has a name or a home."""
VARIABLES = ("HOME", "PATH", "SPTUNE_CACHE")
DIGEST_OF_OURS = "ExAq1eaKV3oh2-GqaxYYnpPpeSeNa5kX1_J5qaPavRY"
"""SHA-256 of `ours` and a line feed, as pip writes it."""


def examined(before: str = "", prefix: tuple[str, ...] = (), **environment: str) -> dict[str, tuple[str, str, str]]:
    """Verdict, detail and remedy of each finding in a process of its own, by its subject."""
    kept = {name: os.environ[name] for name in VARIABLES if name in os.environ}
    done = subprocess.run(
        [*prefix, sys.executable, "-c", before + CODE],
        cwd=ROOT,
        env=kept | {"LC_ALL": "C.UTF-8"} | environment,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=True,
    )
    rows = [line.split("|") for line in done.stdout.splitlines()]
    return {subject: (verdict, detail, remedy) for subject, verdict, detail, remedy in rows}


def test_a_machine_in_order_has_cores_and_memory_and_no_warning() -> None:
    found = examined()
    if any(verdict != "ok" for verdict, *_ in found.values()):
        pytest.skip(f"this machine has limits of its own: {found}")
    assert [*found] == ["cores", "memory"]
    assert found["cores"][1].startswith(f"{usable_cores()} of ")


def test_each_condition_is_named_with_its_variable_and_the_way_out(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 60)
    long.mkdir()
    before = """
import os, resource
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
"""
    if hasattr(os, "sched_setaffinity"):
        before += "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    found = examined(
        before,
        TMPDIR=str(long),
        HOME="/dev/null",
        LC_ALL="C",
        PYTHONUTF8="0",
        PYTHONCOERCECLOCALE="0",
        http_proxy="http://ada:lovelace@proxy.lan:3128",
        MLFLOW_TRACKING_URI="http://mlflow.lan:5000",
    )
    expected = {
        "TMPDIR": ("ray has ", "RAY_TMPDIR names another"),
        "HOME": ("cannot be written: /dev/null is no folder", "Set SPTUNE_CACHE and HF_HOME"),
        "proxy": ("http_proxy is http://ada:***@proxy.lan:3128, and requests to MLflow", "add its host to no_proxy"),
        "LANG": ("the locale has the encoding", "Set LC_ALL=C.UTF-8"),
        "open files": ("at most 256", "Raise the hard limit (`ulimit -Hn`"),
    }
    for subject, (detail, remedy) in expected.items():
        assert found[subject][0] == "warning"
        assert detail in found[subject][1]
        assert remedy in found[subject][2]
    if (os.cpu_count() or 1) > 1 and hasattr(os, "sched_setaffinity"):
        assert found["cores"][1].startswith("1 of ")
        assert found["cores"][1].endswith(", by CPU affinity")


def test_a_folder_that_no_socket_fits_is_an_error_if_there_is_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/dev/null")
    monkeypatch.setattr(machine, "short_folder", lambda: None)
    (finding,) = [each for each in machine.check_machine(home_at("/tmp/h")) if each.subject == "RAY_TMPDIR"]
    assert finding.verdict == "error"
    assert finding.sentence == (
        "this machine, RAY_TMPDIR: /dev/null/ray cannot be written (/dev/null). Set RAY_TMPDIR to a short folder on a "
        "local disk, such as /scratch/me."
    )


def test_a_proxy_that_is_not_used_is_named_without_a_warning() -> None:
    found = examined(ALL_PROXY="socks5://proxy.lan:1080", MLFLOW_TRACKING_URI="http://127.0.0.1:5000")
    assert found["proxy"] == (
        "ok",
        "ALL_PROXY is socks5://proxy.lan:1080; not used for localhost, 127.0.0.1, ::1 and what no_proxy names",
        "",
    )


def test_little_shared_memory_and_no_home_are_named() -> None:
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("needs root and unshare")
    script = f'mount -t tmpfs -o size=64m tmpfs /dev/shm; {NO_USERS}; exec env -u HOME "$@"'
    try:
        found = examined(prefix=("unshare", "--mount", "sh", "-e", "-c", script, "sh"))
    except subprocess.CalledProcessError as error:
        if "unshare" in error.stderr or "mount" in error.stderr:
            pytest.skip(f"nothing can be mounted here: {error.stderr}")
        raise
    verdict, detail, remedy = found["/dev/shm"]
    assert verdict == "warning"
    assert detail == "has 67 MB free"
    assert "--shm-size=1g" in remedy
    assert "HOME is not set, and the list of users has no home" in found["HOME"][1]


def test_few_processes_and_little_memory_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "process_limit", lambda: Limit(100, "ulimit -u"))
    monkeypatch.setattr(machine, "memory_limit", lambda: Limit(10**9, "memory limit of the control group"))
    by_subject: Mapping[str, Finding] = {each.subject: each for each in machine.check_machine(home_at("/tmp/h"))}
    assert by_subject["processes"].detail == "at most 100, by ulimit -u"
    assert "`docker run --pids-limit`" in by_subject["processes"].remedy
    assert by_subject["memory"].detail == "1.0 GB, by the memory limit of the control group"
    assert by_subject["memory"].remedy.endswith("or launch with --inline.")


def test_files_that_another_distribution_has_replaced_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "trainer").mkdir()
    (tmp_path / "trainer/__init__.py").write_text("ours\n")
    info = tmp_path / "sptune-0.1.0.dist-info"
    info.mkdir()
    info.joinpath("RECORD").write_text(f"trainer/__init__.py,sha256={DIGEST_OF_OURS},5\n")
    installed: Distribution = PathDistribution(info)
    monkeypatch.setattr(machine, "distribution", lambda name: installed)
    home = home_at("/tmp/h")
    assert "installation" not in [finding.subject for finding in machine.check_machine(home)]

    (tmp_path / "trainer/__init__.py").write_text("theirs\n")
    (finding,) = [each for each in machine.check_machine(home) if each.subject == "installation"]
    assert finding.verdict == "error"
    assert finding.detail == f"{tmp_path}/trainer/__init__.py is not the file that sptune installed (1 such file)"
    assert "environment of its own" in finding.remedy
