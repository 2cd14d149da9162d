"""The description of a study in MLflow: its leaderboard, what it chose and why, how to get it again. Markdown."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping
from typing import Any

import yaml

from orchestrator.report.blocks import Block, TableBlock, TextBlock, cells
from orchestrator.report.render import to_markdown
from orchestrator.report.reproducibility import reproducibility_lines
from orchestrator.spec.labels import format_params
from orchestrator.spec.plan import format_train_size
from orchestrator.study.selection import find_tied, rank_by_val
from orchestrator.study.study import Study
from orchestrator.study.trial import Trial, TrialState
from trainer.config import TrainConfig

MAX_LEADERBOARD_ROWS = 10
"""Trials of a leaderboard."""


def render_study_page(study: Study) -> str:
    """All that a study came to so far."""
    plan, best = study.plan, study.best
    counts = study.summary().states
    told = ", ".join(f"{counts[state]} {state.value}" for state in TrialState if counts[state])
    lines = [] if best is None else [_finals(study)]
    lines += [] if best is None else [f"chosen on val: trial {best.number}, {format_params(best.params)}"]
    lines += [] if study.search_table.stop_reason is None else [f"stopped: {study.search_table.stop_reason}"]
    lines.append(f"trials: {told or 'none yet'}")
    lines.append(f"{plan.task}, {plan.method}, {plan.backbone}, train size {format_train_size(plan.train_size)}")
    parts: list[Block] = [TextBlock(lines=tuple(lines))]
    if best is not None:
        parts += [_leaderboard(study), reproducibility_lines([study])]
    return to_markdown(parts) + "\n" + _again(study, best)


def study_summary_metrics(study: Study) -> dict[str, float]:
    """Its numbers, for the columns of MLflow's table."""
    found: dict[str, float] = {}
    if study.best is not None and study.best.score is not None:
        found["final/val/accuracy"] = study.best.score
    scores = [trial.score for trial in study.requested_final_trials if trial.score is not None]
    if scores:
        found["final/test/accuracy"] = statistics.mean(scores)
    if len(scores) > 1:
        found["final/test/accuracy_std"] = statistics.stdev(scores)
    return found


def _finals(study: Study) -> str:
    scores = [trial.score for trial in study.requested_final_trials if trial.score is not None]
    if not scores:
        return "test accuracy: no final trial is finished"
    spread = f" ± {100 * statistics.stdev(scores):.1f}" if len(scores) > 1 else ""
    seeds = ", ".join(
        f"{t.config.seed}: {100 * t.score:.1f}" for t in study.requested_final_trials if t.score is not None
    )
    return f"test accuracy: {100 * statistics.mean(scores):.1f}{spread} % (by seed {seeds})"


def _leaderboard(study: Study) -> TableBlock:
    among = {trial.number for trial in find_tied(study.requested_search_trials)}
    rows = [
        cells(
            str(trial.number),
            f"{100 * (trial.score or 0.0):.1f}",
            "tied" if trial.number in among else "",
            format_params(trial.params),
        )
        for trial in rank_by_val(study.requested_search_trials)[:MAX_LEADERBOARD_ROWS]
    ]
    header = ("trial", "val %", "", "params")
    return TableBlock(title="best on val at the last epoch", header=header, rows=rows, names=1, last_is_text=True)


def _again(study: Study, best: Trial | None) -> str:
    """The commands that repeat it."""
    plan, spec = study.plan, study.spec
    whole = spec.model_dump(mode="json", exclude_defaults=True)
    fixed, space = spec.params_for(plan.method)
    alone = whole | {
        "name": f"{spec.name}-again",
        "fixed": fixed,
        "space": {name: entry for name, entry in whole["space"].items() if name in space} if space else {},
        "tasks": [plan.task],
        "backbones": [plan.backbone],
        "methods": [plan.method],
        "train_sizes": [plan.train_size],
    }
    text = yaml.safe_dump(alone, sort_keys=False, default_flow_style=None, width=110)
    text = f"**Again**, this study alone (`sptune launch study.yaml`):\n\n```yaml\n{text}```\n"
    if spec.search.transfer:
        text += "\n(`transfer`: in the sweep it began with other studies' params; alone it searches otherwise.)\n"
    if best is not None:
        config = plan.final_config(best.params, spec.final.seeds[0], spec.final.measure_peeking)
        text += f"\nits first final trial by hand:\n\n```\n{reproduce_command(_fields(config))}\n```\n"
    return text


def reproduce_command(config: Mapping[str, Any]) -> str:
    """The `python -m trainer` that trains a config."""
    words = [
        f"--{name.replace('_', '-')}" if value is True else f"--{name.replace('_', '-')} {_word(value)}"
        for name, value in config.items()
    ]
    return " ".join(["python -m trainer", *words])


def _word(value: Any) -> str:
    return f"'{value}'" if isinstance(value, str) and " " in value else str(value)


def _fields(config: TrainConfig) -> dict[str, Any]:
    """The fields that differ from their defaults."""
    defaults = {field.name: field.default for field in dataclasses.fields(TrainConfig)}
    return {name: value for name, value in dataclasses.asdict(config).items() if value != defaults[name]}
