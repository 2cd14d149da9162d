"""One study: its search, then the final trials of the best params."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from orchestrator.spec.plan import StudyPlan, SweepPlan, plan_sweep
from orchestrator.spec.schema import SweepSpec
from orchestrator.study.advisor import Advisor
from orchestrator.study.selection import select_best
from orchestrator.study.settings import setting_conflicts, study_settings
from orchestrator.study.storage.database import StudyDatabase
from orchestrator.study.storage.trial_table import TrialTable
from orchestrator.study.summary import StudySummary
from orchestrator.study.trial import Trial, TrialState
from trainer.config import TrainConfig

FIELDS_OF_DUPLICATES = ("number", "params", "duplicate_of", "sampler_attrs")
"""Fields of a duplicate that are its own. All others are those of the trial that it repeats."""


class Study:
    """One study with its tables of search and final trials.

    Args:
        sweep_plan: plan of the sweep that the study belongs to.
        sources: studies of other tasks. Their best params are the first trials of this search, once their searches
            are done (`search.transfer`).
    """

    def __init__(
        self,
        spec: SweepSpec,
        sweep_plan: SweepPlan,
        plan: StudyPlan,
        search: TrialTable,
        final: TrialTable,
        sources: Sequence[Study] = (),
    ) -> None:
        self.spec = spec
        self.sweep_plan = sweep_plan
        self.plan = plan
        self.search_table = search
        self.final_table = final
        self.advisor = Advisor(plan, search.trials)
        self._sources = sources
        # Id of the best trial, and the configs of its final trials. They are asked for often, and slow to make.
        self._final_configs: tuple[str, dict[str, tuple[int, TrainConfig]]] = ("", {})

    @property
    def trials(self) -> list[Trial]:
        """All trials that were ever trained, including those that the spec does not ask for any more."""
        return [trial for trial in [*self.search_table.trials, *self.final_table.trials] if trial.duplicate_of is None]

    # Settings: what all trials of a study have in common.

    def conflicts(self) -> list[str]:
        """Return how the spec contradicts the trials that exist.

        Wider ranges are no contradiction. Neither are trials that produced nothing, such as those that failed before
        their first epoch: a spec with a mistake may be corrected under its name.
        """
        changed = self._changed_settings()
        return changed if changed and self._has_produced() else []

    @property
    def is_obsolete(self) -> bool:
        """Whether the spec has changed since its trials, and none of them produced anything."""
        return bool(self._changed_settings()) and not self._has_produced()

    def delete_trials(self) -> None:
        """Delete all trials, as if the study had never been started."""
        self.search_table.delete()
        self.final_table.delete()

    def _has_produced(self) -> bool:
        # The epochs of a trial whose driver died may not be in the trial yet.
        return any(trial.has_produced for trial in self.trials) or any(
            self.search_table.has_reported(trial.number)
            for trial in self.search_table.trials
            if not trial.state.is_finished
        )

    def _changed_settings(self) -> list[str]:
        old = self.search_table.settings
        if old is None or not self.search_table.trials:
            return []

        return setting_conflicts(old, self._settings(), self.plan)

    def save_settings(self) -> None:
        """Save the settings before the first trial, or after ranges became wider."""
        if self.search_table.settings == self._settings():
            return

        # The ranges are wider: move the existing trials into the wider space.
        if self.search_table.trials:
            numbers = range(len(self.search_table.trials))
            runs = {number: self.search_table.synced_run(number) for number in numbers}
            self.search_table.rewrite(self.search_table.trials, runs)

        self.search_table.save_settings(self._settings())

    def _settings(self) -> dict[str, Any]:
        return study_settings(self.plan)

    # Progress: what the spec asks for, and what is done.

    @property
    def requested_search_trials(self) -> list[Trial]:
        """The search trials that the spec asks for and that exist."""
        return self.search_table.trials[: self.plan.search.trials]

    @property
    def is_search_done(self) -> bool:
        """Whether all search trials are finished."""
        trials = self.requested_search_trials
        return len(trials) == self.plan.search.trials and all(trial.state.is_finished for trial in trials)

    @property
    def best(self) -> Trial | None:
        """The complete trial that `final.select` chooses, or None while there is none."""
        return select_best(self.requested_search_trials, self.spec.final.select)

    def final_configs(self) -> dict[str, tuple[int, TrainConfig]]:
        """Return seed and config of each final trial, by trial id; empty while there is no best trial."""
        best = self.best
        if best is None:
            return {}

        if self._final_configs[0] != best.trial_id:
            final = self.spec.final
            configs = {}
            for seed in final.seeds:
                config = self.plan.final_config(
                    best.params, seed, train_on=final.train_on, measure_peeking=final.measure_peeking
                )
                configs[config.fingerprint()] = seed, config
            self._final_configs = best.trial_id, configs

        return self._final_configs[1]

    @property
    def requested_final_trials(self) -> list[Trial]:
        """The final trials of the best params that were started."""
        configs = self.final_configs()
        return [trial for trial in self.final_table.trials if trial.trial_id in configs]

    @property
    def has_result(self) -> bool:
        """Whether a final trial of the best params has a score."""
        return any(trial.score is not None for trial in self.requested_final_trials)

    @property
    def is_done(self) -> bool:
        """Whether every trial that the spec asks for is finished."""
        if not self.is_search_done:
            return False

        trials = self.requested_final_trials
        return len(trials) == len(self.final_configs()) and all(trial.state.is_finished for trial in trials)

    @property
    def is_closed(self) -> bool:
        """Whether no more trials of the study are started."""
        return self.search_table.stop_reason is not None or self.is_done

    @property
    def has_new_summary(self) -> bool:
        """Whether the study's page in MLflow has something new to report: the search or the whole study is done."""
        return self.is_closed or (self.is_search_done and not self.requested_final_trials)

    @property
    def digest(self) -> str:
        """Twelve hex digits that change with the states and scores of the trials."""
        trials = [
            (trial.trial_id, trial.state.value, trial.score)
            for trial in [*self.requested_search_trials, *self.requested_final_trials]
        ]
        # The digest is stored, so its content must not change.
        content = repr((trials, self.spec.final, self.search_table.stop_reason))
        return hashlib.sha256(content.encode()).hexdigest()[:12]

    def summary(self) -> StudySummary:
        """Return the progress of the study."""
        final_trials = self.requested_final_trials
        trials = [*self.requested_search_trials, *final_trials]
        return StudySummary(
            plan=self.plan,
            num_planned=self.plan.search.trials + len(self.spec.final.seeds),
            states=Counter(trial.state for trial in trials),
            best=self.best,
            final_trials=final_trials,
            failed_trials=[trial for trial in trials if trial.state is TrialState.FAILED],
            stop_reason=self.search_table.stop_reason,
            seconds=sum(trial.seconds for trial in self.trials),
        )

    # Trials: which one is next.

    def unfinished(self) -> list[tuple[TrialTable, int]]:
        """Return the trials to resume: an earlier driver left them, or they are to run again."""
        wanted = [(self.search_table, trial) for trial in self.requested_search_trials if trial.duplicate_of is None]
        if self.is_search_done:
            wanted += [(self.final_table, trial) for trial in self.requested_final_trials]

        return [(table, trial.number) for table, trial in wanted if not trial.state.is_finished]

    def next_trial(self) -> tuple[TrialTable, Trial] | None:
        """Return a new trial, already saved, or a final trial that is WAITING.

        Returns None if there is no such trial, or if the next one depends on trials that are still running.
        """
        while len(self.search_table.trials) < self.plan.search.trials:
            number = len(self.search_table.trials)
            if not self._can_suggest(number):
                return None

            params, attrs = self.advisor.suggest(number, self._transferred_params(number))
            config = self.plan.search_config(params, self.plan.search.seed)
            trial_id = config.fingerprint()
            original = next((trial for trial in self.search_table.trials if trial.trial_id == trial_id), None)
            if original is None:
                return self.search_table, self._start(self.search_table, params, config, attrs)

            self._add_duplicate(original, number, params, attrs)

        # Final trials repeat the best params, which are known once the whole search is done.
        if not self.is_search_done:
            return None

        started = {trial.trial_id for trial in self.final_table.trials}
        for trial_id, (seed, config) in self.final_configs().items():
            if trial_id not in started:
                return self.final_table, self._start(self.final_table, {"seed": seed}, config, {})

        waiting = [trial for trial in self.requested_final_trials if trial.state is TrialState.WAITING]
        return (self.final_table, waiting[0]) if waiting else None

    def _can_suggest(self, number: int) -> bool:
        """Whether the trials that the sampler learns from are finished."""
        required = self.search_table.trials[: self.advisor.num_required(number)]
        if not all(trial.state.is_finished for trial in required):
            return False

        # The first trial also waits for the studies that the search takes params from.
        return number > 0 or all(source.is_search_done or source.is_closed for source in self._sources)

    def _transferred_params(self, number: int) -> dict[str, Any] | None:
        """Return the params from another task that a trial repeats, or None. Tasks of the same group come first."""
        if self.plan.search.transfer == 0:
            return None

        # They are chosen once and saved: the sources may have more trials after a resume.
        if self.search_table.transferred_params is None:
            nearest_first = sorted(self._sources, key=lambda source: source.plan.group != self.plan.group)
            distinct: list[dict[str, Any]] = []
            for source in nearest_first:
                if source.best is not None and source.best.params not in distinct:
                    distinct.append(source.best.params)
            self.search_table.save_transferred_params(distinct[: self.plan.search.transfer])

        transferred = self.search_table.transferred_params or []
        return transferred[number] if number < len(transferred) else None

    def _start(self, table: TrialTable, params: dict[str, Any], config: TrainConfig, attrs: dict[str, Any]) -> Trial:
        self.save_settings()
        trial = Trial(
            trial_id=config.fingerprint(),
            study=self.plan.key,
            phase=table.phase,
            number=len(table.trials),
            params=params,
            config=config,
            state=TrialState.RUNNING,
            sampler_attrs=attrs,
        )
        table.add(trial)
        return trial

    def _add_duplicate(self, original: Trial, number: int, params: dict[str, Any], attrs: dict[str, Any]) -> None:
        """Save a trial with the config of an earlier one. It is not trained and gets the earlier one's outcome."""
        # While the original is running, its duplicate waits for the outcome (`resolve_duplicates`).
        outcome = original if original.state.is_finished else original.reset(discard_progress=True)
        self.search_table.add(
            dataclasses.replace(
                outcome,
                lost_seconds=0.0,
                number=number,
                params=params,
                duplicate_of=original.number,
                sampler_attrs=attrs,
            )
        )
        self.advisor.discard(number)

    def resolve_duplicates(self) -> None:
        """Copy the outcome of finished trials to their duplicates."""
        for trial in self.search_table.trials:
            if trial.duplicate_of is None or trial.state.is_finished:
                continue

            original = self.search_table.trials[trial.duplicate_of]
            if original.state.is_finished:
                own = {name: getattr(trial, name) for name in FIELDS_OF_DUPLICATES}
                self.search_table.replace(dataclasses.replace(original, lost_seconds=0.0, **own))

    def reset_trials(
        self, matches: Callable[[Trial], bool], *, discard_progress: bool = False
    ) -> list[tuple[Trial, str | None]]:
        """Set trials back to WAITING, so that they run again.

        Args:
            discard_progress: whether they start from nothing instead of from their last epochs.

        Returns:
            Each trial as it was, with its run id in MLflow.
        """
        reset: list[tuple[Trial, str | None]] = []

        for table in (self.search_table, self.final_table):
            # A duplicate has no training of its own: the trial that it repeats runs again.
            numbers = {
                trial.number if trial.duplicate_of is None else trial.duplicate_of
                for trial in table.trials
                if matches(trial)
            }
            if not numbers:
                continue

            # The stop reason goes first: if this is interrupted, the study is not left stopped.
            if self.search_table.stop_reason is not None:
                self.search_table.save_stop_reason(None)

            runs = {trial.number: table.synced_run(trial.number) for trial in table.trials}
            reset += [(table.trials[number], runs[number][0]) for number in sorted(numbers)]

            numbers |= {trial.number for trial in table.trials if trial.duplicate_of in numbers}
            for number in numbers:
                run_id = None if discard_progress else runs[number][0]
                runs[number] = run_id, None

            trials = [
                trial.reset(discard_progress=discard_progress) if trial.number in numbers else trial
                for trial in table.trials
            ]
            table.rewrite(trials, runs)

        return reset


def load_studies(spec: SweepSpec, database: StudyDatabase, *, epochs: bool = True) -> list[Study]:
    """Return every study of a sweep with the trials that it has so far.

    Args:
        epochs: whether trials have the metrics of every epoch. Studies without them are for reading only.
    """
    sweep_plan = plan_sweep(spec)
    tables = database.load_tables(spec.name, sweep_plan.studies, epochs=epochs)
    studies: list[Study] = []
    families: dict[tuple[object, ...], list[Study]] = {}

    for plan, (search, final) in zip(sweep_plan.studies, tables, strict=True):
        # Params of another space may lie outside this one.
        axes = (plan.backbone, plan.method, plan.train_size, plan.draw)
        family = families.setdefault((*axes, repr(plan.space)), [])

        # A study learns from the first half of the studies before it. So most studies can run side by side, and the
        # sources of each do not depend on which study is fastest.
        sources = family[: (len(family) + 1) // 2] if plan.search.transfer else []

        study = Study(spec, sweep_plan, plan, search, final, sources)
        studies.append(study)
        family.append(study)

    return studies
