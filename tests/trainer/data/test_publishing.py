"""Imports that are killed, that run at once, and that happen while a task is read: never a mixture, nothing left."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyarrow import fs

from trainer.data import publishing
from trainer.data.publishing import left_over, remove_dead_parts
from trainer.data.split import load_split
from trainer.data.task_store import (
    SPLITS,
    Card,
    Example,
    TaskChanged,
    count_examples,
    read_card,
    read_column,
    read_examples,
    write_task,
)
from trainer.data.verify import verify
from trainer.storage.files import file_sizes, open_filesystem

TASK = "own/x"
WHOLE = ["card.json", "test.parquet", "train.parquet", "val.parquet"]
KILLED = """
import sys
from trainer.data.task_store import Example, write_task
def examples(split):
    yield Example(key=split, label=0, image=b"x" * 1000)
    if split == sys.argv[2]:
        print("writing", flush=True)
        sys.stdin.read()
splits = {split: examples(split) for split in ("train", "val", "test")}
write_task(sys.argv[1], "own/x", splits, source="killed", class_names=["a"], protocol="drawn")
"""
"""A process that imports a task, and waits in the middle of a split."""


def examples(kind: str, count: int = 5) -> dict[str, Iterator[Example]]:
    def of_split(split: str) -> Iterator[Example]:
        for i in range(count):
            yield Example(key=f"{split}{i}", label=0, image=f"{kind} {split} {i}".encode())

    return {split: of_split(split) for split in SPLITS}


def write(root: str, kind: str, splits: dict[str, Iterator[Example]] | None = None) -> Card:
    return write_task(root, TASK, splits or examples(kind), source=kind, class_names=["a"], protocol="drawn")


def kinds_in(root: str) -> set[str]:
    """The imports that the store's images and card are of."""
    card = read_card(root, TASK)
    assert card is not None
    images = {e.image.decode().split()[0] for split in SPLITS for e in read_examples(root, TASK, split, card=card)}
    return images | {card.source}


def files_in(root: str) -> list[str]:
    return sorted(name.rpartition("/")[2] for name in file_sizes(root))


@pytest.mark.parametrize("split", ["train", "test"])
def test_what_a_killed_import_left_is_named_and_deleted_by_the_next(split: str, tmp_path: Path) -> None:
    root = str(tmp_path)
    write(root, "first")
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, root, split], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        assert process.stdout.readline() == "writing\n"
        # While it lives, its files are nobody else's to delete.
        assert left_over(root, TASK) == []
        write(root, "second")
        assert len(files_in(root)) > len(WHOLE)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdin.close()
        process.stdout.close()

    assert kinds_in(root) == {"second"}
    (note,) = left_over(root, TASK)
    assert note.startswith("an import that did not end left ") and note.endswith(
        "the next import of own/x deletes them"
    )

    write(root, "third")
    assert (files_in(root), kinds_in(root), left_over(root, TASK)) == (WHOLE, {"third"}, [])
    assert sorted(path.name for path in (tmp_path / "own/x").iterdir()) == WHOLE


def test_files_that_an_earlier_version_left_go_once_they_are_old(tmp_path: Path) -> None:
    write(str(tmp_path), "first")
    parts = [tmp_path / "own/x" / f"{name}.part" for name in ("train.0123", "card.json.4567")]
    for part in parts:
        part.write_bytes(bytes(100))
    assert left_over(str(tmp_path), TASK) == [], "somebody may write them at this moment"

    for part in parts:
        os.utime(part, (0, 0))
    assert len(left_over(str(tmp_path), TASK)) == 1
    write(str(tmp_path), "second")
    assert files_in(str(tmp_path)) == WHOLE


def test_an_import_within_another_leaves_the_one_that_ended_last(tmp_path: Path) -> None:
    root = str(tmp_path)

    def interrupted(split: str, at: str) -> Iterator[Example]:
        yield Example(key=f"{split}0", label=0, image=f"outer {split}".encode())
        if split == at:
            write(root, "inner")
            assert kinds_in(root) == {"inner"}
        yield Example(key=f"{split}1", label=0, image=f"outer {split}".encode())

    for at in SPLITS:
        write(root, "outer", {split: interrupted(split, at) for split in SPLITS})
        assert (kinds_in(root), files_in(root)) == ({"outer"}, WHOLE)


def test_imports_at_once_leave_one_of_them_whole(tmp_path: Path) -> None:
    root = str(tmp_path)
    for _ in range(10):
        threads = [threading.Thread(target=write, args=(root, kind)) for kind in ("A", "B", "C")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(kinds_in(root)) == 1
        assert files_in(root) == WHOLE


def test_a_refused_first_import_leaves_no_folder(tmp_path: Path) -> None:
    def breaking() -> Iterator[Example]:
        yield Example(key="0", label=0, image=b"x")
        raise ValueError("damaged")

    with pytest.raises(ValueError, match="damaged"):
        write(str(tmp_path), "first", examples("first") | {"test": breaking()})
    assert not list((tmp_path / "own").iterdir())


def test_who_holds_the_card_of_another_import_reads_no_mixture(tmp_path: Path) -> None:
    root = str(tmp_path)
    old = write(root, "old")
    new = write(root, "new")

    for split in SPLITS:
        for read in (
            lambda split=split: list(read_examples(root, TASK, split, card=old)),
            lambda split=split: count_examples(root, TASK, split, old),
            lambda split=split: read_column(root, TASK, split, "label", old),
        ):
            with pytest.raises(TaskChanged) as caught:
                read()
            assert f"{split}.parquet is of another import ({new.fingerprint})" in str(caught.value)
        assert count_examples(root, TASK, split, new) == 5

    # Tasks of 0.1.0 do not say in their files which import they are of.
    assert count_examples(root, TASK, "val") == 5


def test_a_crash_between_two_files_is_noticed_by_who_reads(tmp_path: Path) -> None:
    for kind in ("one", "two"):
        write(str(tmp_path / kind), kind)
    (tmp_path / "two/own/x/val.parquet").replace(tmp_path / "one/own/x/val.parquet")
    problems = verify(str(tmp_path / "one"), TASK).problems
    assert any("val.parquet is of another import" in problem for problem in problems)


def test_two_splits_of_two_imports_are_not_used_in_one_run(data_root: str) -> None:
    train, val = (load_split(data_root, "demo/digits", split, 0.1, 8) for split in ("train", "val"))
    val.check_same_import(train)
    other = dataclasses.replace(val, fingerprint=f"{'0' * 16}/val")
    with pytest.raises(TaskChanged, match="imported anew"):
        other.check_same_import(train)


@pytest.mark.parametrize("step", ["open", "delete"])
def test_a_folder_that_another_import_takes_away_meanwhile_disturbs_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    part = tmp_path / "own/x/0123.part"
    part.mkdir(parents=True)
    filesystem, folder = open_filesystem(str(tmp_path / TASK))
    taken = {"open": "_is_dead", "delete": "_delete"}[step]
    ours = getattr(publishing, taken)

    class Taken:
        """A file system on which another import deletes the folder after it has been looked at."""

        def __getattr__(self, name: str) -> object:
            return getattr(filesystem, name)

        def get_file_info(self, path: str) -> fs.FileInfo:
            info = filesystem.get_file_info(path)
            part.rmdir()
            return info

    def late(_: fs.FileSystem, *arguments: object) -> object:
        if step == "delete":
            return ours(Taken(), *arguments)
        part.rmdir()
        return ours(filesystem, *arguments)

    monkeypatch.setattr(publishing, taken, late)
    remove_dead_parts(filesystem, folder)
    assert not part.exists()
