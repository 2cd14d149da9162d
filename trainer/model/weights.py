"""Where a backbone's weights come from: this package, a file, folder or URI the user names, or timm's hub. No torch."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.resources
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trainer.catalog import BUNDLED, BackboneRow
from trainer.storage.local_cache import cache_folder

SUFFIXES = (".safetensors", ".pth", ".pth.tar", ".npz")
HUB_FILE = "model.safetensors"


class WeightsError(ValueError):
    """Weights that are not there, cannot be read, or are of another network."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where weights are."""

    kind: Literal["bundled", "file", "uri", "cache", "hub"]
    path: Path | None
    """None for weights that are still to be brought here."""
    uri: str = ""
    """Of the file, where it is named by one."""
    stamp: tuple[int, int] = (0, 0)
    """Size and time of change of the file at the URI: another one is brought here anew."""

    def __str__(self) -> str:
        known = {"bundled": "in this package", "hub": "timm's hub", "cache": "Hugging Face cache"}
        return known.get(self.kind, _display(self.uri or str(self.path)))


def find_weights(row: BackboneRow, named: str | None) -> Source:
    """Where a backbone's weights are, without fetching or opening them.

    Args:
        named: a file, or a folder that holds files under their published or timm names, as a path or as a URI such as
            s3://bucket/weights; None for neither.

    Raises:
        WeightsError: if they are nowhere, with what to do.
        OSError: if the URI cannot be read.
    """
    if named is not None and "://" in named:
        if there := _at(named.rstrip("/"), row):
            return there
    elif named is not None and (path := _in(Path(named).expanduser(), row)):
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
    """The file of a backbone's weights, brought to this machine if it must be, once.

    Raises:
        WeightsError: if they are nowhere, or the download from timm's hub fails.
        OSError: if a URI cannot be read, or the copy not be written.
    """
    source = find_weights(row, named)
    if source.path is not None:
        return source.path
    if source.kind == "uri":
        return _fetched(source)
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
    return next((path for name in _names(row) if (path := place / name).is_file()), None)


def _names(row: BackboneRow) -> list[str]:
    names = [row.published_as] if row.published_as else []
    return names + [f"{row.name}{suffix}" for suffix in SUFFIXES] + [f"{row.name}/{HUB_FILE}"]


def _at(uri: str, row: BackboneRow) -> Source | None:
    """The row's file at a URI that the user names."""
    from trainer.storage.files import file_stamps

    if (stamps := file_stamps(uri)) is None:
        raise WeightsError(f"weights {_display(uri)}: there is no such file or folder.")
    if "" in stamps:
        return Source("uri", None, uri, stamps[""])
    below = file_stamps(f"{uri}/{row.name}") or {}
    stamps |= {f"{row.name}/{name}": stamp for name, stamp in below.items()}
    return next((Source("uri", None, f"{uri}/{name}", stamps[name]) for name in _names(row) if name in stamps), None)


def _fetched(source: Source) -> Path:
    """This machine's copy of the file at a URI: whole or absent, made by one process while others wait."""
    from trainer.storage.files import open_filesystem, read_chunks

    which = hashlib.sha256(f"{_display(source.uri)} {source.stamp}".encode()).hexdigest()[:16]
    folder = cache_folder() / "weights" / which
    whole = folder / open_filesystem(source.uri)[1].rpartition("/")[2]  # its name tells the format
    if not whole.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not whole.exists():
                part = whole.with_name(f"{whole.name}.part")
                with part.open("wb") as file:
                    for chunk in read_chunks(source.uri):
                        file.write(chunk)
                    file.flush()
                    os.fsync(file.fileno())
                    if file.tell() != source.stamp[0]:
                        raise OSError(f"{_display(source.uri)} was replaced while it was read; try again.")
                part.replace(whole)
    return whole


def _among(named: str | None) -> str:
    return f", nor in {_display(named)}" if named else ""


def _display(place: str) -> str:
    from trainer.storage.s3 import redact_query

    return redact_query(place)
