"""A spec that `sptune new` writes loads without problems, whatever it is for, and fits the machine."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from orchestrator.spec.loader import load_spec
from orchestrator.spec.new_spec import Machine, NewSpec
from orchestrator.spec.plan import plan_sweep
from orchestrator.spec.schema import SweepSpec
from orchestrator.spec.space import FloatRange
from trainer.catalog import BACKBONES, BUNDLED, METHODS
from trainer.config import unused_fields

LAPTOP = Machine(cores=2, memory=8 * 10**9)
SERVER = Machine(cores=64, memory=10**12, gpus=["NVIDIA H200", "NVIDIA H200"])
BASE = "vit_base_patch16_224.mae"


def written(
    folder: Path,
    file: str = "draft.yaml",
    machine: Machine = LAPTOP,
    num_images: int | None = 800,
    *,
    tasks: tuple[str, ...] = ("demo/digits",),
    backbones: tuple[str, ...] = (BUNDLED,),
    methods: tuple[str, ...] = ("spt_deep", "linear"),
    trials: int = 12,
) -> SweepSpec:
    new = NewSpec(tasks=tasks, backbones=backbones, methods=methods, trials=trials)
    path = folder / file
    path.write_text(new.text(file, machine, num_images), encoding="utf-8")
    spec = load_spec(path)
    assert (spec.tasks, spec.backbones, spec.methods) == ([*tasks], [*backbones], [*methods])
    assert {plan.search.trials for plan in plan_sweep(spec).studies} == {trials}
    return spec


# What is written for several methods depends on each pair of them.
@pytest.mark.parametrize("count", [1, 2, len(METHODS)])
def test_it_is_valid_for_every_choice_of_methods(tmp_path: Path, count: int) -> None:
    for methods in itertools.combinations(METHODS, count):
        spec = written(tmp_path, methods=methods)
        # Each study has what its method uses, and a space of its own where it trains weights in the network.
        for plan in plan_sweep(spec).studies:
            assert not set(plan.space) & unused_fields(plan.method)
            lr = plan.space["lr"]
            assert isinstance(lr, FloatRange)
            prompts_or_head = METHODS[plan.method].prompt_inits or plan.method == "linear"
            assert lr.high == (0.2 if prompts_or_head else 0.005 if plan.method in ("full", "partial_1") else 0.01)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_it_is_valid_for_every_backbone_with_all_methods_on_any_machine(tmp_path: Path, backbone: str) -> None:
    for machine in (LAPTOP, SERVER, Machine(cores=1, memory=10**8)):
        spec = written(tmp_path, machine=machine, backbones=(backbone,), methods=tuple(METHODS))
        assert 1 <= spec.resources.cpus <= machine.cores
        assert (spec.resources.gpus == "auto") is bool(machine.gpus)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("photos.yaml", "photos"),
        ("My Photos (1).YML", "my-photos-1"),
        ("on.yaml", "on"),
        ("null.yaml", "null"),
        ("2024.yaml", "2024"),
        ("2024-01-31.yaml", "2024-01-31"),
        ("1e5.yaml", "1e5"),
        ("012.yaml", "012"),
        ("0x1f.yaml", "0x1f"),
        ("1_000.yaml", "1_000"),
        ("photos.v2.yaml", "photos-v2"),
        ("Äpfel & Birnen.yaml", "pfel-birnen"),
        ("日本.yaml", "sweep"),
        ("'quoted': \"#\".yaml", "quoted"),
        ("two\nlines: [.yaml", "two-lines"),
        (f"{'x' * 200}.yaml", "x" * 128),
    ],
)
def test_its_name_follows_from_its_file(tmp_path: Path, file: str, name: str) -> None:
    assert written(tmp_path, file).name == name
    # The comment at the top stays a comment.
    head = (tmp_path / file).read_text().splitlines()[:4]
    assert all(line.startswith("# ") for line in head)
    assert head[3].startswith("# Run:    sptune launch ")


def test_it_is_valid_for_awkward_tasks_and_sizes(tmp_path: Path) -> None:
    own = ("own/2024", "own/été", "own/a.b-c", "own/0x1F", "own/日本", "own/1e5")
    for num_images, batch_size in ((None, 8), (1, 1), (3, 1), (20, 5), (10**6, 8)):
        assert written(tmp_path, tasks=own, num_images=num_images).fixed["batch_size"] == batch_size
    for tasks in (("natural", "vtab/dtd"), ("vtab", "fgvc", "demo"), ("fgvc/oxford_flowers",)):
        written(tmp_path, tasks=tasks, num_images=800, backbones=(BASE, BUNDLED))
    for trials in (1, 2, 100_000):
        written(tmp_path, trials=trials)


def test_it_is_sized_to_the_machine(tmp_path: Path) -> None:
    # A trial a core, while the memory suffices: a large network takes more of it.
    small = written(tmp_path, machine=Machine(cores=8, memory=32 * 10**9))
    assert (small.resources.cpus, small.search.max_concurrent) == (1, 4)
    large = written(tmp_path, machine=Machine(cores=8, memory=8 * 10**9), backbones=(BASE,), methods=("full",))
    assert (large.resources.cpus, large.search.max_concurrent) == (8, 1)

    # With GPUs: one a trial, longer trainings, and the cores divided among them.
    spec = written(tmp_path, machine=SERVER, backbones=(BASE,))
    assert (spec.resources.gpus, spec.resources.cpus, spec.search.max_concurrent) == ("auto", 4, 2)
    assert (spec.fixed["epochs"], spec.fixed["precision"]) == (100, "bf16")
    assert "2 GPUs (NVIDIA H200)" in (tmp_path / "draft.yaml").read_text()


def test_every_key_is_explained(tmp_path: Path) -> None:
    written(tmp_path, methods=tuple(METHODS))
    blocks = (tmp_path / "draft.yaml").read_text().split("\n\n")
    assert all(block.startswith("#") for block in blocks)
    assert blocks[0].endswith("\nname: draft")
    for block in blocks:
        if block.startswith(("# The same", "# What each")):
            assert all("  # " in line for line in block.splitlines()[2:]), block
