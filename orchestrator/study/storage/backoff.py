"""Waiting for a database that is locked, or whose disk is full."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, TypeVar

from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import OperationalError

RETRY_FOR_S = 600.0
"""How long it is tried again."""

log = logging.getLogger(__name__)
Answer = TypeVar("Answer")


def retry_while_locked(write: Callable[..., Answer], *arguments: Any) -> Answer:
    """Write, waiting while the database is locked or its disk is full.

    Raises:
        StorageInternalError: if it stays so for `PATIENCE_S`, or for any other reason.
    """
    deadline, delay_s = time.monotonic() + RETRY_FOR_S, 0.5
    while True:
        try:
            return write(*arguments)
        except StorageInternalError as error:
            if not isinstance(error.__cause__, OperationalError) or time.monotonic() > deadline:
                raise
            log.warning("the record cannot be written, trying again: %s", str(error.__cause__).splitlines()[0])
        time.sleep(delay_s)
        delay_s = min(2 * delay_s, 15.0)
