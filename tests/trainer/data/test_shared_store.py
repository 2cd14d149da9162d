"""A task store that several machines share: each decodes a task once, and making a demo task disturbs nobody."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.services import S3Server, use_aws
from trainer.data.demo_tasks import make_demo_task
from trainer.data.task_store import SPLITS, read_card, read_examples
from trainer.data.tasks import open_task
from trainer.storage.files import file_sizes

TASK = "demo/digits"
NUM_TUNING_IMAGES = 1000
DECODE = """
import sys, time
from trainer.data import image_cache
from trainer.data.tasks import open_task
import torch
torch.set_num_threads(1)
root, cache, start_time = sys.argv[1:]
count, real = 0, image_cache.decode
def counted(*arguments, **options):
    global count
    count += 1
    return real(*arguments, **options)
image_cache.decode = counted
time.sleep(max(0.0, float(start_time) - time.time()))
card = open_task(root, "demo/digits")
decoded = image_cache.load_decoded(root, card, ("train", "val"), 8, "spt", cache).pixels_NCSS
print(count, int(decoded.sum(dtype=torch.int64)))
"""
"""A process that decodes the tuning images, and prints how many it decoded and the sum of all pixels."""
MAKE = """
import sys, time
from trainer.data.demo_tasks import make_demo_task
root, end_time = sys.argv[1], float(sys.argv[2])
while time.time() < end_time:
    make_demo_task(root, "demo/digits")
"""
"""A process that makes a demo task over and over."""


@pytest.fixture(params=["file", pytest.param("bucket", marks=pytest.mark.slow)])
def root(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty task store."""
    if request.param == "file":
        return f"file://{tmp_path}/store"

    s3: S3Server = request.getfixturevalue("s3")
    use_aws(monkeypatch, s3.env)
    return f"s3://{s3.bucket}/{tmp_path.name}"


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, text=True)


def printed_numbers(processes: list[subprocess.Popen[str]]) -> list[list[int]]:
    """Wait for the processes, and return the numbers that each printed."""
    outputs = [process.communicate(timeout=200)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes)
    return [[int(number) for number in output.split()] for output in outputs]


def content_hash(root: str) -> str:
    """Hash all that a stored task holds, as its fingerprint does."""
    digest = hashlib.sha256()
    for split in SPLITS:
        for example in read_examples(root, TASK, split):
            digest.update(example.content(split))
    return digest.hexdigest()[:16]


@pytest.mark.slow
@pytest.mark.parametrize("root", ["bucket"], indirect=True)
def test_machines_with_separate_cache_folders_decode_once_each(root: str, tmp_path: Path) -> None:
    start_time = time.time() + 5
    processes = [start(DECODE, root, tmp_path / cache, start_time) for cache in ("one", "two")]
    (first_count, first_sum), (second_count, second_sum) = printed_numbers(processes)

    assert (first_count, second_count) == (NUM_TUNING_IMAGES, NUM_TUNING_IMAGES)
    assert first_sum == second_sum, "and see the same images"

    # The arrays are there now, so nothing is decoded a second time.
    later = printed_numbers([start(DECODE, root, tmp_path / cache, 0) for cache in ("one", "two")])
    assert later == [[0, first_sum]] * 2


@pytest.mark.slow
@pytest.mark.parametrize("root", ["file"], indirect=True)
def test_processes_of_one_machine_decode_once_together(root: str, tmp_path: Path) -> None:
    start_time = time.time() + 5
    processes = [start(DECODE, root, tmp_path / "cache", start_time) for _ in range(2)]
    (first_count, first_sum), (second_count, second_sum) = printed_numbers(processes)
    assert sorted([first_count, second_count]) == [0, NUM_TUNING_IMAGES]
    assert first_sum == second_sum


@pytest.mark.slow
def test_a_demo_task_stays_present_and_whole_while_other_processes_make_it(root: str) -> None:
    expected = open_task(root, TASK)
    end_time = time.time() + 6
    makers = [start(MAKE, root, end_time) for _ in range(2)]

    num_reads = 0
    while any(maker.poll() is None for maker in makers):
        assert read_card(root, TASK) == expected
        if num_reads % 10 == 0:
            assert content_hash(root) == expected.fingerprint
        num_reads += 1

    printed_numbers(makers)

    assert num_reads > 50
    assert sorted(name.rpartition("/")[2] for name in file_sizes(root)) == [
        "card.json", "test.parquet", "train.parquet", "val.parquet",
    ]  # fmt: skip


def test_a_demo_task_is_the_same_bytes_in_every_store(tmp_path: Path) -> None:
    for store in ("one", "two"):
        make_demo_task(str(tmp_path / store), TASK)

    for name in ("card.json", *(f"{split}.parquet" for split in SPLITS)):
        first, second = (tmp_path / store / TASK / name for store in ("one", "two"))
        assert first.read_bytes() == second.read_bytes(), "so a process that reads while another writes sees no change"
