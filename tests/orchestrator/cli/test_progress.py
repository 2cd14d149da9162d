"""A launch in a terminal and in a file: what is shown from the first second on."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from orchestrator.cli.progress import LiveView
from orchestrator.launch.outcome import Progress
from orchestrator.spec.loader import parse_spec
from orchestrator.sweep.sweep import Sweep
from tests.orchestrator.conftest import new_sweep


@pytest.fixture
def sweep(raw_study: dict[str, Any], record_url: str) -> Sweep:
    return new_sweep(parse_spec(raw_study, "a test"), record_url)


def shown(sweep: Sweep, *, is_terminal: bool) -> str:
    file = io.StringIO()
    console = Console(file=file, width=200, height=40, force_terminal=is_terminal)
    with LiveView(console) as view:
        view(Progress("checking the spec"))
        view(Progress("downloading weights", note="downloading the weights of a from timm's hub"))
        view(Progress("starting Ray"))
        view(Progress("running trials", sweep))
        for activity in ("starting workers", "starting workers", "decoding the images of demo/digits"):
            view(Progress("running trials", sweep, activity=activity))
        if is_terminal:
            console.print("SCREEN", view._render())
        view(Progress("running trials", sweep))
    return file.getvalue()


def test_a_file_gets_a_line_for_each_step_and_each_thing_that_trials_do_before_an_epoch(sweep: Sweep) -> None:
    lines = shown(sweep, is_terminal=False).splitlines()
    assert lines[:3] == ["downloading the weights of a from timm's hub", "downloading weights", "starting Ray"]
    assert lines[3].startswith("small: 0 of 10 trials finished")
    assert lines[4:] == ["starting workers", "decoding the images of demo/digits"]


def test_a_terminal_shows_both_below_the_table(sweep: Sweep) -> None:
    screen = shown(sweep, is_terminal=True)
    assert "checking the spec" in screen and "starting Ray" in screen
    last = screen.partition("SCREEN")[2]
    assert "decoding the images of demo/digits" in last
