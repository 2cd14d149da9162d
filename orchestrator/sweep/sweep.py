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
from orchestrator.study.storage.database import StudyDatabase
from orchestrator.study.storage.lease import Lease
from orchestrator.study.storage.trial_table import TrialTable
from orchestrator.study.study import Study, StudySummary, load_studies
from orchestrator.study.trial import Failure, FailureCause, Trial, TrialState
from orchestrator.sweep.conflicts import check_spec_matches_trials
from orchestrator.sweep.gpu_sharing import GpuAllocator
from orchestrator.sweep.retry_policy import FailureStreak, next_state_after
from orchestrator.sweep.tracker import Tracker
from trainer.metric_names import EPOCH_SECONDS


@dataclass(frozen=True, slots=True)
class Halt:
    """Why no more trials are started though the sweep is not done."""

    reason: str
    interrupt_running: bool = False
    """Whether running trials are to stop at their next epoch, to be gone on with; else they run to their end."""


@dataclass(slots=True)
class _Assignment:
    """A trial that a worker has."""

    study: Study
    table: TrialTable
    number: int
    last_heard: float
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
        database: StudyDatabase,
        tracker: Tracker,
        *,
        lease: Lease | None = None,
        on_finish: Callable[[Study], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.spec = spec
        self.studies = load_studies(spec, database)
        self._open_studies = list(self.studies)
        self.halt: Halt | None = None
        self.gpu_allocator = GpuAllocator(spec.resources)
        """What each trial is given of a machine."""
        self._database = database
        self._tracker = tracker
        self._lease = lease
        self._on_finish = on_finish
        self._clock = clock
        self._started_at = clock()
        self._hours_before = lease.hours() if lease else 0.0
        self._assigned: dict[str, _Assignment] = {}
        self._queue: deque[tuple[Study, TrialTable, int]] = deque()
        self._failure_streak = FailureStreak()
        self._blocked: set[str] = set()  # studies with nothing to start until one of their trials finishes
        self._changes: Counter[str] = Counter()
        self._summaries: dict[str, tuple[int, StudySummary]] = {}
        check_spec_matches_trials(spec, self.studies)
        database.save_sweep(spec.name, spec.model_dump(mode="json"))
        for study in self.studies:
            if study.search_table.trials:
                study.save_settings()
            study.resolve_duplicates()
            tracker.open_study(study)
            for trial_record in (study.search_table, study.final_table):
                for trial in list(trial_record.trials):
                    if trial.state is TrialState.RUNNING:  # its driver is dead
                        self._update(study, trial_record, dataclasses.replace(trial, state=TrialState.WAITING))
                    elif trial.duplicate_of is None:
                        tracker.sync(trial, trial_record)
            self._queue += [(study, *place) for place in study.unfinished()]
            if study.has_new_summary:
                tracker.sync_study(study)
        self._open_studies = [study for study in self.studies if not study.is_closed]
        every = [trial for study in self.studies for trial in study.trials]
        for trial in every:
            self.gpu_allocator.update(trial.config, trial.last_metrics)
        self.num_started = len(every)
        """Trials that were ever started."""
        self.gpu_hours = sum(trial.seconds * self.gpu_allocator.gpus_for(trial) for trial in every) / 3600
        """Hours of all trials, times their share of a GPU."""

    @property
    def is_done(self) -> bool:
        """Whether no trial is left to run: each that the spec asks for is finished, or its study stopped."""
        return not self._open_studies and not self._assigned

    @property
    def has_ended(self) -> bool:
        """Whether no trial will be handed out any more."""
        return self.halt is not None or not self._open_studies

    @property
    def hours(self) -> float:
        """How long drivers were at work on it."""
        return self._hours_before + (self._clock() - self._started_at) / 3600

    @property
    def num_finished(self) -> int:
        """Trials that have come to an end, whichever."""
        return sum(summary.num_finished for summary in self.summaries())

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
        self.halt = Halt(reason, interrupt_running=True)

    def tick(self) -> list[str]:
        """To be called now and then: notices a request to stop; the trials that are silent for too long."""
        if self._lease is not None:
            self._lease.ensure_held()
            if self._lease.stop_requested and self.halt is None:
                self.stop("stopped, as `sptune stop` asked")
        limit = self._clock() - 60 * self.spec.lost_after_minutes
        return [trial_id for trial_id, handed in self._assigned.items() if handed.last_heard < limit]

    def next_trial(self) -> Trial | None:
        """A trial to run now, from its checkpoint if it has one; None if there is none at present.

        First what an earlier driver left running or what waits for another attempt, then new trials, study by study.
        """
        if self._lease is not None:
            self._lease.ensure_held()
        if (
            self._open_studies
            and self.halt is None
            and (reason := self.spec.budget.exhausted(self.hours, self.gpu_hours))
        ):
            self.halt = Halt(reason)
        if self.halt is not None:
            return None
        while self._queue:
            study, record, number = self._queue.popleft()
            if not study.is_closed:
                return self._reassign(study, record, record.trials[number])
        budget = self.spec.budget.max_trials
        for study in list(self._open_studies):
            if study.plan.key in self._blocked:
                continue
            if budget is not None and self.num_started >= budget:
                if not self._assigned:  # who runs now may still wait for another attempt
                    self.halt = Halt(f"budget: max_trials {budget} are started")
                return None
            if (found := study.next_trial()) is not None:
                record, trial = found
                if trial.state is TrialState.WAITING:
                    return self._reassign(study, record, trial)
                self.num_started += 1
                return self._assign(study, record, trial)
            self._blocked.add(study.plan.key)
            if study.is_closed:
                self._close(study)
        return None

    def on_start(self, trial_id: str) -> None:
        """Take in that a worker begins with a trial, which may have waited for it."""
        self._assigned[trial_id].last_heard = self._clock()

    def on_epoch(
        self, trial_id: str, epoch: int, metrics: dict[str, float], facts: dict[str, str] | None = None
    ) -> bool:
        """Take in a finished epoch; an epoch that is known already changes nothing.

        Returns:
            Whether the trial goes on: False once it is complete, pruned or interrupted.
        """
        if self._lease is not None:
            self._lease.ensure_held()
        handed = self._assigned[trial_id]
        study, record, handed.last_heard = handed.study, handed.table, self._clock()
        known = record.trials[handed.number]
        trial = known
        if epoch > len(known.epochs):
            self._failure_streak.reset()
            trial = known.with_epoch(metrics, facts or {})
            self.gpu_allocator.update(trial.config, metrics)
            self.gpu_hours += metrics.get(EPOCH_SECONDS, 0.0) * self.gpu_allocator.gpus_for(trial) / 3600
        if len(trial.epochs) == trial.config.epochs:
            score = trial.epochs[-1][f"{trial.config.eval_split}/accuracy"]
            trial = dataclasses.replace(trial, state=TrialState.COMPLETE, score=score)
        elif epoch == len(trial.epochs):
            if record is study.search_table:
                pruned, notes = study.advisor.should_prune(trial)
                trial = dataclasses.replace(
                    trial, sampler_attrs=notes, state=TrialState.PRUNED if pruned else trial.state
                )
            interrupted = study.is_closed or (self.halt is not None and self.halt.interrupt_running)
            if trial.state is TrialState.RUNNING and interrupted:
                trial = dataclasses.replace(trial, state=TrialState.WAITING)
        if trial is not known:
            self._update(study, record, trial)
        return trial.state is TrialState.RUNNING

    def on_failure(self, trial_id: str, failure: Failure) -> None:
        """Take in that an attempt ended badly: the trial waits for another one, or is failed with its error."""
        handed = self._assigned[trial_id]
        study, record = handed.study, handed.table
        trial = record.trials[handed.number]
        self.gpu_hours += failure.seconds * self.gpu_allocator.gpus_for(trial) / 3600
        trial = next_state_after(trial, failure, retries=self.spec.retries, gpus=self.gpu_allocator.gpus_for(trial))
        self._update(study, record, trial)
        if trial.state is TrialState.WAITING:
            self._queue.append((study, record, trial.number))
        if failure.cause is FailureCause.INVALID:
            study.search_table.save_stop_reason(trial.error_summary)
            self._close(study)
        self._failure_streak.add(trial)
        if self._failure_streak.reaches(self.spec.pause_after) and not self.has_ended:
            self.halt = Halt(f"paused: failures in a row ({failure.cause.value}), the last: {trial.error_summary}")

    def is_running(self, trial_id: str) -> bool:
        """Whether the trial was handed out and has not ended."""
        return trial_id in self._assigned

    def close(self) -> None:
        """Leave nothing running and remember why the sweep ends here, for whoever asks or goes on later.

        Raises:
            LeaseError: if another driver has taken over; it does the same.
        """
        if self._lease is not None:
            self._lease.ensure_held()
        for handed in list(self._assigned.values()):
            trial = handed.table.trials[handed.number]
            self._update(handed.study, handed.table, dataclasses.replace(trial, state=TrialState.WAITING))
        if self.halt is not None:
            self._database.save_halt_reason(self.spec.name, self.halt.reason)

    def _assign(self, study: Study, record: TrialTable, trial: Trial) -> Trial:
        self._changes[study.plan.key] += 1
        self._assigned[trial.trial_id] = _Assignment(study, record, trial.number, self._clock())
        self._tracker.sync(trial, record)
        return trial

    def _reassign(self, study: Study, record: TrialTable, trial: Trial) -> Trial:
        again = dataclasses.replace(trial, state=TrialState.RUNNING, attempt=trial.attempt + 1, error=None, cause=None)
        record.replace(again)
        return self._assign(study, record, again)

    def _update(self, study: Study, record: TrialTable, trial: Trial) -> None:
        record.replace(trial)
        self._changes[study.plan.key] += 1
        if trial.state is not TrialState.RUNNING:
            self._assigned.pop(trial.trial_id, None)
        self._tracker.sync(trial, record)
        if trial.state.is_finished:
            if record is study.search_table:
                study.advisor.discard(trial.number)
            study.resolve_duplicates()
            self._on_finish(study)
            if study.has_new_summary:
                self._tracker.sync_study(study)
            self._blocked = set() if self.spec.search.transfer else self._blocked - {study.plan.key}
            if study.is_closed:
                self._close(study)
        if self.is_done:
            self.halt = None  # nothing is left that it could keep from starting

    def _close(self, study: Study) -> None:
        if study in self._open_studies:
            self._open_studies.remove(study)
