"""What a trial and a study are in MLflow: status, tags, params, and metrics by step.

MLflow's page draws a line for a metric with a step above 0 and a bar for any other. It sorts charts by the names of the
metrics. So what a trial has once is a tag or is logged at step 0, and what its machine did is apart: the first charts
are the learning curves.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping, Sequence

from orchestrator.report.study_page import counts_text, study_summary_metrics
from orchestrator.study.study import Study
from orchestrator.study.trial import Trial, TrialState
from orchestrator.tracking.mlflow_experiment import DIGEST, LoggedRun
from trainer import metric_names
from trainer.metric_names import TRAIN_LOSS, metrics_by_epoch

RUN_STATUS = {
    TrialState.WAITING: "SCHEDULED",
    TrialState.RUNNING: "RUNNING",
    TrialState.COMPLETE: "FINISHED",
    # MLflow has no word for it, and shows KILLED as an alarm in red. A pruned trial ended as it should: the tag `state`
    # tells it from a complete one.
    TrialState.PRUNED: "FINISHED",
    TrialState.FAILED: "FAILED",
}
LAYOUT, LAYOUT_TAG = "2", "layout"
"""Version of what is logged, and the tag with it. A finished run with another one is logged again."""
CHOSEN = "chosen"
"""Tag of a parent run: which trial's params and learning curves it has. MLflow does not let them change."""

ONCE = (
    metric_names.TRAIN_IMAGES,
    metric_names.LABELS,
    metric_names.LEARNABLE_PARAMETERS,
    metric_names.LEARNABLE_SHARE,
    metric_names.PROTOTYPES_SECONDS,
    metric_names.MEMORY_DEVICE_GB,
)
"""Metrics that a trial has once, which are tags in MLflow."""
MACHINE = (
    metric_names.EPOCH_SECONDS,
    metric_names.MEMORY_PEAK_GB,
    metric_names.TRAIN_IMAGES_PER_S,
    metric_names.MICRO_BATCH_SIZE,
    metric_names.GPU_SHARE,
    metric_names.GPU_TRIALS,
)
"""Metrics of the machine, which MLflow shows on a page of their own by the prefix `SYSTEM`."""
SYSTEM = "system/"
SCORED_ONCE = ("test/", metric_names.PEEKING_GAIN)
"""Prefixes of metrics of the last epoch only."""
SCORES = ("val/", "test/", TRAIN_LOSS)
"""Prefixes of the metrics that tell how good a trial is."""


def trial_metrics(epochs: Iterable[Mapping[str, float]], num_logged: int = 0) -> dict[int, dict[str, float]]:
    """Return the metrics of a trial by step, without the epochs that are logged.

    Step 0 has the values before the first epoch, and those that a trial has once.

    Args:
        epochs: the metrics of each finished epoch, from the first.
        num_logged: number of epochs that MLflow has.
    """
    by_step: dict[int, dict[str, float]] = {}
    for epoch, metrics in metrics_by_epoch(epochs).items():
        # Epoch 0 is reported with epoch 1: it is logged if that one is.
        if max(epoch, 1) <= num_logged:
            continue

        for name, value in metrics.items():
            if name not in ONCE:
                step = 0 if name.startswith(SCORED_ONCE) else epoch
                by_step.setdefault(step, {})[f"{SYSTEM}{name}" if name in MACHINE else name] = value
    # Step 0 first: whoever finds an epoch logged then knows that this is, too.
    return dict(sorted(by_step.items()))


def step_times(epochs: Sequence[Mapping[str, float]], now_ms: int) -> dict[int, int]:
    """Return when each epoch ended, in milliseconds, if the last one ended now.

    Epochs are reported together, and all of them if MLflow was away.
    """
    times: dict[int, int] = {}
    for epoch in range(len(epochs), 0, -1):
        times[epoch] = now_ms
        now_ms -= int(1000 * epochs[epoch - 1].get(metric_names.EPOCH_SECONDS, 0.0))
    return times


def state_tags(trial: Trial) -> dict[str, str]:
    """Return the tags that tell how much of a trial MLflow has."""
    tags = {"state": trial.state.value, "attempt": str(trial.attempt)}
    return tags | {LAYOUT_TAG: LAYOUT} if trial.state.is_finished else tags


def trial_tags(trial: Trial) -> dict[str, str]:
    """Return the tags of a trial that change while it runs."""
    tags = state_tags(trial)
    tags |= {name: _number(trial.last_metrics[name]) for name in ONCE if name in trial.last_metrics}
    # Empty texts in a later attempt remove the error of the attempt before.
    if trial.cause is not None or trial.attempt > 1:
        tags |= {"error": trial.error_summary, "cause": trial.cause.value if trial.cause else ""}
    return tags


def outcome_tags(trial: Trial) -> dict[str, str]:
    """Return the tags of a finished trial, with its best values over all epochs as `best/...`.

    MLflow shows the last value of each metric. Final trials have no best values: they are scored once.
    """
    tags = trial_tags(trial)
    if trial.phase == "search" and trial.state is not TrialState.FAILED:
        for name in trial.last_metrics:
            if name.startswith(SCORES):
                values = [epoch[name] for epoch in trial.epochs if name in epoch]
                tags[f"best/{name}"] = _number(min(values) if name == TRAIN_LOSS else max(values))
    return tags


def study_metrics(study: Study, num_logged: int = 0) -> dict[int, dict[str, float]]:
    """Return the metrics of a study by step: its test accuracy at step 0, and the learning curves of the chosen trial.

    Args:
        num_logged: number of epochs that MLflow has of these curves.
    """
    epochs = study.best.epochs if study.best is not None else ()
    curves = {
        step: {name: value for name, value in metrics.items() if name.startswith(SCORES)}
        for step, metrics in trial_metrics(epochs, num_logged).items()
    }
    return {0: study_summary_metrics(study)} | curves


def study_params(study: Study) -> dict[str, str]:
    """Return the fields of the study's final trials without the seed: the chosen params, and what is fixed."""
    configs = [dataclasses.asdict(config) for _, config in study.final_configs().values()]
    return {name: str(value) for name, value in configs[0].items() if name != "seed"} if configs else {}


def study_tags(study: Study, digest: str) -> dict[str, str]:
    """Return the tags of a study that change with its trials."""
    state = TrialState.COMPLETE if study.is_done else TrialState.RUNNING
    if study.search_table.stop_reason is not None:
        state = TrialState.FAILED
    return {
        "state": state.value,
        "trials": counts_text(study).partition(": ")[2],
        CHOSEN: chosen_mark(study),
        LAYOUT_TAG: LAYOUT,
        DIGEST: digest,
    }


def chosen_mark(study: Study) -> str:
    """Return the chosen trial and a hash of all that its study's run has of it; empty if there is none."""
    best = study.best
    if best is None:
        return ""
    content = repr((best.trial_id, best.score, study_params(study)))
    return f"trial {best.number} ({hashlib.sha256(content.encode()).hexdigest()[:8]})"


def has_all(run: LoggedRun | None, trial: Trial) -> bool:
    """Whether a run has everything of a finished trial."""
    if run is None:
        return False
    attempt = run.tags.get("attempt", str(trial.attempt))
    logged = (run.status, run.tags.get("state"), attempt, run.tags.get(LAYOUT_TAG))
    return logged == (RUN_STATUS[trial.state], trial.state.value, str(trial.attempt), LAYOUT)


def has_summary(run: LoggedRun | None, digest: str) -> bool:
    """Whether a study's run has the summary with this digest."""
    return run is not None and (run.tags.get(DIGEST), run.tags.get(LAYOUT_TAG)) == (digest, LAYOUT)


def has_another_choice(run: LoggedRun, study: Study) -> bool:
    """Whether a study's run has the params and curves of another trial than the one that is chosen now."""
    return run.tags.get(CHOSEN, "") not in ("", chosen_mark(study))


def _number(value: float) -> str:
    """Return a number as a tag has it."""
    return f"{value:.10g}"
