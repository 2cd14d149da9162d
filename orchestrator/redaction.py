"""Remove secrets from text that people or databases will see."""

from __future__ import annotations

import re

SECRET_VARIABLES = {
    "home": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "data": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "weights": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "studies": "PGPASSWORD or ~/.pgpass",
    "mlflow": "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN",
}
"""Where the secret of an address belongs."""


def redact(text: str) -> str:
    """A text with the secrets of addresses in it blotted out."""
    text = re.sub(r"(?<=://)([^\s/@:]*):[^\s/]+@", r"\1:***@", text)
    return re.sub(r"(?i)((?:secret|password|token|access_key)\w*=)[^\s&;'\"]+", r"\1***", text)
