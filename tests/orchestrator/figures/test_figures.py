"""Figures contain the results of the trials: their data, their texts, and only finite numbers."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import math
import statistics
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text

from orchestrator.drivers.replay import Clock, ReplayDriver, SyntheticCurves
from orchestrator.figures.draw import draw_figures, save_figure, study_figures
from orchestrator.figures.params import upper_hull
from orchestrator.figures.style import decades, finish, name_axes, number, panels, plain, style_at, style_of
from orchestrator.spec.loader import parse_spec
from orchestrator.spec.plan import StudyPlan, plan_sweep
from orchestrator.study.storage.database import StudyDatabase
from orchestrator.study.study import Study
from orchestrator.study.trial import Epoch, Failure, FailureCause, Trial, TrialState
from orchestrator.sweep.sweep import Sweep
from orchestrator.sweep.tracker import MemoryTracker
from tests.orchestrator.report.reports import run
from trainer.catalog import BACKBONES, BUNDLED, METHODS
from trainer.config import TrainConfig

LINEAR: dict[str, Any] = {"methods": ["linear"], "fixed": {"epochs": 2, "warmup_epochs": 0}}
"""Changes for a spec without prompts."""
MAE = [name for name, row in BACKBONES.items() if row.pretraining == "mae"]


class Rich:
    """Synthetic curves with all metrics of a trainer: higher with more images and larger networks, noisy over seeds.

    Args:
        failing: numbers of search trials that fail before their first epoch ends.
        broken: whether some metrics are sometimes NaN.
    """

    def __init__(self, plans: Sequence[StudyPlan], *, failing: Sequence[int] = (), broken: bool = False) -> None:
        self._plain = SyntheticCurves(plans)
        self._failing = failing
        self._broken = broken

    def __call__(self, trial: Trial) -> Iterator[tuple[Epoch | Failure, float]]:
        if trial.phase == "search" and trial.number in self._failing:
            yield Failure(error="TrainingDiverged: nan", cause=FailureCause.DIVERGED), 1.0
            return
        config = trial.config
        layers = BACKBONES[config.backbone].num_layers
        learns = 0.3 + 0.7 * hashlib.sha256(config.method.encode()).digest()[0] / 255
        images = images_of(config)
        wobble = 0.02 * (hashlib.sha256(trial.trial_id.encode()).digest()[1] / 255 - 0.5)
        height = (1 - 0.9 * images**-0.25) * (0.7 + 0.3 * learns) * (1 - 1 / layers) + wobble
        for event, seconds in self._plain(trial):
            assert isinstance(event, Epoch)
            metrics = {
                name: value * (height if name.endswith("accuracy") else 1.0) for name, value in event.metrics.items()
            }
            metrics["train/images"] = images
            if event.epoch == 1:
                millions = layers * BACKBONES[config.backbone].embed_dim ** 2 * 12
                metrics |= {"learnable/parameters": millions * 0.004, "learnable/share": 0.004}
                if config.method.startswith("spt"):
                    slow = 30.0 if config.prompt_init == "kmeans" else 1.0
                    metrics["prototypes/seconds"] = slow * (1 + (config.prompt_length or 0) / 10)
            if config.nmi:
                for layer in range(layers):
                    level = 0.03 + 0.3 * learns * (1 - math.exp(-event.epoch / 5)) * (1 - layer / layers / 2)
                    metrics[f"nmi/layer_{layer:02d}"] = level
                    if event.epoch == 1:
                        metrics[f"initial/nmi/layer_{layer:02d}"] = 0.02 + layer / 1000
            if self._broken and event.epoch % 3 == 2:
                metrics |= {"train/loss": math.nan, "nmi/layer_00": math.nan}
            yield dataclasses.replace(event, metrics=metrics), seconds


def images_of(config: TrainConfig) -> float:
    """Return the number of training images of a task with ten classes."""
    size = config.train_size
    if isinstance(size, str):
        return 10.0 * int(size.split()[0])
    return float(size) if isinstance(size, int) else round(800 * size)


def driven(
    raw: dict[str, Any],
    folder: Path,
    *,
    failing: Sequence[int] = (),
    broken: bool = False,
    until: float = math.inf,
    **changes: Any,
) -> list[Study]:
    """Run a sweep on a virtual clock, and return its studies."""
    spec = parse_spec(raw | changes, "a test")
    clock = Clock()
    url = f"sqlite:///{folder / f'{next(_NAMES)}.db'}"
    sweep = Sweep.resume(spec, StudyDatabase(url), MemoryTracker(), clock=clock)
    ReplayDriver(Rich(plan_sweep(spec).studies, failing=failing, broken=broken), clock, workers=2, until=until).run(
        sweep
    )
    return sweep.studies


_NAMES = itertools.count()


def only(figures: Iterator[tuple[str, Figure]], name: str) -> Figure:
    by_name = dict(figures)
    assert name in by_name, f"{name} is not among {sorted(by_name)}"
    return by_name[name]


def words(figure: Figure) -> list[str]:
    """Return the texts of the legend."""
    return [entry.get_text() for legend in figure.legends for entry in legend.get_texts()]


def labels(figure: Figure) -> list[tuple[str, str]]:
    return [(ax.get_xlabel(), ax.get_ylabel()) for ax in figure.axes]


def title(figure: Figure) -> str:
    return " ".join(figure.get_suptitle().split())


def lines(figure: Figure, index: int = 0) -> list[Line2D]:
    return list(figure.axes[index].lines)


def data(line: Line2D) -> tuple[list[float], list[float]]:
    return np.asarray(line.get_xdata(), float).tolist(), np.asarray(line.get_ydata(), float).tolist()


def drawn_numbers(figure: Figure) -> list[float]:
    """Return all coordinates of lines and heights of bars."""
    coordinates = [value for ax in figure.axes for line in ax.lines for axis in data(line) for value in axis]
    heights = [patch.get_height() for ax in figure.axes for patch in ax.patches if hasattr(patch, "get_height")]
    return coordinates + heights


@pytest.fixture
def simple(raw_spec: dict[str, Any]) -> dict[str, Any]:
    """A spec with two trials per study, over the learning rate only and without a pruner."""
    raw_spec["space"] = {"lr": raw_spec["space"]["lr"]}
    raw_spec["fixed"] |= {"prompt_length": 5, "prompt_init": "mean_pool"}
    raw_spec["search"] |= {"trials": 2, "pruner": {"type": "none"}}
    return raw_spec


@pytest.fixture
def pruned_study(raw_study: dict[str, Any], tmp_path: Path) -> Study:
    """A study with complete, pruned and failed trials."""
    (study,) = driven(raw_study, tmp_path, failing=(2,))
    states = {trial.state for trial in study.search_table.trials}
    assert states == {TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAILED}
    return study


def test_learning_curves_show_every_trial_with_an_epoch_and_the_chosen_one_bold(pruned_study: Study) -> None:
    figure = only(study_figures(pruned_study), "learning_curves")
    best = pruned_study.best
    assert best is not None
    accuracy, loss = lines(figure), lines(figure, 1)
    drawn = [trial for trial in pruned_study.search_table.trials if trial.epochs and trial.duplicate_of is None]
    assert len(accuracy) == len(loss) == len(drawn)
    assert sorted(data(line)[1] for line in accuracy) == sorted(
        [100 * epoch["val/accuracy"] for epoch in trial.epochs] for trial in drawn
    )
    (bold,) = [line for line in accuracy if line.get_linewidth() > 1]
    assert data(bold) == ([*range(1, 10)], [100 * epoch["val/accuracy"] for epoch in best.epochs])
    assert bold.get_color() == style_of("spt_deep").color
    dashed = [line for line in accuracy if line.get_linestyle() == "--"]
    assert {len(data(line)[0]) for line in dashed} == {len(t.epochs) for t in drawn if t.state is TrialState.PRUNED}
    assert words(figure) == ["complete", "pruned", f"chosen (trial {best.number})"]
    assert labels(figure) == [("epoch", "val accuracy, %"), ("epoch", "train loss")]
    assert title(figure) == "search: demo/digits, spt_deep, vit_nano_patch4_32.mae, all training images"


def test_each_searched_parameter_has_a_panel_on_its_own_scale(pruned_study: Study) -> None:
    figure = only(study_figures(pruned_study), "params")
    assert [x for x, _ in labels(figure)] == list(pruned_study.plan.space)
    assert [ax.get_xscale() for ax in figure.axes] == ["log", "linear", "linear"]
    assert [tick.get_text() for tick in figure.axes[1].get_xticklabels()] == ["1", "5", "64"]
    assert words(figure)[:2] == ["complete", "chosen"]
    assert words(figure)[-2:] == ["median", "upper edge"], "plain words for the two lines"
    best = pruned_study.best
    assert best is not None
    assert best.score is not None
    (star,) = [line for line in lines(figure) if line.get_marker() == "*"]
    assert data(star) == ([best.params["lr"]], [100 * best.score])
    (cross,) = [line for line in lines(figure) if line.get_marker() == "x"]
    assert data(cross)[0] == [pruned_study.search_table.trials[2].params["lr"]], "a failed trial is drawn, not dropped"
    medians = [line for line in lines(figure, 1) if len(set(data(line)[1])) == 1 and line.get_linewidth() == 1.2]
    for line in medians:
        (left, _), (height, _) = data(line)
        value = pruned_study.plan.space["prompt_length"].values[round(left + 0.3)]  # type: ignore[union-attr]
        scores = [
            100 * trial.score
            for trial in pruned_study.search_table.trials
            if trial.score is not None and trial.duplicate_of is None and trial.params["prompt_length"] == value
        ]
        assert height == pytest.approx(statistics.median(scores))


def test_the_hull_lies_above_all_points() -> None:
    points = [(0.0, 1.0), (1.0, 3.0), (2.0, 3.5), (2.0, 0.0), (3.0, 2.0), (1.5, 1.0), (4.0, 2.5)]
    assert upper_hull(points) == [(0.0, 1.0), (1.0, 3.0), (2.0, 3.5), (4.0, 2.5)]
    assert upper_hull([]) == []
    assert upper_hull([(1.0, 2.0), (1.0, 3.0)]) == [(1.0, 3.0)]


def test_the_grid_has_a_line_per_text_over_shares_and_counts_and_the_cost_below(
    raw_study: dict[str, Any], tmp_path: Path
) -> None:
    raw_study["space"] = {
        "prompt_init": {"type": "choice", "values": ["mean_pool", "kmeans"]},
        "init_images": {"type": "choice", "values": [1, 200, 0.1, 0.5]},
    }
    raw_study["fixed"]["prompt_length"] = 5
    raw_study["search"] |= {"trials": 8, "sampler": "grid", "max_concurrent": 1, "pruner": {"type": "none"}}
    (study,) = driven(raw_study, tmp_path)
    figure = only(study_figures(study), "grid")
    assert words(figure) == ["mean_pool", "kmeans"]
    assert labels(figure) == [("", "best val accuracy, %"), ("init_images", "building time, s")]
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["1", "200", "0.1", "0.5"]
    assert figure.axes[1].get_yscale() == "log"
    for line, word in zip(lines(figure), ("mean_pool", "kmeans"), strict=True):
        cells = {
            repr(trial.params["init_images"]): 100 * (trial.score or 0.0)
            for trial in study.search_table.trials
            if trial.params["prompt_init"] == word
        }
        assert data(line) == ([0, 1, 2, 3], [cells[value] for value in ("1", "200", "0.1", "0.5")])
    assert [data(line)[1] for line in lines(figure, 1)] == [[1.5] * 4, [45.0] * 4]


def test_the_grid_needs_exactly_one_choice_of_each_kind(simple: dict[str, Any], tmp_path: Path) -> None:
    raw = simple | {"tasks": ["demo/digits"], "methods": ["spt_deep"]}
    choice = {"prompt_length": {"type": "choice", "values": [1, 5]}}
    fixed = {"epochs": 2, "warmup_epochs": 0, "prompt_init": "random"}
    for changes in ({}, {"space": choice, "fixed": fixed}):
        (study,) = driven(raw | changes, tmp_path)
        assert "grid" not in dict(study_figures(study))


def test_bars_are_mean_and_std_of_final_trials_with_published_numbers_beside(
    simple: dict[str, Any], tmp_path: Path
) -> None:
    studies = driven(simple, tmp_path)
    published = {BUNDLED: {("spt_deep", "demo/digits"): 71.5}, "elsewhere": {("linear", "demo/digits"): 12.0}}
    figure = only(draw_figures(studies, published=published), "per_task")
    (ax,) = figure.axes
    bars = [group for group in ax.containers if isinstance(group, BarContainer)]
    heights = {group.get_label(): [bar.get_height() for bar in group] for group in bars}
    for study in studies:
        mean = 100 * statistics.mean(trial.score or 0.0 for trial in study.requested_final_trials)
        assert heights[study.plan.method][study.plan.task == "demo/shapes_loc"] == pytest.approx(mean)
    (diamonds,) = [line for line in ax.lines if line.get_marker() == "d"]
    assert data(diamonds)[1] == [71.5]
    assert words(figure) == ["spt_deep", "linear", "published"]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["digits", "shapes_loc"]
    assert "published" not in words(only(draw_figures(studies), "per_task"))


def test_a_method_without_a_score_has_a_dash(simple: dict[str, Any], tmp_path: Path) -> None:
    done = driven(simple, tmp_path)
    missing = driven(simple, tmp_path, until=1.0)
    figure = only(draw_figures([*done[:3], missing[3]]), "per_task")
    assert [text.get_text() for text in figure.axes[0].texts] == ["–"]


def test_all_tasks_and_methods_fit_and_keep_their_styles(simple: dict[str, Any], tmp_path: Path) -> None:
    simple["search"]["trials"] = 1
    changes = LINEAR | {"methods": ["linear", "full"]}
    studies = driven(simple, tmp_path, tasks=["vtab", "fgvc"], final={"seeds": [1]}, **changes)
    figure = only(draw_figures(studies, each_study=False), "per_task")
    assert sum(len(ax.get_xticklabels()) for ax in figure.axes) == 24
    bars = [group for group in figure.axes[0].containers if isinstance(group, BarContainer)]
    colors = {group.get_label(): group[0].get_facecolor()[:3] for group in bars}
    assert len(set(colors.values())) == 2
    _check_no_text_is_cut(figure)
    assert len({dataclasses.astuple(style_of(method))[:2] for method in METHODS}) == len(METHODS)
    assert len({str(style_of(method).line) for method in METHODS}) == len(METHODS), "distinguishable in grey print, too"


def test_every_method_is_a_point_over_its_cost_and_the_best_are_joined(simple: dict[str, Any], tmp_path: Path) -> None:
    def shares(trial: Trial) -> dict[str, float]:
        return {"learnable/parameters": 100.0, "learnable/share": SHARES[trial.config.method], "epoch/seconds": 36.0}

    SHARES = {"spt_deep": 0.01, "linear": 0.001, "full": 1.0}
    accuracy = {"spt_deep": 0.9, "linear": 0.5, "full": 0.7}
    raw = simple | {"methods": [*SHARES], "tasks": ["demo/digits", "demo/shapes_loc"]}
    url = f"sqlite:///{tmp_path / 'cost.db'}"
    studies = run(raw, url, metrics=shares, score=lambda trial: accuracy[trial.config.method])

    figure = only(draw_figures(studies), "cost")
    points = {line.get_color(): data(line) for line in lines(figure) if line.get_linestyle() == "None"}
    assert points.keys() == {style_of(method).color for method in SHARES}
    for method, share in SHARES.items():
        xs, ys = points[style_of(method).color]
        assert xs == [100 * share]
        assert ys == pytest.approx([100 * accuracy[method]])
    # Full fine-tuning costs more than SPT and reaches less.
    (front,) = [line for line in lines(figure) if line.get_linestyle() != "None"]
    assert data(front)[0] == [0.1, 1.0]
    assert data(front)[1] == pytest.approx([50.0, 90.0])
    assert len(figure.axes) == 2, "the second panel has hours"
    _check_no_text_is_cut(figure)

    assert "cost" not in dict(draw_figures([study for study in studies if study.plan.method == "full"]))


def test_every_method_has_a_style_of_its_own() -> None:
    styles = [style_at(index) for index in range(49)]
    assert len({(style.color, style.marker) for style in styles}) == 49
    assert len({(style.color, style.hatch) for style in styles}) == 49


def test_tuning_size_has_a_line_a_band_and_a_law_per_method(simple: dict[str, Any], tmp_path: Path) -> None:
    studies = driven(simple, tmp_path, train_sizes=[50, 200, 1.0])
    figure = only(draw_figures(studies, each_study=False), "tuning_size")
    (ax,) = figure.axes
    measured = {line.get_color(): data(line) for line in ax.lines if line.get_marker() != "None"}
    laws = [data(line) for line in ax.lines if line.get_marker() == "None"]
    for method in ("spt_deep", "linear"):
        images, means = measured[style_of(method).color]
        assert images == [50, 200, 800]
        at_most = [s for s in studies if s.plan.method == method and s.plan.train_size == 1.0]
        scores = [statistics.mean(trial.score or 0.0 for trial in study.requested_final_trials) for study in at_most]
        assert means[-1] == pytest.approx(100 * statistics.mean(scores))
    assert len(ax.collections) == len(laws) == 2
    assert all([xs[0], xs[-1]] == pytest.approx([50, 800]) for xs, _ in laws), "drawn where something was measured"
    assert ax.get_xscale() == "log"
    assert [word.partition(" = ")[0] for word in words(figure)] == ["spt_deep: error", "linear: error"]
    assert "mean of 2 tasks" in title(figure)
    one = driven(simple, tmp_path, train_sizes=[50, 1.0], final={"seeds": [1]}, **LINEAR)
    plain = only(draw_figures(one, each_study=False), "tuning_size")
    assert words(plain) == ["linear"], "two sizes have no law"
    assert not plain.axes[0].collections, "and one seed no band"
    rest = [study for study in studies if (study.plan.task, study.plan.train_size) != ("demo/digits", 200)]
    unscored = driven(simple, tmp_path, tasks=["demo/digits"], train_sizes=[200], until=1.0)
    assert "demo/shapes_loc, 1 left out (not scored" in title(only(draw_figures([*rest, *unscored]), "tuning_size"))
    assert "tuning_size" not in dict(draw_figures(driven(simple, tmp_path), each_study=False))


def test_model_size_connects_backbones_of_one_pretraining(simple: dict[str, Any], tmp_path: Path) -> None:
    studies = driven(simple, tmp_path, tasks=["vtab/dtd", "vtab/svhn"], backbones=MAE[1:3])
    figure = only(draw_figures(studies, each_study=False), "model_size")
    drawn = {line.get_color(): data(line) for line in lines(figure) if line.get_linestyle() != "None"}
    for method in ("spt_deep", "linear"):
        expected = []
        for backbone in MAE[1:3]:
            on_backbone = [s for s in studies if (s.plan.method, s.plan.backbone) == (method, backbone)]
            expected.append(
                100 * statistics.mean(t.score or 0.0 for study in on_backbone for t in study.requested_final_trials)
            )
        millions, means = drawn[style_of(method).color]
        assert millions == pytest.approx([12 * 768**2 * 12 / 1e6, 24 * 1024**2 * 12 / 1e6])
        assert means == pytest.approx(expected)
    assert words(figure) == ["spt_deep", "linear"]
    assert labels(figure) == [("parameters of the network, millions", "test accuracy, %")]
    different = driven(simple, tmp_path, tasks=["vtab/dtd"], backbones=[MAE[1], "vit_large_patch16_224.augreg_in21k"])
    assert "model_size" not in dict(draw_figures(different, each_study=False)), "these two differ in more than size"


def test_mutual_information_is_the_mean_over_layers_between_the_lowest_and_highest(
    simple: dict[str, Any], tmp_path: Path
) -> None:
    simple["fixed"]["nmi"] = True
    studies = driven(simple, tmp_path, methods=["spt_deep", "vpt_deep"])
    figure = only(draw_figures(studies, each_study=False), "nmi")
    assert [ax.get_title() for ax in figure.axes] == ["demo/digits", "demo/shapes_loc"]
    line = next(line for line in lines(figure) if line.get_color() == style_of("spt_deep").color)
    epochs = studies[0].requested_final_trials[0].epochs
    layers = [[v for n, v in epoch.items() if n.startswith("nmi/")] for epoch in epochs]
    layers.insert(0, [v for n, v in epochs[0].items() if n.startswith("initial/nmi/")])
    assert data(line)[0] == [*range(10)], "from the prompt before the first step"
    assert data(line)[1] == pytest.approx([statistics.mean(values) for values in layers])
    assert data(line)[1][0] == pytest.approx(0.02 + 2 / 1000)
    assert words(figure) == ["spt_deep", "vpt_deep"]
    assert "nmi" not in dict(draw_figures(driven(simple, tmp_path, **LINEAR), each_study=False))


def test_mutual_information_of_trials_without_an_initial_value_starts_at_the_first_epoch(
    simple: dict[str, Any], tmp_path: Path
) -> None:
    # Trials of version 0.1.0 have none.
    simple["fixed"]["nmi"] = True
    studies = driven(simple, tmp_path, methods=["spt_deep"])
    for study in studies:
        for trial in study.final_table.trials:
            for name in [name for name in trial.epochs[0] if name.startswith("initial/")]:
                del trial.epochs[0][name]
    figure = only(draw_figures(studies, each_study=False), "nmi")
    assert all(data(line)[0] == [*range(1, 10)] for line in lines(figure))


def test_a_line_crosses_all_parameters_of_a_trial_and_ends_at_its_accuracy(pruned_study: Study) -> None:
    figure = only(study_figures(pruned_study), "parallel")
    through = [line for line in lines(figure) if len(data(line)[0]) == 4]
    drawn = [t for t in pruned_study.search_table.trials if t.epochs and t.duplicate_of is None]
    assert len(through) == len(drawn)
    (bold,) = [line for line in through if line.get_linewidth() > 2]
    best = pruned_study.best
    assert best is not None
    heights = data(bold)[1]
    assert heights[0] == pytest.approx(math.log(best.params["lr"] / 0.001) / math.log(100))
    assert heights[1] == [1, 5, 64].index(best.params["prompt_length"]) / 2
    assert heights[3] == 1.0, "the best is on top"
    assert words(figure) == ["chosen", "complete", "pruned"]
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == [
        *pruned_study.plan.space,
        "val accuracy, %",
    ]


def test_importances_come_from_the_caller_and_are_sorted(pruned_study: Study) -> None:
    shares = {"lr": 0.6, "prompt_length": 0.1, "prompt_init": 0.3}
    figure = only(study_figures(pruned_study, lambda study: shares if study is pruned_study else {}), "importances")
    (ax,) = figure.axes
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["prompt_length", "prompt_init", "lr"]
    assert [bar.get_width() for bar in ax.patches] == pytest.approx([10, 30, 60])  # type: ignore[attr-defined]
    assert "importances" not in dict(study_figures(pruned_study, lambda _: {})), "they could not be estimated"
    assert "importances" not in dict(study_figures(pruned_study))


def test_figures_without_data_are_not_drawn(simple: dict[str, Any], raw_study: dict[str, Any], tmp_path: Path) -> None:
    assert dict(draw_figures(driven(simple, tmp_path, until=-1.0))) == {}, "no trial has started"
    assert dict(draw_figures([])) == {}
    failed = driven(simple, tmp_path, failing=(0, 1))
    assert dict(draw_figures(failed, importances=lambda _: {})) == {}, "all trials failed"


def test_a_search_of_pruned_trials_only_has_no_chosen_one(pruned_study: Study) -> None:
    pruned = [trial for trial in pruned_study.search_table.trials if trial.state is TrialState.PRUNED]
    pruned_study.search_table.trials[:] = pruned
    figures = dict(study_figures(pruned_study))
    assert figures.keys() == {"learning_curves", "params", "parallel"}
    assert words(figures["learning_curves"]) == words(figures["parallel"]) == ["pruned"]
    assert words(figures["params"]) == ["pruned (last value)"]


def test_one_trial_of_one_epoch_is_drawn(raw_study: dict[str, Any], tmp_path: Path) -> None:
    raw_study["fixed"] |= {"epochs": 1, "warmup_epochs": 0}
    raw_study["search"] |= {"trials": 1, "pruner": {"type": "none"}}
    figures = dict(draw_figures(driven(raw_study, tmp_path, final={"seeds": [1]})))
    assert len(figures) == 5
    (line,) = lines(figures["demo-digits-spt_deep-vit_nano_patch4_32.mae-1-learning_curves"])
    assert line.get_marker() == "o", "a line of one point would be invisible"
    for figure in figures.values():
        figure.canvas.draw()


def test_only_finite_numbers_are_drawn(simple: dict[str, Any], tmp_path: Path) -> None:
    simple["fixed"]["nmi"] = True
    figures = dict(draw_figures(driven(simple, tmp_path, broken=True, methods=["spt_deep"])))
    assert {"per_task", "nmi"} <= figures.keys()
    for name, figure in figures.items():
        assert all(math.isfinite(value) for value in drawn_numbers(figure)), name
    loss = lines(next(figure for name, figure in figures.items() if name.endswith("learning_curves")), 1)
    assert {tuple(data(line)[0]) for line in loss} == {(1, 3, 4, 6, 7, 9)}


def test_lines_pass_below_the_axes_of_conditional_parameters_without_a_value(
    raw_study: dict[str, Any], tmp_path: Path
) -> None:
    raw_study["space"] |= {
        "weight_decay": {"type": "float", "low": 1e-4, "high": 0.1, "log": True},
        "head_weight_decay": {"type": "float", "low": 0.01, "high": 10.0, "log": True},
        "drop_path": {"type": "float", "low": 0.0, "high": 0.3},
        "batch_size": {"type": "int", "low": 16, "high": 64},
        "init_images": {"type": "choice", "values": [0.1, 1.0], "when": {"prompt_init": ["mean_pool"]}},
    }
    raw_study["search"] |= {"sampler": "random", "pruner": {"type": "none"}, "trials": 10}
    (study,) = driven(raw_study, tmp_path)
    figures = dict(study_figures(study))
    assert [x for x, _ in labels(figures["params"])] == list(study.plan.space)
    through = [data(line)[1] for line in lines(figures["parallel"]) if len(data(line)[0]) == 9]
    without = sum("init_images" not in trial.params for trial in study.search_table.trials)
    assert 0 < without == sum(heights[list(study.plan.space).index("init_images")] < 0 for heights in through)
    assert "not\nused" in [text.get_text() for text in figures["parallel"].axes[0].texts]
    for figure in figures.values():
        _check_no_text_is_cut(figure)


def _ticks(ax: Axes) -> list[Text]:
    """Return the visible labels of the x axis. matplotlib keeps others beyond its ends."""
    low, high = ax.get_xlim()
    return [label for at, label in zip(ax.get_xticks(), ax.get_xticklabels(), strict=True) if low <= at <= high]


def _check_no_text_is_cut(figure: Figure) -> None:
    figure.canvas.draw()
    page = figure.bbox
    titles = [figure._suptitle] if figure._suptitle else []  # type: ignore[attr-defined]
    for text in [*titles, *[tick for ax in figure.axes for tick in _ticks(ax)]]:
        box = text.get_window_extent()
        assert box.x0 >= page.x0 - 1 and box.x1 <= page.x1 + 1 and box.y0 >= page.y0 - 1, f"{text.get_text()} is cut"


def test_stems_name_backbones_and_sizes_if_there_are_several(simple: dict[str, Any], tmp_path: Path) -> None:
    studies = driven(simple, tmp_path, train_sizes=[{"per_class": 5}, 0.5], backbones=MAE[:2], **LINEAR)
    names = [name for name, _ in draw_figures(studies, each_study=False)]
    assert len(names) == len(set(names))
    assert f"per_task-{BUNDLED}-5-per-class" in names
    assert f"per_task-{MAE[1]}-0.5" in names
    studies_too = [name for name, _ in draw_figures(studies)]
    assert len(studies_too) == len(set(studies_too)) > len(names)
    assert not any("/" in name or " " in name for name in studies_too)


def test_a_figure_is_written_as_an_image_and_as_editable_pdf(pruned_study: Study, tmp_path: Path) -> None:
    figure = only(study_figures(pruned_study), "params")
    png, pdf = save_figure(figure, tmp_path / "new" / "folder", "a.b")
    assert sorted(path.name for path in png.parent.iterdir()) == ["a.b.pdf", "a.b.png"], "no drafts are left"
    assert png.read_bytes().startswith(b"\x89PNG")
    width = int.from_bytes(png.read_bytes()[16:20], "big")
    assert width == pytest.approx(6.8 * 200, abs=2)
    assert b"/Type3" not in pdf.read_bytes() and b"/CIDFontType2" in pdf.read_bytes(), "TrueType, not outlines"
    before = pdf.read_bytes()
    save_figure(only(study_figures(pruned_study), "params"), tmp_path / "new" / "folder", "a.b")
    assert pdf.read_bytes() == before, "the same figure is the same file"


def test_a_name_is_in_a_figure_as_it_is(tmp_path: Path) -> None:
    figure, (ax,) = panels(1, width=3.3, height=2.0)
    (line,) = ax.plot([0, 1], [0, 1])
    names = ["_hidden", "$a$", "字漢", "a_b^c", "\\frac{1}", "x" * 80]
    name_axes(ax, "$x_1$", "_y")
    finish(figure, "of $a$ and 字", dict.fromkeys(names, line), of="_z")
    save_figure(figure, tmp_path, "names")
    (legend,) = figure.legends
    assert [entry.get_text().replace(r"\$", "$") for entry in legend.get_texts()] == names
    assert plain("a\x1b\udce9") == r"a\x1b\udce9"


def test_figures_are_drawn_in_any_thread(pruned_study: Study, tmp_path: Path) -> None:
    def draw(index: int) -> None:
        try:
            for stem, figure in study_figures(pruned_study):
                save_figure(figure, tmp_path / f"{index}", stem)
        except Exception as error:
            raised.append(error)

    raised: list[Exception] = []
    threads = [threading.Thread(target=draw, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert raised == []
    contents = [{path.name: path.read_bytes() for path in (tmp_path / f"{index}").iterdir()} for index in range(2)]
    assert contents[0] == contents[1]


def test_drawing_imports_no_other_library() -> None:
    forbidden = "{'torch', 'optuna', 'mlflow', 'ray', 'matplotlib.pyplot'}"
    code = f"import sys, orchestrator.figures.draw; sys.exit(bool({forbidden} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("low", "high", "marks"),
    [
        (1e-3, 0.1, [1e-3, 1e-2, 1e-1]),
        (5e-3, 5e-2, [5e-3, 5e-2]),
        (1e-6, 10.0, [1e-6, 1e-4, 1e-2, 1.0]),
        (2.0, 3.0, [2.0, 3.0]),
    ],
)
def test_a_logarithmic_axis_has_at_least_two_ticks(low: float, high: float, marks: list[float]) -> None:
    assert decades(low, high) == pytest.approx(marks)


def test_numbers_on_axes_are_short() -> None:
    assert [number(value) for value in (12000, 800, 84.94, 0.05, 1e-5)] == ["12,000", "800", "84.9", "0.05", "1e-05"]
