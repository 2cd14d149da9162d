"""Plots of a finished run: how it learnt, what it confuses, and what its prototypes look like.

Shapes: N images, K classes.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from trainer import run_folder
from trainer.catalog import METHODS
from trainer.config import TrainConfig
from trainer.metric_names import TRAIN_LOSS
from trainer.plain_text import counted, printable
from trainer.plots.prototype_sheet import cached_prototype_sheet
from trainer.plots.style import BLUE, ORANGE, saving_figure
from trainer.storage.files import write_bytes
from trainer.storage.integrity import read_checked
from trainer.storage.run_results import read_predictions, read_run_card

if TYPE_CHECKING:
    from matplotlib.figure import Figure

T = TypeVar("T")

NAMED_CLASSES = 30
"""Number of classes up to which a confusion matrix has room for their names."""
NUMBERED_CLASSES = 12
"""Number of classes up to which each cell has room for a number."""


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
    """Write the plots of a finished run into its folder (path or URI).

    These are `learning_curve.png`, `confusion.png`, and `prototypes.png` for methods whose prompt starts from
    prototypes. All are written when the call returns. One that cannot be drawn costs no other.

    Args:
        epochs: the metrics of each epoch, from the first.
        prototype_cache: folder (path or URI) that keeps a sheet of prototypes for all runs that start from the same;
            None keeps none.

    Raises:
        FileNotFoundError: if the folder lacks a file of a finished run.
        ValueError: if a file of the run is damaged (DamagedFile).
        OSError: if data, prototype cache or folder cannot be read or written.
    """
    # The charts need neither torch nor a device, so a thread draws them beside the sheet. The sheet stays in the thread
    # of the training: torch's settings belong to the process, and no step may see them change.
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="charts") as thread:
        charts = thread.submit(_write_charts, config, epochs, folder)
        try:
            if METHODS[config.method].has_prototypes:
                stored = read_checked(f"{folder}/{run_folder.PROTOTYPES}", bytes)
                prototypes = _existing(stored, folder, run_folder.PROTOTYPES)
                sheet = cached_prototype_sheet(
                    config,
                    prototypes,
                    data_root=data_root,
                    weights=weights,
                    prototype_cache=prototype_cache,
                    device=device,
                )
                write_bytes(f"{folder}/{run_folder.PROTOTYPES_PLOT}", sheet)
        finally:
            charts.result()


def _write_charts(config: TrainConfig, epochs: Sequence[Mapping[str, float]], folder: str) -> None:
    """Write the learning curve and the confusion matrix. Errors are those of `draw_run_plots`."""
    write_bytes(f"{folder}/{run_folder.LEARNING_CURVE_PLOT}", learning_curve(config, epochs))

    table = _existing(read_predictions(folder), folder, run_folder.PREDICTIONS)
    class_names = _existing(read_run_card(folder), folder, run_folder.CARD).class_names
    label_N = table["label"].to_numpy()
    predicted_N = table["prediction"].to_numpy()
    matrix = confusion_matrix(label_N, predicted_N, class_names, f"{config.task} {config.eval_metric}")
    write_bytes(f"{folder}/{run_folder.CONFUSION_PLOT}", matrix)


def learning_curve(config: TrainConfig, epochs: Sequence[Mapping[str, float]]) -> bytes:
    """Return a PNG of the training loss and the accuracies by epoch.

    A final run has one accuracy, that of its last epoch.
    """
    # Here, because matplotlib is slow to import and workers import this module before they need it.
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    # Fixed margins: a layout that fits the texts would draw everything three times.
    figure = Figure(figsize=(6.2, 2.5), dpi=120)
    figure.subplots_adjust(left=0.09, right=0.98, bottom=0.17, top=0.81, wspace=0.22)
    loss_axes, accuracy_axes = figure.subplots(1, 2)
    numbers = range(1, len(epochs) + 1)
    marker = "o" if len(epochs) <= 20 else ""

    losses = [epoch[TRAIN_LOSS] for epoch in epochs]
    loss_axes.plot(numbers, losses, color=BLUE, marker=marker, markersize=3)
    if min(losses) > 0 and max(losses) > 10 * min(losses):
        loss_axes.set_yscale("log")

    last_values: list[str] = []
    for name, colour, style in ((config.eval_metric, BLUE, "-"), (f"{config.eval_metric}_ema", ORANGE, "--")):
        points = [(number, epoch[name]) for number, epoch in zip(numbers, epochs, strict=True) if name in epoch]
        if points:
            # A single point has no line, so it needs a marker to be seen.
            point_marker = marker or ("o" if len(points) == 1 else "")
            accuracy_axes.plot(
                *zip(*points, strict=True), color=colour, linestyle=style, marker=point_marker, markersize=3
            )
            last_values.append(f"{name} {points[-1][1]:.4f}")

    for axes, title in ((loss_axes, f"train/loss {losses[-1]:.4g}"), (accuracy_axes, "   ".join(last_values))):
        axes.set_title(title, fontsize=8)
        axes.set_xlabel("epoch", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlim(0.5, len(epochs) + 0.5)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    figure.suptitle(printable(f"{config.task}  {config.method}  lr {config.lr:.3g}"), fontsize=9, parse_math=False)
    return _png(figure)


def confusion_matrix(
    label_N: NDArray[np.int64], predicted_N: NDArray[np.int64], class_names: Sequence[str], title: str
) -> bytes:
    """Return a PNG of the confusion matrix. A row is a class: how its images were classified, as shares of the row.

    Any number of classes fits. A few classes are named at the axes; with many, the largest confusions are listed below.
    """
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    # Shares of each row. Rows of classes without images are NaN, and so stay as grey as the axes.
    class_names = [printable(name) for name in class_names]
    num_classes = len(class_names)
    count_KK = np.bincount(label_N * num_classes + predicted_N, minlength=num_classes**2).reshape(num_classes, -1)
    num_seen_K1 = count_KK.sum(axis=1, keepdims=True)
    share_KK = np.where(num_seen_K1 > 0, count_KK / num_seen_K1.clip(min=1), np.nan)

    # Layout in pixels. A cell has a whole number of them: otherwise some rows of a large matrix are drawn twice, and
    # others not at all.
    pixels = num_classes * min(max(1, round(600 / num_classes)), 56)
    names = [name if len(name) <= 24 else f"{name[:23]}…" for name in class_names]
    is_named = num_classes <= NAMED_CLASSES
    margin = 30 + 6 * max(map(len, names)) if is_named else 60
    width = max(pixels + margin + 100, 430)
    bottom = margin + 24 if is_named else 110
    left = margin + 16 if is_named else 60
    height = pixels + bottom + 50
    dpi = 110

    figure = Figure(figsize=(width / dpi, height / dpi), dpi=dpi)
    axes = figure.add_axes((left / width, bottom / height, pixels / width, pixels / height))
    axes.set_facecolor("#DDDDDD")

    # Small shares are drawn darker. A confusion of 4 %, or a single pixel of it, would be white on white.
    norm = PowerNorm(0.5 if is_named else 0.35, 0, 1)
    image = axes.imshow(share_KK, cmap="Blues", norm=norm, interpolation="nearest")
    bar_axes = figure.add_axes(((left + pixels + 14) / width, bottom / height, 10 / width, pixels / height))
    bar = figure.colorbar(image, cax=bar_axes, ticks=[0, 0.05, 0.25, 0.5, 1])
    bar.ax.set_yticklabels(["0", "5 %", "25 %", "50 %", "100 %"], fontsize=8)

    # parse_math is off for every name: a class may be called $a_1$.
    if is_named:
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

    accuracy = float((label_N == predicted_N).mean())
    figure.text(8 / width, 1 - 8 / height, f"{title} {accuracy:.4f}", fontsize=9, va="top", parse_math=False)
    note = f"{counted(len(label_N), 'image')}, % of each row"
    if not num_seen_K1.all():
        note += "; grey: no image of the class"
    figure.text(8 / width, 1 - 26 / height, note, fontsize=8, va="top", color="#444444")
    if not is_named:
        worst = _largest_confusions(share_KK, class_names)
        figure.text(8 / width, 6 / height, worst, fontsize=8, va="bottom", parse_math=False)
    return _png(figure)


def _largest_confusions(share_KK: NDArray[np.float64], class_names: Sequence[str]) -> str:
    """Return the three largest confusions in words, a line each."""
    wrong_KK = np.nan_to_num(share_KK * (1 - np.eye(len(class_names))))
    largest = np.argsort(-wrong_KK, axis=None, kind="stable")[:3]
    lines: list[str] = []
    for index in largest:
        label, predicted = divmod(int(index), len(class_names))
        if wrong_KK[label, predicted] > 0:
            share = 100 * wrong_KK[label, predicted]
            lines.append(f"{class_names[label]} taken for {class_names[predicted]}: {share:.0f} %")
    return "\n".join(["most confused:", *lines]) if lines else "nothing is confused"


def _existing(content: T | None, folder: str, name: str) -> T:
    """Return the content of a file of a finished run.

    Raises:
        FileNotFoundError: if there is none.
    """
    if content is None:
        raise FileNotFoundError(f"{folder} has no {name}: only finished runs can be plotted.")
    return content


def _png(figure: Figure) -> bytes:
    """Return a figure as a PNG."""
    buffer = io.BytesIO()
    # Without the version of matplotlib: the same run has the same bytes.
    with saving_figure():
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
