"""One study: its search, then the final trials of its best params."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.spec.labels import format_setting
from orchestrator.spec.plan import StudyPlan, plan_studies
from orchestrator.spec.schema import SweepSpec
from orchestrator.spec.space import widens
from orchestrator.study.advisor import Advisor
from orchestrator.study.selection import select_best
from orchestrator.study.storage.database import StudyDatabase
from orchestrator.study.storage.trial_table import TrialTable
from orchestrator.study.trial import Trial, TrialState
from trainer.config import TrainConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class StudySummary:
    """How far a study has come."""

    plan: StudyPlan
    num_planned: int
    """Search and final trials that it will have."""
    states: Counter[TrialState]
    best: Trial | None
    """The search trial that its final trials repeat, or would repeat if the search ended now."""
    final_trials: list[Trial]
    """Final trials of `best`."""
    failed_trials: list[Trial]
    stop_reason: str | None
    """Why no more of its trials are started, if so."""
    seconds: float
    """How long workers were busy with it."""

    @property
    def num_finished(self) -> int:
        """Trials that have come to an end, whichever."""
        return sum(count for state, count in self.states.items() if state.is_finished)


class Study:
    """One study over its two records.

    Args:
        sources: studies of other tasks, whose best params this one begins with once they have searched
            (`search.transfer`).
    """

    def __init__(
        self, spec: SweepSpec, plan: StudyPlan, search: TrialTable, final: TrialTable, sources: Sequence[Study] = ()
    ) -> None:
        self.spec = spec
        self.plan = plan
        self.search_table = search
        self.final_table = final
        self.advisor = Advisor(plan, spec.search, search.trials)
        self._sources = sources
        self._finals_of: tuple[str, dict[str, tuple[int, TrainConfig]]] = ("", {})

    @property
    def trials(self) -> list[Trial]:
        """All that were ever trained, whether the spec still asks for them or not."""
        return [trial for trial in [*self.search_table.trials, *self.final_table.trials] if trial.duplicate_of is None]

    def conflicts(self) -> list[str]:
        """How the spec contradicts the trials that are there; wider ranges do not."""
        theirs, ours = self.search_table.settings, self._settings()
        if theirs is None or not self.search_table.trials:
            return []
        differ = [name for name in sorted(theirs.keys() | ours.keys()) if theirs.get(name) != ours.get(name)]
        return [
            f"{name} was {format_setting(theirs.get(name))}, is {format_setting(ours.get(name))}"
            for name in differ
            if name not in self._widened()
        ]

    def _widened(self) -> set[str]:
        theirs = self.search_table.settings or {}
        space = {f"space.{name}": dimension for name, dimension in self.plan.space.items()}
        return {name for name, dimension in space.items() if name in theirs and widens(theirs[name], dimension)}

    def save_settings(self) -> None:
        """Remember what the trials are made under, before the first one."""
        if self.search_table.settings == self._settings():
            return
        if self.search_table.trials:  # ranges are wider: the trials that are there go over into the wider space
            numbers = range(len(self.search_table.trials))
            self.search_table.rewrite(
                self.search_table.trials, {number: self.search_table.synced_run(number) for number in numbers}
            )
        self.search_table.save_settings(self._settings())

    def _settings(self) -> dict[str, Any]:
        """What a trial depends on beside its number: changing it would mix two experiments."""
        search = self.spec.search.model_dump(exclude={"trials"})
        space = {f"space.{name}": dimension.model_dump() for name, dimension in self.plan.space.items()}
        fixed = {f"fixed.{name}": value for name, value in self.plan.fixed.items()}
        return {f"search.{name}": value for name, value in search.items()} | space | fixed

    @property
    def requested_search_trials(self) -> list[Trial]:
        """The search trials that the spec asks for, as far as there are any."""
        return self.search_table.trials[: self.spec.search.trials]

    @property
    def is_search_done(self) -> bool:
        """Whether nothing is left to search."""
        return len(self.requested_search_trials) == self.spec.search.trials and all(
            t.state.is_finished for t in self.requested_search_trials
        )

    @property
    def best(self) -> Trial | None:
        """The complete trial that `final.select` chooses."""
        return select_best(self.requested_search_trials, self.spec.final.select)

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
    def requested_final_trials(self) -> list[Trial]:
        """The final trials of the best params that were started."""
        wanted = self.final_configs()
        return [trial for trial in self.final_table.trials if trial.trial_id in wanted]

    @property
    def is_done(self) -> bool:
        """Whether every trial that the spec asks for is finished."""
        if not self.is_search_done:
            return False
        finals = self.requested_final_trials
        return len(finals) == len(self.final_configs()) and all(trial.state.is_finished for trial in finals)

    @property
    def is_closed(self) -> bool:
        """Whether no trial of it is started any more."""
        return self.search_table.stop_reason is not None or self.is_done

    @property
    def has_new_summary(self) -> bool:
        """Whether it has come to something that its page should say: its search is done, or it is over."""
        return self.is_closed or (self.is_search_done and not self.requested_final_trials)

    def unfinished(self) -> list[tuple[TrialTable, int]]:
        """Trials to go on with: left by an earlier driver, or to be run again."""
        wanted = [(self.search_table, trial) for trial in self.requested_search_trials if trial.duplicate_of is None]
        wanted += [(self.final_table, trial) for trial in (self.requested_final_trials if self.is_search_done else [])]
        return [(record, trial.number) for record, trial in wanted if not trial.state.is_finished]

    def next_trial(self) -> tuple[TrialTable, Trial] | None:
        """A new trial, put into the record, or a final one left WAITING; None if there is none, or none yet."""
        while (number := len(self.search_table.trials)) < self.spec.search.trials:
            if not all(
                trial.state.is_finished for trial in self.search_table.trials[: self.advisor.num_required(number)]
            ):
                return None
            if number == 0 and not all(source.is_search_done or source.is_closed for source in self._sources):
                return None
            params, notes = self.advisor.suggest(number, self._transferred_params(number))
            config = self.plan.search_config(params, self.spec.search.seed)
            twin = next((t for t in self.search_table.trials if t.trial_id == config.fingerprint()), None)
            if twin is None:
                return self.search_table, self._start(self.search_table, params, config, notes)
            outcome = twin if twin.state.is_finished else twin.reset(discard_progress=True)
            own: dict[str, Any] = {
                "number": number,
                "params": params,
                "duplicate_of": twin.number,
                "sampler_attrs": notes,
            }
            self.search_table.add(dataclasses.replace(outcome, lost_seconds=0.0, **own))
            self.advisor.discard(number)
        if not self.is_search_done:
            return None
        started = {trial.trial_id for trial in self.final_table.trials}
        for trial_id, (seed, config) in self.final_configs().items():
            if trial_id not in started:
                return self.final_table, self._start(self.final_table, {"seed": seed}, config, {})
        return next(
            ((self.final_table, trial) for trial in self.requested_final_trials if trial.state is TrialState.WAITING),
            None,
        )

    def resolve_duplicates(self) -> None:
        """Give duplicates the outcome of the trial they repeat, once it has one."""
        for trial in self.search_table.trials:
            if trial.duplicate_of is not None and not trial.state.is_finished:
                twin = self.search_table.trials[trial.duplicate_of]
                if twin.state.is_finished:
                    own = {name: getattr(trial, name) for name in ("number", "params", "duplicate_of", "sampler_attrs")}
                    self.search_table.replace(dataclasses.replace(twin, lost_seconds=0.0, **own))

    def reset_trials(
        self, matches: Callable[[Trial], bool], *, discard_progress: bool = False
    ) -> list[tuple[Trial, str | None]]:
        """Have trials run again: from their last epochs, or, to `forget`, as if they had never been run.

        Returns:
            What they were, each with its run in MLflow.
        """
        found = []
        for record in (self.search_table, self.final_table):
            picked = {
                trial.number if trial.duplicate_of is None else trial.duplicate_of
                for trial in record.trials
                if matches(trial)
            }
            if not picked:
                continue
            places = {trial.number: record.synced_run(trial.number) for trial in record.trials}
            if self.search_table.stop_reason is not None:  # first: if this ends half-way, the study is not left stopped
                self.search_table.save_stop_reason(None)
            found += [(record.trials[number], places[number][0]) for number in sorted(picked)]
            back = picked | {trial.number for trial in record.trials if trial.duplicate_of in picked}
            tracked = places | {number: (None if discard_progress else places[number][0], None) for number in back}
            record.rewrite(
                [t.reset(discard_progress=discard_progress) if t.number in back else t for t in record.trials], tracked
            )
        return found

    def _transferred_params(self, number: int) -> dict[str, Any] | None:
        """The params that a trial is to begin the search with, taken from other tasks; the nearest tasks' first."""
        if self.spec.search.transfer == 0:
            return None
        if self.search_table.transferred_params is None:
            near = sorted(self._sources, key=lambda source: source.plan.group != self.plan.group)
            bests = [source.best.params for source in near if source.best is not None]
            distinct = [params for place, params in enumerate(bests) if params not in bests[:place]]
            self.search_table.save_transferred_params(distinct[: self.spec.search.transfer])
        told = self.search_table.transferred_params or []
        return told[number] if number < len(told) else None

    def _start(self, record: TrialTable, params: dict[str, Any], config: TrainConfig, notes: dict[str, Any]) -> Trial:
        self.save_settings()
        trial = Trial(
            trial_id=config.fingerprint(),
            study=self.plan.key,
            phase=record.phase,
            number=len(record.trials),
            params=params,
            config=config,
            state=TrialState.RUNNING,
            sampler_attrs=notes,
        )
        record.add(trial)
        return trial

    @property
    def digest(self) -> str:
        """Twelve hex digits that change when it has come to something else."""
        trials = [
            (trial.trial_id, trial.state.value, trial.score)
            for trial in [*self.requested_search_trials, *self.requested_final_trials]
        ]
        return hashlib.sha256(repr((trials, self.spec.final, self.search_table.stop_reason)).encode()).hexdigest()[:12]

    def summary(self) -> StudySummary:
        """How far it has come."""
        finals = self.requested_final_trials
        return StudySummary(
            plan=self.plan,
            num_planned=self.spec.search.trials + len(self.spec.final.seeds),
            states=Counter(trial.state for trial in [*self.requested_search_trials, *finals]),
            best=self.best,
            final_trials=finals,
            failed_trials=[
                trial for trial in [*self.requested_search_trials, *finals] if trial.state is TrialState.FAILED
            ],
            stop_reason=self.search_table.stop_reason,
            seconds=sum(trial.seconds for trial in self.trials),
        )


def load_studies(spec: SweepSpec, database: StudyDatabase, *, epochs: bool = True) -> list[Study]:
    """Every study of a sweep with the trials it has so far, to be looked at only if without their `epochs`."""
    plans = plan_studies(spec)
    found: list[Study] = []
    peers: dict[tuple[object, ...], list[Study]] = {}
    for plan, (search, final) in zip(plans, database.load_tables(spec.name, plans, epochs=epochs), strict=True):
        family = peers.setdefault((plan.backbone, plan.method, plan.train_size), [])
        # It learns from the first half of the studies before it: most can run side by side, and each begins the same
        # way however fast they are.
        sources = family[: (len(family) + 1) // 2] if spec.search.transfer else []
        found.append(Study(spec, plan, search, final, sources))
        family.append(found[-1])
    return found
