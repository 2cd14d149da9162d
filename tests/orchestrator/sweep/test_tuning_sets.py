"""Parts of the labels and their draws in a sweep: what a spec may ask for, what runs, and what an edit may change."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.drivers.context import TrialContext
from orchestrator.drivers.inline import InlineDriver
from orchestrator.environment.home import home_at
from orchestrator.environment.requirements import check_requirements
from orchestrator.errors import ConflictError, SpecError
from orchestrator.report.sections import build_sections
from orchestrator.spec.loader import parse_spec
from orchestrator.spec.plan import StudyPlan, plan_sweep
from orchestrator.spec.schema import Search
from orchestrator.study.storage.database import StudyDatabase
from orchestrator.study.study import load_studies
from orchestrator.sweep.cost_model import num_images
from tests.orchestrator.conftest import Sptune, drive, new_sweep
from tests.orchestrator.report.reports import small, table_block
from trainer.catalog import OWN
from trainer.data.split import count_labels
from trainer.data.subsets import part_name
from trainer.data.task_store import Example, write_task

TINY: dict[str, Any] = {
    "name": "tiny",
    "tasks": ["demo/digits"],
    "backbones": ["vit_nano_patch4_32.mae"],
    "methods": ["linear"],
    "train_sizes": [0.1, 0.2],
    "draws": 2,
    "fixed": {"epochs": 1, "warmup_epochs": 0},
    "space": {"lr": {"type": "float", "low": 0.01, "high": 0.1, "log": True}},
    "search": {"trials": 1},
    "final": {"seeds": [42]},
}


def problems_of(**changes: Any) -> str:
    with pytest.raises(SpecError) as refused:
        parse_spec(small(space={"lr": small()["space"]["lr"]}, methods=["linear"], **changes), "a test")
    return str(refused.value)


@pytest.mark.parametrize(
    ("task", "share", "sentence"),
    [
        (
            "vtab/sun397",
            0.1,
            "0.1 of the 800 train images of vtab/sun397 is 80, fewer than its 397 classes, and each needs at "
            "least one. Use a share of at least 0.497, a number of images such as 397, a number of each class, or "
            "val_size full, which takes one image of each class.",
        ),
        ("vtab/cifar100", 0.12, "0.12 of the 800 train images of vtab/cifar100 is 96, fewer than its 100 classes"),
    ],
)
def test_a_share_with_fewer_images_than_classes_is_refused(task: str, share: float, sentence: str) -> None:
    assert sentence in problems_of(tasks=["vtab/dtd", task], train_sizes=[1.0, share])


def test_a_share_that_its_classes_fill_is_accepted() -> None:
    # The shares that the sentence above names, and one that is exactly an image of each class.
    for task, share in (("vtab/sun397", 0.497), ("vtab/cifar100", 0.125), ("fgvc/oxford_flowers", 0.1)):
        assert parse_spec(small(tasks=[task], train_sizes=[share]), "a test").train_sizes == [share]


def test_with_full_val_every_share_is_accepted_as_before() -> None:
    spec = parse_spec(small(tasks=["vtab/sun397"], train_sizes=[0.01, 0.2], val_size="full"), "a test")
    assert spec.train_sizes == [0.01, 0.2]


def test_a_share_of_an_own_task_is_compared_with_its_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPTUNE_DATA", raising=False)
    counts = {"train": 40, "val": 10, "test": 10}
    splits = {
        split: [Example(key=f"{split}{i}", label=i % 5, image=b"") for i in range(count)]
        for split, count in counts.items()
    }
    home = home_at(str(tmp_path))
    write_task(home.data_root, f"{OWN}five", splits, source="here", class_names=[*"abcde"], protocol="published")

    def missing(**changes: Any) -> list[str]:
        raw = TINY | {"tasks": [f"{OWN}five"], "fixed": TINY["fixed"] | {"batch_size": 2}} | changes
        spec = parse_spec(raw, "a test")
        return check_requirements(spec, plan_sweep(spec).studies, home, None, address=None).problems

    assert missing(train_sizes=[0.1, 0.125, 1.0]) == [
        "train_sizes: 0.1 of the 40 train images of own/five is 4, fewer than its 5 classes, and each needs at "
        "least one. Use a share of at least 0.125, a number of images such as 5, a number of each class, or val_size "
        "full, which takes one image of each class."
    ]
    assert missing(train_sizes=[0.1, 1.0], val_size="full") == missing(train_sizes=[0.125]) == []


def test_a_sweep_of_0_1_0_with_parts_goes_on_with_all_of_val_and_refuses_the_new_default(
    raw_study: dict[str, Any], record_url: str
) -> None:
    raw_study |= {"train_sizes": [0.5, 1.0]}
    raw_study["search"] |= {"trials": 3}
    sweep = new_sweep(parse_spec(raw_study | {"val_size": "full"}, "before"), record_url)
    drive(sweep, events=8)
    sweep.close()

    # The same file again, which had no val_size and so gets today's default.
    with pytest.raises(ConflictError) as refused:
        new_sweep(parse_spec(raw_study, "the file"), record_url)
    cure = "to go on with these trials, write `val_size: full` in the spec"
    study = "demo/digits spt_deep vit_nano_patch4_32.mae train_size 0.5"
    assert f"val_size was full, is same; {cure} (in {study}" in str(refused.value)

    # Version 0.1.0 recorded no val_size.
    database = StudyDatabase(record_url)
    recorded = {name: value for name, value in database.sweeps()["small"].items() if name != "val_size"}
    database.save_sweep("small", recorded)

    # `sptune resume` reads the recorded spec.
    resumed = new_sweep(parse_spec(database.sweeps()["small"], "the record"), record_url)
    drive(resumed)
    assert resumed.is_done
    assert {trial.config.val_size for study in resumed.studies for trial in study.trials} == {"full"}


def test_all_images_alone_are_no_conflict(raw_study: dict[str, Any], record_url: str) -> None:
    raw_study["search"] |= {"trials": 3}
    sweep = new_sweep(parse_spec(raw_study | {"val_size": "full"}, "before"), record_url)
    drive(sweep)
    sweep.close()
    again = new_sweep(parse_spec(raw_study, "the file"), record_url)
    assert again.is_done


def test_more_draws_run_only_the_new_ones(raw_study: dict[str, Any], record_url: str) -> None:
    raw_study |= {"train_sizes": [0.5]}
    raw_study["search"] |= {"trials": 3}
    sweep = new_sweep(parse_spec(raw_study, "before"), record_url)
    drive(sweep)
    done = {trial.trial_id for study in sweep.studies for trial in study.trials}
    sweep.close()

    more = new_sweep(parse_spec(raw_study | {"draws": 3}, "after"), record_url)
    assert [study.is_done for study in more.studies] == [True, False, False]
    drive(more)
    assert more.is_done
    assert {trial.trial_id for trial in more.studies[0].trials} == done
    more.close()


def test_a_search_takes_no_params_from_another_draw(raw_spec: dict[str, Any], record_url: str) -> None:
    raw_spec |= {"train_sizes": [0.5], "draws": 2, "methods": ["spt_deep"]}
    raw_spec["search"] |= {"transfer": 2}
    spec = parse_spec(raw_spec, "a test")
    for study in load_studies(spec, StudyDatabase(record_url)):
        assert {source.plan.draw for source in study._sources} <= {study.plan.draw}


@pytest.mark.parametrize(("size", "search", "final"), [(0.1, 80, 100), (100, 100, 125), ("5 per class", 50, 62.5)])
def test_the_cost_counts_the_same_share_of_val(
    tmp_path: Path, size: float | int | str, search: int, final: float
) -> None:
    plan = StudyPlan(
        task="demo/digits", backbone="vit_nano_patch4_32.mae", method="linear", train_size=size, fixed={}, space={},
        search=Search(trials=1), val_size="same",
    )  # fmt: skip
    assert num_images(plan, ("train",), str(tmp_path)) == search
    assert num_images(plan, ("train", "val"), str(tmp_path)) == final


def test_plan_and_replay_count_draws(tmp_path: Path, sptune: Sptune) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(TINY | {"train_sizes": [0.1, {"per_class": 5}, 1.0], "draws": 3}))
    code, said, complaint = sptune("plan", file, "--home", tmp_path / "home")
    assert (code, complaint) == (0, "")
    assert "7 studies, 7 search trials, 7 final trials" in said
    assert [line.split()[2:4] for line in said.splitlines() if line.startswith("demo/digits")][:3] == [
        ["0.1", "0"], ["0.1", "1"], ["0.1", "2"]
    ]  # fmt: skip

    code, said, complaint = sptune("replay", file, "--home", tmp_path / "home", "--workers", "2")
    assert (code, complaint) == (0, "")
    assert "14 trials in " in said
    assert "draw" in said


def test_a_sweep_of_two_draws_from_its_first_trial_to_its_report(store: Path, tmp_path: Path) -> None:
    folder = str(tmp_path)
    context = TrialContext(
        data_root=str(store), trials_folder=folder, prototype_cache=folder, weights=None, cpus=1, gpus=0
    )
    spec = parse_spec(TINY, "a test")
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    sweep = new_sweep(spec, url)
    InlineDriver(context).run(sweep)
    assert sweep.is_done
    sweep.close()

    again = new_sweep(spec, url)
    assert again.is_done
    assert again.next_trial() is None, "resumed, it runs nothing"
    again.close()

    studies = load_studies(spec, StudyDatabase(url))
    assert [(study.plan.train_size, study.plan.draw) for study in studies] == [(0.1, 0), (0.1, 1), (0.2, 0), (0.2, 1)]
    for study in studies:
        size, draw = study.plan.train_size, study.plan.draw
        # The store has 60 images of val. Search and final trials have used the same labels.
        expected = {0.1: 80 + 10, 0.2: 159 + 12}[float(size)]
        assert count_labels(str(store), "demo/digits", "trainval", size, "same", draw) == expected
        assert [trial.last_metrics["train/labels"] for trial in study.trials] == [expected, expected]
        # They are the images of this draw, and of its part of val.
        search, final = study.trials
        assert search.provenance["scored_on"].split("/")[1:3] == ["val", part_name("val", size, "same", draw)]
        assert final.provenance["learnt_from"].split("/")[1:3] == [
            "trainval",
            part_name("trainval", size, "same", draw),
        ]

    table = table_block(build_sections(studies), "accuracy over tuning-set size")
    assert table.header == ("method", "labels", "test %", "95 % interval over draws")
    assert [row[1].text for row in table.rows] == ["90", "171"]

    # Of two draws: the mean, and half their difference times Student's t with one degree of freedom.
    scores = [100 * trial.score for study in studies[:2] for trial in study.requested_final_trials if trial.score]
    mean, half_width = sum(scores) / 2, 12.706204736 * abs(scores[0] - scores[1]) / 2
    low, high = (float(end) for end in table.rows[0][3].text.split(" to "))
    assert math.isclose(low, max(0.0, mean - half_width), abs_tol=0.051)
    assert math.isclose(high, min(100.0, mean + half_width), abs_tol=0.051)
