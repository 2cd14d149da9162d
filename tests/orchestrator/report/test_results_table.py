"""The results table: means, sample deviations, the two averages, published numbers and differences."""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
from pathlib import Path

import pytest

from orchestrator.report.results_table import OVER_GROUPS, OVER_TASKS, build_results_table
from orchestrator.report.sections import build_sections, format_score
from orchestrator.study.study import Study
from tests.orchestrator.report.reports import MAE, SMALL, lines_of, percents, printed, results, run, small, table_block


def test_every_number_is_the_mean_and_sample_std_of_the_final_trials(record_url: str) -> None:
    studies = run(small(final={"seeds": [42, 44, 82]}), record_url)
    table, board = results(studies), build_results_table(studies)
    for study in studies:
        task, method = study.plan.task, study.plan.method
        scores = percents(studies, task, method)
        assert len(scores) == 3
        assert table[method, task].text == f"{statistics.mean(scores):.1f} ± {statistics.stdev(scores):.1f}"
        row = next(row for row in board.rows if (row.kind, row.names[0]) == ("ours", method))
        assert (row.scores[task].mean, row.scores[task].std) == (statistics.mean(scores), statistics.stdev(scores))
        assert (row.scores[task].seeds, row.scores[task].missing) == ((42, 44, 82), 0)
    assert "Trials: 30 complete, 0 pruned, 0 failed, 0 missing." in lines_of(build_sections(studies))


def test_one_seed_has_no_std(record_url: str) -> None:
    studies = run(small(final={"seeds": [7]}), record_url)
    (only,) = percents(studies, "vtab/dtd", "full")
    assert results(studies)["full", "vtab/dtd"].text == f"{only:.1f}"
    assert "over seeds 7." in printed(build_sections(studies))


@pytest.mark.parametrize("score", [0.0, 1.0])
def test_accuracies_of_0_and_1_are_printed_as_numbers(score: float, record_url: str) -> None:
    table = results(run(small(), record_url, score=lambda _: score))
    assert table["full", "vtab/dtd"].text == table["full", OVER_TASKS].text + " ± 0.0"
    assert float(table["full", OVER_TASKS].text) == 100 * score


def test_the_two_averages_have_their_own_columns(plain: list[Study]) -> None:
    studies, table = plain, results(plain)
    for method in ("spt_deep", "full"):
        dtd, svhn, birds = (statistics.mean(percents(studies, task, method)) for task in SMALL["tasks"])
        assert table[method, "natural mean"].text == f"{(dtd + svhn) / 2:.1f}"
        assert table[method, "fgvc mean"].text == f"{birds:.1f}"
        assert table[method, OVER_TASKS].text == f"{(dtd + svhn + birds) / 3:.1f}"
        assert table[method, OVER_GROUPS].text == f"{((dtd + svhn) / 2 + birds) / 2:.1f}"
    text = printed(build_sections(studies))
    assert (
        "The mean over tasks gives each task the same weight; the mean over groups gives each group the same weight "
        "(tasks in each group: natural 2, fgvc 1)." in text
    )


def test_one_group_has_one_average_and_one_task_has_none(record_url: str, tmp_path: Path) -> None:
    header = table_block(
        build_sections(run(small(tasks=["vtab/dtd", "vtab/svhn"]), record_url)), "test accuracy"
    ).header
    assert header == ("method", "tuned %", "vtab/dtd", "vtab/svhn", OVER_TASKS)
    alone = run(small(tasks=["vtab/dtd"]), f"sqlite:///{tmp_path / 'one.db'}")
    assert table_block(build_sections(alone), "test accuracy").header == ("method", "tuned %", "vtab/dtd")


def test_the_learnable_share_is_printed_in_percent(record_url: str) -> None:
    shares = {"spt_deep": 0.00312, "full": 1.0}
    studies = run(small(), record_url, metrics=lambda t: {"learnable/share": shares[t.config.method]})
    table = results(studies)
    assert table["spt_deep", "tuned %"].text == "0.312"
    assert table["full", "tuned %"].text == table["full, published", "tuned %"].text == "100", "not 1e+02"


def test_backbones_and_sizes_have_columns_if_they_differ(record_url: str) -> None:
    raw = small(backbones=[MAE, "vit_nano_patch4_32.mae"], train_sizes=[0.5, 1.0], tasks=["demo/digits"])
    table = table_block(build_sections(run(raw, record_url)), "test accuracy")
    assert table.header[:4] == ("method", "backbone", "train_size", "tuned %")
    ours = [tuple(cell.text for cell in row[:3]) for row in table.rows if row[0].text in ("spt_deep", "full")]
    assert {*ours} == {*itertools.product(("spt_deep", "full"), raw["backbones"], ("0.5", "1.0"))}
    assert len(ours) == 8


def test_numbers_are_rounded_once_and_differences_have_a_sign(plain: list[Study]) -> None:
    row = build_results_table(plain).rows[0]
    score = next(iter(row.scores.values()))
    for mean, text in ((99.95, "100.0"), (0.0, "0.0"), (12.25, "12.2"), (100.0, "100.0")):
        assert format_score(row, dataclasses.replace(score, mean=mean, std=None)) == text
    assert format_score(row, dataclasses.replace(score, mean=5.0, std=math.sqrt(2))) == "5.0 ± 1.4"
    difference = dataclasses.replace(row, kind="difference")
    assert format_score(difference, dataclasses.replace(score, mean=-3.25)) == "-3.2"
    assert format_score(difference, dataclasses.replace(score, mean=3.25)) == "+3.2"
    assert format_score(difference, None) == "—"
