"""Sections beside the main table: comparisons, chosen params, tuning-set sizes and peeking."""

from __future__ import annotations

import statistics

from orchestrator.report.blocks import TableBlock
from orchestrator.report.comparison import compare_methods
from orchestrator.report.sections import build_sections
from orchestrator.study.selection import pack_correct
from orchestrator.study.study import Study
from orchestrator.study.trial import Trial
from tests.orchestrator.report.reports import ONLY_FULL, chance, lines_of, printed, run, small, table_block


def test_every_pair_of_methods_is_compared_with_p_values(natural: list[Study]) -> None:
    table = table_block(build_sections(natural), "between methods")
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
    (pair,) = compare_methods(methods)
    assert pair.p_tasks is not None and pair.p_seeds is not None
    assert [cell.text for cell in table.rows[0]] == [
        "spt_deep − full",
        f"{100 * pair.difference:+.1f}",
        f"{pair.better_on} of 7",
        f"{pair.p_tasks:.3f}",
        f"{pair.p_seeds:.3f} ({pair.seeds})",
    ]


def test_a_comparison_without_enough_tasks_has_no_column_for_them_and_one_without_seeds_says_so(
    record_url: str,
) -> None:
    table = table_block(build_sections(run(small(final={"seeds": [42]}), record_url)), "between methods")
    assert table.header[-2:] == ("better on", "p over seeds, same search")
    assert table.rows[0][-1].text == "—"


def test_the_report_says_which_p_to_cite_what_the_other_leaves_out_and_how_many_tasks_are_needed(
    record_url: str,
) -> None:
    blocks = build_sections(run(small(methods=["spt_deep", "full", "linear"]), record_url))
    table, lines = table_block(blocks, "between methods"), lines_of(blocks)
    assert table.header[-2:] == ("better on", "p over seeds, same search"), (
        "no column that would say the same in each row"
    )
    assert any(line.startswith("p over tasks, ") and line.endswith("is not given: too few tasks.") for line in lines)
    assert not any("Cite this one" in line for line in lines), "it is not to be cited, since it is not there"
    assert any(line.startswith("p over seeds, same search: ") and "luck of one search on val" in line for line in lines)
    assert any(line.startswith("p over tasks of 3 pairs of methods needs 7 tasks: with 3 tasks") for line in lines)


def test_the_p_over_tasks_is_to_be_cited_where_there_are_enough_tasks(natural: list[Study]) -> None:
    lines = lines_of(build_sections(natural))
    (of_tasks,) = (line for line in lines if line.startswith("p over tasks"))
    assert of_tasks.endswith("Cite this one.")
    (bold,) = (line for line in lines if line.startswith("Bold above and p over seeds may disagree: "))
    assert lines.index(bold) > lines.index(of_tasks), "at the table of p values"


def test_one_method_has_no_comparison(record_url: str) -> None:
    titles = [
        block.title for block in build_sections(run(small(**ONLY_FULL), record_url)) if isinstance(block, TableBlock)
    ]
    assert not any(title.startswith("between methods") for title in titles)


def test_chosen_params_have_their_val_accuracy_and_tied_trials(record_url: str) -> None:
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
    for row, study in zip(table_block(blocks, "chosen on val").rows, studies, strict=True):
        assert study.best is not None
        task, method, val, number, tied_with, params = (cell.text for cell in row)
        assert (task, method, val, number, tied_with) == (study.plan.task, study.plan.method, "75.0", "0", "1")
        assert f"lr {study.best.params['lr']:.3g}" in params
    assert any(
        line.startswith("tied: trials that are not significantly worse than the best trial on val")
        for line in lines_of(blocks)
    )


def test_several_train_sizes_have_a_section_on_data_efficiency(record_url: str) -> None:
    sizes = {0.1: 0.3, 0.5: 0.6, 1.0: 0.8}
    studies = run(
        small(tasks=["vtab/dtd"], train_sizes=[*sizes]),
        record_url,
        score=lambda t: sizes[float(t.config.train_size)] + (0.1 if t.config.method == "spt_deep" else 0.0),
        metrics=lambda t: {"train/images": 1000 * float(t.config.train_size)},
    )
    blocks = build_sections(studies)
    table = table_block(blocks, "accuracy over tuning-set size")
    assert [[cell.text for cell in row[:3]] for row in table.rows if row[0].text == "full"] == [
        ["full", "100", "30.0"],
        ["full", "500", "60.0"],
        ["full", "1,000", "80.0"],
    ]
    assert any(line.startswith("spt_deep reaches full's 80.0 % with ") for line in lines_of(blocks))
    assert any(line.startswith("full: error = ") for line in lines_of(blocks))
    (beaten,) = (line for line in lines_of(blocks) if line.endswith(" beat full fine-tuning on 1 of 1 task."))
    assert beaten.startswith("spt_deep 0.1, spt_deep 0.5, spt_deep 1")


def test_one_train_size_has_no_such_section(natural: list[Study]) -> None:
    assert "tuning-set size" not in printed(build_sections(natural))


def test_the_gain_of_peeking_is_in_its_own_table_and_in_no_other_number(record_url: str, plain: list[Study]) -> None:
    def peeked(trial: Trial) -> dict[str, float]:
        if trial.phase == "search" or trial.config.task == "fgvc/nabirds":
            return {}
        return {"peeking/accuracy": 0.5, "peeking/gain": chance(trial.trial_id) / 10}

    studies = run(small(), record_url, metrics=peeked)
    honest, blocks = build_sections(plain), build_sections(studies)
    (added,) = [block for block in blocks if block not in honest]
    table = table_block(blocks, "peeking")
    assert added is table and "No other number of this report uses it." in table.title
    for row in table.rows:
        by_task = dict(zip(table.header, (cell.text for cell in row), strict=True))
        gains = {
            study.plan.task: 100
            * statistics.mean(trial.last_metrics["peeking/gain"] for trial in study.requested_final_trials)
            for study in studies
            if study.plan.method == by_task["method"] and study.plan.task != "fgvc/nabirds"
        }
        assert {task: by_task[task] for task in gains} == {task: f"{gain:+.1f}" for task, gain in gains.items()}
        assert (by_task["fgvc/nabirds"], by_task["mean"]) == ("—", f"{statistics.mean(gains.values()):+.1f}")
