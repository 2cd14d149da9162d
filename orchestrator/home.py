"""Where everything is: the home folder and what is found from it."""

from __future__ import annotations

import glob
import os
import uuid
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import HomeError, UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class Workplace:
    """Where trials of a sweep run: the same for all of them."""

    data_root: str
    """The task store."""
    trials: str
    """Folder with a folder a trial."""
    bank: str
    """Folder of prototypes that trials share."""
    weights: str | None
    """A file, or a folder of files, in which backbones' weights are looked for first."""
    cpus: int
    gpus: float


@dataclass(frozen=True, slots=True)
class Home:
    """One folder that holds the record, MLflow's database, tasks and trials."""

    folder: Path

    @property
    def record_file(self) -> Path:
        """The record's SQLite database."""
        return self.folder / "studies.db"

    @property
    def mlflow_uri(self) -> str:
        """`MLFLOW_TRACKING_URI`, or a database in the home."""
        return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{self.folder / 'mlflow.db'}"

    @property
    def mlflow_artifacts(self) -> str | None:
        """Where MLflow keeps artifacts; None where a server of its own decides."""
        return None if "MLFLOW_TRACKING_URI" in os.environ else (self.folder / "mlartifacts").as_uri()

    @property
    def data_root(self) -> str:
        """The task store: `SPTUNE_DATA`, or a folder in the home."""
        return os.environ.get("SPTUNE_DATA") or str(self.folder / "data")

    @property
    def bank(self) -> str:
        """Prototypes, built once and shared by all sweeps."""
        return str(self.folder / "prototypes")

    @property
    def throughput_file(self) -> str:
        """How fast trials were here, for estimates."""
        return str(self.folder / "throughput.json")

    def trials(self, sweep: str) -> str:
        """The folder with a folder a trial."""
        return str(self.folder / "sweeps" / sweep / "trials")

    def trial_folder(self, trial: str) -> str:
        """The folder of a finished trial, by the first letters of its id or by its place.

        Raises:
            UserError: if there is none, or the letters fit several.
        """
        if "://" in trial or (Path(trial) / "card.json").is_file():
            return trial
        found = {
            card.parent.name: card.parent
            for card in self.folder.glob(f"sweeps/*/trials/{glob.escape(trial)}*/card.json")
        }
        if not found:
            raise UserError(f"{self.folder} holds no finished trial {trial!r}; give its id, or the folder it is in.")
        if len(found) > 1:
            raise UserError(f"{trial!r} is the beginning of {len(found)} trials: {', '.join(sorted(found)[:4])}...")
        return str(*found.values())

    def check(self) -> None:
        """See whether the folder can be made and written, without doing so.

        Raises:
            HomeError: if it cannot, with the reason.
        """
        there = next(folder for folder in (self.folder, *self.folder.parents) if folder.exists())
        if not there.is_dir():
            raise HomeError(self._unusable(f"{there} is a file"))
        if not os.access(there, os.W_OK | os.X_OK):
            raise HomeError(self._unusable(f"no permission in {there}"))

    def make(self) -> None:
        """Create the folder where it is missing.

        Raises:
            HomeError: if files cannot be written there.
        """
        probe = self.folder / f".probe-{uuid.uuid4().hex}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise HomeError(self._unusable(str(error.strerror))) from None

    def _unusable(self, reason: str) -> str:
        return f"home {self.folder} cannot be written: {reason}. Choose another with --home or SPTUNE_HOME."


DEFAULT_HOME = Path("sptune-home")


def home_at(folder: Path | None = None) -> Home:
    """The home in a folder, by its absolute path; `SPTUNE_HOME`, or ./sptune-home, where none is given."""
    return Home((folder or Path(os.environ.get("SPTUNE_HOME") or DEFAULT_HOME)).absolute())
