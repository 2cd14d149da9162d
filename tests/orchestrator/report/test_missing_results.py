"""Results that are not in a report: each is counted, and its reason is printed."""

from __future__ import annotations

from orchestrator.report.blocks import cells
from orchestrator.report.render import FORMATS
from orchestrator.report.results_table import OVER_GROUPS, OVER_TASKS
from orchestrator.report.sections import build_sections
from orchestrator.spec.loader import parse_spec
from orchestrator.spec.schema import SweepSpec
from orchestrator.study.trial import Failure, FailureCause, Trial
from tests.orchestrator.conftest import drive, new_sweep
from tests.orchestrator.report.reports import (
    MAE,
    cells_of,
    lines_of,
    percents,
    printed,
    results,
    run,
    small,
    table_block,
)


def test_a_failed_final_trial_is_counted_in_its_cell_and_named_below(record_url: str) -> None:
    def fail(trial: Trial) -> Failure | None:
        key = (trial.phase, trial.config.task, trial.config.method, trial.config.seed)
        broken = key == ("final", "vtab/svhn", "full", 44)
        return Failure(cause=FailureCause.ERROR, error="OSError: no disk\n\nthe trace") if broken else None

    studies = run(small(), record_url, fail=fail)
    blocks, table = build_sections(studies), results(studies)
    (left,) = percents(studies, "vtab/svhn", "full")
    assert table["full", "vtab/svhn"].text == f"{left:.1f} [1 missing]"
    assert table["full", OVER_TASKS].text.endswith("[1 missing]"), "a mean over it says so too"
    assert "missing" not in table["full", "fgvc mean"].text + table["spt_deep", OVER_TASKS].text
    name = f"vtab/svhn full {MAE} train_size 1.0"
    assert lines_of(blocks, is_warning=True) == [
        f"failed: {name}: 1 trial, last error: OSError: no disk",
        f"missing: {name}: no final score for seeds 44",
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
        assert not table["full", column].bold, "alone, it is compared with nothing"
    assert table["spt_deep", "vtab/svhn"].text != "—" != table["spt_deep", "fgvc mean"].text
    name = f"vtab/dtd spt_deep {MAE} train_size 1.0"
    assert f"failed: {name}: 2 trials, last error: TrainingDiverged: nan" in lines_of(blocks, is_warning=True)
    assert f"missing: {name}: no final score for seeds 42, 44" in lines_of(blocks, is_warning=True)
    assert "Trials: 20 complete, 0 pruned, 2 failed, 2 missing." in lines_of(blocks)
    chosen = [row[:2] for row in table_block(blocks, "chosen on val").rows]
    assert cells("vtab/dtd", "spt_deep") not in chosen and len(chosen) == 5


def test_a_stopped_study_has_its_reason_and_its_missing_trials_are_counted(record_url: str) -> None:
    def fail(trial: Trial) -> Failure | None:
        broken = trial.config.task == "vtab/dtd" and trial.config.method == "full"
        return Failure(cause=FailureCause.INVALID, error="ValueError: 3 classes, not 47\n\ntrace") if broken else None

    studies = run(small(), record_url, fail=fail)
    alarms = lines_of(build_sections(studies), is_warning=True)
    name = f"vtab/dtd full {MAE} train_size 1.0"
    assert alarms == [
        f"stopped: {name}: ValueError: 3 classes, not 47",
        f"failed: {name}: 1 trial, last error: ValueError: 3 classes, not 47",
    ], "and not that final scores are missing, which follows"
    assert "Trials: 20 complete, 0 pruned, 1 failed, 3 missing." in lines_of(build_sections(studies))
    assert results(studies)["full", "vtab/dtd"].text == "—"
    assert "spt_deep beats full fine-tuning on" in printed(build_sections(studies))
    assert "of 2 tasks; on 1 more, one of the two has no score." in printed(build_sections(studies))


def test_a_sweep_without_results_has_a_report(record_url: str) -> None:
    sweep = new_sweep(parse_spec(small(), "a test"), record_url)
    blocks = build_sections(sweep.studies)
    assert "Trials: 0 complete, 0 pruned, 0 failed, 24 missing." in lines_of(blocks)
    table = cells_of(table_block(blocks, "test accuracy"))
    assert {cell.text for (name, _), cell in table.items() if name == "full"} == {"full", "—"}
    assert len([line for line in lines_of(blocks) if line.startswith("missing: ")]) == 6
    assert not any(line.startswith(("trial: ", "tied: ")) for line in lines_of(blocks)), "nothing was chosen"
    for write in FORMATS.values():
        assert "24 missing" in write(blocks)
    sweep.next_trial()
    assert "24 missing" in printed(build_sections(sweep.studies)), "a running trial has no result yet"


def test_pruned_trials_are_counted_separately(spec: SweepSpec, record_url: str) -> None:
    sweep = new_sweep(spec, record_url)
    drive(sweep, workers=3)
    pruned = sum(trial.state.value == "pruned" for study in sweep.studies for trial in study.requested_search_trials)
    assert pruned > 0
    assert f"Trials: {40 - pruned} complete, {pruned} pruned, 0 failed, 0 missing." in lines_of(
        build_sections(sweep.studies)
    )
