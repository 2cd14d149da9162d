"""How much each searched parameter mattered."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import optuna

from orchestrator.study.storage.conversion import optuna_distributions, to_optuna_trial
from orchestrator.study.trial import TrialState

if TYPE_CHECKING:
    from orchestrator.study.study import Study

MIN_TRIALS = 4


def param_importances(study: Study) -> dict[str, float]:
    """How much each searched parameter of a study mattered for val accuracy: shares 0..1, largest first.

    Optuna's PED-ANOVA (Watanabe et al., IJCAI 2023); empty with fewer than four complete trials, or where all came
    to the same.
    """
    complete = [trial for trial in study.requested_search_trials if trial.state is TrialState.COMPLETE]
    if len(complete) < MIN_TRIALS or len({trial.score for trial in complete}) == 1:
        return {}
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances  # with scikit-learn: seconds

    space = optuna_distributions(study.plan, "search")
    held = optuna.create_study(direction="maximize")
    held.add_trials([to_optuna_trial(trial, space, metrics=False) for trial in complete])
    with warnings.catch_warnings(action="ignore"):
        return dict(get_param_importances(held, evaluator=PedAnovaImportanceEvaluator()))
