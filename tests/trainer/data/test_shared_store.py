"""A task store that several machines share: each decodes a task once, and none harms another by making a demo task."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.services import S3Server, use_aws
from trainer.data.demo_tasks import make_demo_task
from trainer.data.task_store import SPLITS, read_card, read_examples
from trainer.data.tasks import open_task
from trainer.storage.files import file_sizes

TASK = "demo/digits"
TUNING_IMAGES = 1000
DECODE = """
import sys, time
from trainer.data import decoded
from trainer.data.store import read_card
import torch
torch.set_num_threads(1)
root, cache, at = sys.argv[1:]
count, real = 0, decoded.decode
def counted(*arguments, **options):
    global count
    count += 1
    return real(*arguments, **options)
decoded.decode = counted
time.sleep(max(0.0, float(at) - time.time()))
card = read_card(root, "demo/digits")
found = decoded.decoded(root, card, ("train", "val"), 8, "spt", "fixed", cache)
print(count, int(found.images_N3SS.sum(dtype=torch.int64)))
"""
RENDER = """
import sys, time
from trainer.data.rendered import render
root, until = sys.argv[1], float(sys.argv[2])
while time.time() < until:
    render(root, "demo/digits")
"""


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    if reason := S3Server.why_not():
        pytest.skip(reason)
    with S3Server() as server:
        yield server


@pytest.fixture(params=["file", pytest.param("bucket", marks=pytest.mark.slow)])
def root(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty task store."""
    if request.param == "file":
        return f"file://{tmp_path}/store"
    server: S3Server = request.getfixturevalue("server")
    use_aws(monkeypatch, server.env)
    return f"s3://{server.bucket}/{tmp_path.name}"


def started(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, text=True)


def told(processes: list[subprocess.Popen[str]]) -> list[list[int]]:
    """The numbers that processes end with."""
    said = [process.communicate(timeout=200)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes)
    return [[int(number) for number in text.split()] for text in said]


def content(root: str) -> str:
    """All that is in a task, as its fingerprint has it."""
    digest = hashlib.sha256()
    for split in SPLITS:
        for example in read_examples(root, TASK, split):
            digest.update(example.content(split))
    return digest.hexdigest()[:16]


@pytest.mark.slow
def test_machines_with_folders_of_their_own_decode_once_each(root: str, tmp_path: Path) -> None:
    at = time.time() + 5
    (one, same), (two, alike) = told([started(DECODE, root, tmp_path / cache, at) for cache in ("one", "two")])
    assert (one, two) == (TUNING_IMAGES, TUNING_IMAGES)
    assert same == alike, "and see the same images"
    again = told([started(DECODE, root, tmp_path / cache, 0) for cache in ("one", "two")])
    assert again == [[0, same]] * 2


@pytest.mark.slow
def test_processes_of_one_machine_decode_once_together(root: str, tmp_path: Path) -> None:
    at = time.time() + 5
    (one, same), (two, alike) = told([started(DECODE, root, tmp_path / "cache", at) for _ in range(2)])
    assert sorted([one, two]) == [0, TUNING_IMAGES]
    assert same == alike


def test_a_demo_task_that_others_make_at_the_same_time_is_always_there_and_whole(root: str) -> None:
    expected = open_task(root, TASK)
    until = time.time() + 6
    makers = [started(RENDER, root, until) for _ in range(2)]
    looks = 0
    while any(maker.poll() is None for maker in makers):
        assert read_card(root, TASK) == expected
        if looks % 10 == 0:
            assert content(root) == expected.fingerprint
        looks += 1
    told(makers)
    assert looks > 50
    assert sorted(name.rpartition("/")[2] for name in file_sizes(root)) == [
        "card.json", "test.parquet", "train.parquet", "val.parquet",
    ]  # fmt: skip


def test_the_same_task_is_the_same_bytes_whoever_makes_it(tmp_path: Path) -> None:
    for place in ("one", "two"):
        make_demo_task(str(tmp_path / place), TASK)
    for name in ("card.json", *(f"{split}.parquet" for split in SPLITS)):
        one, two = (tmp_path / place / TASK / name for place in ("one", "two"))
        assert one.read_bytes() == two.read_bytes(), "so that who reads one while it becomes the other sees no seam"
