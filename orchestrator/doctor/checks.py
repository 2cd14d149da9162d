"""Whether a sweep would run here: the servers, the home, and each machine that would work on it. Nothing is started.

A finding that is wrong has a cure. `sptune doctor` shows all of them; a launch on a cluster is refused with those that
are wrong.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from orchestrator.doctor.node_probe import NodeReport, ProbeRequest, probe_node
from orchestrator.environment.connections import describe_database
from orchestrator.environment.home import POSTGRESQL, Home
from orchestrator.environment.provenance import code, versions
from orchestrator.errors import ClusterError, ServiceError, UserError
from orchestrator.redaction import redact
from orchestrator.spec.schema import SweepSpec, task_names
from trainer.data.tasks import open_task
from trainer.storage.files import delete_file, read_bytes, write_bytes

THIS_MACHINE = "this machine"
MIN_FREE_GB = 5.0
"""Free space of a cache that is worth a word."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing that was looked at."""

    where: str
    subject: str
    detail: str
    verdict: Literal["well", "slow", "wrong"] = "well"
    remedy: str = ""
    """What to do about it, where `found` does not say so itself."""

    @property
    def sentence(self) -> str:
        """What was found, and what to do."""
        return f"{self.where}, {self.subject}: {self.detail.rstrip('.')}. {self.remedy}".rstrip()


def check_services(home: Home) -> list[Finding]:
    """The home, the record and MLflow, as this machine sees them."""
    if problems := [*home.problems()]:
        return [
            Finding(where=THIS_MACHINE, subject="addresses", detail=problem, verdict="wrong") for problem in problems
        ]
    return [_check_home(home), _check_database(home), _check_mlflow(home)]


def check_nodes(home: Home, spec: SweepSpec | None, weights: str | None, *, cluster: bool) -> list[Finding]:
    """What each node of the cluster that this process is connected to sees; without one, what this machine does."""
    try:
        question = _probe_request(home, spec, weights)
    except OSError as error:
        return [Finding(where=THIS_MACHINE, subject="data", detail=str(error), verdict="wrong")]
    write_bytes(question.probe, question.token.encode())
    try:
        if not cluster:
            return [*evaluate(question, THIS_MACHINE, probe_node(question), asked_gpus=float(question.gpus))]
        from orchestrator.drivers.ray import cluster as ray_nodes

        answers = ray_nodes.ask_each_node(probe_node, question)
    finally:
        delete_file(question.probe)
    findings = [*_check_shareable(home, len(answers))]
    for node, answer in answers:
        if isinstance(answer, str):
            cure = "Install sptune there, from the same lock, for the same Python."
            findings.append(Finding(where=node.name, subject="answer", detail=answer, verdict="wrong", remedy=cure))
        else:
            findings += evaluate(question, node.name, answer, asked_gpus=node.resources.get("GPU", 0))
    return findings


def raise_on_errors(findings: Sequence[Finding]) -> None:
    """See that nothing is wrong.

    Raises:
        ClusterError: with everything that is, and each cure.
    """
    if wrong := [finding for finding in findings if finding.verdict == "wrong"]:
        count = "1 thing is" if len(wrong) == 1 else f"{len(wrong)} things are"
        raise ClusterError(
            "\n".join([f"{count} wrong, and nothing was started:", *(f"  {finding.sentence}" for finding in wrong)])
        )


def evaluate(question: ProbeRequest, where: str, seen: NodeReport, *, asked_gpus: float) -> Iterator[Finding]:
    """What a machine's look means; one finding if all is well.

    Args:
        asked_gpus: GPUs that the machine has by Ray's account, or that trials need of it.
    """
    wrong = [*_problems(question, seen, asked_gpus)]
    yield from (
        Finding(where=where, subject=what, detail=found, verdict="wrong", remedy=cure) for what, found, cure in wrong
    )
    cache = f"cache {seen.cache}, {seen.cache_free_gb:.0f} GB free"
    advice = ""
    if seen.cache_kind:
        advice = f"SPTUNE_CACHE is on {seen.cache_kind}: a folder on a disk of this machine is faster."
    elif seen.cache_free_gb < MIN_FREE_GB:
        advice = "SPTUNE_CACHE has little space: decoded images of a task of 50,000 take 7.5 GB at 224 pixels."
    if not wrong:
        gpus = f"{len(seen.gpus)} GPUs ({', '.join(dict.fromkeys(seen.gpus))}), " if seen.gpus else ""
        tasks = f"{len(question.fingerprints)} tasks, " if question.fingerprints else ""
        told = f"home, versions, {tasks}{gpus}{cache}"
        yield Finding(where=where, subject="machine", detail=told, verdict="slow" if advice else "well", remedy=advice)


def _problems(question: ProbeRequest, seen: NodeReport, asked_gpus: float) -> Iterator[tuple[str, str, str]]:
    if seen.home:
        yield "home", f"{question.home}: {seen.home}", "Give its user the right to write there, or choose another."
    elif not seen.sees_probe:
        yield (
            "home",
            f"{question.home} is a folder of that machine: what the driver wrote is not in it",
            "Choose a folder that all nodes share, or a bucket: --home s3://BUCKET/FOLDER.",
        )
    own = versions()
    if differs := [
        f"{name} {seen.versions.get(name)}, not {own[name]}" for name in own if seen.versions.get(name) != own[name]
    ]:
        yield "versions", ", ".join(differs), "Install the same requirements.lock on each node."
    elif seen.code != code():
        yield "versions", f"other code of sptune ({seen.code}, not {code()})", "Install the same sptune on each node."
    if question.gpus and seen.gpu_trouble:
        yield "GPUs", seen.gpu_trouble, "Mend torch there."
    elif question.gpus and len(seen.gpus) < asked_gpus:
        yield (
            "GPUs",
            f"torch sees {len(seen.gpus)} of {asked_gpus:g}",
            "Install the driver and the CUDA build of torch there, or start its Ray with fewer --num-gpus.",
        )
    for task, trouble in seen.data.items():
        yield (
            "data",
            f"{task} in {question.data_root}: {trouble}",
            "Name a task store that all nodes share: SPTUNE_DATA or `cluster.data`.",
        )
    for backbone, trouble in seen.weights.items():
        yield "weights", f"{backbone}: {trouble}", "Put them where each node finds them."
    if seen.cache_trouble:
        yield "cache", f"{seen.cache}: {seen.cache_trouble}", "Name a folder on a local disk there with SPTUNE_CACHE."


def _check_shareable(home: Home, count: int) -> Iterator[Finding]:
    """What may not be where a cluster has several nodes."""
    if count < 2:
        return
    again = "and a driver that comes back on another node must find it"
    if home.database_file is not None:
        yield Finding(
            where="cluster",
            subject="record",
            detail=f"{home.database_file} is SQLite, a file of one machine; there are {count} nodes, {again}",
            verdict="wrong",
            remedy=f"Set SPTUNE_STUDIES or `cluster.studies` to {POSTGRESQL}USER@HOST/DATABASE.",
        )
    if home.mlflow_file is not None:
        yield Finding(
            where="cluster",
            subject="MLflow",
            detail=f"{home.mlflow_file} is SQLite, a file of one machine; there are {count} nodes, {again}",
            verdict="wrong",
            remedy="Set MLFLOW_TRACKING_URI or `cluster.mlflow` to a server: http://HOST:PORT.",
        )


def _probe_request(home: Home, spec: SweepSpec | None, weights: str | None) -> ProbeRequest:
    tasks = [task for name in (spec.tasks if spec else []) for task in task_names(name)]
    backbones = spec.backbones if spec else []
    return ProbeRequest(
        home=home.root,
        token=uuid.uuid4().hex,
        data_root=home.data_root,
        fingerprints={task: open_task(home.data_root, task).fingerprint for task in dict.fromkeys(tasks)},
        backbones=tuple(backbones),
        weights=weights,
        gpus=any(spec.resources.for_backbone(backbone).initial_gpus for backbone in backbones) if spec else False,
    )


def _check_home(home: Home) -> Finding:
    probe = f"{home.root}/.probe-{uuid.uuid4().hex}"
    started = time.perf_counter()
    try:
        write_bytes(probe, b"sptune")
        read_bytes(probe)
        delete_file(probe)
    except OSError as error:
        cure = "Choose another with --home or SPTUNE_HOME."
        return Finding(
            where=THIS_MACHINE, subject="home", detail=error.strerror or str(error), verdict="wrong", remedy=cure
        )
    taken_ms = 1000 * (time.perf_counter() - started)
    return Finding(where=THIS_MACHINE, subject="home", detail=f"{home.root}, written and read in {taken_ms:.0f} ms")


def _check_database(home: Home) -> Finding:
    try:
        found = describe_database(home)
    except ServiceError as error:
        return Finding(where=THIS_MACHINE, subject="record", detail=str(error), verdict="wrong")
    return Finding(where=THIS_MACHINE, subject="record", detail=found)


def _check_mlflow(home: Home) -> Finding:
    if home.mlflow_file is not None:
        return Finding(where=THIS_MACHINE, subject="MLflow", detail=f"SQLite, {home.mlflow_file}")
    from orchestrator.tracking.mlflow_server import check_reachable

    try:
        version = check_reachable(home.mlflow_uri)
    except UserError as error:
        return Finding(where=THIS_MACHINE, subject="MLflow", detail=str(error), verdict="wrong")
    return Finding(where=THIS_MACHINE, subject="MLflow", detail=f"{version} at {redact(home.mlflow_uri)}")
