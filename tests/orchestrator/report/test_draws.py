"""Sweeps with several draws of a tuning set: one result of them all, and no two draws that are taken for one."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from matplotlib.patches import Rectangle
from mlflow import MlflowClient
from rich.console import Console

from orchestrator.cli.outputs import _model_name
from orchestrator.cli.progress import progress_table
from orchestrator.cli.status import study_json
from orchestrator.figures.draw import draw_figures
from orchestrator.report.blocks import Block
from orchestrator.report.comparison import compare_methods, each_draw
from orchestrator.report.data_efficiency import curves
from orchestrator.report.export import export_studies
from orchestrator.report.render import to_csv
from orchestrator.report.results_table import build_results_table
from orchestrator.report.sections import build_sections
from orchestrator.report.significance import bold_text, find_bold
from orchestrator.report.study_page import render_study_page
from orchestrator.spec.loader import parse_spec
from orchestrator.spec.plan import plan_sweep
from orchestrator.study.statistics import paired_t
from orchestrator.study.study import Study
from orchestrator.study.trial import Failure, FailureCause, Trial
from orchestrator.tracking.mlflow_runs import MlflowRuns
from tests.orchestrator.report.reports import chance, lines_of, run, small, table_block

TASKS = ["vtab/dtd", "vtab/svhn"]
T_2 = 4.302652729749464
"""The 97.5 % point of Student's t with two degrees of freedom."""


def score(trial: Trial) -> float:
    config = trial.config
    return chance(config.task, config.method, str(config.train_size), config.draw, config.seed, config.lr)


def metrics(trial: Trial) -> dict[str, float]:
    share = float(trial.config.train_size)
    return {"train/images": 800 * share, "train/labels": 1000 * share, "peeking/gain": 0.01 * trial.config.draw}


def fail(trial: Trial) -> Failure | None:
    """Let one seed of one draw fail."""
    config = trial.config
    is_lost = (trial.phase, config.task, config.method, config.train_size, config.draw, config.seed) == (
        "final", "vtab/dtd", "full", 0.5, 1, 44
    )  # fmt: skip
    return Failure(cause=FailureCause.ERROR, error="OSError: no space") if is_lost else None


@pytest.fixture(scope="module")
def studies(fresh: Callable[[], str]) -> list[Study]:
    """Two tasks and two methods, with three draws of half the images and with all of them."""
    raw = small(tasks=TASKS, train_sizes=[0.5, 1.0], draws=3)
    return run(raw, fresh(), score=score, metrics=metrics, fail=fail)


@pytest.fixture(scope="module")
def blocks(studies: list[Study]) -> list[Block]:
    return build_sections(studies)


def finals(studies: list[Study], task: str, method: str, size: float) -> dict[int, dict[int, float]]:
    """Return the scores of final trials in percent, by draw and seed."""
    return {
        study.plan.draw: {t.config.seed: 100 * t.score for t in study.requested_final_trials if t.score is not None}
        for study in studies
        if (study.plan.task, study.plan.method, study.plan.train_size) == (task, method, size)
    }


def test_all_images_have_one_draw_and_a_part_has_as_many_as_the_spec_says(studies: list[Study]) -> None:
    assert len(studies) == len(TASKS) * 2 * (3 + 1)
    assert len({study.plan.key for study in studies}) == len(studies)
    assert len({trial.trial_id for study in studies for trial in study.trials}) == sum(len(s.trials) for s in studies)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("method", ["spt_deep", "full"])
def test_a_cell_is_the_mean_over_draws_of_the_mean_over_seeds(studies: list[Study], task: str, method: str) -> None:
    rows = {row.names[0::2]: row for row in build_results_table(studies).rows if row.kind == "ours"}
    by_draw = finals(studies, task, method, 0.5)
    means = [statistics.mean(by_seed.values()) for by_seed in by_draw.values()]
    cell = rows[method, "0.5"].scores[task]
    assert len(means) == cell.draws == 3
    assert cell.mean == pytest.approx(statistics.mean(means), abs=1e-12)
    assert cell.std == pytest.approx(statistics.stdev(means), abs=1e-12)
    assert cell.seeds == (42, 44)
    assert cell.missing == (1 if (task, method) == ("vtab/dtd", "full") else 0)

    # One draw: the spread is over seeds, as ever.
    (by_seed,) = finals(studies, task, method, 1.0).values()
    cell = rows[method, "1.0"].scores[task]
    assert cell.std == pytest.approx(statistics.stdev(by_seed.values()), abs=1e-12)
    assert (cell.draws, cell.missing) == (1, 0)


def test_the_report_says_that_the_spread_is_over_draws(studies: list[Study], blocks: list[Block]) -> None:
    (line,) = (line for line in lines_of(blocks) if line.startswith("Where a train size "))
    assert line == (
        "Where a train size has several draws of its images (here 3), values are mean ± std over draws: each draw "
        "counts with its mean over seeds."
    )
    (bold,) = (line for line in lines_of(blocks) if line.startswith("Bold: "))
    assert "over draws where a train size has several, and over seeds of the final trials elsewhere" in bold
    assert "A task's column has none if a method has one draw or one seed." in bold
    (test,) = (line for line in lines_of(blocks) if line.startswith("p over draws: "))
    assert "would hold with other images of the same number" in test
    without = build_sections([study for study in studies if study.plan.draw == 0])
    assert not [line for line in lines_of(without) if "draw" in line]


def test_seeds_of_the_only_finished_draw_are_no_draws(fresh: Callable[[], str]) -> None:
    """With one draw of three finished, its two seeds were tested as if they were draws, and bold followed."""
    raw = small(tasks=["vtab/dtd"], train_sizes=[0.5], draws=3)

    def far_apart(trial: Trial) -> float:
        return 0.9 * (trial.config.method == "full") + 0.001 * trial.config.seed / 44 + 0.01

    def other_draws_fail(trial: Trial) -> Failure | None:
        return Failure(cause=FailureCause.ERROR, error="OSError: no space") if trial.config.draw else None

    one_draw = run(raw, fresh(), score=far_apart, fail=other_draws_fail)
    assert find_bold(build_results_table(one_draw), one_draw) == set()
    cell = next(row.scores["vtab/dtd"] for row in build_results_table(one_draw).rows if row.kind == "ours")
    assert cell.std is None and cell.draws == 1

    all_draws = run(raw, fresh(), score=lambda trial: far_apart(trial) + 0.001 * trial.config.draw)
    assert {names[0] for names, _ in find_bold(build_results_table(all_draws), all_draws)} == {"full"}


def test_the_text_on_bold_says_what_each_size_is_tested_over(studies: list[Study]) -> None:
    table = build_results_table(studies)
    (both,) = bold_text(table, studies)
    assert "over draws where a train size has several, and over seeds of the final trials elsewhere (Welch's" in both
    assert "A task's column has none if a method has one draw or one seed." in both

    parts = [study for study in studies if study.plan.train_size == 0.5]
    (draws,) = bold_text(build_results_table(parts), parts)
    assert "is tested over draws (Welch's t-test). A column of means" in draws
    assert "A task's column has none if a method has one draw." in draws


def test_methods_are_paired_by_draw_and_seed_and_each_draw_is_one_case(
    studies: list[Study], blocks: list[Block]
) -> None:
    table = table_block(blocks, "between methods")
    assert table.header[-1] == "p over draws or p over seeds, same search"
    by_size = {row[1].text: [cell.text for cell in row] for row in table.rows}

    # Of a draw only the seeds that both methods have: seed 44 of draw 1 failed.
    differences: dict[int, list[float]] = {}
    for task in TASKS:
        ours, theirs = (finals(studies, task, method, 0.5) for method in ("spt_deep", "full"))
        for draw in range(3):
            common = ours[draw].keys() & theirs[draw].keys()
            mean = statistics.mean((ours[draw][seed] - theirs[draw][seed]) / 100 for seed in sorted(common))
            differences.setdefault(draw, []).append(mean)
    by_draw = [round(statistics.mean(values), 12) for values in differences.values()]
    assert by_size["0.5"][-1] == f"{paired_t(by_draw):.3f} (3 draws)"
    assert by_size["1.0"][-1].endswith("(2)")


def test_seeds_of_one_draw_do_not_make_a_difference_certain() -> None:
    # Two draws that disagree, each with many seeds that agree.
    one = {("a", (draw, seed)): 0.5 + 0.1 * (-1) ** draw + seed / 1e4 for draw in range(2) for seed in range(50)}
    other = dict.fromkeys(one, 0.5)
    (over_draws,) = compare_methods({"one": one, "other": other}, each_draw)
    (over_seeds,) = compare_methods({"one": one, "other": other})
    assert over_draws.seeds == 2
    assert over_seeds.seeds == 100
    assert over_draws.p_seeds is not None
    assert over_draws.p_seeds > 0.9
    assert over_draws.difference == over_seeds.difference


def test_a_point_counts_labels_and_its_interval_is_over_draws(studies: list[Study], blocks: list[Block]) -> None:
    (curve,) = (c for c in curves([study.summary() for study in studies]) if c.method == "full")
    half, whole = curve.points
    assert (curve.unit, half.size, whole.size) == ("labels", 500, 1000)

    by_task = [finals(studies, task, "full", 0.5) for task in TASKS]
    draws = [statistics.mean(statistics.mean(scores[draw].values()) / 100 for scores in by_task) for draw in range(3)]
    error = statistics.stdev(draws) / math.sqrt(3)
    assert half.over == "draws"
    assert half.mean == pytest.approx(statistics.mean(draws))
    assert half.error == pytest.approx(error)
    assert half.low == pytest.approx(max(0.0, half.mean - T_2 * error))
    assert half.high == pytest.approx(min(1.0, half.mean + T_2 * error))
    assert whole.over == "seeds", "all images can be drawn in one way only"

    table = table_block(blocks, "accuracy over tuning-set size")
    assert table.title.endswith("labels: of train and val, each image once")
    assert table.header == (
        "method", "labels", "test %", "95 % interval over draws (over seeds where a size has one draw)"
    )  # fmt: skip
    assert [row[1].text for row in table.rows] == ["500", "1,000"] * 2
    assert any(" labels" in line and ("reaches" in line or "does not reach" in line) for line in lines_of(blocks))


def test_trials_that_did_not_count_labels_are_placed_by_their_training_images(fresh: Callable[[], str]) -> None:
    def without_some_labels(trial: Trial) -> dict[str, float]:
        counts = metrics(trial)
        if trial.config.train_size == 1.0:
            del counts["train/labels"]
        return counts

    raw = small(tasks=TASKS[:1], train_sizes=[0.5, 1.0], val_size="full")
    table = table_block(build_sections(run(raw, fresh(), score=score, metrics=without_some_labels)), "accuracy over")
    assert table.header[1:] == ("images", "test %", "95 % interval over seeds")
    assert table.title.endswith("images: of train; labels of val are not counted")
    assert [row[1].text for row in table.rows] == ["400", "800"] * 2, "one unit for all points"


def test_tables_that_name_studies_have_a_column_for_the_draw(studies: list[Study], blocks: list[Block]) -> None:
    chosen = table_block(blocks, "chosen on val")
    column = chosen.header.index("draw")
    named = [tuple(cell.text for cell in row[: chosen.names]) for row in chosen.rows]
    assert [name[column] for name in named[:4]] == ["0", "1", "2", "0"]
    assert len(set(named)) == len(studies)

    console = Console(width=300)
    with console.capture() as captured:
        console.print(progress_table([study.summary() for study in studies]))
    header, *_ = captured.get().splitlines()[1:]
    assert header.split()[:4] == ["task", "method", "train_size", "draw"]


def test_a_sweep_without_draws_does_not_mention_them(studies: list[Study]) -> None:
    first = [study for study in studies if study.plan.draw == 0]
    chosen = table_block(build_sections(first), "chosen on val")
    assert "draw" not in chosen.header
    assert "draw" not in chosen.title


def test_peeking_is_averaged_over_draws(blocks: list[Block]) -> None:
    table = table_block(blocks, "peeking")
    by_size = {row[2].text: [cell.text for cell in row[3:]] for row in table.rows}
    # Gains of 0, 1 and 2 points.
    assert by_size == {"0.5": ["+1.0"] * 3, "1.0": ["+0.0"] * 3}


def test_csv_and_export_tell_draws_apart(studies: list[Study], tmp_path: Path) -> None:
    header, *lines = (line.split(",") for line in to_csv(build_results_table(studies)).splitlines())
    draws = {line[3]: line[header.index("draws")] for line in lines if line[0] == "ours" and line[4] in TASKS}
    assert draws == {"0.5": "3", "1.0": "1"}

    (trials, *_), _ = export_studies(studies, lambda _: str(tmp_path), tmp_path)
    table = pq.read_table(trials, columns=["study", "draw", "val_size", "train_size"]).to_pylist()
    assert {(row["train_size"], row["draw"], row["val_size"]) for row in table} == {
        ("0.5", 0, "same"), ("0.5", 1, "same"), ("0.5", 2, "same"), ("1.0", 0, "full")
    }  # fmt: skip


def test_figures_merge_draws_and_say_so(studies: list[Study]) -> None:
    figures = dict(draw_figures(studies, each_study=False))
    assert "over draws" in figures["per_task-0.5"].get_suptitle()
    assert "over seeds" in figures["per_task-1"].get_suptitle()
    heights = sorted(bar.get_height() for bar in figures["per_task-0.5"].axes[0].patches if isinstance(bar, Rectangle))
    cells = [row.scores[task].mean for row in build_results_table(studies).rows for task in TASKS
             if row.kind == "ours" and row.names[2] == "0.5"]  # fmt: skip
    assert heights == pytest.approx(sorted(cells))

    sizes = figures["tuning_size"]
    assert sizes.axes[0].get_xlabel() == "labels used (train + val)"
    assert "95 % over draws" in sizes.get_suptitle()


def test_the_runs_of_two_draws_have_different_names_and_tags(studies: list[Study], mlflow_uri: str) -> None:
    runs = MlflowRuns(mlflow_uri, "draws", "trials", None, "data")
    client = MlflowClient(tracking_uri=mlflow_uri)
    drawn = [s for s in studies if (s.plan.task, s.plan.method) == ("vtab/dtd", "full") and s.plan.train_size == 0.5]
    made = [client.get_run(runs.create_study(study).run_id) for study in drawn]
    assert [run.info.run_name for run in made] == [f"vtab/dtd full 0.5 {draw}" for draw in range(3)]
    assert [run.data.tags["draw"] for run in made] == ["0", "1", "2"]
    assert {run.data.tags["val_size"] for run in made} == {"same"}
    assert len({run.data.tags["study"] for run in made}) == 3
    assert len({_model_name(study) for study in studies}) == len(studies), "nor do their registered models"


@pytest.mark.parametrize("draw", [0, 2])
def test_a_study_page_says_how_to_repeat_its_draw(studies: list[Study], draw: int) -> None:
    study = next(study for study in studies if (study.plan.draw, study.plan.train_size) == (draw, 0.5))
    page = render_study_page(study)
    raw = yaml.safe_load(page.split("```yaml\n")[1].split("```")[0])
    repeated = plan_sweep(parse_spec(raw, "the page")).by_key
    assert repeated[study.plan.key] == study.plan
    assert len(repeated) == draw + 1

    says = f"(This study is draw {draw}. The spec runs the {draw} draws before it, too.)"
    assert (says in page) == (draw > 0)
    assert f"--draw {draw}" in page or draw == 0


def test_status_as_json_has_the_draw(studies: list[Study]) -> None:
    rows: list[dict[str, Any]] = json.loads(json.dumps([study_json(study.summary()) for study in studies]))
    assert len({(row["task"], row["method"], row["train_size"], row["draw"]) for row in rows}) == len(rows)
