"""What is looked at before a sweep: this machine for real, other machines by what they would answer."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.doctor.checks import Finding, check_services, evaluate, raise_on_errors
from orchestrator.doctor.node_probe import NodeReport, ProbeRequest, probe_node
from orchestrator.environment.home import home_at
from orchestrator.errors import ClusterError
from trainer.data.tasks import open_task

Sptune = Callable[..., tuple[int, str, str]]


@pytest.fixture
def question(tmp_path: Path) -> ProbeRequest:
    """About a home in which the driver's file is, and its demo task."""
    home = tmp_path / "home"
    fingerprint = open_task(str(home / "data"), "demo/shapes_loc").fingerprint
    asked = ProbeRequest(
        home=str(home),
        token="a token",
        data_root=str(home / "data"),
        fingerprints={"demo/shapes_loc": fingerprint},
        backbones=("vit_nano_patch4_32.mae",),
        weights=None,
        gpus=False,
    )
    Path(asked.probe).write_text("a token")
    return asked


def wrongs(question: ProbeRequest, seen: NodeReport, asked_gpus: float = 0.0) -> list[str]:
    return [one.sentence for one in evaluate(question, "node b", seen, asked_gpus=asked_gpus) if one.verdict == "wrong"]


def test_a_machine_on_which_all_is_well_is_one_line_and_nothing_is_left(question: ProbeRequest) -> None:
    seen = probe_node(question)
    (finding,) = evaluate(question, "node b", seen, asked_gpus=0)
    assert finding.verdict in ("well", "slow")
    assert "1 tasks" in finding.detail
    assert seen.cache == os.environ["SPTUNE_CACHE"]
    left = [path.name for path in Path(question.home).iterdir()]
    assert sorted(left) == [Path(question.probe).name, "data"], "what it wrote to see whether it can, it removed"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"token": "another"}, "is a folder of that machine: what the driver wrote is not in it. Choose a folder that"),
        ({"fingerprints": {"demo/shapes_loc": "0" * 16}}, "node b, data: demo/shapes_loc in"),
        ({"fingerprints": {"vtab/dtd": "0" * 16}}, "vtab/dtd in {data}: not there. Name a task store that all nodes"),
        ({"backbones": ("vit_base_patch16_224.mae",), "weights": "/nowhere"}, "there is no such file or folder"),
        ({"gpus": True}, "node b, GPUs: torch sees 0 of 2. Install the driver and the CUDA build of torch there"),
    ],
)
def test_what_a_machine_lacks_is_told_with_its_cure(
    question: ProbeRequest, changes: dict[str, Any], sentence: str
) -> None:
    asked = dataclasses.replace(question, **changes)
    (told,) = wrongs(asked, probe_node(asked), asked_gpus=2 if asked.gpus else 0)
    assert sentence.format(data=question.data_root) in told


def test_a_home_that_a_machine_cannot_write_is_told_with_the_reason(question: ProbeRequest, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    asked = dataclasses.replace(question, home=str(tmp_path / "file"))
    (told,) = wrongs(asked, probe_node(asked))
    assert told.startswith(f"node b, home: {tmp_path}/file: ")
    assert "Give its user the right to write there" in told


def test_a_broken_image_is_found_before_a_trial_meets_it(question: ProbeRequest) -> None:
    file = Path(question.data_root, "demo/shapes_loc/train.parquet")
    file.write_bytes(file.read_bytes()[: len(file.read_bytes()) // 2])
    (told,) = wrongs(question, probe_node(question))
    assert told.startswith("node b, data: demo/shapes_loc in ")


def test_a_cache_that_cannot_be_written_is_told_with_the_variable(
    question: ProbeRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SPTUNE_CACHE", str(tmp_path / "file"))
    (told,) = wrongs(question, probe_node(question))
    assert told.startswith(f"node b, cache: {tmp_path}/file: ")
    assert told.endswith("Name a folder on a local disk there with SPTUNE_CACHE.")


def test_another_version_and_other_code_are_told(question: ProbeRequest) -> None:
    seen = probe_node(question)
    other = dataclasses.replace(seen, versions=seen.versions | {"torch": "1.0"})
    (told,) = wrongs(question, other)
    assert told.startswith(f"node b, versions: torch 1.0, not {seen.versions['torch']}. Install the same")
    (told,) = wrongs(question, dataclasses.replace(seen, code="0" * 12))
    assert told.startswith(f"node b, versions: other code of sptune (000000000000, not {seen.code})")


def test_a_slow_cache_is_said_and_stops_nothing(question: ProbeRequest) -> None:
    seen = dataclasses.replace(probe_node(question), cache_kind="nfs4", cache_free_gb=100.0)
    (finding,) = evaluate(question, "node b", seen, asked_gpus=0)
    assert (finding.verdict, finding.remedy[:31]) == ("slow", "SPTUNE_CACHE is on nfs4: a fold")
    raise_on_errors([finding])


def test_a_refusal_lists_all_that_is_wrong_and_nothing_else() -> None:
    findings = [
        Finding(where="here", subject="home", detail="fine"),
        Finding(where="here", subject="record", detail="away.", verdict="wrong"),
        Finding(where="node b", subject="cache", detail="on nfs", verdict="slow", remedy="Move it."),
        Finding(where="node b", subject="home", detail="not there", verdict="wrong", remedy="Share it."),
    ]
    with pytest.raises(ClusterError) as told:
        raise_on_errors(findings)
    assert str(told.value).splitlines() == [
        "2 things are wrong, and nothing was started:",
        "  here, record: away.",
        "  node b, home: not there. Share it.",
    ]


def test_a_home_on_this_machine_is_examined_without_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SPTUNE_STUDIES", "MLFLOW_TRACKING_URI", "SPTUNE_DATA"):
        monkeypatch.delenv(name, raising=False)
    findings = check_services(home_at(str(tmp_path)))
    assert [(one.subject, one.verdict) for one in findings] == [
        ("home", "well"),
        ("record", "well"),
        ("MLflow", "well"),
    ]
    assert [*tmp_path.iterdir()] == [], "nothing is made"


def test_the_command_says_that_all_is_well_or_what_is_not(
    sptune: Sptune, raw_spec: dict[str, Any], tmp_path: Path
) -> None:
    code, said, _ = sptune("doctor", "--home", tmp_path / "home")
    assert code == 0
    assert "all is well." in said
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(raw_spec | {"resources": {"gpus": 1}}))
    code, said, _ = sptune("doctor", tmp_path / "own.yaml", "--home", tmp_path / "home")
    assert code == 1, "there is no GPU on this machine"
    assert "this machine, GPUs: Install the driver and the CUDA build of torch there" in said
    assert "1 thing is wrong." in said
    (tmp_path / "file").write_text("")
    code, said, _ = sptune("doctor", "--home", tmp_path / "file")
    assert code == 1
    assert "cannot be written" in said
