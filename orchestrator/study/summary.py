"""The progress of a study, in numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from orchestrator.spec.plan import StudyPlan
from orchestrator.study.trial import Trial, TrialState


@dataclass(frozen=True, kw_only=True, slots=True)
class StudySummary:
    """Progress of a study."""

    plan: StudyPlan
    num_planned: int
    """Number of search and final trials that the spec asks for."""
    states: Counter[TrialState]
    """Number of trials in each state."""
    best: Trial | None
    """The search trial that the final trials repeat, or would repeat if the search ended now."""
    final_trials: list[Trial]
    """Final trials of `best`."""
    failed_trials: list[Trial]
    stop_reason: str | None
    """Why no more trials of the study are started, or None."""
    seconds: float
    """Seconds that workers were busy with the study."""

    @property
    def num_finished(self) -> int:
        """Number of complete, pruned and failed trials."""
        return sum(count for state, count in self.states.items() if state.is_finished)


def count_states(summaries: Iterable[StudySummary]) -> Counter[TrialState]:
    """Return the number of trials of all these studies in each state."""
    return sum((summary.states for summary in summaries), Counter[TrialState]())
