"""What a bucket's refusals say: one sentence each, with the way out and without a secret, and soon."""

from __future__ import annotations

import errno
import http.server
import pickle
import socket
import threading
import time
import traceback
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.services import S3Server, use_aws
from trainer.storage.files import StorageError, delete_file, list_folders, read_bytes, write_bytes


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    if reason := S3Server.why_not():
        pytest.skip(reason)
    with S3Server() as server:
        yield server


@pytest.fixture
def bucket(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """The bucket, with the keys to it."""
    use_aws(monkeypatch, server.env)
    return f"s3://{server.bucket}"


REFUSALS = [
    ({"AWS_SECRET_ACCESS_KEY": "wrong"}, errno.EACCES,
     "the secret key is not the one of this key id. Check AWS_SECRET_ACCESS_KEY."),
    ({"AWS_ACCESS_KEY_ID": "AKIAUNKNOWN"}, errno.EACCES,
     "the store does not know this key id. Check AWS_ACCESS_KEY_ID and AWS_ENDPOINT_URL ({endpoint})."),
    ({"AWS_SESSION_TOKEN": "another"}, errno.EACCES,
     "the session token is not one of this key. Set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN as "
     "they belong together; a lasting key has none."),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("change", "number", "reason"), REFUSALS, ids=["secret", "key", "token"])
def test_a_key_that_is_refused_is_told_in_a_sentence(
    server: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch, change: dict[str, str], number: int, reason: str
) -> None:
    use_aws(monkeypatch, server.env | change)
    assert_told(f"{bucket}/file", number, reason.format(endpoint=server.url))


def assert_told(place: str, number: int, reason: str, *but: str) -> None:
    """Whatever is done at a place ends with this sentence, soon."""
    works = {
        "written": lambda: write_bytes(place, b"1"),
        "read": lambda: read_bytes(place),
        "listed": lambda: list_folders(place),
        "deleted": lambda: delete_file(place),
    }
    for done in works.keys() - set(but):
        since = time.monotonic()
        with pytest.raises(StorageError) as caught:
            works[done]()
        assert time.monotonic() - since < 15, "it must not keep a sweep waiting"
        assert str(caught.value) == f"{place} cannot be {done}: {reason}"
        assert (caught.value.errno, caught.value.strerror) == (number, reason)


@pytest.mark.slow
def test_a_bucket_that_is_not_there_is_no_empty_one(server: S3Server, bucket: str) -> None:
    reason = f"there is no such bucket. Make it, or check its name and AWS_ENDPOINT_URL ({server.url})."
    assert_told("s3://nowhere/file", errno.ENOENT, reason, "deleted")


@pytest.mark.slow
def test_a_key_that_may_not_write_reads_and_is_told_why_it_cannot_write(
    server: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_bytes(f"{bucket}/file", b"1")
    reader = server.user(uuid.uuid4().hex, "s3:GetObject", "s3:ListBucket")
    use_aws(monkeypatch, server.env | reader)
    assert read_bytes(f"{bucket}/file") == b"1"
    assert read_bytes(f"{bucket}/nothing") is None
    reason = "this key may not do that. It needs s3:ListBucket, s3:GetObject, s3:PutObject and s3:DeleteObject."
    assert_told(f"{bucket}/file", errno.EACCES, reason, "read", "listed")


@contextmanager
def refusing(status: int, code: str) -> Iterator[str]:
    """An endpoint that answers everything with one error, as S3 words it; its address."""
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>Told by {code}.</Message></Error>".encode()

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(status)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


KEYS = {
    "AWS_REGION": "eu-west-1",
    "AWS_ACCESS_KEY_ID": "AKIAHIDDEN1",
    "AWS_SECRET_ACCESS_KEY": "hidden2",
    "AWS_SESSION_TOKEN": "hidden3",
}
SENTENCES = [
    (400, "ExpiredToken", errno.EACCES,
     "the session token has expired. Set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN anew."),
    pytest.param(
        403, "RequestTimeTooSkewed", errno.EACCES, "this machine's clock is wrong. Set it.", marks=pytest.mark.slow
    ),
    (301, "PermanentRedirect", errno.EACCES, "the bucket is in another region. Set AWS_REGION to it."),
    (507, "XMinioStorageFull", errno.ENOSPC, "the store is full. Make room."),
    pytest.param(
        503, "SlowDown", errno.EBUSY, "the store is overloaded or broken. Try again later.", marks=pytest.mark.slow
    ),
    (418, "Teapot", errno.EIO, "Unable to parse ExceptionName: Teapot Message: Told by Teapot."),
]  # fmt: skip


@pytest.mark.parametrize(("status", "code", "number", "reason"), SENTENCES)
def test_what_an_endpoint_refuses_is_told_in_a_sentence(
    status: int, code: str, number: int, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with refusing(status, code) as url:
        use_aws(monkeypatch, {"AWS_ENDPOINT_URL": url, **KEYS})
        assert_told("s3://bucket/file", number, reason, *(("listed", "deleted") if status in {403, 503} else ()))


def test_who_has_no_key_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with refusing(403, "AccessDenied") as url:
        use_aws(monkeypatch, {"AWS_ENDPOINT_URL": url, "AWS_REGION": "eu-west-1"})
        reason = "one without a key (AWS_ACCESS_KEY_ID is not set) may not do that. It needs s3:ListBucket, "
        reason += "s3:GetObject, s3:PutObject and s3:DeleteObject."
        assert_told("s3://bucket/file", errno.EACCES, reason)


@pytest.mark.slow
def test_an_endpoint_that_is_away_is_told_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        port = full.getsockname()[1]
        crowd = [socket.socket() for _ in range(3)]
        for one in crowd:  # nobody takes these, so that there is no room for more
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port))
        use_aws(monkeypatch, {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", **KEYS})
        where = f"Check AWS_ENDPOINT_URL (http://127.0.0.1:{port}) and the network."
        silent = f"its endpoint does not answer. {where}"
        assert_told("s3://bucket/file", errno.EHOSTUNREACH, silent, "read", "listed", "deleted")
        for one in crowd:
            one.close()
    refused = f"nobody listens at its endpoint. {where}"
    assert_told("s3://bucket/file", errno.EHOSTUNREACH, refused, "listed", "deleted")


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("s3://AKIAHIDDEN4:hidden5@bucket/file", "s3://***@bucket/file cannot be read: "),
        ("s3://bucket?secret_key=hidden6&region=eu-west-1/file",
         "s3://bucket?secret_key=***&region=eu-west-1/file cannot be opened: secret_key is no option of it; those "),
        ("s3:///file", "s3:///file cannot be opened: it names no bucket. Write s3://BUCKET/FOLDER."),
    ],
)  # fmt: skip
def test_no_sentence_holds_a_secret(place: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with refusing(400, "ExpiredToken") as url:
        use_aws(monkeypatch, {"AWS_ENDPOINT_URL": url, **KEYS})
        with pytest.raises(StorageError) as caught:
            read_bytes(place)
    assert str(caught.value).startswith(told)
    assert "hidden" not in "".join(traceback.format_exception(caught.value, chain=True)).lower().replace(place, "")


def test_such_an_error_can_be_sent_to_another_process() -> None:
    with pytest.raises(StorageError) as caught:
        read_bytes("s3:///file")
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.errno) == (str(caught.value), caught.value.errno)
