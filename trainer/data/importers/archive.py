"""The files of a source, wherever they are: a folder, a zip or tar archive, or a folder with archives in it."""

from __future__ import annotations

import fnmatch
import io
import itertools
import lzma
import os
import posixpath
import re
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Self

ZIP_SUFFIXES = (".zip",)
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
MAGIC = {b"\x1f\x8b": "r:gz", b"BZh": "r:bz2", b"\xfd7zXZ\x00": "r:xz"}
# RuntimeError: zipfile's word for a password, and (as NotImplementedError) for a compression that it lacks.
UNREADABLE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError)


class ImportRefused(ValueError):
    """A source that cannot be imported: the rule, the value, the way out."""


@dataclass(frozen=True, slots=True)
class _Member:
    """A file in an archive."""

    archive: Path
    name: str
    size: int
    position: int
    """Its turn among the archive's members."""
    offset: int | None = None
    """Where in a tar its bytes start; None in a compressed one, which has no way to go there."""


class SourceFiles:
    """Files by their names, with `/` between folders and without the archive they are in.

    Names are relative to the source's folder; members of archives are named as if they were unpacked beside it, and
    what lies unpacked there goes before them. What macOS adds (`__MACOSX`, `._name`) is not seen. The names of
    compressed tars are read in one pass, and the files asked of them in another: ask for many at once.

    Args:
        path: a folder (its subfolders included, linked ones too) or an archive.

    Raises:
        ImportRefused: if there is no such path, an archive is damaged, or a member's path climbs out of it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._files: set[str] = set()
        self._members: dict[str, _Member] = {}
        self._twice: dict[str, Path] = {}
        if not path.exists():
            raise ImportRefused(f"{path}: there is no such file or folder.")
        self._folder = path if path.is_dir() else path.parent
        for name in _walk(path) if path.is_dir() else [path.name]:
            if not name.endswith(ZIP_SUFFIXES + TAR_SUFFIXES):
                self._files.add(name)
                continue
            for member, found in _members(self._folder / name).items():
                beside = posixpath.join(posixpath.dirname(name), member)
                if beside in self._members:
                    self._twice[beside] = self._members[beside].archive
                self._members[beside] = found
        self.names = sorted(name for name in self._files | self._members.keys() if not _of_macos(name))

    def find(self, pattern: str) -> list[str]:
        """The names that a shell pattern fits, as a whole or behind a `/`: `images/*.jpg`. A `*` fits a `/` too."""
        fits = re.compile(fnmatch.translate(f"*/{pattern.removeprefix('*/')}")).match
        return [name for name in self.names if fits(f"/{name}")]

    def one(self, pattern: str) -> str:
        """The one name that a pattern fits.

        Raises:
            ImportRefused: if none or several do.
        """
        found = self.find(pattern)
        if len(found) != 1:
            shown = f"there are {len(found)}: {', '.join(found[:3])}" if found else "there is none"
            raise ImportRefused(f"{self.path} must hold one file {pattern}; {shown}.")
        return found[0]

    def read(self, name: str) -> bytes:
        """The bytes of one file."""
        return next(self.read_all([name]))

    def read_all(self, names: Sequence[str]) -> Iterator[bytes]:
        """The bytes of many files, in the order of `names`, one in memory at a time.

        Raises:
            ImportRefused: if a name is not there or in two archives, or an archive is damaged.
        """
        self._check(names)
        with ExitStack() as stack:
            spool = stack.enter_context(tempfile.TemporaryFile())
            places = self._spool(names, spool)
            zips: dict[Path, zipfile.ZipFile] = {}
            tars: dict[Path, IO[bytes]] = {}
            for name in names:
                if name in self._files:
                    data = (self._folder / name).read_bytes()
                elif name in places:
                    offset, size = places[name]
                    spool.seek(offset)
                    data = spool.read(size)
                else:
                    member = self._members[name]
                    archive = member.archive
                    with _refusing(archive):
                        if member.offset is None:
                            if archive not in zips:
                                zips[archive] = stack.enter_context(zipfile.ZipFile(archive))
                            data = zips[archive].read(member.name)
                        else:
                            if archive not in tars:
                                tars[archive] = stack.enter_context(archive.open("rb"))
                            tars[archive].seek(member.offset)
                            data = tars[archive].read(member.size)
                            if len(data) < member.size:
                                raise EOFError(f"it ends in {name}")
                yield data

    def local(self, name: str, folder: Path) -> Path:
        """A file on disk with the bytes of `name`, for libraries that need one; unpacked to `folder` if it must be."""
        self._check([name])
        if name in self._files:
            return self._folder / name
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        member = self._members[name]
        with _refusing(member.archive), _opened(member) as file, target.open("wb") as unpacked:
            shutil.copyfileobj(file, unpacked)
        return target

    def _check(self, names: Sequence[str]) -> None:
        if missing := [name for name in names if name not in self._files and name not in self._members]:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            raise ImportRefused(f"{self.path} lacks {', '.join(missing[:3])}{more}. Put them there or get it again.")
        if twice := [name for name in names if name in self._twice and name not in self._files]:
            both = f"{self._twice[twice[0]]} and in {self._members[twice[0]].archive}"
            raise ImportRefused(f"{twice[0]} is in {both}. Unpack each in a folder of its own, or take one away.")

    def _spool(self, names: Sequence[str], spool: IO[bytes]) -> dict[str, tuple[int, int]]:
        """Copy what compressed tars hold of the names into one file, each tar in one pass; where each name then is."""
        wanted: dict[Path, dict[int, list[str]]] = {}
        for name in dict.fromkeys(names):
            member = self._members.get(name)
            if name not in self._files and member is not None and not _is_zip(member.archive) and member.offset is None:
                wanted.setdefault(member.archive, {}).setdefault(member.position, []).append(name)
        places: dict[str, tuple[int, int]] = {}
        for archive, turns in wanted.items():
            with _refusing(archive), _open_tar(archive) as tar:
                for position, entry in zip(range(max(turns) + 1), tar, strict=False):
                    if position in turns:
                        places |= dict.fromkeys(turns[position], (spool.tell(), entry.size))
                        file = tar.extractfile(entry)
                        assert file is not None, f"{entry.name} was a file when the tar was listed"
                        shutil.copyfileobj(file, spool)
        return places


def _walk(folder: Path, above: str = "") -> Iterator[str]:
    """The names of all files below a folder; a link to a folder that it is in is not followed."""
    here = folder / above
    try:
        with os.scandir(here) as scanned:
            entries = list(scanned)
    except OSError as error:
        raise ImportRefused(f"{here} cannot be read: {error}.") from error
    for entry in entries:
        if entry.is_file():
            yield above + entry.name
        elif entry.is_dir() and not (entry.is_symlink() and here.resolve().is_relative_to(Path(entry).resolve())):
            yield from _walk(folder, f"{above}{entry.name}/")


def _of_macos(name: str) -> bool:
    return "/__MACOSX/" in f"/{name}" or name[name.rfind("/") + 1 :].startswith("._")


def _is_zip(archive: Path) -> bool:
    return archive.name.endswith(ZIP_SUFFIXES)


class _Header(tarfile.TarInfo):
    """Where tarfile takes a damaged or cut header for a tar's end, and what follows is lost, this raises an error."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.HeaderError as error:
            is_marked = isinstance(error, tarfile.EOFHeaderError)  # type: ignore[attr-defined]  # typeshed lacks it
            is_cut = isinstance(error, tarfile.EmptyHeaderError)  # type: ignore[attr-defined]
            # A compressed stream vouches for its own end; some writers leave out the tar's.
            if is_marked or (is_cut and not _is_plain(tarfile_)):
                raise
            raise tarfile.ReadError(f"{error} before its end marker") from error


def _is_plain(tar: tarfile.TarFile) -> bool:
    return isinstance(tar.fileobj, io.BufferedReader)


def _open_tar(archive: Path) -> tarfile.TarFile:
    with archive.open("rb") as file:
        start = file.read(6)
    # By its first bytes: tars with the wrong suffix are about.
    mode = next((mode for magic, mode in MAGIC.items() if start.startswith(magic)), "r:")
    return tarfile.open(archive, mode, tarinfo=_Header)  # type: ignore[call-overload,no-any-return]


@contextmanager
def _opened(member: _Member) -> Iterator[IO[bytes]]:
    if _is_zip(member.archive):
        with zipfile.ZipFile(member.archive) as opened, opened.open(member.name) as file:
            yield file
        return
    with _open_tar(member.archive) as tar:
        entry = next(itertools.islice(tar, member.position, None))
        extracted = tar.extractfile(entry)
        assert extracted is not None, f"{entry.name} was a file when the tar was listed"
        yield extracted


@contextmanager
def _refusing(archive: Path) -> Iterator[None]:
    try:
        yield
    except UNREADABLE as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise ImportRefused(f"{archive} cannot be read or unpacked: {error}.") from error
        raise ImportRefused(f"{archive} is damaged: {error}. Download it again.") from error


def _members(archive: Path) -> dict[str, _Member]:
    """An archive's files by their names; a path that climbs out is refused."""
    with _refusing(archive):
        members = _of_zip(archive) if _is_zip(archive) else _of_tar(archive)
    for name in members:
        if name.startswith("/") or ".." in PurePosixPath(name).parts:
            raise ImportRefused(f"{archive} has a member {name!r}, which climbs out of the archive; it is not opened.")
    return members


def _of_zip(archive: Path) -> dict[str, _Member]:
    with zipfile.ZipFile(archive) as opened:
        return {
            info.filename: _Member(archive, info.filename, info.file_size, position)
            for position, info in enumerate(opened.infolist())
            if not info.is_dir()
        }


def _of_tar(archive: Path) -> dict[str, _Member]:
    members: dict[str, _Member] = {}
    with _open_tar(archive) as tar:
        plain = _is_plain(tar)
        for position, entry in enumerate(tar):
            name = entry.name.removeprefix("./")
            if entry.isfile():
                offset = entry.offset_data if plain and not entry.issparse() else None
                members[name] = _Member(archive, name, entry.size, position, offset)
            elif entry.islnk() and (target := members.get(entry.linkname.removeprefix("./"))) is not None:
                members[name] = target
        if not plain and tar.fileobj is not None:
            # To the end of the stream, where its check sum is.
            while tar.fileobj.read(1 << 20):
                pass
    return members
