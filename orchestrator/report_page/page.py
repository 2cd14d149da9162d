"""The page: head, sections in reading order, and the facts of its making."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from orchestrator.figures.draw import draw_figures
from orchestrator.figures.inline_svg import inline_svg
from orchestrator.report.blocks import TextBlock
from orchestrator.report.render import escape_html, to_html
from orchestrator.report.reproducibility import reproducibility_lines
from orchestrator.report.results_table import published_scores
from orchestrator.report.sections import build_sections
from orchestrator.report_page.study_section import ReadFile, picture, study_section
from orchestrator.spec.schema import SweepSpec
from orchestrator.study.study import Study

OPEN_STUDIES = 4
"""Number of studies up to which their sections are open at first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PageState:
    """What a page says of the moment in which it was written."""

    written: str
    """When and by what the page was written, in words."""
    progress: str = ""
    """How far the sweep is, in words."""
    refresh_s: int | None = None
    """Seconds after which a browser loads the file again; None if it does not change any more."""


class SectionCache:
    """Sections of studies that have not changed since they were written last. Figures take half a second a study."""

    def __init__(self) -> None:
        self._sections: dict[str, tuple[object, str]] = {}

    def section(self, study: Study, anchor: str, read_file: ReadFile, *, is_open: bool, has_figures: bool) -> str:
        """Return the section of a study; see `study_section`."""
        version = (study.digest, is_open, [len(trial.epochs) for trial in study.trials])
        cached = self._sections.get(study.plan.key)
        if cached is None or cached[0] != version:
            section = study_section(study, anchor, read_file, is_open=is_open, has_figures=has_figures)
            cached = version, section
            self._sections[study.plan.key] = cached
        return cached[1]


def render_page(
    studies: Sequence[Study],
    read_file: ReadFile,
    state: PageState,
    cache: SectionCache | None = None,
    *,
    spec_texts: Mapping[str, str] | None = None,
    has_figures: bool = True,
    few_images: Sequence[str] = (),
) -> str:
    """Return the report on the studies of one or more sweeps as a page that loads nothing.

    Args:
        studies: the studies with the epochs of their trials.
        read_file: reads a file of a trial.
        state: what the page says of the moment.
        cache: sections of an earlier page of the same studies.
        spec_texts: specs as their authors wrote them, by the name of the sweep. Of others, the page has the content.
        has_figures: whether the page has matplotlib's figures. Where they lie beside it, as in MLflow, drawing them
            again would take half a second a study.
        few_images: warnings of small splits; see `build_sections`.
    """
    cache = cache or SectionCache()
    specs = list({study.spec.name: study.spec for study in studies}.values())
    title = escape_html(", ".join(spec.name for spec in specs))

    script = _asset("script.js")
    refresh = [f'<meta http-equiv="refresh" content="{state.refresh_s}">'] if state.refresh_s is not None else []
    head = [
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_policy(script)}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        *refresh,
        f"<title>{title} – sptune report</title>",
        f"<style>{_asset('style.css')}</style>",
    ]

    sections = build_sections(studies, with_cost=True, few_images=few_images)
    provenance = reproducibility_lines(studies)
    numbers = to_html([block for block in sections if block != provenance])
    figures = "\n".join(_figures(studies)) if has_figures else ""
    figures = f'<div class="pictures">{figures}</div>' if figures else ""
    texts = [escape_html((spec_texts or {}).get(spec.name) or _yaml(spec), keep="\n\t") for spec in specs]
    is_open = len(studies) <= OPEN_STUDIES
    by_study = "\n".join(
        cache.section(study, f"study-{index}", read_file, is_open=is_open, has_figures=has_figures)
        for index, study in enumerate(studies)
    )
    parts = {
        "results": ("Results", numbers),
        "figures": ("Figures", figures),
        "studies": ("Studies", by_study),
        "spec": ("Spec", "\n".join(f"<pre>{text}</pre>" for text in texts)),
        "provenance": ("Provenance", to_html([TextBlock(lines=(*provenance.lines, state.written))])),
    }
    parts = {anchor: part for anchor, part in parts.items() if part[1]}
    links = "\n".join(f'<a href="#{anchor}">{name}</a>' for anchor, (name, _) in parts.items())
    progress = f'<p class="progress">{escape_html(state.progress)}</p>' if state.progress else ""
    body = [
        f"<header><h1>{title}</h1>{progress}<nav>{links}</nav></header>",
        "<main>",
        *(f'<section id="{anchor}"><h2>{name}</h2>\n{content}</section>' for anchor, (name, content) in parts.items()),
        "</main>",
        f"<script>{script}</script>",
    ]
    lines = ["<!doctype html>", '<html lang="en"><head>', *head, "</head><body>", *body, "</body></html>"]
    return "\n".join(lines) + "\n"


def _figures(studies: Sequence[Study]) -> Iterator[str]:
    published = published_scores({study.plan.backbone for study in studies})
    for stem, figure in draw_figures(studies, published=published, each_study=False):
        yield picture(inline_svg(figure, stem))


def _yaml(spec: SweepSpec) -> str:
    """Return a spec as a file to launch: the keys that differ from their defaults."""
    content = {"name": spec.name} | spec.model_dump(mode="json", exclude_defaults=True)
    return yaml.safe_dump(content, sort_keys=False, default_flow_style=None, allow_unicode=True, width=110)


def _policy(script: str) -> str:
    """Return the rule of what the page may do: run this script, show what is inside of it, and load nothing.

    A name that could pass the escapes would still run no code and reach no server.
    """
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:"


def _asset(name: str) -> str:
    # The files lie beside this module, in an installed package too.
    return Path(__file__).with_name(name).read_text(encoding="utf-8")
