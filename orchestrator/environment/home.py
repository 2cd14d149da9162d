"""Locations of files, study database, MLflow and task store: on this machine, or at addresses that machines share."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from orchestrator.errors import HomeError, UserError
from orchestrator.redaction import SECRET_VARIABLES, has_secret, redact
from orchestrator.study.storage.sqlite_url import sqlite_file, sqlite_url
from trainer.plain_text import counted
from trainer.run_folder import CARD
from trainer.storage.addresses import absolute_address
from trainer.storage.files import delete_file, list_folders, read_bytes, write_bytes

if TYPE_CHECKING:
    from orchestrator.spec.resources import Cluster

DEFAULT_HOME = "sptune-home"
SQLITE = "sqlite:///"
POSTGRESQL = "postgresql+psycopg://"
NETWORK_FILE_SYSTEMS = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "ceph", "lustre", "gpfs", "beegfs", "glusterfs", "orangefs"}
    | {"panfs", "wekafs", "fuse.sshfs", "fuse.s3fs", "fuse.gcsfuse", "fuse.rclone", "fuse.juicefs", "fuse.mount-s3"}
    | {"fuse.glusterfs", "fuse.ceph", "fuse.cephfs"}
)
"""File systems that several machines share, by the kernel's names for them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Home:
    """Files in one folder or bucket, and the study database and the MLflow that belong to them."""

    root: str
    """Absolute path, or URI such as s3://bucket/folder."""
    database_url: str
    """The study database, as a URL of SQLAlchemy. Empty if there is none."""
    mlflow_uri: str
    """MLflow's tracking server or database. Empty if there is none."""
    data_root: str
    """The task store."""

    @property
    def database_file(self) -> Path | None:
        """The file of an SQLite study database; None for a database server."""
        return sqlite_file(self.database_url)

    @property
    def holds_database(self) -> bool:
        """Whether the study database is a file in the home, and so moves with it."""
        return self.database_file is not None and self.database_file.is_relative_to(self.root)

    @property
    def database_name(self) -> str:
        """The study database in words: its file, or its address without a secret."""
        return str(self.database_file or redact(self.database_url))

    @property
    def mlflow_file(self) -> Path | None:
        """The file of MLflow's SQLite database; None for an MLflow server."""
        return sqlite_file(self.mlflow_uri)

    @property
    def mlflow_artifacts(self) -> str | None:
        """URI of the folder for MLflow's artifacts; None if a server chooses the folder."""
        if self.mlflow_uri.startswith(("http://", "https://")):
            return None

        root_uri = self.root if "://" in self.root else Path(self.root).as_uri()
        return f"{root_uri}/mlartifacts"

    @property
    def prototype_cache(self) -> str:
        """Folder of prototypes, which all sweeps share."""
        return f"{self.root}/prototypes"

    @property
    def engine_folder(self) -> str:
        """Folder of the engines that were chosen for kinds of trials, and of compiled kernels."""
        return f"{self.root}/engines"

    @property
    def cost_model_file(self) -> str:
        """File with the measured speed of trials, for estimates."""
        return f"{self.root}/throughput.json"

    def trials_folder(self, sweep: str) -> str:
        """Return the folder that holds the trials of a sweep, one folder each."""
        return f"{self.root}/sweeps/{sweep}/trials"

    def trial_folder(self, trial: str) -> str:
        """Return the folder of a finished trial.

        Args:
            trial: the first letters of the trial's id, or its folder.

        Raises:
            UserError: if no finished trial matches, or several do.
        """
        try:
            folder = absolute_address(trial)
        except ValueError as error:
            raise UserError(str(error)) from None
        if "://" in folder or (Path(folder) / CARD).is_file():
            return folder

        # A config that two sweeps trained has one id, and either folder will do.
        matches = {
            name: f"{self.trials_folder(sweep)}/{name}"
            for sweep in list_folders(f"{self.root}/sweeps")
            for name in list_folders(self.trials_folder(sweep))
            if name.startswith(trial) and read_bytes(f"{self.trials_folder(sweep)}/{name}/{CARD}") is not None
        }
        if not matches:
            raise UserError(
                f"{self.root} has neither a sweep nor a finished trial {trial!r}; give the name of a sweep, a trial's "
                "id, or the folder it is in. Another home is named with --home."
            )
        if len(matches) > 1:
            examples = ", ".join(sorted(matches)[:4])
            raise UserError(
                f"{trial!r} is the beginning of {counted(len(matches), 'trial')}: {examples}... Give more letters."
            )

        (folder,) = matches.values()
        return folder

    def problems(self) -> Iterator[str]:
        """Yield a sentence for each address that cannot be used, and for a home that cannot be written.

        Nothing is created.
        """
        for key, address, variable in (("home", self.root, "SPTUNE_HOME"), ("data", self.data_root, "SPTUNE_DATA")):
            if has_secret(address):
                secrets = SECRET_VARIABLES[key]
                yield f"{variable} {redact(address)}: keep keys out of the address; put them into {secrets}."

        yield from self._database_problems()
        yield from self._sqlite_problems()

        if "://" not in self.root:
            reason = _unwritable(Path(self.root))
            if reason is not None:
                yield self._unusable(reason)

    def _database_problems(self) -> Iterator[str]:
        """Yield a sentence for each database or server that is missing or of the wrong kind."""
        if "://" in self.root and not self.database_url:
            yield (
                f"home {self.root} can hold files only, and the study database needs a server: set SPTUNE_STUDIES or "
                f"`cluster.studies` to {POSTGRESQL}USER@HOST/DATABASE."
            )
        elif self.database_file is None and not self.database_url.startswith(POSTGRESQL):
            yield f"studies {redact(self.database_url)}: must be {POSTGRESQL}USER@HOST/DATABASE or {SQLITE}/FILE."

        if self.mlflow_uri.startswith("sqlite") and self.mlflow_file is None:
            yield f"MLflow {redact(self.mlflow_uri)}: must be http://HOST:PORT or {SQLITE}/FILE, without options."

        if "://" in self.root and not self.mlflow_uri:
            yield (
                f"home {self.root} can hold files only, and MLflow needs a server: set MLFLOW_TRACKING_URI or "
                "`cluster.mlflow` to http://HOST:PORT."
            )

    def _sqlite_problems(self) -> Iterator[str]:
        """Yield a sentence for each SQLite file on a network file system."""
        for file, name, way_out in (
            (self.database_file, "the study database", f"set SPTUNE_STUDIES to {POSTGRESQL}USER@HOST/DATABASE"),
            (self.mlflow_file, "MLflow's database", "set MLFLOW_TRACKING_URI to a server"),
        ):
            kind = network_file_system(file) if file is not None else None
            if kind is not None:
                yield (
                    f"{name} {file} is an SQLite file on {kind}, a network file system, whose locks cannot protect it: "
                    f"{way_out}, or choose a home on a local disk."
                )

    def create(self) -> None:
        """Create the folder if it is missing, and check that files can be written and deleted in it.

        Raises:
            HomeError: if they cannot.
        """
        # Permissions do not tell whether a bucket or a network file system accepts files, so one is written. Drivers
        # may start at the same time, so each writes a file of its own.
        probe = f"{self.root}/.probe-{uuid.uuid4().hex}"
        try:
            write_bytes(probe, b"sptune")
            delete_file(probe)
        except OSError as error:
            raise HomeError(self._unusable(error.strerror or str(error))) from None

    def _unusable(self, reason: str) -> str:
        return f"home {self.root} cannot be written: {reason.rstrip('.')}. Choose another with --home or SPTUNE_HOME."


def home_at(root: str | None = None, cluster: Cluster | None = None) -> Home:
    """Return the home at a folder or URI.

    An address that is not given is taken from the environment, then from a spec's `cluster`, then from the defaults.
    Relative paths and `~` become absolute here: trials run in other working directories.

    Raises:
        HomeError: if a path cannot be used, with the reason.
    """
    root = root or os.environ.get("SPTUNE_HOME") or (cluster and cluster.home) or DEFAULT_HOME
    data = os.environ.get("SPTUNE_DATA") or (cluster and cluster.data)
    studies = os.environ.get("SPTUNE_STUDIES") or (cluster and cluster.studies) or ""
    mlflow = os.environ.get("MLFLOW_TRACKING_URI") or (cluster and cluster.mlflow) or ""

    try:
        root = absolute_address(root)
        if "://" in root:
            # A bucket can hold files only, so there are no databases by default.
            root = root.rstrip("/")
        else:
            studies = studies or sqlite_url(Path(root) / "studies.db")
            mlflow = mlflow or sqlite_url(Path(root) / "mlflow.db")

        return Home(
            root=root,
            database_url=_absolute_url(studies),
            mlflow_uri=_absolute_url(mlflow),
            data_root=absolute_address(data) if data else f"{root}/data",
        )
    except ValueError as error:
        raise HomeError(str(error)) from None


def weights_at(weights: str | None, cluster: Cluster | None = None) -> str | None:
    """Return the file or folder of weights, absolute: as given, or from a spec's `cluster`; None for neither.

    Raises:
        HomeError: if the path cannot be used, with the reason.
    """
    address = weights or (cluster and cluster.weights)
    try:
        return absolute_address(address) if address else None
    except ValueError as error:
        raise HomeError(f"weights {error}") from None


def _absolute_url(url: str) -> str:
    """Return the URL of a database with an absolute path, if it is an SQLite file."""
    file = sqlite_file(url)
    return url if file is None else sqlite_url(Path(absolute_address(str(file))))


def network_file_system(file: Path) -> str | None:
    """Return the kind of the network file system that a file is on, or will be on; None for a local disk."""
    return network_kind(
        file, {partition.mountpoint: partition.fstype for partition in psutil.disk_partitions(all=True)}
    )


def network_kind(file: Path, mounts: dict[str, str]) -> str | None:
    """Return the same as `network_file_system`, given the kind of file system by mount point."""
    # A link in a local folder may lead to a network file system.
    path = Path(os.path.realpath(file))
    for folder in (path, *path.parents):
        if str(folder) in mounts:
            # The innermost mount point decides, whatever lies around it.
            kind = mounts[str(folder)]
            return kind if kind in NETWORK_FILE_SYSTEMS else None
    return None


def _unwritable(folder: Path) -> str | None:
    """Return why a folder cannot be created or written, or None if it can. Nothing is created."""
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    if not nearest.is_dir():
        return f"{nearest} is a file"
    if not os.access(nearest, os.W_OK | os.X_OK):
        return f"no permission in {nearest}"
    return None
