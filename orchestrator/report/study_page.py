"""The description of a study in MLflow: its leaderboard, what it chose and why, how to get it again. Markdown."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping
from typing import Any

import yaml

from orchestrator.report.blocks import Block, Grid, Lines, cells
from orchestrator.report.render import markdown
from orchestrator.report.reproducibility import stamp
from orchestrator.spec.labels import params_text
from orchestrator.spec.plan import size_text
from orchestrator.study.selection import ranked, tied
from orchestrator.study.study import Study
from orchestrator.study.trial import TrialResult, TrialState
from trainer.config import TrainConfig

SHOWN = 10
"""Trials of a leaderboard."""


def study_page(study: Study) -> str:
    """All that a study came to so far."""
    plan, best = study.plan, study.best
    counts = study.summary().states
    told = ", ".join(f"{counts[state]} {state.value}" for state in TrialState if counts[state])
    lines = [] if best is None else [_finals(study)]
    lines += [] if best is None else [f"chosen on val: trial {best.number}, {params_text(best.params)}"]
    lines += [] if study.search.stopped is None else [f"stopped: {study.search.stopped}"]
    lines.append(f"trials: {told or 'none yet'}")
    lines.append(f"{plan.task}, {plan.method}, {plan.backbone}, train size {size_text(plan.train_size)}")
    parts: list[Block] = [Lines(lines=tuple(lines))]
    if best is not None:
        parts += [_leaderboard(study), stamp([study])]
    return markdown(parts) + "\n" + _again(study, best)


def study_metrics(study: Study) -> dict[str, float]:
    """Its numbers, for the columns of MLflow's table."""
    found: dict[str, float] = {}
    if study.best is not None and study.best.score is not None:
        found["final/val/accuracy"] = study.best.score
    scores = [trial.score for trial in study.finals if trial.score is not None]
    if scores:
        found["final/test/accuracy"] = statistics.mean(scores)
    if len(scores) > 1:
        found["final/test/accuracy_std"] = statistics.stdev(scores)
    return found


def _finals(study: Study) -> str:
    scores = [trial.score for trial in study.finals if trial.score is not None]
    if not scores:
        return "test accuracy: no final trial is finished"
    spread = f" ± {100 * statistics.stdev(scores):.1f}" if len(scores) > 1 else ""
    seeds = ", ".join(f"{t.config['seed']}: {100 * t.score:.1f}" for t in study.finals if t.score is not None)
    return f"test accuracy: {100 * statistics.mean(scores):.1f}{spread} % (by seed {seeds})"


def _leaderboard(study: Study) -> Grid:
    among = {trial.number for trial in tied(study.searched)}
    rows = [
        cells(
            str(trial.number),
            f"{100 * (trial.score or 0.0):.1f}",
            "tied" if trial.number in among else "",
            params_text(trial.params),
        )
        for trial in ranked(study.searched)[:SHOWN]
    ]
    header = ("trial", "val %", "", "params")
    return Grid(title="best on val at the last epoch", header=header, rows=rows, names=1, last_is_text=True)


def _again(study: Study, best: TrialResult | None) -> str:
    """The commands that repeat it."""
    plan, spec = study.plan, study.spec
    whole = spec.model_dump(mode="json", exclude_defaults=True)
    fixed, space = spec.params_of(plan.method)
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
        text += f"\nits first final trial by hand:\n\n```\n{command(_fields(config))}\n```\n"
    return text


def command(config: Mapping[str, Any]) -> str:
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
