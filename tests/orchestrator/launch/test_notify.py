"""Somebody is told how a sweep ends: once, also after a crash, and at no cost to the sweep."""

from __future__ import annotations

import contextlib
import inspect
import json
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from orchestrator.environment.home import home_at
from orchestrator.errors import ClusterError, LeaseError, SpecError
from orchestrator.launch import messages, notify
from orchestrator.launch.notify import Notifier, NotifyError, call
from orchestrator.spec.loader import parse_recorded_spec, parse_spec
from orchestrator.spec.notify import Notify
from orchestrator.spec.plan import plan_sweep
from orchestrator.study.storage.database import StudyDatabase
from orchestrator.study.trial import Failure, FailureCause, Trial, TrialState
from orchestrator.sweep.sweep import Sweep
from orchestrator.sweep.tracker import MemoryTracker
from tests.orchestrator.conftest import drive

KEYS = ["version", "id", "event", "sweep", "sweep_id", "text", "reason", "home", "host", "time", "hours", "gpu_hours"]
KEYS += ["trials", "studies", "studies_without_result"]
MESSAGE: dict[str, Any] = {"event": "done", "sweep": "größer"}


class Mailbox:
    """A command that keeps what it is told, and launches of one sweep that call it."""

    def __init__(self, raw: dict[str, Any], folder: Path) -> None:
        self.raw = raw
        self.folder = folder
        self.file = folder / "told"
        self.command = ["sh", "-c", 'cat >> "$0"; echo >> "$0"', str(self.file)]
        self.notes: list[str] = []
        self.databases: dict[str, StudyDatabase] = {}

    def database(self, home: str) -> StudyDatabase:
        """The study database of a home in the folder."""
        if home not in self.databases:
            (self.folder / home).mkdir(exist_ok=True)
            self.databases[home] = StudyDatabase(home_at(str(self.folder / home)).database_url)
        return self.databases[home]

    def told(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.file.read_text().splitlines()] if self.file.exists() else []

    def events(self) -> list[str]:
        return [message["event"] for message in self.told()]

    def launch(
        self,
        *,
        command: list[str] | None = None,
        home: str = "home",
        error: BaseException | None = None,
        crash: bool = False,
        fail: Any = lambda _: None,
        **changes: Any,
    ) -> Sweep:
        """Drive the sweep as far as it goes, and end as `run_sweep` does; with `crash`, before anybody is told."""
        spec = parse_spec(self.raw | {"notify": {"command": command or self.command}} | changes, "a test")
        place = home_at(str(self.folder / home))
        database = self.database(home)
        lease = database.lease(spec.name)
        lease.acquire(spec.name)
        sweep = Sweep.resume(spec, database, MemoryTracker(), lease=lease)
        notifier = Notifier(spec.notify, database, lease, place, self.notes.append)
        notifier.watch(sweep)
        if error is None:
            drive(sweep, fail=fail)
        sweep.close()
        if not crash:
            notifier.on_exit(type(error) if error else None, error, None)
        lease.release()
        return sweep


@pytest.fixture
def mailbox(raw_study: dict[str, Any], tmp_path: Path) -> Mailbox:
    raw_study |= {"fixed": {"epochs": 1, "warmup_epochs": 0}, "search": {"trials": 2}, "final": {"seeds": [42]}}
    return Mailbox(raw_study, tmp_path)


def invalid(_: Trial) -> Failure:
    return Failure(cause=FailureCause.INVALID, error="ValueError: no image")


def test_each_end_is_told_once_also_after_a_crash_and_in_a_copy(mailbox: Mailbox) -> None:
    # The budget ends it twice in the same way: that is told once.
    mailbox.launch(budget={"max_trials": 1})
    mailbox.launch(budget={"max_trials": 1})
    assert mailbox.events() == ["out_of_budget"]
    (message,) = mailbox.told()
    assert list(message) == KEYS
    assert message["reason"] == "budget: max_trials 1 are started"
    assert message["text"].startswith(
        "small is out of budget (budget: max_trials 1 are started): 1 of 3 trials finished"
    )
    assert "`sptune resume small`" in message["text"]
    assert message["trials"]["planned"] == 3 and message["trials"]["waiting"] == message["trials"]["running"] == 0

    # The driver dies when all trials are finished and before it tells. The next one has nothing to run, and tells. That
    # the spec named somebody else meanwhile contradicts no trial.
    mailbox.launch(budget={}, crash=True, notify={"webhook": "http://127.0.0.1:9/"})
    assert mailbox.events() == ["out_of_budget"]
    finished = mailbox.launch()
    assert finished.num_started == len(finished.studies[0].trials)
    assert mailbox.events() == ["out_of_budget", "done"]
    done = mailbox.told()[-1]
    assert done["reason"] is None and done["studies_without_result"] == []
    assert done["text"] == "small is done: 3 of 3 trials finished."
    assert done["version"] == 1 and done["id"] != message["id"]

    # What was told is in the study database, so it moves with the home.
    shutil.copytree(mailbox.folder / "home", mailbox.folder / "copy")
    mailbox.launch(home="copy")
    assert len(mailbox.told()) == 2

    # Between the call and its record nothing can be known: the call is repeated, with the same id.
    mailbox.database("home").save_notified("small", [message["id"]])
    mailbox.launch()
    assert mailbox.told()[-1]["id"] == done["id"] and len(mailbox.told()) == 3

    # More trials are a new end.
    mailbox.launch(final={"seeds": [42, 44]})
    assert mailbox.events()[3:] == ["done"] and mailbox.notes == []


def test_a_message_has_the_keys_of_the_documents() -> None:
    lines = inspect.cleandoc(str(messages.__doc__)).splitlines()
    names = ", ".join(line.strip().partition("  ")[0] for line in lines if "  " in line.strip()).split(", ")
    assert sorted(names) == sorted(KEYS)
    guide = (Path(__file__).parents[3] / "search_spaces/README.md").read_text()
    assert [key for key in KEYS if f"`{key}`" not in guide] == []


def test_pauses_and_failures_are_told_and_what_people_did_themselves_is_not(mailbox: Mailbox) -> None:
    # A second Ctrl-C, and a lease that another driver has, are no news.
    mailbox.launch(error=KeyboardInterrupt())
    mailbox.launch(error=LeaseError("taken over"))
    assert mailbox.told() == []

    # The same error before the same trials is told once; a secret in it is not told.
    error = ClusterError("no GPU at http://ada:lovelace@head")
    mailbox.launch(error=error)
    mailbox.launch(error=error)
    assert [(message["event"], message["reason"]) for message in mailbox.told()] == [
        ("failed", "no GPU at http://ada:***@head")
    ]

    # Failures in a row pause it; the next attempts are news again.
    def crashed(_: Trial) -> Failure:
        return Failure(cause=FailureCause.ERROR, error="RuntimeError: broken")

    for _ in range(2):
        paused = mailbox.launch(fail=crashed, pause_after=2, retries=0, search={"trials": 6})
        assert paused.halt is not None and not paused.halt.is_budget
        # As `sptune resume --failed` does: the same trials fail again.
        assert len(paused.studies[0].reset_trials(lambda trial: trial.state is TrialState.FAILED)) == 2
    assert mailbox.events() == ["failed", "paused", "paused"]
    assert mailbox.told()[-1]["reason"].startswith("paused: failures in a row (error)")

    # Its study is stopped by its data: it is finished without a result.
    mailbox.launch(fail=invalid, search={"trials": 6})
    assert mailbox.events()[3:] == ["failed"]
    assert mailbox.told()[-1]["studies_without_result"] == [paused.studies[0].plan.key]
    assert mailbox.told()[-1]["reason"] == "no result of 1 of 1 study"


def test_who_is_told_changes_no_trial(raw_spec: dict[str, Any]) -> None:
    quiet = parse_spec(raw_spec, "a test")
    told = parse_spec(raw_spec | {"notify": {"command": ["true"]}}, "a test")
    # Ids, settings and conflicts of trials follow from the plans alone.
    assert plan_sweep(told) == plan_sweep(quiet)


def test_a_command_that_fails_costs_a_line_and_is_called_by_the_next_launch(mailbox: Mailbox) -> None:
    assert mailbox.launch(command=["no-such-program"]).is_done
    assert mailbox.notes == [
        "notify: nobody is told how small ends: there is no program no-such-program.",
        "notify: command no-such-program was not called: there is no program no-such-program. The next launch calls it "
        "again.",
    ]
    mailbox.launch()
    assert mailbox.events() == ["done"]

    with pytest.raises(NotifyError, match=r"^ended with status 1$"):
        call(Notify(command=["false"]), MESSAGE)
    # What it complains of is passed on, without secrets.
    complaint = ["sh", "-c", "echo first; p=password; echo $p=lovelace. >&2; exit 3"]
    with pytest.raises(NotifyError, match=r"^ended with status 3: password=\*\*\*$"):
        call(Notify(command=complaint), MESSAGE)


def test_a_command_that_hangs_is_killed_with_its_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notify, "TIME_LIMIT_S", 0.3)
    child = tmp_path / "child"
    with pytest.raises(NotifyError, match=r"^did not end within 0\.3 s$"):
        call(Notify(command=["sh", "-c", f"sleep 1000 & echo $! > {child}; wait"]), MESSAGE)
    pid = int(child.read_text() or 0) if child.exists() else 0
    # It ends soon after the signal, and is reaped by somebody else, in their time.
    with contextlib.suppress(psutil.NoSuchProcess):
        while pid and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)


def test_what_a_command_leaves_behind_is_not_waited_for(tmp_path: Path) -> None:
    child = tmp_path / "child"
    # It holds the output of the command. A reader of a pipe would wait for it until the time limit, and fail.
    call(Notify(command=["sh", "-c", f"sleep 1000 & echo $! > {child}"]), MESSAGE)
    left = psutil.Process(int(child.read_text()))
    assert left.is_running()
    left.kill()


class Receiver(ThreadingHTTPServer):
    """A server of webhooks on the loopback address."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.received: list[tuple[str, str, Any]] = []
        self.release = threading.Event()


class Handler(BaseHTTPRequestHandler):
    """Answers by the first part of the path."""

    def do_POST(self) -> None:
        assert isinstance(self.server, Receiver)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.received.append((self.path, self.headers["Content-Type"], json.loads(body)))
        if self.path.startswith("/hang"):
            self.server.release.wait(60)
        status = {"/broken": 500, "/moved": 302}.get(self.path.rpartition("/")[0], 204)
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "/elsewhere")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Print nothing."""


@contextmanager
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.release.set()
            server.shutdown()
            thread.join()


def test_a_webhook_gets_the_message_and_its_secret_comes_from_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with receiver() as server:
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("TEST_HOOK", "T0/lovelace")
        call(Notify(webhook=f"{address}/ok/${{TEST_HOOK}}"), MESSAGE)
        monkeypatch.setenv("TEST_HOOK", f"{address}/ok/whole")
        call(Notify(webhook="${TEST_HOOK}"), MESSAGE)
        assert server.received == [
            ("/ok/T0/lovelace", "application/json", MESSAGE),
            ("/ok/whole", "application/json", MESSAGE),
        ]

        # Whatever goes wrong, the secret stays out of the text.
        for path, reason in (("broken", "answered with status 500"), ("moved", "answered with status 302")):
            monkeypatch.setenv("TEST_HOOK", "lovelace")
            with pytest.raises(NotifyError, match=f"^{reason}$"):
                call(Notify(webhook=f"{address}/{path}/${{TEST_HOOK}}"), MESSAGE)
        assert len(server.received) == 4, "a redirection is not followed"

        with monkeypatch.context() as patch:
            patch.setattr(notify, "TIME_LIMIT_S", 0.3)
            with pytest.raises(NotifyError, match=r"^gave no answer within 0\.3 s$"):
                call(Notify(webhook=f"{address}/hang/"), MESSAGE)

    # Nobody listens there any more.
    with pytest.raises(NotifyError, match=r"^does not answer: .*refused"):
        call(Notify(webhook=f"{address}/"), MESSAGE)
    for value, reason in (
        ("http://127.0.0.1:x/lovelace", r"^cannot be called \(InvalidURL\)$"),
        ("file:///lovelace", "^was not called: its address must begin with http"),
        ("", "^was not called: the environment variable TEST_HOOK of the webhook is not set$"),
    ):
        monkeypatch.setenv("TEST_HOOK", value)
        with pytest.raises(NotifyError, match=reason) as told:
            call(Notify(webhook="${TEST_HOOK}"), MESSAGE)
        assert "lovelace" not in str(told.value)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ({}, "notify: must have one of command and webhook."),
        ({"command": ["true"], "webhook": "http://x/"}, "notify: must have one of command and webhook."),
        ({"command": []}, "notify.command: must be a list with at least 1 entry, got []."),
        ({"command": "mail me"}, "notify.command: must be a list, got 'mail me': write ['mail me']."),
        ({"command": ["curl", "https://ada:lovelace@x/"]}, "notify.command.1: https://ada:***@x/ holds a secret"),
        ({"comand": ["true"]}, "notify.comand: "),
        ({"webhook": "ftp://x/"}, "notify.webhook: must begin with http://, https:// or an environment variable"),
        ({"webhook": "$HOOK"}, "notify.webhook: must begin with http://, https:// or an environment variable"),
        ({"webhook": "https://ada@x/"}, "notify.webhook: https://ada@x/ must have no user name"),
        ({"webhook": "https://ada:lovelace@x/"}, "notify.webhook: holds a secret"),
        ({"webhook": "https://x/?token=lovelace"}, "notify.webhook: holds a secret"),
        ({"webhook": "https://hooks.slack.com/services/T0/B0/lovelace"}, "notify.webhook: holds a secret"),
        ("mail me", "notify: must be a mapping with keys such as command, webhook; got 'mail me'."),
    ],
)
def test_a_wrong_notify_is_refused_without_its_secret(raw_spec: dict[str, Any], value: Any, problem: str) -> None:
    with pytest.raises(SpecError) as told:
        parse_spec(raw_spec | {"notify": value}, "a test")
    assert any(each.startswith(problem) for each in told.value.problems), told.value
    assert "lovelace" not in str(told.value)


def test_secrets_in_variables_are_accepted_and_a_recorded_spec_stays_readable(raw_spec: dict[str, Any]) -> None:
    for webhook in ("https://hooks.slack.com/services/${HOOK}", "https://x/?token=${TOKEN}", "${WHOLE}"):
        assert parse_spec(raw_spec | {"notify": {"webhook": webhook}}, "a test").notify == Notify(webhook=webhook)
    # A newer version may have a third way.
    newer = parse_recorded_spec(raw_spec | {"notify": {"pigeon": "grey"}}, "a test")
    assert newer.notify == Notify.model_validate({}, context={"recorded": True})
