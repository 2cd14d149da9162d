"""docker/ray-cluster.yaml, by Ray's own validator."""

from __future__ import annotations

import copy
import re
import subprocess
from typing import Any

import pytest
from jsonschema import ValidationError  # type: ignore[import-untyped]
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.integration.docker.files import BIN, DOCKER, documents

[RAW] = documents("ray-cluster.yaml")
COMMANDS = [name for name in prepare_config(RAW) if name.endswith("_commands")]


def validate(raw: Any) -> None:
    """What `ray up` does before it asks the cloud for anything."""
    validate_config(prepare_config(raw))


def test_ray_takes_it() -> None:
    validate(RAW)


@pytest.mark.parametrize(
    ("name", "value"), [("max_worker", 8), ("idle_timeout_minutes", "10"), ("head_node_type", "x")]
)
def test_ray_would_refuse_a_mistake(name: str, value: object) -> None:
    spoilt = copy.deepcopy(RAW)
    spoilt[name] = value
    with pytest.raises((ValidationError, ValueError)):
        validate(spoilt)


def test_ray_adds_no_command_of_its_own() -> None:
    """Its defaults would install another Ray over that of the image."""
    prepared = prepare_config(RAW)
    assert COMMANDS and {name: prepared[name] for name in COMMANDS} == {name: RAW[name] for name in COMMANDS}


@pytest.mark.parametrize("command", [command for name in COMMANDS for command in RAW[name]])
def test_shellcheck_finds_nothing(command: str) -> None:
    # RAY_HEAD_IP is Ray's to set, a number.
    options = ["--shell=bash", "--exclude=SC2086", "-"]
    done = subprocess.run([BIN / "shellcheck", *options], input=command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_workers_are_of_a_spot_market_with_a_gpu_and_there_are_none_before_there_are_trials() -> None:
    head, worker = (RAW["available_node_types"][name] for name in (RAW["head_node_type"], "gpu"))
    assert head["resources"] == {"CPU": 0, "GPU": 0}
    assert worker["min_workers"] == 0 and worker["resources"]["GPU"] == 1
    assert worker["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "InstanceMarketOptions" not in head["node_config"], "a driver that is taken back stops the sweep"
    assert head["node_config"]["ImageId"] == worker["node_config"]["ImageId"]


def test_every_node_has_the_token_and_no_other_secret() -> None:
    assert "--env=RAY_AUTH_MODE=token" in RAW["docker"]["run_options"]
    assert RAW["file_mounts"] == {"~/.ray": "docker/private"}
    text = (DOCKER / "ray-cluster.yaml").read_text()
    assert "> docker/private/auth_token" in text
    assert not re.search(r"(?i)(password|secret|token)\w*[:=] *['\"]?\w{12}", text)


def test_the_image_is_that_of_kubernetes() -> None:
    [job] = [document for document in documents("kuberay.yaml") if document["kind"] == "RayJob"]
    [container] = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"]
    assert RAW["docker"]["image"] == container["image"]
