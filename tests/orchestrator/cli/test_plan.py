"""`sptune plan` is the whole check, and `launch` makes the same before it starts or writes anything."""

from __future__ import annotations

import copy
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.errors import SpecError
from orchestrator.launch import Rerun, launch, resume
from tests.orchestrator.conftest import Sptune
from trainer.catalog import BACKBONES, BUNDLED
from trainer.data.task_store import Example, write_task
from trainer.machine import usable_cores
from trainer.model.weights import find_weights

TINY: dict[str, Any] = {
    "name": "tiny",
    "tasks": ["own/five"],
    "backbones": [BUNDLED],
    "methods": ["linear"],
    "fixed": {"epochs": 1, "warmup_epochs": 0, "batch_size": 2},
    "space": {"lr": {"type": "float", "low": 0.1, "high": 1.0}},
    "search": {"trials": 1, "pruner": {"type": "none"}},
    "final": {"seeds": [42]},
}
HUB = ["vit_tiny_patch16_224.augreg_in21k"]
WAY_TO_WEIGHTS = (
    "Download it where there is a network and name the file, or a folder that holds "
    "vit_tiny_patch16_224.augreg_in21k.safetensors, with --weights or SPTUNE_WEIGHTS; or copy that machine's Hugging "
)
WAY_TO_MACHINE = "Lower `resources` in the spec, or name a Ray cluster with --address or `cluster.address`."

PROBLEMS: dict[str, tuple[dict[str, Any], str]] = {
    "a task": (
        {"tasks": ["own/five", "vtab/dtd", "own/none"]},
        "tasks: vtab/dtd, own/none: not in the task store {data}; `sptune data list` says where to get what is missing",
    ),
    "a misspelt task of one's own": (
        {"tasks": ["own/fife"]},
        "tasks: own/fife: not in the task store {data}; `sptune data import FOLDER --task own/fife` imports it. Did "
        "you mean own/five?",
    ),
    "a task of prototypes": (
        {"methods": ["spt_deep"],
         "fixed": TINY["fixed"] | {"prompt_length": 2, "prompt_init": "random", "init_task": "vtab/svhn"}},
        "tasks: vtab/svhn: not in the task store {data}; `sptune data list` says",
    ),
    "weights on the hub": (
        {"backbones": HUB},
        "backbones: vit_tiny_patch16_224.augreg_in21k is not on this machine, and timm's hub cannot be reached "
        f"(Connection refused). {WAY_TO_WEIGHTS}",
    ),
    "weights that nobody has": (
        {"backbones": ["vit_large_patch16_224.moco_v3"]},
        "backbones: vit_large_patch16_224.moco_v3 has no weights on timm's hub. Name a file, or a folder that holds",
    ),
    "cores": (
        {"resources": {"cpus": 9_999}},
        f"resources.cpus: a trial of {BUNDLED} asks for 9,999 CPUs, and this machine has {usable_cores()}. "
        f"{WAY_TO_MACHINE}",
    ),
    "a GPU": (
        {"resources": {"gpus": 0.5}},
        f"resources.gpus: a trial of {BUNDLED} asks for 0.5 GPUs, and torch sees none on this machine. "
        f"{WAY_TO_MACHINE}",
    ),
    "images for a batch": (
        {"fixed": TINY["fixed"] | {"batch_size": 41}},
        "fixed.batch_size: 41 exceeds the 40 images that own/five has at train_size=1.0. Use a smaller one.",
    ),
    "images for the largest batch of a search": (
        {"space": TINY["space"] | {"batch_size": {"type": "choice", "values": [64, 2]}},
         "fixed": {"epochs": 1, "warmup_epochs": 0}},
        "space.batch_size: 64 exceeds the 40 images that own/five has at train_size=1.0. Use a smaller one.",
    ),
    # The first task alone has enough.
    "images of another task": (
        {"tasks": ["own/many", "demo/digits"], "space": TINY["space"] | {
            "batch_size": {"type": "choice", "values": [2, 801]}}, "fixed": {"epochs": 1, "warmup_epochs": 0}},
        "space.batch_size: 801 exceeds the 800 images that demo/digits has at train_size=1.0.",
    ),
    # Of eight images of a class, the share takes one.
    "images of a share": (
        {"train_sizes": [0.15], "fixed": TINY["fixed"] | {"batch_size": 6}},
        "fixed.batch_size: 6 exceeds the 5 images that own/five has at train_size=0.15. Use a smaller one.",
    ),
    "images for a number": (
        {"train_sizes": [41]},
        "train_sizes: 41 images are more than the 40 of own/five.",
    ),
    "images for a number of each class": (
        {"train_sizes": [{"per_class": 9}]},
        "train_sizes: 45 images are more than the 40 of own/five.",
    ),
    "images for a share": (
        {"train_sizes": [0.1]},
        "train_sizes: 0.1 of the 40 train images of own/five is 4, fewer than its 5 classes, and each needs at least",
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a GPU, whose hub refuses connections."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.fixture
def data(tmp_path: Path, sptune: Sptune, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A task store with tasks of five classes and 40 or 900 images, none of which can be decoded."""
    folder = tmp_path / "store"
    for task, num_train in (("own/five", 40), ("own/many", 900)):
        counts = {"train": num_train, "val": 10, "test": 10}
        splits = {
            split: [Example(key=f"{split}{i}", label=i % 5, image=b"") for i in range(count)]
            for split, count in counts.items()
        }
        write_task(str(folder), task, splits, source="here", class_names=[*"abcde"], protocol="published")
    monkeypatch.setenv("SPTUNE_DATA", str(folder))
    return folder


def write_spec(folder: Path, **changes: Any) -> Path:
    file = folder / "tiny.yaml"
    file.write_text(yaml.safe_dump(copy.deepcopy(TINY) | changes))
    return file


def indented(text: str) -> list[str]:
    """The sentences of a list of problems."""
    return re.findall(r"^  (?:\S+): .*$|^  home .*$", text.partition(" problem")[2], flags=re.MULTILINE)


@pytest.mark.parametrize("kind", PROBLEMS)
def test_plan_names_what_is_missing_as_launch_does_and_nothing_is_written(
    kind: str, data: Path, tmp_path: Path, sptune: Sptune
) -> None:
    changes, sentence = PROBLEMS[kind]
    file = write_spec(tmp_path, **changes)
    home = tmp_path / "home"

    status, out, err = sptune("plan", file, "--home", home)
    assert (status, err) == (1, "")
    assert "search trial" in out, "the table comes first"
    assert f"{file} has 1 problem:\n  {sentence.format(data=data)}" in out
    status, out_json, _ = sptune("plan", file, "--home", home, "--json")
    [problem] = json.loads(out_json)["problems"]
    assert (status, f"  {problem}") == (1, out.splitlines()[-1])

    status, said, err = sptune("launch", file, "--home", home)
    assert (status, said, err) == (2, "", f"error: {file} has 1 problem:\n  {problem}\n")
    assert not home.exists()


def test_all_that_is_missing_is_told_in_one_answer(data: Path, tmp_path: Path, sptune: Sptune) -> None:
    everything = {
        "tasks": ["own/five", "vtab/svhn"],
        "backbones": [*HUB, "vit_large_patch16_224.moco_v3"],
        "fixed": TINY["fixed"] | {"batch_size": 41},
        "train_sizes": [41, 1.0],
        "resources": {"cpus": 9_999, "gpus": 2},
    }
    file = write_spec(tmp_path, **everything)
    (tmp_path / "file").write_text("")
    status, out, _ = sptune("plan", file, "--home", tmp_path / "file/home")
    keys = [line.split(":")[0].strip() for line in indented(out) if not line.startswith("  home")]
    assert status == 1 and f"  home {tmp_path}/file/home cannot be written" in out
    assert {*keys} == {"tasks", "backbones", "fixed.batch_size", "train_sizes", "resources.cpus", "resources.gpus"}
    status, _, err = sptune("launch", file, "--home", tmp_path / "file/home")
    assert status == 2 and indented(err) == indented(out)

    # With mistakes of the spec, which then has no plan, too.
    file.write_text(file.read_text() + "trails: 3\n")
    for command in ("plan", "launch"):
        status, out, err = sptune(command, file, "--home", tmp_path / "home")
        assert (status, out) == (2, "")
        assert "trails" in err and "tasks: vtab/svhn: not in the task store" in err and "moco_v3 has no weights" in err


def test_a_spec_that_lacks_nothing_has_the_status_0(data: Path, tmp_path: Path, sptune: Sptune) -> None:
    file = write_spec(tmp_path)
    status, out, _ = sptune("plan", file, "--home", tmp_path / "home")
    assert status == 0 and "problem" not in out
    shown = json.loads(sptune("plan", file, "--home", tmp_path / "home", "--json")[1])
    assert (shown["problems"], shown["downloads"]) == ([], [])


def test_of_a_cluster_only_what_the_nodes_share_is_checked(data: Path, tmp_path: Path, sptune: Sptune) -> None:
    file = write_spec(tmp_path, backbones=HUB, tasks=["own/none"], resources={"cpus": 9_999, "gpus": 2})
    status, out, _ = sptune("plan", file, "--home", tmp_path / "home", "--address", "auto")
    assert status == 1 and [line.split(":")[0].strip() for line in indented(out)] == ["tasks"]


def test_trials_without_ray_may_ask_for_more_cores_than_there_are(data: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError) as refused:
        launch(TINY | {"resources": {"cpus": 9_999, "gpus": 1}}, home=str(tmp_path / "home"), driver="inline")
    assert [problem.split(":")[0] for problem in refused.value.problems] == ["resources.gpus"]


def test_studies_that_have_nothing_to_run_lack_nothing(store: Path, tmp_path: Path, sptune: Sptune) -> None:
    weights = tmp_path / "weights"
    weights.mkdir()
    bundled = find_weights(BACKBONES[BUNDLED], None).path
    assert bundled is not None
    shutil.copy(bundled, weights / f"{BUNDLED}.safetensors")
    spec = TINY | {"tasks": ["demo/digits"], "train_sizes": [20]}
    home = str(tmp_path / "home")
    assert launch(spec, home=home, driver="inline", weights=str(weights)).is_done

    shutil.rmtree(weights)
    assert launch(spec, home=home, driver="inline", weights=str(weights)).was_finished
    assert resume("tiny", home=home, driver="inline", weights=str(weights)).was_finished
    file = write_spec(tmp_path, **{key: spec[key] for key in ("tasks", "train_sizes")})
    assert sptune("plan", file, "--home", home, "--weights", weights)[0] == 0

    # What is new in the spec, or runs again, needs them.
    more = {"train_sizes": [20, 30]}
    problem = f"backbones: weights {weights}: there is no such file or folder."
    with pytest.raises(SpecError, match="no such file or folder") as refused:
        launch(spec | more, home=home, driver="inline", weights=str(weights))
    assert refused.value.problems == [problem]
    with pytest.raises(SpecError, match="no such file or folder"):
        resume("tiny", home=home, driver="inline", weights=str(weights), rerun=Rerun(lambda _: True))
    status, out, _ = sptune("plan", write_spec(tmp_path, **spec | more), "--home", home, "--weights", weights)
    assert status == 1 and indented(out) == [f"  {problem}"]


def test_plan_says_that_the_bundled_network_sees_few_pixels_of_a_photograph(
    data: Path, tmp_path: Path, sptune: Sptune
) -> None:
    note = f"note: {BUNDLED}, which ships with sptune, sees 32x32 pixels of an image. For photographs use a larger "
    way_out = "network, such as vit_base_patch16_224.mae: `backbones` in the spec, `--backbone` of `sptune new`."
    for changes, is_small in (
        ({}, True),
        ({"fixed": TINY["fixed"] | {"image_size": 64}}, False),
        ({"tasks": ["demo/digits"]}, False),
        ({"backbones": ["vit_base_patch16_224.mae"]}, False),
    ):
        out = sptune("plan", write_spec(tmp_path, **changes), "--home", tmp_path / "home")[1]
        assert (note + way_out in out) == ("32x32" in out) == is_small
