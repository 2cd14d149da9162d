"""Tracker that makes MLflow equal to the study database, in a thread of its own.

`sync` and `sync_study` return at once. The thread asks MLflow once what it has of the sweep, logs what it lacks, and
retries while the server is away. People delete and move things in MLflow, so what the study database remembers of it is
only a belief; after an error, MLflow is asked again. What is not logged when the driver ends is logged by the next one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import threading
import time
from collections import Counter
from collections.abc import Callable

from orchestrator.study.study import Study
from orchestrator.study.trial import Trial
from orchestrator.sweep.tracker import SyncLog
from orchestrator.tracking.mlflow_client import explain, is_refusal, is_unreachable
from orchestrator.tracking.mlflow_experiment import PARENT, LoggedRun
from orchestrator.tracking.mlflow_projection import (
    RUN_STATUS,
    has_all,
    has_another_choice,
    has_summary,
    state_tags,
    study_tags,
)
from orchestrator.tracking.mlflow_runs import MlflowRuns

MIN_RETRY_DELAY_S = 0.5
MAX_RETRY_DELAY_S = 15.0
"""The delay between retries doubles from the first of these to the second."""
MAX_REFUSALS = 3
"""How often work is refused before the closing tracker gives it up."""
OPEN, CHECK = "open", "check"
"""Keys of work that belongs to no trial and no study."""
HASTE_S = 2.0
"""Seconds for which a tracker retries that is closed in haste."""
STUCK_S = 15.0
"""Seconds without progress after which a tracker that is closed in haste leaves its thread behind. MLflow tries to open
a database again for many minutes if the disk is full, and nothing interrupts it."""


class MlflowTracker:
    """Logs a sweep as one experiment, a study as a parent run, a trial as a child run.

    Args:
        runs: creates the runs and logs to them.
        patience_s: how long `close` retries if MLflow does not answer any more. It does not wait for a server that
            never answered, nor for one that refuses.
    """

    def __init__(self, runs: MlflowRuns, patience_s: float = 10.0) -> None:
        self._runs = runs
        self._patience_s = patience_s
        self._studies: dict[str, Study] = {}
        # All that was synced: the last state of each trial, and of each study its digest.
        self._trials: dict[str, tuple[Trial, SyncLog]] = {}
        self._digests: dict[str, str] = {}
        # By trial id or study key, the work that is not done, how often it failed in a row, and why.
        self._pending: dict[str, Callable[[], object]] = {}
        self._failures: Counter[str] = Counter()
        self._reasons: dict[str, str] = {}
        self._given_up: set[str] = set()
        # What MLflow has, by trial id or study key; None before it was asked.
        self._logged: dict[str, LoggedRun] | None = None
        # Run ids that the study database remembers, and whether some came after MLflow was asked.
        self._known: set[str] = set()
        self._has_new_known = False
        self._num_logged_epochs: dict[str, int] = {}
        # Guards `_pending` and `_closing_since`, and wakes the thread.
        self._changed = threading.Condition()
        # When the tracker began to close, or the last success after that.
        self._closing_since: float | None = None
        self._thread: threading.Thread | None = None
        self.num_logged = 0
        """Number of trials and studies that were completed in MLflow."""

    @property
    def problem(self) -> str | None:
        """MLflow's last error, as the end of a sentence about it, if something still has to be logged."""
        return next(reversed(self._reasons.values()), None)

    @property
    def changes(self) -> Counter[str]:
        """Number of runs that were `created`, `restored` or `removed` as duplicates."""
        return self._runs.changes

    def open(self) -> None:
        """Let the thread connect to MLflow now: its import and a new database take seconds, as Ray's start does."""
        self._enqueue(OPEN, self._open)

    def open_study(self, study: Study) -> None:
        """Prepare for a study. Its parent run is created together with the run of its first trial."""
        self._studies[study.plan.key] = study
        self._add_known(study.search_table.mlflow_run)

    def sync(self, trial: Trial, log: SyncLog) -> None:
        """Let the thread log all of a trial that MLflow lacks. A later state replaces one that is not logged yet."""
        self._trials[trial.trial_id] = trial, log
        self._add_known(log.synced_run(trial.number)[0])
        if _was_synced(trial, log):
            self._enqueue(CHECK, self._check)
        else:
            self._enqueue(trial.trial_id, functools.partial(self._log_trial, trial, log))

    def sync_study(self, study: Study) -> None:
        """Let the thread log the study's summary if it has changed since it was last logged."""
        digest = study.digest
        self._digests[study.plan.key] = digest
        if study.search_table.synced_digest == digest:
            self._enqueue(CHECK, self._check)
        else:
            self._enqueue(study.plan.key, functools.partial(self._log_study, study, digest))

    @property
    def num_pending(self) -> int:
        """How many trials and studies are not logged yet."""
        with self._changed:
            return len((self._pending.keys() | self._given_up) - {OPEN, CHECK})

    def close(self, on_wait: Callable[[int], None] = lambda _: None, *, in_haste: bool = False) -> int:
        """Log what is left, and return how many trials and studies could not be logged. Ctrl-C ends the wait for it.

        Args:
            on_wait: called twice a second with the number that is left.
            in_haste: retry for `HASTE_S` only if MLflow does not answer, because a signal stopped the sweep.
        """
        with self._changed:
            if in_haste:
                self._patience_s = HASTE_S
            self._closing_since = time.monotonic()
            self._changed.notify()
        num_left, changed_at = self.num_pending, time.monotonic()
        with contextlib.suppress(KeyboardInterrupt):
            while self._thread is not None and self._thread.is_alive():
                self._thread.join(timeout=0.5)
                on_wait(self.num_pending)

                if self.num_pending != num_left:
                    num_left, changed_at = self.num_pending, time.monotonic()
                if in_haste and time.monotonic() - changed_at > STUCK_S:
                    break
        return self.num_pending

    def _enqueue(self, key: str, work: Callable[[], object]) -> None:
        with self._changed:
            # Moved to the end, so that a trial that changes often does not keep others waiting.
            self._pending.pop(key, None)
            self._pending[key] = work
            self._changed.notify()

        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        """Do pending work until the tracker closes. This is the thread's function."""
        delay_s = MIN_RETRY_DELAY_S
        while True:
            task = self._wait_for_task()
            if task is None:
                return
            key, work = task

            try:
                work()
            except Exception as error:
                # Servers, proxies and disks raise errors of many classes. All of them are worth a retry.
                # Part of it may have been done: an answer may be lost, a person may have deleted a run. So MLflow is
                # asked again before anything else is created.
                self._logged = None
                self._failures[key] += 1
                self._reasons.pop(key, None)
                self._reasons[key] = explain(error)
                if not self._wait_for_retry(key, work, error, delay_s):
                    return
                delay_s = min(2 * delay_s, MAX_RETRY_DELAY_S)
            else:
                self._given_up.discard(key)
                self._failures.pop(key, None)
                self._reasons.pop(key, None)
                delay_s = MIN_RETRY_DELAY_S
                with self._changed:
                    # Patience begins anew with each success.
                    if self._closing_since is not None:
                        self._closing_since = time.monotonic()
                    # Newer work for the same key may have come meanwhile.
                    if self._pending[key] is work:
                        del self._pending[key]

    def _wait_for_task(self) -> tuple[str, Callable[[], object]] | None:
        """Return the first pending work and its key; None if the tracker closes and nothing is pending."""
        with self._changed:
            while not self._pending:
                if self._closing_since is not None:
                    return None
                self._changed.wait()
            return next(iter(self._pending.items()))

    def _wait_for_retry(self, key: str, work: Callable[[], object], error: Exception, delay_s: float) -> bool:
        """Wait before the next attempt, and return whether there is time for one."""
        with self._changed:
            # Others get their turn: the error may concern this work alone.
            if self._pending[key] is work:
                self._pending[key] = self._pending.pop(key)

            if self._closing_since is None:
                self._changed.wait_for(lambda: self._closing_since is not None, delay_s)
                return True

            if is_refusal(error):
                if self._failures[key] >= MAX_REFUSALS:
                    del self._pending[key]
                    self._given_up.add(key)
                return True

            if is_unreachable(error) and not self._runs.has_answered:
                return False
            if time.monotonic() - self._closing_since > self._patience_s:
                return False
            self._changed.wait_for(lambda: False, min(delay_s, MIN_RETRY_DELAY_S))
            return True

    def _open(self) -> None:
        # What fails here fails again, and is reported, when something has to be logged.
        with contextlib.suppress(Exception):
            self._load()

    def _add_known(self, run_id: str | None) -> None:
        if run_id is not None and run_id not in self._known:
            self._known.add(run_id)
            self._has_new_known = True

    def _load(self) -> dict[str, LoggedRun]:
        """Return what MLflow has, by trial id or study key. If that is not known, ask MLflow and check everything."""
        if self._logged is None or self._has_new_known:
            self._has_new_known = False
            # If the question fails, what was known before must not be used.
            self._logged = None
            self._logged = self._runs.load({*self._known})
            self._known |= {run.run_id for run in self._logged.values()}
            self._num_logged_epochs.clear()
            self._enqueue(CHECK, self._check)
        return self._logged

    def _check(self) -> None:
        """Enqueue what the study database believes to be in MLflow although it is not."""
        logged = self._load()
        for trial, log in [*self._trials.values()]:
            if trial.trial_id in logged:
                self._put_below_parent(logged, trial)
            if _was_synced(trial, log) and not has_all(logged.get(trial.trial_id), trial):
                self._enqueue(trial.trial_id, functools.partial(self._log_trial, trial, log))

        for key, digest in [*self._digests.items()]:
            study = self._studies[key]
            if study.search_table.synced_digest == digest and not has_summary(logged.get(key), digest):
                self._enqueue(key, functools.partial(self._log_study, study, digest))

    def _put_below_parent(self, logged: dict[str, LoggedRun], trial: Trial) -> None:
        """Make a trial's run the child of its study's run, which a person may have removed."""
        run = logged[trial.trial_id]
        parent = self._parent(self._studies[trial.study])
        if run.tags.get(PARENT) != parent.run_id:
            self._runs.move_below(run.run_id, parent.run_id)
            self._note(trial.trial_id, run, {PARENT: parent.run_id})

    def _log_trial(self, trial: Trial, log: SyncLog) -> None:
        """Make a trial's run equal the trial."""
        run = self._run_of(trial, log)
        run_id = run.run_id
        if trial.state.is_finished and has_all(run, trial):
            # The answer to the last request was lost.
            log.save_synced_run(trial.number, run_id, trial.state)
            return

        # The number is taken out until all went well: a request that fails may have been done in part, and then MLflow
        # has to be asked again how many epochs it has.
        num_logged = self._num_logged_epochs.pop(trial.trial_id)
        self._runs.log_epochs(run_id, trial, num_logged)
        self._num_logged_epochs[trial.trial_id] = max(num_logged, len(trial.epochs))

        status = RUN_STATUS[trial.state]
        if trial.state.is_finished:
            self._runs.log_outcome(run_id, self._studies[trial.study], trial)
            log.save_synced_run(trial.number, run_id, trial.state)
            self.num_logged += 1
        elif run.status != status:
            self._runs.log_status(run_id, trial.state)
        self._note(trial.trial_id, run, state_tags(trial), status)

    def _log_study(self, study: Study, digest: str) -> None:
        parent = self._parent(study)
        if not has_summary(parent, digest):
            # Params and curves in MLflow stay as they are, so another chosen trial takes another run.
            if has_another_choice(parent, study):
                parent = self._replace_parent(study, parent)
            self._runs.log_study(parent.run_id, study, digest)
            self.num_logged += 1
            self._note(study.plan.key, parent, study_tags(study, digest))
        study.search_table.save_synced_digest(digest)

    def _run_of(self, trial: Trial, log: SyncLog) -> LoggedRun:
        """Return a trial's run, which is created if there is none."""
        logged = self._load()
        run = logged.get(trial.trial_id)
        if run is None:
            study = self._studies[trial.study]
            run = self._runs.create_trial(study, trial, self._parent(study).run_id)
            logged[trial.trial_id] = run
            self._known.add(run.run_id)
            self._num_logged_epochs[trial.trial_id] = 0

        if log.synced_run(trial.number)[0] != run.run_id:
            log.save_synced_run(trial.number, run.run_id, None)
        if not run.has_params:
            self._runs.log_params(run.run_id, trial)
            run = dataclasses.replace(run, has_params=True)
            logged[trial.trial_id] = run
        if trial.trial_id not in self._num_logged_epochs:
            self._num_logged_epochs[trial.trial_id] = self._runs.num_logged_epochs(run.run_id)
        return run

    def _parent(self, study: Study) -> LoggedRun:
        """Return a study's parent run, which is created if there is none."""
        logged = self._load()
        run = logged.get(study.plan.key)
        if run is None:
            run = self._runs.create_study(study)
            logged[study.plan.key] = run
            self._known.add(run.run_id)
        if study.search_table.mlflow_run != run.run_id:
            study.search_table.save_mlflow_run(run.run_id)
        return run

    def _replace_parent(self, study: Study, old: LoggedRun) -> LoggedRun:
        """Return a new parent run, and remove the old one. The check that follows moves the children."""
        del self._load()[study.plan.key]
        parent = self._parent(study)
        self._runs.remove(old.run_id)
        self._enqueue(CHECK, self._check)
        return parent

    def _note(self, key: str, run: LoggedRun, tags: dict[str, str], status: str | None = None) -> None:
        """Remember what was logged to a run, so that MLflow is not asked."""
        tags = {**run.tags, **tags}
        self._load()[key] = dataclasses.replace(run, tags=tags, status=status or run.status)


def _was_synced(trial: Trial, log: SyncLog) -> bool:
    """Whether the study database says that the tracker has all of a trial."""
    return trial.state.is_finished and log.synced_run(trial.number)[1] is not None
