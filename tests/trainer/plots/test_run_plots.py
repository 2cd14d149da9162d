"""Pictures of a run: which there are, what they show, and that a sheet of prototypes is drawn once."""

from __future__ import annotations

import dataclasses
import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from trainer.config import TrainConfig
from trainer.model.backbone import Backbone
from trainer.plots.prototype_sheet import CELL, GAP, LEFT, LINE, OUTSIDE, prototype_sheet
from trainer.plots.run_plots import confusion_matrix, draw_run_plots, learning_curve
from trainer.prompt_init.token_stream import TokenStream
from trainer.training.loop import train

Configs = Callable[..., TrainConfig]
Drawn = Callable[..., dict[str, bytes]]


@pytest.fixture
def drawn(store: str, tmp_path: Path) -> Drawn:
    """The pictures of a config that is trained first, by name; the prototype cache is `tmp_path/cache`."""

    def drawn(config: TrainConfig, folder: str = "") -> dict[str, bytes]:
        folder = folder or str(tmp_path / config.fingerprint())
        cache = str(tmp_path / "cache")
        epochs = [epoch.metrics for epoch in train(config, data_root=store, folder=folder, prototype_cache=cache)]
        draw_run_plots(config, epochs, folder, data_root=store, prototype_cache=cache)
        return {path.name: path.read_bytes() for path in Path(folder.removeprefix("file://")).glob("*.png")}

    return drawn


def sheets(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache").glob("*.png"))


def pixels(png: bytes) -> Image.Image:
    with Image.open(io.BytesIO(png)) as opened:
        return opened.convert("RGB")


def colour(png: bytes, x: float, y: float) -> tuple[int, int, int]:
    found = pixels(png).getpixel((int(x), int(y)))
    assert isinstance(found, tuple)
    return found[0], found[1], found[2]


@pytest.mark.parametrize(
    ("method", "pictures"),
    [
        ("spt_deep", {"learning_curve.png", "confusion.png", "prototypes.png"}),
        ("spt_shallow", {"learning_curve.png", "confusion.png", "prototypes.png"}),
        ("vpt_deep", {"learning_curve.png", "confusion.png"}),
        ("linear", {"learning_curve.png", "confusion.png"}),
    ],
)
@pytest.mark.parametrize("eval_split", [pytest.param("val", marks=pytest.mark.slow), "test"])
def test_a_complete_run_has_its_pictures(
    method: str, pictures: set[str], eval_split: str, tiny: Configs, drawn: Drawn
) -> None:
    found = drawn(tiny(method, epochs=2, eval_split=eval_split))
    assert found.keys() == pictures
    for png in found.values():
        assert min(pixels(png).size) >= 200 and len(png) < 300_000


def test_pictures_go_to_an_address_too(tiny: Configs, drawn: Drawn, tmp_path: Path) -> None:
    assert len(drawn(tiny(epochs=2), f"file://{tmp_path}/run")) == 3


def test_runs_that_start_from_the_same_prototypes_share_a_sheet(tiny: Configs, drawn: Drawn, tmp_path: Path) -> None:
    config = tiny(epochs=2)
    sheet = drawn(config)["prototypes.png"]
    (kept,) = sheets(tmp_path)
    assert kept.read_bytes() == sheet
    marked = io.BytesIO()
    Image.new("L", (3, 2)).save(marked, "PNG")
    kept.write_bytes(marked.getvalue())
    # Whoever has the same prototypes gets what is kept: nothing is computed.
    assert drawn(dataclasses.replace(config, lr=0.001, weight_decay=0.0))["prototypes.png"] == marked.getvalue()
    assert len(sheets(tmp_path)) == 1


@pytest.mark.slow
def test_other_prototypes_have_another_sheet(tiny: Configs, drawn: Drawn, tmp_path: Path) -> None:
    changes: list[dict[str, object]] = [
        {},
        {"prompt_init": "random"},
        {"prompt_length": 2},
        {"train_size": 0.1},
        {"init_task": "demo/shapes_loc"},
    ]
    different = {drawn(tiny(epochs=2, **change))["prototypes.png"] for change in changes}
    assert len(different) == len(sheets(tmp_path)) == len(changes)


def test_the_same_run_has_the_same_pictures(tiny: Configs, drawn: Drawn, tmp_path: Path) -> None:
    one = drawn(tiny(epochs=2), str(tmp_path / "one"))
    sheets(tmp_path)[0].unlink()
    other = drawn(tiny(epochs=2), str(tmp_path / "other"))
    assert one["prototypes.png"] == other["prototypes.png"] and one["confusion.png"] == other["confusion.png"]


@pytest.mark.parametrize(
    ("missing", "pictures"),
    [
        ("prototypes.safetensors", {"learning_curve.png", "confusion.png"}),
        ("predictions.parquet", {"learning_curve.png", "prototypes.png"}),
    ],
)
def test_a_picture_that_cannot_be_drawn_costs_no_other_and_torch_is_as_before(
    missing: str, pictures: set[str], tiny: Configs, store: str, tmp_path: Path
) -> None:
    config = tiny("spt_shallow", epochs=1, warmup_epochs=0, prompt_init="random")
    epochs = [epoch.metrics for epoch in train(config, data_root=store, folder=str(tmp_path))]
    (tmp_path / missing).unlink()
    state, num_threads = torch.get_rng_state(), torch.get_num_threads()
    with pytest.raises(FileNotFoundError, match=missing):
        draw_run_plots(config, epochs, str(tmp_path), data_root=store)
    assert {path.name for path in tmp_path.glob("*.png")} == pictures, "all that can be drawn are there at the return"
    assert torch.equal(torch.get_rng_state(), state) and torch.get_num_threads() == num_threads


def test_a_run_that_is_not_complete_has_no_pictures(tiny: Configs, data_root: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="finished runs") as caught:
        draw_run_plots(tiny(), [{"train/loss": 1.0}], str(tmp_path), data_root=data_root)
    assert str(caught.value) == f"{tmp_path} has no predictions.parquet: only finished runs can be plotted."


@pytest.mark.parametrize(
    "epochs",
    [
        [{"train/loss": 2.0, "val/accuracy": 0.5}],
        [{"train/loss": 2.0 / i, "val/accuracy": 0.5, "val/accuracy_ema": 0.4} for i in range(1, 101)],
        [{"train/loss": 0.0, "val/accuracy": 0.0}] * 30,
        [{"train/loss": 2.0}] * 4,
    ],
    ids=["one epoch", "a hundred, with an average", "zeros", "no accuracy"],
)
def test_any_course_of_learning_is_drawn(epochs: list[dict[str, float]], tiny: Configs) -> None:
    assert pixels(learning_curve(tiny(), epochs)).size == (744, 300)


@pytest.mark.parametrize("num_classes", [1, 2, 10, 30, 31, 102, 555])
def test_a_confusion_matrix_of_any_number_of_classes_is_drawn(num_classes: int) -> None:
    label_N = np.arange(2 * num_classes) % num_classes
    # Names are no formulas, however much money is in them, and as long as they like.
    names = [f"the ${number} class of a_long name^" * (1 + number % 2) for number in range(num_classes)]
    for predicted_N in (label_N, (label_N * 7) % num_classes):
        png = confusion_matrix(label_N, predicted_N, names, "own/a_task test/accuracy")
        assert min(pixels(png).size) > 300 and max(pixels(png).size) < 1100 and len(png) < 300_000


@pytest.mark.parametrize("num_copies", [1, 4])
def test_a_class_may_have_any_name(num_copies: int) -> None:
    names = [
        "[/INST]",
        "_x",
        "$a",
        "字漢",
        "a\nb",
        "\x1b[2J",
        "caf\udce9",
        "\u202ea",
        "\x00",
        "\\frac",
        "",
        "%",
    ] * num_copies
    label_N = np.arange(len(names))
    png = confusion_matrix(label_N, label_N[::-1], names, "own/$x test/accuracy")
    assert pixels(png).size[0] > 300


def test_a_row_is_a_label_and_classes_without_images_are_grey() -> None:
    # Fifty classes of 12 pixels, the first 60 pixels from the left and 50 from the top.
    label_N, predicted_N = np.array([3, 3, 8, 8]), np.array([7, 7, 8, 3])
    png = confusion_matrix(label_N, predicted_N, [f"c{i}" for i in range(50)], "")

    def cell(row: int, column: int) -> tuple[int, int, int]:
        return colour(png, 60 + 12 * (column + 0.5), 50 + 12 * (row + 0.5))

    dark, half, none, grey = cell(3, 7), cell(8, 8), cell(3, 3), cell(7, 3)
    assert sum(dark) < sum(half) == sum(cell(8, 3)) < sum(none) and sum(none) > 700
    assert grey == cell(49, 49) == (0xDD, 0xDD, 0xDD)


def test_a_sheet_shows_the_very_patch_in_its_surroundings(backbone: Backbone) -> None:
    # Black images but for a red patch in the corner of one and a green one beside it.
    images = torch.zeros(5, 3, 32, 32, dtype=torch.uint8)
    images[3, 0, :4, :4], images[3, 1, :4, 4:8] = 255, 255
    red_D = next(backbone.patch_tokens(images))[3, 0]
    stream = TokenStream(backbone=backbone, num_images=5, images_of=lambda rows_B: images[rows_B], num_layers=1)
    png = prototype_sheet(red_D[None, None], stream, "a title")
    left, top, third = LEFT, LINE + 10 + LINE, CELL // 3
    red, right, below, above = (
        colour(png, left + (1.5 + x) * third, top + (1.5 + y) * third) for x, y in ((0, 0), (1, 0), (0, 1), (0, -1))
    )
    assert (red, right, below) == ((255, 0, 0), (0, 255, 0), (0, 0, 0))
    assert above == tuple(bytes.fromhex(OUTSIDE[1:])), "beyond the edge"
    # The next nearest is another patch.
    assert colour(png, left + 1.5 * third, top + CELL + GAP + 1.5 * third) != red


@pytest.mark.parametrize(("prompt_length", "columns"), [(1, 1), (16, 16), (100, 16)])
def test_a_sheet_has_room_for_sixteen_prompts(backbone: Backbone, prompt_length: int, columns: int) -> None:
    images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    stream = TokenStream(backbone=backbone, num_images=2, images_of=lambda rows_B: images[rows_B], num_layers=5)
    width, height = pixels(prototype_sheet(torch.ones(5, prompt_length, 96), stream, "")).size
    assert width == max(480, LEFT + columns * (CELL + GAP) + GAP)
    assert height > 5 * 3 * CELL


def test_importing_the_trainer_imports_no_matplotlib() -> None:
    code = "import sys, trainer.plots.run_plots; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
