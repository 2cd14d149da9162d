"""Summaries of studies, computed again only after a change."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from orchestrator.study.study import Study
from orchestrator.study.summary import StudySummary


class SummaryCache:
    """Caches the summary of each study. The driver's thread reports changes; any thread may read.

    A live view asks several times a second, and a summary of a large sweep takes longer than that.
    """

    def __init__(self, studies: Sequence[Study]) -> None:
        self._studies = studies
        self._changes: Counter[str] = Counter()
        self._summaries: dict[str, tuple[int, StudySummary]] = {}

    def invalidate(self, study: Study) -> None:
        """Note that a trial of the study has changed."""
        self._changes[study.plan.key] += 1

    def summaries(self) -> list[StudySummary]:
        """Return the summary of every study."""
        summaries = []
        for study in self._studies:
            # Read before the summary is computed: a change in between makes the cached summary outdated.
            changes = self._changes[study.plan.key]
            cached = self._summaries.get(study.plan.key)
            if cached is None or cached[0] != changes:
                cached = (changes, study.summary())
                self._summaries[study.plan.key] = cached
            summaries.append(cached[1])
        return summaries
