"""The report says what the trials came to, counts what is not in it, and says the same in every format."""

from __future__ import annotations

import copy
import csv
import dataclasses
import hashlib
import html.parser
import io
import itertools
import math
import re
import shutil
import statistics
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt
from pylatexenc.latex2text import LatexNodes2Text  # type: ignore[import-untyped]
from pylatexenc.latexwalker import (  # type: ignore[import-untyped]
    LatexEnvironmentNode,
    LatexMacroNode,
    LatexNode,
    LatexSpecialsNode,
    LatexWalker,
)
from rich.console import Console

from orchestrator.cli.progress import progress_table
from orchestrator.report.blocks import Block, Cell, TableBlock, TextBlock, cells
from orchestrator.report.comparison import compare_methods
from orchestrator.report.published import published_rows
from orchestrator.report.render import FORMATS, print_blocks, to_csv, to_html, to_latex, to_markdown
from orchestrator.report.results_table import OVER_GROUPS, OVER_TASKS, build_results_table
from orchestrator.report.sections import build_sections, format_score
from orchestrator.spec.loader import parse_spec
from orchestrator.spec.schema import SweepSpec
from orchestrator.study.selection import pack_correct
from orchestrator.study.study import Study
from orchestrator.study.trial import Failure, FailureCause, Trial
from orchestrator.sweep.sweep import Sweep
from tests.orchestrator.conftest import Sptune, drive, new_sweep
from trainer.catalog import TASKS

MAE = "vit_base_patch16_224.mae"
NATURAL = [task.name for task in TASKS.values() if task.group == "natural"]
VTAB = [task.name for task in TASKS.values() if task.name.startswith("vtab/")]
FGVC = [task.name for task in TASKS.values() if task.group == "fgvc"]
SMALL: dict[str, Any] = {
    "name": "small",
    "tasks": ["vtab/dtd", "vtab/svhn", "fgvc/nabirds"],
    "backbones": [MAE],
    "methods": ["spt_deep", "full"],
    "fixed": {"epochs": 1, "warmup_epochs": 0},
    "space": {
        "lr": {"type": "float", "low": 0.001, "high": 0.1, "log": True},
        "prompt_length": {"type": "choice", "values": [1, 5]},
        "prompt_init": {"type": "choice", "values": ["random", "mean_pool"]},
    },
    "search": {"trials": 2, "sampler": "random"},
    "final": {"seeds": [42, 44]},
    "retries": 0,
    "pause_after": 1000,
}
"""A sweep over two groups of tasks whose trials have one epoch."""


ONLY_FULL: dict[str, Any] = {"methods": ["full"], "space": {"lr": SMALL["space"]["lr"]}}


def small(**changes: Any) -> dict[str, Any]:
    return copy.deepcopy(SMALL) | changes


def chance(*of: object) -> float:
    """A number in 0..1 that is always the same."""
    return int.from_bytes(hashlib.sha256(repr(of).encode()).digest()[:6], "big") / 2**48


def score_of(trial: Trial) -> float:
    return chance(*(getattr(trial.config, name) for name in ("task", "method", "backbone", "train_size", "seed", "lr")))


def nothing(_: Trial) -> dict[str, Any]:
    return {}


def run(
    raw: dict[str, Any],
    url: str,
    *,
    score: Callable[[Trial], float] = score_of,
    metrics: Callable[[Trial], dict[str, float]] = nothing,
    facts: Callable[[Trial], dict[str, str]] = nothing,
    fail: Callable[[Trial], Failure | None] = lambda _: None,
) -> list[Study]:
    """The studies of a sweep whose trials came to these scores, or failed."""
    sweep = new_sweep(parse_spec(raw, "a test"), url)
    while (trial := sweep.next_trial()) is not None:
        if (failure := fail(trial)) is not None:
            sweep.on_failure(trial.trial_id, failure)
        else:
            told = {f"{trial.config.eval_split}/accuracy": score(trial)} | metrics(trial)
            sweep.on_epoch(trial.trial_id, 1, told, facts(trial))
    assert sweep.is_done
    sweep.close()
    return sweep.studies


def grid_of(blocks: Sequence[Block], title: str) -> TableBlock:
    (found,) = (block for block in blocks if isinstance(block, TableBlock) and block.title.startswith(title))
    return found


def table_of(grid: TableBlock) -> dict[tuple[str, str], Cell]:
    """Its cells, by the first cell of their row (a difference: of the row above) and their column."""
    found, above = {}, ""
    for row in grid.rows:
        name = row[0].text if not row[0].text.startswith(" ") else f"{above.partition(',')[0]} difference"
        above = row[0].text
        found.update({(name, column): cell for column, cell in zip(grid.header, row, strict=True)})
    return found


def results(studies: Sequence[Study]) -> dict[tuple[str, str], Cell]:
    return table_of(grid_of(build_sections(studies), "test accuracy"))


def lines_of(blocks: Sequence[Block], *, alarming: bool | None = None) -> list[str]:
    return [
        line
        for block in blocks
        if isinstance(block, TextBlock) and alarming in (None, block.is_warning)
        for text in block.lines
        for line in text.splitlines()
    ]


def shown(blocks: Sequence[Block], width: int = 400) -> str:
    """What a terminal of that width shows."""
    console = Console(file=io.StringIO(), width=width)
    print_blocks(blocks, console)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def percents(studies: Sequence[Study], task: str, method: str) -> list[float]:
    (study,) = (study for study in studies if (study.plan.task, study.plan.method) == (task, method))
    return [100 * trial.score for trial in study.requested_final_trials if trial.score is not None]


# Sweeps that several tests look at


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], str]:
    """Addresses of records that are not there yet."""
    return lambda: f"sqlite:///{tmp_path_factory.mktemp('record') / 'studies.db'}"


@pytest.fixture(scope="module")
def plain(fresh: Callable[[], str]) -> list[Study]:
    """The studies of SMALL, of which all went well."""
    return run(small(), fresh())


@pytest.fixture(scope="module")
def natural(fresh: Callable[[], str]) -> list[Study]:
    """Studies of all tasks of one group."""
    return run(small(tasks=NATURAL), fresh())


@pytest.fixture(scope="module")
def wide(fresh: Callable[[], str]) -> list[Block]:
    """A report over 24 tasks."""
    return build_sections(
        run(
            small(tasks=[*VTAB, *FGVC], search={"trials": 1}),
            fresh(),
            metrics=lambda trial: {"peeking/gain": chance(trial.trial_id) / 10},
        )
    )


@pytest.fixture(scope="module")
def blocks(fresh: Callable[[], str]) -> list[Block]:
    """A report with every part in it."""

    def fail(trial: Trial) -> Failure | None:
        broken = (trial.phase, trial.config.task, trial.config.seed) == ("final", "vtab/dtd", 44)
        return Failure(cause=FailureCause.ERROR, error=f"OSError: {AWKWARD[0]}\ntrace") if broken else None

    def metrics(trial: Trial) -> dict[str, float]:
        return {"train/images": 1000 * float(trial.config.train_size), "peeking/gain": 0.01, "learnable/share": 0.001}

    def facts(trial: Trial) -> dict[str, str]:
        return {"scored_on": "aaa/test", "protocol": "official_test", "device": "x86_64", "software": "torch 2_1"}

    found = build_sections(run(small(train_sizes=[0.5, 1.0]), fresh(), fail=fail, metrics=metrics, facts=facts))
    assert len(grids(found)) == 5
    return found


# The table


def test_every_number_is_the_mean_and_sample_std_of_the_final_trials(record_url: str) -> None:
    studies = run(small(final={"seeds": [42, 44, 82]}), record_url)
    table, board = results(studies), build_results_table(studies)
    for study in studies:
        task, method = study.plan.task, study.plan.method
        found = percents(studies, task, method)
        assert len(found) == 3
        assert table[method, task].text == f"{statistics.mean(found):.1f} ± {statistics.stdev(found):.1f}"
        row = next(row for row in board.rows if (row.kind, row.names[0]) == ("ours", method))
        assert (row.scores[task].mean, row.scores[task].std) == (statistics.mean(found), statistics.stdev(found))
        assert (row.scores[task].seeds, row.scores[task].missing) == ((42, 44, 82), 0)
    assert "Trials: 30 complete, 0 pruned, 0 failed, 0 missing." in lines_of(build_sections(studies))


def test_of_one_seed_there_is_no_std(record_url: str) -> None:
    studies = run(small(final={"seeds": [7]}), record_url)
    (only,) = percents(studies, "vtab/dtd", "full")
    assert results(studies)["full", "vtab/dtd"].text == f"{only:.1f}"
    assert "over seeds 7;" in shown(build_sections(studies))


def test_the_best_of_ours_is_bold_in_every_column(record_url: str) -> None:
    studies = run(small(methods=["spt_deep", "vpt_deep", "full", "linear"]), record_url)
    grid = grid_of(build_sections(studies), "test accuracy")
    for place, column in enumerate(grid.header[2:], start=2):
        ours = [row for row in grid.rows if row[0].text in ("spt_deep", "vpt_deep", "full", "linear")]
        means = [float(row[place].text.split()[0]) for row in ours]
        assert [row[place].bold for row in ours] == [mean == max(means) for mean in means], column
    others = [row for row in grid.rows if "," in row[0].text or row[0].text.startswith(" ")]
    assert others
    assert not any(cell.bold for row in others for cell in row), "of published numbers none, though they be higher"


def test_methods_that_are_equal_as_printed_are_both_bold(record_url: str) -> None:
    close = {"spt_deep": 0.61234, "full": 0.61236, "linear": 0.61}
    methods = [*close]
    studies = run(small(methods=methods, final={"seeds": [1]}), record_url, score=lambda t: close[t.config.method])
    table = results(studies)
    assert [table[method, "vtab/dtd"].text for method in methods] == ["61.2", "61.2", "61.0"]
    for column in ("vtab/dtd", OVER_TASKS, OVER_GROUPS):
        assert [table[method, column].bold for method in methods] == [True, True, False]


@pytest.mark.parametrize("score", [0.0, 1.0])
def test_nothing_right_and_all_right_are_numbers(score: float, record_url: str) -> None:
    table = results(run(small(), record_url, score=lambda _: score))
    assert table["full", "vtab/dtd"].text == table["full", OVER_TASKS].text + " ± 0.0"
    assert float(table["full", OVER_TASKS].text) == 100 * score


def test_the_two_averages_are_two_and_named(plain: list[Study]) -> None:
    studies, table = plain, results(plain)
    for method in ("spt_deep", "full"):
        dtd, svhn, birds = (statistics.mean(percents(studies, task, method)) for task in SMALL["tasks"])
        assert table[method, "natural mean"].text == f"{(dtd + svhn) / 2:.1f}"
        assert table[method, "fgvc mean"].text == f"{birds:.1f}"
        assert table[method, OVER_TASKS].text == f"{(dtd + svhn + birds) / 3:.1f}"
        assert table[method, OVER_GROUPS].text == f"{((dtd + svhn) / 2 + birds) / 2:.1f}"
    said = shown(build_sections(studies))
    assert "mean over tasks counts every task the same, mean over groups every group (natural 2, fgvc 1 tasks)." in said


def test_one_group_has_one_average_and_one_task_none(record_url: str, tmp_path: Path) -> None:
    header = grid_of(build_sections(run(small(tasks=["vtab/dtd", "vtab/svhn"]), record_url)), "test accuracy").header
    assert header == ("method", "tuned %", "vtab/dtd", "vtab/svhn", OVER_TASKS)
    alone = run(small(tasks=["vtab/dtd"]), f"sqlite:///{tmp_path / 'one.db'}")
    assert grid_of(build_sections(alone), "test accuracy").header == ("method", "tuned %", "vtab/dtd")


def test_what_learns_is_told_in_per_cent(record_url: str) -> None:
    shares = {"spt_deep": 0.00312, "full": 1.0}
    studies = run(small(), record_url, metrics=lambda t: {"learnable/share": shares[t.config.method]})
    table = results(studies)
    assert table["spt_deep", "tuned %"].text == "0.312"
    assert table["full", "tuned %"].text == table["full, published", "tuned %"].text == "100", "not 1e+02"


def test_backbones_and_sizes_have_columns_where_they_differ(record_url: str) -> None:
    raw = small(backbones=[MAE, "vit_nano_patch4_32.mae"], train_sizes=[0.5, 1.0], tasks=["demo/digits"])
    grid = grid_of(build_sections(run(raw, record_url)), "test accuracy")
    assert grid.header[:4] == ("method", "backbone", "train_size", "tuned %")
    ours = [tuple(cell.text for cell in row[:3]) for row in grid.rows if row[0].text in ("spt_deep", "full")]
    assert {*ours} == {*itertools.product(("spt_deep", "full"), raw["backbones"], ("0.5", "1.0"))}
    assert len(ours) == 8


# What is not in it


def test_a_final_trial_that_failed_is_missing_from_its_cell_by_name(record_url: str) -> None:
    def fail(trial: Trial) -> Failure | None:
        gone = (trial.phase, trial.config.task, trial.config.method, trial.config.seed)
        broken = gone == ("final", "vtab/svhn", "full", 44)
        return Failure(cause=FailureCause.ERROR, error="OSError: no disk\n\nthe trace") if broken else None

    studies = run(small(), record_url, fail=fail)
    blocks, table = build_sections(studies), results(studies)
    (left,) = percents(studies, "vtab/svhn", "full")
    assert table["full", "vtab/svhn"].text == f"{left:.1f} [1 missing]"
    assert table["full", OVER_TASKS].text.endswith("[1 missing]"), "a mean over it says so too"
    assert "missing" not in table["full", "fgvc mean"].text + table["spt_deep", OVER_TASKS].text
    key = f"vtab/svhn full {MAE} 1"
    assert lines_of(blocks, alarming=True) == [
        f"failed: {key}: 1 trials, the last: OSError: no disk",
        f"missing: {key}: no final score of seeds 44",
    ]
    assert "Trials: 23 complete, 0 pruned, 1 failed, 0 missing." in lines_of(blocks)


def test_a_study_without_a_score_has_no_cell_no_mean_and_no_difference(record_url: str) -> None:
    def fail(trial: Trial) -> Failure | None:
        broken = (trial.config.task, trial.config.method) == ("vtab/dtd", "spt_deep")
        return Failure(cause=FailureCause.DIVERGED, error="TrainingDiverged: nan") if broken else None

    studies = run(small(), record_url, fail=fail)
    blocks, table = build_sections(studies), results(studies)
    for column in ("vtab/dtd", "natural mean", OVER_TASKS, OVER_GROUPS):
        assert table["spt_deep", column].text == table["spt_deep difference", column].text == "—"
        assert table["full", column].bold, "the best of those that are there"
    assert table["spt_deep", "vtab/svhn"].text != "—" != table["spt_deep", "fgvc mean"].text
    key = f"vtab/dtd spt_deep {MAE} 1"
    assert f"failed: {key}: 2 trials, the last: TrainingDiverged: nan" in lines_of(blocks, alarming=True)
    assert f"missing: {key}: no final score of seeds 42, 44" in lines_of(blocks, alarming=True)
    assert "Trials: 20 complete, 0 pruned, 2 failed, 2 missing." in lines_of(blocks)
    chosen = [row[:2] for row in grid_of(blocks, "chosen on val").rows]
    assert cells("vtab/dtd", "spt_deep") not in chosen and len(chosen) == 5


def test_a_study_that_was_stopped_says_why_and_counts_its_missing_trials(record_url: str) -> None:
    def fail(trial: Trial) -> Failure | None:
        broken = trial.config.task == "vtab/dtd" and trial.config.method == "full"
        return Failure(cause=FailureCause.INVALID, error="ValueError: 3 classes, not 47\n\ntrace") if broken else None

    studies = run(small(), record_url, fail=fail)
    alarms, key = lines_of(build_sections(studies), alarming=True), f"vtab/dtd full {MAE} 1"
    assert alarms == [
        f"stopped: {key}: ValueError: 3 classes, not 47",
        f"failed: {key}: 1 trials, the last: ValueError: 3 classes, not 47",
    ], "and not that final scores are missing, which follows"
    assert "Trials: 20 complete, 0 pruned, 1 failed, 3 missing." in lines_of(build_sections(studies))
    assert results(studies)["full", "vtab/dtd"].text == "—"
    assert "spt_deep beats full fine-tuning on" in shown(build_sections(studies))
    assert "of 2 tasks; 1 have no number to compare." in shown(build_sections(studies))


def test_a_sweep_without_a_result_has_a_report_too(record_url: str) -> None:
    sweep = new_sweep(parse_spec(small(), "a test"), record_url)
    blocks = build_sections(sweep.studies)
    assert "Trials: 0 complete, 0 pruned, 0 failed, 24 missing." in lines_of(blocks)
    assert {cell.text for (name, _), cell in table_of(grid_of(blocks, "test accuracy")).items() if name == "full"} == {
        "full", "—",
    }  # fmt: skip
    assert len([line for line in lines_of(blocks) if line.startswith("missing: ")]) == 6
    for write in FORMATS.values():
        assert "24 missing" in write(blocks)
    sweep.next_trial()
    assert "24 missing" in shown(build_sections(sweep.studies)), "one that runs has not come to anything yet"


def test_pruned_trials_are_counted_apart(spec: SweepSpec, record_url: str) -> None:
    sweep = new_sweep(spec, record_url)
    drive(sweep, workers=3)
    pruned = sum(trial.state.value == "pruned" for study in sweep.studies for trial in study.requested_search_trials)
    assert pruned > 0
    assert f"Trials: {40 - pruned} complete, {pruned} pruned, 0 failed, 0 missing." in lines_of(
        build_sections(sweep.studies)
    )


def test_final_trials_that_were_scored_on_different_images_are_not_to_be_compared(record_url: str) -> None:
    def facts(trial: Trial) -> dict[str, str]:
        other = trial.config.task == "vtab/dtd" and trial.config.seed == 44
        return {"scored_on": f"{'bbb' if other else 'aaa'}/{trial.config.eval_split}/1.0", "protocol": "official"}

    lines = lines_of(build_sections(run(small(), record_url, facts=facts)))
    assert "vtab/dtd: final trials were scored on 2 sets of images: not to be compared." in lines
    assert sum("not to be compared" in line for line in lines) == 1
    assert (
        "images: vtab/dtd aaa (official), bbb (official); vtab/svhn aaa (official); fgvc/nabirds aaa (official)"
        in lines
    )


def test_the_stamp_says_what_it_takes_to_get_the_same_numbers(record_url: str) -> None:
    facts = {"software": "torch 2.11", "commit": "abc", "lock": "dirty", "device": "H200", "host": "node7"}

    def told(trial: Trial) -> dict[str, str]:
        return facts | ({"commit": "def"} if trial.config.seed == 44 else {})

    search = {"trials": 2, "sampler": "random", "seed": 5}
    (block,) = (
        block
        for block in build_sections(run(small(search=search), record_url, facts=told))
        if isinstance(block, TextBlock) and block.title == "stamp"
    )
    assert block.lines == (
        "search: 2 trials of random, pruner none, seed 5; judged on val at the last epoch; select: last_val",
        "final: trained on train + val, scored on test at the last of 1 epochs; seeds 42, 44",
        "software: torch 2.11",
        "commit: abc; def",
        "lock: dirty",
        "device: H200",
    )


# Published numbers


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
    assert rows[:2] == ["spt_deep", "full"] and {*rows} == {row.method for row in published_rows(MAE)}
    sources = next(line for line in lines_of(build_sections(natural)) if line.startswith("published: "))
    assert f"full on {MAE}: {theirs.source}" in sources
    assert f"spt_deep on {MAE}: SOTAverified (Natural only), BPT-poster (FGVC)" in sources


def test_a_published_mean_of_a_group_stands_only_beside_the_whole_group(record_url: str, tmp_path: Path) -> None:
    for place, (tasks, mean) in enumerate(((NATURAL, "18.9"), (NATURAL[1:], "—"), ([*NATURAL, "fgvc/nabirds"], None))):
        studies = run(small(tasks=tasks), f"sqlite:///{tmp_path / f'{place}.db'}")
        table = results(studies)
        theirs = "linear, published"  # of which only means over groups are known
        if mean is not None:
            assert table[theirs, OVER_TASKS].text == mean
        else:
            assert table[theirs, "natural mean"].text == "18.9"
            assert {table[theirs, column].text for column in ("fgvc mean", OVER_TASKS, OVER_GROUPS)} == {"—"}
            own = next(row for row in published_rows(MAE) if row.method == "full").tasks["fgvc/nabirds"]
            assert table["full, published", "fgvc mean"].text == f"{own:.1f}", "of the tasks that are in the table"


def test_of_full_fine_tuning_on_mae_the_two_averages_are_those_in_use(record_url: str) -> None:
    board = build_results_table(
        run(small(tasks=VTAB, final={"seeds": [42]}, search={"trials": 1}, **ONLY_FULL), record_url)
    )
    (row,) = (row for row in board.rows if (row.kind, row.names[0]) == ("published", "full"))
    assert round(row.scores[OVER_TASKS].mean, 2) == 61.28
    assert round(row.scores[OVER_GROUPS].mean, 2) == 64.27
    assert {name: row.scores[f"{name} mean"].mean for name in board.groups} == {
        "natural": 59.31, "specialized": 79.68, "structured": 53.82,
    }  # fmt: skip


def test_published_numbers_are_of_all_training_images(record_url: str) -> None:
    studies = run(small(train_sizes=[0.5]), record_url)
    lines, table = lines_of(build_sections(studies)), results(studies)
    assert {name for name, _ in table} == {"spt_deep", "full"}
    assert not any("published" in line for line in lines), "nor that none are known, which would be wrong"


def test_where_nothing_is_published_it_says_so(record_url: str) -> None:
    lines = lines_of(
        build_sections(run(small(tasks=["demo/digits"], backbones=["vit_nano_patch4_32.mae"]), record_url))
    )
    assert "No published results are known for vit_nano_patch4_32.mae." in lines
    assert not any(line.startswith("published: ") for line in lines)


def test_methods_beat_our_full_fine_tuning_where_there_is_one(record_url: str) -> None:
    studies = run(small(methods=["spt_deep", "vpt_deep", "full"]), record_url)
    lines = lines_of(build_sections(studies))
    for method in ("spt_deep", "vpt_deep"):
        pairs = [(percents(studies, task, method), percents(studies, task, "full")) for task in SMALL["tasks"]]
        won = sum(statistics.mean(own) > statistics.mean(full) for own, full in pairs)
        assert f"{method} beats full fine-tuning on {won} of 3 tasks." in lines


def test_methods_beat_published_full_fine_tuning_where_there_is_none_of_ours(record_url: str) -> None:
    theirs = next(row for row in published_rows(MAE) if row.method == "full")
    studies = run(small(methods=["spt_deep"], tasks=[*SMALL["tasks"], "demo/digits"]), record_url)
    won = sum(statistics.mean(percents(studies, t, "spt_deep")) > theirs.tasks[t] for t in SMALL["tasks"])
    assert f"spt_deep beats published full fine-tuning on {won} of 3 tasks; 1 have no number to compare." in lines_of(
        build_sections(studies)
    )


def test_an_equal_number_does_not_beat(record_url: str) -> None:
    lines = lines_of(build_sections(run(small(), record_url, score=lambda _: 0.5)))
    assert "spt_deep beats full fine-tuning on 0 of 3 tasks." in lines


# Comparisons, chosen params, sizes, peeking


def test_every_two_methods_are_compared_with_their_p(natural: list[Study]) -> None:
    grid = grid_of(build_sections(natural), "between methods")
    methods = {
        method: {
            (study.plan.task, trial.config.seed): trial.score
            for study in natural
            if study.plan.method == method
            for trial in study.requested_final_trials
            if trial.score is not None
        }
        for method in ("spt_deep", "full")
    }
    (found,) = compare_methods(methods)
    assert found.p_tasks is not None and found.p_seeds is not None
    assert [cell.text for cell in grid.rows[0]] == [
        "spt_deep − full",
        f"{100 * found.difference:+.1f}",
        f"{found.better_on} of 7",
        f"{found.p_tasks:.3f}",
        f"{found.p_seeds:.3f} ({found.seeds})",
    ]


def test_a_comparison_that_too_few_tasks_or_seeds_allow_says_so(record_url: str) -> None:
    grid = grid_of(build_sections(run(small(final={"seeds": [42]}), record_url)), "between methods")
    assert [cell.text for cell in grid.rows[0][-2:]] == ["needs 6 tasks", "—"]


def test_one_method_is_compared_with_none(record_url: str) -> None:
    titles = [
        block.title for block in build_sections(run(small(**ONLY_FULL), record_url)) if isinstance(block, TableBlock)
    ]
    assert not any(title.startswith("between methods") for title in titles)


def test_the_chosen_params_stand_with_their_val_accuracy_and_the_trials_tied_with_it(record_url: str) -> None:
    sure = [True] * 150 + [False] * 50
    rivals = {0: sure, 1: sure[::-1], 2: [True] * 20 + [False] * 180}

    def score(trial: Trial) -> float:
        return 0.5 if trial.phase == "final" else sum(rivals[trial.number]) / 200

    def facts(trial: Trial) -> dict[str, str]:
        return {} if trial.phase == "final" else {"correct": pack_correct(rivals[trial.number])}

    studies = run(
        small(tasks=["vtab/dtd"], search={"trials": 3, "sampler": "random"}), record_url, score=score, facts=facts
    )
    blocks = build_sections(studies)
    for row, study in zip(grid_of(blocks, "chosen on val").rows, studies, strict=True):
        assert study.best is not None
        task, method, val, number, tied_with, params = (cell.text for cell in row)
        assert (task, method, val, number, tied_with) == (study.plan.task, study.plan.method, "75.0", "0", "1")
        assert f"lr {study.best.params['lr']:.3g}" in params
    assert any(line.startswith("tied: val cannot tell them") for line in lines_of(blocks))


def test_several_train_sizes_give_a_part_on_how_many_images_it_takes(record_url: str) -> None:
    sizes = {0.1: 0.3, 0.5: 0.6, 1.0: 0.8}
    studies = run(
        small(tasks=["vtab/dtd"], train_sizes=[*sizes]),
        record_url,
        score=lambda t: sizes[float(t.config.train_size)] + (0.1 if t.config.method == "spt_deep" else 0.0),
        metrics=lambda t: {"train/images": 1000 * float(t.config.train_size)},
    )
    blocks = build_sections(studies)
    grid = grid_of(blocks, "accuracy over tuning-set size")
    assert [[cell.text for cell in row[:3]] for row in grid.rows if row[0].text == "full"] == [
        ["full", "100", "30.0"],
        ["full", "500", "60.0"],
        ["full", "1,000", "80.0"],
    ]
    assert any(line.startswith("spt_deep reaches full's 80.0 % with ") for line in lines_of(blocks))
    assert any(line.startswith("full: error = ") for line in lines_of(blocks))
    assert "spt_deep 0.5 beats full fine-tuning on 1 of 1 tasks." in lines_of(blocks)


def test_one_train_size_gives_no_such_part(natural: list[Study]) -> None:
    assert "tuning-set size" not in shown(build_sections(natural))


def test_what_peeking_would_have_gained_is_in_its_own_table_and_in_no_other_number(
    record_url: str, plain: list[Study]
) -> None:
    def peeked(trial: Trial) -> dict[str, float]:
        if trial.phase == "search" or trial.config.task == "fgvc/nabirds":
            return {}
        return {"peeking/accuracy": 0.5, "peeking/gain": chance(trial.trial_id) / 10}

    studies = run(small(), record_url, metrics=peeked)
    honest, blocks = build_sections(plain), build_sections(studies)
    (own,) = [block for block in blocks if block not in honest]
    grid = grid_of(blocks, "peeking")
    assert own is grid and "In no other number here." in grid.title
    for row in grid.rows:
        by_task = dict(zip(grid.header, (cell.text for cell in row), strict=True))
        gains = {
            study.plan.task: 100
            * statistics.mean(trial.last_metrics["peeking/gain"] for trial in study.requested_final_trials)
            for study in studies
            if study.plan.method == by_task["method"] and study.plan.task != "fgvc/nabirds"
        }
        assert {task: by_task[task] for task in gains} == {task: f"{gain:+.1f}" for task, gain in gains.items()}
        assert (by_task["fgvc/nabirds"], by_task["mean"]) == ("—", f"{statistics.mean(gains.values()):+.1f}")


# Formats

AWKWARD = (
    r"a_b | c*d* **e** `f` [g](h) <i> \j & 50 % # $k$ {l} ~m^ n_o_ ± − — &amp; ~~p~~ é 字",
    r"\\", "|", "||", "_", "*", "%", "5 < 6 > 4", "&lt;", "http://a_b.example/c_d", "~~x~~",
)  # fmt: skip


def awkward() -> list[Block]:
    rows: list[tuple[Cell, ...]] = [(Cell(text), Cell(text, bold=True), Cell("1.0 ± 0.5")) for text in AWKWARD]
    header = ("name_of | it", "50 % & *more*", "last")
    return [
        TableBlock(title="a_title *with* 50 %\nand <b>", header=header, rows=rows, names=1),
        TextBlock(title="stamp", lines=tuple(f"failed: {text}" for text in AWKWARD), is_warning=True),
    ]


Rows = list[list[tuple[str, bool]]]
"""Texts of a table's cells, and whether they are bold."""


def expected(grid: TableBlock) -> Rows:
    return [
        [(name, False) for name in grid.header],
        *([(cell.text.strip(), cell.bold) for cell in row] for row in grid.rows),
    ]


def of_markdown(text: str) -> list[Rows]:
    tables: list[Rows] = []
    for token in (reader := iter(MarkdownIt("gfm-like", {"linkify": False}).parse(text))):
        match token.type:
            case "table_open":
                tables.append([])
            case "tr_open":
                tables[-1].append([])
            case "th_open" | "td_open":
                inline = next(reader)
                kinds = [child.type for child in inline.children or ()]
                assert {*kinds} <= {"text", "strong_open", "strong_close"}, "text is taken for nothing else"
                words = "".join(child.content for child in inline.children or ())
                tables[-1][-1].append((words, "strong_open" in kinds))
    return tables


def of_latex(text: str) -> list[Rows]:
    tables: list[Rows] = []

    def walk(nodes: Sequence[LatexNode]) -> None:
        for node in nodes:
            if isinstance(node, LatexEnvironmentNode) and node.environmentname == "tabular":
                tables.append(rows_of(node))
            elif getattr(node, "nodelist", None):
                walk(node.nodelist)

    walk(LatexWalker(text, tolerant_parsing=False).get_latex_nodes()[0])
    return tables


def rows_of(tabular: LatexEnvironmentNode) -> Rows:
    kinds = tabular.latex_verbatim().partition("{tabular}{")[2].partition("}")[0]
    rows: Rows = [[]]
    entry: list[LatexNode] = []

    def end() -> None:
        words = LatexNodes2Text(math_mode="text", strict_latex_spaces=True).nodelist_to_text(entry).strip()
        rows[-1].append((words, any(getattr(node, "macroname", "") == "textbf" for node in entry)))
        entry.clear()

    begun = False
    for node in tabular.nodelist:
        if isinstance(node, LatexMacroNode) and node.macroname in ("toprule", "midrule", "bottomrule"):
            begun = True
        elif isinstance(node, LatexSpecialsNode) and node.specials_chars == "&":
            end()
        elif isinstance(node, LatexMacroNode) and node.macroname == "\\":
            end()
            rows.append([])
        elif begun:
            entry.append(node)
    assert rows.pop() == [], "each row is ended"
    assert {len(row) for row in rows} == {len(kinds)}, "as many entries as the tabular has columns"
    return rows


class Page(html.parser.HTMLParser):
    """Tables and paragraphs of a page whose tags must be balanced."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tables: list[Rows] = []
        self.paragraphs: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)
        self.close()
        assert self.open == [], "every tag is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag == "br":
            self.paragraphs[-1] += "\n"
        if tag in ("br", "meta"):
            return
        self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][-1].append(("", False))
        elif tag == "p":
            self.paragraphs.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"th", "td"} & {*self.open}:
            words, bold = self.tables[-1][-1][-1]
            self.tables[-1][-1][-1] = (words + data, bold or "b" in self.open)
        elif "p" in self.open:
            self.paragraphs[-1] += data


def grids(blocks: Sequence[Block]) -> list[TableBlock]:
    return [block for block in blocks if isinstance(block, TableBlock)]


@pytest.mark.parametrize("source", ["report", "awkward"])
def test_markdown_has_the_tables_cell_by_cell(source: str, blocks: list[Block]) -> None:
    own = blocks if source == "report" else awkward()
    assert of_markdown(to_markdown(own)) == [expected(grid) for grid in grids(own)]


def test_markdown_takes_a_sentence_for_a_sentence() -> None:
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(to_markdown(awkward()[1:]))
    inline = [token for token in tokens if token.type == "inline"]
    assert [token.type for token in inline[0].children or ()][1:2] == ["strong_open"], "the title"
    assert ["".join(child.content for child in token.children or ()) for token in inline[1:]] == lines_of(awkward())


@pytest.mark.parametrize("source", ["report", "awkward"])
def test_latex_has_the_tables_cell_by_cell_and_no_character_that_means_something_else(
    source: str, blocks: list[Block]
) -> None:
    own = blocks if source == "report" else awkward()
    text = to_latex(own)
    found = of_latex(text)
    assert [[[bold for _, bold in row] for row in rows] for rows in found] == [
        [[bold for _, bold in row] for row in expected(grid)] for grid in grids(own)
    ]
    if source == "report":
        said = [[[re.sub(r"\s+", "", words) for words, _ in row] for row in rows] for rows in found]
        assert said == [
            [[re.sub(r"\s+", "", words.replace("−", "-")) for words, _ in row] for row in expected(grid)]
            for grid in grids(own)
        ]
    body = text.partition("\n")[2].replace("{!}{%\n", "{!}{\n")
    assert not re.search(r"(?<!\\)[_%#]", body)
    assert not {*"±−—<>^~"} & {*re.sub(r"\$[<>]\$|\\text\w+\{\}", "", body)}


def test_latex_compiles(blocks: list[Block], tmp_path: Path) -> None:
    if shutil.which("pdflatex") is None:
        pytest.skip("pdflatex is not installed")
    preamble = r"\documentclass{article}\usepackage{booktabs,graphicx}\begin{document}"
    (tmp_path / "report.tex").write_text(f"{preamble}\n{to_latex(blocks)}\n\\end{{document}}\n", encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "report.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]


@pytest.mark.parametrize("source", ["report", "awkward"])
def test_a_web_page_has_the_tables_cell_by_cell_and_nothing_to_fetch(source: str, blocks: list[Block]) -> None:
    own = blocks if source == "report" else awkward()
    text = to_html(own)
    page = Page(text)
    assert [[[(words.strip(), bold) for words, bold in row] for row in rows] for rows in page.tables] == [
        expected(grid) for grid in grids(own)
    ]
    sentences = [line for paragraph in page.paragraphs for line in paragraph.split("\n")]
    for line in lines_of(own):
        assert line in sentences, "escaped once"
    assert not page.tags & {"script", "link", "img", "i"}
    assert "src=" not in text and "href=" not in text


def test_csv_holds_the_numbers_to_the_last_digit(record_url: str) -> None:
    studies = run(small(), record_url, metrics=lambda _: {"learnable/share": 1 / 3})
    board = build_results_table(studies)
    read = [*csv.DictReader(io.StringIO(to_csv(board)))]
    assert len(read) == sum(len(row.scores) for row in board.rows)
    lines = iter(read)
    for row in board.rows:
        for column, score in row.scores.items():
            line = next(lines)
            assert (line["kind"], line["method"], line["backbone"], line["train_size"]) == (row.kind, *row.names)
            assert (line["column"], line["source"]) == (column, row.source)
            assert float(line["mean"]) == score.mean
            assert (float(line["std"]) if line["std"] else None) == score.std
            assert (float(line["tuned"]) if line["tuned"] else None) == row.tuned
            assert tuple(map(int, line["seeds"].split())) == score.seeds
            assert int(line["missing"]) == score.missing


@pytest.mark.parametrize("width", [60, 80, 100, 132, 200])
def test_in_a_narrow_terminal_tables_are_parted_and_nothing_is_cut(width: int, wide: list[Block]) -> None:
    text = shown(wide, width)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    for title in ("test accuracy", "peeking"):
        table = table_of(grid_of(wide, title))
        for column in (*VTAB, *FGVC):
            assert re.search(rf"┃ +{re.escape(column)} ┃", text), "in one piece"
        for (name, column), cell in table.items():
            if column not in ("method", "backbone", "train_size"):
                assert re.search(rf"│ +{re.escape(cell.text)} │", text), (name, column)


def test_what_fits_is_not_parted(natural: list[Study]) -> None:
    assert shown(build_sections(natural), 1000).count("spt_deep, published") == 1
    parts = shown(build_sections(natural), 120).count("spt_deep, published")
    assert 1 < parts < shown(build_sections(natural), 60).count("spt_deep, published")


def test_a_terminal_shows_an_error_as_it_is() -> None:
    assert AWKWARD[0] in shown(awkward())
    assert "[red]" in shown([TextBlock(lines=("failed: [red]x[/red]",), is_warning=True)]), "no markup of its own"


def test_numbers_round_as_they_are_and_signs_are_kept(plain: list[Study]) -> None:
    row = build_results_table(plain).rows[0]
    score = next(iter(row.scores.values()))
    for mean, text in ((99.95, "100.0"), (0.0, "0.0"), (12.25, "12.2"), (100.0, "100.0")):
        assert format_score(row, dataclasses.replace(score, mean=mean, std=None)) == text
    assert format_score(row, dataclasses.replace(score, mean=5.0, std=math.sqrt(2))) == "5.0 ± 1.4"
    difference = dataclasses.replace(row, kind="difference")
    assert format_score(difference, dataclasses.replace(score, mean=-3.25)) == "-3.2"
    assert format_score(difference, dataclasses.replace(score, mean=3.25)) == "+3.2"
    assert format_score(difference, None) == "—"


# The command


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with two sweeps over different tasks, and a third that has a study of the first."""
    folder = tmp_path_factory.mktemp("home")
    url = f"sqlite:///{folder / 'studies.db'}"
    run(small(name="first", tasks=["vtab/dtd", "vtab/svhn"]), url)
    run(small(name="second", tasks=["fgvc/nabirds"], final={"seeds": [42, 7]}), url)
    run(small(name="third", tasks=["vtab/dtd"], **ONLY_FULL), url)
    return folder


def test_several_sweeps_stand_in_one_report(home: Path, sptune: Sptune) -> None:
    status, out, error = sptune("report", "first", "second", "--home", home, "--format", "csv")
    assert (status, error) == (0, "")
    read = [*csv.DictReader(io.StringIO(out))]
    means = {(line["method"], line["column"]): float(line["mean"]) for line in read if line["kind"] == "ours"}
    for method in ("spt_deep", "full"):
        over = [means[method, task] for task in SMALL["tasks"]]
        assert means[method, OVER_TASKS] == pytest.approx(statistics.mean(over))
        assert means[method, OVER_GROUPS] == pytest.approx((statistics.mean(over[:2]) + over[2]) / 2)
    status, out, _ = sptune("report", "first", "second", "--home", home)
    assert status == 0
    assert "mean ± std over seeds 7, 42, 44;" in out
    assert "Trials: 24 complete, 0 pruned, 0 failed, 0 missing." in out
    assert sptune("report", "first", "first", "--home", home) == sptune("report", "first", "--home", home)


@pytest.mark.parametrize("form", ["markdown", "latex", "html"])
def test_a_report_of_the_command_is_that_of_the_studies(form: str, home: Path, sptune: Sptune) -> None:
    status, out, error = sptune("report", "first", "--home", home, "--format", form)
    assert (status, error) == (0, "")
    read = {"markdown": of_markdown, "latex": of_latex, "html": lambda text: Page(text).tables}[form](out)
    assert [len(rows) for rows in read][1:] == [2, 5], "comparisons and chosen params"
    assert [words for words, _ in read[0][0]] == ["method", "tuned %", "vtab/dtd", "vtab/svhn", OVER_TASKS]


def test_a_study_that_two_sweeps_have_is_not_silently_one_of_them(home: Path, sptune: Sptune) -> None:
    status, out, error = sptune("report", "first", "third", "--home", home)
    assert (status, out) == (2, "")
    assert f"vtab/dtd full {MAE} 1 is in several of these sweeps" in error
    assert "Traceback" not in error


def test_a_sweep_that_is_not_there_is_one_sentence_with_the_nearest_name(home: Path, sptune: Sptune) -> None:
    for sweeps in (["frist"], ["first", "frist"]):
        status, out, error = sptune("report", *sweeps, "--home", home)
        assert (status, out) == (2, "")
        assert error.count("frist") == 2 and "did you mean 'first'?" in error
        assert len(error.strip().splitlines()) == 1


def test_a_sweep_under_way_shows_what_runs_and_what_is_done(spec: SweepSpec, record_url: str) -> None:
    sweep: Sweep = new_sweep(spec, record_url)
    drive(sweep, workers=3, events=12)
    console = Console(file=io.StringIO(), width=300)
    console.print(progress_table(sweep.summaries()))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    finished = sum(trial.state.is_finished for study in sweep.studies for trial in study.search_table.trials)
    assert f"{finished}/10" in text
    assert "demo/shapes_loc" in text, "studies that have not begun are there too"
