"""The table says what the trials came to, and counts what is not in it."""

from __future__ import annotations

import io
import statistics

from rich.console import Console

from orchestrator.live import progress_table
from orchestrator.report import chosen_table, footer, result_table
from orchestrator.results import Cause, Failure, TrialResult
from orchestrator.spec import SweepSpec
from tests.orchestrator.conftest import drive, new_sweep


def text(*parts: object) -> str:
    console = Console(file=io.StringIO(), width=300)
    for part in parts:
        console.print(part)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_a_cell_is_the_mean_and_sample_std_of_the_final_trials(spec: SweepSpec, record_url: str) -> None:
    sweep = new_sweep(spec, record_url)
    drive(sweep)
    summaries = sweep.summaries()
    shown = text(result_table(summaries))
    for study in sweep.studies:
        scores = [trial.score for trial in study.final.trials if trial.score is not None]
        assert len(scores) == 2
        assert f"{100 * statistics.mean(scores):.1f} ± {100 * statistics.stdev(scores):.1f}" in shown
    assert "0 failed, 0 missing" in footer(summaries)
    for summary in summaries:
        assert summary.best is not None
        assert f"{summary.best.params['lr']:.3g}" in text(chosen_table(summaries))


def test_the_best_method_of_each_task_is_bold(spec: SweepSpec, record_url: str) -> None:
    sweep = new_sweep(spec, record_url)
    drive(sweep)
    table = result_table(sweep.summaries())
    for column in table.columns[1:-1]:
        assert sum("[bold]" in str(cell) for cell in column.cells) == 1


def test_failed_and_missing_trials_are_counted_in_the_open(spec: SweepSpec, record_url: str) -> None:
    def fail(trial: TrialResult) -> Failure | None:
        failing = trial.config["task"] == "demo/digits" and trial.config["method"] == "linear"
        return Failure(error="TrainingDiverged: nan", cause=Cause.DIVERGED) if failing else None

    sweep = new_sweep(spec, record_url)
    drive(sweep, fail=fail)
    summaries = sweep.summaries()
    assert "8 failed, 2 missing" in footer(summaries), "no search trial is left to repeat in 2 final ones"
    assert "—" in text(result_table(summaries))
    failed = next(summary for summary in summaries if summary.failed)
    assert (len(failed.failed), failed.best) == (8, None)


def test_a_sweep_under_way_shows_what_runs_and_what_is_done(spec: SweepSpec, record_url: str) -> None:
    sweep = new_sweep(spec, record_url)
    drive(sweep, workers=3, events=12)
    shown = text(progress_table(sweep.summaries()))
    finished = sum(trial.state.is_finished for study in sweep.studies for trial in study.search.trials)
    assert f"{finished}/10" in shown
    assert "demo/shapes_loc" in shown, "studies that have not begun are there too"
