"""What a run leaves behind, used again: the same predictions, from two small files, or a sentence why not."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

import trainer
from trainer.catalog import BACKBONES, BUNDLED, METHODS, TASKS
from trainer.config import TrainConfig
from trainer.data.split import load_split
from trainer.model.weights import find_weights
from trainer.training.loop import train

Finished = tuple[TrainConfig, Path]


@pytest.fixture(scope="module")
def finish(
    store: str, tiny: Callable[..., TrainConfig], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """Trains an epoch, away from where it started; the folder it leaves."""

    def run(method: str, **changes: Any) -> Path:
        config, folder = tiny(method, epochs=1, warmup_epochs=0, **changes), tmp_path_factory.mktemp("run")
        list(train(config, data_root=store, folder=str(folder)))
        return folder

    return run


@pytest.fixture(scope="module")
def linear(finish: Callable[..., Path]) -> Path:
    """The folder of a finished run; copy it before changing it."""
    return finish("linear")


def images_of(store: str, split: str = "val") -> list[bytes]:
    """The encoded images of a split."""
    images: list[bytes] = pq.read_table(f"{store}/demo/digits/{split}.parquet")["image"].to_pylist()
    return images


def assert_predicts_what_was_scored(folder: Path, images: list[bytes], *, spread: float = 0.01) -> None:
    scored = pq.read_table(folder / "predictions.parquet").to_pydict()
    found = list(trainer.load(folder).classify(images))
    assert [best.class_name for best, *_ in found] == [str(label) for label in scored["prediction"]]
    confidences = [best.confidence for best, *_ in found]
    np.testing.assert_allclose(confidences, scored["confidence"], rtol=0, atol=1e-5)
    assert max(confidences) - min(confidences) > spread, "images differ"


@pytest.mark.parametrize("method", METHODS)
def test_every_methods_model_predicts_what_it_was_scored_with(
    method: str, finish: Callable[..., Path], store: str
) -> None:
    # In their two steps, biases and shifts move all images alike. The confidences are still compared to 1e-5.
    spread = 0.01 if METHODS[method].has_weight_decay or method == "linear" else 0.001
    folder = finish(method, drop_path=0.3, ema_decay=0.9)
    assert_predicts_what_was_scored(folder, images_of(store), spread=spread)
    final = finish(method, eval_split="test", final_norm="fresh")
    assert_predicts_what_was_scored(final, images_of(store, "test"), spread=spread)


@pytest.mark.parametrize(
    "changes",
    [{"transform": "vpt"}, {"normalize": "imagenet"}, {"image_size": 24}, {"optimizer": "sgd", "lr": 1.0}],
    ids=str,
)
def test_images_are_seen_as_the_card_says(changes: dict[str, Any], finish: Callable[..., Path], store: str) -> None:
    assert_predicts_what_was_scored(finish("spt_shallow", **changes), images_of(store))


def test_a_model_trained_in_bf16_predicts_what_it_was_scored_with(finish: Callable[..., Path], store: str) -> None:
    assert_predicts_what_was_scored(finish("spt_deep", precision="bf16"), images_of(store))


@pytest.fixture
def augmented(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """For one test, demo/digits is a task that is learnt from random crops."""
    monkeypatch.setitem(TASKS, "demo/digits", dataclasses.replace(TASKS["demo/digits"], augmented=True))
    load_split.cache_clear()  # its keys name the task, not the row
    yield
    load_split.cache_clear()


def test_images_of_a_task_with_augmentation_are_seen_as_it_was_judged(
    augmented: None, finish: Callable[..., Path], store: str
) -> None:
    assert_predicts_what_was_scored(finish("linear"), images_of(store))


@pytest.mark.parametrize("batch_size", [1, 7, 40, 64])
def test_an_images_prediction_does_not_depend_on_the_others(batch_size: int, linear: Path, store: str) -> None:
    classifier, images = trainer.load(linear), images_of(store)
    together = list(classifier.classify(images, top=10))
    apart = list(classifier.classify(images, top=10, batch_size=batch_size))
    assert [[each.class_name for each in found] for found in apart] == [
        [each.class_name for each in found] for found in together
    ]
    for one, other in zip(apart, together, strict=True):
        np.testing.assert_allclose([e.confidence for e in one], [e.confidence for e in other], rtol=0, atol=1e-6)


def test_classes_come_best_first_and_share_out_all_confidence(linear: Path, store: str) -> None:
    classifier, images = trainer.load(linear), images_of(store)[:3]
    for found in classifier.classify(images, top=99):
        assert sorted(each.class_name for each in found) == [*"0123456789"]
        confidences = [each.confidence for each in found]
        assert confidences == sorted(confidences, reverse=True)
        assert sum(confidences) == pytest.approx(1)
    assert [len(found) for found in classifier.classify(images)] == [5, 5, 5]
    assert [len(found) for found in classifier.classify(images, top=1)] == [1, 1, 1]
    assert list(classifier.classify([])) == []


def test_a_file_is_classified_as_its_bytes_whatever_its_format(linear: Path, store: str, tmp_path: Path) -> None:
    (data,) = images_of(store)[:1]
    (tmp_path / "digit.png").write_bytes(data)
    with Image.open(io.BytesIO(data)) as image:
        image.save(tmp_path / "digit.tif")
        image.convert("RGBA").save(tmp_path / "digit.webp", lossless=True)
    classifier = trainer.load(linear)
    (expected,) = classifier.classify([data])
    files = [tmp_path / f"digit.{suffix}" for suffix in ("png", "tif", "webp")]
    assert list(classifier.classify(files, batch_size=1)) == [expected] * 3


@pytest.mark.parametrize("method", ["spt_deep", "full"])
def test_the_card_and_what_was_learnt_are_enough(
    method: str, finish: Callable[..., Path], store: str, tmp_path: Path
) -> None:
    folder, images = finish(method), images_of(store)
    for name in ("card.json", "prompt.safetensors"):
        shutil.copy(folder / name, tmp_path / name)
    assert list(trainer.load(str(tmp_path)).classify(images)) == list(trainer.load(folder).classify(images))
    assert list(trainer.load(tmp_path.as_uri()).classify(images)) == list(trainer.load(folder).classify(images))


def test_weights_may_lie_anywhere_if_they_are_those_it_was_trained_on(linear: Path, store: str, tmp_path: Path) -> None:
    bundled = find_weights(BACKBONES[BUNDLED], None).path
    assert bundled is not None
    shutil.copy(bundled, tmp_path / "moved.safetensors")
    moved = trainer.load(linear, weights=str(tmp_path / "moved.safetensors"))
    assert list(moved.classify(images_of(store))) == list(trainer.load(linear).classify(images_of(store)))
    weights = load_file(bundled)
    save_file(weights | {"norm.bias": weights["norm.bias"] + 0.1}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="SHA-256") as caught:
        trainer.load(linear, weights=str(tmp_path / "other.safetensors"))
    sha256 = json.loads((linear / "card.json").read_text())["backbone_sha256"]
    assert re.fullmatch(
        rf"{re.escape(str(linear))} was trained on weights of {re.escape(BUNDLED)} with SHA-256 {sha256[:12]}, found "
        r"[0-9a-f]{12}; name the file it was trained on with --weights or SPTUNE_WEIGHTS\.",
        str(caught.value),
    )


def test_a_card_of_other_weights_is_refused(linear: Path, tmp_path: Path) -> None:
    shutil.copytree(linear, tmp_path / "run")
    card = json.loads((linear / "card.json").read_text())
    del card["checksum"]
    own = card["backbone_sha256"]
    (tmp_path / "run/card.json").write_text(json.dumps(card | {"backbone_sha256": "0" * 64}))
    with pytest.raises(ValueError, match="SHA-256") as caught:
        trainer.load(tmp_path / "run")
    assert str(caught.value) == (
        f"{tmp_path / 'run'} was trained on weights of {BUNDLED} with SHA-256 000000000000, found {own[:12]}; "
        "name the file it was trained on with --weights or SPTUNE_WEIGHTS."
    )


def test_a_folder_without_a_finished_run_is_refused(
    linear: Path, store: str, tmp_path: Path, tiny: Callable[..., TrainConfig]
) -> None:
    (tmp_path / "empty").mkdir()
    next(train(tiny("linear"), data_root=store, folder=str(tmp_path / "unfinished")))
    for name in ("card.json", "prompt.safetensors"):
        (tmp_path / f"only {name}").mkdir()
        shutil.copy(linear / name, tmp_path / f"only {name}" / name)
    for place in ("empty", "unfinished", "only card.json", "only prompt.safetensors", "nowhere"):
        with pytest.raises(ValueError, match="no finished run") as caught:
            trainer.load(tmp_path / place)
        assert str(caught.value) == (
            f"{tmp_path / place} holds no finished run: card.json and prompt.safetensors are written at the end of one."
        )


def test_what_is_no_image_is_named(linear: Path, store: str, tmp_path: Path) -> None:
    classifier, images = trainer.load(linear), images_of(store)
    (tmp_path / "notes.png").write_text("not an image")
    (tmp_path / "half.png").write_bytes(images[0][: len(images[0]) // 2])
    for bad in ("notes.png", "half.png"):
        with pytest.raises(ValueError, match="cannot be decoded as an image") as caught:
            list(classifier.classify([tmp_path / bad]))
        assert str(caught.value).startswith(f"{tmp_path / bad} cannot be decoded as an image: ")
    # Bytes have no name, but a place, counted from 0 through all batches; what comes before is classified.
    found = classifier.classify([*images[:5], b"not an image"], batch_size=2)
    assert [len(next(found)) for _ in range(4)] == [5] * 4
    with pytest.raises(ValueError, match="cannot be decoded as an image") as caught:
        next(found)
    assert str(caught.value).startswith("image 5 cannot be decoded as an image: ")
    with pytest.raises(FileNotFoundError, match=r"missing\.png"):
        list(classifier.classify([tmp_path / "missing.png"]))


def test_the_sentence_about_what_is_no_image_is_for_people(linear: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.png").write_text("not an image")
    with pytest.raises(ValueError, match="cannot be decoded as an image") as caught:
        list(trainer.load(linear).classify([tmp_path / "notes.png"]))
    assert str(caught.value) == f"{tmp_path / 'notes.png'} cannot be decoded as an image: its format is unknown"


def damaged_images() -> dict[str, bytes]:
    """Images that a disk or a mail program has spoilt, in ways that Pillow answers with errors of many kinds."""
    png, bmp = io.BytesIO(), io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40), dtype=np.uint8)).save(png, "PNG")
    Image.new("P", (40, 30)).save(bmp, "BMP")
    short, huge, palette = bytearray(png.getvalue()), bytearray(png.getvalue()), bytearray(bmp.getvalue())
    start = short.index(b"IDAT")
    short[start - 4 : start] = (int.from_bytes(short[start - 4 : start], "big") - 40).to_bytes(4, "big")
    huge[16:24] = (2**15).to_bytes(4, "big") * 2
    huge[29:33] = zlib.crc32(huge[12:29]).to_bytes(4, "big")
    palette[47] = 1
    return {"chunk": bytes(short), "size": bytes(huge), "palette": bytes(palette)}


@pytest.mark.parametrize("damage", ["chunk", "size", "palette"])
def test_an_image_damaged_in_any_way_is_named(damage: str, linear: Path) -> None:
    with pytest.raises(ValueError, match=r"^image 0 cannot be decoded as an image: "):
        list(trainer.load(linear).classify([damaged_images()[damage]]))


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        ("half of it", r"is damaged: .+\."),
        ("of another method", r"does not belong to its card\.json: prompt differ\."),
        ("of another length", r"does not belong to its card\.json: prompt differ\."),
    ],
)
def test_what_was_learnt_must_be_whole_and_of_its_card(
    damage: str, told: str, finish: Callable[..., Path], linear: Path, tmp_path: Path
) -> None:
    folder = finish("spt_shallow")
    data = (folder / "prompt.safetensors").read_bytes()
    spoilt = {
        "half of it": data[: len(data) // 2],
        "of another method": (linear / "prompt.safetensors").read_bytes(),
        "of another length": (finish("spt_shallow", prompt_length=4) / "prompt.safetensors").read_bytes(),
    }
    shutil.copy(folder / "card.json", tmp_path / "card.json")
    (tmp_path / "prompt.safetensors").write_bytes(spoilt[damage])
    with pytest.raises(ValueError, match=r"prompt\.safetensors") as caught:
        trainer.load(tmp_path)
    assert re.fullmatch(rf"{re.escape(str(tmp_path))}/prompt\.safetensors {told}", str(caught.value))


@pytest.mark.parametrize("damage", ["half of it", "without the classes"])
def test_a_card_must_be_whole(damage: str, linear: Path, tmp_path: Path) -> None:
    shutil.copytree(linear, tmp_path / "run")
    text = (linear / "card.json").read_text()
    card = {key: value for key, value in json.loads(text).items() if key not in ("checksum", "class_names")}
    (tmp_path / "run/card.json").write_text(text[: len(text) // 2] if damage == "half of it" else json.dumps(card))
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / "run"))):
        trainer.load(tmp_path / "run")


def test_a_card_of_a_newer_schema_is_refused(linear: Path, tmp_path: Path) -> None:
    shutil.copytree(linear, tmp_path / "run")
    # Other keys may have changed too, so none is read before the version.
    (tmp_path / "run/card.json").write_text(json.dumps({"schema_version": 2}))
    with pytest.raises(ValueError, match="schema_version") as caught:
        trainer.load(tmp_path / "run")
    assert str(caught.value) == (
        f"{tmp_path / 'run'}/card.json cannot be read: schema_version is 2, and this version of sptune reads up to 1; "
        "upgrade sptune."
    )


@pytest.mark.parametrize("module", ["trainer", "trainer.config", "trainer.catalog", "trainer.model.weights"])
def test_configs_are_made_and_checked_without_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
