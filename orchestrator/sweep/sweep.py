"""The state machine of a sweep: which trial is next, what an epoch means, what an end means.

It knows nothing of Ray, MLflow or torch; a driver (`inline.py`, `ray_driver.py`, `replay.py`) calls it from one
thread:

    trial = sweep.next_trial()          # None: nothing to do at present; sweep.ended tells whether ever again
    go_on = sweep.on_epoch(id, 1, {...})  # False: pruned, complete, or to be gone on with another day
    sweep.on_failure(id, failure)       # instead of an epoch
"""

from __future__ import annotations

import dataclasses
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.spec.schema import SweepSpec
from orchestrator.study.storage.database import Record
from orchestrator.study.storage.lease import Lease
from orchestrator.study.storage.trial_table import StudyRecord
from orchestrator.study.study import Study, StudySummary, open_studies
from orchestrator.study.trial import Cause, Failure, TrialResult, TrialState
from orchestrator.sweep.conflicts import refuse_contradictions
from orchestrator.sweep.gpu_sharing import Sharing
from orchestrator.sweep.retry_policy import Row, settled
from orchestrator.sweep.tracker import Tracker


@dataclass(frozen=True, slots=True)
class Halt:
    """Why no more trials are started though the sweep is not done."""

    reason: str
    at_once: bool = False
    """Whether running trials are to stop at their next epoch, to be gone on with; else they run to their end."""


@dataclass(slots=True)
class _Handed:
    """A trial that a worker has."""

    study: Study
    record: StudyRecord
    number: int
    heard: float
    """When it was handed out, began, or last finished an epoch."""


class Sweep:
    """All studies of a spec over one record.

    Args:
        lease: this driver's hold on the sweep, verified before anything is written.
        on_finish: called with a study after one of its trials finished.
        clock: seconds, for what is silent too long and what a budget allows.

    Raises:
        ConflictError: if the spec contradicts trials of this sweep, with every difference; nothing is changed.
    """

    def __init__(
        self,
        spec: SweepSpec,
        record: Record,
        tracker: Tracker,
        *,
        lease: Lease | None = None,
        on_finish: Callable[[Study], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.spec = spec
        self.studies = open_studies(spec, record)
        self._open = list(self.studies)
        self.halt: Halt | None = None
        self.sharing = Sharing(spec.resources)
        """What each trial is given of a machine."""
        self._record = record
        self._tracker = tracker
        self._lease = lease
        self._on_finish = on_finish
        self._clock = clock
        self._opened = clock()
        self._hours_before = lease.hours() if lease else 0.0
        self._handed: dict[str, _Handed] = {}
        self._waiting: deque[tuple[Study, StudyRecord, int]] = deque()
        self._row = Row()
        self._blocked: set[str] = set()  # studies with nothing to start until one of their trials finishes
        self._changes: Counter[str] = Counter()
        self._summaries: dict[str, tuple[int, StudySummary]] = {}
        refuse_contradictions(spec, self.studies)
        record.save_sweep(spec.name, spec.model_dump(mode="json"))
        for study in self.studies:
            if study.search.trials:
                study.open()
            study.settle()
            tracker.open_study(study)
            for trial_record in (study.search, study.final):
                for trial in list(trial_record.trials):
                    if trial.state is TrialState.RUNNING:  # its driver is dead
                        self._update(study, trial_record, dataclasses.replace(trial, state=TrialState.WAITING))
                    elif trial.duplicate_of is None:
                        tracker.sync(trial, trial_record)
            self._waiting += [(study, *place) for place in study.unfinished()]
            if study.at_a_stop:
                tracker.sync_study(study)
        self._open = [study for study in self.studies if not study.over]
        every = [trial for study in self.studies for trial in study.trials]
        for trial in every:
            self.sharing.learn(trial.config, trial.last)
        self.started = len(every)
        """Trials that were ever started."""
        self.gpu_hours = sum(trial.seconds * self.sharing.gpus(trial) for trial in every) / 3600
        """Hours of all trials, times their share of a GPU."""

    @property
    def done(self) -> bool:
        """Whether no trial is left to run: each that the spec asks for is finished, or its study stopped."""
        return not self._open and not self._handed

    @property
    def ended(self) -> bool:
        """Whether no trial will be handed out any more."""
        return self.halt is not None or not self._open

    @property
    def hours(self) -> float:
        """How long drivers were at work on it."""
        return self._hours_before + (self._clock() - self._opened) / 3600

    @property
    def finished(self) -> int:
        """Trials that have come to an end, whichever."""
        return sum(summary.finished for summary in self.summaries())

    def summaries(self) -> list[StudySummary]:
        """How far each study has come."""
        found = []
        for study in self.studies:  # a display asks from another thread: what is kept says of which change it is
            changes, kept = self._changes[study.plan.key], self._summaries.get(study.plan.key)
            if kept is None or kept[0] != changes:
                kept = self._summaries[study.plan.key] = changes, study.summary()
            found.append(kept[1])
        return found

    def stop(self, reason: str) -> None:
        """Start no more trials, and interrupt the running ones at their next epoch."""
        self.halt = Halt(reason, at_once=True)

    def tick(self) -> list[str]:
        """To be called now and then: notices a request to stop; the trials that are silent for too long."""
        if self._lease is not None:
            self._lease.verify()
            if self._lease.stop_asked and self.halt is None:
                self.stop("stopped, as `sptune stop` asked")
        limit = self._clock() - 60 * self.spec.lost_after_minutes
        return [trial_id for trial_id, handed in self._handed.items() if handed.heard < limit]

    def next_trial(self) -> TrialResult | None:
        """A trial to run now, from its checkpoint if it has one; None if there is none at present.

        First what an earlier driver left running or what waits for another attempt, then new trials, study by study.
        """
        if self._lease is not None:
            self._lease.verify()
        if self._open and self.halt is None and (reason := self.spec.budget.used_up(self.hours, self.gpu_hours)):
            self.halt = Halt(reason)
        if self.halt is not None:
            return None
        while self._waiting:
            study, record, number = self._waiting.popleft()
            if not study.over:
                return self._hand_out_again(study, record, record.trials[number])
        budget = self.spec.budget.max_trials
        for study in list(self._open):
            if study.plan.key in self._blocked:
                continue
            if budget is not None and self.started >= budget:
                if not self._handed:  # who runs now may still wait for another attempt
                    self.halt = Halt(f"budget: max_trials {budget} are started")
                return None
            if (found := study.next_trial()) is not None:
                record, trial = found
                if trial.state is TrialState.WAITING:
                    return self._hand_out_again(study, record, trial)
                self.started += 1
                return self._hand_out(study, record, trial)
            self._blocked.add(study.plan.key)
            if study.over:
                self._close(study)
        return None

    def on_start(self, trial_id: str) -> None:
        """Take in that a worker begins with a trial, which may have waited for it."""
        self._handed[trial_id].heard = self._clock()

    def on_epoch(
        self, trial_id: str, epoch: int, metrics: dict[str, float], facts: dict[str, str] | None = None
    ) -> bool:
        """Take in a finished epoch; an epoch that is known already changes nothing.

        Returns:
            Whether the trial goes on: False once it is complete, pruned or interrupted.
        """
        if self._lease is not None:
            self._lease.verify()
        handed = self._handed[trial_id]
        study, record, handed.heard = handed.study, handed.record, self._clock()
        known = record.trials[handed.number]
        trial = known
        if epoch > len(known.epochs):
            self._row.end()
            trial = known.after(metrics, facts or {})
            self.sharing.learn(trial.config, metrics)
            self.gpu_hours += metrics.get("epoch/seconds", 0.0) * self.sharing.gpus(trial) / 3600
        if len(trial.epochs) == trial.config["epochs"]:
            score = trial.epochs[-1][f"{trial.config['eval_split']}/accuracy"]
            trial = dataclasses.replace(trial, state=TrialState.COMPLETE, score=score)
        elif epoch == len(trial.epochs):
            if record is study.search:
                pruned, notes = study.advisor.judge(trial)
                trial = dataclasses.replace(trial, notes=notes, state=TrialState.PRUNED if pruned else trial.state)
            interrupted = study.over or (self.halt is not None and self.halt.at_once)
            if trial.state is TrialState.RUNNING and interrupted:
                trial = dataclasses.replace(trial, state=TrialState.WAITING)
        if trial is not known:
            self._update(study, record, trial)
        return trial.state is TrialState.RUNNING

    def on_failure(self, trial_id: str, failure: Failure) -> None:
        """Take in that an attempt ended badly: the trial waits for another one, or is failed with its error."""
        handed = self._handed[trial_id]
        study, record = handed.study, handed.record
        trial = record.trials[handed.number]
        self.gpu_hours += failure.seconds * self.sharing.gpus(trial) / 3600
        trial = settled(trial, failure, retries=self.spec.retries, gpus=self.sharing.gpus(trial))
        self._update(study, record, trial)
        if trial.state is TrialState.WAITING:
            self._waiting.append((study, record, trial.number))
        if failure.cause is Cause.INVALID:
            study.search.save_stopped(trial.sentence)
            self._close(study)
        self._row.add(trial)
        if self._row.is_long(self.spec.pause_after) and not self.ended:
            self.halt = Halt(f"paused: failures in a row ({failure.cause.value}), the last: {trial.sentence}")

    def is_under_way(self, trial_id: str) -> bool:
        """Whether the trial was handed out and has not ended."""
        return trial_id in self._handed

    def close(self) -> None:
        """Leave nothing running and remember why the sweep ends here, for whoever asks or goes on later.

        Raises:
            LeaseError: if another driver has taken over; it does the same.
        """
        if self._lease is not None:
            self._lease.verify()
        for handed in list(self._handed.values()):
            trial = handed.record.trials[handed.number]
            self._update(handed.study, handed.record, dataclasses.replace(trial, state=TrialState.WAITING))
        if self.halt is not None:
            self._record.save_halt(self.spec.name, self.halt.reason)

    def _hand_out(self, study: Study, record: StudyRecord, trial: TrialResult) -> TrialResult:
        self._changes[study.plan.key] += 1
        self._handed[trial.trial_id] = _Handed(study, record, trial.number, self._clock())
        self._tracker.sync(trial, record)
        return trial

    def _hand_out_again(self, study: Study, record: StudyRecord, trial: TrialResult) -> TrialResult:
        again = dataclasses.replace(trial, state=TrialState.RUNNING, attempt=trial.attempt + 1, error=None, cause=None)
        record.replace(again)
        return self._hand_out(study, record, again)

    def _update(self, study: Study, record: StudyRecord, trial: TrialResult) -> None:
        record.replace(trial)
        self._changes[study.plan.key] += 1
        if trial.state is not TrialState.RUNNING:
            self._handed.pop(trial.trial_id, None)
        self._tracker.sync(trial, record)
        if trial.state.is_finished:
            if record is study.search:
                study.advisor.forget(trial.number)
            study.settle()
            self._on_finish(study)
            if study.at_a_stop:
                self._tracker.sync_study(study)
            self._blocked = set() if self.spec.search.transfer else self._blocked - {study.plan.key}
            if study.over:
                self._close(study)
        if self.done:
            self.halt = None  # nothing is left that it could keep from starting

    def _close(self, study: Study) -> None:
        if study in self._open:
            self._open.remove(study)
