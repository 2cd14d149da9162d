"""The figures of a sweep: `figures_of` draws those that there is data for, `save` writes one.

Of each study: learning_curves, params, grid, parallel, importances. Of the sweep: per_task, tuning_size, model_size,
nmi. What a figure shows stands in the docstring of its function.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import matplotlib

from orchestrator.figures.learning import learning_curves, mutual_information
from orchestrator.figures.params import against_params, choice_grid
from orchestrator.figures.search import importance_bars as importances_figure
from orchestrator.figures.search import parallel_coordinates
from orchestrator.figures.sizes import model_size, tuning_size
from orchestrator.figures.style import slug
from orchestrator.figures.tasks import per_task
from orchestrator.spec.plan import format_train_size

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from orchestrator.study.study import Study

Key = TypeVar("Key")
Importances = Callable[["Study"], Mapping[str, float]]
"""How much each searched parameter of a study mattered, 0..1; empty where that cannot be told."""
Published = Mapping[str, Mapping[tuple[str, str], float]]
"""By backbone: test accuracy in per cent by method and task."""

STUDY_FIGURES: dict[str, Callable[[Study], Figure | None]] = {
    "learning_curves": learning_curves,
    "params": against_params,
    "grid": choice_grid,
    "parallel": parallel_coordinates,
}
"""What is drawn of one study, by file stem; `importances` beside them."""

_SAVING = threading.Lock()


def draw_figures(
    opened: Sequence[Study],
    *,
    published: Published | None = None,
    importances: Importances | None = None,
    each_study: bool = True,
) -> Iterator[tuple[str, Figure]]:
    """The figures of a sweep that it has data for, each with its file stem; drawn as they are asked for.

    Args:
        opened: the sweep's studies with the epochs of their trials; without epochs there are no learning curves.
        published: numbers to stand beside the bars of a task.
        importances: tells how much each parameter of a study mattered.
        each_study: whether to draw the figures of each study after those of the sweep; their stems begin with its key.
    """
    backbones, sizes = (
        _by(opened, lambda s: s.plan.backbone),
        _by(opened, lambda s: format_train_size(s.plan.train_size)),
    )
    for (backbone, size), studies in _by(
        opened, lambda s: (s.plan.backbone, format_train_size(s.plan.train_size))
    ).items():
        place = f"{backbone}, train size {size}"
        own = [backbone] * (len(backbones) > 1) + [size] * (len(sizes) > 1)
        if (figure := per_task(studies, (published or {}).get(backbone, {}), place)) is not None:
            yield slug("-".join(["per_task", *own])), figure
        if (figure := mutual_information(studies, place)) is not None:
            yield slug("-".join(["nmi", *own])), figure
    for backbone, studies in backbones.items():
        if (figure := tuning_size(studies, backbone)) is not None:
            yield slug("-".join(["tuning_size", *([backbone] if len(backbones) > 1 else [])])), figure
    for size, studies in sizes.items():
        if (figure := model_size(studies, size)) is not None:
            yield slug("-".join(["model_size", *([size] if len(sizes) > 1 else [])])), figure
    for study in opened if each_study else ():
        for name, figure in study_figures(study, importances):
            yield slug(f"{study.plan.key}-{name}"), figure


def study_figures(study: Study, importances: Importances | None = None) -> Iterator[tuple[str, Figure]]:
    """The figures of one study that it has data for, each with its file stem.

    Args:
        importances: tells how much each parameter mattered; without it that figure is not drawn.
    """
    for name, draw in STUDY_FIGURES.items():
        if (figure := draw(study)) is not None:
            yield name, figure
    if importances is not None and (figure := importances_figure(study, importances(study))) is not None:
        yield "importances", figure


def save_figure(figure: Figure, folder: Path, stem: str) -> list[Path]:
    """Write a figure as PNG (200 dpi) and PDF (with fonts that can be edited); what was there is replaced.

    Returns:
        The two files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for kind, options in (("png", {"dpi": 200}), ("pdf", {"metadata": {"CreationDate": None}})):
        path = folder / f"{stem}.{kind}"
        draft = folder / f".{stem}.{kind}.part"
        with _SAVING:  # the kind of font is no argument of savefig, but a setting of the process
            before = matplotlib.rcParams["pdf.fonttype"]
            matplotlib.rcParams["pdf.fonttype"] = 42
            try:
                figure.savefig(draft, format=kind, **options)
            finally:
                matplotlib.rcParams["pdf.fonttype"] = before
        draft.replace(path)
        written.append(path)
    return written


def _by(studies: Sequence[Study], key: Callable[[Study], Key]) -> dict[Key, list[Study]]:
    found: dict[Key, list[Study]] = {}
    for study in studies:
        found.setdefault(key(study), []).append(study)
    return found
