"""Files written behind a run: in order, whole, and nothing is lost without a word."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from trainer.storage.background_writer import BackgroundWriter


def block(folder: Path, name: str) -> Path:
    """A place where no file can be, because a folder with something in it is there."""
    (folder / name / "in the way").mkdir(parents=True)
    return folder / name


def test_behind_the_with_everything_is_written_and_the_last_state_of_a_file_stays(tmp_path: Path) -> None:
    with BackgroundWriter() as writer:
        for i in range(200):
            writer.write(tmp_path / "state", bytes([i]) * 100_000)
            writer.write(tmp_path / f"{i}", b"small")
    assert (tmp_path / "state").read_bytes() == bytes([199]) * 100_000
    assert {file.name for file in tmp_path.iterdir()} == {"state", *map(str, range(200))}, "and no part of one"


def test_after_waiting_what_was_given_is_there(tmp_path: Path) -> None:
    with BackgroundWriter() as writer:
        for i in range(20):
            writer.write(tmp_path / "state", str(i).encode())
            writer.wait()
            assert (tmp_path / "state").read_text() == str(i)
        writer.wait()


def test_a_file_that_cannot_be_written_is_told_with_the_next_one_which_is_not_tried(tmp_path: Path) -> None:
    with BackgroundWriter() as writer:
        writer.write(block(tmp_path, "first"), b"first")
        with pytest.raises(OSError, match="first"):
            writer.write(tmp_path / "second", b"second")
        assert not (tmp_path / "second").exists()
        writer.write(tmp_path / "third", b"third")  # the error was told: its owner has decided to go on
    assert (tmp_path / "third").read_bytes() == b"third"


def test_a_last_file_that_cannot_be_written_is_told_at_the_end(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="last"), BackgroundWriter() as writer:
        writer.write(block(tmp_path, "last"), b"last")


def test_a_late_error_does_not_hide_the_one_before_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        with BackgroundWriter() as writer:
            writer.write(block(tmp_path, "last"), b"last")
            raise KeyError("before")

    with caplog.at_level(logging.WARNING), pytest.raises(KeyError, match="before"):
        fail()
    assert "not written, at the end:" in caplog.text and "last" in caplog.text
