"""What a home already holds of a planned sweep: finished trials, and measured speeds for an estimate of the rest."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.environment.connections import read_database
from orchestrator.environment.home import Home

if TYPE_CHECKING:
    from orchestrator.spec.schema import SweepSpec


@dataclass(frozen=True, slots=True)
class PlanProgress:
    """What a home already holds of a sweep."""

    num_finished: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Finished trials, by key of the study."""
    seconds_left: Mapping[str, float | None] = dataclasses.field(default_factory=dict)
    """Estimated worker time, by key of the study; None where nothing like it was ever run."""
    finished_studies: frozenset[str] = frozenset()
    """Keys of the studies that have nothing to run any more."""

    @property
    def has_estimate(self) -> bool:
        """Whether any study has an estimate."""
        return any(seconds is not None for seconds in self.seconds_left.values())


def load_progress(sweep: SweepSpec, home: Home) -> PlanProgress:
    """Return what the home holds of the sweep. Nothing is created or written."""
    from orchestrator.sweep.cost_model import CostModel

    database = read_database(home) if home.database_url else None
    cost_model = CostModel.load(home.cost_model_file)
    if database is None and not cost_model.rates:
        return PlanProgress()

    from orchestrator.study.storage.database import StudyDatabase
    from orchestrator.study.storage.sqlite_url import sqlite_url
    from orchestrator.study.study import load_studies
    from orchestrator.sweep.conflicts import check_spec_matches_trials

    with tempfile.TemporaryDirectory() as folder:
        # The estimate needs a database, and an empty one will do.
        database = database or StudyDatabase(sqlite_url(Path(folder).absolute() / "studies.db"))
        studies = load_studies(sweep, database)
        database.close()

    # A plan that counts trials of other settings would be wrong without saying so.
    check_spec_matches_trials(sweep, studies)
    obsolete = {study.plan.key for study in studies if study.is_obsolete}
    for study in studies:
        # A launch deletes these trials. Here they are only not counted.
        if study.plan.key in obsolete:
            study.search_table.trials.clear()
            study.final_table.trials.clear()
    return PlanProgress(
        num_finished={study.plan.key: study.summary().num_finished for study in studies},
        seconds_left={study.plan.key: cost_model.estimate(study, home.data_root).seconds for study in studies},
        finished_studies=frozenset(
            study.plan.key for study in studies if study.is_closed and study.plan.key not in obsolete
        ),
    )
