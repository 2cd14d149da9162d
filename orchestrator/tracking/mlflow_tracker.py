"""Makes MLflow equal to the record, trial by trial and study by study, in a thread of its own.

`sync` and `sync_study` return at once; the thread does what MLflow still lacks. While the server is away it tries
again, and what is not told when the driver ends is told at the next launch: the record says what was.
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


class MlflowTracker:
    """One experiment a sweep, a parent run a study, a child run a trial.

    Args:
        runs: what a run is made of, and where.
        patience_s: how long `close` goes on trying when MLflow does not answer.
    """

    def __init__(self, runs: MlflowRuns, patience_s: float = 30.0) -> None:
        self._runs = runs
        self._patience_s = patience_s
        self._studies: dict[str, Study] = {}
        self._pending: dict[str, Callable[[], None]] = {}
        self._told: dict[str, int] = {}
        self._status: dict[str, str] = {}
        self._changed = threading.Condition()
        self._closing_since: float | None = None
        self._thread: threading.Thread | None = None
        self.problem: str | None = None
        """What MLflow last had against something that is still to be told."""

    def open(self) -> None:
        """Have the thread reach MLflow already: its import and a new database take seconds, as Ray's start does."""
        self._enqueue("", self._open)

    def open_study(self, study: Study) -> None:
        """The parent run is made with the study's first trial."""
        self._studies[study.plan.key] = study

    def sync(self, trial: Trial, ledger: SyncLog) -> None:
        """Have the thread tell MLflow what it lacks of a trial; a later state replaces one not yet told."""
        if ledger.synced_run(trial.number)[1] is None:
            self._enqueue(trial.trial_id, lambda: self._log_trial(trial, ledger))

    def sync_study(self, study: Study) -> None:
        """Have the thread write the parent's page anew, if the study has come to something else since."""
        mark = study.digest
        if study.search_table.synced_digest != mark:
            self._enqueue(study.plan.key, lambda: self._log_study(study, mark))

    def close(self) -> int:
        """Tell what is left, trying for `patience_s` if MLflow does not answer; how much was not told."""
        with self._changed:
            self._closing_since = time.monotonic()
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()
        return len(self._pending)

    def _enqueue(self, key: str, work: Callable[[], None]) -> None:
        with self._changed:
            self._pending.pop(key, None)
            self._pending[key] = work
            self._changed.notify()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        delay_s = 0.5
        while True:
            with self._changed:
                while not self._pending:
                    if self._closing_since is not None:
                        return
                    self._changed.wait()
                key, work = next(iter(self._pending.items()))
            try:
                work()
            except Exception as error:  # whatever a server, a proxy or a disk can answer: said, and tried again
                self.problem = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
                with self._changed:
                    if self._pending[key] is work:  # the others get their turn: it may be this one's fault
                        self._pending[key] = self._pending.pop(key)
                    if self._closing_since and time.monotonic() - self._closing_since > self._patience_s:
                        return
                    if self._closing_since is None:
                        self._changed.wait_for(lambda: self._closing_since is not None, delay_s)
                    else:
                        self._changed.wait_for(lambda: False, min(delay_s, 0.5))
                delay_s = min(2 * delay_s, 15.0)
                continue
            self.problem, delay_s = None, 0.5
            with self._changed:
                if self._pending[key] is work:
                    del self._pending[key]

    def _open(self) -> None:
        with contextlib.suppress(Exception):  # what fails here fails again, and is said, when something is told
            self._runs.open()

    def _log_trial(self, trial: Trial, ledger: SyncLog) -> None:
        """Make a trial's run equal the trial."""
        run_id = self._run_of(trial, ledger)
        # What fails may have been done in part: unless all goes well, the run is asked again what it has.
        told = self._told.pop(trial.trial_id)
        self._runs.log_epochs(run_id, trial, told)
        self._told[trial.trial_id] = max(told, len(trial.epochs))
        if trial.state.is_finished:
            self._runs.log_outcome(run_id, trial)
            ledger.save_synced_run(trial.number, run_id, trial.state)
        elif self._status.get(trial.trial_id) != RUN_STATUS[trial.state]:
            self._runs.log_status(run_id, trial.state)
            self._status[trial.trial_id] = RUN_STATUS[trial.state]

    def _log_study(self, study: Study, mark: str) -> None:
        self._runs.log_study(self._parent(study), study)
        study.search_table.save_synced_digest(mark)

    def _run_of(self, trial: Trial, ledger: SyncLog) -> str:
        """The trial's run: the one in the ledger, or one that an earlier driver made and died, or a new one."""
        run_id, _ = ledger.synced_run(trial.number)
        if run_id is None:
            study = self._studies[trial.study]
            may_have_one = trial.attempt > 1 or trial.state is not TrialState.RUNNING
            run_id = self._runs.find("trial_id", trial.trial_id) if may_have_one else None
            if run_id is None:
                run_id = self._runs.create_trial(study, trial, self._parent(study))
            ledger.save_synced_run(trial.number, run_id, None)
            self._runs.log_params(run_id, trial)
        if trial.trial_id not in self._told:
            self._told[trial.trial_id] = self._runs.num_logged_epochs(run_id)
        return run_id

    def _parent(self, study: Study) -> str:
        run_id = study.search_table.mlflow_run
        if run_id is None:
            run_id = self._runs.find("study", study.plan.key) or self._runs.create_study(study)
            study.search_table.save_mlflow_run(run_id)
        return run_id
