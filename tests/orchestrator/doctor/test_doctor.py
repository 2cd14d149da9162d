"""Checks before a sweep: this machine is probed, other machines are represented by the reports that they would send."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

from orchestrator.doctor.checks import Finding, check_services, evaluate, raise_on_errors
from orchestrator.doctor.node_probe import NodeReport, ProbeRequest, probe_node
from orchestrator.environment.home import home_at
from orchestrator.errors import ClusterError
from tests.orchestrator.environment.test_mps import listening
from trainer.data.tasks import open_task

Sptune = Callable[..., tuple[int, str, str]]


@pytest.fixture
def probe_request(tmp_path: Path) -> ProbeRequest:
    """A request about a home with the driver's file and a demo task in it."""
    home = tmp_path / "home"
    fingerprint = open_task(str(home / "data"), "demo/shapes_loc").fingerprint
    request = ProbeRequest(
        home=str(home),
        token="a token",
        data_root=str(home / "data"),
        fingerprints={"demo/shapes_loc": fingerprint},
        backbones=("vit_nano_patch4_32.mae",),
        weights=None,
        gpus=False,
    )
    Path(request.probe).write_text("a token")
    return request


def errors_of(request: ProbeRequest, report: NodeReport, required_gpus: float = 0.0) -> list[str]:
    findings = evaluate(request, "node b", report, required_gpus=required_gpus)
    return [finding.sentence for finding in findings if finding.verdict == "error"]


def test_a_machine_without_errors_has_one_finding_and_no_file_is_left(probe_request: ProbeRequest) -> None:
    report = probe_node(probe_request)

    (finding,) = evaluate(probe_request, "node b", report, required_gpus=0)
    assert finding.verdict in ("ok", "warning")
    assert "1 task" in finding.detail
    assert report.cache == os.environ["SPTUNE_CACHE"]

    names = [path.name for path in Path(probe_request.home).iterdir()]
    assert sorted(names) == [Path(probe_request.probe).name, "data"], "the probe's own file is removed"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"token": "another"},
            "is a local folder of that machine: it does not contain the file that the driver wrote. Choose a folder",
        ),
        ({"fingerprints": {"demo/shapes_loc": "0" * 16}}, "node b, data: demo/shapes_loc in"),
        (
            {"fingerprints": {"vtab/dtd": "0" * 16}},
            "vtab/dtd in {data}: the task is not there. Name a task store that all nodes",
        ),
        ({"backbones": ("vit_base_patch16_224.mae",), "weights": "/nowhere"}, "there is no such file or folder"),
        ({"gpus": True}, "node b, GPUs: torch sees 0 of 2. Install the driver and the CUDA build of torch there"),
    ],
)
def test_an_error_of_a_machine_comes_with_its_remedy(
    probe_request: ProbeRequest, changes: dict[str, Any], sentence: str
) -> None:
    changed = dataclasses.replace(probe_request, **changes)
    (error,) = errors_of(changed, probe_node(changed), required_gpus=2 if changed.gpus else 0)
    assert sentence.format(data=probe_request.data_root) in error


def test_a_home_that_a_machine_cannot_write_is_an_error_with_the_reason(
    probe_request: ProbeRequest, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    changed = dataclasses.replace(probe_request, home=str(tmp_path / "file"))

    (error,) = errors_of(changed, probe_node(changed))
    assert error.startswith(f"node b, home: {tmp_path}/file: ")
    assert "Give the user of that machine write permission" in error


def test_a_broken_image_is_an_error_before_a_trial_reads_it(probe_request: ProbeRequest) -> None:
    file = Path(probe_request.data_root, "demo/shapes_loc/train.parquet")
    file.write_bytes(file.read_bytes()[: len(file.read_bytes()) // 2])

    (error,) = errors_of(probe_request, probe_node(probe_request))
    assert error.startswith("node b, data: demo/shapes_loc in ")


def test_a_cache_that_cannot_be_written_is_an_error_with_the_variable(
    probe_request: ProbeRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SPTUNE_CACHE", str(tmp_path / "file"))

    (error,) = errors_of(probe_request, probe_node(probe_request))
    assert error.startswith(f"node b, cache: {tmp_path}/file: ")
    assert error.endswith("Name a folder on a local disk of that machine with SPTUNE_CACHE.")


def test_different_versions_and_different_code_are_errors(probe_request: ProbeRequest) -> None:
    report = probe_node(probe_request)

    older = dataclasses.replace(report, versions=report.versions | {"torch": "1.0"})
    (error,) = errors_of(probe_request, older)
    assert error.startswith(f"node b, versions: torch 1.0, not {report.versions['torch']}. Install the same")

    (error,) = errors_of(probe_request, dataclasses.replace(report, code="0" * 12))
    assert error.startswith(f"node b, versions: the code of sptune differs (000000000000, not {report.code})")


def test_a_slow_cache_is_a_warning_that_stops_nothing(probe_request: ProbeRequest) -> None:
    report = dataclasses.replace(probe_node(probe_request), cache_kind="nfs4", cache_free_gb=100.0)
    (finding,) = evaluate(probe_request, "node b", report, required_gpus=0)
    assert (finding.verdict, finding.remedy[:31]) == ("warning", "SPTUNE_CACHE is on nfs4: a fold")
    raise_on_errors([finding])


@pytest.mark.parametrize(
    ("shares", "verdict", "meaning"),
    [
        (("auto",), "ok", "with gpus: auto, each trial gets a whole GPU"),
        ((1.0, 0.25, "auto"), "warning", "trials with gpus: 0.25 take turns on their GPU"),
        ((1.0, 2.0), "ok", "trials have whole GPUs and do not need it"),
    ],
)
def test_a_machine_without_mps_is_named_with_what_follows_for_the_spec(
    probe_request: ProbeRequest, shares: tuple[float | Literal["auto"], ...], verdict: str, meaning: str
) -> None:
    changed = dataclasses.replace(probe_request, gpus=True, gpu_shares=shares)
    report = NodeReport(gpus=("NVIDIA H200",), mps_socket="/tmp/nvidia-mps/control")
    finding, _ = evaluate(changed, "node b", report, required_gpus=1)
    assert (finding.subject, finding.verdict) == ("MPS", verdict)
    assert finding.detail == f"no daemon at /tmp/nvidia-mps/control: {meaning}"
    needs_it = shares != (1.0, 2.0)
    assert finding.remedy.startswith("Start the daemon there as docker/README.md says") is needs_it
    raise_on_errors([finding])


def test_mps_is_found_by_its_socket_on_a_machine_whatever_is_asked_of_it(
    probe_request: ProbeRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path))
    with listening(tmp_path / "control"):
        finding, _ = evaluate(probe_request, "node b", probe_node(probe_request), required_gpus=0)
    assert (finding.subject, finding.verdict, finding.remedy) == ("MPS", "ok", "")
    assert finding.detail == f"its daemon answers at {tmp_path}/control: trials that share a GPU run side by side"
    # Without GPUs nobody misses it.
    (machine,) = evaluate(probe_request, "node b", probe_node(probe_request), required_gpus=0)
    assert machine.subject == "machine"


def test_a_refusal_lists_all_errors_and_nothing_else() -> None:
    findings = [
        Finding(where="this machine", subject="home", detail="fine"),
        Finding(where="this machine", subject="study database", detail="away.", verdict="error"),
        Finding(where="node b", subject="cache", detail="on nfs", verdict="warning", remedy="Move it."),
        Finding(where="node b", subject="home", detail="not there", verdict="error", remedy="Share it."),
    ]
    with pytest.raises(ClusterError) as raised:
        raise_on_errors(findings)
    assert str(raised.value).splitlines() == [
        "the checks found 2 errors, so nothing was started:",
        "  this machine, study database: away.",
        "  node b, home: not there. Share it.",
    ]


def test_a_home_on_this_machine_is_checked_without_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SPTUNE_STUDIES", "MLFLOW_TRACKING_URI", "SPTUNE_DATA"):
        monkeypatch.delenv(name, raising=False)

    findings = check_services(home_at(str(tmp_path)))
    assert [(finding.subject, finding.verdict) for finding in findings] == [
        ("home", "ok"),
        ("study database", "ok"),
        ("MLflow", "ok"),
    ]
    assert [*tmp_path.iterdir()] == [], "a check creates nothing"


def test_the_command_prints_that_all_is_well_or_the_errors(
    sptune: Sptune, raw_spec: dict[str, Any], tmp_path: Path
) -> None:
    code, output, _ = sptune("doctor", "--home", tmp_path / "home")
    assert code == 0
    assert "no errors." in output

    (tmp_path / "own.yaml").write_text(yaml.safe_dump(raw_spec | {"resources": {"gpus": 1}}))
    code, output, _ = sptune("doctor", tmp_path / "own.yaml", "--home", tmp_path / "home")
    assert code == 1, "there is no GPU on this machine"
    assert "this machine, GPUs: Install the driver and the CUDA build of torch there" in output
    assert "1 error." in output

    (tmp_path / "file").write_text("")
    code, output, _ = sptune("doctor", "--home", tmp_path / "file")
    assert code == 1
    assert "cannot be written" in output
