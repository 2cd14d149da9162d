"""Tracker that makes MLflow equal to the study database, in a thread of its own.

`sync` and `sync_study` return at once. The thread logs what MLflow lacks, and retries while the server is away. What is
not logged when the driver ends is logged by the next one, because the study database stores what MLflow has.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable

from orchestrator.study.study import Study
from orchestrator.study.trial import Trial, TrialState
from orchestrator.sweep.tracker import SyncLog
from orchestrator.tracking.mlflow_runs import RUN_STATUS, MlflowRuns

MIN_RETRY_DELAY_S = 0.5
MAX_RETRY_DELAY_S = 15.0
"""The delay between retries doubles from the first of these to the second."""
HASTE_S = 2.0
"""Seconds for which a tracker retries that is closed in haste."""


class MlflowTracker:
    """Logs a sweep as one experiment, a study as a parent run, a trial as a child run.

    Args:
        runs: creates the runs and logs to them.
        patience_s: how long `close` retries if MLflow does not answer.
    """

    def __init__(self, runs: MlflowRuns, patience_s: float = 30.0) -> None:
        self._runs = runs
        self._patience_s = patience_s
        self._studies: dict[str, Study] = {}
        # By trial id or study key, the work that is not done.
        self._pending: dict[str, Callable[[], None]] = {}
        # By trial id, what MLflow has: how many epochs, and the status of the run.
        self._num_logged_epochs: dict[str, int] = {}
        self._status: dict[str, str] = {}
        # Guards `_pending` and `_closing_since`, and wakes the thread.
        self._changed = threading.Condition()
        self._closing_since: float | None = None
        self._thread: threading.Thread | None = None
        self.problem: str | None = None
        """MLflow's last error, if something still has to be logged."""

    def open(self) -> None:
        """Let the thread connect to MLflow now: its import and a new database take seconds, as Ray's start does."""
        self._enqueue("", self._open)

    def open_study(self, study: Study) -> None:
        """Prepare for a study. Its parent run is created together with the run of its first trial."""
        self._studies[study.plan.key] = study

    def sync(self, trial: Trial, log: SyncLog) -> None:
        """Let the thread log all of a trial that MLflow lacks. A later state replaces one that is not logged yet."""
        _, synced_state = log.synced_run(trial.number)
        if synced_state is None:
            self._enqueue(trial.trial_id, lambda: self._log_trial(trial, log))

    def sync_study(self, study: Study) -> None:
        """Let the thread log the study's summary if it has changed since it was last logged."""
        digest = study.digest
        if study.search_table.synced_digest != digest:
            self._enqueue(study.plan.key, lambda: self._log_study(study, digest))

    def close(self, *, in_haste: bool = False) -> int:
        """Log what is left, and return how much could not be logged. Ctrl-C ends the wait for it.

        Args:
            in_haste: retry for `HASTE_S` only if MLflow does not answer, because a signal stopped the sweep.
        """
        with self._changed:
            if in_haste:
                self._patience_s = HASTE_S
            self._closing_since = time.monotonic()
            self._changed.notify()
        if self._thread is not None:
            try:
                self._thread.join()
            except KeyboardInterrupt:
                self.problem = self.problem or "interrupted"
        return len(self._pending)

    def _enqueue(self, key: str, work: Callable[[], None]) -> None:
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
                message = str(error).splitlines()[0] if str(error) else ""
                self.problem = f"{type(error).__name__}: {message}"
                if not self._wait_for_retry(key, work, delay_s):
                    return
                delay_s = min(2 * delay_s, MAX_RETRY_DELAY_S)
            else:
                self.problem = None
                delay_s = MIN_RETRY_DELAY_S
                with self._changed:
                    # Newer work for the same key may have come meanwhile.
                    if self._pending[key] is work:
                        del self._pending[key]

    def _wait_for_task(self) -> tuple[str, Callable[[], None]] | None:
        """Return the first pending work and its key; None if the tracker closes and nothing is pending."""
        with self._changed:
            while not self._pending:
                if self._closing_since is not None:
                    return None
                self._changed.wait()
            return next(iter(self._pending.items()))

    def _wait_for_retry(self, key: str, work: Callable[[], None], delay_s: float) -> bool:
        """Wait before the next attempt, and return whether there is time for one."""
        with self._changed:
            # Others get their turn: the error may concern this work alone.
            if self._pending[key] is work:
                self._pending[key] = self._pending.pop(key)

            if self._closing_since is None:
                self._changed.wait_for(lambda: self._closing_since is not None, delay_s)
                return True

            if time.monotonic() - self._closing_since > self._patience_s:
                return False
            self._changed.wait_for(lambda: False, min(delay_s, MIN_RETRY_DELAY_S))
            return True

    def _open(self) -> None:
        # What fails here fails again, and is reported, when something has to be logged.
        with contextlib.suppress(Exception):
            self._runs.open()

    def _log_trial(self, trial: Trial, log: SyncLog) -> None:
        """Make a trial's run equal the trial."""
        run_id = self._run_of(trial, log)

        # The number is taken out until all went well: a request that fails may have been done in part, and then MLflow
        # has to be asked again how many epochs it has.
        num_logged = self._num_logged_epochs.pop(trial.trial_id)
        self._runs.log_epochs(run_id, trial, num_logged)
        self._num_logged_epochs[trial.trial_id] = max(num_logged, len(trial.epochs))

        if trial.state.is_finished:
            self._runs.log_outcome(run_id, trial)
            log.save_synced_run(trial.number, run_id, trial.state)
        elif self._status.get(trial.trial_id) != RUN_STATUS[trial.state]:
            self._runs.log_status(run_id, trial.state)
            self._status[trial.trial_id] = RUN_STATUS[trial.state]

    def _log_study(self, study: Study, digest: str) -> None:
        self._runs.log_study(self._parent(study), study)
        study.search_table.save_synced_digest(digest)

    def _run_of(self, trial: Trial, log: SyncLog) -> str:
        """Return the id of a trial's run, which is created if there is none."""
        run_id, _ = log.synced_run(trial.number)
        if run_id is None:
            study = self._studies[trial.study]
            # An earlier driver may have created a run and died before it could save the id. What it left is WAITING, or
            # in a later attempt by now. For a new trial the search would only cost a request.
            may_have_run = trial.attempt > 1 or trial.state is not TrialState.RUNNING
            if may_have_run:
                run_id = self._runs.find("trial_id", trial.trial_id)
            if run_id is None:
                run_id = self._runs.create_trial(study, trial, self._parent(study))
            log.save_synced_run(trial.number, run_id, None)
            self._runs.log_params(run_id, trial)

        if trial.trial_id not in self._num_logged_epochs:
            self._num_logged_epochs[trial.trial_id] = self._runs.num_logged_epochs(run_id)
        return run_id

    def _parent(self, study: Study) -> str:
        """Return the id of a study's parent run, which is created if there is none."""
        run_id = study.search_table.mlflow_run
        if run_id is None:
            run_id = self._runs.find("study", study.plan.key) or self._runs.create_study(study)
            study.search_table.save_mlflow_run(run_id)
        return run_id
