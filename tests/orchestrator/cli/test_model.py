"""`sptune backbones`, `sptune predict` and `--weights`: what a sweep starts from, and what it leaves, put to use."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import trainer
from orchestrator.environment.home import home_at
from tests.orchestrator.cli.test_status import documented, paths
from tests.orchestrator.conftest import Sptune
from trainer.catalog import BACKBONES, BUNDLED
from trainer.config import TrainConfig
from trainer.data.tasks import open_task
from trainer.model.weights import find_weights
from trainer.training.loop import train

TINY: dict[str, Any] = {
    "name": "tiny",
    "tasks": ["demo/digits"],
    "backbones": [BUNDLED],
    "methods": ["linear"],
    "fixed": {"epochs": 1, "warmup_epochs": 0},
    "search": {"trials": 1},
    "final": {"seeds": [42]},
}
MOCO_PROBLEM = (
    "backbones: vit_base_patch16_224.moco_v3 has no weights on timm's hub{among}. Name a file, or a folder that holds "
    "vit-b-300ep.pth.tar or vit_base_patch16_224.moco_v3.safetensors, with --weights or SPTUNE_WEIGHTS."
)


GIVE = "give the name of a sweep, a trial's id, or the folder it is in. Another home is named with --home.\n"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with the trials of two sweeps, five of them finished, one of them in both, and one under way."""
    home = home_at(str(tmp_path_factory.mktemp("home")))
    open_task(home.data_root, "demo/digits")
    val = Path(home.data_root, "demo/digits/val.parquet")
    pq.write_table(pq.read_table(val)[:20], val)
    for seed in range(6):
        config = config_of(seed)
        folder = f"{home.trials_folder('one' if seed else 'two')}/{config.fingerprint()}"
        run = train(config, data_root=home.data_root, folder=folder)
        next(run)
        if seed < 5:
            list(run)
    shutil.copytree(
        f"{home.trials_folder('two')}/{config_of(0).fingerprint()}",
        f"{home.trials_folder('one')}/{config_of(0).fingerprint()}",
    )
    return Path(home.root)


def config_of(seed: int) -> TrainConfig:
    params = {"task": "demo/digits", "method": "linear", "epochs": 2, "warmup_epochs": 0, "train_size": 0.1}
    return TrainConfig.from_params(params | {"seed": seed})


@pytest.fixture(scope="module")
def images(home: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three images of val as files."""
    folder = tmp_path_factory.mktemp("images")
    rows = pq.read_table(home / "data/demo/digits/val.parquet").to_pylist()[:3]
    for row in rows:
        (folder / f"{row['key']}.png").write_bytes(row["image"])
    return [folder / f"{row['key']}.png" for row in rows]


def test_a_trial_classifies_images_by_its_id_its_beginning_or_its_folder(
    home: Path, images: list[Path], sptune: Sptune, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = config_of(1).fingerprint()
    folder = home / "sweeps/one/trials" / trial
    beginning = next(trial[:n] for n in range(1, 13) if sum(t.startswith(trial[:n]) for t in finished_trials()) == 1)
    code, by_id, _ = sptune("predict", trial, *images, "--home", home)
    assert code == 0
    for image, line, found in zip(images, by_id.splitlines(), trainer.load(folder).classify(images), strict=True):
        first, second, third, *_ = (f"{each.class_name} {100 * each.confidence:.1f} %" for each in found)
        assert line == f"{image}: {first}  {second}  {third}"
    assert sptune("predict", beginning, *images, "--home", home) == (0, by_id, "")
    # A folder needs no home: it may have come by mail.
    monkeypatch.chdir(folder.parent)
    for place in (folder, trial):
        assert sptune("predict", place, *images, "--home", home / "nowhere") == (0, by_id, "")
    assert sptune("predict", folder.as_uri(), *images, "--home", home / "nowhere") == (0, by_id, "")


@pytest.mark.parametrize("name", ["card.json", "prompt.safetensors"])
def test_a_damaged_trial_is_named_with_the_command_that_runs_it_again(
    name: str, home: Path, images: list[Path], sptune: Sptune, tmp_path: Path
) -> None:
    folder = tmp_path / "trial"
    shutil.copytree(home / "sweeps/one/trials" / config_of(1).fingerprint(), folder)
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 16
    (folder / name).write_bytes(data)
    code, out, err = sptune("predict", folder, *images, "--home", home)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {folder}/{name} is damaged: its checksum is wrong")
    assert "Run it again: with `sptune resume SWEEP --trial TRIAL`" in err and err.count("\n") == 1


def test_as_many_classes_are_shown_as_are_asked_for(home: Path, images: list[Path], sptune: Sptune) -> None:
    trial = config_of(1).fingerprint()
    for top, shown in ((1, 1), (4, 4), (99, 10)):
        _, out, _ = sptune("predict", trial, images[0], "--home", home, "--top", str(top))
        assert out.count(" %") == shown
    code, _, err = sptune("predict", trial, images[0], "--home", home, "--top", "0")
    assert (code, "--top" in err) == (2, True)


def test_a_config_that_two_sweeps_trained_is_one_trial(home: Path, images: list[Path], sptune: Sptune) -> None:
    assert len(list(home.glob(f"sweeps/*/trials/{config_of(0).fingerprint()}"))) == 2
    assert sptune("predict", config_of(0).fingerprint(), images[0], "--home", home)[0] == 0


def finished_trials() -> list[str]:
    return sorted(config_of(seed).fingerprint() for seed in range(5))


def test_a_beginning_of_several_trials_is_refused_with_them(home: Path, images: list[Path], sptune: Sptune) -> None:
    # Every id begins with nothing.
    code, out, err = sptune("predict", "", *images, "--home", home)
    assert (code, out) == (2, "")
    assert err == f"error: '' is the beginning of 5 trials: {', '.join(finished_trials()[:4])}... Give more letters.\n"


@pytest.mark.parametrize(
    "trial",
    ["zzz", "../..", "a/b", "[", "/no/such/folder", "*", "**"],
)
def test_a_trial_that_is_not_there_is_refused(home: Path, images: list[Path], sptune: Sptune, trial: str) -> None:
    code, out, err = sptune("predict", trial, *images, "--home", home)
    assert (code, out) == (2, "")
    assert err == f"error: {home} has neither a sweep nor a finished trial {trial!r}; " + GIVE


def test_a_trial_that_is_not_finished_is_refused(home: Path, images: list[Path], sptune: Sptune) -> None:
    trial = config_of(5).fingerprint()
    folder = home / "sweeps/one/trials" / trial
    assert (folder / "checkpoint.pt").exists()
    for name in (trial, str(folder), folder.as_uri()):
        code, out, err = sptune("predict", name, *images, "--home", home)
        assert (code, out) == (2, "")
        assert err == f"error: {home} has neither a sweep nor a finished trial {name!r}; " + GIVE


def test_images_that_are_missing_are_all_named_before_anything_is_loaded(
    images: list[Path], sptune: Sptune, tmp_path: Path
) -> None:
    (tmp_path / "photo.png").write_bytes(b"")
    code, out, err = sptune("predict", "any", images[0], tmp_path / "foto.png", tmp_path / "b", "--home", tmp_path)
    assert (code, out) == (2, "")
    assert err.splitlines() == [
        f"error: {tmp_path / 'foto.png'}: there is no such file or folder; did you mean {tmp_path / 'photo.png'}?",
        f"{tmp_path / 'b'}: there is no such file or folder.",
    ]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("{empty}",), "there is no image in {empty}."),
        (("{image}", "--out", "table.txt"), "--out must end in .csv or .parquet, got 'table.txt'."),
        (("{image}", "--out", "{empty}/no/table.csv"), "--out {empty}/no/table.csv: there is no folder {empty}/no."),
        (
            ("{image}", "--json", "--out", "t.csv"),
            "--json prints the classes and --out writes them: give one of the two.",
        ),
    ],
)
def test_a_mistake_of_predict_is_found_before_anything_is_loaded(
    arguments: tuple[str, ...], problem: str, images: list[Path], sptune: Sptune, tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    names = {"empty": tmp_path, "image": images[0]}
    code, out, err = sptune("predict", "any", *(part.format(**names) for part in arguments), "--home", tmp_path)
    assert (code, out, err) == (2, "", f"error: {problem.format(**names)}\n")


def test_folders_are_classified_into_a_table(
    home: Path, images: list[Path], sptune: Sptune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = config_of(1).fingerprint()
    photos = tmp_path / "photos"
    (photos / "[deep] 字").mkdir(parents=True)
    # By their names, in any folder; what systems add is none of ours.
    copies = [photos / "[deep] 字" / "b.png", photos / "c.PNG", photos / "z.png"]
    for image, copy in zip(images, copies, strict=True):
        shutil.copy(image, copy)
    (photos / "notes.txt").write_text("no image")
    (photos / ".DS_Store").write_text("of a system")

    note = "note: left out 1 file that is no image by name\n"
    code, printed, err = sptune("predict", trial, photos, "--home", home)
    assert (code, err, printed.endswith(note)) == (0, "", True)
    assert [line.partition(": ")[0] for line in printed.splitlines()[:-1]] == [*map(str, copies)]

    for name in ("table.csv", "table.parquet"):
        out = tmp_path / name
        code, said, err = sptune("predict", trial, photos, images[0], "--home", home, "--top", "2", "--out", out)
        assert (code, said, err) == (0, f"4 images in {out}\n{note}", "")
    table = pq.read_table(tmp_path / "table.parquet").to_pylist()
    with (tmp_path / "table.csv").open(encoding="utf-8", newline="") as file:
        rows = [*csv.DictReader(file)]
    assert [{name: str(value) for name, value in row.items()} for row in table] == rows

    folder = home / "sweeps/one/trials" / trial
    expected = [
        {"image": str(image), "rank": rank, "class_name": each.class_name, "confidence": each.confidence}
        for image, found in zip(
            [*copies, images[0]], trainer.load(folder).classify([*images, images[0]], 2), strict=True
        )
        for rank, each in enumerate(found, start=1)
    ]
    assert table == expected

    # A spreadsheet would compute this name.
    shutil.copy(images[0], photos / "=1+1.png")
    monkeypatch.chdir(photos)
    assert sptune("predict", trial, "=1+1.png", "--home", home, "--top", "1", "--out", "=.csv")[0] == 0
    assert Path("=.csv").read_text(encoding="utf-8").splitlines()[1].startswith("'=1+1.png,1,")


def test_a_broken_image_is_named_and_the_others_are_classified(
    home: Path, images: list[Path], sptune: Sptune, tmp_path: Path
) -> None:
    trial = config_of(1).fingerprint()
    (tmp_path / "notes.png").write_text("not an image")
    (tmp_path / "half.png").write_bytes(images[0].read_bytes()[:100])
    broken = [tmp_path / "notes.png", tmp_path / "half.png"]
    mixed = [broken[0], images[0], broken[1], images[1]]

    _, alone, _ = sptune("predict", trial, *images[:2], "--home", home)
    code, out, err = sptune("predict", trial, *mixed, "--home", home)
    assert (code, out) == (1, alone)
    for line, path in zip(err.splitlines(), broken, strict=True):
        assert line.startswith(f"error: {path} cannot be decoded as an image: ")

    # A table has what could be read, in JSON a broken image has no classes.
    table = tmp_path / "table.csv"
    assert sptune("predict", trial, *mixed, "--home", home, "--out", table)[:2] == (1, f"2 images in {table}\n")
    assert {line.partition(",")[0] for line in table.read_text().splitlines()} == {"image", *map(str, images[:2])}
    code, out, _ = sptune("predict", trial, *mixed, "--home", home, "--json")
    assert (code, [len(each["classes"]) for each in json.loads(out)["images"]]) == (1, [0, 3, 0, 3])
    assert sptune("predict", trial, *broken, "--home", home)[:2] == (1, "")


def test_classes_for_scripts_are_those_of_the_classifier(home: Path, images: list[Path], sptune: Sptune) -> None:
    trial = config_of(1).fingerprint()
    code, out, err = sptune("predict", trial, *images, "--home", home, "--json")
    shown = json.loads(out)
    assert (code, err, shown["trial"]) == (0, "", trial)
    assert {*paths(shown)} == documented()["predict"]
    expected = trainer.load(home / "sweeps/one/trials" / trial).classify(images, top=3)
    for image, found, row in zip(images, expected, shown["images"], strict=True):
        classes = [{"class_name": each.class_name, "confidence": each.confidence} for each in found]
        assert row == {"image": str(image), "classes": classes}


def test_a_trial_whose_weights_are_elsewhere_is_told_where_they_are(
    home: Path, images: list[Path], sptune: Sptune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = config_of(1).fingerprint()
    shutil.copy(bundled_file(), tmp_path / f"{BUNDLED}.safetensors")
    expected = sptune("predict", trial, *images, "--home", home)
    assert sptune("predict", trial, *images, "--home", home, "--weights", tmp_path) == expected
    code, _, err = sptune("predict", trial, *images, "--home", home, "--weights", tmp_path / "no")
    assert (code, err) == (2, f"error: weights {tmp_path / 'no'}: there is no such file or folder.\n")
    monkeypatch.setenv("SPTUNE_WEIGHTS", str(tmp_path / "no"))
    assert sptune("predict", trial, *images, "--home", home) == (code, "", err)


def bundled_file() -> Path:
    path = find_weights(BACKBONES[BUNDLED], None).path
    assert path is not None
    return path


def test_a_mistake_in_a_terminal_leaves_no_trace(tmp_path: Path) -> None:
    image = tmp_path / "a.png"
    image.write_bytes(b"not an image")
    program = str(Path(sys.executable).with_name("sptune"))
    command = [program, "predict", "zzz", str(image), "--home", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    told = f"error: {tmp_path} has neither a sweep nor a finished trial 'zzz'; " + GIVE
    assert (done.returncode, done.stdout, done.stderr) == (2, "", told)


def listed(out: str) -> dict[str, list[str]]:
    """The rows of `sptune backbones`, by name."""
    return {cells[0]: cells[1:] for cells in (re.split(r" {2,}", line.strip()) for line in out.splitlines()[1:])}


def test_backbones_are_listed_with_their_shape_and_where_their_weights_would_come_from(sptune: Sptune) -> None:
    code, out, _ = sptune("backbones")
    assert code == 0
    assert out.split("\n")[0].split() == ["backbone", "layers", "width", "patch", "weights"]
    rows = listed(out)
    assert [*rows] == [*BACKBONES]
    for name, (layers, width, patch, source) in rows.items():
        row = BACKBONES[name]
        assert (int(layers), int(width), int(patch)) == (row.num_layers, row.embed_dim, row.patch_size)
        if name == BUNDLED:
            assert source == "in this package"
        elif row.on_hub:
            assert source in ("timm's hub", "Hugging Face cache", "absent: name a file")
        else:
            assert source == "absent: name a file"


def test_backbones_say_which_of_them_a_file_fits_and_what_it_does_not_tell(sptune: Sptune, tmp_path: Path) -> None:
    file = tmp_path / "any.safetensors"
    blocks = {f"module.blocks.{layer}.norm1.weight": torch.zeros(384) for layer in range(12)}
    save_file(blocks | {"module.patch_embed.proj.weight": torch.zeros(384, 3, 16, 16)}, file)
    code, out, _ = sptune("backbones", "--weights", file)
    table, _, note = out.partition("\n\n")
    fitting = [name for name, cells in listed(table).items() if cells[-1] != "the file does not fit"]
    assert code == 0
    assert fitting == ["vit_small_patch16_224.augreg_in21k", "vit_small_patch16_224.dino"]
    assert f"{file} fits 2 backbones, and its tensors do not tell from which it is." in note.replace("\n", " ")

    file.write_bytes(b"<html>")
    code, _, err = sptune("backbones", "--weights", file)
    assert code == 2 and err.startswith(f"error: {file} is not a complete file of weights: it is a web page.")


def test_backbones_whose_files_lie_in_a_folder_are_shown_with_their_place(
    sptune: Sptune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = {
        "vit_base_patch16_224.moco_v3": "vit-b-300ep.pth.tar",
        "vit_base_patch16_224.mae": "mae_pretrain_vit_base.pth",
        "vit_small_patch16_224.dino": "vit_small_patch16_224.dino.safetensors",
        "vit_large_patch16_224.moco_v3": "vit_large_patch16_224.moco_v3/model.safetensors",
    }
    for place in places.values():
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_bytes(b"looked at when they are needed")
    code, out, _ = sptune("backbones", "--weights", tmp_path)
    assert code == 0
    plain, rows = listed(sptune("backbones")[1]), listed(out)
    for name, cells in rows.items():
        assert cells[-1] == (str(tmp_path / places[name]) if name in places else plain[name][-1])
    monkeypatch.setenv("SPTUNE_WEIGHTS", str(tmp_path))
    assert listed(sptune("backbones")[1]) == rows


def test_a_place_of_weights_that_is_not_there_is_refused(sptune: Sptune, tmp_path: Path) -> None:
    code, out, err = sptune("backbones", "--weights", tmp_path / "no")
    assert (code, out) == (2, "")
    assert err == f"error: weights {tmp_path / 'no'}: there is no such file or folder.\n"


def write_spec(folder: Path, **changes: Any) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump({**TINY, **changes}))
    return path


def test_a_backbone_without_weights_is_refused_with_all_else_that_is_wrong(sptune: Sptune, tmp_path: Path) -> None:
    spec = write_spec(tmp_path, backbones=[BUNDLED, "vit_base_patch16_224.moco_v3"])
    (tmp_path / "file").write_text("")
    (tmp_path / "weights").mkdir()
    before = sorted(tmp_path.rglob("*"))
    code, out, err = sptune(
        "launch", spec, "--home", tmp_path / "file/home", "--inline", "--weights", tmp_path / "weights"
    )
    assert (code, out) == (2, "")
    assert err.splitlines() == [
        f"error: {spec} has 2 problems:",
        "  " + MOCO_PROBLEM.format(among=f", nor in {tmp_path / 'weights'}"),
        f"  home {tmp_path / 'file/home'} cannot be written: {tmp_path / 'file'} is a file. "
        "Choose another with --home or SPTUNE_HOME.",
    ]
    assert sorted(tmp_path.rglob("*")) == before


def test_a_backbone_without_weights_starts_nothing(sptune: Sptune, tmp_path: Path) -> None:
    spec = write_spec(tmp_path, backbones=["vit_base_patch16_224.moco_v3"], fixed={}, methods=["linear"])
    code, out, err = sptune("launch", spec, "--home", tmp_path / "home", "--inline")
    assert (code, out) == (2, "")
    assert err == f"error: {spec} has 1 problem:\n  {MOCO_PROBLEM.format(among='')}\n"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [spec]


def test_a_sweep_starts_from_the_weights_it_is_given_and_says_so_when_others_are_found(
    home: Path, sptune: Sptune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = load_file(bundled_file())
    file = tmp_path / "weights" / f"{BUNDLED}.safetensors"
    file.parent.mkdir()
    save_file(weights | {"norm.bias": weights["norm.bias"] + 0.1}, file)
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    spec = write_spec(tmp_path, train_sizes=[0.1])
    monkeypatch.setenv("SPTUNE_DATA", str(home / "data"))
    monkeypatch.chdir(tmp_path)
    code, out, err = sptune("launch", spec, "--home", "sweep", "--inline", "--weights", "weights")
    assert code == 0, (out, err)
    cards = {path.parent.name: json.loads(path.read_text()) for path in tmp_path.glob("sweep/sweeps/*/trials/*/*.json")}
    assert len(cards) == 2 and {card["backbone_sha256"] for card in cards.values()} == {sha256}
    (trial,) = (name for name, card in cards.items() if card["config"]["eval_split"] == "test")
    (scored, *_) = pq.read_table(f"sweep/sweeps/tiny/trials/{trial}/predictions.parquet").to_pylist()
    (judged, *_) = pq.read_table(home / "data/demo/digits/test.parquet").to_pylist()
    (tmp_path / "digit.png").write_bytes(judged["image"])
    predict = ["predict", trial, "digit.png", "--home", "sweep", "--top", "1"]
    told = f"digit.png: {scored['prediction']} {100 * scored['confidence']:.1f} %\n"
    assert sptune(*predict, "--weights", "weights") == (0, told, "")
    code, out, err = sptune(*predict)
    assert (code, out) == (2, "")
    assert f"was trained on weights of {BUNDLED} with SHA-256 {sha256[:12]}, found " in err
    assert err.endswith("; name the file it was trained on with --weights or SPTUNE_WEIGHTS.\n")


def test_weights_that_are_missing_are_told_together_with_mistakes_in_the_spec(sptune: Sptune, tmp_path: Path) -> None:
    spec = write_spec(tmp_path, backbones=["vit_base_patch16_224.moco_v3"], tasks=["demo/digit"])
    _, _, err = sptune("launch", spec, "--home", tmp_path / "home", "--inline")
    assert "did you mean 'demo/digits'" in err
    assert MOCO_PROBLEM.format(among="") in err
