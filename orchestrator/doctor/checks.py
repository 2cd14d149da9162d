"""Checks before a sweep: the servers, the home and each machine of the cluster. They start no sweep.

Each error has a remedy. `sptune doctor` prints all findings; `sptune launch` on a cluster stops at errors.
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
from orchestrator.tracking.mlflow_client import explain
from orchestrator.tracking.mlflow_locations import local_path, stale_locations
from trainer.data.tasks import open_task
from trainer.plain_text import counted
from trainer.storage.files import delete_file, read_bytes, write_bytes

THIS_MACHINE = "this machine"
MIN_FREE_GB = 5.0
"""Free space of the cache below which a finding is a warning."""

Verdict = Literal["ok", "warning", "error"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """Result of one check."""

    where: str
    """Name of the machine, or `cluster`."""
    subject: str
    detail: str
    verdict: Verdict = "ok"
    remedy: str = ""
    """What to do about it; empty if `detail` says so already."""

    @property
    def sentence(self) -> str:
        """The finding with its remedy, on one line."""
        return f"{self.where}, {self.subject}: {self.detail.rstrip('.')}. {self.remedy}".rstrip()


def check_services(home: Home) -> list[Finding]:
    """Check the home, the study database and MLflow from this machine."""
    problems = [*home.problems()]
    if problems:
        # With an address that is not valid, the other checks would fail for the same reason.
        return [
            Finding(where=THIS_MACHINE, subject="addresses", detail=problem, verdict="error") for problem in problems
        ]
    return [_check_home(home), _check_database(home), _check_mlflow(home)]


def check_nodes(home: Home, spec: SweepSpec | None, weights: str | None, *, cluster: bool) -> list[Finding]:
    """Check each node of the Ray cluster that this process is connected to.

    Args:
        home: home of the sweep.
        spec: the sweep to check the tasks, backbones and GPUs of, if any.
        weights: file or folder of pretrained weights.
        cluster: False checks this machine alone, without Ray.
    """
    try:
        request = _probe_request(home, spec, weights)
    except OSError as error:
        return [Finding(where=THIS_MACHINE, subject="data", detail=str(error), verdict="error")]

    # Nodes look for this file: one that cannot read it has a different folder at the same path.
    write_bytes(request.probe, request.token.encode())
    try:
        if not cluster:
            report = probe_node(request)
            return [*evaluate(request, THIS_MACHINE, report, required_gpus=float(request.gpus))]

        from orchestrator.drivers.ray import cluster as ray_nodes

        answers = ray_nodes.ask_each_node(probe_node, request)
    finally:
        delete_file(request.probe)

    findings = [*_check_shareable(home, len(answers))]
    for node, answer in answers:
        # A text is the error of a node that could not run the probe.
        if isinstance(answer, str):
            remedy = "Install sptune there from the same requirements.lock, for the same version of Python."
            findings.append(Finding(where=node.name, subject="answer", detail=answer, verdict="error", remedy=remedy))
        else:
            findings += evaluate(request, node.name, answer, required_gpus=node.resources.get("GPU", 0))
    return findings


def raise_on_errors(findings: Sequence[Finding]) -> None:
    """Raise if a finding is an error.

    Raises:
        ClusterError: with all errors and their remedies.
    """
    errors = [finding for finding in findings if finding.verdict == "error"]
    if errors:
        count = counted(len(errors), "error")
        lines = [f"the checks found {count}, so nothing was started:"]
        lines += [f"  {finding.sentence}" for finding in errors]
        raise ClusterError("\n".join(lines))


def evaluate(request: ProbeRequest, where: str, report: NodeReport, *, required_gpus: float) -> Iterator[Finding]:
    """Yield a finding for each error of a machine, or one finding if there is no error, and one about MPS.

    MPS is looked for where trials need GPUs, and named where it runs.

    Args:
        request: what the machine was asked.
        where: name of the machine.
        report: what the machine found.
        required_gpus: GPUs that Ray counts on the machine, or that trials need of this machine.
    """
    if report.has_mps or (request.gpus and report.gpus):
        yield _mps_finding(request, where, report)

    problems = [*_problems(request, report, required_gpus)]
    for subject, detail, remedy in problems:
        yield Finding(where=where, subject=subject, detail=detail, verdict="error", remedy=remedy)
    if problems:
        return

    advice = ""
    if report.cache_kind:
        advice = f"SPTUNE_CACHE is on {report.cache_kind}: a folder on a local disk of this machine is faster."
    elif report.cache_free_gb < MIN_FREE_GB:
        advice = (
            "SPTUNE_CACHE has little free space: 50,000 decoded images at 224 pixels take 7.5 GB, the photographs of "
            "NABirds up to 56 GB."
        )

    # One line that names everything that was checked.
    parts = ["home", "versions"]
    if request.fingerprints:
        parts.append(counted(len(request.fingerprints), "task"))
    if report.gpus:
        parts.append(f"{counted(len(report.gpus), 'GPU')} ({', '.join(dict.fromkeys(report.gpus))})")
    parts.append(f"cache {report.cache}")
    parts.append(f"{report.cache_free_gb:.0f} GB free")

    verdict: Verdict = "warning" if advice else "ok"
    yield Finding(where=where, subject="machine", detail=", ".join(parts), verdict=verdict, remedy=advice)


def _mps_finding(request: ProbeRequest, where: str, report: NodeReport) -> Finding:
    """Return whether processes that share a GPU of a machine run side by side, and what that means for the spec."""
    if report.has_mps:
        detail = f"its daemon answers at {report.mps_socket}: trials that share a GPU run side by side"
        return Finding(where=where, subject="MPS", detail=detail)

    detail = f"no daemon at {report.mps_socket}: "
    remedy = "Start the daemon there as docker/README.md says, or name its folder with CUDA_MPS_PIPE_DIRECTORY."
    fractions = [gpus for gpus in request.gpu_shares if gpus != "auto" and 0 < gpus < 1]
    if fractions:
        detail += f"trials with gpus: {fractions[0]:g} take turns on their GPU"
        return Finding(where=where, subject="MPS", detail=detail, verdict="warning", remedy=remedy)
    if "auto" in request.gpu_shares:
        detail += "with gpus: auto, each trial gets a whole GPU"
        return Finding(where=where, subject="MPS", detail=detail, remedy=remedy)
    return Finding(where=where, subject="MPS", detail=detail + "trials have whole GPUs and do not need it")


def _problems(request: ProbeRequest, report: NodeReport, required_gpus: float) -> Iterator[tuple[str, str, str]]:
    """Yield subject, detail and remedy of each error in a report."""
    if report.home_error:
        yield (
            "home",
            f"{request.home}: {report.home_error}",
            "Give the user of that machine write permission, or choose another home.",
        )
    elif not report.sees_probe:
        yield (
            "home",
            f"{request.home} is a local folder of that machine: it does not contain the file that the driver wrote",
            "Choose a folder that all nodes share, or a bucket: --home s3://BUCKET/FOLDER.",
        )

    # With different versions, results differ, or Ray fails to unpickle what another node sends.
    driver_versions = versions()
    differences = [
        f"{name} {report.versions.get(name)}, not {driver_versions[name]}"
        for name in driver_versions
        if report.versions.get(name) != driver_versions[name]
    ]
    if differences:
        yield "versions", ", ".join(differences), "Install the same requirements.lock on each node."
    elif report.code != code():
        yield (
            "versions",
            f"the code of sptune differs ({report.code}, not {code()})",
            "Install the same sptune on each node.",
        )

    if request.gpus and report.gpu_error:
        yield "GPUs", report.gpu_error, "Repair the installation of torch there."
    elif request.gpus and len(report.gpus) < required_gpus:
        yield (
            "GPUs",
            f"torch sees {len(report.gpus)} of {required_gpus:g}",
            "Install the driver and the CUDA build of torch there, or start its Ray with fewer --num-gpus.",
        )

    for task, problem in report.data_errors.items():
        yield (
            "data",
            f"{task} in {request.data_root}: {problem}",
            "Name a task store that all nodes share with SPTUNE_DATA or `cluster.data`.",
        )
    for backbone, problem in report.weights_errors.items():
        yield "weights", f"{backbone}: {problem}", "Put the weights where each node finds them."

    if report.cache_error:
        yield (
            "cache",
            f"{report.cache}: {report.cache_error}",
            "Name a folder on a local disk of that machine with SPTUNE_CACHE.",
        )


def _check_shareable(home: Home, num_nodes: int) -> Iterator[Finding]:
    """Yield an error for each file of this machine that several nodes would need."""
    if num_nodes < 2:
        return

    # The driver can be restarted on any node, so it must be able to open both databases from there.
    reason = f"but the cluster has {counted(num_nodes, 'node')}, and a driver that resumes on another node must find it"
    if home.database_file is not None:
        yield Finding(
            where="cluster",
            subject="study database",
            detail=f"{home.database_file} is SQLite, a file of one machine, {reason}",
            verdict="error",
            remedy=f"Set SPTUNE_STUDIES or `cluster.studies` to {POSTGRESQL}USER@HOST/DATABASE.",
        )
    if home.mlflow_file is not None:
        yield Finding(
            where="cluster",
            subject="MLflow",
            detail=f"{home.mlflow_file} is SQLite, a file of one machine, {reason}",
            verdict="error",
            remedy="Set MLFLOW_TRACKING_URI or `cluster.mlflow` to a server: http://HOST:PORT.",
        )


def _probe_request(home: Home, spec: SweepSpec | None, weights: str | None) -> ProbeRequest:
    tasks = [task for name in (spec.tasks if spec else []) for task in task_names(name)]
    backbones = spec.backbones if spec else []

    shares = [spec.resources.for_backbone(backbone).gpus for backbone in backbones] if spec else []

    return ProbeRequest(
        home=home.root,
        token=uuid.uuid4().hex,
        data_root=home.data_root,
        fingerprints={task: open_task(home.data_root, task).fingerprint for task in dict.fromkeys(tasks)},
        backbones=tuple(backbones),
        weights=weights,
        # Trials may start with a share of a GPU, such as 0.25: any share needs one.
        gpus=any(shares),
        gpu_shares=tuple(dict.fromkeys(shares)),
    )


def _check_home(home: Home) -> Finding:
    """Write, read and delete a file in the home, and measure how long it takes."""
    # A name of its own, because several machines check the same home at the same time.
    probe = f"{home.root}/.probe-{uuid.uuid4().hex}"
    start = time.perf_counter()
    try:
        write_bytes(probe, b"sptune")
        read_bytes(probe)
        delete_file(probe)
    except OSError as error:
        return Finding(
            where=THIS_MACHINE,
            subject="home",
            detail=error.strerror or str(error),
            verdict="error",
            remedy="Choose another with --home or SPTUNE_HOME.",
        )

    duration_ms = 1000 * (time.perf_counter() - start)
    return Finding(where=THIS_MACHINE, subject="home", detail=f"{home.root}, written and read in {duration_ms:.0f} ms")


def _check_database(home: Home) -> Finding:
    try:
        description = describe_database(home)
    except ServiceError as error:
        return Finding(where=THIS_MACHINE, subject="study database", detail=str(error), verdict="error")
    return Finding(where=THIS_MACHINE, subject="study database", detail=description)


def _check_mlflow(home: Home) -> Finding:
    if home.mlflow_file is not None:
        try:
            stale = stale_locations(home)
        except Exception as error:
            # SQLite and SQLAlchemy each raise errors of their own.
            detail = f"MLflow {explain(error)} ({home.mlflow_file})"
            return Finding(where=THIS_MACHINE, subject="MLflow", detail=detail, verdict="error")
        if stale:
            return Finding(
                where=THIS_MACHINE,
                subject="MLflow",
                detail=f"{home.mlflow_file} looks for artifacts in {', '.join(map(local_path, stale))}, because the "
                "home was moved or copied",
                verdict="warning",
                remedy="The next `sptune launch`, `sptune sync` or `sptune ui` corrects it.",
            )
        return Finding(where=THIS_MACHINE, subject="MLflow", detail=f"SQLite, {home.mlflow_file}")

    # Importing MLflow takes seconds, and only a server needs it.
    from orchestrator.tracking.mlflow_server import check_reachable

    try:
        version = check_reachable(home.mlflow_uri)
    except UserError as error:
        return Finding(where=THIS_MACHINE, subject="MLflow", detail=str(error), verdict="error")
    return Finding(where=THIS_MACHINE, subject="MLflow", detail=f"{version} at {redact(home.mlflow_uri)}")
