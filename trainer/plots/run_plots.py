"""Pictures of a finished run: how it learnt, what it confuses, and what its prototypes look like.

Shapes: L prompted layers, P prompts, K classes (of neighbours: nearest), D width, S side of an image.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from safetensors.torch import load
from torch import Tensor

from trainer.catalog import METHODS, is_augmented
from trainer.config import TrainConfig
from trainer.data.split import load_split
from trainer.model.backbone import load_backbone
from trainer.plots.nearest_patches import nearest_patches
from trainer.prompt_init.initial_prompt import token_stream
from trainer.prompt_init.strategies import TokenStream
from trainer.storage.files import read_bytes, write_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, ORANGE, YELLOW = "#0072B2", "#D55E00", "#F0E442"
"""Colours that colour-blind readers tell apart (Okabe and Ito)."""
OUTSIDE = "#BFD7EA"
"""What is beyond an image's edge: no grey, which images have."""
NAMED_CLASSES = 30
"""Classes up to which a confusion matrix has room for their names."""
NUMBERED_CLASSES = 12
"""Classes up to which each of its cells has room for a number."""
IMAGES = 1000
"""Images whose patches are compared with prototypes: all of a VTAB task, 196,000 patches of a ViT-B/16. They cost one
pass of the frozen network, a hundredth of a run of 100 epochs."""
NEAREST, LAYERS, PROMPTS = 3, 6, 16
"""What a sheet of prototypes has room for."""
CELL, GAP, LEFT, LINE = 48, 3, 86, 15
"""Pixels of a patch with its surroundings, between two of them, left of the first, and from one line to the next."""
VERSION = 1
"""Counted up when the same prototypes give another sheet than before."""


def draw(
    config: TrainConfig,
    epochs: Sequence[Mapping[str, float]],
    folder: str,
    *,
    data_root: str,
    weights: str | None = None,
    bank: str | None = None,
    device: str = "cpu",
) -> None:
    """Put the pictures of a complete run into its folder (path or URI).

    `learning_curve.png`, `confusion.png`, and `prototypes.png` for methods whose prompt starts from prototypes.

    Args:
        epochs: the metrics of each epoch, from the first.
        bank: folder in which a sheet of prototypes is kept for all runs that start from the same; None keeps none.

    Raises:
        FileNotFoundError: if the folder lacks what a complete run leaves.
        OSError: if data, bank or folder cannot be read or written.
    """
    write_bytes(f"{folder}/learning_curve.png", learning_curve(config, epochs))
    table = pq.read_table(io.BytesIO(_left_by_run(folder, "predictions.parquet")))
    names = json.loads(_left_by_run(folder, "card.json"))["class_names"]
    label_N, predicted_N = (table[column].to_numpy() for column in ("label", "prediction"))
    write_bytes(f"{folder}/confusion.png", confusion(label_N, predicted_N, names, f"{config.task} {config.metric}"))
    if len(METHODS[config.method].prompt_inits) > 1:
        prototypes = _left_by_run(folder, "prototypes.safetensors")
        sheet = _kept_sheet(config, prototypes, data_root=data_root, weights=weights, bank=bank, device=device)
        write_bytes(f"{folder}/prototypes.png", sheet)


def learning_curve(config: TrainConfig, epochs: Sequence[Mapping[str, float]]) -> bytes:
    """A PNG of the training loss and of the accuracies by epoch; a final run has one accuracy, of its last epoch."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(6.2, 2.5), dpi=120, layout="constrained")
    loss_axes, score_axes = figure.subplots(1, 2)
    number = range(1, len(epochs) + 1)
    marker = "o" if len(epochs) <= 20 else ""
    loss = [epoch["train/loss"] for epoch in epochs]
    loss_axes.plot(number, loss, color=BLUE, marker=marker, markersize=3)
    if min(loss) > 0 and max(loss) > 10 * min(loss):
        loss_axes.set_yscale("log")
    told: list[str] = []
    for name, colour, style in ((config.metric, BLUE, "-"), (f"{config.metric}_ema", ORANGE, "--")):
        found = [(i, epoch[name]) for i, epoch in zip(number, epochs, strict=True) if name in epoch]
        if found:
            kind = marker or ("o" if len(found) == 1 else "")
            score_axes.plot(*zip(*found, strict=True), color=colour, linestyle=style, marker=kind, markersize=3)
            told.append(f"{name} {found[-1][1]:.4f}")
    for axes, title in ((loss_axes, f"train/loss {loss[-1]:.4g}"), (score_axes, "   ".join(told))):
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("epoch", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlim(0.5, len(epochs) + 0.5)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    figure.suptitle(f"{config.task}  {config.method}  lr {config.lr:.3g}", fontsize=9, parse_math=False)
    return _png(figure)


def confusion(
    label_N: NDArray[np.int64], predicted_N: NDArray[np.int64], class_names: Sequence[str], title: str
) -> bytes:
    """A PNG of the confusion matrix, a row a class: how its images were classified, as shares of the row.

    Any number of classes: with few they are named, with many the largest confusions are told in words.
    """
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    num_classes = len(class_names)
    count_KK = np.bincount(label_N * num_classes + predicted_N, minlength=num_classes**2).reshape(num_classes, -1)
    seen_K1 = count_KK.sum(axis=1, keepdims=True)
    share_KK = np.where(seen_K1 > 0, count_KK / seen_K1.clip(min=1), np.nan)
    # A whole number of pixels a cell, or rows of a large matrix would be drawn twice and others not at all.
    pixels = num_classes * min(max(1, round(600 / num_classes)), 56)
    names = [name if len(name) <= 24 else f"{name[:23]}…" for name in class_names]
    named = num_classes <= NAMED_CLASSES
    margin = 30 + 6 * max(map(len, names)) if named else 60
    across, below, dpi = max(pixels + margin + 100, 430), (margin + 24 if named else 110), 110
    left = margin + 16 if named else 60
    height = pixels + below + 50
    figure = Figure(figsize=(across / dpi, height / dpi), dpi=dpi)
    axes = figure.add_axes((left / across, below / height, pixels / across, pixels / height))
    axes.set_facecolor("#DDDDDD")
    # Small shares are made darker: a confusion of 4 %, and all the more a single pixel of it, would be white on white.
    image = axes.imshow(share_KK, cmap="Blues", norm=PowerNorm(0.5 if named else 0.35, 0, 1), interpolation="nearest")
    bar_axes = figure.add_axes(((left + pixels + 14) / across, below / height, 10 / across, pixels / height))
    bar = figure.colorbar(image, cax=bar_axes, ticks=[0, 0.05, 0.25, 0.5, 1])
    bar.ax.set_yticklabels(["0", "5 %", "25 %", "50 %", "100 %"], fontsize=8)
    if named:
        axes.set_xticks(range(num_classes), names, rotation=90, fontsize=8, parse_math=False)
        axes.set_yticks(range(num_classes), names, fontsize=8, parse_math=False)
    else:
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True))
        axes.tick_params(labelsize=8)
    if num_classes <= NUMBERED_CLASSES:
        for row, column in zip(*np.nonzero(count_KK), strict=True):
            share = share_KK[row, column]
            colour = "white" if share > 0.3 else "black"
            axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=8, color=colour)
    axes.set_xlabel("prediction", fontsize=9)
    axes.set_ylabel("label", fontsize=9)
    right = float((label_N == predicted_N).mean())
    figure.text(8 / across, 1 - 8 / height, f"{title} {right:.4f}", fontsize=9, va="top", parse_math=False)
    told = f"{len(label_N):,} images, % of each row" + ("" if seen_K1.all() else "; grey: no image of the class")
    figure.text(8 / across, 1 - 26 / height, told, fontsize=8, va="top", color="#444444")
    if not named:
        figure.text(8 / across, 6 / height, _worst(share_KK, class_names), fontsize=8, va="bottom", parse_math=False)
    return _png(figure)


def prototype_sheet(prompt_LPD: Tensor, stream: TokenStream, title: str) -> bytes:
    """A PNG that shows prompts as the real image patches whose tokens are nearest: a block a layer, a column a prompt.

    Each patch is framed, in a crop of the image that is three patches wide. Pale blue is outside of the image.

    Args:
        prompt_LPD: the prompts as they started.
        stream: the images, and as many layers as the prompt has.
    """
    num_layers, prompt_length, _ = prompt_LPD.shape
    layers, prompts = _evenly(num_layers, LAYERS), _evenly(prompt_length, PROMPTS)
    shown_LPD = prompt_LPD[:, prompts]
    found = nearest_patches(shown_LPD, stream, nearest=NEAREST)
    images = found.image_LPK[layers].unique()
    pictures = dict(zip(images.tolist(), stream.images_of(images).cpu(), strict=True))
    patch, per_row = stream.backbone.patch_size, stream.backbone.image_size // stream.backbone.patch_size
    away_LP = found.distance_LPK[..., 0] / shown_LPD.double().square().sum(dim=2).clamp(min=1e-12).cpu()

    foot = (
        f"Column: the {NEAREST} patches nearest to a prototype, by squared Euclidean distance to the tokens that enter "
        "the layer. Distance: that of the nearest, as a share of the prototype's squared length; the median prompt. "
        f"From {stream.num_images:,} images; {len(prompts)} of {prompt_length} prompts and {len(layers)} of "
        f"{num_layers} layers are shown; pale blue is outside of the image."
    )
    width = max(LEFT + len(prompts) * (CELL + GAP) + GAP, 480)
    lines = textwrap.wrap(foot, width // 6)
    block = LINE + NEAREST * (CELL + GAP) + 4
    sheet = Image.new("RGB", (width, LINE + 10 + len(layers) * block + len(lines) * LINE + 8), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    pen.text((6, 6), title, "black", ImageFont.load_default(12))
    for place, layer in enumerate(layers):
        top = LINE + 10 + place * block
        pen.text((6, top + LINE + CELL), f"layer {layer}", "black", font)
        pen.text((6, top + 2 * LINE + CELL), f"distance {float(away_LP[layer].median()):.2f}", "#444444", font)
        pen.text((6, top + LINE // 2), "prompt", "#444444", font, anchor="lm")
        for column, prompt in enumerate(prompts):
            left = LEFT + column * (CELL + GAP)
            pen.text((left + CELL // 2, top + LINE // 2), str(prompt), "#444444", font, anchor="mm")
            for rank in range(NEAREST):
                image = int(found.image_LPK[layer, column, rank])
                row_and_column = divmod(int(found.patch_LPK[layer, column, rank]), per_row)
                sheet.paste(_framed(pictures[image], row_and_column, patch), (left, top + LINE + rank * (CELL + GAP)))
    for number, line in enumerate(lines):
        pen.text((6, sheet.height - (len(lines) - number) * LINE - 4), line, "#444444", font)
    buffer = io.BytesIO()
    # A palette makes a sheet of photographs a third as large.
    sheet.quantize(128, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _kept_sheet(
    config: TrainConfig, prototypes: bytes, *, data_root: str, weights: str | None, bank: str | None, device: str
) -> bytes:
    """The sheet of a run's prototypes: from the bank, or drawn and kept there."""
    backbone = load_backbone(
        config.backbone, image_size=config.pixels, normalize=config.normalize, weights=weights, device=device
    )
    own = config.init_task is None
    task = config.task if config.init_task is None else config.init_task
    view = "whole" if is_augmented(task) else "fixed"
    # On the CPU and past the splits that are kept in the process: a thousand images go to the device, not all.
    size = config.train_size if own else 1.0
    images = load_split.__wrapped__(
        data_root, task, config.train_split, size, config.pixels, "cpu", config.transform, view
    )
    title = f"{task}  {config.prompt_init}  {config.backbone}"
    content = {
        "version": VERSION,
        "prototypes": hashlib.sha256(prototypes).hexdigest(),
        "backbone": backbone.sha256,
        "normalize": config.normalize,
        "images": images.fingerprint,
        "crops": config.seed if view == "whole" else None,
        "title": title,
    }
    key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
    if bank is not None and (kept := read_bytes(f"{bank}/{key}.png")) is not None:
        return kept
    prompt_LPD = load(prototypes)["prompt"]
    cpu = token_stream(config, backbone, images, len(prompt_LPD), IMAGES)
    stream = dataclasses.replace(cpu, images_of=lambda rows_B: cpu.images_of(rows_B).to(device))
    sheet = prototype_sheet(prompt_LPD, stream, title)
    if bank is not None:
        write_bytes(f"{bank}/{key}.png", sheet)
    return sheet


def _framed(image_3SS: Tensor, row_and_column: tuple[int, int], patch: int) -> Image.Image:
    """A patch and a patch's width of its surroundings, enlarged, with a frame just outside the patch."""
    top, left = (patch * (place - 1) for place in row_and_column)
    crop = Image.new("RGB", (3 * patch, 3 * patch), OUTSIDE)
    crop.paste(Image.fromarray(image_3SS.permute(1, 2, 0).contiguous().numpy()), (-left, -top))
    how = Image.Resampling.NEAREST if crop.width < CELL else Image.Resampling.BICUBIC
    cell = crop.resize((CELL, CELL), how)
    first, last = CELL // 3, 2 * CELL // 3 - 1
    pen = ImageDraw.Draw(cell)
    pen.rectangle((first - 2, first - 2, last + 2, last + 2), outline="black")
    pen.rectangle((first - 1, first - 1, last + 1, last + 1), outline=YELLOW)
    return cell


def _worst(share_KK: NDArray[np.float64], names: Sequence[str]) -> str:
    """The three largest confusions, in words, a line each."""
    wrong_KK = np.nan_to_num(share_KK * (1 - np.eye(len(names))))
    pairs = [divmod(int(place), len(names)) for place in np.argsort(-wrong_KK, axis=None, kind="stable")[:3]]
    told = [f"{names[a]} taken for {names[b]}: {100 * wrong_KK[a, b]:.0f} %" for a, b in pairs if wrong_KK[a, b] > 0]
    return "\n".join(["most confused:", *told]) if told else "nothing is confused"


def _evenly(count: int, most: int) -> list[int]:
    """At most so many of the first numbers, evenly chosen, the first and the last among them."""
    return sorted({round(i * (count - 1) / max(1, most - 1)) for i in range(most)})


def _left_by_run(folder: str, name: str) -> bytes:
    if (data := read_bytes(f"{folder}/{name}")) is None:
        raise FileNotFoundError(f"{folder} holds no {name}: pictures are of complete runs.")
    return data


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
