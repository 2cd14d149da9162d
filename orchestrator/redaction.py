"""Where the secret of each address belongs. How secrets are found and hidden is the trainer's."""

from __future__ import annotations

from trainer.redaction import has_secret, redact

__all__ = ["SECRET_VARIABLES", "has_secret", "redact"]

SECRET_VARIABLES = {
    "home": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "data": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "weights": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "studies": "PGPASSWORD or ~/.pgpass",
    "mlflow": "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN",
}
"""Environment variables or files for the secret of each address, by the address's key in a spec."""
