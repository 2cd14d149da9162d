"""The two command lines: `python -m trainer` and `python -m trainer.pretrain`."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from trainer.__main__ import field_docs, main, parse
from trainer.catalog import BACKBONES, BUNDLED
from trainer.config import TrainConfig, field_types
from trainer.model.weights import find_weights
from trainer.pretrain import Recipe, pretrain, read_images
from trainer.training.checkpoint import load_state

TINY = ["--task", "demo/digits", "--epochs", "1", "--warmup-epochs", "0", "--train-size", "0.05", "--batch-size", "16"]


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.mark.parametrize(
    ("home", "data", "expected"),
    [
        (None, None, "sptune-home/data"),
        ("h", None, "h/data"),
        ("/h", None, "/h/data"),
        ("s3://bucket/h", None, "s3://bucket/h/data"),
        ("h", "d", "d"),
        ("", "", "sptune-home/data"),
    ],
)
def test_tasks_are_in_the_home_unless_a_task_store_is_named(
    home: str | None, data: str | None, expected: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in (("SPTUNE_HOME", home), ("SPTUNE_DATA", data)):
        if text is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, text)

    _, options = parse(["--task", "demo/digits", "--method", "linear", "--out", "out"])
    assert options.data == (expected if "://" in expected else str(tmp_path / expected))
    assert options.out == str(tmp_path / "out")


PROGRAM = """
import atexit, runpy, sys
atexit.register(lambda: print(*sys.modules, file=sys.stderr))
sys.argv[1:] = {arguments!r}
runpy.run_module("trainer", run_name="__main__", alter_sys=True)
"""
"""`python -m trainer`, which names the modules that it has imported when it ends."""


def test_one_training_runs_by_hand_prints_its_accuracy_and_needs_the_trainer_alone(
    data_root: str, tmp_path: Path
) -> None:
    arguments = [*TINY, "--method", "spt_shallow", "--prompt-length", "2", "--data", data_root, "--out", str(tmp_path)]
    done = python("-c", PROGRAM.format(arguments=[*arguments, "--device", "cpu"]))
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"val/accuracy 0\.\d{4} after 1 epoch \(trial [0-9a-f]{12}\)\n", done.stdout)
    assert {file.name for file in tmp_path.iterdir()} == {
        "checkpoint.pt",
        "prototypes.safetensors",
        "predictions.parquet",
        "prompt.safetensors",
        "card.json",
    }
    assert load_file(tmp_path / "prompt.safetensors")["prompt"].shape == (1, 2, 96)

    modules = {name.partition(".")[0] for name in done.stderr.split()}
    assert {"torch", "timm", "trainer"} <= modules
    assert not {"ray", "optuna", "mlflow", "orchestrator"} & modules


def test_mistakes_are_listed_all_at_once_without_a_traceback(tmp_path: Path) -> None:
    done = python(
        *["-m", "trainer", "--task", "demo/digit", "--method", "spt_deep", "--prompt-length", "65"],
        *["--lr", "nan", "--epochs", "10", "--data", str(tmp_path)],
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert sorted(done.stderr.splitlines()) == [
        "--lr: must be above 0 and at most 1e30, got nan.",
        "--prompt-length: 65 exceeds the 64 patch tokens of vit_nano_patch4_32.mae; mean_pool and max_pool need one "
        "token per prompt. Use prompt_init random or kmeans, or prompt_length <= 64.",
        "--task: 'demo/digit' is not a task; did you mean 'demo/digits'?",
        "--warmup-epochs: must be at least 0 and below epochs=10, got 10.",
    ]
    assert list(tmp_path.iterdir()) == []


def test_what_goes_wrong_on_the_way_is_one_sentence(
    data_root: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = [*TINY, "--method", "linear", "--data", data_root, "--device", "cpu", "--out", str(tmp_path)]
    assert main(run) == 0
    assert main([*run, "--seed", "43"]) == 1
    text = f"error: {tmp_path} holds a checkpoint of another config; choose another folder or remove it."
    assert capsys.readouterr().err.splitlines()[-1] == text


def test_every_field_is_an_option_with_its_docstring_as_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(["--help"])
    assert caught.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for name in field_types():
        assert f"--{name.replace('_', '-')} " in shown
        assert " ".join(field_docs()[name].split()) in shown
    for place in ("--data", "--weights", "--prototype-cache", "--out", "--device"):
        assert f"{place} " in shown
    given, options = parse(["--task", "t", "--method", "m", "--lr", "1e-4", "--prompt-length", "5", "--out", "o"])
    assert (given, options.out) == (
        {"task": "t", "method": "m", "lr": 1e-4, "prompt_length": 5},
        str(Path("o").absolute()),
    )


@pytest.mark.parametrize(
    ("option", "field", "value"),
    [
        (["--nmi"], "nmi", True),
        (["--init-images", "5"], "init_images", 5),
        (["--init-images", "0.5"], "init_images", 0.5),
        (["--init-images", "1"], "init_images", 1),
        (["--init-images", "1.0"], "init_images", 1.0),
        (["--init-task", "demo/shapes_loc"], "init_task", "demo/shapes_loc"),
        (["--ema-decay", "0.999"], "ema_decay", 0.999),
        (["--drop-path", "0"], "drop_path", 0.0),
        (["--image-size", "64"], "image_size", 64),
        (["--precision", "bf16"], "precision", "bf16"),
        (["--optimizer", "sgd"], "optimizer", "sgd"),
        (["--seed", "7"], "seed", 7),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_an_option_is_read_as_its_field_takes_it(option: list[str], field: str, value: object) -> None:
    given, _ = parse(["--task", "demo/digits", "--method", "spt_deep", "--prompt-length", "2", *option])
    assert given[field] == value and type(given[field]) is type(value)
    config = TrainConfig.from_params(given | {"prompt_init": "random"})
    assert getattr(config, field) == value and type(getattr(config, field)) is type(value)
    without, _ = parse(["--task", "demo/digits", "--method", "spt_deep"])
    assert field not in without, "what is not given is the config's to decide"


def test_data_and_weights_may_be_named_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = ["--task", "t", "--method", "m"]
    for name in ("SPTUNE_DATA", "SPTUNE_WEIGHTS"):
        monkeypatch.delenv(name, raising=False)
    _, options = parse(needed)
    assert (options.data, options.weights, options.prototype_cache) == (
        str(Path("sptune-home/data").absolute()),
        None,
        None,
    )
    monkeypatch.setenv("SPTUNE_DATA", "/tasks")
    monkeypatch.setenv("SPTUNE_WEIGHTS", "/weights")
    _, options = parse(needed)
    assert (options.data, options.weights) == ("/tasks", "/weights")
    _, options = parse([*needed, "--data", "here", "--weights", "there"])
    assert (options.data, options.weights) == (str(Path("here").absolute()), "there")


def test_nmi_and_the_number_of_images_reach_the_training(data_root: str, tmp_path: Path) -> None:
    run = [*TINY, "--method", "spt_deep", "--prompt-length", "2", "--data", data_root, "--device", "cpu", "--nmi"]
    starts = []
    for images in ("5", "0.5"):
        assert main([*run, "--init-images", images, "--out", str(tmp_path / images)]) == 0
        starts.append(load_file(tmp_path / images / "prototypes.safetensors")["prompt"])
        card = json.loads((tmp_path / images / "card.json").read_text())
        assert {f"nmi/layer_{layer:02d}" for layer in range(5)} <= card["metrics"].keys()
    assert not starts[0].equal(starts[1])


def test_a_prototype_cache_is_filled_by_one_run_and_used_by_the_next(data_root: str, tmp_path: Path) -> None:
    run = [*TINY, "--method", "spt_deep", "--prompt-length", "2", "--data", data_root, "--device", "cpu"]
    starts, seconds = [], []
    for lr in ("0.01", "0.02"):
        assert main([*run, "--lr", lr, "--prototype-cache", str(tmp_path / "cache"), "--out", str(tmp_path / lr)]) == 0
        starts.append(load_file(tmp_path / lr / "prototypes.safetensors")["prompt"])
        seconds.append(json.loads((tmp_path / lr / "card.json").read_text())["prototypes_seconds"])
        (kept,) = (tmp_path / "cache").iterdir()
        assert load_file(kept)["prompt"].equal(starts[0])
    assert starts[0].equal(starts[1])
    assert seconds[0] == seconds[1], "the second run was told what they cost the first"


def test_weights_that_do_not_fit_are_one_sentence(
    data_root: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = [*TINY, "--method", "linear", "--data", data_root, "--device", "cpu", "--out", str(tmp_path / "out")]
    (tmp_path / "a.bin").write_bytes(b"")
    (tmp_path / "a.safetensors").write_bytes(b"no weights")
    save_file({"norm.weight": torch.ones(96)}, tmp_path / "b.safetensors")
    for file, told in (
        ("nowhere", f"weights {tmp_path}/nowhere: there is no such file or folder."),
        ("a.bin", f"{tmp_path}/a.bin must end in .safetensors, .pth, .pth.tar, .npz."),
        (
            "a.safetensors",
            rf"{tmp_path}/a.safetensors is not a complete file of {re.escape(BUNDLED)}: .+\. Download it again\.",
        ),
        (
            "b.safetensors",
            f"{tmp_path}/b.safetensors does not fit a ViT of 5 layers, width 96, patches of 4: it lacks "
            rf"blocks\.0\.attn\.proj\.bias, .+ and \d+ more\.",
        ),
    ):
        assert main([*run, "--weights", str(tmp_path / file)]) == 1
        last = capsys.readouterr().err.splitlines()[-1]
        assert last == f"error: {told}" or re.fullmatch(f"error: {told}", last), last
        assert not (tmp_path / "out").exists(), "refused means untouched"
    # The bundled weights from another place are the bundled weights.
    bundled = find_weights(BACKBONES[BUNDLED], None).path
    assert bundled is not None
    shutil.copy(bundled, tmp_path / "mine.safetensors")
    assert main([*run, "--weights", str(tmp_path / "mine.safetensors")]) == 0
    assert main(run) == 0, "and a run may go on from them"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Eight images of all kinds and sizes in a folder and its sub-folder, and a file that is none."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for i, shape in enumerate([(40, 40, 3), (32, 32), (20, 50, 3), (9, 7, 4)] * 2):
        image = Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))
        image.save((folder, folder / "more")[i % 2] / f"{i}.PNG")
    (folder / "notes.txt").write_text("not an image")
    return folder


def test_images_for_pretraining_are_read_at_any_depth(photos: Path, tmp_path: Path) -> None:
    images, labels = read_images(photos, 32)
    assert images.shape == (8, 3, 32, 32) and images.dtype == torch.uint8 and labels is None
    # The one that has the size already, in grey, is read as it is.
    with Image.open(photos / "more/1.PNG") as grey:
        assert any(bool((image == torch.from_numpy(np.array(grey))).all()) for image in images)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no image") as caught:
        read_images(tmp_path / "empty", 32)
    assert str(caught.value) == (
        f"{tmp_path}/empty holds no image; give a Parquet file with a column `image`, or a folder of images."
    )


class CtrlC(io.StringIO):
    """A terminal at which somebody presses Ctrl-C as soon as it shows something."""

    def write(self, text: str) -> int:
        raise KeyboardInterrupt


def test_pretraining_refuses_a_folder_of_another_recipe_and_too_few_images(photos: Path, tmp_path: Path) -> None:
    images, _ = read_images(photos, 32)
    pretrain(images, Recipe(epochs=1, batch_size=8), tmp_path, "cpu")
    with pytest.raises(ValueError, match="checkpoint of another recipe; choose another --out or remove it"):
        pretrain(images, Recipe(epochs=2, batch_size=8), tmp_path, "cpu")
    with pytest.raises(ValueError, match=rf"{len(images)} images are fewer than a batch of 256; give more images"):
        pretrain(images, Recipe(epochs=1), tmp_path / "new", "cpu")


def test_pretraining_goes_on_from_its_checkpoint_to_the_same_bits(photos: Path, tmp_path: Path) -> None:
    images, _ = read_images(photos, 32)

    def run(folder: str) -> tuple[dict[str, torch.Tensor], list[float]]:
        vit, losses = pretrain(images, Recipe(epochs=2, batch_size=8), tmp_path / folder, "cpu")
        return vit.state_dict(), losses

    # Ctrl-C as the first epoch is told, which is when its checkpoint is whole.
    with contextlib.redirect_stdout(CtrlC()), pytest.raises(KeyboardInterrupt):
        run("in-two")
    state = load_state(tmp_path / "in-two" / "pretrain.pt")
    assert state is not None
    start = {name.removeprefix("vit."): value for name, value in state["model"].items() if name.startswith("vit.")}
    weights, losses = run("in-two")
    straight, straight_losses = run("at-once")
    assert losses == straight_losses and losses[:1] == state["losses"] and all(0 < loss < 10 for loss in losses)
    assert all(torch.equal(weights[name], straight[name]) for name in straight)
    changed = {name for name in start if not torch.equal(start[name], weights[name])}
    assert {"patch_embed.proj.weight", "cls_token", "norm.weight"} <= changed and "pos_embed" not in changed
    # Finished is finished: a third call trains nothing.
    again, same_losses = run("in-two")
    assert same_losses == losses and all(torch.equal(again[name], weights[name]) for name in weights)


AWKWARD = [
    "",
    "-1",
    "nan",
    "inf",
    "1e999",
    "9" * 5000,
    "x" * 5000,
    "é",
    "\udcff",
    "..",
    "%s",
    "[red]",
    "none",
    "5 per class",
]


@pytest.mark.parametrize("field", dataclasses.fields(TrainConfig), ids=lambda field: field.name)
def test_no_value_of_an_option_ends_in_a_stack_trace(
    field: dataclasses.Field[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    if field.type == "bool":
        return

    # A batch of 10^6 images is refused by itself, so nothing is trained whatever the other value is.
    valid = {"task": "demo/digits", "method": "linear", "batch-size": "1000000", "device": "cpu"}
    for value in AWKWARD:
        options = valid | {field.name.replace("_", "-"): value}
        try:
            status = main([f"--{name}={text}" for name, text in options.items()])
        except SystemExit as ended:
            status = int(ended.code or 0)
        assert status == 2, value[:50]
        told = capsys.readouterr().err
        assert told
        assert "Traceback" not in told


@pytest.mark.parametrize("device", ["", "tpu", "cuda:99", "cpu:x", "9" * 5000])
def test_a_device_that_torch_cannot_use_is_one_sentence(device: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, "--method", "linear", "--device", device]) == 2
    assert capsys.readouterr().err.startswith("--device: ")
