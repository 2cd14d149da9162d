"""What one machine of a cluster sees: asked on each node, compared by `doctor.py`."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import uuid
from dataclasses import dataclass, field

import psutil

from orchestrator.environment.home import network_file_system
from orchestrator.environment.provenance import code, versions
from trainer.catalog import BACKBONES
from trainer.data.task_store import read_card, read_examples
from trainer.model.weights import WeightsError, find_weights
from trainer.storage.files import delete_file, read_bytes, write_bytes
from trainer.storage.local_cache import cache_folder

GPU_NAMES = """
import torch
for index in range(torch.cuda.device_count()):
    print(torch.cuda.get_device_name(index))
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeRequest:
    """What a machine is asked."""

    home: str
    """Folder or URI."""
    token: str
    """What the driver wrote into `home`/.probe-`token`."""
    data_root: str
    fingerprints: dict[str, str]
    """Of each task, what the driver has of it."""
    backbones: tuple[str, ...]
    weights: str | None
    gpus: bool
    """Whether trials need a GPU."""

    @property
    def probe(self) -> str:
        """Where the driver's file is."""
        return f"{self.home}/.probe-{self.token}"


@dataclass(kw_only=True, slots=True)
class NodeReport:
    """What it found; of everything, in words, what is wrong, and nothing where all is well."""

    host: str = field(default_factory=socket.gethostname)
    versions: dict[str, str] = field(default_factory=versions)
    code: str = field(default_factory=code)
    """Hash of this package's own files."""
    home: str = ""
    """Why files cannot be written there."""
    sees_probe: bool = True
    """Whether the driver's file is there."""
    gpus: tuple[str, ...] = ()
    """Names, as torch has them."""
    gpu_trouble: str = ""
    data: dict[str, str] = field(default_factory=dict)
    """Of each task with a trouble, which."""
    weights: dict[str, str] = field(default_factory=dict)
    """Of each backbone with a trouble, which."""
    cache: str = ""
    """The folder of decoded images."""
    cache_trouble: str = ""
    cache_kind: str | None = None
    """The network file system that it is on, if any."""
    cache_free_gb: float = 0.0


def probe_node(question: ProbeRequest) -> NodeReport:
    """Try on this machine all that a trial will do, but for training."""
    found = NodeReport()
    own = f"{question.home}/.probe-{uuid.uuid4().hex}"
    try:
        found.sees_probe = read_bytes(question.probe) == question.token.encode()
        write_bytes(own, b"sptune")
        delete_file(own)
    except OSError as error:
        found.home = _reason(error)
    if question.gpus:
        found.gpus, found.gpu_trouble = _gpus()
    for task, fingerprint in question.fingerprints.items():
        if trouble := _data_trouble(question.data_root, task, fingerprint):
            found.data[task] = trouble
    for backbone in question.backbones:
        if trouble := _weights_trouble(backbone, question.weights):
            found.weights[backbone] = trouble
    folder = cache_folder()
    found.cache = str(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{uuid.uuid4().hex}"
        probe.write_bytes(b"")
        probe.unlink()
        found.cache_free_gb = psutil.disk_usage(str(folder)).free / 1e9
        found.cache_kind = network_file_system(folder)
    except OSError as error:
        found.cache_trouble = _reason(error)
    return found


def _gpus() -> tuple[tuple[str, ...], str]:
    """Names of this machine's GPUs; asked in a process of its own, from which Ray hides none."""
    seen = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    done = subprocess.run([sys.executable, "-c", GPU_NAMES], capture_output=True, text=True, env=seen, check=False)
    if done.returncode != 0:
        return (), (done.stderr.strip().splitlines() or ["torch cannot be imported"])[-1]
    return tuple(done.stdout.split("\n")[:-1]), ""


def _data_trouble(root: str, task: str, fingerprint: str) -> str:
    from trainer.data.transforms import decode

    try:
        card = read_card(root, task)
        if card is None:
            return "not there"
        if card.fingerprint != fingerprint:
            return f"another one ({card.fingerprint}, and {fingerprint} for the driver)"
        decode(next(read_examples(root, task, "train")).image, 32, "spt", view="fixed", augmented=False)
    except (OSError, ValueError) as error:
        return _reason(error)
    return ""


def _weights_trouble(backbone: str, named: str | None) -> str:
    try:
        source = find_weights(BACKBONES[backbone], named)
    except (WeightsError, OSError) as error:
        return str(error)
    if source.kind == "hub":
        from urllib.parse import urlsplit

        from huggingface_hub import constants

        host = urlsplit(constants.ENDPOINT).hostname or ""
        try:
            socket.create_connection((host, 443), timeout=5).close()
        except OSError as error:
            return (
                f"not here, and timm's hub cannot be reached ({_reason(error)}). Download them where there is a "
                "network and name the file or its folder with --weights or SPTUNE_WEIGHTS."
            )
    return ""


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0].rstrip(".")
