"""Weights that are on timm's hub alone are downloaded before a launch writes or starts anything."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

NAME = "vit_tiny_patch16_224.augreg_in21k"
CONTENT = b"weights"
REQUIRE = f"""
import sys
from orchestrator.environment.home import home_at
from orchestrator.errors import SpecError
from orchestrator.launch.check import require
from orchestrator.spec.loader import parse_spec
from trainer.catalog import BACKBONES
from trainer.model.weights import find_weights

spec = parse_spec(
    {{"name": "tiny", "tasks": ["demo/digits"], "backbones": ["{NAME}"], "methods": ["linear"],
      "space": {{"lr": {{"type": "float", "low": 0.1, "high": 1.0}}}}, "search": {{"trials": 1}},
      "final": {{"seeds": [42]}}}}, "a test")
try:
    require(spec, "a test", home_at(sys.argv[1]), None, driver="ray", address=None, runs_finished_again=False,
            on_progress=lambda progress: print(progress.note))
except SpecError as error:
    print(*error.problems, sep="\\n")
else:
    print(find_weights(BACKBONES["{NAME}"], None).path.read_bytes())
"""


class _Hub(BaseHTTPRequestHandler):
    """A hub with one file."""

    def do_HEAD(self) -> None:
        is_there = self.path == f"/timm/{NAME}/resolve/main/model.safetensors"
        self.send_response(200 if is_there else 404)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.send_header("ETag", f'"{hashlib.sha256(CONTENT).hexdigest()}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        self.wfile.write(CONTENT)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.fixture
def hub() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def required(tmp_path: Path, endpoint: str) -> list[str]:
    """What the check says in a process of its own, because the library reads its variables once a process."""
    home = tmp_path / "home"
    environment = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1"}
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "SPTUNE_"))}
    done = subprocess.run(
        [sys.executable, "-c", REQUIRE, str(home)], capture_output=True, text=True, check=False, env=kept | environment
    )
    assert done.returncode == 0, done.stderr
    assert not home.exists()
    return done.stdout.splitlines()


def test_weights_on_the_hub_are_downloaded_once(hub: ThreadingHTTPServer, tmp_path: Path) -> None:
    endpoint = f"http://127.0.0.1:{hub.server_port}"
    note = f"downloading the weights of {NAME} from timm's hub"
    assert required(tmp_path, endpoint) == [note, str(CONTENT)]
    assert required(tmp_path, endpoint) == [str(CONTENT)]


def test_a_download_that_fails_is_a_problem_of_the_spec(hub: ThreadingHTTPServer, tmp_path: Path) -> None:
    note, problem = required(tmp_path, f"http://127.0.0.1:{hub.server_port}/empty")
    assert note.startswith("downloading the weights of")
    assert problem.startswith(f"backbones: {NAME} could not be downloaded from timm's hub: ")
    assert problem.endswith(f"or copy that machine's Hugging Face cache to {tmp_path / 'cache/hub'}.")


def test_without_a_network_one_sentence_says_what_to_do(tmp_path: Path) -> None:
    [problem] = required(tmp_path, "http://127.0.0.1:1")
    assert problem == (
        f"backbones: {NAME} is not on this machine, and timm's hub cannot be reached (Connection refused). Download it "
        f"where there is a network and name the file, or a folder that holds {NAME}.safetensors, with --weights or "
        f"SPTUNE_WEIGHTS; or copy that machine's Hugging Face cache to {tmp_path / 'cache/hub'}. To try sptune without "
        "it, use vit_nano_patch4_32.mae, which ships with it."
    )
