"""The report as a page of HTML: written once, or anew while the sweep runs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator import __version__
from orchestrator.cli.options import console, pause_until_next_look
from orchestrator.environment.lookup import few_images, find_sweep, load_combinable_sweeps
from orchestrator.spec.loader import find_spec, load_spec
from orchestrator.spec.shipped import SUFFIXES
from orchestrator.spec.yaml_file import read_yaml
from trainer.storage.files import read_bytes, write_bytes

if TYPE_CHECKING:
    from orchestrator.report_page.page import SectionCache
    from orchestrator.study.study import Study
    from orchestrator.study.trial import Trial

WATCH_S = 10
"""Seconds between two pages of a running sweep."""


def render(
    home: str | None, sweeps: Sequence[str], cache: SectionCache | None = None, *, refreshed: bool = False
) -> str:
    """Return the page of one or more sweeps as they are now.

    Args:
        cache: sections of earlier pages.
        refreshed: whether browsers load the page again by themselves.
    """
    from orchestrator.cli.progress import num_running, summary_line
    from orchestrator.report_page.page import PageState, render_page

    place, database, _ = find_sweep(home, sweeps[0])
    database.close()
    # Curves need every epoch.
    studies = load_combinable_sweeps(home, sweeps, epochs=True)
    folders = {study.plan.key: place.trials_folder(study.spec.name) for study in studies}

    def read_file(trial: Trial, name: str) -> bytes | None:
        return read_bytes(f"{folders[trial.study]}/{trial.trial_id}/{name}")

    summaries = [study.summary() for study in studies]
    now = datetime.now().astimezone()
    state = PageState(
        written=f"page: written by sptune {__version__} at {now:%Y-%m-%d %H:%M:%S %Z}",
        progress=summary_line(summaries, num_running(summaries)),
        refresh_s=WATCH_S if refreshed else None,
    )
    texts = _spec_texts(sweeps, studies)
    return render_page(studies, read_file, state, cache, spec_texts=texts, few_images=few_images(studies, place))


def _spec_texts(sweeps: Sequence[str], studies: Sequence[Study]) -> dict[str, str]:
    """Return the specs that the user named by their files, with their comments, by the name of the sweep.

    A file that was edited since the launch is not what ran, and is left out.
    """
    recorded = {study.spec.name: study.spec for study in studies}
    texts = {}
    for sweep in sweeps:
        if sweep.endswith(SUFFIXES):
            path = find_spec(sweep)
            spec = load_spec(path)
            if recorded[spec.name] == spec:
                texts[spec.name] = read_yaml(path).text.written
    return texts


def watch(home: str | None, sweeps: Sequence[str], file: Path) -> None:
    """Write the page again and again while a driver runs one of the sweeps. Ctrl-C ends it, too."""
    from orchestrator.report_page.page import SectionCache

    cache = SectionCache()
    try:
        # Asked before the trials are read, so that the last page has all that the driver stored.
        while has_driver(home, sweeps):
            began_at = time.monotonic()
            write(file, render(home, sweeps, cache, refreshed=True))
            pause_until_next_look(WATCH_S, began_at)
    except KeyboardInterrupt:
        console.print("stopped watching.")

    # Browsers that show the page load this one, which does not load itself again.
    write(file, render(home, sweeps, cache))


def write(file: Path, page: str) -> None:
    """Write a page. A browser that loads it meanwhile sees the old one or the new one.

    Raises:
        OSError: if the file cannot be written.
    """
    write_bytes(file, page.encode())


def has_driver(home: str | None, sweeps: Sequence[str]) -> bool:
    """Return whether a driver is alive that runs one of the sweeps."""
    for name in sweeps:
        _, database, spec = find_sweep(home, name)
        try:
            if any(driver.is_alive for driver in database.lease(spec.name).drivers()):
                return True
        finally:
            database.close()
    return False
