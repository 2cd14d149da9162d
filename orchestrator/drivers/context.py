"""What a driver hands to each trial beside its config."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialContext:
    """Where trials of a sweep run: the same for all of them, but for what each occupies."""

    data_root: str
    """The task store."""
    trials_folder: str
    """Folder with a folder a trial."""
    prototype_cache: str
    """Folder of prototypes that trials share."""
    weights: str | None
    """A file, or a folder of files, in which backbones' weights are looked for first."""
    cpus: int
    gpus: float
