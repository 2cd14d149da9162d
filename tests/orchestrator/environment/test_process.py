"""Settings of the process: proxies leave this machine's own addresses alone, and limits are as high as they may be."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from orchestrator.environment.process import (
    bypass_proxy_for_loopback,
    home_problem,
    proxy_hint,
    proxy_variable,
)
from orchestrator.environment.temporary import (
    MAX_RAY_FOLDER_BYTES,
    default_ray_folder,
    problem_of_folder,
    short_folder,
    variable_of_folder,
)
from orchestrator.errors import ServiceError
from orchestrator.tracking.mlflow_server import check_reachable

DEAD_PROXY = "http://127.0.0.1:9"
"""Nothing listens at this port."""


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        for spelling in (name, name.upper()):
            # Set first, so that what a test makes of it is undone.
            monkeypatch.setenv(spelling, "")
            monkeypatch.delenv(spelling)
    for name in ("TMPDIR", "RAY_TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(tempfile, "tempdir", None)


@pytest.mark.parametrize("variable", ["http_proxy", "HTTPS_PROXY", "ALL_PROXY"])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, "localhost,127.0.0.1,::1"),
        ({"no_proxy": "lan, .corp"}, "lan,.corp,localhost,127.0.0.1,::1"),
        # What only the capital letters say is kept: libraries read the small ones first.
        ({"NO_PROXY": "lan"}, "lan,localhost,127.0.0.1,::1"),
        ({"no_proxy": "localhost,lan"}, "localhost,lan,127.0.0.1,::1"),
        ({"no_proxy": "*"}, "*"),
    ],
)
def test_addresses_of_this_machine_are_excluded_from_a_proxy(
    variable: str, before: dict[str, str], after: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (before | {variable: DEAD_PROXY}).items():
        monkeypatch.setenv(name, value)
    bypass_proxy_for_loopback()
    bypass_proxy_for_loopback()
    assert os.environ["no_proxy"] == os.environ["NO_PROXY"] == after


def test_without_a_proxy_nothing_is_set() -> None:
    bypass_proxy_for_loopback()
    assert "no_proxy" not in os.environ


@pytest.mark.parametrize(
    ("environment", "address", "variable"),
    [
        ({}, "http://mlflow.lan:5000", None),
        ({"http_proxy": DEAD_PROXY}, "http://mlflow.lan:5000", "http_proxy"),
        ({"HTTP_PROXY": DEAD_PROXY}, "http://mlflow.lan:5000", "HTTP_PROXY"),
        ({"http_proxy": DEAD_PROXY}, "https://mlflow.lan", None),
        ({"ALL_PROXY": DEAD_PROXY}, "https://mlflow.lan", "ALL_PROXY"),
        ({"http_proxy": DEAD_PROXY, "no_proxy": ".lan"}, "http://mlflow.lan:5000", None),
        ({"http_proxy": DEAD_PROXY, "no_proxy": "mlflow.lan:5000"}, "http://mlflow.lan:5000", None),
        # No web address.
        ({"http_proxy": DEAD_PROXY, "all_proxy": DEAD_PROXY}, "sqlite:////home/mlflow.db", None),
        ({"http_proxy": DEAD_PROXY}, "", None),
    ],
)
def test_the_variable_of_a_proxy_is_known_for_each_address(
    environment: dict[str, str], address: str, variable: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert proxy_variable(address) == variable
    assert (variable or "") in proxy_hint(address)
    assert bool(variable) == bool(proxy_hint(address))


def test_a_server_that_only_the_proxy_hides_is_named_with_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", DEAD_PROXY)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ServiceError) as raised:
        check_reachable("http://mlflow.invalid:5000")
    assert raised.value.away
    assert str(raised.value).endswith(
        "proxy of http_proxy; if mlflow.invalid is in your own network, add it to no_proxy."
    )


@pytest.mark.parametrize(
    ("environment", "folder", "variable"),
    [
        ({}, "/tmp/ray", "/tmp"),
        ({"TMPDIR": "/scratch"}, "/scratch/ray", "TMPDIR"),
        ({"TMPDIR": "/scratch", "RAY_TMPDIR": "/fast"}, "/fast/ray", "RAY_TMPDIR"),
    ],
)
def test_the_folder_of_ray_is_the_one_that_ray_would_choose(
    environment: dict[str, str], folder: str, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray._common.utils import get_default_ray_temp_dir

    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert str(default_ray_folder()) == folder == get_default_ray_temp_dir()
    assert variable_of_folder() == variable


def test_a_folder_is_refused_if_sockets_do_not_fit_or_nothing_can_be_written() -> None:
    longest = Path("/tmp") / ("x" * (MAX_RAY_FOLDER_BYTES - len("/tmp/")))
    socket = "/session_2026-01-31_12-00-00_123456_1234567/sockets/plasma_store"
    assert len(f"{longest}{socket}") == 107
    assert problem_of_folder(longest) is None
    assert "44 bytes" in str(problem_of_folder(Path(f"{longest}x")))
    # Letters beside ASCII take several bytes.
    assert "bytes" in str(problem_of_folder(Path("/tmp") / ("ü" * 20)))
    assert problem_of_folder(Path("/dev/null/ray")) == "cannot be written (/dev/null)"


def test_another_folder_is_found_if_the_own_is_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("x" * 60)
    long.mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    folder = short_folder()
    assert folder is not None and folder != long
    assert problem_of_folder(folder / "ray-12345678") is None


def test_a_home_that_cannot_be_written_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "later"))
    assert home_problem() is None
    monkeypatch.setenv("HOME", "/dev/null")
    assert home_problem() == "/dev/null is no folder"


def test_a_process_raises_limits_and_ignores_warnings_and_the_working_directory() -> None:
    code = """
import os, resource, subprocess, sys, warnings
from orchestrator.environment.process import prepare_process
resource.setrlimit(resource.RLIMIT_NOFILE, (256, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
prepare_process()
warnings.warn("a library warns")
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
assert soft == hard
assert subprocess.run([sys.executable, "-c", "import sys; sys.exit('' in sys.path)"]).returncode == 0
"""
    environment = os.environ | {"PYTHONWARNINGS": "error"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
