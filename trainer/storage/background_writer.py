"""Files that are written in the background while a run continues."""

from __future__ import annotations

import logging
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from trainer.storage.files import write_bytes

log = logging.getLogger(__name__)


class BackgroundWriter:
    """Writes files in a thread, one after another, in the order of the calls.

    with BackgroundWriter() as writer:
        writer.write("s3://bucket/run/checkpoint.pt", data)  # returns at once
        ...
        writer.wait()                                        # the file is written

    The end of the `with` block waits for all writes, so a late write cannot overwrite a file of a later run.
    """

    def __init__(self) -> None:
        # One thread keeps the order: an older checkpoint never replaces a newer one.
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="writer")
        self._pending: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.wait()
        except OSError as write_error:
            # An error that already leaves the block is the more important one.
            if error is None:
                raise
            log.warning("the last file was not written: %s", write_error)
        finally:
            self._executor.shutdown()

    def write(self, location: str | Path, data: bytes) -> None:
        """Start writing `data` to `location` as `write_bytes` does, after the previous file is written.

        Raises:
            OSError: if the previous file could not be written. This one is then not started.
        """
        # At most one file waits in memory.
        self.wait()
        self._pending = self._executor.submit(write_bytes, location, data)

    def wait(self) -> None:
        """Wait until all files are written.

        Raises:
            OSError: if a file could not be written.
        """
        # Reset first: an error is raised once, and the next write may succeed.
        pending = self._pending
        self._pending = None
        if pending is not None:
            pending.result()
