"""Published rows beside ours: which numbers appear, their differences and their sources."""

from __future__ import annotations

import statistics
from pathlib import Path

from orchestrator.report.published import published_rows
from orchestrator.report.results_table import OVER_GROUPS, OVER_TASKS, build_results_table
from orchestrator.report.sections import build_sections
from orchestrator.study.study import Study
from tests.orchestrator.report.reports import (
    MAE,
    NATURAL,
    ONLY_FULL,
    SMALL,
    VTAB,
    lines_of,
    percents,
    results,
    run,
    small,
)


def test_published_numbers_stand_beside_ours_with_the_difference(natural: list[Study]) -> None:
    table, board = results(natural), build_results_table(natural)
    theirs = next(row for row in published_rows(MAE) if row.method == "full")
    ours = next(row for row in board.rows if (row.kind, row.names[0]) == ("ours", "full"))
    for task in NATURAL:
        assert table["full, published", task].text == f"{theirs.tasks[task]:.1f}"
        assert table["full difference", task].text == f"{ours.scores[task].mean - theirs.tasks[task]:+.1f}"
    assert table["full, published", OVER_TASKS].text == f"{statistics.mean(theirs.tasks[t] for t in NATURAL):.1f}"
    assert table["spt_deep, published", "vtab/dtd"].text == "—", "only its mean over natural is known"
    assert table["spt_deep, published", OVER_TASKS].text == "67.2"
    rows = [row.names[0] for row in board.rows if row.kind == "published"]
    assert rows[:2] == ["spt_deep", "full"]
    with_number = {row.method for row in published_rows(MAE) if "natural" in row.groups}
    assert {*rows} == with_number < {row.method for row in published_rows(MAE)}, "a row of dashes would say nothing"
    sources = next(line for line in lines_of(build_sections(natural)) if line.startswith("published: "))
    assert f"full on {MAE}: {theirs.source}" in sources
    assert f"spt_deep on {MAE}: SOTAverified (Natural only), BPT-poster (FGVC)" in sources


def test_a_published_mean_of_a_group_needs_the_whole_group(record_url: str, tmp_path: Path) -> None:
    for index, tasks in enumerate((NATURAL, NATURAL[1:], [*NATURAL, "fgvc/nabirds"])):
        studies = run(small(tasks=tasks), f"sqlite:///{tmp_path / f'{index}.db'}")
        table = results(studies)
        # Of this row only means over groups are known.
        published = "linear, published"
        if tasks == NATURAL:
            assert table[published, OVER_TASKS].text == "18.9"
        elif tasks == NATURAL[1:]:
            assert (published, OVER_TASKS) not in table, "no number is left"
            assert table["spt_deep, published", OVER_TASKS].text == "—", "the sweep has the method, so its row stays"
        else:
            assert table[published, "natural mean"].text == "18.9"
            assert {table[published, column].text for column in ("fgvc mean", OVER_TASKS, OVER_GROUPS)} == {"—"}
            mean_of_task = next(row for row in published_rows(MAE) if row.method == "full").tasks["fgvc/nabirds"]
            assert table["full, published", "fgvc mean"].text == f"{mean_of_task:.1f}", (
                "of the tasks that are in the table"
            )


def test_the_two_averages_of_full_fine_tuning_on_mae_are_those_of_the_papers(record_url: str) -> None:
    board = build_results_table(
        run(small(tasks=VTAB, final={"seeds": [42]}, search={"trials": 1}, **ONLY_FULL), record_url)
    )
    (row,) = (row for row in board.rows if (row.kind, row.names[0]) == ("published", "full"))
    assert round(row.scores[OVER_TASKS].mean, 2) == 61.28
    assert round(row.scores[OVER_GROUPS].mean, 2) == 64.27
    assert {name: row.scores[f"{name} mean"].mean for name in board.groups} == {
        "natural": 59.31, "specialized": 79.68, "structured": 53.82,
    }  # fmt: skip


def test_published_numbers_appear_only_beside_all_training_images(record_url: str) -> None:
    studies = run(small(train_sizes=[0.5]), record_url)
    lines, table = lines_of(build_sections(studies)), results(studies)
    assert {name for name, _ in table} == {"spt_deep", "full"}
    assert not any("published" in line for line in lines), "a line that none are known would be wrong"


def test_a_backbone_without_published_results_is_named(record_url: str) -> None:
    lines = lines_of(
        build_sections(run(small(tasks=["demo/digits"], backbones=["vit_nano_patch4_32.mae"]), record_url))
    )
    assert "No published results are known for vit_nano_patch4_32.mae." in lines
    assert not any(line.startswith("published: ") for line in lines)


def test_methods_are_compared_with_our_full_fine_tuning_first(record_url: str) -> None:
    studies = run(small(methods=["spt_deep", "vpt_deep", "full"]), record_url)
    lines = lines_of(build_sections(studies))
    for method in ("spt_deep", "vpt_deep"):
        pairs = [(percents(studies, task, method), percents(studies, task, "full")) for task in SMALL["tasks"]]
        won = sum(statistics.mean(scores) > statistics.mean(full) for scores, full in pairs)
        assert f"{method} beats full fine-tuning on {won} of 3 tasks." in lines


def test_methods_are_compared_with_published_full_fine_tuning_otherwise(record_url: str) -> None:
    theirs = next(row for row in published_rows(MAE) if row.method == "full")
    studies = run(small(methods=["spt_deep"], tasks=[*SMALL["tasks"], "demo/digits"]), record_url)
    won = sum(statistics.mean(percents(studies, t, "spt_deep")) > theirs.tasks[t] for t in SMALL["tasks"])
    assert (
        f"spt_deep beats published full fine-tuning on {won} of 3 tasks; on 1 more, one of the two has no score."
        in lines_of(build_sections(studies))
    )


def test_an_equal_number_does_not_beat(record_url: str) -> None:
    lines = lines_of(build_sections(run(small(), record_url, score=lambda _: 0.5)))
    assert "spt_deep beats full fine-tuning on 0 of 3 tasks." in lines


def test_published_rows_are_left_out_where_the_papers_have_no_number_of_these_tasks(tmp_path: Path) -> None:
    studies = run(small(tasks=["demo/digits"]), f"sqlite:///{tmp_path / 'own.db'}")
    board = build_results_table(studies)
    assert [(row.kind, row.names[0]) for row in board.rows] == [("ours", "spt_deep"), ("ours", "full")]
    lines = lines_of(build_sections(studies))
    assert f"No published results on these tasks are known for {MAE}." in lines
    assert not any(line.startswith("published: ") for line in lines)


WINS = f"Tasks on which published rows beat published full fine-tuning of {MAE}: "


def wins_of(studies: list[Study]) -> dict[str, str]:
    """Return the wins of each published row, such as `5 of 7`."""
    (line,) = (line for line in lines_of(build_sections(studies)) if line.startswith(WINS))
    return dict(part.split(" on ") for part in line.removeprefix(WINS).removesuffix(".").split(", "))


def test_published_rows_are_compared_with_published_full_fine_tuning(natural: list[Study]) -> None:
    """VFPT's paper prints the tasks, and of Bias only how many of them it wins. Of the others nobody counted."""
    wins = wins_of(natural)
    full, fourier = (
        next(row for row in published_rows(MAE) if row.method == method).tasks for method in ("full", "vfpt")
    )
    assert wins["vfpt"] == f"{sum(fourier[task] > full[task] for task in NATURAL)} of 7" == "6 of 7"
    assert wins["bias"] == "1 of 7" and wins["partial_1"] == "5 of 7"
    assert wins.keys() == {"linear", "vpt_shallow", "vpt_deep", "gate_vpt", "partial_1", "bias", "adapter", "vfpt"}


def test_a_printed_number_of_wins_needs_the_whole_group(record_url: str) -> None:
    wins = wins_of(run(small(tasks=[*NATURAL[1:], "fgvc/nabirds"], search={"trials": 1}), record_url))
    assert wins["vfpt"] == "5 of 6", "its tasks are known"
    assert "bias" not in wins, "on which of the seven tasks it wins is not"
    assert wins["vpt_deep"] == "0 of 1" and wins["bpt_deep"] == "1 of 1"
