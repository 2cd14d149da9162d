"""Tells somebody how a sweep ended: by a command or a webhook, once for each message.

The study database remembers what was told, so a launch after a crash tells what is missing and nothing twice. Only a
driver that dies between the call and its record is followed by one that calls again, with the same `id`.

A command or webhook that fails or is slow costs a line of output. The next launch calls it again.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from types import TracebackType
from typing import IO, Any

from orchestrator.environment.home import Home
from orchestrator.launch.messages import build_message
from orchestrator.spec.notify import VARIABLE, Notify
from orchestrator.study.storage.backoff import retry_while_locked
from orchestrator.study.storage.database import StudyDatabase
from orchestrator.study.storage.lease import Lease
from orchestrator.sweep.sweep import Sweep
from trainer.plain_text import printable
from trainer.redaction import redact

TIME_LIMIT_S = 10.0
"""Seconds after which a command or webhook is given up."""


class NotifyError(Exception):
    """Nobody was told. The text is the end of a sentence about the command or webhook."""


class Notifier:
    """Tells how a sweep ended when its driver ends.

    Args:
        notify: whom to tell; None for nobody.
        on_note: called with a sentence if nobody could be told.
    """

    def __init__(
        self, notify: Notify | None, database: StudyDatabase, lease: Lease, home: Home, on_note: Callable[[str], None]
    ) -> None:
        self._notify = notify
        self._database = database
        self._lease = lease
        self._home = home
        self._on_note = on_note
        self._sweep: Sweep | None = None

    def watch(self, sweep: Sweep) -> None:
        """Note which sweep is driven, and say now if nobody could be told of its end."""
        self._sweep = sweep
        problem = None
        if self._notify is not None:
            problem = find_problem(self._notify)
        elif sweep.spec.notify is not None:
            problem = (
                "what the study database has is not called, because others may have written it; name the sweep by its "
                "spec's file"
            )

        if problem is not None:
            self._on_note(f"notify: nobody is told how {sweep.spec.name} ends: {problem}.")

    def drop(self) -> None:
        """Tell nothing: the user interrupted the launch, and waits for the prompt."""
        self._sweep = None

    def on_exit(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> None:
        """Tell how the sweep ended, unless that was told. Call it with the lease, after everything is saved."""
        # A mistake that kept the sweep from being opened is printed, and the user is there to read it.
        if self._notify is None or self._sweep is None:
            return

        name = self._sweep.spec.name
        try:
            self._tell(self._notify, self._sweep, error)
        except KeyboardInterrupt:
            self._on_note(f"notify: interrupted, so nobody was told how {name} ended. The next launch tells it.")
        except Exception as failure:
            # Whatever it is, it must not cost the results, nor hide the error that ended the sweep.
            reason = failure if isinstance(failure, NotifyError) else f"failed: {redact(repr(failure))}"
            self._on_note(f"notify: {describe(self._notify)} {reason}. The next launch calls it again.")

    def _tell(self, notify: Notify, sweep: Sweep, error: BaseException | None) -> None:
        name = sweep.spec.name
        message = build_message(sweep, self._home, self._database.sweep_id(name), error)
        told = self._database.notified(name)
        if message is None or message["id"] in told:
            return

        # Another driver would tell it as well.
        self._lease.ensure_held()
        call(notify, message)
        retry_while_locked(self._database.save_notified, name, [*told, message["id"]])


def describe(notify: Notify) -> str:
    """Return what is called, in words and without a secret."""
    return f"webhook {redact(notify.webhook)}" if notify.webhook else f"command {(notify.command or [''])[0]}"


def find_problem(notify: Notify) -> str | None:
    """Return why nobody can be told, as far as is known before the call; None if nothing is wrong."""
    missing = [name for name in VARIABLE.findall(notify.webhook or "") if not os.environ.get(name)]
    if missing:
        return f"the environment variable {missing[0]} of the webhook is not set"
    if notify.command and shutil.which(notify.command[0]) is None:
        return f"there is no program {printable(notify.command[0])}"
    return None


def call(notify: Notify, message: dict[str, Any]) -> None:
    """Call the command or the webhook with a message.

    Raises:
        NotifyError: if it fails or takes longer than `TIME_LIMIT_S`.
    """
    problem = find_problem(notify)
    if problem is not None:
        raise NotifyError(f"was not called: {problem}")

    body = json.dumps(message, ensure_ascii=False).encode()
    if notify.command is not None:
        _run(notify.command, body)
    elif notify.webhook is not None:
        _post(notify.webhook, body)


def _run(command: list[str], body: bytes) -> None:
    # Files and not pipes: a process that the command leaves behind would keep a pipe open.
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as output:
        given.write(body)
        given.seek(0)
        try:
            # In a group of its own, so that its children end with it, and Ctrl-C is the driver's alone.
            process = subprocess.Popen(
                command, stdin=given, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        except OSError as error:
            raise NotifyError(f"cannot be run: {error.strerror}") from None

        try:
            status = process.wait(TIME_LIMIT_S)
        except subprocess.TimeoutExpired:
            raise NotifyError(f"did not end within {TIME_LIMIT_S:g} s") from None
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

        if status != 0:
            raise NotifyError(f"ended with status {status}{_last_line(output)}")


def _last_line(output: IO[bytes]) -> str:
    # The end is enough of what may be long.
    output.seek(max(0, output.seek(0, os.SEEK_END) - 4000))
    lines = output.read().decode(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f": {redact(printable(last))[:200].rstrip('.')}" if last else ""


def _post(address: str, body: bytes) -> None:
    """Post a message. A thread does it, because looking up a host's name has no time limit of its own."""
    failures: list[str] = []

    def work() -> None:
        try:
            _request(VARIABLE.sub(lambda match: os.environ.get(match[1], ""), address), body)
        except NotifyError as error:
            failures.append(str(error))

    thread = threading.Thread(target=work, name="notify", daemon=True)
    thread.start()
    thread.join(TIME_LIMIT_S)
    if thread.is_alive():
        raise NotifyError(f"gave no answer within {TIME_LIMIT_S:g} s")
    if failures:
        raise NotifyError(redact(failures[0]))


def _request(url: str, body: bytes) -> None:
    # urllib would open files, too.
    if not url.startswith(("http://", "https://")):
        raise NotifyError("was not called: its address must begin with http:// or https://")

    headers = {"Content-Type": "application/json", "User-Agent": "sptune"}
    try:
        request = urllib.request.Request(url, data=body, headers=headers, method="POST")
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=TIME_LIMIT_S):
            pass
    except urllib.error.HTTPError as error:
        # It is an open answer as well.
        error.close()
        raise NotifyError(f"answered with status {error.code}") from None
    except TimeoutError:
        raise NotifyError(f"gave no answer within {TIME_LIMIT_S:g} s") from None
    except urllib.error.URLError as error:
        raise NotifyError(f"does not answer: {printable(str(error.reason)).rstrip('.')}") from None
    except Exception as error:
        # http.client has errors of its own, with the address in their texts.
        raise NotifyError(f"cannot be called ({type(error).__name__})") from None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Takes a redirection for an error: urllib would follow it without the message."""

    def redirect_request(self, *_: Any) -> None:
        """Follow nowhere."""
