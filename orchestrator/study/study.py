"""One study: its search, then the final trials of its best params."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.spec.labels import setting_text
from orchestrator.spec.plan import StudyPlan, studies
from orchestrator.spec.schema import SweepSpec
from orchestrator.spec.space import widens
from orchestrator.study.advisor import Advisor
from orchestrator.study.selection import chosen
from orchestrator.study.storage.database import Record
from orchestrator.study.storage.trial_table import StudyRecord
from orchestrator.study.trial import TrialResult, TrialState
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
    stopped: str | None
    """Why no more of its trials are started, if so."""
    seconds: float
    """How long workers were busy with it."""

    @property
    def finished(self) -> int:
        """Trials that have come to an end, whichever."""
        return sum(count for state, count in self.states.items() if state.is_finished)


class Study:
    """One study over its two records.

    Args:
        sources: studies of other tasks, whose best params this one begins with once they have searched
            (`search.transfer`).
    """

    def __init__(
        self, spec: SweepSpec, plan: StudyPlan, search: StudyRecord, final: StudyRecord, sources: Sequence[Study] = ()
    ) -> None:
        self.spec = spec
        self.plan = plan
        self.search = search
        self.final = final
        self.advisor = Advisor(plan, spec.search, search.trials)
        self._sources = sources
        self._finals_of: tuple[str, dict[str, tuple[int, TrainConfig]]] = ("", {})

    @property
    def trials(self) -> list[TrialResult]:
        """All that were ever trained, whether the spec still asks for them or not."""
        return [trial for trial in [*self.search.trials, *self.final.trials] if trial.duplicate_of is None]

    def contradictions(self) -> list[str]:
        """How the spec contradicts the trials that are there; wider ranges do not."""
        theirs, ours = self.search.settings, self._settings()
        if theirs is None or not self.search.trials:
            return []
        differ = [name for name in sorted(theirs.keys() | ours.keys()) if theirs.get(name) != ours.get(name)]
        return [
            f"{name} was {setting_text(theirs.get(name))}, is {setting_text(ours.get(name))}"
            for name in differ
            if name not in self._widened()
        ]

    def _widened(self) -> set[str]:
        theirs = self.search.settings or {}
        space = {f"space.{name}": dimension for name, dimension in self.plan.space.items()}
        return {name for name, dimension in space.items() if name in theirs and widens(theirs[name], dimension)}

    def open(self) -> None:
        """Remember what the trials are made under, before the first one."""
        if self.search.settings == self._settings():
            return
        if self.search.trials:  # ranges are wider: the trials that are there go over into the wider space
            numbers = range(len(self.search.trials))
            self.search.rewrite(self.search.trials, {number: self.search.tracked(number) for number in numbers})
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
        """The complete trial that `final.select` chooses."""
        return chosen(self.searched, self.spec.final.select)

    def final_configs(self) -> dict[str, tuple[int, TrainConfig]]:
        """Seed and config of each final trial, by trial id; none while there is nothing to repeat."""
        if (best := self.best) is None:
            return {}
        if self._finals_of[0] != best.trial_id:
            asked = self.spec.final
            configs = [(s, self.plan.final_config(best.params, s, asked.measure_peeking)) for s in asked.seeds]
            self._finals_of = best.trial_id, {config.fingerprint(): (seed, config) for seed, config in configs}
        return self._finals_of[1]

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

    @property
    def over(self) -> bool:
        """Whether no trial of it is started any more."""
        return self.search.stopped is not None or self.done

    @property
    def at_a_stop(self) -> bool:
        """Whether it has come to something that its page should say: its search is done, or it is over."""
        return self.over or (self.search_done and not self.finals)

    def unfinished(self) -> list[tuple[StudyRecord, int]]:
        """Trials to go on with: left by an earlier driver, or to be run again."""
        wanted = [(self.search, trial) for trial in self.searched if trial.duplicate_of is None]
        wanted += [(self.final, trial) for trial in (self.finals if self.search_done else [])]
        return [(record, trial.number) for record, trial in wanted if not trial.state.is_finished]

    def next_trial(self) -> tuple[StudyRecord, TrialResult] | None:
        """A new trial, put into the record, or a final one left WAITING; None if there is none, or none yet."""
        while (number := len(self.search.trials)) < self.spec.search.trials:
            if not all(trial.state.is_finished for trial in self.search.trials[: self.advisor.horizon(number)]):
                return None
            if number == 0 and not all(source.search_done or source.over for source in self._sources):
                return None
            params, notes = self.advisor.suggest(number, self._told_to_try(number))
            config = self.plan.search_config(params, self.spec.search.seed)
            twin = next((t for t in self.search.trials if t.trial_id == config.fingerprint()), None)
            if twin is None:
                return self.search, self._start(self.search, params, config, notes)
            outcome = twin if twin.state.is_finished else twin.again(forget=True)
            own: dict[str, Any] = {"number": number, "params": params, "duplicate_of": twin.number, "notes": notes}
            self.search.add(dataclasses.replace(outcome, wasted_s=0.0, **own))
            self.advisor.forget(number)
        if not self.search_done:
            return None
        started = {trial.trial_id for trial in self.final.trials}
        for trial_id, (seed, config) in self.final_configs().items():
            if trial_id not in started:
                return self.final, self._start(self.final, {"seed": seed}, config, {})
        return next(((self.final, trial) for trial in self.finals if trial.state is TrialState.WAITING), None)

    def settle(self) -> None:
        """Give duplicates the outcome of the trial they repeat, once it has one."""
        for trial in self.search.trials:
            if trial.duplicate_of is not None and not trial.state.is_finished:
                twin = self.search.trials[trial.duplicate_of]
                if twin.state.is_finished:
                    own = {name: getattr(trial, name) for name in ("number", "params", "duplicate_of", "notes")}
                    self.search.replace(dataclasses.replace(twin, wasted_s=0.0, **own))

    def again(
        self, fits: Callable[[TrialResult], bool], *, forget: bool = False
    ) -> list[tuple[TrialResult, str | None]]:
        """Have trials run again: from their last epochs, or, to `forget`, as if they had never been run.

        Returns:
            What they were, each with its run in MLflow.
        """
        found = []
        for record in (self.search, self.final):
            picked = {
                trial.number if trial.duplicate_of is None else trial.duplicate_of
                for trial in record.trials
                if fits(trial)
            }
            if not picked:
                continue
            places = {trial.number: record.tracked(trial.number) for trial in record.trials}
            if self.search.stopped is not None:  # first: if this ends half-way, the study is not left stopped
                self.search.save_stopped(None)
            found += [(record.trials[number], places[number][0]) for number in sorted(picked)]
            back = picked | {trial.number for trial in record.trials if trial.duplicate_of in picked}
            tracked = places | {number: (None if forget else places[number][0], None) for number in back}
            record.rewrite([t.again(forget=forget) if t.number in back else t for t in record.trials], tracked)
        return found

    def _told_to_try(self, number: int) -> dict[str, Any] | None:
        """The params that a trial is to begin the search with, taken from other tasks; the nearest tasks' first."""
        if self.spec.search.transfer == 0:
            return None
        if self.search.transferred is None:
            near = sorted(self._sources, key=lambda source: source.plan.group != self.plan.group)
            bests = [source.best.params for source in near if source.best is not None]
            distinct = [params for place, params in enumerate(bests) if params not in bests[:place]]
            self.search.save_transferred(distinct[: self.spec.search.transfer])
        told = self.search.transferred or []
        return told[number] if number < len(told) else None

    def _start(
        self, record: StudyRecord, params: dict[str, Any], config: TrainConfig, notes: dict[str, Any]
    ) -> TrialResult:
        self.open()
        trial = TrialResult(
            trial_id=config.fingerprint(),
            study=self.plan.key,
            phase=record.phase,
            number=len(record.trials),
            params=params,
            config=dataclasses.asdict(config),
            state=TrialState.RUNNING,
            notes=notes,
        )
        record.add(trial)
        return trial

    @property
    def mark(self) -> str:
        """Twelve hex digits that change when it has come to something else."""
        trials = [(trial.trial_id, trial.state.value, trial.score) for trial in [*self.searched, *self.finals]]
        return hashlib.sha256(repr((trials, self.spec.final, self.search.stopped)).encode()).hexdigest()[:12]

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
            stopped=self.search.stopped,
            seconds=sum(trial.seconds for trial in self.trials),
        )


def open_studies(spec: SweepSpec, record: Record, *, epochs: bool = True) -> list[Study]:
    """Every study of a sweep with the trials it has so far, to be looked at only if without their `epochs`."""
    plans = studies(spec)
    found: list[Study] = []
    peers: dict[tuple[object, ...], list[Study]] = {}
    for plan, (search, final) in zip(plans, record.open_studies(spec.name, plans, epochs=epochs), strict=True):
        family = peers.setdefault((plan.backbone, plan.method, plan.train_size), [])
        # It learns from the first half of the studies before it: most can run side by side, and each begins the same
        # way however fast they are.
        sources = family[: (len(family) + 1) // 2] if spec.search.transfer else []
        found.append(Study(spec, plan, search, final, sources))
        family.append(found[-1])
    return found
