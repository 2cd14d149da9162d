"""Where a backbone's weights come from: this package, a file or folder the user names, or timm's hub. No torch."""

from __future__ import annotations

import importlib.resources
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trainer.catalog import BUNDLED, BackboneRow

SUFFIXES = (".safetensors", ".pth", ".pth.tar", ".npz")
HUB_FILE = "model.safetensors"


class WeightsError(ValueError):
    """Weights that are not there, cannot be read, or are of another network."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where weights are."""

    kind: Literal["bundled", "file", "cache", "hub"]
    path: Path | None
    """None for weights that are still to be downloaded."""

    def __str__(self) -> str:
        known = {"bundled": "in this package", "hub": "timm's hub", "cache": "Hugging Face cache"}
        return known.get(self.kind, str(self.path))


def find_weights(row: BackboneRow, named: str | None) -> Source:
    """Where a backbone's weights are, without fetching or opening them.

    Args:
        named: a file, or a folder that holds files under their published or timm names; None for neither.

    Raises:
        WeightsError: if they are nowhere, with what to do.
    """
    if named is not None and (path := _in(Path(named).expanduser(), row)):
        return Source("file", path)
    if row.name == BUNDLED:
        return Source("bundled", Path(str(importlib.resources.files("trainer") / "assets" / f"{BUNDLED}.safetensors")))
    names = " or ".join(filter(None, (row.published_as, f"{row.name}{SUFFIXES[0]}")))
    way_out = f"Name a file, or a folder that holds {names}, with --weights or SPTUNE_WEIGHTS."
    if not row.on_hub:
        raise WeightsError(f"{row.name} has no weights on timm's hub{_among(named)}. {way_out}")
    from huggingface_hub import constants, try_to_load_from_cache

    if isinstance(cached := try_to_load_from_cache(f"timm/{row.name}", HUB_FILE), str):
        return Source("cache", Path(cached))
    if constants.HF_HUB_OFFLINE:
        raise WeightsError(
            f"{row.name} is not in the Hugging Face cache ({constants.HF_HUB_CACHE}){_among(named)}, "
            f"and HF_HUB_OFFLINE forbids to download it. {way_out}"
        )
    return Source("hub", None)


def fetch_weights(row: BackboneRow, named: str | None) -> Path:
    """The file of a backbone's weights, downloaded if it must be.

    Raises:
        WeightsError: if they are nowhere, or the download fails.
    """
    source = find_weights(row, named)
    if source.path is not None:
        return source.path
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(f"timm/{row.name}", HUB_FILE))
    except Exception as error:  # the hub's library has a dozen: no network, no such file, no permission, full disk
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        names = " or ".join(filter(None, (row.published_as, f"{row.name}{SUFFIXES[0]}")))
        raise WeightsError(
            f"{row.name} could not be downloaded from timm's hub: {reason}. Download it where there is a network and "
            f"name the file, or a folder that holds {names}, with --weights or SPTUNE_WEIGHTS."
        ) from error


def _in(place: Path, row: BackboneRow) -> Path | None:
    """The row's file at a place that the user names."""
    if place.is_file():
        return place
    if not place.is_dir():
        raise WeightsError(f"weights {place}: there is no such file or folder.")
    names = [row.published_as] if row.published_as else []
    names += [f"{row.name}{suffix}" for suffix in SUFFIXES] + [f"{row.name}/{HUB_FILE}"]
    return next((path for name in names if (path := place / name).is_file()), None)


def _among(named: str | None) -> str:
    return f", nor in {named}" if named else ""
