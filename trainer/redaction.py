"""Redact secrets in text that people or databases will see, and find them in addresses.

`redact` is for texts and hides when in doubt. `has_secret` is for one address and reads it as the client does that the
address is for, so that no address is refused without need.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, unquote_plus

REDACTED = "***"
SECRET_VARIABLES = (
    "PGPASSWORD",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "RAY_AUTH_TOKEN",
)
"""Environment variables whose values are hidden wherever they appear."""
MIN_HIDDEN_CHARACTERS = 6
"""A shorter value of a secret variable may be part of any word, so it is not hidden."""

LOCAL_SCHEMES = ("sqlite", "file")
"""Addresses of local files. What follows `?` in them is part of a name."""
BUCKET_SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss")

SECRET_NAME = re.compile(
    r"password|passwd|passphrase|secret|(?:token|accesskey|accountkey|apikey|privatekey|credentials?|signature)\d*$"
    r"|^(?:pwd|sig)$"
)
"""Names of options that hold a secret, in lower case and without `_`, `-` and `.`. `num_tokens` is none."""
CONNECTION_NAMES = frozenset({"host", "hostaddr", "port", "user", "dbname", "service", "sslmode"})

USER_AND_PASSWORD = re.compile(r"(?<=://)([^\s/:]*):\S+@")
"""The last `@` ends a password, because clients disagree: SQLAlchemy allows `/` and `?` in it, urllib allows `@`. The
price: `http://host:5000/a@b` is hidden although it has no password. Written as `a%40b` it stays."""
PASSWORD_WITH_SPACES = re.compile(
    # The first part must not be a port, and the password must not reach into another address.
    r"(?<=://)([^\s/:@]*):(?!\d*(?:[\s/,;.)\]'\"]|$))(?:(?!://)[^@\n])+@(?:\S*@)?"
)
QUERY_NAME = re.compile(r"(?<=[?&])([^=&?/]+)=")
SETTING = re.compile(
    # A name after `/` is a folder's, such as `password=x`.
    r"(?<![\w%./\\-])([\w%.-]+)([ \t]*=[ \t]*)"
    r"""('(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|[^\s&;,'")\]}]+)"""
)
ENTRY = re.compile(r"""((['"])([\w.-]+)\2\s*:\s*)('(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*")""")
AUTHORIZATION = re.compile(r"""(?i)(authorization['"]?\s*[:=]\s*['"]?(?:basic|bearer|token)\s+)[^\s'"]+""")


def redact(text: str) -> str:
    """Return an address, or a text with addresses in it, with each secret replaced by `***`.

    A text without secrets is returned unchanged. A user name and a local path are no secrets.
    """
    for value in _secrets_of_environment():
        # Whole words only: `sptune1` in `sptune12` is another word.
        text = re.sub(rf"(?<!\w){re.escape(value)}(?!\w)", REDACTED, text)

    # An address by itself is read to its end: a password may hold white space.
    is_single = text.count("://") <= 1 or re.search(r"\s", text) is None
    if is_single and "\n" not in text and has_secret(text):
        text = _redact_address(text)

    # In a text, white space ends an address.
    text = USER_AND_PASSWORD.sub(rf"\1:{REDACTED}@", text)
    text = PASSWORD_WITH_SPACES.sub(rf"\1:{REDACTED}@", text)
    text = re.sub(r"[\w+.-]+://\S+", lambda match: _redact_query(match[0]), text)

    text = SETTING.sub(lambda match: _hide_if_secret(match, match[1], match[1] + match[2]), text)
    text = ENTRY.sub(lambda match: _hide_if_secret(match, match[3], match[1], quotes=match[2]), text)
    return AUTHORIZATION.sub(rf"\1{REDACTED}", text)


def redact_all(value: Any) -> Any:
    """Return a value of JSON with the secrets in all its texts redacted."""
    match value:
        case str():
            return redact(value)
        case dict():
            return {key: redact_all(entry) for key, entry in value.items()}
        case list() | tuple():
            return [redact_all(entry) for entry in value]
        case _:
            return value


def has_secret(address: str) -> bool:
    """Return whether a client would read a password or a secret option from an address.

    The clients are SQLAlchemy for databases, urllib for http, pyarrow for buckets. A local path has no secret, whatever
    its name is.
    """
    scheme, separator, rest = address.partition("://")
    if not separator or not re.fullmatch(r"\s*[\w+.-]+", scheme):
        return _is_connection_string(address)
    scheme = scheme.strip().lower()

    if _password(scheme, rest):
        return True
    if scheme.partition("+")[0] in LOCAL_SCHEMES:
        return False

    if scheme in ("http", "https"):
        rest = rest.partition("#")[0]
    elif scheme not in BUCKET_SCHEMES:
        # For SQLAlchemy a user name may hold `?`.
        rest = re.sub(r"^[^:/]*(?::[^@]*)?@", "", rest)
    query = rest.partition("?")[2]
    # Names follow the options of a bucket.
    if scheme in BUCKET_SCHEMES:
        query = query.partition("/")[0]
    return any(value and _is_secret_name(name) for name, value in parse_qsl(query))


def _password(scheme: str, rest: str) -> str:
    """Return the password of an address as its client reads it, or an empty text.

    Args:
        rest: what follows the scheme.
    """
    if scheme in ("http", "https", *BUCKET_SCHEMES):
        authority = re.split(r"[/?#]" if scheme.startswith("http") else "[/?]", rest, maxsplit=1)[0]
        user, at, host = authority.rpartition("@")
        if at:
            return user.partition(":")[2]

        # `s3://key:sec/ret@bucket` and `http://user:pass/word@host` are addresses that no client accepts, because what
        # follows the colon is no port. They hold a secret all the same.
        port = re.sub(r"^\[[^\]]*\]", "", host).partition(":")[2]
        return rest.rpartition("@")[0] if port and not port.isdecimal() else ""

    # The rule of SQLAlchemy's make_url: user up to the first colon, password up to the first @.
    match = re.match(r"[^:/]*:([^@]*)@([^/?]*)", rest)
    if match is None:
        return ""
    # A password that begins with @ is empty for SQLAlchemy, and the rest of it is taken for the host.
    return match[1] or match[2].rpartition("@")[0]


def _is_connection_string(text: str) -> bool:
    """Return whether a text is a connection string of PostgreSQL with a password: `host=db password=...`."""
    names = {name.lower() for name, _, _ in SETTING.findall(text)}
    return bool(names & CONNECTION_NAMES) and any(map(_is_secret_name, names))


def _is_secret_name(name: str) -> bool:
    return SECRET_NAME.search(re.sub(r"[_.-]", "", name).lower()) is not None


def _redact_address(address: str) -> str:
    """Return an address that holds a secret without it."""
    scheme, separator, rest = address.partition("://")
    user, colon, after_user = rest.partition(":")
    password, at, host = after_user.rpartition("@")
    if separator and colon and at and password and "/" not in user:
        rest = f"{user}:{REDACTED}@{host}"
    return _redact_query(f"{scheme}{separator}{rest}")


def _redact_query(address: str) -> str:
    """Return an address with the values of its secret options hidden."""
    scheme = address.partition("://")[0].lower()
    # Backwards, so that the places of the names before a hidden value stay the same.
    for match in reversed([*QUERY_NAME.finditer(address)]):
        name = unquote_plus(match[1])
        # A misspelled option of a bucket may hold a key, too: `secrte_key`.
        is_key = scheme in BUCKET_SCHEMES and "key" in name.lower()
        if is_key or _is_secret_name(name):
            value = re.compile("[^&]+").match(address, match.end())
            end = value.end() if value else match.end()
            address = address[: match.end()] + (REDACTED if value else "") + address[end:]
    return address


def _hide_if_secret(match: re.Match[str], name: str, start: str, quotes: str = "") -> str:
    if not _is_secret_name(unquote(name)):
        return match[0]
    return f"{start}{quotes}{REDACTED}{quotes}"


def _secrets_of_environment() -> Iterator[str]:
    """Yield the values of secret variables, as they are and as they stand in addresses."""
    for variable in SECRET_VARIABLES:
        value = os.environ.get(variable, "")
        # A word of small letters, such as `sptune` or `password`, would be hidden in sentences about other things.
        if len(value) >= MIN_HIDDEN_CHARACTERS and not (value.isalpha() and value.islower()):
            yield from {value, quote(value, safe="")}
