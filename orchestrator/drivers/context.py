"""What every trial of a sweep is given beside its config."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialContext:
    """Folders and resources of a trial. Only the resources differ between the trials of a sweep."""

    data_root: str
    """The task store."""
    trials_folder: str
    """Folder that holds the trials, one folder each."""
    prototype_cache: str
    """Folder of prototypes that trials share."""
    weights: str | None
    """File or folder to search first for the weights of backbones."""
    cpus: int
    gpus: float
