"""An address means the same in every working directory, whatever the name of the folder is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from trainer.storage.addresses import absolute_address
from trainer.storage.files import list_folders, open_filesystem, read_bytes, write_bytes

AWKWARD = (
    "what?x=1", "a#b", "100%", "%41", "with space", "num_tokens=50", "a@b:c", "a+b&c;d", "it's", "[0-9]*", "{x}",
    "größe", "図", "~", "-x", "a\\b", '"', "$HOME", ":memory:", "file:x", "a,b|c<d>",
)  # fmt: skip
"""Names of folders that some parser reads as something else."""


@pytest.mark.parametrize("name", AWKWARD)
def test_a_file_in_a_folder_of_any_name_is_read_from_where_it_was_written(name: str, tmp_path: Path) -> None:
    folder = absolute_address(str(tmp_path / name))
    assert folder == str(tmp_path / name), "an absolute path is left as it is"
    write_bytes(f"{folder}/below/file", b"here")
    assert (tmp_path / name / "below/file").read_bytes() == b"here"
    assert read_bytes(f"{folder}/below/file") == b"here"
    assert list_folders(folder) == ["below"]
    assert absolute_address((tmp_path / name).as_uri()) == folder, "its URI names the same folder"


@pytest.mark.parametrize("name", [name for name in AWKWARD if name not in ("~", "file:x")])
def test_a_relative_path_becomes_absolute(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for text in (name, f"{name}/", f"./{name}"):
        assert absolute_address(text) == str(tmp_path / name)


def test_a_tilde_is_the_folder_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert (absolute_address("~"), absolute_address("~/x")) == (str(tmp_path), str(tmp_path / "x"))
    with pytest.raises(ValueError, match=r"^~nobody_of_this_name/x: there is no user of this name; write"):
        absolute_address("~nobody_of_this_name/x")


def test_a_file_uri_is_a_path_and_an_address_of_a_bucket_stays() -> None:
    for uri in ("file:///a%20b/", "file://localhost/a%20b", "file:/a%20b"):
        assert absolute_address(uri) == "/a b"
    for uri in ("s3://bucket/folder?region=eu-west-1", "s3://key@bucket/~", "gs://bucket/a b"):
        assert absolute_address(uri) == uri


@pytest.mark.parametrize("name", [os.fsdecode(b"caf\xe9"), "a\0b"])
def test_a_name_that_cannot_be_stored_is_refused_in_words_that_can_be_printed(name: str) -> None:
    with pytest.raises(ValueError, match="the name of a folder must be valid UTF-8; rename it") as refused:
        absolute_address(name)
    assert str(refused.value).isascii()


def test_a_path_never_looks_like_a_uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = absolute_address("./s3://bucket")
    assert path == str(tmp_path / "s3:/bucket")
    assert open_filesystem(path)[0].type_name == "local"
