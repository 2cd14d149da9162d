"""Context of a trial: what a driver gives it beside its config."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.environment.home import Home
from orchestrator.spec.schema import SweepSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialContext:
    """Folders and resources of a trial. Only resources and device differ between the trials of a sweep."""

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
    mix_devices: bool = True
    """Whether a trial may resume on another kind of device than it began on. If not, it starts again there."""
    engine: str | None = None
    """What runs training steps; None for the fastest that agrees with eager."""
    engine_folder: str | None = None
    """Folder of earlier choices of an engine, which trials share."""
    required_device: str | None = None
    """The kind of device that it must run on; None for any."""


def trial_context(spec: SweepSpec, home: Home, weights: str | None, trials_folder: str) -> TrialContext:
    """Return where the trials of a sweep run, with their folders in `trials_folder`.

    All paths are absolute: a trial may run in another working directory.
    """
    return TrialContext(
        data_root=home.data_root,
        trials_folder=trials_folder,
        prototype_cache=home.prototype_cache,
        weights=weights,
        cpus=spec.resources.cpus,
        gpus=spec.resources.initial_gpus,
        mix_devices=spec.resources.mix_devices,
        engine=None if spec.resources.engine == "auto" else spec.resources.engine,
        engine_folder=home.engine_folder,
    )
