"""Figures of a sweep: `draw_figures` draws those that there is data for, and `save_figure` writes one.

Figures of a study: learning_curves, params, grid, parallel, importances. Figures of the sweep: per_task, cost,
tuning_size, model_size, nmi. The docstring of its function describes each figure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import matplotlib

from orchestrator.figures.cost import accuracy_by_cost
from orchestrator.figures.learning import learning_curves, mutual_information
from orchestrator.figures.params import against_params, choice_grid
from orchestrator.figures.search import importance_bars, parallel_coordinates
from orchestrator.figures.sizes import model_size, tuning_size
from orchestrator.figures.style import slug
from orchestrator.figures.tasks import per_task
from orchestrator.spec.labels import train_size_text
from trainer.plain_text import format_train_size
from trainer.plots.style import saving_figure
from trainer.storage.files import publish

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from orchestrator.study.study import Study

Key = TypeVar("Key")
Importances = Callable[["Study"], Mapping[str, float]]
"""Returns the importance of each searched parameter of a study, 0..1; empty if it cannot be estimated."""
Published = Mapping[str, Mapping[tuple[str, str], float]]
"""Test accuracy in percent: by backbone, then by method and task."""

STUDY_FIGURES: dict[str, Callable[[Study], Figure | None]] = {
    "learning_curves": learning_curves,
    "params": against_params,
    "grid": choice_grid,
    "parallel": parallel_coordinates,
}
"""Figures of one study by file stem. `importances` is another one, which needs more than the study."""

DPI = 200
# Without a date, the same figure is the same PDF.
SAVE_OPTIONS: dict[str, dict[str, Any]] = {"png": {"dpi": DPI}, "pdf": {"metadata": {"CreationDate": None}}}
"""Options of `savefig` by kind of file."""
TRUETYPE = 42
"""Type of the fonts in PDF files. Text in TrueType fonts can be edited."""


def draw_figures(
    studies: Sequence[Study],
    *,
    published: Published | None = None,
    importances: Importances | None = None,
    each_study: bool = True,
) -> Iterator[tuple[str, Figure]]:
    """Yield the figures of a sweep that there is data for, each with its file stem. They are drawn lazily.

    Args:
        studies: the sweep's studies with the epochs of their trials. Without epochs there are no learning curves.
        published: numbers to draw beside the bars of a task.
        importances: estimates the importance of each parameter of a study.
        each_study: whether to draw the figures of each study after those of the sweep. Their stems begin with the key
            of the study.
    """
    by_backbone = _group_by(studies, lambda study: study.plan.backbone)
    by_size = _group_by(studies, lambda study: format_train_size(study.plan.train_size))
    by_both = _group_by(studies, lambda study: (study.plan.backbone, format_train_size(study.plan.train_size)))

    # A file stem names the backbone and the train size only if there are several.
    has_backbones = len(by_backbone) > 1
    has_sizes = len(by_size) > 1

    # Figures that need one backbone and one train size.
    for (backbone, size), members in by_both.items():
        setting = f"{backbone}, {train_size_text(members[0].plan.train_size)}"
        suffix = [backbone] * has_backbones + [size] * has_sizes

        figure = per_task(members, (published or {}).get(backbone, {}), setting)
        if figure is not None:
            yield slug("-".join(["per_task", *suffix])), figure

        figure = accuracy_by_cost(members, setting)
        if figure is not None:
            yield slug("-".join(["cost", *suffix])), figure

        figure = mutual_information(members, setting)
        if figure is not None:
            yield slug("-".join(["nmi", *suffix])), figure

    # Figures over train sizes.
    for backbone, members in by_backbone.items():
        figure = tuning_size(members, backbone)
        if figure is not None:
            yield slug("-".join(["tuning_size", *[backbone] * has_backbones])), figure

    # Figures over backbones.
    for size, members in by_size.items():
        figure = model_size(members, train_size_text(members[0].plan.train_size))
        if figure is not None:
            yield slug("-".join(["model_size", *[size] * has_sizes])), figure

    if each_study:
        for study in studies:
            for name, figure in study_figures(study, importances):
                yield slug(f"{study.plan.key}-{name}"), figure


def study_figures(study: Study, importances: Importances | None = None) -> Iterator[tuple[str, Figure]]:
    """Yield the figures of one study that there is data for, each with its file stem.

    Args:
        study: the study with the epochs of its trials.
        importances: estimates the importance of each parameter. Without it that figure is not drawn.
    """
    for name, draw in STUDY_FIGURES.items():
        figure = draw(study)
        if figure is not None:
            yield name, figure

    if importances is not None:
        figure = importance_bars(study, importances(study))
        if figure is not None:
            yield "importances", figure


def save_figure(figure: Figure, folder: Path, stem: str, kinds: Sequence[str] = ("png", "pdf")) -> list[Path]:
    """Write a figure as PNG (200 dpi) and PDF (with editable text). Existing files are replaced.

    Returns:
        The files, in the order of `kinds`.
    """
    folder.mkdir(parents=True, exist_ok=True)

    paths = []
    for kind in kinds:
        path = folder / f"{stem}.{kind}"
        draft = folder / f".{stem}.{kind}.part"

        # The type of the fonts is a setting of the process and not an argument of savefig.
        with saving_figure():
            before = matplotlib.rcParams["pdf.fonttype"]
            matplotlib.rcParams["pdf.fonttype"] = TRUETYPE
            try:
                figure.savefig(draft, format=kind, **SAVE_OPTIONS[kind])
            finally:
                matplotlib.rcParams["pdf.fonttype"] = before

        # A figure that is open in a viewer is replaced only when the new one is complete.
        publish(draft, path)
        paths.append(path)
    return paths


def _group_by(studies: Sequence[Study], key: Callable[[Study], Key]) -> dict[Key, list[Study]]:
    groups: dict[Key, list[Study]] = {}
    for study in studies:
        groups.setdefault(key(study), []).append(study)
    return groups
