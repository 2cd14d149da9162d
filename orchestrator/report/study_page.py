"""Description of a study in MLflow, in Markdown: its result, its leaderboard and how to repeat it."""

from __future__ import annotations

import dataclasses
import re
import shlex
import statistics
from collections.abc import Mapping
from typing import Any

import yaml

from orchestrator.redaction import redact
from orchestrator.report.blocks import Block, TableBlock, TextBlock, cells
from orchestrator.report.render import to_markdown
from orchestrator.report.reproducibility import reproducibility_lines
from orchestrator.report.searched import searched_block
from orchestrator.spec.labels import format_params, setting_text
from orchestrator.study.selection import find_tied, rank_by_val
from orchestrator.study.study import Study
from orchestrator.study.trial import Trial, TrialState
from trainer.config import TrainConfig
from trainer.plain_text import counted

PAGE_WIDTH = 80
"""Most characters in a line that is shown as it is. MLflow's page is cut where such a line is wider than the page."""
MAX_LEADERBOARD_ROWS = 10
"""Number of trials of a leaderboard."""


def render_study_page(study: Study) -> str:
    """Return the page of a study, with its results so far."""
    plan = study.plan
    best = study.best

    # The result comes first: MLflow shows the beginning of a description in its table.
    lines = []
    if best is not None:
        lines.append(final_scores_text(study))
        lines.append(chosen_text(best))
    if study.search_table.stop_reason is not None:
        lines.append(f"stopped: {study.search_table.stop_reason}")

    lines.append(counts_text(study))
    lines.append(setting_text(plan))

    blocks: list[Block] = [TextBlock(lines=tuple(lines))]
    if best is not None:
        blocks += [_leaderboard(study), reproducibility_lines([study])]
    blocks.append(searched_block([plan]))
    return to_markdown(blocks) + "\n" + _how_to_repeat(study, best)


def study_summary_metrics(study: Study) -> dict[str, float]:
    """Return the test accuracy of a study over its seeds, for the columns of MLflow's table."""
    metrics: dict[str, float] = {}
    scores = [trial.score for trial in study.requested_final_trials if trial.score is not None]
    if scores:
        metrics["test/accuracy"] = statistics.mean(scores)
    if len(scores) > 1:
        metrics["test/accuracy_std"] = statistics.stdev(scores)
    return metrics


def chosen_text(best: Trial) -> str:
    """Return the line with the search trial that was chosen."""
    return f"chosen on val: trial {best.number}, {format_params(best.params)}"


def counts_text(study: Study) -> str:
    """Return the line with the number of trials in each state."""
    states = study.summary().states
    counts = ", ".join(f"{states[state]} {state.value}" for state in TrialState if states[state])
    return f"trials: {counts or 'none yet'}"


def final_scores_text(study: Study) -> str:
    """Return the line with the test accuracy, as a mean and by seed."""
    scores = [trial.score for trial in study.requested_final_trials if trial.score is not None]
    if not scores:
        return "test accuracy: no final trial has finished yet"

    spread = f" ± {100 * statistics.stdev(scores):.1f}" if len(scores) > 1 else ""
    by_seed = ", ".join(
        f"{trial.config.seed}: {100 * trial.score:.1f}"
        for trial in study.requested_final_trials
        if trial.score is not None
    )
    return f"test accuracy: {100 * statistics.mean(scores):.1f}{spread} % (by seed {by_seed})"


def _leaderboard(study: Study) -> TableBlock:
    tied = {trial.number for trial in find_tied(study.requested_search_trials)}
    rows = [
        cells(
            str(trial.number),
            f"{100 * (trial.score or 0.0):.1f}",
            "tied" if trial.number in tied else "",
            format_params(trial.params),
        )
        for trial in rank_by_val(study.requested_search_trials)[:MAX_LEADERBOARD_ROWS]
    ]

    return TableBlock(
        title="best on val at the last epoch",
        header=("trial", "val %", "", "params"),
        rows=rows,
        names=1,
        last_is_text=True,
    )


def _how_to_repeat(study: Study, best: Trial | None) -> str:
    """Return the spec that repeats this study alone, and the command that repeats its first final trial."""
    plan = study.plan
    spec = study.spec
    whole_spec = spec.model_dump(mode="json", exclude_defaults=True)
    # What `per` gave the study is merged into its params.
    whole_spec.pop("per", None)

    # A name of its own keeps the repetition apart from the trials of the sweep in the study database.
    study_spec = whole_spec | {
        "name": f"{spec.name}-again",
        "fixed": plan.fixed,
        "space": {name: entry.model_dump(mode="json", exclude_defaults=True) for name, entry in plan.space.items()},
        "search": plan.search.model_dump(mode="json", exclude_defaults=True),
        "tasks": [plan.task],
        "backbones": [plan.backbone],
        "methods": [plan.method],
        "train_sizes": [plan.train_size],
        # A spec asks for a number of draws, and its draws are 0, 1, ...
        "draws": plan.draw + 1,
    }
    if plan.draw == 0:
        del study_spec["draws"]
    # Flow style keeps a dimension on one line.
    spec_yaml = redact(yaml.safe_dump(study_spec, sort_keys=False, default_flow_style=None, width=PAGE_WIDTH))
    # A fence ends at the first line that has as many backticks.
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", spec_yaml)), default=0))
    text = (
        "**To repeat this study alone**, save this spec as `study.yaml` and run `sptune launch study.yaml`:\n\n"
        f"{fence}yaml\n{spec_yaml}{fence}\n"
    )

    if plan.draw:
        text += f"\n(This study is draw {plan.draw}. The spec runs the {counted(plan.draw, 'draw')} before it, too.)\n"
    if plan.search.transfer:
        text += (
            "\n(`transfer`: in the sweep, this search started from the params of other studies. Alone it has no such "
            "params, so it proposes other trials.)\n"
        )
    if best is not None:
        _, config = next(iter(study.final_configs().values()))
        command = _fold(reproduce_command(changed_fields(config)))
        text += f"\nTo train its first final trial by hand:\n\n```\n{command}\n```\n"
    return text


def _fold(command: str) -> str:
    """Return a command on several lines, which a shell reads as one."""
    # An option stays on the line of its value.
    options: list[str] = []
    for word in shlex.split(command):
        if word.startswith("--") or not options:
            options.append(shlex.quote(word))
        else:
            options[-1] += f" {shlex.quote(word)}"

    lines = options[:1]
    for option in options[1:]:
        if len(f"{lines[-1]} {option} \\") > PAGE_WIDTH:
            lines.append(f"    {option}")
        else:
            lines[-1] += f" {option}"
    return " \\\n".join(lines)


def reproduce_command(config: Mapping[str, Any]) -> str:
    """Return the `python -m trainer` command that trains a config.

    Args:
        config: the fields that differ from their defaults.
    """
    words = ["python -m trainer"]
    for name, value in config.items():
        option = f"--{name.replace('_', '-')}"
        # A flag takes no value.
        words.append(option if value is True else f"{option} {shlex.quote(str(value))}")
    return " ".join(words)


def changed_fields(config: TrainConfig) -> dict[str, Any]:
    """Return the fields that differ from their defaults."""
    defaults = {field.name: field.default for field in dataclasses.fields(TrainConfig)}
    return {name: value for name, value in dataclasses.asdict(config).items() if value != defaults[name]}
