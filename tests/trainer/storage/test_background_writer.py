"""Files written in the background: in order, complete, and no error is lost."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from trainer.storage.background_writer import BackgroundWriter


def block(folder: Path, name: str) -> Path:
    """Return a path where no file can be written, because a folder that is not empty has its name."""
    (folder / name / "in the way").mkdir(parents=True)
    return folder / name


def test_the_end_of_the_with_block_waits_for_all_files_and_the_last_state_wins(tmp_path: Path) -> None:
    with BackgroundWriter() as writer:
        for i in range(200):
            writer.write(tmp_path / "state", bytes([i]) * 100_000)
            writer.write(tmp_path / f"{i}", b"small")
    assert (tmp_path / "state").read_bytes() == bytes([199]) * 100_000
    assert {file.name for file in tmp_path.iterdir()} == {"state", *map(str, range(200))}, "no partial file is left"


def test_after_wait_the_file_is_written(tmp_path: Path) -> None:
    with BackgroundWriter() as writer:
        for i in range(20):
            writer.write(tmp_path / "state", str(i).encode())
            writer.wait()
            assert (tmp_path / "state").read_text() == str(i)
        writer.wait()


def test_a_failed_write_is_raised_by_the_next_one_which_does_not_start(tmp_path: Path) -> None:
    with BackgroundWriter() as writer:
        writer.write(block(tmp_path, "first"), b"first")
        with pytest.raises(OSError, match="first"):
            writer.write(tmp_path / "second", b"second")
        assert not (tmp_path / "second").exists()
        # The error was raised once; the caller may continue.
        writer.write(tmp_path / "third", b"third")
    assert (tmp_path / "third").read_bytes() == b"third"


def test_a_failed_last_write_is_raised_at_the_end(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="last"), BackgroundWriter() as writer:
        writer.write(block(tmp_path, "last"), b"last")


def test_a_failed_last_write_does_not_hide_an_earlier_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        with BackgroundWriter() as writer:
            writer.write(block(tmp_path, "last"), b"last")
            raise KeyError("before")

    with caplog.at_level(logging.WARNING), pytest.raises(KeyError, match="before"):
        fail()
    assert "the last file was not written:" in caplog.text and "last" in caplog.text
