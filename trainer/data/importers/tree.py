"""The files of a source, wherever they are: a folder, a zip or tar archive, or a folder with archives in it."""

from __future__ import annotations

import fnmatch
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import IO

ZIP_SUFFIXES = (".zip",)
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


class ImportRefused(ValueError):
    """A source that cannot be imported: the rule, the value, the way out."""


class Tree:
    """Files by their names, with `/` between folders and without the archive they are in.

    Names are relative to the source's folder; members of archives are named as if they were unpacked beside it. The
    names of compressed tars are read in one pass, and their files in another.

    Args:
        path: a folder (its subfolders included) or an archive.

    Raises:
        ImportRefused: if there is no such path, an archive is damaged, or a member's path climbs out of it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._files: dict[str, Path] = {}
        self._members: dict[str, Path] = {}
        if not path.exists():
            raise ImportRefused(f"{path}: there is no such file or folder.")
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if not file.is_file():
                continue
            if file.name.endswith(ZIP_SUFFIXES + TAR_SUFFIXES):
                self._members |= dict.fromkeys(_member_names(file), file)
            else:
                self._files[file.relative_to(path).as_posix() if path.is_dir() else file.name] = file
        self.names = sorted(self._files.keys() | self._members.keys())

    def find(self, pattern: str) -> list[str]:
        """The names that a shell pattern fits, as a whole or behind a `/`, sorted: `*/images/*.jpg`."""
        return [name for name in self.names if fnmatch.fnmatch(f"/{name}", f"*/{pattern.removeprefix('*/')}")]

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
            ImportRefused: if a name is not there, or an archive is damaged.
        """
        if missing := [name for name in names if name not in self._files and name not in self._members]:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            raise ImportRefused(f"{self.path} lacks {', '.join(missing[:3])}{more}, which its lists name.")
        with tempfile.TemporaryFile() as spool:
            places = self._spool(names, spool)
            zips: dict[Path, zipfile.ZipFile] = {}
            try:
                for name in names:
                    if name in self._files:
                        yield self._files[name].read_bytes()
                    elif name in places:
                        offset, size = places[name]
                        spool.seek(offset)
                        yield spool.read(size)
                    else:
                        archive = self._members[name]
                        opened = zips.setdefault(archive, zipfile.ZipFile(archive))
                        try:
                            yield opened.read(name)
                        except (zipfile.BadZipFile, EOFError, OSError) as error:
                            raise ImportRefused(
                                f"{archive} is damaged at {name}: {error}. Download it again."
                            ) from error
            finally:
                for opened in zips.values():
                    opened.close()

    def local(self, name: str, folder: Path) -> Path:
        """A file on disk with the bytes of `name`, for libraries that need one; unpacked to `folder` if it must be."""
        if name in self._files:
            return self._files[name]
        target = folder / PurePosixPath(name).name
        target.write_bytes(self.read(name))
        return target

    def _spool(self, names: Sequence[str], spool: IO[bytes]) -> dict[str, tuple[int, int]]:
        """Copy what tars hold of the names into one file, each tar in one pass; where each name then is."""
        places: dict[str, tuple[int, int]] = {}
        for archive in {self._members[name] for name in names if name in self._members}:
            if not archive.name.endswith(TAR_SUFFIXES):
                continue
            wanted = {name for name in names if self._members.get(name) == archive}
            try:
                with tarfile.open(archive, "r|*") as tar:
                    for member in tar:
                        name = _plain(member.name)
                        if name in wanted and (file := tar.extractfile(member)) is not None:
                            places[name] = spool.tell(), member.size
                            spool.write(file.read())
            except (tarfile.TarError, EOFError, OSError) as error:
                raise ImportRefused(f"{archive} is damaged: {error}. Download it again.") from error
        return places


def _plain(name: str) -> str:
    return name.removeprefix("./")


def _member_names(archive: Path) -> list[str]:
    """The names of an archive's files; a path that climbs out is refused."""
    try:
        if archive.name.endswith(ZIP_SUFFIXES):
            with zipfile.ZipFile(archive) as opened:
                names = [info.filename for info in opened.infolist() if not info.is_dir()]
        else:
            with tarfile.open(archive, "r|*") as tar:
                names = [_plain(member.name) for member in tar if member.isfile()]
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError) as error:
        raise ImportRefused(f"{archive} is damaged: {error}. Download it again.") from error
    for name in names:
        if name.startswith("/") or ".." in PurePosixPath(name).parts:
            raise ImportRefused(f"{archive} has a member {name!r}, which climbs out of the archive; it is not opened.")
    return names
