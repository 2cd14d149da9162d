"""Pictures of a finished run: how it learnt, what it confuses, and what its prototypes look like.

Shapes: L prompted layers, P prompts, K classes (of neighbours: nearest), D width, S side of an image.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from trainer import run_folder
from trainer.catalog import METHODS
from trainer.config import TrainConfig
from trainer.metric_names import TRAIN_LOSS
from trainer.plots.prototype_sheet import cached_prototype_sheet
from trainer.plots.style import BLUE, ORANGE
from trainer.run_folder import RunCard
from trainer.storage.files import read_bytes, write_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMED_CLASSES = 30
"""Classes up to which a confusion matrix has room for their names."""
NUMBERED_CLASSES = 12
"""Classes up to which each of its cells has room for a number."""


def draw_run_plots(
    config: TrainConfig,
    epochs: Sequence[Mapping[str, float]],
    folder: str,
    *,
    data_root: str,
    weights: str | None = None,
    prototype_cache: str | None = None,
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
    write_bytes(f"{folder}/{run_folder.LEARNING_CURVE_PLOT}", learning_curve(config, epochs))
    table = pq.read_table(io.BytesIO(_left_by_run(folder, run_folder.PREDICTIONS)))
    names = RunCard.from_json(_left_by_run(folder, run_folder.CARD)).class_names
    label_N, predicted_N = (table[column].to_numpy() for column in ("label", "prediction"))
    matrix = confusion_matrix(label_N, predicted_N, names, f"{config.task} {config.eval_metric}")
    write_bytes(f"{folder}/{run_folder.CONFUSION_PLOT}", matrix)
    if len(METHODS[config.method].prompt_inits) > 1:
        prototypes = _left_by_run(folder, run_folder.PROTOTYPES)
        sheet = cached_prototype_sheet(
            config, prototypes, data_root=data_root, weights=weights, prototype_cache=prototype_cache, device=device
        )
        write_bytes(f"{folder}/{run_folder.PROTOTYPES_PLOT}", sheet)


def learning_curve(config: TrainConfig, epochs: Sequence[Mapping[str, float]]) -> bytes:
    """A PNG of the training loss and of the accuracies by epoch; a final run has one accuracy, of its last epoch."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(6.2, 2.5), dpi=120, layout="constrained")
    loss_axes, score_axes = figure.subplots(1, 2)
    number = range(1, len(epochs) + 1)
    marker = "o" if len(epochs) <= 20 else ""
    loss = [epoch[TRAIN_LOSS] for epoch in epochs]
    loss_axes.plot(number, loss, color=BLUE, marker=marker, markersize=3)
    if min(loss) > 0 and max(loss) > 10 * min(loss):
        loss_axes.set_yscale("log")
    told: list[str] = []
    for name, colour, style in ((config.eval_metric, BLUE, "-"), (f"{config.eval_metric}_ema", ORANGE, "--")):
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


def confusion_matrix(
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


def _worst(share_KK: NDArray[np.float64], names: Sequence[str]) -> str:
    """The three largest confusions, in words, a line each."""
    wrong_KK = np.nan_to_num(share_KK * (1 - np.eye(len(names))))
    pairs = [divmod(int(place), len(names)) for place in np.argsort(-wrong_KK, axis=None, kind="stable")[:3]]
    told = [f"{names[a]} taken for {names[b]}: {100 * wrong_KK[a, b]:.0f} %" for a, b in pairs if wrong_KK[a, b] > 0]
    return "\n".join(["most confused:", *told]) if told else "nothing is confused"


def _left_by_run(folder: str, name: str) -> bytes:
    if (data := read_bytes(f"{folder}/{name}")) is None:
        raise FileNotFoundError(f"{folder} holds no {name}: pictures are of complete runs.")
    return data


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
