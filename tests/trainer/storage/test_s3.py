"""Errors of a bucket: one sentence each, with the way out, without a secret, and raised soon."""

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


@pytest.fixture
def bucket(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """The bucket, with the keys to it."""
    use_aws(monkeypatch, s3.env)
    return f"s3://{s3.bucket}"


REFUSALS = [
    ({"AWS_SECRET_ACCESS_KEY": "wrong"}, errno.EACCES,
     "the secret key does not belong to this key id. Check AWS_SECRET_ACCESS_KEY."),
    ({"AWS_ACCESS_KEY_ID": "AKIAUNKNOWN"}, errno.EACCES,
     "the store does not know this key id. Check AWS_ACCESS_KEY_ID and AWS_ENDPOINT_URL ({endpoint})."),
    ({"AWS_SESSION_TOKEN": "another"}, errno.EACCES,
     "the session token does not belong to this key. Set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and "
     "AWS_SESSION_TOKEN together; a long-term key has no token."),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("change", "number", "reason"), REFUSALS, ids=["secret", "key", "token"])
def test_a_refused_key_is_explained_in_a_sentence(
    s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch, change: dict[str, str], number: int, reason: str
) -> None:
    use_aws(monkeypatch, s3.env | change)
    assert_explained(f"{bucket}/file", number, reason.format(endpoint=s3.url))


def assert_explained(location: str, number: int, reason: str, *but: str) -> None:
    """Assert that every operation on a location raises this sentence within 15 s."""
    operations = {
        "written": lambda: write_bytes(location, b"1"),
        "read": lambda: read_bytes(location),
        "listed": lambda: list_folders(location),
        "deleted": lambda: delete_file(location),
    }
    for action in operations.keys() - set(but):
        since = time.monotonic()
        with pytest.raises(StorageError) as caught:
            operations[action]()
        assert time.monotonic() - since < 15, "it must not keep a sweep waiting"
        assert str(caught.value) == f"{location} cannot be {action}: {reason}"
        assert (caught.value.errno, caught.value.strerror) == (number, reason)


@pytest.mark.slow
def test_a_missing_bucket_is_an_error_and_not_an_empty_folder(s3: S3Server, bucket: str) -> None:
    reason = f"there is no such bucket. Create it, or check its name and AWS_ENDPOINT_URL ({s3.url})."
    assert_explained("s3://nowhere/file", errno.ENOENT, reason, "deleted")


@pytest.mark.slow
def test_a_read_only_key_reads_and_its_writes_are_explained(
    s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_bytes(f"{bucket}/file", b"1")
    reader = s3.user(uuid.uuid4().hex, "s3:GetObject", "s3:ListBucket")
    use_aws(monkeypatch, s3.env | reader)
    assert read_bytes(f"{bucket}/file") == b"1"
    assert read_bytes(f"{bucket}/nothing") is None
    reason = "this key has no permission. It needs s3:ListBucket, s3:GetObject, s3:PutObject and s3:DeleteObject."
    assert_explained(f"{bucket}/file", errno.EACCES, reason, "read", "listed")


@contextmanager
def refusing(status: int, code: str) -> Iterator[str]:
    """Yield the address of an endpoint that answers every request with one S3 error."""
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
            """Keep the terminal quiet."""

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
     "the session token has expired. Set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN again."),
    pytest.param(
        403, "RequestTimeTooSkewed", errno.EACCES, "this machine's clock is wrong. Set it.", marks=pytest.mark.slow
    ),
    (301, "PermanentRedirect", errno.EACCES, "the bucket is in another region. Set AWS_REGION to the bucket's region."),
    (507, "XMinioStorageFull", errno.ENOSPC, "the store is full. Free some space."),
    pytest.param(
        503, "SlowDown", errno.EBUSY, "the store is overloaded or broken. Try again later.", marks=pytest.mark.slow
    ),
    (418, "Teapot", errno.EIO, "Unable to parse ExceptionName: Teapot Message: Told by Teapot."),
]  # fmt: skip


@pytest.mark.parametrize(("status", "code", "number", "reason"), SENTENCES)
def test_an_error_of_an_endpoint_is_explained_in_a_sentence(
    status: int, code: str, number: int, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with refusing(status, code) as url:
        use_aws(monkeypatch, {"AWS_ENDPOINT_URL": url, **KEYS})
        assert_explained("s3://bucket/file", number, reason, *(("listed", "deleted") if status in {403, 503} else ()))


def test_a_missing_key_is_named_in_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with refusing(403, "AccessDenied") as url:
        use_aws(monkeypatch, {"AWS_ENDPOINT_URL": url, "AWS_REGION": "eu-west-1"})
        reason = "a request without a key (AWS_ACCESS_KEY_ID is not set) has no permission. It needs s3:ListBucket, "
        reason += "s3:GetObject, s3:PutObject and s3:DeleteObject."
        assert_explained("s3://bucket/file", errno.EACCES, reason)


@pytest.mark.slow
def test_an_endpoint_that_does_not_answer_is_an_error_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        port = full.getsockname()[1]
        crowd = [socket.socket() for _ in range(3)]
        # Nobody accepts these, so the queue has no room for another connection.
        for client in crowd:
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", port))
        use_aws(monkeypatch, {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", **KEYS})
        where = f"Check AWS_ENDPOINT_URL (http://127.0.0.1:{port}) and the network."
        silent = f"its endpoint does not answer. {where}"
        assert_explained("s3://bucket/file", errno.EHOSTUNREACH, silent, "read", "listed", "deleted")
        for client in crowd:
            client.close()
    refused = f"nothing listens at its endpoint. {where}"
    assert_explained("s3://bucket/file", errno.EHOSTUNREACH, refused, "listed", "deleted")


@pytest.mark.parametrize(
    ("location", "start"),
    [
        ("s3://AKIA4:hidden5@bucket/file", "s3://AKIA4:***@bucket/file cannot be read: "),
        ("s3://bucket?secret_key=hidden6&region=eu-west-1/file",
         "s3://bucket?secret_key=***&region=eu-west-1/file cannot be opened: secret_key is not a valid option. Valid "),
        ("s3:///file", "s3:///file cannot be opened: it names no bucket. Write s3://BUCKET/FOLDER."),
    ],
)  # fmt: skip
def test_no_error_holds_a_secret(location: str, start: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with refusing(400, "ExpiredToken") as url:
        use_aws(monkeypatch, {"AWS_ENDPOINT_URL": url, **KEYS})
        with pytest.raises(StorageError) as caught:
            read_bytes(location)
    assert str(caught.value).startswith(start)
    assert "hidden" not in "".join(traceback.format_exception(caught.value, chain=True)).lower().replace(location, "")


def test_a_storage_error_can_be_pickled() -> None:
    with pytest.raises(StorageError) as caught:
        read_bytes("s3:///file")
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (str(copy), copy.errno) == (str(caught.value), caught.value.errno)
