"""Messages about the end of a sweep. Programs read them, so keys are added and never renamed.

version                  1, raised only if a reader of this version would misread a message
id                       the same if a message is repeated: a receiver can ignore the second one
event                    done, paused, failed or out_of_budget
sweep, sweep_id          name, and identity among all sweeps that ever had this name
text                     all of it in a sentence, for people
reason                   why the sweep is not done, or has failed; null if it is done
home, host, time         folder or bucket; the driver's machine; when, as ISO 8601 with a time zone
hours, gpu_hours         hours of drivers so far; hours of trials, each times its share of a GPU
trials                   number of planned trials, and number in each state: waiting, running, complete, pruned, failed
studies                  number of studies
studies_without_result   keys of the studies that have no final trial with a score
"""

from __future__ import annotations

import hashlib
import shlex
import socket
from datetime import datetime
from typing import Any, Literal

from orchestrator.environment.home import Home
from orchestrator.errors import LeaseError
from orchestrator.study.summary import count_states
from orchestrator.study.trial import TrialState
from orchestrator.sweep.sweep import Sweep
from trainer.plain_text import counted
from trainer.redaction import redact

VERSION = 1
Event = Literal["done", "paused", "failed", "out_of_budget"]
WORDS: dict[Event, str] = {
    "done": "is done",
    "paused": "has paused",
    "failed": "has failed",
    "out_of_budget": "is out of budget",
}


def build_message(sweep: Sweep, home: Home, sweep_id: str, error: BaseException | None) -> dict[str, Any] | None:
    """Return the message about a sweep whose driver ends, or None if there is nothing to tell.

    Args:
        sweep: the sweep, with its trials saved.
        error: what ended the driver, if anything did.
    """
    ending = _ending(sweep, error)
    if ending is None:
        return None

    event, reason = ending
    summaries = sweep.summaries()
    states = count_states(summaries)
    num_planned = sum(summary.num_planned for summary in summaries)
    return {
        "version": VERSION,
        "id": _message_id(sweep, sweep_id, event, reason),
        "event": event,
        "sweep": sweep.spec.name,
        "sweep_id": sweep_id,
        "text": _sentence(sweep, event, reason, num_planned),
        "reason": reason,
        "home": redact(home.root),
        "host": socket.gethostname(),
        "time": datetime.now().astimezone().isoformat(timespec="seconds"),
        "hours": round(sweep.hours, 3),
        "gpu_hours": round(sweep.gpu_hours, 3),
        "trials": {"planned": num_planned} | {state.value: states[state] for state in TrialState},
        "studies": len(sweep.studies),
        "studies_without_result": _without_result(sweep),
    }


def _ending(sweep: Sweep, error: BaseException | None) -> tuple[Event, str | None] | None:
    """Return how a sweep ends here, and why; None if that is no news."""
    if error is not None:
        # After a lost lease another driver tells how the sweep ends. An interruption is the work of a person.
        is_news = isinstance(error, Exception) and not isinstance(error, LeaseError)
        return ("failed", redact(str(error) or type(error).__name__)) if is_news else None

    if sweep.halt is not None:
        return ("out_of_budget" if sweep.halt.is_budget else "paused"), redact(sweep.halt.reason)
    if not sweep.is_done:
        return None

    missing = len(_without_result(sweep))
    if missing:
        return "failed", f"no result of {missing} of {counted(len(sweep.studies), 'study')}"
    return "done", None


def _without_result(sweep: Sweep) -> list[str]:
    return [study.plan.key for study in sweep.studies if not study.has_result]


def _sentence(sweep: Sweep, event: Event, reason: str | None, num_planned: int) -> str:
    name = sweep.spec.name
    why = f" ({reason})" if reason else ""
    text = f"{name} {WORDS[event]}{why}: {sweep.num_finished} of {counted(num_planned, 'trial')} finished."
    return text if sweep.is_done else f"{text} Run `sptune resume {shlex.quote(name)}` to continue."


def _message_id(sweep: Sweep, sweep_id: str, event: Event, reason: str | None) -> str:
    """Return twelve hex digits that change with the event and with everything that trials have done since."""
    trials = [
        (trial.study, trial.phase, trial.trial_id, trial.state.value, trial.attempt, len(trial.epochs))
        for study in sweep.studies
        for trial in study.trials
    ]
    # The id is stored, so its content must not change.
    content = repr((sweep_id, event, reason, trials))
    return hashlib.sha256(content.encode()).hexdigest()[:12]
