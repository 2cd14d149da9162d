"""State machine of a sweep.

It decides which trial runs next and updates trial states when an epoch finishes, a trial fails, or the budget is used
up. It knows nothing of Ray, MLflow or torch. A driver (`orchestrator/drivers`) calls it from one thread:

    trial = sweep.next_trial()             # None: nothing to start now; sweep.has_ended says whether ever again
    go_on = sweep.on_epochs(id, epochs)    # False: the trial is complete, pruned or interrupted
    sweep.on_failure(id, failure)          # after the epochs of a report, or in place of them
"""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Callable, Sequence

from orchestrator.spec.schema import SweepSpec
from orchestrator.study.storage.database import StudyDatabase
from orchestrator.study.storage.lease import Lease
from orchestrator.study.storage.trial_table import TrialTable
from orchestrator.study.study import Study, load_studies
from orchestrator.study.summary import StudySummary
from orchestrator.study.trial import Epoch, Failure, FailureCause, Trial, TrialState
from orchestrator.sweep.assignment import Assignment
from orchestrator.sweep.conflicts import check_spec_matches_trials, delete_obsolete_trials
from orchestrator.sweep.device_kinds import DeviceKinds
from orchestrator.sweep.epoch_policy import state_after_epoch
from orchestrator.sweep.gpu_sharing import GpuAllocator
from orchestrator.sweep.halt import Halt
from orchestrator.sweep.retry_policy import FailureStreak, next_state_after
from orchestrator.sweep.summary_cache import SummaryCache
from orchestrator.sweep.tracker import Tracker
from trainer.metric_names import EPOCH_SECONDS


class Sweep:
    """All studies of a spec, over one study database.

    The constructor reads and writes nothing. Use `Sweep.resume` to open a sweep, new or old.

    Args:
        studies: the studies of the spec, with the trials they have so far.
        lease: this driver's lease on the sweep. It is checked before every write.
        on_finish: called with a study after one of its trials has finished.
        clock: seconds, for the budget and for trials that are silent too long.
    """

    def __init__(
        self,
        spec: SweepSpec,
        studies: Sequence[Study],
        database: StudyDatabase,
        tracker: Tracker,
        *,
        lease: Lease | None = None,
        on_finish: Callable[[Study], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.spec = spec
        self.studies = list(studies)
        self.halt: Halt | None = None
        self.gpu_allocator = GpuAllocator(spec.resources)
        """CPUs and GPU share of each trial."""
        self.device_kinds = DeviceKinds(studies, may_mix=spec.resources.mix_devices)
        """Kinds of devices that each study ran on."""
        self.num_started = 0
        """Trials that were ever started."""
        self.gpu_hours = 0.0
        """Sum over trials of hours times GPU share."""

        self._database = database
        self._tracker = tracker
        self._lease = lease
        self._on_finish = on_finish
        self._clock = clock
        self._started_at = clock()
        self._hours_before = 0.0

        self._open_studies = list(self.studies)
        self._assigned: dict[str, Assignment] = {}
        self._queue: deque[tuple[Study, TrialTable, int]] = deque()
        self._failure_streak = FailureStreak()
        # Studies that cannot start a trial until one of theirs finishes: not to be asked in vain ten times a second.
        self._blocked: set[str] = set()
        self._summary_cache = SummaryCache(self.studies)

    @classmethod
    def resume(
        cls,
        spec: SweepSpec,
        database: StudyDatabase,
        tracker: Tracker,
        *,
        lease: Lease | None = None,
        on_finish: Callable[[Study], None] = lambda _: None,
        on_delete: Callable[[Study], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> Sweep:
        """Open a sweep where its last driver left it; a new one has no trials yet.

        Saves the spec, makes trials of a dead driver WAITING, and syncs the tracker. Deletes the trials of studies that
        produced nothing before the spec was corrected.

        Args:
            on_delete: called with a study before its trials are deleted.

        Raises:
            ConflictError: if the spec contradicts existing trials, with every difference. Nothing is changed then.
        """
        studies = load_studies(spec, database)
        check_spec_matches_trials(spec, studies)
        delete_obsolete_trials(studies, on_delete)

        # Saved once it is known to fit the trials: the recorded spec is what `resume` and `status` read.
        database.save_sweep(spec.name, spec.model_dump(mode="json"))

        sweep = cls(spec, studies, database, tracker, lease=lease, on_finish=on_finish, clock=clock)
        for study in studies:
            sweep._resume_study(study)
        sweep._open_studies = [study for study in studies if not study.is_closed]
        sweep._restore_totals()
        return sweep

    def _resume_study(self, study: Study) -> None:
        # Settings may have become wider. A study without trials stays out of the database until its first one.
        if study.search_table.trials:
            study.save_settings()
        study.resolve_duplicates()
        self._tracker.open_study(study)

        for table in (study.search_table, study.final_table):
            for trial in list(table.trials):
                if trial.state is TrialState.RUNNING:
                    # The lease is ours, so the driver that ran it is dead.
                    self._update(study, table, dataclasses.replace(trial, state=TrialState.WAITING))
                elif trial.duplicate_of is None:
                    self._tracker.sync(trial, table)

        self._queue += [(study, table, number) for table, number in study.unfinished()]
        if study.has_new_summary:
            self._tracker.sync_study(study)

    def _restore_totals(self) -> None:
        """Recompute from all trials what an uninterrupted driver would have summed up."""
        trials = [trial for study in self.studies for trial in study.trials]
        self.num_started = len(trials)
        self.gpu_hours = self.gpu_allocator.restore(trials)
        self._hours_before = self._lease.hours() if self._lease else 0.0

    @property
    def is_done(self) -> bool:
        """Whether every trial of the spec is finished or its study is stopped."""
        return not self._open_studies and not self._assigned

    @property
    def has_ended(self) -> bool:
        """Whether no further trial will be assigned."""
        return self.halt is not None or not self._open_studies

    @property
    def hours(self) -> float:
        """Hours that drivers have worked on the sweep."""
        return self._hours_before + (self._clock() - self._started_at) / 3600

    @property
    def num_finished(self) -> int:
        """Number of complete, pruned and failed trials."""
        return sum(summary.num_finished for summary in self.summaries())

    def summaries(self) -> list[StudySummary]:
        """Return the progress of each study. Any thread may call it."""
        return self._summary_cache.summaries()

    def stop(self, reason: str) -> None:
        """Start no more trials, and interrupt the running ones at their next epoch."""
        self.halt = Halt(reason, interrupt_running=True)

    def tick(self) -> list[str]:
        """Check for a stop request, and return the ids of trials that are silent for too long.

        Call it several times a second.

        Raises:
            LeaseError: if another driver has taken over the sweep.
        """
        self._ensure_lease()
        if self._lease is not None and self._lease.stop_requested and self.halt is None:
            self.stop("stopped, as `sptune stop` requested")

        silent_since = self._clock() - 60 * self.spec.lost_after_minutes
        return [trial_id for trial_id, held in self._assigned.items() if held.last_heard < silent_since]

    def next_trial(self) -> Trial | None:
        """Return a trial to run now, from its checkpoint if it has one; None if there is none at present.

        Trials that an earlier driver left, or that wait for another attempt, come first. New trials follow, study by
        study.

        Raises:
            LeaseError: if another driver has taken over the sweep.
        """
        self._ensure_lease()
        if self._open_studies and self.halt is None:
            reason = self.spec.budget.exhausted(self.hours, self.gpu_hours)
            if reason:
                self.halt = Halt(reason, is_budget=True)
        if self.halt is not None:
            return None

        while self._queue:
            study, table, number = self._queue.popleft()
            if not study.is_closed:
                return self._reassign(study, table, table.trials[number])
        return self._next_new_trial()

    def _next_new_trial(self) -> Trial | None:
        max_trials = self.spec.budget.max_trials
        for study in list(self._open_studies):
            if study.plan.key in self._blocked:
                continue

            if max_trials is not None and self.num_started >= max_trials:
                # A running trial may still need another attempt, which the budget allows: it was counted once.
                if not self._assigned:
                    self.halt = Halt(f"budget: max_trials {max_trials} are started", is_budget=True)
                return None

            # None means that the study waits for one of its running trials, or that it has no more.
            candidate = study.next_trial()
            if candidate is not None:
                table, trial = candidate
                if trial.state is TrialState.WAITING:
                    return self._reassign(study, table, trial)
                self.num_started += 1
                return self._assign(study, table, trial)

            self._blocked.add(study.plan.key)
            if study.is_closed:
                self._close_study(study)
        return None

    def on_start(self, trial_id: str) -> None:
        """Note that a worker starts a trial, which may have waited for a worker since it was assigned."""
        self._assigned[trial_id].start(self._clock())

    def on_epoch(
        self, trial_id: str, epoch: int, metrics: dict[str, float], provenance: dict[str, str] | None = None
    ) -> bool:
        """Process one finished epoch, as `on_epochs` does."""
        return self.on_epochs(trial_id, [Epoch(epoch=epoch, metrics=metrics, provenance=provenance or {})])

    def on_epochs(self, trial_id: str, epochs: Sequence[Epoch]) -> bool:
        """Process the finished epochs of a report, in their order. An epoch that is already stored changes nothing.

        The outcome is that of one report an epoch: each is judged before the next one is added, and those after the
        end of a trial do not count. They are written together.

        Args:
            epochs: at least one.

        Returns:
            True if the trial goes on; False if it is complete, pruned or interrupted.

        Raises:
            LeaseError: if another driver has taken over the sweep.
        """
        self._ensure_lease()
        assignment = self._assigned[trial_id]
        assignment.last_heard = self._clock()
        stored = assignment.table.trials[assignment.number]

        # Trials that started together on two kinds, before the first of them had reported its own.
        refusal = self.device_kinds.refusal(stored, epochs[-1].provenance)
        if refusal is not None and epochs[-1].epoch > len(stored.epochs):
            self.on_failure(trial_id, refusal)
            return False

        trial = stored
        for epoch in epochs:
            if epoch.epoch > len(trial.epochs):
                trial = self._add_epoch(trial, epoch)
            if len(trial.epochs) in (epoch.epoch, trial.config.epochs):
                trial = state_after_epoch(trial, assignment.study)
            if trial.state is not TrialState.RUNNING:
                break

        # Checked after the whole report, so that no finished epoch is lost. A report of stored epochs alone, as a
        # resumed trial makes, does not interrupt it.
        must_end = assignment.study.is_closed or (self.halt is not None and self.halt.interrupt_running)
        if must_end and trial.state is TrialState.RUNNING and epochs[-1].epoch == len(trial.epochs):
            trial = dataclasses.replace(trial, state=TrialState.WAITING)

        if trial is not stored:
            self._update(assignment.study, assignment.table, trial)
        return trial.state is TrialState.RUNNING

    def _add_epoch(self, trial: Trial, epoch: Epoch) -> Trial:
        """Return a trial with one more epoch, and learn from it what other trials need and what this one costs."""
        # A finished epoch shows that machine, data and code work.
        self._failure_streak.reset(epoch.provenance, started_at=self._assigned[trial.trial_id].started_at)
        metrics = self.gpu_allocator.add_epoch(trial, epoch.metrics, epoch.provenance, self._clock())
        trial = trial.with_epoch(metrics, epoch.provenance)
        self.device_kinds.add(trial)
        self.gpu_hours += metrics.get(EPOCH_SECONDS, 0.0) * self.gpu_allocator.gpus_for(trial) / 3600
        return trial

    def on_failure(self, trial_id: str, failure: Failure) -> None:
        """Process a failed attempt: the trial waits for another attempt, or is failed with its error."""
        assignment = self._assigned[trial_id]
        study, table = assignment.study, assignment.table
        trial = table.trials[assignment.number]

        gpus = self.gpu_allocator.gpus_for(trial)
        self.gpu_hours += failure.seconds * gpus / 3600
        trial = next_state_after(trial, failure, retries=self.spec.retries, gpus=gpus)
        self._update(study, table, trial)

        if trial.state is TrialState.WAITING:
            self._queue.append((study, table, trial.number))
        if failure.cause is FailureCause.INVALID:
            # Every other trial of the study would fail of the same.
            study.search_table.save_stop_reason(trial.error_summary)
            self._close_study(study)

        self._failure_streak.add(trial, failure, started_at=assignment.started_at, now=self._clock())
        if not self.has_ended:
            self.halt = self._failure_streak.halt_after(failure, trial, self.spec.pause_after)

    def is_running(self, trial_id: str) -> bool:
        """Return whether a trial is assigned and has not ended."""
        return trial_id in self._assigned

    def close(self) -> None:
        """Make running trials WAITING, and store why the sweep ends here.

        Raises:
            LeaseError: if another driver has taken over. That driver does the same.
        """
        self._ensure_lease()
        for assignment in list(self._assigned.values()):
            trial = assignment.table.trials[assignment.number]
            self._update(assignment.study, assignment.table, dataclasses.replace(trial, state=TrialState.WAITING))
        if self.halt is not None:
            self._database.save_halt_reason(self.spec.name, self.halt.reason)

    def _ensure_lease(self) -> None:
        if self._lease is not None:
            self._lease.ensure_held()

    def _assign(self, study: Study, table: TrialTable, trial: Trial) -> Trial:
        self._summary_cache.invalidate(study)
        self._assigned[trial.trial_id] = Assignment(study, table, trial.number, self._clock())
        self.gpu_allocator.assign(trial)
        self._tracker.sync(trial, table)
        return trial

    def _reassign(self, study: Study, table: TrialTable, trial: Trial) -> Trial:
        attempt = trial.attempt + 1
        trial = dataclasses.replace(trial, state=TrialState.RUNNING, attempt=attempt, error=None, cause=None)
        table.replace(trial)
        return self._assign(study, table, trial)

    def _update(self, study: Study, table: TrialTable, trial: Trial) -> None:
        """Write a trial, then do what follows from its new state."""
        table.replace(trial)
        self._summary_cache.invalidate(study)
        if trial.state is not TrialState.RUNNING:
            self._assigned.pop(trial.trial_id, None)
            self.gpu_allocator.release(trial.trial_id, self._clock())
        self._tracker.sync(trial, table)

        if trial.state.is_finished:
            self._finish_trial(study, trial)
        if self.is_done:
            # Nothing is left that the halt could keep from starting.
            self.halt = None

    def _finish_trial(self, study: Study, trial: Trial) -> None:
        if trial.phase == "search":
            study.advisor.discard(trial.number)
        study.resolve_duplicates()
        self._on_finish(study)
        if study.has_new_summary:
            self._tracker.sync_study(study)

        # With transfer, a finished search may unblock the studies that learn from it.
        has_transfer = any(other.plan.search.transfer for other in self._open_studies)
        self._blocked = set() if has_transfer else self._blocked - {study.plan.key}
        if study.is_closed:
            self._close_study(study)

    def _close_study(self, study: Study) -> None:
        if study in self._open_studies:
            self._open_studies.remove(study)
