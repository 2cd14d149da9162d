"""Numbers of a report: our scores over seeds, published ones beside them, means over tasks and over groups.

All accuracies are test accuracies in percent.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from orchestrator.report import protocols
from orchestrator.report.draws import replicates, spread_unit
from orchestrator.report.published import PublishedRow, published_rows
from orchestrator.report.published_wins import FULL
from orchestrator.spec.labels import study_label
from orchestrator.spec.plan import StudyPlan
from orchestrator.study.study import Study
from trainer.catalog import METHODS, TASKS
from trainer.metric_names import LEARNABLE_SHARE
from trainer.plain_text import counted

# Papers use both averages, and they differ: 61.28 and 64.27 for full fine-tuning of MAE on VTAB-1K.
OVER_TASKS = "mean over tasks"
OVER_GROUPS = "mean over groups"

NAMES = ("method", "backbone", "train_size")
ALL_IMAGES = "1.0"
"""The train size of published numbers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """Number of one cell."""

    mean: float
    std: float | None = None
    """Standard deviation of the sample (n - 1), over draws if there are several and over seeds otherwise; None for one
    draw and one seed, and for means over tasks."""
    seeds: tuple[int, ...] = ()
    draws: int = 1
    """Number of random draws of the images that have a score. Their means over seeds are averaged."""
    missing: int = 0
    """Number of final trials that the spec asks for and that have no score."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ResultsRow:
    """One row: a method of ours, the same method in a paper, or the difference of the two."""

    kind: Literal["ours", "published", "difference"]
    names: tuple[str, str, str]
    """Method, backbone, train size."""
    source: str = ""
    tuned: float | None = None
    """Learnable parameters in percent of all parameters, averaged over tasks."""
    scores: dict[str, Score] = field(default_factory=dict)
    """By column: a task, the mean of a group such as `natural mean`, or one of the two averages."""
    protocol: tuple[str, ...] = ()
    """How the numbers of a published row were made, a sentence for each benchmark."""
    notes: tuple[str, ...] = ()
    """Where this protocol differs from ours, and remarks on single numbers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ResultsTable:
    """All rows over the same columns."""

    tasks: tuple[str, ...]
    groups: dict[str, tuple[str, ...]]
    """Tasks of the sweep by group; empty if there is only one group."""
    rows: list[ResultsRow]

    @property
    def means(self) -> tuple[str, ...]:
        """The columns after the tasks."""
        columns = [f"{group} mean" for group in self.groups]
        if len(self.tasks) > 1:
            columns.append(OVER_TASKS)
        if self.groups:
            columns.append(OVER_GROUPS)
        return tuple(columns)

    @property
    def marks(self) -> dict[tuple[str, ...], str]:
        """The mark of each row's notes, in the order of the rows. Rows with the same notes share it."""
        return protocols.marks(row.notes for row in self.rows)

    def beats_full(self) -> list[str]:
        """Return sentences with the number of tasks on which each method beats full fine-tuning.

        The reference is our full fine-tuning if the sweep contains it, and the published one otherwise.
        """
        ours = [row for row in self.rows if row.kind == "ours"]
        methods_by_result: dict[str, list[str]] = {}
        for row in ours:
            if row.names[0] == FULL:
                continue
            reference = self._full_reference(row)
            if reference is None:
                continue

            common = [task for task in self.tasks if task in row.scores and task in reference.scores]
            num_won = sum(row.scores[task].mean > reference.scores[task].mean for task in common)

            # Name the backbone and the train size only if they differ between our rows.
            varying = [index for index in (1, 2) if len({each.names[index] for each in ours}) > 1]
            label = " ".join([row.names[0], *(row.names[index] for index in varying)])

            origin = "published " if reference.kind == "published" else ""
            result = f"{origin}full fine-tuning on {num_won} of {counted(len(common), 'task')}"
            num_without = len(self.tasks) - len(common)
            if num_without:
                result += f"; on {num_without} more, one of the two has no score"
            methods_by_result.setdefault(result, []).append(label)

        return [
            f"{', '.join(labels)} {'beats' if len(labels) == 1 else 'beat'} {result}."
            for result, labels in methods_by_result.items()
        ]

    def _full_reference(self, row: ResultsRow) -> ResultsRow | None:
        """Return the row of full fine-tuning on the same backbone and train size, ours before a published one."""
        candidates = [
            each
            for each in self.rows
            if each.names[0] == FULL and each.names[1:] == row.names[1:] and each.scores and each.kind != "difference"
        ]
        return min(candidates, key=lambda each: each.kind, default=None)


def build_results_table(studies: Sequence[Study]) -> ResultsTable:
    """Return the results table of the studies of one or more sweeps."""
    plans = [study.plan for study in studies]
    tasks = tuple(dict.fromkeys(plan.task for plan in plans))
    groups: dict[str, tuple[str, ...]] = {}
    for plan in plans:
        groups[plan.group] = tuple(dict.fromkeys((*groups.get(plan.group, ()), plan.task)))
    if len(groups) == 1:
        groups = {}

    # Our rows, each followed by the published row of the same method and the difference.
    rows: list[ResultsRow] = []
    for names in dict.fromkeys(_names(plan) for plan in plans):
        row_studies = [study for study in studies if _names(study.plan) == names]
        scores = _with_means(_scores(row_studies), tasks, groups)
        ours = ResultsRow(kind="ours", names=names, tuned=_tuned(row_studies), scores=scores)
        rows.append(ours)

        method, backbone, train_size = names
        if train_size == ALL_IMAGES and published_rows(backbone):
            source = next((row for row in published_rows(backbone) if row.method == method), None)
            published = _published(source, names, tasks, groups, row_studies)
            rows += [published, _difference(ours, published)]

    # Published rows of methods that the sweep does not contain.
    for backbone in dict.fromkeys(row.names[1] for row in rows if row.names[2] == ALL_IMAGES):
        methods = {row.names[0] for row in rows if row.names[1] == backbone}
        # The sweep has no study of these methods: they are compared with all others on this backbone.
        others = [study for study in studies if _names(study.plan)[1:] == (backbone, ALL_IMAGES)]
        for source in published_rows(backbone):
            if source.method not in methods:
                published = _published(source, (source.method, backbone, ALL_IMAGES), tasks, groups, others)
                # Most papers have numbers of a few tasks. A row without any would say nothing.
                rows += [published] if published.scores else []

    # Where the papers have no number for any of our tasks, as for a researcher's own, their rows would be empty.
    with_numbers = {row.names[1] for row in rows if row.kind == "published" and row.scores}
    rows = [row for row in rows if row.kind == "ours" or row.names[1] in with_numbers]
    return ResultsTable(tasks=tasks, groups=groups, rows=rows)


def published_scores(backbones: Iterable[str]) -> dict[str, dict[tuple[str, str], float]]:
    """Return published accuracies of the methods of the catalog: by backbone, then by method and task."""
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
    method, backbone, train_size = study_label(plan, NAMES)
    return method, backbone, train_size


def _scores(studies: Sequence[Study]) -> dict[str, Score]:
    """Return the score of each task that has one. Each draw of a task has a study of its own."""
    by_task: dict[str, list[Study]] = {}
    for study in studies:
        by_task.setdefault(study.plan.task, []).append(study)

    scores = {}
    for task, draws in by_task.items():
        trials = [trial for study in draws for trial in study.requested_final_trials if trial.score is not None]
        if trials:
            values = [100 * score for score in replicates([trials], spread_unit(study.plan for study in draws))]
            scores[task] = Score(
                mean=statistics.mean(values),
                std=statistics.stdev(values) if len(values) > 1 else None,
                seeds=tuple(dict.fromkeys(trial.config.seed for trial in trials)),
                draws=len({trial.config.draw for trial in trials}),
                missing=sum(len(study.spec.final.seeds) for study in draws) - len(trials),
            )
    return scores


def _tuned(studies: Sequence[Study]) -> float | None:
    """Return the learnable share in percent, averaged over the trials of a task and then over tasks."""
    means = []
    for study in studies:
        shares = [
            trial.last_metrics[LEARNABLE_SHARE]
            for trial in study.requested_final_trials
            if LEARNABLE_SHARE in trial.last_metrics
        ]
        if shares:
            means.append(statistics.mean(shares))

    return 100 * statistics.mean(means) if means else None


def _with_means(
    scores: dict[str, Score], tasks: Sequence[str], groups: Mapping[str, Sequence[str]]
) -> dict[str, Score]:
    """Return the scores and their means. A mean exists only if all scores that it averages exist."""
    result = dict(scores)
    for group, members in groups.items():
        if all(task in scores for task in members):
            result[f"{group} mean"] = _mean([scores[task] for task in members])

    if len(tasks) > 1 and all(task in scores for task in tasks):
        result[OVER_TASKS] = _mean([scores[task] for task in tasks])

    if groups and all(f"{group} mean" in result for group in groups):
        result[OVER_GROUPS] = _mean([result[f"{group} mean"] for group in groups])
    return result


def _mean(scores: Sequence[Score]) -> Score:
    return Score(
        mean=statistics.mean(score.mean for score in scores),
        draws=min(score.draws for score in scores),
        missing=sum(score.missing for score in scores),
    )


def _published(
    row: PublishedRow | None,
    names: tuple[str, str, str],
    tasks: Sequence[str],
    groups: Mapping[str, Sequence[str]],
    studies: Sequence[Study],
) -> ResultsRow:
    """Return the row of a paper over our columns, with the differences of its protocol from that of our studies.

    The printed mean of a group is used only if the sweep contains all tasks of the group.
    """
    if row is None:
        return ResultsRow(kind="published", names=names, source="none found")

    task_scores = {task: Score(mean=row.tasks[task]) for task in tasks if task in row.tasks}
    scores = _with_means(task_scores, tasks, groups)

    # Printed means of groups, which a paper can give without the tasks.
    for group, mean in row.groups.items():
        group_tasks = {task.name for task in TASKS.values() if task.group == group}
        if group_tasks == {*groups.get(group, ())}:
            scores[f"{group} mean"] = Score(mean=mean)
        elif not groups and group_tasks == {*tasks}:
            # With one group there is no column for its mean: it is the mean over tasks. The printed mean is kept also
            # where the printed tasks give another one: the paper averaged before it rounded.
            scores[OVER_TASKS] = Score(mean=mean)

    # The two averages follow from the means of all groups.
    by_group = [(scores[f"{group} mean"].mean, len(groups[group])) for group in groups if f"{group} mean" in scores]
    if groups and len(by_group) == len(groups):
        scores[OVER_GROUPS] = Score(mean=statistics.mean(mean for mean, _ in by_group))
        scores.setdefault(OVER_TASKS, Score(mean=sum(mean * size for mean, size in by_group) / len(tasks)))

    # `tuned` is text such as "0.08% tuned", or a number of parameters, which has no column.
    share = re.match(r"([\d.]+) ?%", row.tuned or "")
    tuned = float(share[1]) if share else None
    # Only benchmarks of which a number is printed have something to compare.
    printed = [task for task in tasks if task in scores]
    printed += [members[0] for group, members in groups.items() if f"{group} mean" in scores]
    printed += [tasks[0]] if not groups and OVER_TASKS in scores else []
    benchmarks = [
        name
        for name in dict.fromkeys(map(protocols.benchmark_of, tasks))
        if name in row.protocols and name in map(protocols.benchmark_of, printed)
    ]

    return ResultsRow(
        kind="published",
        names=names,
        source=row.source,
        tuned=tuned,
        scores=scores,
        protocol=protocols.describe(row, benchmarks),
        notes=protocols.differences(row, benchmarks, studies),
    )


def _difference(ours: ResultsRow, published: ResultsRow) -> ResultsRow:
    columns = ours.scores.keys() & published.scores.keys()
    scores = {column: Score(mean=ours.scores[column].mean - published.scores[column].mean) for column in columns}
    return ResultsRow(kind="difference", names=ours.names, scores=scores, notes=published.notes if scores else ())
