"""Buckets: how an S3 endpoint is opened, and what is told when it refuses or is away."""

from __future__ import annotations

import errno
import os
import re
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import parse_qsl, unquote

from pyarrow import fs

CONNECT_S = 1.2
SILENT_S = 5.0
"""A connection without a byte for so long is given up and made anew."""
RETRIES = 7
"""With the client's pauses of 0 to 1.6 s: an endpoint that takes no connection is told after 13 s, one that takes them
and hangs for 30 s is waited for."""
FLAGS = frozenset({"allow_bucket_creation", "allow_bucket_deletion", "force_virtual_addressing"})
OPTIONS = frozenset({"region", "scheme", "endpoint_override", *FLAGS})
ALL_KEYS = "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN"
NETWORK = "Check AWS_ENDPOINT_URL{endpoint} and the network."
NO_BUCKET = "no_?such_?bucket|bucket '.*' not found"
REASONS: dict[str, tuple[int, str]] = {
    "signature_?does_?not_?match": (
        errno.EACCES,
        "the secret key is not the one of this key id. Check AWS_SECRET_ACCESS_KEY.",
    ),
    "invalid_?access_?key_?id": (
        errno.EACCES,
        "the store does not know this key id. Check AWS_ACCESS_KEY_ID and AWS_ENDPOINT_URL{endpoint}.",
    ),
    "expired_?token": (errno.EACCES, f"the session token has expired. Set {ALL_KEYS} anew."),
    "invalid_?token": (
        errno.EACCES,
        f"the session token is not one of this key. Set {ALL_KEYS} as they belong together; a lasting key has none.",
    ),
    "request_?time_?too_?skewed": (errno.EACCES, "this machine's clock is wrong. Set it."),
    NO_BUCKET: (
        errno.ENOENT,
        "there is no such bucket. Make it, or check its name and AWS_ENDPOINT_URL{endpoint}.",
    ),
    "permanent_?redirect|authorization_?header_?malformed|status 301": (
        errno.EACCES,
        "the bucket is in another region. Set AWS_REGION to it.",
    ),
    "storage_?full|insufficient_?storage|quota_?exceeded|status 507": (errno.ENOSPC, "the store is full. Make room."),
    "slow_?down|service_?unavailable|internal_?(failure|error)|status 5": (
        errno.EBUSY,
        "the store is overloaded or broken. Try again later.",
    ),
    "access_?denied|status 403": (
        errno.EACCES,
        "{who} may not do that. It needs s3:ListBucket, s3:GetObject, s3:PutObject and s3:DeleteObject.",
    ),
    "curlcode: 6,": (errno.EHOSTUNREACH, f"the name of its endpoint is not known here. {NETWORK}"),
    "curlcode: 7,": (errno.EHOSTUNREACH, f"nobody listens at its endpoint. {NETWORK}"),
    "curlcode: (35|58|60|77),": (
        errno.EHOSTUNREACH,
        "its endpoint has no TLS that is trusted here. Check AWS_ENDPOINT_URL{endpoint}: https:// or http://?",
    ),
    "network_connection": (errno.EHOSTUNREACH, f"its endpoint does not answer. {NETWORK}"),
}
"""What an error of the client says; what that is as errno, and in plain words with the way out."""


class StorageError(OSError):
    """A bucket that refuses or is away, in one sentence: what was tried, why not, and the way out.

    `strerror` is the reason with the way out. `errno` is EACCES for a key, ENOENT for a bucket that is not there,
    ENOSPC for a full one, EHOSTUNREACH and EBUSY for one that may be back later, EIO for the rest.
    """

    tried: str = ""
    """Such as `s3://bucket/name cannot be read`."""

    def __str__(self) -> str:
        return f"{self.tried}: {self.strerror}"


@dataclass(frozen=True, slots=True)
class Address:
    """Of an object or a folder in a bucket."""

    authority: str
    """The bucket; before it, perhaps, a key."""
    query: str
    path: str
    """Bucket and name."""


def address_of(place: str) -> Address | None:
    """The parts of ``s3://bucket/folder?region=eu-west-1``; None for what is in no bucket.

    What was joined to an address with options stands behind them: ``s3://bucket/folder?region=eu-west-1/name``.
    """
    scheme, _, rest = place.partition("://")
    if scheme != "s3":
        return None
    base, _, options = rest.partition("?")
    query, _, names = options.partition("/")
    authority, _, folder = base.partition("/")
    parts = [authority.rpartition("@")[2], *folder.split("/"), *names.split("/")]
    return Address(authority, query, "/".join(filter(None, parts)))


def redact_query(place: str) -> str:
    """An address without its secrets."""
    place = re.sub(r"://[^/?]*@", "://***@", place)
    return re.sub(r"([?&])(\w+)=[^&/]*", lambda m: m[0] if m[2] in OPTIONS else f"{m[1]}{m[2]}=***", place)


def open_bucket(address: Address) -> fs.FileSystem:
    """The file system with a bucket, the same object at each call in a process."""
    variables = tuple(sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_")))
    return _open(address.authority, address.query, variables, os.getpid())


@lru_cache(maxsize=16)
def _open(authority: str, query: str, variables: tuple[tuple[str, str], ...], _pid: int) -> fs.FileSystem:
    user, _, bucket = authority.rpartition("@")
    key, _, secret = user.partition(":")
    options, known = dict(parse_qsl(query)), dict(variables)
    if not bucket:
        raise StorageError(errno.EINVAL, "it names no bucket. Write s3://BUCKET/FOLDER.")
    if unknown := options.keys() - OPTIONS:
        raise StorageError(errno.EINVAL, f"{min(unknown)} is no option of it; those are {', '.join(sorted(OPTIONS))}.")
    scheme, _, host = (known.get("AWS_ENDPOINT_URL_S3") or known.get("AWS_ENDPOINT_URL") or "").rpartition("://")
    endpoint = options.get("endpoint_override") or host.rstrip("/") or None
    region = options.get("region") or known.get("AWS_REGION") or known.get("AWS_DEFAULT_REGION")
    if region is None and endpoint is None:
        region = fs.resolve_s3_region(bucket)  # asks Amazon
    return fs.S3FileSystem(
        access_key=unquote(key) or None,
        secret_key=unquote(secret) or None,
        region=region,
        scheme=options.get("scheme") or scheme or None,
        endpoint_override=endpoint,
        connect_timeout=CONNECT_S,
        request_timeout=SILENT_S,
        retry_strategy=fs.AwsDefaultS3RetryStrategy(max_attempts=RETRIES),
        allow_delayed_open=True,  # what fits into one request is one request
        **{name: options[name].lower() in {"true", "1"} for name in FLAGS & options.keys()},
    )


def explain(error: OSError, place: str) -> StorageError | None:
    """What an error of the client means; None of an error that is not the client's."""
    if isinstance(error, StorageError):
        return error
    address = address_of(place)
    if address is None or not re.search("AWS Error|[Bb]ucket '", str(error)):
        return None
    if "No response body" in str(error):  # it was asked with HEAD; a listing is refused with the reason
        try:
            open_bucket(address).get_file_info(fs.FileSelector(address.path, allow_not_found=True))
        except OSError as again:
            error = again
    text = str(error).partition("\n")[0]
    for pattern, (number, reason) in REASONS.items():
        if re.search(pattern, text, re.IGNORECASE):
            return StorageError(number, _with_words(reason, address))
    return StorageError(errno.EIO, redact_query(text.rpartition(" operation: ")[2]))


def _with_words(reason: str, address: Address) -> str:
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    known = "AWS_ACCESS_KEY_ID" in os.environ or "@" in address.authority
    return reason.format(
        endpoint=f" ({redact_query(endpoint)})" if endpoint else "",
        who="this key" if known else "one without a key (AWS_ACCESS_KEY_ID is not set)",
    )


@lru_cache(maxsize=64)
def check_bucket(authority: str, query: str) -> None:
    """Where nothing is found: see that it is not for want of the bucket.

    Raises:
        StorageError: if there is no such bucket.
    """
    address = Address(authority, query, authority.rpartition("@")[2])
    try:
        found = open_bucket(address).get_file_info(address.path)
    except OSError:
        return  # it is there, and this key may not look at it as a whole
    if found.type == fs.FileType.NotFound:
        number, reason = REASONS[NO_BUCKET]
        raise StorageError(number, _with_words(reason, address))
