"""The files of a source, in any form: a folder, a zip or tar archive, or a folder with archives in it."""

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

from trainer.data.importers.names import first_names, is_system_name, not_text, printable, system_part
from trainer.names import no_such_path

ZIP_SUFFIXES = (".zip",)
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
MAGIC = {b"\x1f\x8b": "r:gz", b"BZh": "r:bz2", b"\xfd7zXZ\x00": "r:xz"}
"""tarfile's mode for a compressed tar, by the first bytes of the file."""
# zipfile raises RuntimeError for a password, and NotImplementedError (one of its kind) for a compression that it lacks.
UNREADABLE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError)
"""Errors that mean an archive is damaged or cannot be read."""


class ImportRefused(ValueError):
    """A source that cannot be imported. The message gives the rule, the value and the way out."""


@dataclass(frozen=True, slots=True)
class _Member:
    """A file in an archive."""

    archive: Path
    name: str
    size: int
    position: int
    """Index among the members of the archive."""
    offset: int | None = None
    """First byte of the file in a plain tar. None in a zip or a compressed tar, which cannot be read from there."""


class SourceFiles:
    """The files of a source by name, whether they lie in a folder or in an archive.

    Names are relative to the source's folder, with `/` between folders. Members of an archive are named as if they were
    unpacked beside it. A file that lies there unpacked comes before a member of the same name. Hidden files, and those
    that systems add (`names.SYSTEM_NAMES`), are left out.

    A compressed tar is read in one pass for its names, and in one more pass at each request for files: request many at
    once.

    Args:
        path: a folder (its subfolders included, linked ones too) or an archive.

    Raises:
        ImportRefused: if there is no such path, an archive is damaged, or a member's path climbs out of its archive.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._files: set[str] = set()
        self._members: dict[str, _Member] = {}
        # The other archive that holds a name. Refused when the name is requested, because many archives share a README.
        self._duplicates: dict[str, Path] = {}

        self.archives: list[str] = []
        """The names of the archives."""
        self.folders: set[str] = set()
        """The folders, also empty ones."""
        self.unreadable: dict[str, str] = {}
        """Why a file cannot be read, by its name: a link to nothing, or no permission. It is not in `names`."""
        self.system_names: list[str] = []
        """Hidden files and folders, and those that systems add. They and what is in them are not in `names`."""

        if not path.exists():
            raise ImportRefused(f"{printable(str(path))}: {no_such_path(path)}")
        self._folder = path if path.is_dir() else path.parent
        system_names: set[str] = set()

        for file_name in self._walk() if path.is_dir() else [path.name]:
            if system_part(file_name) is not None and path.is_dir():
                system_names.add(file_name)
                continue
            if not file_name.lower().endswith(ZIP_SUFFIXES + TAR_SUFFIXES):
                self._files.add(file_name)
                continue
            self.archives.append(file_name)
            for member_name, member in _list_members(self._folder / file_name).items():
                name = posixpath.join(posixpath.dirname(file_name), member_name)
                system_name = system_part(name)
                if system_name is not None:
                    system_names.add(system_name)
                    continue
                if member_name.endswith("/"):
                    self.folders.add(name.rstrip("/"))
                    continue
                if name in self._members:
                    self._duplicates[name] = self._members[name].archive
                self._members[name] = member

        self.names = sorted(self._files | self._members.keys())
        self.system_names = sorted(system_names)
        for name in (*self.names, *self.unreadable):
            self.folders.update(str(parent) for parent in PurePosixPath(name).parents if parent.name)

        wrong = not_text([str(path), *self.names, *self.unreadable, *sorted(self.folders)])
        if wrong:
            raise ImportRefused(
                f"names must be UTF-8; {len(wrong):,} are not: {first_names(wrong)}. Rename them, "
                "for example by convmv, which renames many at once."
            )

    def find(self, pattern: str) -> list[str]:
        """Return the names that match a shell pattern such as `images/*.jpg`.

        The pattern matches a whole name, or its end behind a `/`. A `*` matches a `/` too.
        """
        matches = re.compile(fnmatch.translate(f"*/{pattern.removeprefix('*/')}")).match
        return [name for name in self.names if matches(f"/{name}")]

    def one(self, pattern: str) -> str:
        """Return the only name that matches a pattern.

        Raises:
            ImportRefused: if none or several match.
        """
        matches = self.find(pattern)
        if len(matches) != 1:
            count = f"there are {len(matches)}: {', '.join(matches[:3])}" if matches else "there is none"
            raise ImportRefused(f"{self.path} must hold one file {pattern}; {count}.")
        return matches[0]

    def read(self, name: str) -> bytes:
        """Return the bytes of one file.

        Raises:
            ImportRefused: if the name is missing or in two archives, or its archive is damaged.
        """
        return next(self.read_all([name]))

    def read_all(self, names: Sequence[str]) -> Iterator[bytes]:
        """Yield the bytes of many files, in the order of `names`, with one file in memory at a time.

        Raises:
            ImportRefused: if a name is missing or in two archives, or an archive is damaged.
        """
        self._check(names)

        # Each archive is opened once and stays open until the last file.
        with ExitStack() as stack:
            spool = stack.enter_context(tempfile.TemporaryFile())
            spooled = self._spool(names, spool)
            zips: dict[Path, zipfile.ZipFile] = {}
            tars: dict[Path, IO[bytes]] = {}

            for name in names:
                if name in self._files:
                    yield (self._folder / name).read_bytes()
                    continue

                if name in spooled:
                    offset, size = spooled[name]
                    spool.seek(offset)
                    yield spool.read(size)
                    continue

                member = self._members[name]
                archive = member.archive
                with _refuse_damaged(archive):
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
                # Outside the block above, which would blame the archive for an error of the caller.
                yield data

    def local(self, name: str, folder: Path) -> Path:
        """Return a file on disk with the bytes of `name`, for libraries that need one.

        A member of an archive is unpacked into `folder`.

        Raises:
            ImportRefused: if the name is missing or in two archives, or its archive is damaged.
        """
        self._check([name])
        if name in self._files:
            return self._folder / name

        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        member = self._members[name]
        with _refuse_damaged(member.archive), _open_member(member) as file, target.open("wb") as unpacked:
            shutil.copyfileobj(file, unpacked)
        return target

    def _walk(self, above: str = "") -> Iterator[str]:
        """Yield the names of all files below a folder, and of folders that systems add. Keep folders and broken links.

        A link to one of the folders that contain it is not followed.
        """
        current = self._folder / above
        try:
            with os.scandir(current) as scanned:
                entries = list(scanned)
        except OSError as error:
            raise ImportRefused(f"{printable(str(current))} cannot be read: {error.strerror}.") from error

        for entry in entries:
            name = above + entry.name
            if is_system_name(entry.name):
                # Not looked into: some of them may be read by the system alone.
                yield name
            elif Path(entry).is_dir():
                is_circle = entry.is_symlink() and current.resolve().is_relative_to(Path(entry).resolve())
                if not is_circle:
                    self.folders.add(name)
                    yield from self._walk(f"{name}/")
            elif not Path(entry).is_file():
                self.unreadable[name] = "a link to nothing" if entry.is_symlink() else "not a file"
            elif not os.access(entry, os.R_OK):
                self.unreadable[name] = "no permission to read it"
            else:
                yield name

    def _check(self, names: Sequence[str]) -> None:
        """Raise ImportRefused if a name is missing or in two archives."""
        missing = [name for name in names if name not in self._files and name not in self._members]
        if missing:
            raise ImportRefused(
                f"{self.path} lacks {first_names(missing)}. Add what is missing, or download the source again."
            )

        # An unpacked file comes before any archive, so there is nothing to choose.
        duplicates = [name for name in names if name in self._duplicates and name not in self._files]
        if duplicates:
            name = duplicates[0]
            archives = f"{self._duplicates[name]} and in {self._members[name].archive}"
            raise ImportRefused(
                f"{name} is in {archives}. Unpack each archive in a folder of its own, or remove one of them."
            )

    def _spool(self, names: Sequence[str], spool: IO[bytes]) -> dict[str, tuple[int, int]]:
        """Copy the files of compressed tars to one temporary file, each tar in one pass.

        Return offset and size in that file, by name.
        """
        # Hard links give several names to one position.
        wanted: dict[Path, dict[int, list[str]]] = {}
        for name in dict.fromkeys(names):
            member = self._members.get(name)
            if name not in self._files and member is not None and not _is_zip(member.archive) and member.offset is None:
                wanted.setdefault(member.archive, {}).setdefault(member.position, []).append(name)

        spooled: dict[str, tuple[int, int]] = {}
        for archive, names_at in wanted.items():
            with _refuse_damaged(archive), _open_tar(archive) as tar:
                for position, entry in zip(range(max(names_at) + 1), tar, strict=False):
                    if position in names_at:
                        spooled |= dict.fromkeys(names_at[position], (spool.tell(), entry.size))
                        file = tar.extractfile(entry)
                        assert file is not None, f"{entry.name} was a file when the tar was listed"
                        shutil.copyfileobj(file, spool)
        return spooled


def _is_zip(archive: Path) -> bool:
    return archive.name.lower().endswith(ZIP_SUFFIXES)


class _Header(tarfile.TarInfo):
    """A tar header that raises an error where it is damaged or cut.

    tarfile itself takes such a header for the end of the tar, so the members behind it would be lost without a word.
    """

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.HeaderError as error:
            # typeshed lacks both of these errors.
            is_marked = isinstance(error, tarfile.EOFHeaderError)  # type: ignore[attr-defined]
            is_cut = isinstance(error, tarfile.EmptyHeaderError)  # type: ignore[attr-defined]
            # Some writers leave out the end marker. In a compressed tar that is safe: the stream has an end of its own.
            if is_marked or (is_cut and not _is_plain(tarfile_)):
                raise
            raise tarfile.ReadError(f"{error} before its end marker") from error


def _is_plain(tar: tarfile.TarFile) -> bool:
    """Return whether a tar is not compressed."""
    return isinstance(tar.fileobj, io.BufferedReader)


def _open_tar(archive: Path) -> tarfile.TarFile:
    with archive.open("rb") as file:
        start = file.read(6)

    # The first bytes decide, because some published tars have the suffix of another compression.
    mode = next((mode for magic, mode in MAGIC.items() if start.startswith(magic)), "r:")
    return tarfile.open(archive, mode, tarinfo=_Header)  # type: ignore[call-overload,no-any-return]


@contextmanager
def _open_member(member: _Member) -> Iterator[IO[bytes]]:
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
def _refuse_damaged(archive: Path) -> Iterator[None]:
    """Raise ImportRefused instead of the errors by which libraries say that an archive is damaged or unreadable."""
    try:
        yield
    except UNREADABLE as error:
        # An error number is the system's: no permission, or a full disk while unpacking.
        if isinstance(error, OSError) and error.errno is not None:
            raise ImportRefused(f"{archive} cannot be read or unpacked: {error}.") from error
        raise ImportRefused(f"{archive} is damaged: {error}. Download it again.") from error


def _list_members(archive: Path) -> dict[str, _Member]:
    """Return the files of an archive by name, and its folders, whose names end in `/`.

    Raises:
        ImportRefused: if the archive is damaged, or a member's path climbs out of it.
    """
    with _refuse_damaged(archive):
        members = _list_zip(archive) if _is_zip(archive) else _list_tar(archive)

    for name in members:
        if name.startswith("/") or ".." in PurePosixPath(name).parts:
            raise ImportRefused(f"{archive} has a member {name!r}, which climbs out of the archive; it is not opened.")
    return members


def _list_zip(archive: Path) -> dict[str, _Member]:
    with zipfile.ZipFile(archive) as opened:
        return {
            info.filename: _Member(archive, info.filename, info.file_size, position)
            for position, info in enumerate(opened.infolist())
        }


def _list_tar(archive: Path) -> dict[str, _Member]:
    members: dict[str, _Member] = {}
    with _open_tar(archive) as tar:
        is_plain = _is_plain(tar)
        for position, entry in enumerate(tar):
            name = entry.name.removeprefix("./")
            if entry.isdir():
                members[f"{name.rstrip('/')}/"] = _Member(archive, name, 0, position)
            elif entry.isfile():
                # The bytes of a sparse file are not contiguous in the tar.
                offset = entry.offset_data if is_plain and not entry.issparse() else None
                members[name] = _Member(archive, name, entry.size, position, offset)
            elif entry.islnk():
                # A hard link stands for the file of an earlier member.
                target = members.get(entry.linkname.removeprefix("./"))
                if target is not None:
                    members[name] = target

        # Read to the end of the stream, where its checksum is.
        if not is_plain and tar.fileobj is not None:
            while tar.fileobj.read(1 << 20):
                pass
    return members
