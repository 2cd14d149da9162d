"""Retries with backoff while the study database is locked or its disk is full."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, TypeVar

from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import OperationalError

RETRY_FOR_S = 600.0
"""Seconds after which a write is not retried any more."""

log = logging.getLogger(__name__)
Answer = TypeVar("Answer")


def retry_while_locked(write: Callable[..., Answer], *arguments: Any) -> Answer:
    """Call `write` with the arguments; retry while the database is locked or its disk is full.

    Raises:
        StorageInternalError: if that lasts for `RETRY_FOR_S`, or immediately for any other error.
    """
    deadline = time.monotonic() + RETRY_FOR_S
    delay_s = 0.5

    while True:
        try:
            return write(*arguments)
        except StorageInternalError as error:
            # Optuna raises one error for everything; the cause tells a locked database from a bug.
            if not isinstance(error.__cause__, OperationalError) or time.monotonic() > deadline:
                raise
            reason = str(error.__cause__).splitlines()[0]
            log.warning("cannot write to the study database, retrying in %g s: %s", delay_s, reason)

        time.sleep(delay_s)
        delay_s = min(2 * delay_s, 15.0)
