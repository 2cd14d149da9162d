"""timm's hub, from which weights are downloaded: whether this machine can reach it."""

from __future__ import annotations

import os
import socket
import threading
from urllib.parse import urlsplit

from orchestrator.environment.process import proxy_variable
from trainer.catalog import BUNDLED, BackboneRow
from trainer.model.weights import way_without_network

TIMEOUT_S = 5.0
"""Seconds for looking up the address and connecting. Without a network both fail at once on most machines."""


def hub_problem() -> str | None:
    """Return why timm's hub cannot be reached, or None if it can. Nothing is downloaded."""
    reasons = ["it does not answer"]

    def connect() -> None:
        reasons.append(_connection_problem())

    # In a thread: a name server that does not answer is waited for much longer, and no timeout can be given.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(TIMEOUT_S)
    return reasons[-1] or None


def unreachable(row: BackboneRow, reason: str) -> str:
    """Return the sentence about weights that would have to be downloaded, with the way out.

    Args:
        reason: what `hub_problem` returned.
    """
    return (
        f"{row.name} is not on this machine, and timm's hub cannot be reached ({reason}). {way_without_network(row)} "
        f"To try sptune without it, use {BUNDLED}, which ships with it."
    )


def _connection_problem() -> str:
    """Return why no connection can be made, or an empty text."""
    from huggingface_hub import constants

    # Behind a proxy, only the proxy can be reached.
    variable = proxy_variable(constants.ENDPOINT)
    text = os.environ[variable] if variable else constants.ENDPOINT
    address = urlsplit(text if "://" in text else f"http://{text}")
    through = f", through the proxy of {variable}" if variable else ""

    try:
        port = address.port or (443 if address.scheme == "https" else 80)
        socket.create_connection((address.hostname or "", port), timeout=TIMEOUT_S).close()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return f"{reason.splitlines()[0].rstrip('.')}{through}"
    return ""
