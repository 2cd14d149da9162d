"""Where everything is: files, record, MLflow, task store; on this machine, or at addresses that machines share."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from orchestrator.errors import HomeError, UserError
from orchestrator.redaction import SECRET_VARIABLES, redact
from orchestrator.spec.resources import Cluster
from trainer.run_folder import CARD
from trainer.storage.files import delete_file, list_folders, read_bytes, write_bytes

DEFAULT_HOME = "sptune-home"
SQLITE = "sqlite:///"
POSTGRESQL = "postgresql+psycopg://"
NETWORK_FILE_SYSTEMS = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "ceph", "lustre", "gpfs", "beegfs", "glusterfs", "orangefs"}
    | {"panfs", "wekafs", "fuse.sshfs", "fuse.s3fs", "fuse.gcsfuse", "fuse.rclone", "fuse.juicefs", "fuse.mount-s3"}
    | {"fuse.glusterfs", "fuse.ceph", "fuse.cephfs"}
)
"""File systems that several machines see, by the names the kernel has for them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Home:
    """What belongs together: the files in one folder or bucket, and the record and the MLflow beside them."""

    root: str
    """Absolute path, or URI such as s3://bucket/folder."""
    database_url: str
    """The record's database, as SQLAlchemy names it."""
    mlflow_uri: str
    """Tracking server, or database."""
    data_root: str
    """The task store."""

    @property
    def database_file(self) -> Path | None:
        """The record's SQLite database; None where it is on a server."""
        return Path(self.database_url.removeprefix(SQLITE)) if self.database_url.startswith(SQLITE) else None

    @property
    def mlflow_file(self) -> Path | None:
        """MLflow's SQLite database; None where there is a server."""
        return Path(self.mlflow_uri.removeprefix(SQLITE)) if self.mlflow_uri.startswith(SQLITE) else None

    @property
    def mlflow_artifacts(self) -> str | None:
        """Where MLflow keeps artifacts; None where a server decides."""
        if self.mlflow_uri.startswith(("http://", "https://")):
            return None
        return f"{self.root if '://' in self.root else Path(self.root).as_uri()}/mlartifacts"

    @property
    def prototype_cache(self) -> str:
        """Prototypes, built once and shared by all sweeps."""
        return f"{self.root}/prototypes"

    @property
    def cost_model_file(self) -> str:
        """How fast trials were here, for estimates."""
        return f"{self.root}/throughput.json"

    def trials_folder(self, sweep: str) -> str:
        """The folder with a folder a trial."""
        return f"{self.root}/sweeps/{sweep}/trials"

    def trial_folder(self, trial: str) -> str:
        """The folder of a finished trial, by the first letters of its id or by its place.

        Raises:
            UserError: if there is none, or the letters fit several.
        """
        if "://" in trial or (Path(trial) / CARD).is_file():
            return trial
        found = {
            name: f"{self.trials_folder(sweep)}/{name}"
            for sweep in list_folders(f"{self.root}/sweeps")
            for name in list_folders(self.trials_folder(sweep))
            if name.startswith(trial) and read_bytes(f"{self.trials_folder(sweep)}/{name}/{CARD}") is not None
        }
        if not found:
            raise UserError(f"{self.root} holds no finished trial {trial!r}; give its id, or the folder it is in.")
        if len(found) > 1:
            raise UserError(f"{trial!r} is the beginning of {len(found)} trials: {', '.join(sorted(found)[:4])}...")
        return str(*found.values())

    def problems(self) -> Iterator[str]:
        """A sentence for each address that cannot be right, and why the home cannot be written; nothing is made."""
        for name, value, variable in (("home", self.root, "SPTUNE_HOME"), ("data", self.data_root, "SPTUNE_DATA")):
            if redact(value) != value:
                secret = SECRET_VARIABLES[name]
                yield f"{variable} {redact(value)}: keep keys out of the address; put them into {secret}."
        if "://" in self.root and not self.database_url:
            yield (
                f"home {self.root} holds files only, and the record needs a database: set SPTUNE_STUDIES or "
                f"`cluster.studies` to {POSTGRESQL}USER@HOST/DATABASE."
            )
        elif self.database_file is None and not self.database_url.startswith(POSTGRESQL):
            yield f"studies {redact(self.database_url)}: must be {POSTGRESQL}USER@HOST/DATABASE or {SQLITE}/FILE."
        if "://" in self.root and not self.mlflow_uri:
            yield (
                f"home {self.root} holds files only, and MLflow needs a server: set MLFLOW_TRACKING_URI or "
                "`cluster.mlflow` to http://HOST:PORT."
            )
        for file, what, way_out in (
            (self.database_file, "the record", f"set SPTUNE_STUDIES to {POSTGRESQL}USER@HOST/DATABASE"),
            (self.mlflow_file, "MLflow's database", "set MLFLOW_TRACKING_URI to a server"),
        ):
            if file is not None and (kind := network_file_system(file)):
                yield (
                    f"{what} {file} is SQLite on {kind}, a network file system, whose locks do not keep it whole: "
                    f"{way_out}, or choose a home on a local disk."
                )
        if "://" not in self.root and (reason := _unwritable(Path(self.root))):
            yield self._unusable(reason)

    def create(self) -> None:
        """Create the folder where it is missing, and see that files can be written and read there.

        Raises:
            HomeError: if they cannot.
        """
        probe = f"{self.root}/.probe-{uuid.uuid4().hex}"
        try:
            write_bytes(probe, b"sptune")
            delete_file(probe)
        except OSError as error:
            raise HomeError(self._unusable(error.strerror or str(error))) from None

    def _unusable(self, reason: str) -> str:
        return f"home {self.root} cannot be written: {reason.rstrip('.')}. Choose another with --home or SPTUNE_HOME."


def home_at(place: str | None = None, cluster: Cluster | None = None) -> Home:
    """The home at a folder or URI: what is not given is taken from the environment, then from a spec's `cluster`."""
    named = cluster or Cluster()
    folder = place or os.environ.get("SPTUNE_HOME") or named.home or DEFAULT_HOME
    folder = folder.removeprefix("file://").rstrip("/") or "/"
    local = "://" not in folder
    if local:
        folder = str(Path(folder).expanduser().absolute())
    return Home(
        root=folder,
        database_url=os.environ.get("SPTUNE_STUDIES")
        or named.studies
        or (f"{SQLITE}{folder}/studies.db" if local else ""),
        mlflow_uri=os.environ.get("MLFLOW_TRACKING_URI")
        or named.mlflow
        or (f"{SQLITE}{folder}/mlflow.db" if local else ""),
        data_root=os.environ.get("SPTUNE_DATA") or named.data or f"{folder}/data",
    )


def network_file_system(file: Path) -> str | None:
    """The kind of the network file system that a file is on, or will be; None on a disk of this machine."""
    return network_kind(file, {part.mountpoint: part.fstype for part in psutil.disk_partitions(all=True)})


def network_kind(file: Path, mounts: dict[str, str]) -> str | None:
    """As `network_file_system`, by a table of mount points and the kinds of their file systems."""
    place = Path(os.path.realpath(file))
    kind = next((mounts[str(folder)] for folder in (place, *place.parents) if str(folder) in mounts), "")
    return kind if kind in NETWORK_FILE_SYSTEMS else None


def _unwritable(folder: Path) -> str | None:
    """Why a folder cannot be made or written, without doing so."""
    there = next(one for one in (folder, *folder.parents) if one.exists())
    if not there.is_dir():
        return f"{there} is a file"
    if not os.access(there, os.W_OK | os.X_OK):
        return f"no permission in {there}"
    return None
