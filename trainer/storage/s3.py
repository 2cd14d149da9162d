"""Buckets: opens an S3 endpoint, and explains its errors in plain words."""

from __future__ import annotations

import errno
import os
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, unquote

from trainer.redaction import redact

if TYPE_CHECKING:
    from pyarrow import fs

CONNECT_S = 1.2
"""Timeout of a connection attempt."""
SILENT_S = 5.0
"""A connection that delivers no byte for this long is closed and opened again."""
RETRIES = 7
"""With the client's backoff of 0 to 1.6 s, an endpoint that accepts no connection is an error after 13 s. One that
accepts connections and hangs for 30 s is waited for."""
FLAGS = frozenset({"allow_bucket_creation", "allow_bucket_deletion", "force_virtual_addressing"})
OPTIONS = frozenset({"region", "scheme", "endpoint_override", *FLAGS})
ALL_KEYS = "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN"
CHECK_NETWORK = "Check AWS_ENDPOINT_URL{endpoint} and the network."
NO_BUCKET = "no_?such_?bucket|bucket '.*' not found"
REASONS: dict[str, tuple[int, str]] = {
    "signature_?does_?not_?match": (
        errno.EACCES,
        "the secret key does not belong to this key id. Check AWS_SECRET_ACCESS_KEY.",
    ),
    "invalid_?access_?key_?id": (
        errno.EACCES,
        "the store does not know this key id. Check AWS_ACCESS_KEY_ID and AWS_ENDPOINT_URL{endpoint}.",
    ),
    "expired_?token": (errno.EACCES, f"the session token has expired. Set {ALL_KEYS} again."),
    "invalid_?token": (
        errno.EACCES,
        f"the session token does not belong to this key. Set {ALL_KEYS} together; a long-term key has no token.",
    ),
    "request_?time_?too_?skewed": (errno.EACCES, "this machine's clock is wrong. Set it."),
    NO_BUCKET: (
        errno.ENOENT,
        "there is no such bucket. Create it, or check its name and AWS_ENDPOINT_URL{endpoint}.",
    ),
    "permanent_?redirect|authorization_?header_?malformed|status 301": (
        errno.EACCES,
        "the bucket is in another region. Set AWS_REGION to the bucket's region.",
    ),
    "storage_?full|insufficient_?storage|quota_?exceeded|status 507": (
        errno.ENOSPC,
        "the store is full. Free some space.",
    ),
    "slow_?down|service_?unavailable|internal_?(failure|error)|status 5": (
        errno.EBUSY,
        "the store is overloaded or broken. Try again later.",
    ),
    "access_?denied|status 403": (
        errno.EACCES,
        "{who} has no permission. It needs s3:ListBucket, s3:GetObject, s3:PutObject and s3:DeleteObject.",
    ),
    "curlcode: 6,": (errno.EHOSTUNREACH, f"the host name of its endpoint is unknown. {CHECK_NETWORK}"),
    "curlcode: 7,": (errno.EHOSTUNREACH, f"nothing listens at its endpoint. {CHECK_NETWORK}"),
    "curlcode: (35|58|60|77),": (
        errno.EHOSTUNREACH,
        "its endpoint offers no TLS, or none that this machine trusts. Check AWS_ENDPOINT_URL{endpoint}: https:// or http://?",
    ),
    "network_connection": (errno.EHOSTUNREACH, f"its endpoint does not answer. {CHECK_NETWORK}"),
}
"""Pattern in the text of a client's error -> errno, and the reason with the way out. The first match counts."""


class StorageError(OSError):
    """An error of a bucket that refuses or does not answer, in one sentence: what was tried, the reason, the way out.

    `strerror` is the reason with the way out. `errno` is EACCES for a refused key, ENOENT for a missing bucket, ENOSPC
    for a full store, EHOSTUNREACH and EBUSY for a store that may be available later, EIO for the rest.
    """

    tried: str = ""
    """What was tried, such as `s3://bucket/name cannot be read`."""

    def __str__(self) -> str:
        return f"{self.tried}: {self.strerror}"


@dataclass(frozen=True, slots=True)
class Address:
    """The address of an object or a folder in a bucket."""

    authority: str
    """The bucket, with the key before it if the address has one: ``key:secret@bucket``."""
    query: str
    """Options, such as ``region=eu-west-1``."""
    path: str
    """Bucket and name: ``bucket/folder/file``."""


def address_of(location: str) -> Address | None:
    """Return the parts of ``s3://bucket/folder?region=eu-west-1``, or None if the location is in no bucket.

    Names that were appended to an address with options follow them: ``s3://bucket/folder?region=eu-west-1/name``.
    """
    scheme, _, rest = location.partition("://")
    if scheme != "s3":
        return None

    base, _, options = rest.partition("?")
    query, _, names = options.partition("/")
    authority, _, folder = base.partition("/")

    parts = [authority.rpartition("@")[2], *folder.split("/"), *names.split("/")]
    return Address(authority, query, "/".join(filter(None, parts)))


def open_bucket(address: Address) -> fs.FileSystem:
    """Return the file system of a bucket. A process opens it once."""
    # Changed variables need another client, and a forked process must not use its parent's.
    variables = tuple(sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_")))
    return _open(address.authority, address.query, variables, os.getpid())


@lru_cache(maxsize=16)
def _open(authority: str, query: str, variables: tuple[tuple[str, str], ...], _pid: int) -> fs.FileSystem:
    from pyarrow import fs

    user, _, bucket = authority.rpartition("@")
    key, _, secret = user.partition(":")
    options = dict(parse_qsl(query))
    environment = dict(variables)

    if not bucket:
        raise StorageError(errno.EINVAL, "it names no bucket. Write s3://BUCKET/FOLDER.")
    unknown = options.keys() - OPTIONS
    if unknown:
        valid = ", ".join(sorted(OPTIONS))
        raise StorageError(errno.EINVAL, f"{min(unknown)} is not a valid option. Valid options are {valid}.")

    # Options of the address come before the environment.
    endpoint_url = environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL") or ""
    scheme, _, host = endpoint_url.rpartition("://")
    endpoint = options.get("endpoint_override") or host.rstrip("/") or None
    region = options.get("region") or environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION")

    # A request to Amazon: pointless for another endpoint.
    if region is None and endpoint is None:
        region = fs.resolve_s3_region(bucket)

    return fs.S3FileSystem(
        access_key=unquote(key) or None,
        secret_key=unquote(secret) or None,
        region=region,
        scheme=options.get("scheme") or scheme or None,
        endpoint_override=endpoint,
        connect_timeout=CONNECT_S,
        request_timeout=SILENT_S,
        retry_strategy=fs.AwsDefaultS3RetryStrategy(max_attempts=RETRIES),
        # A file that fits into one request is then written with one request.
        allow_delayed_open=True,
        **{name: options[name].lower() in {"true", "1"} for name in FLAGS & options.keys()},
    )


def explain(error: OSError, location: str) -> StorageError | None:
    """Return an error of the S3 client in plain words, or None if the error is not the client's."""
    if isinstance(error, StorageError):
        return error
    address = address_of(location)
    if address is None or not re.search("AWS Error|[Bb]ucket '", str(error)):
        return None

    # The answer to a HEAD request has no body and so no reason. A refused listing has one.
    if "No response body" in str(error):
        from pyarrow import fs

        try:
            open_bucket(address).get_file_info(fs.FileSelector(address.path, allow_not_found=True))
        except OSError as listing_error:
            error = listing_error

    text = str(error).partition("\n")[0]
    for pattern, (number, reason) in REASONS.items():
        if re.search(pattern, text, re.IGNORECASE):
            return StorageError(number, _fill_in(reason, address))
    return StorageError(errno.EIO, redact(text.rpartition(" operation: ")[2]))


def _fill_in(reason: str, address: Address) -> str:
    """Return a reason of `REASONS` with the endpoint and the kind of request filled in."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    has_key = "AWS_ACCESS_KEY_ID" in os.environ or "@" in address.authority
    return reason.format(
        endpoint=f" ({redact(endpoint)})" if endpoint else "",
        who="this key" if has_key else "a request without a key (AWS_ACCESS_KEY_ID is not set)",
    )


@lru_cache(maxsize=64)
def check_bucket(authority: str, query: str) -> None:
    """Check that a bucket exists. Call when a file or folder in it was not found.

    Raises:
        StorageError: if there is no such bucket.
    """
    from pyarrow import fs

    address = Address(authority, query, authority.rpartition("@")[2])
    try:
        info = open_bucket(address).get_file_info(address.path)
    # The bucket exists, but this key has no permission to inspect it as a whole.
    except OSError:
        return

    if info.type == fs.FileType.NotFound:
        number, reason = REASONS[NO_BUCKET]
        raise StorageError(number, _fill_in(reason, address))
