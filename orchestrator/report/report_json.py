"""The numbers of a report for scripts. Its keys are documented in `search_spaces/README.md`, and stay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from orchestrator.report.comparison_table import compare_in_settings
from orchestrator.report.cost import MethodCost, method_costs
from orchestrator.report.results_table import ResultsRow, build_results_table
from orchestrator.spec.labels import study_label
from orchestrator.study.study import Study
from orchestrator.study.summary import count_states
from orchestrator.study.trial import TrialState


def report_json(studies: Sequence[Study], *, with_cost: bool = False) -> dict[str, Any]:
    """Return the results table, the comparisons and the studies of a report as values of JSON.

    Accuracies of the table and differences are in percent, as in the other formats of a report. Those of single studies
    and trials are fractions.

    Args:
        with_cost: whether to add what each method costs, which needs the epochs of the trials.
    """
    table = build_results_table(studies)
    summaries = [study.summary() for study in studies]
    states = count_states(summaries)
    return {
        "sweeps": list(dict.fromkeys(study.spec.name for study in studies)),
        "tasks": list(table.tasks),
        "means": list(table.means),
        "trials": {
            **{state.value: states[state] for state in TrialState},
            "planned": sum(summary.num_planned for summary in summaries),
        },
        "rows": [_row(row) for row in table.rows],
        "comparisons": [*_comparisons(studies)],
        "cost": [_cost(cost) for cost in method_costs(studies)] if with_cost else [],
        "studies": [_study(study) for study in studies],
    }


def _row(row: ResultsRow) -> dict[str, Any]:
    method, backbone, train_size = row.names
    scores = {
        column: {
            "mean": score.mean,
            "std": score.std,
            "seeds": list(score.seeds),
            "draws": score.draws,
            "missing": score.missing,
        }
        for column, score in row.scores.items()
    }
    return {
        "kind": row.kind,
        "method": method,
        "backbone": backbone,
        "train_size": train_size,
        "tuned_percent": row.tuned,
        "scores": scores,
        "source": row.source or None,
        "protocol": list(row.protocol),
        "notes": list(row.notes),
    }


def _cost(cost: MethodCost) -> dict[str, Any]:
    method, backbone, train_size = cost.names
    return {
        "method": method,
        "backbone": backbone,
        "train_size": train_size,
        "tasks": cost.num_tasks,
        "accuracy": cost.accuracy,
        "learnable_parameters": cost.parameters,
        "learnable_percent": cost.share,
        "saved_mb": cost.saved_mb,
        "images_per_s": cost.images_per_s,
        "peak_gb": cost.peak_gb,
        "worker_hours_per_task": cost.worker_hours,
        "gpu_hours_per_task": cost.gpu_hours,
    }


def _comparisons(studies: Sequence[Study]) -> list[dict[str, Any]]:
    return [
        {
            "method": pair.one,
            "other": pair.other,
            "backbone": plan.backbone,
            "train_size": study_label(plan, ["train_size"])[0],
            "difference": 100 * pair.difference,
            "tasks": pair.tasks,
            "better_on": pair.better_on,
            "p_tasks": pair.p_tasks if pair.has_enough_tasks else None,
            "p_over": unit,
            "p_seeds_or_draws": pair.p_seeds,
        }
        for plan, unit, pairs in compare_in_settings(studies)
        for pair in pairs
    ]


def _study(study: Study) -> dict[str, Any]:
    best = study.best
    return {
        "task": study.plan.task,
        "method": study.plan.method,
        "backbone": study.plan.backbone,
        "train_size": study.plan.train_size,
        "draw": study.plan.draw,
        "chosen_trial": best.trial_id if best else None,
        "chosen_params": best.params if best else None,
        "val_accuracy": best.score if best else None,
        "test_accuracies": {
            str(trial.config.seed): trial.score for trial in study.requested_final_trials if trial.score is not None
        },
        "stopped": study.search_table.stop_reason,
    }
