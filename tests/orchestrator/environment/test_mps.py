"""Whether MPS runs: a daemon answers at its socket. A folder, a file or the socket of a dead daemon is none."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from orchestrator.environment import provenance
from orchestrator.environment.mps import DEFAULT_FOLDER, has_mps, mps_socket


@contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    """A socket as the daemon has it. Its file stays, as that of a daemon that was killed."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.bind(str(path))
        server.listen()
        yield server


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path))
    return tmp_path


def test_a_daemon_that_answers_is_found_and_one_that_was_killed_is_not(folder: Path) -> None:
    assert not has_mps()
    with listening(folder / "control") as server:
        assert has_mps()
        server.close()
        assert (folder / "control").is_socket()
        assert not has_mps()


def test_what_is_no_socket_is_no_daemon(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "control").write_text("")
    assert not has_mps()
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(folder / "control"))
    assert not has_mps()
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", "/" + "x" * 200)
    assert not has_mps(), "no socket has a path of this length"


def test_the_folder_is_that_of_cuda(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert mps_socket() == f"{folder}/control"
    for text in ("", None):
        if text is None:
            monkeypatch.delenv("CUDA_MPS_PIPE_DIRECTORY")
        else:
            monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", text)
        assert mps_socket() == f"{DEFAULT_FOLDER}/control" == "/tmp/nvidia-mps/control"


def test_a_worker_on_a_gpu_reports_it_and_asks_once(folder: Path) -> None:
    provenance._has_mps.cache_clear()
    assert "mps" not in provenance.machine("x86_64", has_gpu=False)
    with listening(folder / "control"):
        assert provenance.machine("NVIDIA H200", has_gpu=True)["mps"] == "yes"
    # Its process is a client of the daemon, or dies with it.
    assert provenance.machine("NVIDIA H200", has_gpu=True)["mps"] == "yes"
    provenance._has_mps.cache_clear()
    assert provenance.machine("NVIDIA H200", has_gpu=True)["mps"] == "no"
    provenance._has_mps.cache_clear()
