"""Files are complete or absent: the same laws for a folder, a file:// URI and a bucket."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.services import S3Server, use_aws
from trainer.data.task_store import SPLITS, Card, Example, count_examples, read_card, read_examples, write_task
from trainer.data.tasks import open_task
from trainer.storage.files import (
    delete_file,
    delete_folder,
    file_sizes,
    list_folders,
    open_filesystem,
    read_bytes,
    write_bytes,
)
from trainer.storage.integrity import set_aside

BUCKET = pytest.param("bucket", marks=pytest.mark.slow)
OPTIONS = pytest.param("bucket with options", marks=pytest.mark.slow)
every_kind = pytest.mark.parametrize("location", ["folder", "file", BUCKET, OPTIONS], indirect=True)
by_name = pytest.mark.parametrize("location", ["folder", BUCKET, OPTIONS], indirect=True)


@pytest.fixture
def bucket(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return an empty folder in the bucket, with the keys set."""
    use_aws(monkeypatch, s3.env)
    return f"s3://{s3.bucket}/{uuid.uuid4().hex}"


@pytest.fixture
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    match request.param:
        case "folder":
            return str(tmp_path / "home")
        case "file":
            return f"file://{tmp_path}/home"
        case "bucket with options":
            return f"{request.getfixturevalue('bucket')}?region=eu-west-1&scheme=http"
        case _:
            return str(request.getfixturevalue("bucket"))


@every_kind
@pytest.mark.parametrize("size", [0, 1, 3_000_000, 12_000_000])
def test_a_file_is_written_read_and_replaced(location: str, size: int) -> None:
    for data in (os.urandom(size), b"short", os.urandom(size)):
        write_bytes(f"{location}/a/b", data)
        assert read_bytes(f"{location}/a/b") == data
        assert list(file_sizes(location).values()) == [len(data)], "nothing else is written"


@every_kind
def test_a_missing_file_or_folder_is_empty(location: str) -> None:
    for name in ("file", "no/such/folder/file"):
        assert read_bytes(f"{location}/{name}") is None
        assert list_folders(f"{location}/{name}") == []
        assert file_sizes(f"{location}/{name}") == {}
        delete_file(f"{location}/{name}")
        delete_folder(f"{location}/{name}")
    write_bytes(f"{location}/file", b"1")
    assert read_bytes(f"{location}/file/below") is None
    assert read_bytes(f"{location}/fil") is None


@every_kind
def test_folders_are_listed_and_deleted_without_their_neighbours(location: str) -> None:
    for name in ("one/deep/file", "one/file", "ones/file", "two/file", "file"):
        write_bytes(f"{location}/{name}", name.encode())
    assert list_folders(location) == ["one", "ones", "two"]
    assert list_folders(f"{location}/one") == ["deep"]
    sizes = {name.partition("/one/")[2]: size for name, size in file_sizes(f"{location}/one").items()}
    assert sizes == {"deep/file": 13, "file": 8}
    delete_folder(f"{location}/one")
    assert list_folders(location) == ["ones", "two"]
    delete_file(f"{location}/two/file")
    assert read_bytes(f"{location}/two/file") is None
    assert read_bytes(f"{location}/ones/file") == b"ones/file"
    assert read_bytes(f"{location}/file") == b"file"


@every_kind
def test_a_damaged_file_is_set_aside_once_and_one_that_is_gone_is_no_error(
    location: str, caplog: pytest.LogCaptureFixture
) -> None:
    for content in (b"one", b"two"):
        write_bytes(f"{location}/file", content)
        set_aside(f"{location}/file", "it is damaged.")
        assert read_bytes(f"{location}/file") is None
        assert read_bytes(f"{location}/file.damaged") == content
    set_aside(f"{location}/file", "it is damaged.")
    assert caplog.messages == ["it is damaged. It is now file.damaged, and is made again."] * 3
    assert len(file_sizes(location)) == 1


@by_name
@pytest.mark.parametrize("name", ["with space", "50%", "a%20b", "ä+=&#", "demo/task"])
def test_names_are_taken_as_they_are(location: str, name: str) -> None:
    write_bytes(f"{location}/{name}/file", b"1")
    assert read_bytes(f"{location}/{name}/file") == b"1"
    assert list_folders(location) == [name.partition("/")[0]]


@every_kind
def test_a_reader_sees_the_old_or_the_new_file_while_it_is_replaced(location: str) -> None:
    contents = [bytes([byte]) * 300_000 for byte in range(4)]
    write_bytes(f"{location}/file", contents[0])
    with ThreadPoolExecutor(4) as pool:
        writers = [pool.submit(write_bytes, f"{location}/file", data) for data in contents * 4]
        while not all(writer.done() for writer in writers):
            assert read_bytes(f"{location}/file") in contents
        for writer in writers:
            writer.result()
    assert list(file_sizes(location).values()) == [300_000]


def split_of(name: str, count: int) -> Iterator[Example]:
    """Yield the examples of a split."""
    return (Example(key=f"{name}{i}", label=i % 2, image=b"image") for i in range(count))


def examples(count: int) -> dict[str, Iterator[Example]]:
    """Return the splits of a task."""
    return {name: split_of(name, count) for name in SPLITS}


def breaking() -> Iterator[Example]:
    """Yield examples, and fail after the last."""
    yield from split_of("test", 3000)
    raise ValueError("damaged archive")


@every_kind
def test_a_task_is_stored_completely_or_not_at_all(location: str) -> None:
    task = "vtab/dtd"

    def write(splits: dict[str, Iterator[Example]]) -> Card:
        return write_task(location, task, splits, source="here", class_names=["a", "b"], protocol="drawn")

    for left in (set(), {"card.json", *(f"{split}.parquet" for split in SPLITS)}):
        with pytest.raises(ValueError, match="damaged archive"):
            write(examples(10) | {"test": breaking()})
        assert {name.rpartition("/")[2] for name in file_sizes(location)} == left
        if not left:
            assert read_card(location, task) is None
            old = write(examples(5000))
    assert open_task(location, task) == old, "the old task is kept"
    assert count_examples(location, task, "val") == 5000
    assert [example.key for example in read_examples(location, task, "val", start=4990)] == [
        f"val{i}" for i in range(4990, 5000)
    ]
    new = write(examples(7))
    assert open_task(location, task) == new != old
    assert count_examples(location, task, "val") == 7


@every_kind
def test_a_task_with_a_damaged_card_can_be_stored_again(location: str) -> None:
    write_bytes(f"{location}/vtab/dtd/card.json", b"{")
    card = write_task(location, "vtab/dtd", examples(7), source="here", class_names=["a", "b"], protocol="drawn")
    assert read_card(location, "vtab/dtd") == card


def test_an_error_of_the_local_disk_keeps_its_errno(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError) as caught:
        write_bytes(tmp_path / "file" / "below", b"1")
    assert caught.value.errno in {errno.ENOTDIR, errno.EEXIST}
    if Path("/dev/full").exists():
        filesystem, _ = open_filesystem("/dev/full")
        with pytest.raises(OSError) as caught, filesystem.open_append_stream("/dev/full") as stream:
            stream.write(b"1")
        assert caught.value.errno == errno.ENOSPC, "a trial that waits for space recognises this errno"


def requests(s3: S3Server) -> list[str]:
    """Return the methods of all requests so far."""
    return re.findall(r'"(?:\x1b\[\d+m)*(GET|HEAD|PUT|POST|DELETE) /', s3.log)


@pytest.mark.slow
def test_a_checkpoint_is_one_request_to_write_and_two_to_read(s3: S3Server, bucket: str) -> None:
    before = len(requests(s3))
    write_bytes(f"{bucket}/a/b/checkpoint.pt", bytes(2_000_000))
    assert requests(s3)[before:] == ["PUT"]
    read_bytes(f"{bucket}/a/b/checkpoint.pt")
    assert requests(s3)[before + 1 :] == ["HEAD", "GET"]
    assert open_filesystem(f"{bucket}/a")[0] is open_filesystem(f"{bucket}/b")[0]


FORK = """
import os, sys, warnings
warnings.simplefilter("ignore")
from trainer.storage.files import read_bytes, write_bytes
location = sys.argv[1]
write_bytes(f"{location}/file", b"1")
children = []
for i in range(3):
    if (child := os.fork()) == 0:
        write_bytes(f"{location}/{i}", b"1")
        os._exit(0 if read_bytes(f"{location}/file") == b"1" else 1)
    children.append(child)
for child in children:
    assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.slow
def test_a_forked_process_opens_the_bucket_again(bucket: str) -> None:
    subprocess.run([sys.executable, "-c", FORK, bucket], check=True, timeout=60)
    assert len(file_sizes(bucket)) == 4


@pytest.mark.slow
def test_a_bucket_that_hangs_for_a_while_is_waited_for(
    s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The client takes a silent connection for dead after one second instead of five: a hang of four seconds costs as
    # many attempts as one of twenty would.
    monkeypatch.setattr("trainer.storage.s3.SILENT_S", 1.0)
    # With an option that no other test has, the bucket is opened anew.
    file = f"{bucket}?region=eu-north-1/file"
    write_bytes(file, b"old")
    for work in (lambda: write_bytes(file, b"new"), lambda: read_bytes(file)):
        s3.pause()
        waker = threading.Timer(4, s3.resume)
        waker.start()
        work()
        assert not waker.is_alive()
    assert read_bytes(file) == b"new"


def test_a_link_in_a_folder_is_deleted_and_what_it_leads_to_stays(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").touch()
    folder = tmp_path / "home" / "trials"
    folder.mkdir(parents=True)
    (folder / "link").symlink_to(elsewhere)
    (tmp_path / "home" / "link").symlink_to(elsewhere)

    delete_folder(tmp_path / "home" / "link")
    delete_folder(folder)
    assert [*(tmp_path / "home").iterdir()] == []
    assert (elsewhere / "file").exists()
