"""How much each searched parameter mattered."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import optuna

from orchestrator.study.storage.conversion import distributions, frozen
from orchestrator.study.trial import TrialState

if TYPE_CHECKING:
    from orchestrator.study.study import Study

FEWEST_FOR_IMPORTANCES = 4


def importances(study: Study) -> dict[str, float]:
    """How much each searched parameter of a study mattered for val accuracy: shares 0..1, largest first.

    Optuna's PED-ANOVA (Watanabe et al., IJCAI 2023); empty with fewer than four complete trials, or where all came
    to the same.
    """
    complete = [trial for trial in study.searched if trial.state is TrialState.COMPLETE]
    if len(complete) < FEWEST_FOR_IMPORTANCES or len({trial.score for trial in complete}) == 1:
        return {}
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances  # with scikit-learn: seconds

    space = distributions(study.plan, "search")
    held = optuna.create_study(direction="maximize")
    held.add_trials([frozen(trial, space, metrics=False) for trial in complete])
    with warnings.catch_warnings(action="ignore"):
        return dict(get_param_importances(held, evaluator=PedAnovaImportanceEvaluator()))
