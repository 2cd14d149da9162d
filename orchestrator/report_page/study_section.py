"""Section of a study in the page: result, leaderboard, charts, importances, figures and prototypes."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping

from orchestrator.figures.draw import STUDY_FIGURES
from orchestrator.figures.inline_svg import inline_svg
from orchestrator.report.render import escape_html, to_html
from orchestrator.report.study_page import (
    changed_fields,
    chosen_text,
    counts_text,
    final_scores_text,
    reproduce_command,
)
from orchestrator.report_page.charts import learning_curves, legend, parallel_coordinates
from orchestrator.report_page.leaderboard import leaderboard
from orchestrator.spec.labels import setting_text
from orchestrator.study.importance import param_importances
from orchestrator.study.study import Study
from orchestrator.study.trial import Trial
from trainer.run_folder import PROTOTYPES_PLOT

ReadFile = Callable[[Trial, str], bytes | None]
"""Returns a file of a trial by its name, or None if there is none."""

FIGURES = ("params", "grid")
"""Figures of a study that do not answer the mouse."""
PNG = b"\x89PNG\r\n"


def study_section(study: Study, anchor: str, read_file: ReadFile, *, is_open: bool, has_figures: bool) -> str:
    """Return the section of a study, folded or open.

    Args:
        study: the study with the epochs of its trials.
        anchor: id of the section in the page.
        read_file: reads a file of a trial, for the sheet of its prototypes.
        is_open: whether it is open at first.
        has_figures: whether it has matplotlib's figures beside the charts.
    """
    opened = " open" if is_open else ""
    parts = [
        f'<details class="study" id="{anchor}"{opened}>',
        f"<summary><h3>{escape_html(setting_text(study.plan))}</h3>",
        f"<span>{escape_html(_result(study))}</span></summary>",
        *_facts(study),
    ]
    table = leaderboard(study)
    if table.rows:
        parts.append(f'<div class="leaderboard">{to_html([table])}</div>')

    charts = [*learning_curves(study), parallel_coordinates(study), _importances(param_importances(study))]
    if any(charts):
        parts.append(legend(study))
    parts.append(f'<div class="charts">{"".join(charts)}</div>')

    drawn = [(name, STUDY_FIGURES[name](study)) for name in FIGURES if has_figures]
    pictures = [picture(inline_svg(figure, f"{anchor}-{name}")) for name, figure in drawn if figure is not None]
    pictures += _prototypes(study, read_file)
    parts.append(f'<div class="pictures">{"".join(pictures)}</div>')
    parts += [*_how_to_repeat(study), "</details>"]
    return "\n".join(parts)


def picture(svg: str) -> str:
    """Return a figure that scrolls if the screen is too narrow for it."""
    return f'<figure class="picture">{svg}</figure>'


def _result(study: Study) -> str:
    """Return the result of a study in a few words."""
    best = study.best
    if best is None:
        return "no complete trial yet"
    return final_scores_text(study) if study.has_result else f"best val accuracy: {100 * (best.score or 0.0):.1f} %"


def _facts(study: Study) -> Iterator[str]:
    lines = [counts_text(study)]
    if study.best is not None:
        lines.append(chosen_text(study.best))
    yield f"<p>{'<br>'.join(map(escape_html, lines))}</p>"
    if study.search_table.stop_reason is not None:
        yield f'<p class="alarming">{escape_html(f"stopped: {study.search_table.stop_reason}")}</p>'


def _importances(importances: Mapping[str, float]) -> str:
    """Return a bar for each searched parameter: how much of the variation of val accuracy it explains."""
    if not importances:
        return ""
    bars = "\n".join(
        f'<li><span>{escape_html(name)}</span><span class="bar" style="--share: {100 * share:.1f}%"></span>'
        f"<span>{100 * share:.0f} %</span></li>"
        for name, share in importances.items()
    )
    return f'<figure class="chart"><figcaption>importance of params</figcaption><ul class="bars">{bars}</ul></figure>'


def _prototypes(study: Study, read_file: ReadFile) -> Iterator[str]:
    """Yield the prototypes of the chosen params: the sheet of the first final trial, or of the chosen trial."""
    candidates = [*study.requested_final_trials[:1], *([study.best] if study.best is not None else [])]
    for trial in candidates:
        data = read_file(trial, PROTOTYPES_PLOT)
        # A damaged file is left out: the report can do without it.
        if data is not None and data.startswith(PNG):
            words = escape_html(f"image patches nearest to the prototypes of {trial.phase} trial {trial.number}")
            source = base64.b64encode(data).decode()
            yield (
                f'<figure class="picture"><figcaption>{words}</figcaption>'
                f'<img alt="{words}" src="data:image/png;base64,{source}"></figure>'
            )
            return


def _how_to_repeat(study: Study) -> Iterator[str]:
    configs = study.final_configs()
    if configs:
        _, config = next(iter(configs.values()))
        command = escape_html(reproduce_command(changed_fields(config)))
        yield f'<p>To train its first final trial by hand:</p><pre class="command">{command}</pre>'
