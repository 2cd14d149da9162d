"""What follows from a finished epoch: the trial is complete, pruned, or goes on."""

from __future__ import annotations

import dataclasses

from orchestrator.study.study import Study
from orchestrator.study.trial import Trial, TrialState


def state_after_epoch(trial: Trial, study: Study) -> Trial:
    """Return a running trial with the state that its last epoch gives it, and what the pruner stores with it."""
    if len(trial.epochs) == trial.config.epochs:
        score = trial.epochs[-1][trial.config.eval_metric]
        return dataclasses.replace(trial, state=TrialState.COMPLETE, score=score)

    # Final trials run to their end.
    if trial.phase == "final":
        return trial
    is_pruned, sampler_attrs = study.advisor.should_prune(trial)
    state = TrialState.PRUNED if is_pruned else trial.state
    return dataclasses.replace(trial, sampler_attrs=sampler_attrs, state=state)
