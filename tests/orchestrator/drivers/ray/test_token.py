"""A Ray cluster that asks for its token, and drivers that have another one or none."""

from __future__ import annotations

import secrets
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.integration.processes import run_sptune
from tests.services.ray_nodes import RayNodes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

WRONG: dict[str, tuple[dict[str, str], str]] = {
    "another token": ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}, "another token"),
    "no token": ({"RAY_AUTH_MODE": "token"}, "no valid token"),
    "no authentication": ({"RAY_AUTH_MODE": "disabled"}, "no valid token"),
    "nothing": ({}, "no valid token"),
}


def test_a_refused_token_is_one_sentence_that_ray_is_not_asked_twice_for(tmp_path: Path) -> None:
    with RayNodes(1) as nodes:
        where = {"RAY_ADDRESS": nodes.address, "HOME": str(tmp_path)}

        def doctor(env: dict[str, str]) -> tuple[int, str]:
            done = run_sptune("doctor", "demo", home=tmp_path / "home", **where, **env)
            return done.returncode, done.stderr

        with ThreadPoolExecutor(2) as pool:
            answers = dict(zip(WRONG, pool.map(doctor, [env for env, _ in WRONG.values()]), strict=True))
            right = doctor(nodes.env)

    for name, (_, sent) in WRONG.items():
        assert answers[name] == (
            2,
            f"error: the Ray cluster at {nodes.address} asks for its token, and this process sent {sent}. Set "
            "RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN to the token that the cluster was started with.\n",
        ), name
    assert "asks for its token" not in right[1]
