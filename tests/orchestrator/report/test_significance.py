"""Bold cells: not significantly worse than the best of their column, in every format by the same rule."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from orchestrator.report.results_table import OVER_GROUPS, OVER_TASKS, ResultsRow, Score, build_results_table
from orchestrator.report.sections import build_sections
from orchestrator.report.significance import find_bold, not_worse
from orchestrator.study.statistics import holm, welch
from orchestrator.study.study import Study
from orchestrator.study.trial import Trial
from tests.orchestrator.report.reports import MAE, NATURAL, lines_of, results, run, small, table_block

FINAL = {"seeds": [1, 2, 3, 4, 5]}
ONE_TRIAL = {"trials": 1, "sampler": "random"}


def noisy(means: dict[str, float], sd: float) -> Callable[[Trial], float]:
    """Return scores around a mean for each method, with noise that depends on task, method and seed."""

    def score(trial: Trial) -> float:
        config = trial.config
        drawn = random.Random(repr((config.task, config.method, config.backbone, config.seed)))
        return means[config.method] + drawn.gauss(0.0, sd)

    return score


def test_a_row_is_bold_if_it_is_not_significantly_worse_and_not_by_its_last_digit(record_url: str) -> None:
    """`full` is 0.4 points below the best in the mean, which is less than the seeds vary; `linear` is far below."""
    means = {"spt_deep": 0.62, "full": 0.616, "linear": 0.4}
    raw = small(tasks=["vtab/dtd"], methods=[*means], search=ONE_TRIAL, final=FINAL)
    table = results(run(raw, record_url, score=noisy(means, 0.02)))
    texts = {method: table[method, "vtab/dtd"].text for method in means}
    assert texts["spt_deep"] != texts["full"], "the printed means differ"
    assert [table[method, "vtab/dtd"].bold for method in means] == [True, True, False]


def test_methods_that_round_to_the_same_text_are_not_both_bold_if_every_seed_tells_them_apart(record_url: str) -> None:
    means = {"spt_deep": 0.61236, "full": 0.61154}
    raw = small(tasks=["vtab/dtd"], methods=[*means], search=ONE_TRIAL, final=FINAL)
    table = results(run(raw, record_url, score=noisy(means, 0.00001)))
    assert [table[method, "vtab/dtd"].text.split()[0] for method in means] == ["61.2", "61.2"]
    assert [table[method, "vtab/dtd"].bold for method in means] == [True, False]


def test_columns_of_tasks_follow_welch_over_seeds_and_columns_of_means_the_signed_ranks_over_tasks(
    record_url: str,
) -> None:
    means = {"spt_deep": 0.62, "full": 0.61, "linear": 0.605}
    studies = run(
        small(tasks=[*NATURAL, "fgvc/nabirds"], methods=[*means], search=ONE_TRIAL, final={"seeds": [1, 2, 3]}),
        record_url,
        score=noisy(means, 0.008),
    )
    board, table = build_results_table(studies), results(studies)
    pairs = [("spt_deep", "full"), ("spt_deep", "linear"), ("full", "linear")]
    scores = {
        (study.plan.method, study.plan.task): [trial.score for trial in study.requested_final_trials]
        for study in studies
    }
    by_method = {row.names[0]: row.scores for row in board.rows if row.kind == "ours"}

    def expected(column: str, raw: list[float]) -> list[bool]:
        p_values = dict(zip(pairs, holm(raw), strict=True))
        best = max(means, key=lambda method: by_method[method][column].mean)
        kept = [
            method == best or next(p for pair, p in p_values.items() if {*pair} == {method, best}) > 0.05
            for method in means
        ]
        return [is_kept and not all(kept) for is_kept in kept]

    verdicts = []
    for task in board.tasks:
        raw = [stats.ttest_ind(scores[one, task], scores[other, task], equal_var=False).pvalue for one, other in pairs]
        verdicts.append([table[method, task].bold for method in means])
        assert verdicts[-1] == expected(task, raw), task
    assert len({*map(tuple, verdicts)}) > 1, "the columns are not all alike"

    for column, tasks in ((OVER_TASKS, board.tasks), (OVER_GROUPS, board.tasks), ("natural mean", NATURAL)):
        raw = [
            stats.wilcoxon([by_method[one][task].mean - by_method[other][task].mean for task in tasks]).pvalue
            for one, other in pairs
        ]
        assert [table[method, column].bold for method in means] == expected(column, raw), column
    assert not any(table[method, "fgvc mean"].bold for method in means), "one task is too few"


def test_published_numbers_and_differences_are_never_bold(plain: list[Study]) -> None:
    rows = table_block(build_sections(plain), "test accuracy").rows
    others = [row for row in rows if "," in row[0].text or row[0].text.startswith(" ")]
    assert others
    assert not any(cell.bold for row in others for cell in row)


def test_nothing_is_bold_with_one_seed_with_one_method_or_among_equal_scores_of_all_seeds(
    fresh: Callable[[], str],
) -> None:
    def bold(raw: dict[str, object], score: Callable[[Trial], float]) -> bool:
        rows = table_block(build_sections(run(raw, fresh(), score=score)), "test accuracy").rows
        return any(cell.bold for row in rows for cell in row)

    raw = small(tasks=["vtab/dtd"], search=ONE_TRIAL, final=FINAL)
    means = {"spt_deep": 0.62, "full": 0.4}
    assert bold(raw, noisy(means, 0.01))
    assert not bold(raw, noisy({"spt_deep": 0.6, "full": 0.6}, 0.01)), "all would be bold"
    assert not bold(raw, noisy(means, 0.0)), "no seed differs, so nothing is known of seeds"
    assert not bold(raw | {"methods": ["spt_deep"]}, noisy(means, 0.01))
    assert not bold(raw | {"final": {"seeds": [1]}}, noisy(means, 0.01)), "one seed does not show how seeds vary"


def test_methods_are_compared_on_the_same_backbone_and_train_size(record_url: str) -> None:
    means = {"spt_deep": 0.6, "full": 0.4}
    other = "vit_nano_patch4_32.mae"

    def score(trial: Trial) -> float:
        return noisy(means, 0.01)(trial) - (0.3 if trial.config.backbone == other else 0.0)

    studies = run(
        small(tasks=["demo/digits"], backbones=[MAE, other], search=ONE_TRIAL, final=FINAL), record_url, score=score
    )
    bold = {names for names, column in find_bold(build_results_table(studies), studies) if column == "demo/digits"}
    assert bold == {("spt_deep", MAE, "1.0"), ("spt_deep", other, "1.0")}


def test_the_caption_says_what_bold_means_and_how_many_tasks_a_mean_needs(record_url: str) -> None:
    methods = ["spt_deep", "full", "linear"]
    (line,) = [
        line
        for line in lines_of(
            build_sections(run(small(tasks=["vtab/dtd"], methods=methods, search=ONE_TRIAL), record_url))
        )
        if line.startswith("Bold: ")
    ]
    assert "not significantly worse (5 %) than the best of our methods" in line
    assert "over seeds of the final trials (Welch" in line and "does not cover the luck of the search" in line
    assert line.endswith("fewer than 7 tasks."), "three pairs"


@pytest.mark.parametrize("seed", range(3))
def test_welch_is_that_of_scipy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    one, other = rng.normal(0.6, 0.01, 5).tolist(), rng.normal(0.61, 0.03, 3).tolist()
    assert welch(one, other) == pytest.approx(stats.ttest_ind(one, other, equal_var=False).pvalue)
    assert welch(one, other) == pytest.approx(welch(other, one))


def test_welch_is_undefined_where_nothing_is_known_of_the_spread() -> None:
    assert welch([0.5], [0.4, 0.6]) is None
    assert welch([0.5, 0.5], [0.4, 0.4]) is None
    assert welch([0.5, 0.5], [0.5, 0.5]) == 1.0
    assert welch([0.1 + 0.2] * 2, [0.3] * 2) == 1.0, "the last bits of a sum are no difference"


def test_of_four_equal_methods_on_a_task_all_are_bold_in_95_percent_of_cases() -> None:
    """The best is chosen on the same seeds, so all pairs are counted."""
    rng = np.random.default_rng(1)
    repeats = 600
    errors = 0
    for _ in range(repeats):
        scores = rng.normal(0.6, 0.01, (4, 5)).tolist()
        rows = [
            ResultsRow(kind="ours", names=(f"method {index}", MAE, "1.0"), scores={"task": Score(mean=np.mean(values))})
            for index, values in enumerate(scores)
        ]
        p_values = [welch(one, other) for one, other in itertools.combinations(scores, 2)]
        errors += len(not_worse(rows, "task", p_values)) < len(rows)
    assert errors / repeats <= 0.05 + 3 * (0.05 * 0.95 / repeats) ** 0.5
