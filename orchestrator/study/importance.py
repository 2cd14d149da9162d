"""Importance of each searched parameter for the val accuracy."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import optuna

from orchestrator.study.storage.conversion import optuna_distributions, to_optuna_trial
from orchestrator.study.trial import TrialState

if TYPE_CHECKING:
    from orchestrator.study.study import Study

MIN_TRIALS = 4
"""Number of complete trials below which importances say nothing."""


def param_importances(study: Study) -> dict[str, float]:
    """Return the importance of each searched parameter for the val accuracy: shares in 0..1, largest first.

    The result is empty with fewer than four complete trials, or if all trials have the same accuracy.
    Source: PED-ANOVA (Watanabe et al., IJCAI 2023), as Optuna implements it.
    """
    complete = [trial for trial in study.requested_search_trials if trial.state is TrialState.COMPLETE]
    if len(complete) < MIN_TRIALS or len({trial.score for trial in complete}) == 1:
        return {}

    # Imported here: it imports scikit-learn, which takes seconds.
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    space = optuna_distributions(study.plan, "search")
    optuna_study = optuna.create_study(direction="maximize")
    optuna_study.add_trials([to_optuna_trial(trial, space, metrics=False) for trial in complete])

    with warnings.catch_warnings(action="ignore"):
        return dict(get_param_importances(optuna_study, evaluator=PedAnovaImportanceEvaluator()))
