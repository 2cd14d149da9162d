"""The files of a source are the same in every form; damaged archives, missing files and climbing paths are refused."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.trainer.data.importers.made_sources import FORMS, Files, lay, pack_tar, pack_zip
from trainer.data.importers.archive import ImportRefused, SourceFiles

FILES = {
    "top/lists/names.txt": b"b.jpg 1\na.jpg 0\n",
    "top/images/b.jpg": b"\xff\xd8" + bytes(range(256)) * 7,
    "top/images/a.jpg": b"a",
    "top/images/deep/er/c d.jpg": b"c" * 513,
    "top/empty.txt": b"",
    "top/images/exact.jpg": b"e" * 1024,
}
ORDERS = [list(FILES), list(reversed(FILES)), ["top/images/b.jpg", "top/images/a.jpg", "top/images/b.jpg"]]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("names", ORDERS, ids=["as packed", "backwards", "one twice"])
def test_every_form_has_the_same_names_and_bytes_in_the_requested_order(
    form: str, names: list[str], tmp_path: Path
) -> None:
    tree = SourceFiles(FORMS[form](tmp_path / form, FILES))
    assert tree.names == sorted(FILES)
    assert list(tree.read_all(names)) == [FILES[name] for name in names]
    assert [tree.read(name) for name in names] == [FILES[name] for name in names]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_a_file_on_disk(form: str, tmp_path: Path) -> None:
    tree = SourceFiles(FORMS[form](tmp_path / form, FILES))
    for name, data in FILES.items():
        assert tree.local(name, tmp_path / "unpacked").read_bytes() == data
    with pytest.raises(ImportRefused, match=r"lacks none\.txt"):
        tree.local("none.txt", tmp_path)


@pytest.mark.parametrize("form", FORMS)
def test_missing_names_are_refused_together_with_their_count(form: str, tmp_path: Path) -> None:
    tree = SourceFiles(FORMS[form](tmp_path / form, FILES))
    requested = ["1.jpg", "top/images/a.jpg", "2.jpg", "3.jpg", "4.jpg", "5.jpg"]
    with pytest.raises(ImportRefused) as refused:
        next(tree.read_all(requested))
    assert f"{tmp_path / form} lacks 1.jpg, 2.jpg, 3.jpg and 2 more." in str(refused.value)


def test_archives_in_a_folder_are_named_as_if_unpacked_beside_it(tmp_path: Path) -> None:
    lay(tmp_path, {"list.txt": "plain"})
    pack_zip(tmp_path / "train" / "one.zip", {"images/1.jpg": b"1", "images/2.jpg": b"2"})
    pack_tar(tmp_path / "test" / "two.tar.gz", {"./images/1.jpg": b"other 1"})
    pack_tar(tmp_path / "three.tar", {"images/3.jpg": b"3"})
    tree = SourceFiles(tmp_path)

    assert tree.names == [
        "images/3.jpg",
        "list.txt",
        "test/images/1.jpg",
        "train/images/1.jpg",
        "train/images/2.jpg",
    ]

    # One request may go back and forth between the forms.
    names = ["train/images/2.jpg", "test/images/1.jpg", "list.txt", "images/3.jpg", "train/images/1.jpg"]
    assert list(tree.read_all(names)) == [b"2", b"other 1", b"plain", b"3", b"1"]


def test_an_unpacked_file_comes_before_the_same_name_in_an_archive(tmp_path: Path) -> None:
    for archive in (pack_zip(tmp_path / "a.zip", {"x.txt": b"packed"}), pack_tar(tmp_path / "b.tgz", {"x.txt": b"?"})):
        assert archive.exists()
    lay(tmp_path, {"x.txt": "unpacked"})
    assert SourceFiles(tmp_path).names == ["x.txt"] and SourceFiles(tmp_path).read("x.txt") == b"unpacked"


def test_a_name_in_two_archives_is_refused_only_when_it_is_requested(tmp_path: Path) -> None:
    pack_zip(tmp_path / "train.zip", {"images/1.jpg": b"train", "README": b"r"})
    pack_tar(tmp_path / "test.tar", {"images/1.jpg": b"test", "images/2.jpg": b"2"})
    tree = SourceFiles(tmp_path)

    assert tree.read("images/2.jpg") == b"2"
    with pytest.raises(ImportRefused, match=r"images/1.jpg is in .*(train|test).* and in .*(train|test)"):
        tree.read("images/1.jpg")


def test_of_two_members_of_one_name_the_later_is_read_as_when_unpacked(tmp_path: Path) -> None:
    for name in ("x.tar", "x.tar.gz"):
        with tarfile.open(tmp_path / name, "w:gz" if name.endswith("gz") else "w") as tar:
            for data in (b"first", b"second"):
                member = tarfile.TarInfo("a.txt")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
        assert SourceFiles(tmp_path / name).read("a.txt") == b"second"


@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz"])
def test_a_hard_link_in_a_tar_is_a_file_and_a_folder_is_not(name: str, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / name, "w:gz" if name.endswith("gz") else "w") as tar:
        folder = tarfile.TarInfo("d")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        member = tarfile.TarInfo("d/a.txt")
        member.size = 4
        tar.addfile(member, io.BytesIO(b"data"))
        link = tarfile.TarInfo("d/b.txt")
        link.type = tarfile.LNKTYPE
        link.linkname = "d/a.txt"
        tar.addfile(link)

    tree = SourceFiles(tmp_path / name)

    assert tree.names == ["d/a.txt", "d/b.txt"]
    assert list(tree.read_all(["d/b.txt", "d/a.txt"])) == [b"data", b"data"]


@pytest.mark.parametrize("climbing", ["../out.jpg", "images/../../out.jpg", "/tmp/out.jpg"])
@pytest.mark.parametrize("form", ["x.zip", "x.tar", "x.tar.gz"])
def test_a_member_that_climbs_out_of_its_archive_is_refused(form: str, climbing: str, tmp_path: Path) -> None:
    archive = FORMS[form](tmp_path / form, {"images/a.jpg": b"a", climbing: b"out"})
    for path in (archive, tmp_path):
        with pytest.raises(ImportRefused) as refused:
            SourceFiles(path)
        assert repr(climbing) in str(refused.value) and "climbs out" in str(refused.value)


BIG: Files = {f"images/{i}.bin": os.urandom(3000) for i in range(20)}


@pytest.mark.parametrize("form", [form for form in FORMS if form != "folder"])
# An image of 3,000 bytes takes 3,584 in a tar, so the cuts fall in an image, in a header, and between two members.
@pytest.mark.parametrize("cut", [0.5, 3584 * 10 + 100, 3584 * 10], ids=["middle", "in a header", "between members"])
def test_a_truncated_archive_is_refused_as_a_whole(form: str, cut: float, tmp_path: Path) -> None:
    archive = FORMS[form](tmp_path / form, BIG)
    data = archive.read_bytes()
    archive.write_bytes(data[: int(cut if cut > 1 else len(data) * cut)])
    with pytest.raises(ImportRefused, match=r"is damaged: .* Download it again"):
        SourceFiles(archive)


def test_a_compressed_tar_without_an_end_marker_is_read(tmp_path: Path) -> None:
    data = pack_tar(tmp_path / "x.tar", {"a.txt": b"a" * 512, "b.txt": b"b"}).read_bytes()
    (tmp_path / "x.tar").unlink()
    # Two headers, and two members of one block each.
    (tmp_path / "x.tgz").write_bytes(gzip.compress(data[: 4 * 512]))
    tree = SourceFiles(tmp_path / "x.tgz")

    assert list(tree.read_all(tree.names)) == [b"a" * 512, b"b"]


@pytest.mark.parametrize("form", ["x.tar.gz", "x.tar.bz2", "x.tar.xz", "x.zip"])
def test_a_flipped_byte_in_a_compressed_archive_is_refused_before_its_images_are_used(
    form: str, tmp_path: Path
) -> None:
    archive = FORMS[form](tmp_path / form, BIG)
    data = bytearray(archive.read_bytes())
    data[len(data) // 3] ^= 0xFF
    archive.write_bytes(data)

    with pytest.raises(ImportRefused, match=r"is damaged: .* Download it again"):
        list(SourceFiles(archive).read_all(sorted(BIG)))


@pytest.mark.parametrize("form", ["x.zip", "x.tar", "x.tar.gz"])
@pytest.mark.parametrize("content", [b"", b"<html>404 not found</html>" * 40], ids=["empty", "a web page"])
def test_a_file_that_is_no_archive_is_refused(form: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / form).write_bytes(content)
    with pytest.raises(ImportRefused, match="is damaged"):
        SourceFiles(tmp_path)


def test_an_archive_with_a_password_is_refused(tmp_path: Path) -> None:
    archive = pack_zip(tmp_path / "x.zip", {"a.jpg": b"a" * 50})
    data = bytearray(archive.read_bytes())
    # Set the flag of an encrypted member, in its own header and in the archive's directory.
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    archive.write_bytes(data)

    with pytest.raises(ImportRefused, match="encrypted, password required"):
        SourceFiles(archive).read("a.jpg")


def test_an_archive_shortened_after_it_was_listed_is_refused(tmp_path: Path) -> None:
    archive = pack_tar(tmp_path / "x.tar", BIG)
    tree = SourceFiles(archive)
    archive.write_bytes(archive.read_bytes()[:5000])

    assert tree.read("images/0.bin") == BIG["images/0.bin"]
    with pytest.raises(ImportRefused, match="is damaged"):
        tree.read("images/7.bin")


def test_a_linked_folder_is_followed_unless_it_contains_the_link(tmp_path: Path) -> None:
    elsewhere = lay(tmp_path / "elsewhere", {"cat/1.jpg": b"1"})
    source = lay(tmp_path / "source", {"test/cat/2.jpg": b"2"})
    (source / "train").symlink_to(elsewhere)
    (source / "upwards").symlink_to(source)
    (elsewhere / "broken.jpg").symlink_to(tmp_path / "nothing")
    tree = SourceFiles(source)

    assert tree.names == ["test/cat/2.jpg", "train/cat/1.jpg"]
    assert tree.read("train/cat/1.jpg") == b"1"


def test_a_missing_path_is_refused_and_a_single_file_is_a_source(tmp_path: Path) -> None:
    with pytest.raises(ImportRefused, match="there is no such file or folder"):
        SourceFiles(tmp_path / "nothing")
    lay(tmp_path, {"train.parquet": b"p"})
    assert SourceFiles(tmp_path / "train.parquet").names == ["train.parquet"]
    assert SourceFiles(tmp_path / "train.parquet").read("train.parquet") == b"p"


def test_files_that_macos_adds_are_left_out(tmp_path: Path) -> None:
    pack_zip(tmp_path / "x.zip", {"a/1.jpg": b"1", "__MACOSX/a/._1.jpg": b"?", "a/._1.jpg": b"?"})
    assert SourceFiles(tmp_path).names == ["a/1.jpg"]


@pytest.mark.parametrize(
    ("pattern", "matches"),
    [
        ("names.txt", ["top/lists/names.txt"]),
        (
            "images/*.jpg",
            ["top/images/a.jpg", "top/images/b.jpg", "top/images/deep/er/c d.jpg", "top/images/exact.jpg"],
        ),
        ("*/images/[ab].jpg", ["top/images/a.jpg", "top/images/b.jpg"]),
        ("ames.txt", []),
        ("top/empty.txt", ["top/empty.txt"]),
    ],
)
def test_a_pattern_matches_a_whole_name_or_its_end_behind_a_slash(
    pattern: str, matches: list[str], tmp_path: Path
) -> None:
    tree = SourceFiles(lay(tmp_path / "x", FILES))
    assert tree.find(pattern) == matches

    if len(matches) == 1:
        assert tree.one(pattern) == matches[0]
    else:
        with pytest.raises(ImportRefused, match=r"must hold one file .*; there (is none|are \d)"):
            tree.one(pattern)


def test_a_zip_is_opened_once_for_many_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = SourceFiles(pack_zip(tmp_path / "x.zip", BIG))
    opened: list[Path] = []

    class Counting(zipfile.ZipFile):
        def __init__(self, file: Path) -> None:
            opened.append(file)
            super().__init__(file)

    monkeypatch.setattr(zipfile, "ZipFile", Counting)

    assert len(list(tree.read_all(sorted(BIG)))) == len(BIG)
    assert opened == [tmp_path / "x.zip"]
