"""Results of a sweep for Python and notebooks: tables, report, figures, the best trial and its classifier."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.environment.home import Home, weights_at
from orchestrator.environment.lookup import find_sweep
from orchestrator.errors import UserError
from orchestrator.spec.schema import SweepSpec

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from orchestrator.report.blocks import Block
    from orchestrator.study.study import Study
    from orchestrator.study.trial import Trial
    from trainer.inference import Classifier

STYLE = """.sptune caption { white-space: pre-line; text-align: left }
.sptune th, .sptune td { text-align: right; white-space: nowrap } .sptune tr > .name { text-align: left }
.sptune .text { text-align: left; white-space: normal }"""
"""Style of a report in the page of a notebook, whose own style must not change."""
SCREEN_DPI = 100


@dataclass(frozen=True, slots=True)
class SweepResults:
    """What a sweep has found so far."""

    spec: SweepSpec
    studies: list[Study]
    home: Home

    def trials(self) -> pd.DataFrame:
        """Return a row for each trial, with the columns of `trials.parquet` (`sptune export`)."""
        from orchestrator.report.export import trials_table

        return trials_table(self.studies).to_pandas()

    def epochs(self) -> pd.DataFrame:
        """Return a row for each metric of each epoch, with the columns of `epochs.parquet`."""
        from orchestrator.report.export import epochs_table

        return epochs_table(self.studies).to_pandas()

    def report(self) -> Report:
        """Return the report of `sptune report`. A notebook shows it with its tables, `print` in Markdown."""
        from orchestrator.report.sections import build_sections

        return Report(build_sections(self.studies))

    def figures(self, *, each_study: bool = False) -> Figures:
        """Return the figures of `sptune figures` that there is data for. A notebook shows all of them.

        Args:
            each_study: draw those of each study, too. The figures of a single study are always drawn.
        """
        from orchestrator.figures.draw import draw_figures
        from orchestrator.report.results_table import published_scores
        from orchestrator.study.importance import param_importances

        return Figures(
            dict(
                draw_figures(
                    self.studies,
                    published=published_scores({study.plan.backbone for study in self.studies}),
                    importances=param_importances,
                    each_study=each_study or len(self.studies) == 1,
                )
            )
        )

    def best(
        self,
        *,
        task: str | None = None,
        method: str | None = None,
        backbone: str | None = None,
        train_size: float | int | str | None = None,
    ) -> Trial:
        """Return the final trial of the study with the best val accuracy, of the first seed in the spec.

        Nothing is chosen on test, so it need not be the trial with the best test accuracy.

        Args:
            task, method, backbone, train_size: the studies to choose from; None for all. They must have one task.

        Raises:
            UserError: if no such study has a complete final trial, or if several tasks are left.
        """
        wanted = {"task": task, "method": method, "backbone": backbone, "train_size": train_size}
        studies = [
            study
            for study in self.studies
            if all(value is None or getattr(study.plan, name) == value for name, value in wanted.items())
        ]
        tasks = dict.fromkeys(study.plan.task for study in studies)
        if len(tasks) > 1:
            raise UserError(f"accuracies of different tasks cannot be compared; name a task: {', '.join(tasks)}.")

        candidates = [
            (study.best.score or 0.0, trial)
            for study in studies
            if study.best is not None and (trial := _first_seed(study)) is not None
        ]
        if not candidates:
            given = ", ".join(f"{name}={value!r}" for name, value in wanted.items() if value is not None)
            raise UserError(
                f"{self.spec.name} has no complete final trial{' with ' + given if given else ''}; `trials()` shows "
                "what there is."
            )
        return max(candidates, key=lambda candidate: candidate[0])[1]

    def load(self, trial: Trial | str, *, weights: str | None = None, device: str = "cpu") -> Classifier:
        """Return the classifier of a complete trial, ready for images. See `trainer.load`.

        Args:
            trial: a trial of this sweep, or its id or the first letters of it.
            weights: a file, or a folder of files, with weights of backbones; default: as in the spec.
            device: device of the model, such as cpu or cuda.

        Raises:
            UserError: if no finished trial matches, or several do.
            ValueError: if the trial is not complete, or the backbone's weights are not those it was trained on.
            OSError: if its files cannot be read.
        """
        import trainer

        if isinstance(trial, str):
            folder = self.home.trial_folder(trial)
        else:
            folder = f"{self.home.trials_folder(self.spec.name)}/{trial.trial_id}"
        return trainer.load(folder, weights=weights_at(weights, self.spec.cluster), device=device)


class Report:
    """A report that a notebook renders."""

    def __init__(self, blocks: Sequence[Block]) -> None:
        self.blocks = blocks

    def __str__(self) -> str:
        """Return the report in Markdown."""
        from orchestrator.report.render import to_markdown

        return to_markdown(self.blocks)

    def _repr_html_(self) -> str:
        from orchestrator.report.render import to_html

        return f'<div class="sptune"><style>{STYLE}</style>{to_html(self.blocks)}</div>'


class Figures(Mapping[str, "Figure"]):
    """Figures of Matplotlib by their names, which a notebook renders."""

    def __init__(self, figures: dict[str, Figure]) -> None:
        self._figures = figures

    def __getitem__(self, name: str) -> Figure:
        """Return one figure."""
        return self._figures[name]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter(self._figures)

    def __len__(self) -> int:
        """Return the number of figures."""
        return len(self._figures)

    def __repr__(self) -> str:
        """Return the names of the figures."""
        return f"Figures({', '.join(self)})"

    def _repr_html_(self) -> str:
        return "\n".join(_image(name, figure) for name, figure in self.items())


def open_sweep(name: str, home: str | None = None) -> SweepResults:
    """Read a sweep, finished or not. Nothing is written.

    Raises:
        UserError: if there is no such sweep, with the names of those there are.
    """
    from orchestrator.study.study import load_studies

    place, database, spec = find_sweep(home, name)
    return SweepResults(spec, load_studies(spec, database), place)


def _first_seed(study: Study) -> Trial | None:
    """Return the complete final trial whose seed comes first in the spec, or None."""
    seeds = study.spec.final.seeds
    complete = [trial for trial in study.requested_final_trials if trial.score is not None]
    return min(complete, key=lambda trial: seeds.index(trial.config.seed), default=None)


def _image(name: str, figure: Figure) -> str:
    from trainer.plots.style import saving_figure

    buffer = io.BytesIO()
    with saving_figure():
        figure.savefig(buffer, format="png", dpi=SCREEN_DPI)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{html.escape(name)}" src="data:image/png;base64,{data}">'
