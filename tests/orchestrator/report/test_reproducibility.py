"""The reproducibility lines: test images, rules, seeds, software and machines."""

from __future__ import annotations

from collections.abc import Callable

from orchestrator.report.blocks import TextBlock
from orchestrator.report.sections import build_sections
from orchestrator.report.study_page import render_study_page
from orchestrator.study.trial import Trial
from tests.orchestrator.report.reports import ONLY_FULL, lines_of, run, small


def test_final_trials_that_were_scored_on_different_images_are_not_comparable(record_url: str) -> None:
    def facts(trial: Trial) -> dict[str, str]:
        is_different = trial.config.task == "vtab/dtd" and trial.config.seed == 44
        return {
            "scored_on": f"{'bbb' if is_different else 'aaa'}/{trial.config.eval_split}/1.0",
            "protocol": "official",
        }

    lines = lines_of(build_sections(run(small(), record_url, facts=facts)))
    assert (
        "vtab/dtd: final trials were scored on 2 different sets of images, so their scores cannot be compared." in lines
    )
    assert sum("cannot be compared" in line for line in lines) == 1
    assert (
        "images: vtab/dtd aaa (official), bbb (official); vtab/svhn aaa (official); fgvc/nabirds aaa (official)"
        in lines
    )


def test_the_reproducibility_lines_name_rules_seeds_software_and_machines(record_url: str) -> None:
    facts = {"software": "torch 2.11", "commit": "abc", "lock": "dirty", "device": "H200", "host": "node7"}
    facts["arithmetic"] = "bf16, flash attention, eager"

    def facts_of(trial: Trial) -> dict[str, str]:
        return facts | ({"commit": "def"} if trial.config.seed == 44 else {})

    search = {"trials": 2, "sampler": "random", "seed": 5}
    (block,) = (
        block
        for block in build_sections(run(small(search=search), record_url, facts=facts_of))
        if isinstance(block, TextBlock) and block.title == "reproducibility"
    )
    assert block.lines == (
        "search: 2 trials, sampler random, pruner none, seed 5; scored on val at the last epoch; select: last_val",
        "final: trained on train + val, scored on test at the last epoch (epochs: 1); seeds 42, 44",
        "software: torch 2.11",
        "commit: abc; def",
        "lock: dirty",
        "device: H200",
        "arithmetic: bf16, flash attention, eager",
    )


def test_the_lines_say_what_final_trials_were_trained_on(fresh: Callable[[], str]) -> None:
    """The stamp, the text under the table and the page of a study say the same."""
    on_train = run(small(tasks=["vtab/dtd"], final={"seeds": [42, 44], "train_on": "train"}, **ONLY_FULL), fresh())
    on_both = run(small(tasks=["vtab/svhn"], **ONLY_FULL), fresh())

    for studies, words in (
        (on_train, "train alone"),
        (on_both, "train + val"),
        ([*on_train, *on_both], "train alone or train + val"),
    ):
        lines = lines_of(build_sections(studies))
        assert f"final: trained on {words}, scored on test at the last epoch (epochs: 1); seeds 42, 44" in lines
        assert any(f"Each final trial was trained on {words} and scored on test once" in line for line in lines)

    assert {trial.config.train_split for study in on_train for trial in study.requested_final_trials} == {"train"}
    assert "final: trained on train alone, scored" in render_study_page(on_train[0])
