"""Protocols of published rows: shown in every format, and marked where they differ from what the sweep did."""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from orchestrator.report.latex import to_latex
from orchestrator.report.protocols import marks
from orchestrator.report.published import published_rows
from orchestrator.report.render import to_csv, to_html, to_markdown
from orchestrator.report.results_table import OVER_TASKS, ResultsRow, ResultsTable, build_results_table
from orchestrator.report.sections import build_sections
from orchestrator.study.study import Study
from tests.orchestrator.report.reports import FGVC, MAE, NATURAL, SMALL, lines_of, printed, run, small
from trainer.catalog import METHODS
from trainer.config import unused_fields

MOCO = "vit_base_patch16_224.moco_v3"
ORIGINAL = "vit_base_patch16_224.orig_in21k"
AUGREG = "vit_base_patch16_224.augreg_in21k"
AS_VPT = {
    "epochs": 100,
    "warmup_epochs": 10,
    "batch_size": 64,
    "optimizer": "sgd",
    "transform": "vpt",
    "normalize": "imagenet",
}
"""Settings of VPT's prompts."""
IMAGES = (
    "FGVC: trained on train alone, ours on train + val (images: cub_200_2011 5,394 against 5,994, nabirds 21,536 "
    "against 23,929, oxford_flowers 1,020 against 2,040, stanford_dogs 10,800 against 12,000, stanford_cars 7,329 "
    "against 8,144)."
)


def sweep(url: str, *, methods: Sequence[str], train_on: str = "trainval", **changes: Any) -> list[Study]:
    """Return the studies of a sweep with one search trial and one final trial each."""
    # A field without effect on every method is refused.
    space = {
        name: dimension
        for name, dimension in SMALL["space"].items()
        if any(name not in unused_fields(method) for method in methods)
    }
    final = {"seeds": [42], "train_on": train_on}
    search = {"trials": 1, "sampler": "random"}
    return run(small(methods=methods, space=space, search=search, final=final, **changes), url)


@pytest.fixture(scope="module")
def mae(fresh: Callable[[], str]) -> list[Study]:
    """Studies of all tasks of FGVC and of one of VTAB, with MAE."""
    return sweep(fresh(), tasks=["vtab/dtd", *FGVC], methods=["spt_deep", "vpt_deep", "full"])


def published(table: ResultsTable) -> dict[str, ResultsRow]:
    """Return the published rows by method."""
    return {row.names[0]: row for row in table.rows if row.kind == "published"}


def plain_latex(text: str) -> str:
    text = re.sub(r"\\([&%$#_{}])", r"\1", text)
    text = re.sub(r"\\(?:tnote\{|item\[)(\w+)[}\]]", r" [\1]", text)
    text = text.replace(r"\quad ", "")
    for method in METHODS.values():
        # Sources of published numbers have the names of the papers of these two.
        is_source = method.name in ("gate_vpt", "vfpt")
        text = re.sub(rf"\b{method.paper_name}\b" + ("(?=, published)" if is_source else ""), method.name, text)
    return text.replace("{[}", "[").replace("{]}", "]").replace("$-$", "−").replace("---", "—")


FORMATS: dict[str, Callable[[list[Any]], str]] = {
    "terminal": lambda blocks: printed(blocks, 2000),
    "markdown": lambda blocks: re.sub(r"\\(.)", r"\1", to_markdown(blocks)),
    "latex": lambda blocks: plain_latex(to_latex(blocks)),
    "html": lambda blocks: html.unescape(to_html(blocks)),
}
"""Reports as text, in which escapes are undone."""


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_shows_the_protocol_of_each_published_row_and_its_marks(name: str, mae: list[Study]) -> None:
    table, text = build_results_table(mae), FORMATS[name](build_sections(mae))
    rows = [row for row in published(table).values() if row.scores]
    assert {row.names[0] for row in rows} == {
        "spt_deep", "vpt_deep", "full", "vpt_shallow", "gate_vpt", "spt_shallow", "bpt_shallow", "bpt_deep", "DA-VPT",
        "DA-VPT+", "vfpt",
    }  # fmt: skip

    for row in rows:
        assert row.protocol and row.notes, "no row was made as this sweep was"
        mark = table.marks[row.notes]
        assert f"{row.names[0]}, published [{mark}]" in text
        assert all(protocol in text for protocol in row.protocol)
        assert all(f"[{mark}] {note}" in text for note in row.notes)

    # Two rows that differ in the same way share a mark.
    assert published(table)["vpt_shallow"].notes == published(table)["gate_vpt"].notes
    assert len({*table.marks.values()}) == len({row.notes for row in rows}) < len(rows)

    # The difference is read together with the row above it, so it has the same mark.
    assert f"  difference [{table.marks[published(table)['full'].notes]}]" in text


def test_csv_has_the_protocol_and_the_differences_in_its_last_column(mae: list[Study]) -> None:
    table = build_results_table(mae)
    reader = csv.DictReader(io.StringIO(to_csv(table)))
    lines = [*reader]
    assert reader.fieldnames is not None and reader.fieldnames[-1] == "protocol"
    for line in lines:
        if line["kind"] == "published":
            row = published(table)[line["method"]]
            assert all(sentence in line["protocol"] for sentence in (*row.protocol, *row.notes))
        else:
            assert line["protocol"] == ""


def test_csv_without_published_rows_has_no_such_column(fresh: Callable[[], str]) -> None:
    studies = sweep(fresh(), tasks=["demo/digits"], backbones=["vit_nano_patch4_32.mae"], methods=["linear"])
    assert to_csv(build_results_table(studies)).splitlines()[0].endswith(",tuned,source")


def test_each_difference_on_mae_has_its_own_sentence(mae: list[Study]) -> None:
    rows = published(build_results_table(mae))
    assert rows["vpt_deep"].notes == (
        IMAGES,
        "FGVC: other schedule: epochs 100 (ours 1), warmup_epochs 10 (ours 0), optimizer sgd (ours adamw).",
        "FGVC: other pixels: transform vpt (ours spt).",
        "FGVC: other network: final_norm fresh (ours pretrained).",
        "FGVC: not known: the split that the params were chosen on, epoch, batch_size.",
    )
    assert rows["spt_deep"].notes == (
        "FGVC: accuracy of the epoch that is best on test, ours of the last epoch.",
        "FGVC: other schedule: epochs 100 (ours 1), warmup_epochs 10 (ours 0).",
        "FGVC: not known: training images, the split that the params were chosen on.",
    )
    # Only benchmarks of which a number is printed: of full fine-tuning the tasks of VTAB are known.
    assert [sentence.partition(":")[0] for sentence in rows["full"].protocol] == ["VTAB", "FGVC"]
    assert [sentence.partition(":")[0] for sentence in rows["vpt_deep"].protocol] == ["FGVC"]
    assert "linear" not in rows, "no number, nothing to compare"
    # Of DA-VPT no source gives more than the weights.
    assert rows["DA-VPT"].protocol[0].startswith("FGVC: not known: training images, ")


def test_final_trials_on_train_alone_have_the_images_of_vpts_fgvc_rows(fresh: Callable[[], str]) -> None:
    table = build_results_table(
        sweep(fresh(), tasks=["vtab/dtd", *FGVC], methods=["vpt_deep", "full"], train_on="train")
    )
    rows = published(table)
    for method in ("vpt_deep", "full", "vpt_shallow", "gate_vpt"):
        assert not any(note.startswith("FGVC: trained on") for note in rows[method].notes), method

    # VTAB is learned from train + val by all of them.
    assert "VTAB: trained on train + val, ours on train alone (images: dtd 1,000 against 800)." in rows["full"].notes


def test_tasks_with_the_same_numbers_are_named_together(fresh: Callable[[], str]) -> None:
    rows = published(build_results_table(sweep(fresh(), tasks=NATURAL, methods=["linear"], train_on="train")))
    assert rows["linear"].notes[0] == (
        "VTAB: trained on train + val, ours on train alone (images: each task 1,000 against 800)."
    )


def test_a_row_that_was_made_as_ours_is_has_no_mark(fresh: Callable[[], str]) -> None:
    studies = sweep(fresh(), tasks=FGVC[:2], backbones=[ORIGINAL], methods=["vpt_deep"], fixed=AS_VPT, train_on="train")
    table = build_results_table(studies)
    assert published(table)["vpt_deep"].notes == ()
    assert published(table)["vpt_deep"].protocol, "it is shown nevertheless"
    text = printed(build_sections(studies), 400)
    assert "vpt_deep, published " in text and "vpt_deep, published [" not in text


def test_augreg_weights_are_not_comparable_with_rows_of_the_original_weights(fresh: Callable[[], str]) -> None:
    rows = published(build_results_table(sweep(fresh(), tasks=FGVC[:2], backbones=[AUGREG], methods=["vpt_deep"])))
    sentence = f"FGVC: other weights, so not comparable: {ORIGINAL}, ours {AUGREG}."
    assert {method for method, row in rows.items() if sentence in row.notes} == {
        "full", "linear", "vpt_shallow", "vpt_deep", "partial_1", "MLP-3", "Sidetune", "bias", "adapter", "vfpt",
    }  # fmt: skip
    assert any("not known: checkpoint" in note for note in rows["E2VPT"].notes)
    assert not any("weights" in note or "checkpoint" in note for note in rows["ssf"].notes), "made with these weights"


def test_the_schedule_of_a_method_that_the_sweep_lacks_is_not_compared(mae: list[Study]) -> None:
    """GateVPT's optimizer is no difference from our SPT. Its images and pixels are."""
    rows = published(build_results_table(mae))
    assert rows["gate_vpt"].notes == (
        IMAGES,
        "FGVC: other pixels: transform vpt (ours spt).",
        "FGVC: other network: final_norm fresh (ours pretrained).",
        "FGVC: not known: the split that the params were chosen on, epoch, batch_size.",
    )


def test_settings_of_trials_that_are_not_chosen_yet_are_those_of_the_spec(fresh: Callable[[], str]) -> None:
    """Before the final trials there is nothing but the spec."""
    studies = sweep(fresh(), tasks=FGVC[:2], methods=["spt_deep"])
    trained = published(build_results_table(studies))["spt_deep"].notes
    for study in studies:
        study.final_table.trials.clear()
        assert not study.requested_final_trials
    assert published(build_results_table(studies))["spt_deep"].notes == trained


def test_a_remark_on_a_number_stands_under_the_table_that_shows_it(fresh: Callable[[], str]) -> None:
    task = "vtab/diabetic_retinopathy"
    remark = f"{task}: VFPT S11-S13 prints 74.2, its other tables print 74.3 as here."
    shown = sweep(fresh(), tasks=[task, "vtab/dtd"], backbones=[MOCO], methods=["full"])
    hidden = sweep(fresh(), tasks=["vtab/dtd"], backbones=[MOCO], methods=["full"])
    assert any(line.endswith(f"] {remark}") for line in lines_of(build_sections(shown)))
    assert not any(remark in line for line in lines_of(build_sections(hidden)))


@pytest.mark.parametrize("backbone", [MAE, MOCO, ORIGINAL])
def test_a_mean_over_one_group_is_the_one_that_the_paper_prints(backbone: str, fresh: Callable[[], str]) -> None:
    rows = published(build_results_table(sweep(fresh(), tasks=FGVC, backbones=[backbone], methods=["vpt_shallow"])))
    for source in published_rows(backbone):
        if "fgvc" in source.groups:
            assert rows[source.method].scores[OVER_TASKS].mean == source.groups["fgvc"], source.method

    if backbone == ORIGINAL:
        # Its five tasks, as printed, have the mean 84.66.
        assert rows["vpt_shallow"].scores[OVER_TASKS].mean == 84.62


def test_marks_go_on_after_z() -> None:
    notes = [(str(number), "the same") for number in range(80)]
    letters = [*marks([*notes[:3], (), *notes]).values()]
    assert letters[:3] == ["a", "b", "c"] and letters[25:28] == ["z", "aa", "ab"] and letters[52] == "ba"
    assert len({*letters}) == 80
