"""Studies under `per` run as if each had a spec of its own, and an edit of `per` touches only those it selects."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from orchestrator.errors import ConflictError
from orchestrator.report.blocks import TextBlock
from orchestrator.report.render import print_blocks
from orchestrator.report.sections import build_sections
from orchestrator.report.study_page import render_study_page
from orchestrator.spec.loader import parse_spec
from orchestrator.study.storage.database import StudyDatabase
from orchestrator.study.study import load_studies
from orchestrator.sweep.cost_model import CostModel, Rate
from orchestrator.sweep.sweep import Sweep
from tests.orchestrator.conftest import Sptune, drive, new_sweep, outcome

CHOICE = {"type": "choice", "values": [0.001, 0.01, 0.1]}
OF_LINEAR: dict[str, Any] = {
    "method": "linear",
    "fixed": {"batch_size": 16},
    "space": {"lr": CHOICE},
    "search": {"trials": 3, "sampler": "grid", "seed": 7, "pruner": {"type": "none"}},
}


@pytest.fixture
def raw_spec(raw_spec: dict[str, Any]) -> dict[str, Any]:
    """A small spec: few trials of few epochs are enough here."""
    raw_spec["fixed"] |= {"epochs": 3}
    raw_spec["search"] |= {"trials": 4, "startup_trials": 2}
    return raw_spec


def by_study(sweep: Sweep) -> dict[str, list[tuple[object, ...]]]:
    """What the sweep decided and found, by study."""
    rows: dict[str, list[tuple[object, ...]]] = {}
    for row in outcome(sweep):
        rows.setdefault(str(row[0]), []).append(row)
    return rows


def test_each_study_has_the_trials_of_a_spec_of_its_method_alone(raw_spec: dict[str, Any], tmp_path: Path) -> None:
    raw_spec["search"]["trials"] = 5
    raw_spec["tasks"] = ["demo/digits"]
    deep = raw_spec | {"methods": ["spt_deep"]}
    linear = raw_spec | {
        "methods": ["linear"],
        "fixed": raw_spec["fixed"] | OF_LINEAR["fixed"],
        "space": OF_LINEAR["space"],
        "search": raw_spec["search"] | OF_LINEAR["search"],
    }
    together = new_sweep(parse_spec(raw_spec | {"per": [OF_LINEAR]}, "a test"), f"sqlite:///{tmp_path / 'one.db'}")
    drive(together, workers=3)
    alone: dict[str, list[tuple[object, ...]]] = {}
    for name, raw in (("deep", deep), ("linear", linear)):
        sweep = new_sweep(parse_spec(raw, "a test"), f"sqlite:///{tmp_path / name}.db")
        drive(sweep)
        alone |= by_study(sweep)
    assert by_study(together) == alone
    assert {study.plan.method: len(study.search_table.trials) for study in together.studies} == {
        "spt_deep": 5,
        "linear": 3,
    }
    assert all(summary.num_planned == (7 if "spt" in summary.plan.method else 5) for summary in together.summaries())
    assert together.is_done


def test_a_sweep_of_one_method_is_resumed_under_a_spec_with_more(raw_spec: dict[str, Any], record_url: str) -> None:
    before = new_sweep(parse_spec(raw_spec | {"methods": ["spt_deep"]}, "a test"), record_url)
    drive(before)
    known = by_study(before)
    settings = [study.search_table.settings for study in before.studies]
    # The same ranges, but from an entry: nothing has changed for these studies.
    raw_spec["per"] = [
        OF_LINEAR,
        {
            "method": "spt_deep",
            "fixed": raw_spec["fixed"],
            "space": raw_spec["space"],
            "search": raw_spec["search"] | {"sampler": "tpe"},
        },
    ]
    raw_spec |= {"fixed": {"epochs": 3, "warmup_epochs": 0}, "space": {}, "search": {"trials": 1, "sampler": "random"}}
    after = new_sweep(parse_spec(raw_spec, "a test"), record_url)
    of_deep = [study for study in after.studies if study.plan.method == "spt_deep"]
    assert [study.search_table.settings for study in of_deep] == settings
    assert all(study.is_done for study in of_deep)
    drive(after)
    assert {key: rows for key, rows in by_study(after).items() if key in known} == known
    assert after.is_done and len(by_study(after)) == 4


def test_an_entry_that_contradicts_trials_is_refused_and_names_only_the_studies_it_selects(
    raw_spec: dict[str, Any], record_url: str
) -> None:
    before = new_sweep(parse_spec(raw_spec, "a test"), record_url)
    drive(before)
    changes: list[tuple[dict[str, Any], str]] = [
        ({"fixed": {"lr": 0.5}}, "fixed.lr was not set, is 0.5"),
        ({"fixed": {"batch_size": 8}}, "fixed.batch_size was not set, is 8"),
        ({"search": {"seed": 3}}, "search.seed was 0, is 3"),
        ({"search": {"sampler": "random"}}, "search.sampler was tpe, is random"),
    ]
    for change, conflict in changes:
        entry = {"group": "demo/digits", "method": "linear"} | change
        with pytest.raises(ConflictError) as refused:
            new_sweep(parse_spec(raw_spec | {"per": [entry]}, "a test"), record_url)
        # The key is looked for where it is: in the entry, and not in the spec's own `fixed` or `search`.
        key = f"per.0.{conflict.partition(' was ')[0]}"
        assert f"  {conflict}, from {key} (in demo/digits linear vit_nano_patch4_32.mae train_size 1.0)\n" in str(
            refused.value
        )
        assert "shapes" not in str(refused.value) and "spt_deep" not in str(refused.value)

    # Nothing was changed: the old spec still holds.
    again = new_sweep(parse_spec(raw_spec, "a test"), record_url)
    assert again.is_done and outcome(again) == outcome(before)


def test_an_entry_may_widen_a_range_and_add_trials(raw_spec: dict[str, Any], record_url: str) -> None:
    before = new_sweep(parse_spec(raw_spec, "a test"), record_url)
    drive(before)
    known = by_study(before)
    wider = raw_spec["space"]["lr"] | {"high": 10.0}
    entry = {"method": "linear", "group": "demo/digits", "space": {"lr": wider}, "search": {"trials": 6}}
    after = new_sweep(parse_spec(raw_spec | {"per": [entry]}, "a test"), record_url)
    assert [study.plan.key for study in after.studies if not study.is_done] == [
        "demo/digits linear vit_nano_patch4_32.mae 1"
    ]
    drive(after)
    assert {key: rows for key, rows in by_study(after).items() if "digits linear" not in key} == {
        key: rows for key, rows in known.items() if "digits linear" not in key
    }


def test_params_are_taken_only_from_studies_with_the_same_space(raw_spec: dict[str, Any], record_url: str) -> None:
    raw_spec |= {"tasks": ["vtab/dtd", "vtab/svhn", "vtab/kitti"], "methods": ["linear"]}
    raw_spec |= {"space": {"lr": raw_spec["space"]["lr"]}, "final": {"seeds": [42]}}
    raw_spec["search"]["trials"] = 3
    raw_spec["per"] = [
        # Another range: params of the others may lie outside of it.
        {"group": "vtab/svhn", "space": {"lr": {"type": "float", "low": 1.0, "high": 2.0}}},
        {"group": ["vtab/svhn", "vtab/kitti"], "search": {"transfer": 1}},
    ]
    sweep = new_sweep(parse_spec(raw_spec, "a test"), record_url)
    drive(sweep, workers=4)
    dtd, svhn, kitti = sweep.studies
    assert sweep.is_done and dtd.best is not None
    assert dtd.search_table.transferred_params is None, "it asks for none"
    assert svhn.search_table.transferred_params == []
    assert all(1.0 <= trial.params["lr"] <= 2.0 for trial in svhn.search_table.trials)
    assert kitti.search_table.trials[0].params == dtd.best.params


def test_report_and_page_show_the_ranges_that_held(raw_spec: dict[str, Any], record_url: str) -> None:
    sweep = new_sweep(parse_spec(raw_spec | {"per": [OF_LINEAR]}, "a test"), record_url)
    drive(sweep)
    blocks = build_sections(sweep.studies)
    (lines,) = (block.lines for block in blocks if isinstance(block, TextBlock) and block.title == "reproducibility")
    assert lines[0].startswith(
        "search: spt_deep: 4 trials, sampler tpe, pruner asha, seed 0; "
        "linear: 3 trials, sampler grid, pruner none, seed 7; scored on val"
    )

    text = io.StringIO()
    print_blocks(blocks, Console(file=text, width=200))
    row = next(line for line in text.getvalue().splitlines() if "3 trials, sampler grid, pruner none, seed 7" in line)
    assert "lr 0.001, 0.01 or 0.1; fixed: batch_size 16" in row

    for study in sweep.studies:
        page = render_study_page(study)
        assert ("lr 0.001, 0.01 or 0.1" in page) == (study.plan.method == "linear")
        assert ("lr 0.001 to 0.1 \\(log\\)" in page or "lr 0.001 to 0.1 (log)" in page) == (
            study.plan.method == "spt_deep"
        )


def test_plan_counts_the_trials_of_each_study_and_lists_what_is_searched(tmp_path: Path, sptune: Sptune) -> None:
    file = tmp_path / "two.yaml"
    file.write_text(
        "name: two\ntasks: [demo/digits]\nbackbones: [vit_nano_patch4_32.mae]\nmethods: [linear, full]\n"
        "fixed: {epochs: 2, warmup_epochs: 0}\nspace: {lr: {type: float, low: 0.001, high: 0.1}}\n"
        "search: {trials: 5}\nfinal: {seeds: [42]}\n"
        "per: [{method: full, fixed: {drop_path: 0.1}, search: {trials: 2}}]\n"
    )
    code, said, _ = sptune("plan", file, "--home", tmp_path / "home")
    assert code == 0
    assert "2 studies, 7 search trials, 2 final trials" in said
    (linear,) = (line.split() for line in said.splitlines() if line.split()[:2] == ["demo/digits", "linear"])
    (full,) = (line.split() for line in said.splitlines() if line.split()[:2] == ["demo/digits", "full"])
    assert (linear[2], full[2]) == ("5", "2")
    assert "what is searched" in said and "drop_path" in said


@pytest.mark.parametrize(("train_on", "images"), [("trainval", 1000), ("train", 800)])
def test_the_estimate_counts_the_images_that_final_trials_learn_from(
    raw_spec: dict[str, Any], tmp_path: Path, record_url: str, train_on: str, images: int
) -> None:
    raw_spec |= {"tasks": ["demo/digits"], "methods": ["spt_deep", "linear"], "per": [OF_LINEAR]}
    raw_spec["final"]["train_on"] = train_on
    studies = load_studies(parse_spec(raw_spec, "a test"), StudyDatabase(record_url))
    rate = Rate(seconds_per_image=0.01, trials=1, peak_gb=1.0, device_gb=4.0)
    rates = {f"{study.plan.method} vit_nano_patch4_32.mae cpu": rate for study in studies}
    model = CostModel(str(tmp_path / "throughput.json"), rates)
    for study, num_search in zip(studies, (4, 3), strict=True):
        estimate = model.estimate(study, str(tmp_path))
        assert estimate.trials == num_search + 2
        assert estimate.seconds == pytest.approx(3 * 0.01 * (num_search * 800 + 2 * images))
