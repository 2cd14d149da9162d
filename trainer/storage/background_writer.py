"""Files that are written while a run goes on."""

from __future__ import annotations

import logging
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from trainer.storage.files import write_bytes

log = logging.getLogger(__name__)


class BackgroundWriter:
    """Writes files one after another, in the order given, while its owner does something else.

    with Writer() as writer:
        writer.write("s3://bucket/run/checkpoint.pt", data)  # returns at once
        ...
        writer.wait()                                        # now it is there

    Behind the `with` nothing is on its way any more: what a later run writes is not overwritten by an earlier one's.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="writer")
        self._under_way: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.wait()
        except OSError as late:
            if error is None:
                raise
            log.warning("not written, at the end: %s", late)
        finally:
            self._thread.shutdown()

    def write(self, place: str | Path, data: bytes) -> None:
        """Put `data` at `place` as `write_bytes` does, once the file before it is written.

        Raises:
            OSError: if the file before it could not be written; this one is not tried.
        """
        self.wait()
        self._under_way = self._thread.submit(write_bytes, place, data)

    def wait(self) -> None:
        """Until all that was given is written.

        Raises:
            OSError: if it could not be.
        """
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            under_way.result()
