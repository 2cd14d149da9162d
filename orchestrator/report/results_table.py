"""The numbers of a report: ours over seeds, published ones beside them, means over tasks and over groups.

All accuracies are test accuracies in per cent.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from orchestrator.report.published import PublishedRow, published_rows
from orchestrator.spec.labels import study_label
from orchestrator.spec.plan import StudyPlan
from orchestrator.study.study import Study
from trainer.catalog import METHODS, TASKS
from trainer.metric_names import LEARNABLE_SHARE

OVER_TASKS, OVER_GROUPS = "mean over tasks", "mean over groups"
"""The two averages in use, which are never the same number: 61.28 and 64.27 for MAE full fine-tuning on VTAB-1K."""
NAMES = ("method", "backbone", "train_size")


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """One cell."""

    mean: float
    std: float | None = None
    """That of the sample (n - 1); None for one seed, and for means over tasks."""
    seeds: tuple[int, ...] = ()
    missing: int = 0
    """Final trials that the spec asks for and that have no score."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ResultsRow:
    """One row: a method of ours, or what a paper reports, or ours minus theirs."""

    kind: Literal["ours", "published", "difference"]
    names: tuple[str, str, str]
    """Method, backbone, train size."""
    source: str = ""
    tuned: float | None = None
    """Parameters that learn, in per cent of the whole: the mean over the tasks."""
    scores: dict[str, Score] = field(default_factory=dict)
    """By column: tasks, `natural mean` and its kin, and the two averages."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ResultsTable:
    """All rows over the same columns."""

    tasks: tuple[str, ...]
    groups: dict[str, tuple[str, ...]]
    """Tasks of the sweep by group, where there is more than one group."""
    rows: list[ResultsRow]

    @property
    def means(self) -> tuple[str, ...]:
        """The columns after the tasks."""
        by_group = tuple(f"{group} mean" for group in self.groups)
        return (*by_group, *((OVER_TASKS,) if len(self.tasks) > 1 else ()), *((OVER_GROUPS,) if self.groups else ()))

    def best(self, column: str) -> float | None:
        """The highest mean of ours in a column, as it is printed."""
        found = [round(row.scores[column].mean, 1) for row in self.rows if row.kind == "ours" and column in row.scores]
        return max(found, default=None)

    def beats_full(self) -> list[str]:
        """Of each method, on how many tasks it beats full fine-tuning: ours where the sweep has it, else published."""
        told = []
        ours = [row for row in self.rows if row.kind == "ours"]
        for row in (one for one in ours if one.names[0] != "full"):
            full = [
                one for one in self.rows if one.names[0] == "full" and one.names[1:] == row.names[1:] and one.scores
            ]
            for reference in sorted((one for one in full if one.kind != "difference"), key=lambda one: one.kind)[:1]:
                both = [task for task in self.tasks if task in row.scores and task in reference.scores]
                won = sum(row.scores[task].mean > reference.scores[task].mean for task in both)
                rest = (
                    f"; {len(self.tasks) - len(both)} have no number to compare" if len(both) < len(self.tasks) else ""
                )
                whose = "published " if reference.kind == "published" else ""
                own = [row.names[0], *(row.names[place] for place in (1, 2) if len({r.names[place] for r in ours}) > 1)]
                told.append(f"{' '.join(own)} beats {whose}full fine-tuning on {won} of {len(both)} tasks{rest}.")
        return told


def build_results_table(studies: Sequence[Study]) -> ResultsTable:
    """The board of one or more sweeps' studies."""
    plans = [study.plan for study in studies]
    tasks = tuple(dict.fromkeys(plan.task for plan in plans))
    groups: dict[str, tuple[str, ...]] = {}
    for plan in plans:
        groups[plan.group] = tuple(dict.fromkeys((*groups.get(plan.group, ()), plan.task)))
    groups = groups if len(groups) > 1 else {}
    rows: list[ResultsRow] = []
    for key in dict.fromkeys(_names(plan) for plan in plans):
        own = [study for study in studies if _names(study.plan) == key]
        ours = ResultsRow(kind="ours", names=key, tuned=_tuned(own), scores=_with_means(_scores(own), tasks, groups))
        rows.append(ours)
        if key[2] == "1.0" and (known := published_rows(key[1])):
            theirs = next((row for row in known if row.method == key[0]), None)
            published = _published(theirs, key, tasks, groups)
            rows += [published, _difference(ours, published)]
    for backbone in dict.fromkeys(row.names[1] for row in rows if row.names[2] == "1.0"):
        there = {row.names[0] for row in rows if row.names[1] == backbone}
        others = [row for row in published_rows(backbone) if row.method not in there]
        rows += [_published(row, (row.method, backbone, "1.0"), tasks, groups) for row in others]
    return ResultsTable(tasks=tasks, groups=groups, rows=rows)


def published_scores(backbones: Iterable[str]) -> dict[str, dict[tuple[str, str], float]]:
    """Published accuracies of our methods, by backbone, then by method and task."""
    return {
        backbone: {
            (row.method, task): value
            for row in published_rows(backbone)
            if row.method in METHODS
            for task, value in row.tasks.items()
        }
        for backbone in backbones
    }


def _names(plan: StudyPlan) -> tuple[str, str, str]:
    method, backbone, size = study_label(plan, NAMES)
    return method, backbone, size


def _scores(studies: Sequence[Study]) -> dict[str, Score]:
    found = {}
    for study in studies:
        scored = [(trial.score, trial.config.seed) for trial in study.requested_final_trials if trial.score is not None]
        if scored:
            values = [100 * score for score, _ in scored]
            found[study.plan.task] = Score(
                mean=statistics.mean(values),
                std=statistics.stdev(values) if len(values) > 1 else None,
                seeds=tuple(seed for _, seed in scored),
                missing=len(study.spec.final.seeds) - len(values),
            )
    return found


def _tuned(studies: Sequence[Study]) -> float | None:
    by_task = [
        [
            trial.last_metrics[LEARNABLE_SHARE]
            for trial in study.requested_final_trials
            if LEARNABLE_SHARE in trial.last_metrics
        ]
        for study in studies
    ]
    means = [statistics.mean(shares) for shares in by_task if shares]
    return 100 * statistics.mean(means) if means else None


def _with_means(
    scores: dict[str, Score], tasks: Sequence[str], groups: Mapping[str, Sequence[str]]
) -> dict[str, Score]:
    """The scores with their means, each where all that it is over is there."""
    found = dict(scores)
    for group, members in groups.items():
        if all(task in scores for task in members):
            found[f"{group} mean"] = _mean([scores[task] for task in members])
    if len(tasks) > 1 and all(task in scores for task in tasks):
        found[OVER_TASKS] = _mean([scores[task] for task in tasks])
    if groups and all(f"{group} mean" in found for group in groups):
        found[OVER_GROUPS] = _mean([found[f"{group} mean"] for group in groups])
    return found


def _mean(scores: Sequence[Score]) -> Score:
    return Score(mean=statistics.mean(score.mean for score in scores), missing=sum(score.missing for score in scores))


def _published(
    row: PublishedRow | None, names: tuple[str, str, str], tasks: Sequence[str], groups: Mapping[str, Sequence[str]]
) -> ResultsRow:
    """A paper's row over our columns; a group's printed mean only where we have all of the group's tasks."""
    if row is None:
        return ResultsRow(kind="published", names=names, source="none found")
    found = _with_means({task: Score(mean=row.tasks[task]) for task in tasks if task in row.tasks}, tasks, groups)
    for group, mean in row.groups.items():
        whole = {task.name for task in TASKS.values() if task.group == group}
        if whole == {*groups.get(group, ())}:
            found[f"{group} mean"] = Score(mean=mean)
        elif not groups and whole == {*tasks}:
            found.setdefault(OVER_TASKS, Score(mean=mean))
    by_group = [(found[f"{group} mean"].mean, len(groups[group])) for group in groups if f"{group} mean" in found]
    if groups and len(by_group) == len(groups):
        found[OVER_GROUPS] = Score(mean=statistics.mean(mean for mean, _ in by_group))
        found.setdefault(OVER_TASKS, Score(mean=sum(mean * size for mean, size in by_group) / len(tasks)))
    share = re.match(r"([\d.]+) ?%", row.tuned or "")
    tuned = float(share[1]) if share else None
    return ResultsRow(kind="published", names=names, source=row.source, tuned=tuned, scores=found)


def _difference(ours: ResultsRow, theirs: ResultsRow) -> ResultsRow:
    both = ours.scores.keys() & theirs.scores.keys()
    scores = {column: Score(mean=ours.scores[column].mean - theirs.scores[column].mean) for column in both}
    return ResultsRow(kind="difference", names=ours.names, scores=scores)
