"""The state machine of a sweep: which trial is next, what an epoch means, what an end means.

It knows nothing of Ray, MLflow or torch; a driver (`inline.py`, `ray_driver.py`) calls it from one thread:

    trial = sweep.next_trial()          # None: nothing to do at present; sweep.done tells whether ever again
    go_on = sweep.on_epoch(id, 1, {...})  # False: pruned, or complete
    sweep.on_failure(id, failure)       # instead of an epoch
"""

from __future__ import annotations

import dataclasses
from collections import Counter, deque
from dataclasses import dataclass
from typing import Any

from orchestrator.errors import ConflictError
from orchestrator.plan import StudyPlan, studies
from orchestrator.results import Failure, TrialResult, TrialState
from orchestrator.search import Record, StudyRecord
from orchestrator.spec import SweepSpec
from orchestrator.tracking import Tracker
from trainer.config import TrainConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class StudySummary:
    """How far a study has come."""

    plan: StudyPlan
    planned: int
    """Search and final trials that it will have."""
    states: Counter[TrialState]
    best: TrialResult | None
    """The search trial that its final trials repeat, or would repeat if the search ended now."""
    finals: list[TrialResult]
    """Final trials of `best`."""
    failed: list[TrialResult]


class Study:
    """One study: its search, then the final trials of its best params."""

    def __init__(self, spec: SweepSpec, plan: StudyPlan, record: Record) -> None:
        self.spec = spec
        self.plan = plan
        self.search = record.open_study(spec.name, plan, "search", spec.search)
        self.final = record.open_study(spec.name, plan, "final", spec.search)

    def conflict(self) -> str | None:
        """How the spec contradicts the trials that are there, or None."""
        theirs, ours = self.search.settings, self._settings()
        if theirs is None or not self.search.trials or theirs == ours:
            return None
        names = [name for name in sorted(theirs.keys() | ours.keys()) if theirs.get(name) != ours.get(name)]
        return "; ".join(f"{name} was {theirs.get(name)}, is {ours.get(name)}" for name in names)

    def open(self) -> None:
        """Remember what the trials are made under, before the first one."""
        if self.search.settings != self._settings():
            self.search.save_settings(self._settings())

    def _settings(self) -> dict[str, Any]:
        """What a trial depends on beside its number: changing it would mix two experiments."""
        search = self.spec.search.model_dump(exclude={"trials"})
        space = {f"space.{name}": dimension.model_dump() for name, dimension in self.plan.space.items()}
        fixed = {f"fixed.{name}": value for name, value in self.plan.fixed.items()}
        return {f"search.{name}": value for name, value in search.items()} | space | fixed

    @property
    def searched(self) -> list[TrialResult]:
        """The search trials that the spec asks for, as far as there are any."""
        return self.search.trials[: self.spec.search.trials]

    @property
    def search_done(self) -> bool:
        """Whether nothing is left to search."""
        return len(self.searched) == self.spec.search.trials and all(t.state.is_finished for t in self.searched)

    @property
    def best(self) -> TrialResult | None:
        """The complete trial with the best val/accuracy at its last epoch; of equals the earliest."""
        complete = [trial for trial in self.searched if trial.score is not None]
        return max(complete, key=lambda trial: (trial.score, -trial.number), default=None)

    def final_configs(self) -> dict[str, tuple[int, TrainConfig]]:
        """Seed and config of each final trial, by trial id; none while there is nothing to repeat."""
        if self.best is None:
            return {}
        configs = {seed: self.plan.final_config(self.best.params, seed) for seed in self.spec.final.seeds}
        return {config.fingerprint(): (seed, config) for seed, config in configs.items()}

    @property
    def finals(self) -> list[TrialResult]:
        """The final trials of the best params that were started."""
        wanted = self.final_configs()
        return [trial for trial in self.final.trials if trial.trial_id in wanted]

    @property
    def done(self) -> bool:
        """Whether every trial that the spec asks for is finished."""
        if not self.search_done:
            return False
        finals = self.finals
        return len(finals) == len(self.final_configs()) and all(trial.state.is_finished for trial in finals)

    def next_trial(self) -> tuple[StudyRecord, TrialResult] | None:
        """Put the next new trial into the record, or None if there is none or others must finish first."""
        while (number := len(self.search.trials)) < self.spec.search.trials:
            horizon = max(0, number - self.spec.search.max_concurrent + 1)
            if not all(trial.state.is_finished for trial in self.search.trials[:horizon]):
                return None
            params = self.search.suggest(number)
            config = self.plan.search_config(params, self.spec.search.seed)
            twin = next((t for t in self.search.trials if t.trial_id == config.fingerprint()), None)
            if twin is None:
                return self.search, self._start(self.search, params, config)
            if not twin.state.is_finished:
                return None
            self.search.add(dataclasses.replace(twin, number=number, params=params, duplicate_of=twin.number))
        if not self.search_done:
            return None
        started = {trial.trial_id for trial in self.final.trials}
        for trial_id, (seed, config) in self.final_configs().items():
            if trial_id not in started:
                return self.final, self._start(self.final, {"seed": seed}, config)
        return None

    def _start(self, record: StudyRecord, params: dict[str, Any], config: TrainConfig) -> TrialResult:
        trial = TrialResult(
            trial_id=config.fingerprint(),
            study=self.plan.key,
            phase="search" if record is self.search else "final",
            number=len(record.trials),
            params=params,
            config=dataclasses.asdict(config),
            state=TrialState.RUNNING,
        )
        record.add(trial)
        return trial

    def summary(self) -> StudySummary:
        """How far it has come."""
        finals = self.finals
        return StudySummary(
            plan=self.plan,
            planned=self.spec.search.trials + len(self.spec.final.seeds),
            states=Counter(trial.state for trial in [*self.searched, *finals]),
            best=self.best,
            finals=finals,
            failed=[trial for trial in [*self.searched, *finals] if trial.state is TrialState.FAILED],
        )


class Sweep:
    """All studies of a spec over one record.

    Raises:
        ConflictError: if the spec contradicts trials of this sweep, with every difference; nothing is changed.
    """

    def __init__(self, spec: SweepSpec, record: Record, tracker: Tracker) -> None:
        self.spec = spec
        self.studies = [Study(spec, plan, record) for plan in studies(spec)]
        self._tracker = tracker
        self._under_way: dict[str, tuple[StudyRecord, int]] = {}
        self._unfinished: deque[tuple[StudyRecord, int]] = deque()
        self._failures: Counter[str] = Counter()
        conflicts = [(study.plan.key, conflict) for study in self.studies if (conflict := study.conflict())]
        if conflicts:
            differences = "\n".join(f"  {key}: {conflict}" for key, conflict in conflicts)
            raise ConflictError(
                f"sweep {spec.name} already has trials made under other settings:\n{differences}\n"
                "Undo the edit, or give the spec another name."
            )
        record.save_sweep(spec.name, spec.model_dump(mode="json"))
        for study in self.studies:
            study.open()
            tracker.open_study(study.plan, study.search)
            for trial_record in (study.search, study.final):
                for trial in trial_record.trials:
                    if not trial.state.is_finished:
                        self._unfinished.append((trial_record, trial.number))
                    elif trial.duplicate_of is None:
                        tracker.sync(trial, trial_record)

    @property
    def done(self) -> bool:
        """Whether every trial that the spec asks for is finished."""
        return all(study.done for study in self.studies)

    def summaries(self) -> list[StudySummary]:
        """How far each study has come."""
        return [study.summary() for study in self.studies]

    def next_trial(self) -> TrialResult | None:
        """A trial to run now, from its checkpoint if it has one; None if there is none at present.

        First what an earlier driver left running or what waits for another attempt, then new trials, study by study.
        """
        if self._unfinished:
            record, number = self._unfinished.popleft()
            trial = record.trials[number]
            return self._hand_out(
                record, dataclasses.replace(trial, state=TrialState.RUNNING, attempt=trial.attempt + 1, error=None)
            )
        for study in self.studies:
            if (new := study.next_trial()) is not None:
                return self._hand_out(*new)
        return None

    def _hand_out(self, record: StudyRecord, trial: TrialResult) -> TrialResult:
        if trial is not record.trials[trial.number]:
            record.replace(trial)
        self._under_way[trial.trial_id] = record, trial.number
        self._tracker.sync(trial, record)
        return trial

    def on_epoch(self, trial_id: str, epoch: int, metrics: dict[str, float]) -> bool:
        """Take in a finished epoch; an epoch that is known already changes nothing.

        Returns:
            Whether the trial goes on: False once it is complete or pruned.
        """
        record, number = self._under_way[trial_id]
        trial = record.trials[number]
        epochs = trial.epochs if epoch <= len(trial.epochs) else (*trial.epochs, metrics)
        trial = dataclasses.replace(trial, epochs=epochs)
        if len(epochs) == trial.config["epochs"]:
            score = epochs[-1][f"{trial.config['eval_split']}/accuracy"]
            self._update(record, dataclasses.replace(trial, state=TrialState.COMPLETE, score=score))
            return False
        if epoch == len(epochs):
            if epochs != record.trials[number].epochs:
                self._update(record, trial)
            if trial.phase == "search" and record.should_prune(number):
                self._update(record, dataclasses.replace(trial, state=TrialState.PRUNED))
                return False
        return True

    def on_failure(self, trial_id: str, failure: Failure) -> None:
        """Take in that an attempt ended badly: the trial waits for another one, or is failed with its error."""
        record, number = self._under_way[trial_id]
        self._failures[trial_id] += 1
        again = failure.may_pass and self._failures[trial_id] <= self.spec.retries
        state = TrialState.WAITING if again else TrialState.FAILED
        self._update(record, dataclasses.replace(record.trials[number], state=state, error=failure.error))

    def is_under_way(self, trial_id: str) -> bool:
        """Whether the trial was handed out and has not ended."""
        return trial_id in self._under_way

    def _update(self, record: StudyRecord, trial: TrialResult) -> None:
        record.replace(trial)
        if trial.state is not TrialState.RUNNING:
            del self._under_way[trial.trial_id]
        if trial.state is TrialState.WAITING:
            self._unfinished.append((record, trial.number))
        self._tracker.sync(trial, record)
