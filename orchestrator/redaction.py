"""Redact secrets in text that people or databases will see."""

from __future__ import annotations

import re

SECRET_VARIABLES = {
    "home": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "data": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "weights": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "studies": "PGPASSWORD or ~/.pgpass",
    "mlflow": "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN",
}
"""Environment variables or files for the secret of each address, by the address's key in a spec."""
REDACTED = "***"
SECRET_OPTION = r"(?i)((?:secret|password|token|access_key)\w*=)"


def redact(text: str) -> str:
    """Return an address, or a text with addresses in it, with each secret replaced by `***`.

    A text without secrets is returned unchanged. A user name is no secret.
    """
    starts_with_scheme = re.match(r"[\w+.-]+://", text) is not None
    if starts_with_scheme and (text.count("://") == 1 or not re.search(r"\s", text)):
        return _redact_address(text)

    # Nothing but whitespace ends an address in a text: a password may hold every other character.
    text = re.sub(r"(?<=://)([^\s/:]*):\S+@", rf"\1:{REDACTED}@", text)
    return re.sub(SECRET_OPTION + r"""(?:'[^']+'|"[^"]+"|[^\s&;'"]+)""", rf"\1{REDACTED}", text)


def _redact_address(address: str) -> str:
    scheme, _, rest = address.partition("://")

    # Clients disagree about where a password ends. SQLAlchemy allows `/` and `?` in it, urllib allows `@`. The last `@`
    # is the one end that hides the password from all of them. The price: `http://host:5000/a@b` is redacted although it
    # has no password, because `host` may be a user and `5000/a` a password. Written as `a%40b` it stays.
    user, _, after_user = rest.partition(":")
    password, _, host = after_user.rpartition("@")
    if password and "/" not in user:
        rest = f"{user}:{REDACTED}@{host}"

    return f"{scheme}://" + re.sub(SECRET_OPTION + "[^&]+", rf"\1{REDACTED}", rest)
