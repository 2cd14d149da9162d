"""Where a backbone's weights come from: this package, a file, folder or URI that the user names, or timm's hub.

Finding and downloading weights needs no torch.
"""

from __future__ import annotations

import fcntl
import glob
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trainer import phase
from trainer.catalog import BUNDLED, BackboneRow
from trainer.names import no_such_path
from trainer.redaction import redact
from trainer.storage.addresses import absolute_address
from trainer.storage.local_cache import cache_folder, make_cache_folder

SUFFIXES = (".safetensors", ".pth", ".pth.tar", ".npz")
HUB_FILE = "model.safetensors"
ASSETS = Path(__file__).parents[1] / "assets"
"""Folder of the weights that come with this package. Its place is fixed: another package may have its name."""


class WeightsError(ValueError):
    """Weights that cannot be found or read, or that belong to another network."""


@dataclass(frozen=True, slots=True)
class WeightsSource:
    """The place that a backbone's weights are loaded from."""

    kind: Literal["bundled", "file", "uri", "cache", "hub"]
    path: Path | None
    """Local file; None for weights that must still be downloaded."""
    uri: str = ""
    """URI of the file, if the user named one."""
    stamp: tuple[int, int] = (0, 0)
    """Size and modification time of the file at the URI. A file with another stamp is downloaded again."""

    def __str__(self) -> str:
        labels = {"bundled": "in this package", "hub": "timm's hub", "cache": "Hugging Face cache"}
        return labels.get(self.kind, redact(self.uri or str(self.path)))


def find_weights(row: BackboneRow, location: str | None) -> WeightsSource:
    """Return where a backbone's weights are, without downloading or opening them.

    Args:
        location: a file, or a folder with files under their published or timm names, as a path or as a URI such as
            s3://bucket/weights; None for neither.

    Raises:
        WeightsError: if no weights are found, with the way out.
        OSError: if the URI cannot be read.
    """
    # What the user names comes first, also for the bundled backbone.
    if location is not None:
        try:
            location = absolute_address(location)
        except ValueError as error:
            raise WeightsError(f"weights {error}") from None
        source = _find_at_uri(location.rstrip("/"), row) if "://" in location else _find_at_path(location, row)
        if source is not None:
            return source

    if row.name == BUNDLED:
        return WeightsSource("bundled", ASSETS / f"{BUNDLED}.safetensors")

    nor_in_location = f", nor in {redact(location)}" if location else ""
    way_out = f"Name a file, or a folder that holds {_names_to_use(row)}, with --weights or SPTUNE_WEIGHTS."
    if not row.on_hub:
        raise WeightsError(f"{row.name} has no weights on timm's hub{nor_in_location}. {way_out}")

    # Imported late: it takes a while, and most commands do not need it.
    from huggingface_hub import constants, try_to_load_from_cache

    cached = try_to_load_from_cache(f"timm/{row.name}", HUB_FILE)
    if isinstance(cached, str):
        return WeightsSource("cache", Path(cached))
    if constants.HF_HUB_OFFLINE:
        raise WeightsError(
            f"{row.name} is not in the Hugging Face cache ({constants.HF_HUB_CACHE}){nor_in_location}, "
            f"and HF_HUB_OFFLINE forbids downloads. {way_out}"
        )
    return WeightsSource("hub", None)


def fetch_weights(row: BackboneRow, location: str | None) -> Path:
    """Return the local file of a backbone's weights. Download it once if it is not on this machine.

    Raises:
        WeightsError: if no weights are found, or the download from timm's hub fails.
        OSError: if a URI cannot be read, or the copy cannot be written.
    """
    source = find_weights(row, location)
    if source.kind == "cache" and _is_damaged_copy(source.path):
        # Its link leads nowhere then, so it is downloaded again.
        source = find_weights(row, location)
    if source.kind == "bundled" and source.path is not None:
        _check_bundled(source.path)
    if source.path is not None:
        return source.path
    if source.kind == "uri":
        return _fetch_uri(source)

    from huggingface_hub import hf_hub_download

    phase.begin(f"downloading the weights of {row.name}")
    try:
        return Path(hf_hub_download(f"timm/{row.name}", HUB_FILE))
    # The library raises a dozen kinds of errors: no network, no such file, no permission, full disk.
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        raise WeightsError(
            f"{row.name} could not be downloaded from timm's hub: {reason}. {way_without_network(row)}"
        ) from error


def _check_bundled(path: Path) -> None:
    """Raise WeightsError if the file of this package is not the one that its card describes."""
    card = json.loads(path.with_suffix(".card.json").read_text(encoding="utf-8"))
    if hashlib.sha256(path.read_bytes()).hexdigest() != card["sha256"]:
        raise WeightsError(f"{path} is damaged: its checksum is wrong. Install sptune again.")


def _file_names(row: BackboneRow) -> list[str]:
    """Return the names that a row's file may have in a folder, best first."""
    published = [row.published_as] if row.published_as else []
    return published + [f"{row.name}{suffix}" for suffix in SUFFIXES] + [f"{row.name}/{HUB_FILE}"]


def _names_to_use(row: BackboneRow) -> str:
    """Return the file names that an error message recommends."""
    return " or ".join(filter(None, (row.published_as, f"{row.name}{SUFFIXES[0]}")))


def way_without_network(row: BackboneRow) -> str:
    """Return the sentence that says how a machine without a network gets a row's weights."""
    from huggingface_hub import constants

    return (
        f"Download it where there is a network and name the file, or a folder that holds {_names_to_use(row)}, with "
        f"--weights or SPTUNE_WEIGHTS; or copy that machine's Hugging Face cache to {constants.HF_HUB_CACHE}."
    )


def _find_at_path(location: str, row: BackboneRow) -> WeightsSource | None:
    path = Path(location)
    if path.is_file():
        return WeightsSource("file", path)
    if not path.is_dir():
        raise WeightsError(f"weights {path}: {no_such_path(path)}")

    for name in _file_names(row):
        if (path / name).is_file():
            return WeightsSource("file", path / name)
    return None


def _find_at_uri(uri: str, row: BackboneRow) -> WeightsSource | None:
    from trainer.storage.files import file_stamps

    stamps = file_stamps(uri)
    if stamps is None:
        raise WeightsError(f"weights {redact(uri)}: there is no such file or folder.")
    if "" in stamps:
        return WeightsSource("uri", None, uri, stamps[""])

    # `file_stamps` lists one folder; the row's own folder is the only one that may hold its file.
    for name, stamp in (file_stamps(f"{uri}/{row.name}") or {}).items():
        stamps[f"{row.name}/{name}"] = stamp

    for name in _file_names(row):
        if name in stamps:
            return WeightsSource("uri", None, f"{uri}/{name}", stamps[name])
    return None


def _fetch_uri(source: WeightsSource) -> Path:
    """Return this machine's copy of the file at a URI. One process makes it while the others wait."""
    from trainer.storage.files import open_filesystem, publish, read_chunks

    key = hashlib.sha256(f"{redact(source.uri)} {source.stamp}".encode()).hexdigest()[:16]
    folder = cache_folder() / "weights" / key
    # The copy keeps the file's name, because its suffix tells the format.
    name = open_filesystem(source.uri)[1].rpartition("/")[2]

    found = _whole_copy(folder, name)
    if found is not None:
        return found

    make_cache_folder(folder)
    with (folder / "lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # Another process may have made the copy while this one waited.
        found = _whole_copy(folder, name)
        if found is not None:
            return found

        # The copy appears under its name only when it is complete.
        part = folder / f"{name}.part"
        sha256 = hashlib.sha256()
        with part.open("wb") as file:
            for chunk in read_chunks(source.uri):
                file.write(chunk)
                sha256.update(chunk)
            if file.tell() != source.stamp[0]:
                raise OSError(f"{redact(source.uri)} was replaced while it was read; try again.")

        # The name of its folder is its checksum, as in the Hugging Face cache the name of the file is.
        copy = folder / sha256.hexdigest() / name
        copy.parent.mkdir(exist_ok=True)
        publish(part, copy)
    return copy


def _whole_copy(folder: Path, name: str) -> Path | None:
    """Return the undamaged copy of a file in the folder of its URI, or None."""
    # Versions before kept it in the folder itself.
    copies = [*folder.glob(f"*/{glob.escape(name)}"), folder / name]
    return next((copy for copy in copies if copy.exists() and not _is_damaged_copy(copy)), None)


def _is_damaged_copy(copy: Path | None) -> bool:
    """Return whether a downloaded file is another than its path says. It is then set aside.

    The path of a copy ends in its SHA-256, or in its SHA-256 and its name. Paths without one are not compared.
    """
    from trainer.storage.integrity import set_aside

    assert copy is not None, "a copy is a file of this machine"
    file = copy.resolve()
    names = [name for name in (file.name, file.parent.name) if re.fullmatch("[0-9a-f]{64}", name)]
    if not names:
        return False

    with file.open("rb") as opened:
        is_damaged = hashlib.file_digest(opened, "sha256").hexdigest() != names[0]
    if is_damaged:
        problem = f"{copy} is damaged: its checksum is wrong."
        try:
            set_aside(file, problem)
        except OSError as error:
            raise WeightsError(f"{problem} It cannot be moved ({error.strerror}): delete {file}.") from error
    return is_damaged
