"""Probe of one machine. It runs on each node of a cluster; `checks.py` evaluates the reports."""

from __future__ import annotations

import socket
import uuid
from dataclasses import dataclass, field
from typing import Literal

import psutil

from orchestrator.environment.gpus import torch_gpus
from orchestrator.environment.home import network_file_system
from orchestrator.environment.hub import hub_problem, unreachable
from orchestrator.environment.mps import has_mps, mps_socket
from orchestrator.environment.provenance import code, versions
from trainer.catalog import BACKBONES
from trainer.data.task_store import read_card, read_examples
from trainer.model.weights import WeightsError, find_weights
from trainer.storage.files import delete_file, read_bytes, write_bytes
from trainer.storage.local_cache import cache_folder


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeRequest:
    """What a machine has to check."""

    home: str
    """Folder or URI."""
    token: str
    """Content of the file `home`/.probe-`token`, which the driver wrote."""
    data_root: str
    fingerprints: dict[str, str]
    """Fingerprint of each task as the driver sees it."""
    backbones: tuple[str, ...]
    weights: str | None
    gpus: bool
    """Whether trials need a GPU."""
    gpu_shares: tuple[float | Literal["auto"], ...] = ()
    """GPUs of a trial in the spec, of each backbone."""

    @property
    def probe(self) -> str:
        """Path of the driver's probe file."""
        return f"{self.home}/.probe-{self.token}"


@dataclass(kw_only=True, slots=True)
class NodeReport:
    """What a machine found. Errors are sentences; an empty one means that the check passed."""

    host: str = field(default_factory=socket.gethostname)
    versions: dict[str, str] = field(default_factory=versions)
    code: str = field(default_factory=code)
    """Hash of the files of this package."""
    home_error: str = ""
    """Why the machine cannot write files to the home."""
    sees_probe: bool = True
    """Whether the machine can read the driver's probe file."""
    gpus: tuple[str, ...] = ()
    """Names of the GPUs as torch reports them."""
    gpu_error: str = ""
    mps_socket: str = field(default_factory=mps_socket)
    """Where the machine looks for MPS."""
    has_mps: bool = False
    data_errors: dict[str, str] = field(default_factory=dict)
    """Errors by task."""
    weights_errors: dict[str, str] = field(default_factory=dict)
    """Errors by backbone."""
    cache: str = ""
    """Folder of decoded images."""
    cache_error: str = ""
    cache_kind: str | None = None
    """Kind of the network file system that the cache is on; None on a local disk."""
    cache_free_gb: float = 0.0


def probe_node(request: ProbeRequest) -> NodeReport:
    """Try on this machine everything that a trial does, except training."""
    report = NodeReport()

    # The home: read the driver's file, then write one of our own.
    own_probe = f"{request.home}/.probe-{uuid.uuid4().hex}"
    try:
        report.sees_probe = read_bytes(request.probe) == request.token.encode()
        write_bytes(own_probe, b"sptune")
        delete_file(own_probe)
    except OSError as error:
        report.home_error = _reason(error)

    report.has_mps = has_mps()
    if request.gpus:
        # Ray hides GPUs from this process.
        report.gpus, report.gpu_error = torch_gpus(hidden_too=True)

    for task, fingerprint in request.fingerprints.items():
        problem = _data_problem(request.data_root, task, fingerprint)
        if problem:
            report.data_errors[task] = problem

    for backbone in request.backbones:
        problem = _weights_problem(backbone, request.weights)
        if problem:
            report.weights_errors[backbone] = problem

    # The cache: make the folder, write a file, measure the disk.
    folder = cache_folder()
    report.cache = str(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        cache_probe = folder / f".probe-{uuid.uuid4().hex}"
        cache_probe.write_bytes(b"")
        cache_probe.unlink()
        report.cache_free_gb = psutil.disk_usage(str(folder)).free / 1e9
        report.cache_kind = network_file_system(folder)
    except OSError as error:
        report.cache_error = _reason(error)

    return report


def _data_problem(root: str, task: str, fingerprint: str) -> str:
    """Return why a trial cannot read the task here, or an empty text."""
    from trainer.data.transforms import decode

    try:
        card = read_card(root, task)
        if card is None:
            return "the task is not there"
        if card.fingerprint != fingerprint:
            return f"the fingerprint is {card.fingerprint} here and {fingerprint} for the driver"

        # The card can be intact while the images are not: decode one.
        decode(next(read_examples(root, task, "train")).image, 32, "spt")
    except (OSError, ValueError) as error:
        return _reason(error)
    return ""


def _weights_problem(backbone: str, weights: str | None) -> str:
    """Return why a trial cannot load the weights of the backbone here, or an empty text."""
    row = BACKBONES[backbone]
    try:
        source = find_weights(row, weights)
    except (WeightsError, OSError) as error:
        return str(error)

    # Whether it can be reached is enough: downloading the weights here would take minutes.
    reason = hub_problem() if source.kind == "hub" else None
    return unreachable(row, reason) if reason is not None else ""


def _reason(error: Exception) -> str:
    """Return the first line of an error, without the path and the full stop."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text.splitlines()[0].rstrip(".")
