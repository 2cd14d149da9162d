"""Published numbers: their names are in the catalog, and means agree with their tasks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from statistics import fmean
from typing import get_args

import pytest

import orchestrator.report.published
from orchestrator.report.published import UNKNOWN, PublishedRow, published_rows
from trainer.catalog import BACKBONES, METHODS, TASKS
from trainer.config import TrainConfig, field_types

ELSEWHERE = {"MLP-3", "Sidetune", "E2VPT", "VAPT", "VIPAMIN", "DA-VPT", "DA-VPT+"}
"""Methods of other papers, which are not implemented here."""
EVERYWHERE = {
    "full", "linear", "vpt_shallow", "vpt_deep", "E2VPT", "partial_1", "bias", "adapter", "vfpt", "VAPT", "DA-VPT",
    "DA-VPT+", "lora",
}  # fmt: skip
"""Methods with numbers of every pre-training."""
SELF_SUPERVISED = {*EVERYWHERE, "spt_shallow", "spt_deep", "gate_vpt", "VIPAMIN"}
SUPERVISED = {*EVERYWHERE, "MLP-3", "Sidetune", "ssf", "bpt_deep"}
ROUNDING = 0.06
"""Tasks are printed with one decimal or two: their mean and the printed one differ by less than this."""

VOCABULARY: dict[str, set[str]] = {
    "train_on": {"train", "trainval"},
    "chosen_on": {"val", "test"},
    "search": {"grid"},
    "epoch": {"last", "best_on_val", "best_on_test"},
    **{name: {*get_args(field_types()[name])} for name in ("optimizer", "transform", "normalize")},
}
"""Words of a protocol. A field without a value is unknown."""
ROWS = list(dict.fromkeys((row.backbones, row.method) for name in BACKBONES for row in published_rows(name)))
VTAB_GROUPS = ("natural", "specialized", "structured")


def row_of(backbone: str, method: str) -> PublishedRow:
    (row,) = [row for row in published_rows(backbone) if row.method == method]
    return row


def tasks_of(group: str) -> list[str]:
    return [task.name for task in TASKS.values() if task.group == group]


@pytest.mark.parametrize(("backbones", "method"), ROWS)
def test_every_name_is_in_the_catalog_and_every_number_is_a_percentage(backbones: tuple[str, ...], method: str) -> None:
    row = row_of(backbones[0], method)
    assert all(name in BACKBONES for name in backbones)
    assert method in METHODS or method in ELSEWHERE
    assert row.tasks.keys() <= TASKS.keys()
    assert row.groups.keys() <= {*VTAB_GROUPS, "fgvc"}
    assert row.source and (row.tuned is None or row.tuned)
    assert all(0 < value < 100 for value in (*row.tasks.values(), *row.groups.values()))


@pytest.mark.parametrize(("backbones", "method"), ROWS)
def test_every_row_has_a_complete_protocol_of_known_words(backbones: tuple[str, ...], method: str) -> None:
    row = row_of(backbones[0], method)
    with_numbers = {"fgvc" if group == "fgvc" else "vtab" for group in row.groups}
    assert row.protocols.keys() == with_numbers, "a protocol for each benchmark that the row has numbers of"

    for protocol in row.protocols.values():
        for name, known in VOCABULARY.items():
            assert {*getattr(protocol, name)} <= known, name
        for name in ("epochs", "warmup_epochs", "batch_size"):
            assert all(type(value) is int and value > 0 for value in getattr(protocol, name)), name
        assert len(protocol.train_on) <= 1
        assert protocol.evidence, "a fact has a source"

    # The fields that TrainConfig has too mean the same.
    assert row.settings.keys() <= field_types().keys()
    TrainConfig.from_params({"task": "vtab/dtd", "method": "full", "backbone": backbones[0], **row.settings})
    assert row.checkpoint in {*BACKBONES, UNKNOWN}
    assert row.notes.keys() <= row.tasks.keys()


@pytest.mark.parametrize("backbone", ["vit_base_patch16_224.mae", "vit_base_patch16_224.orig_in21k"])
def test_vpt_trains_fgvc_on_train_alone_and_vtab_on_trainval(backbone: str) -> None:
    row = row_of(backbone, "vpt_deep")
    assert (row.protocols["fgvc"].train_on, row.protocols["vtab"].train_on) == (("train",), ("trainval",))


def test_spt_reports_its_best_epoch_on_test_and_does_not_publish_its_lists_of_fgvc() -> None:
    row = row_of("vit_base_patch16_224.mae", "spt_deep")
    assert {protocol.epoch for protocol in row.protocols.values()} == {("best_on_test",)}
    assert row.protocols["fgvc"].train_on == (), "unknown"
    assert row.protocols["vtab"].train_on == ("trainval",)


@pytest.mark.parametrize(("backbones", "method"), ROWS)
def test_a_group_is_the_mean_of_its_tasks(backbones: tuple[str, ...], method: str) -> None:
    row = row_of(backbones[0], method)
    for group, mean in row.groups.items():
        values = [row.tasks[task] for task in tasks_of(group) if task in row.tasks]
        # A source gives all tasks of a group or none.
        assert len(values) in (0, len(tasks_of(group)))
        assert not values or fmean(values) == pytest.approx(mean, abs=ROUNDING), group


@pytest.mark.parametrize(("backbones", "method"), ROWS)
def test_printed_wins_are_those_of_the_printed_tasks(backbones: tuple[str, ...], method: str) -> None:
    """A number that was copied wrongly would change a mean or a win. Papers count wins before they round."""
    row, full = row_of(backbones[0], method), row_of(backbones[0], "full")
    assert row.beats_full.keys() <= row.groups.keys()
    for group, wins in row.beats_full.items():
        members = tasks_of(group)
        assert 0 <= wins <= len(members)
        if all(task in row.tasks for task in members):
            won = sum(row.tasks[task] > full.tasks[task] for task in members)
            ties = sum(row.tasks[task] == full.tasks[task] for task in members)
            assert won <= wins <= won + ties, group


def test_the_two_averages_of_vtab_differ() -> None:
    full = row_of("vit_base_patch16_224.mae", "full")
    tasks = [value for task, value in full.tasks.items() if task.startswith("vtab/")]
    assert len(tasks) == 19
    assert round(fmean(tasks), 2) == 61.28
    assert round(fmean(full.groups[group] for group in VTAB_GROUPS), 2) == 64.27


@pytest.mark.parametrize(
    ("backbone", "average"),
    [
        ("vit_base_patch16_224.orig_in21k", {"partial_1": 56.52, "MLP-3": 53.21, "Sidetune": 45.65, "bias": 62.05,
                                             "vfpt": 73.20, "lora": 72.3, "ssf": 73.1, "VAPT": 65.57 + 7.34}),
        ("vit_base_patch16_224.mae", {"VIPAMIN": 64.09}),
        ("vit_base_patch16_224.moco_v3", {"VIPAMIN": 69.86}),
    ],
)  # fmt: skip
def test_the_groups_of_a_row_have_the_mean_over_19_tasks_that_its_paper_prints(
    backbone: str, average: dict[str, float]
) -> None:
    for method, printed in average.items():
        groups = row_of(backbone, method).groups
        total = sum(groups[group] * len(tasks_of(group)) for group in VTAB_GROUPS)
        assert total / 19 == pytest.approx(printed, abs=ROUNDING), method


@pytest.mark.parametrize(
    ("backbone", "average"),
    [
        ("vit_base_patch16_224.orig_in21k", {"DA-VPT": 74.69, "DA-VPT+": 76.14, "lora": 74.6, "ssf": 75.7}),
        ("vit_base_patch16_224.mae", {"DA-VPT": 65.19, "DA-VPT+": 69.61, "lora": 64.3}),
        ("vit_base_patch16_224.moco_v3", {"DA-VPT": 70.90, "DA-VPT+": 73.53, "lora": 44.3}),
    ],
)
def test_the_groups_of_a_row_have_the_mean_over_groups_that_its_paper_prints(
    backbone: str, average: dict[str, float]
) -> None:
    for method, printed in average.items():
        groups = row_of(backbone, method).groups
        assert fmean(groups[group] for group in VTAB_GROUPS) == pytest.approx(printed, abs=ROUNDING), method


def test_printed_numbers_of_parameters_follow_from_the_shapes_of_vit_b_16() -> None:
    """Width 768, 12 blocks, 85.8 M parameters in all. Heads count with the mean number of classes of a benchmark."""
    width, blocks, total = 768, 12, 85.8e6
    vtab, fgvc = (
        fmean(task.num_classes for task in TASKS.values() if task.name.startswith(f"{benchmark}/")) * (width + 1)
        for benchmark in ("vtab", "fgvc")
    )
    # The two norms, then the four linear layers: qkv, proj, fc1 and fc2.
    outputs = (width, width, 3 * width, width, 4 * width, width)
    one_block = 12 * width**2 + sum(outputs) + 2 * width
    biases = blocks * sum(outputs) + 2 * width
    scales_and_shifts = 2 * (blocks * sum(outputs) + 2 * width)

    mae = "vit_base_patch16_224.mae"
    for method, count in (("partial_1", one_block + vtab), ("bias", biases + vtab)):
        share = (row_of(mae, method).tuned or "").removesuffix("% tuned")
        assert float(share) == pytest.approx(100 * count / total, abs=0.01), method

    supervised = "vit_base_patch16_224.orig_in21k"
    low_rank = blocks * 2 * (width * 8 + 8 * width)
    assert (row_of(supervised, "lora").tuned or "").startswith(f"{low_rank / 1e6:.2f} M (VTAB)")
    ssf = tuple(f"{(scales_and_shifts + head) / 1e6:.2f}" for head in (vtab, fgvc))
    assert row_of(supervised, "ssf").tuned == "{} M (VTAB), {} M (FGVC)".format(*ssf)

    # Two factors each: 100 prompts of rank 75, and 50 of rank 50 in the last 4 blocks, with a left factor in all 12.
    assert row_of(mae, "bpt_shallow").tuned == f"{(100 * 75 + 75 * width) / 1e4:.2f} x 10^-2 M"
    deep = f"{(blocks * 50 * 50 + 4 * 50 * width) / 1e4:.2f} x 10^-2 M"
    assert row_of(mae, "bpt_deep").tuned == row_of(supervised, "bpt_deep").tuned == deep


def test_an_unknown_group_is_absent() -> None:
    spt = row_of("vit_base_patch16_224.mae", "spt_deep")
    assert spt.groups == {"natural": 67.19, "fgvc": 83.26}
    assert spt.tasks["fgvc/cub_200_2011"] == 80.13 and "vtab/cifar100" not in spt.tasks


@pytest.mark.parametrize(
    ("backbone", "methods"),
    [
        ("vit_base_patch16_224.mae", {*SELF_SUPERVISED, "bpt_shallow", "bpt_deep"}),
        ("vit_base_patch16_224.moco_v3", SELF_SUPERVISED),
        ("vit_base_patch16_224.augreg_in21k", SUPERVISED),
        ("vit_base_patch16_224.orig_in21k", SUPERVISED),
        ("vit_nano_patch4_32.mae", set()),
        ("no_such_network", set()),
    ],
)
def test_each_backbone_has_its_rows(backbone: str, methods: set[str]) -> None:
    rows = published_rows(backbone)
    assert {row.method for row in rows} == methods and len(rows) == len(methods)
    assert published_rows(backbone) is rows, "read once"


def test_the_file_describes_itself_and_has_no_row_twice() -> None:
    raw = json.loads(Path(orchestrator.report.published.__file__).with_name("published.json").read_text())
    assert raw.keys() == {"about", "protocols", "rows"}
    used = {name for row in raw["rows"] for name in row["protocol"].values()}
    assert used == raw["protocols"].keys(), "no protocol is missing, and none is left over"
    assert len(raw["rows"]) == len(ROWS) == 53


def test_the_module_needs_the_standard_library_only() -> None:
    code = (
        "import sys, orchestrator.report.published; sys.exit(bool({'torch', 'numpy', 'yaml', 'ray'} & {*sys.modules}))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
