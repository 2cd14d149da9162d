"""The terminal: text of users is printed as it is, without secrets, in every encoding.

`open_terminal` and the streams that it makes are the last door: whatever the process prints passes it. Lines and tables
pass `TextConsole` before, because a secret or a name cannot be told any more once it is laid out.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from rich.console import Console
from rich.status import Status
from rich.text import Text

from trainer.plain_text import printable
from trainer.redaction import redact


class OutputError(OSError):
    """A stream cannot be written, because the disk is full for example. The text is a sentence."""

    def __str__(self) -> str:
        return f"the output cannot be written: {self.strerror}."


@contextmanager
def _explain_errors() -> Iterator[None]:
    """Raise errors of a stream as OutputError. A reader that went away is no error to explain."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(error.errno, error.strerror) from None


class SafeStream:
    """A text stream that redacts what is written, and escapes what its encoding lacks."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        """Write a text, and return the number of its characters."""
        with _explain_errors():
            self._stream.write(redact(text))
        return len(text)

    def flush(self) -> None:
        """Write what is buffered."""
        with _explain_errors():
            self._stream.flush()

    def writelines(self, lines: Iterable[str]) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def open_terminal() -> None:
    """Let all that this process prints pass a `SafeStream`. Call it first, once in a process."""
    # A closed descriptor would be given to the next file that is opened: a database would get what libraries print.
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)

    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, SafeStream):
            setattr(sys, name, SafeStream(stream))


def write_document(text: str) -> None:
    """Write a document, such as a page of HTML, to standard output. It is UTF-8 in every locale."""
    text = printable(redact(text), keep="\n\t")
    # A program that calls ours may read it from a stream of text.
    if not hasattr(sys.stdout, "buffer"):
        print(text, end="")
        return
    with _explain_errors():
        sys.stdout.flush()
        sys.stdout.buffer.write(text.encode())
        sys.stdout.buffer.flush()


def shown(text: str, style: str = "", keep: str = "") -> Text:
    """Return a text of users for a line or cell of `TextConsole`."""
    return Text(printable(redact(text), keep), style=style)


class TextConsole(Console):
    """A console on which a string is one line of plain text.

    Brackets are no markup, words between colons no emoji, numbers are not coloured, and a line is not broken: it may
    hold a path or a command to copy. Use `shown` for our own colours.
    """

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False)

    @property
    def encoding(self) -> str:
        """Encoding of the stream. Rich draws lines of tables with ASCII characters if it is not Unicode."""
        return (getattr(self.file, "encoding", None) or "utf-8").lower()

    def render_str(self, text: str, **options: Any) -> Text:
        """Return a string as text to lay out."""
        return super().render_str(printable(redact(text)), **options)

    def print(self, *objects: Any, soft_wrap: bool | None = None, **options: Any) -> None:
        """Print strings as one line, and tables in the width of the terminal."""
        if soft_wrap is None:
            soft_wrap = all(isinstance(each, str) for each in objects)
        super().print(*objects, soft_wrap=soft_wrap, **options)

    def on_broken_pipe(self) -> None:
        """Raise the error of a closed pipe. By default Rich ends the process, even in the middle of a sweep."""
        raise BrokenPipeError(errno.EPIPE, "nobody reads the output")

    def status(self, status: Any, **options: Any) -> Status:
        """Return a spinner with a sentence."""
        return super().status(shown(status) if isinstance(status, str) else status, **options)
