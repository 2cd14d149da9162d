"""Which trial of a sweep is the best one, without a look at test accuracies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.environment.home import home_at
from orchestrator.errors import UserError
from orchestrator.launch.results import SweepResults
from orchestrator.spec.loader import parse_spec
from tests.orchestrator.conftest import drive, new_sweep


def test_the_best_trial_is_chosen_on_val_with_the_first_seed_of_the_spec(
    raw_spec: dict[str, Any], record_url: str, tmp_path: Path
) -> None:
    raw_spec |= {"fixed": {"epochs": 2, "warmup_epochs": 0}, "search": {"trials": 1}, "final": {"seeds": [44, 42]}}
    spec = parse_spec(raw_spec, "a test")
    sweep = new_sweep(spec, record_url)
    results = SweepResults(spec, sweep.studies, home_at(str(tmp_path)))
    with pytest.raises(UserError, match=r"^small has no complete final trial with task='demo/digits'; `trials"):
        results.best(task="demo/digits")

    drive(sweep)
    for task in ("demo/digits", "demo/shapes_loc"):
        studies = [study for study in sweep.studies if study.plan.task == task]
        chosen = max(studies, key=lambda study: study.best.score if study.best and study.best.score else 0.0)
        best = results.best(task=task)
        assert (best.study, best.phase, best.config.seed) == (chosen.plan.key, "final", 44)
        for study in studies:
            selected = results.best(task=task, method=study.plan.method, backbone=study.plan.backbone, train_size=1.0)
            assert (selected.study, selected.config.seed) == (study.plan.key, 44)

    # The seed with the best test accuracy is another one somewhere: it is not taken.
    finals = [max(study.final_table.trials, key=lambda trial: trial.score or 0.0) for study in sweep.studies]
    assert {trial.config.seed for trial in finals} == {42, 44}

    with pytest.raises(UserError, match=r"^accuracies of different tasks .* demo/digits, demo/shapes_loc\.$"):
        results.best()
    with pytest.raises(UserError, match=r"no complete final trial with method='vpt_deep'"):
        results.best(method="vpt_deep")
