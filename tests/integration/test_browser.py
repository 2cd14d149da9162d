"""What researchers see: MLflow's pages and a report in a real browser, and a final trial served by MLflow.

With SPTUNE_PICTURES=folder, the screenshots of the documents are written there.
"""

from __future__ import annotations

import base64
import getpass
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
import yaml
from mlflow import MlflowClient, pyfunc
from mlflow.entities import Run
from PIL import Image

import trainer
from tests.integration.processes import SPTUNE, launch_here, sptune_here

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

FOR_README = "SPTUNE_PICTURES" in os.environ
SPEC: dict[str, Any] = {
    "name": "seen",
    "tasks": ["demo/digits"],
    "backbones": ["vit_nano_patch4_32.mae"],
    "methods": ["spt_deep", "linear"],
    "train_sizes": [0.2 if FOR_README else 0.05],
    "fixed": {"epochs": 16 if FOR_README else 5, "warmup_epochs": 1, "batch_size": 8},
    "space": {
        "lr": {"type": "float", "low": 2.0e-2, "high": 2.0e-1, "log": True},
        "prompt_length": {"type": "choice", "values": [5, 10]},
        "prompt_init": {"type": "choice", "values": ["random", "mean_pool"]},
    },
    "search": {
        "trials": 4,
        "startup_trials": 1,
        "max_concurrent": 1,
        "pruner": {"type": "asha", "min_epochs": 1, "reduction": 2},
    },
    "final": {"seeds": [42, 44]},
}
EPOCHS = SPEC["fixed"]["epochs"]
WIDTH = 1440
"""Of the window, in pixels: that of a small laptop."""
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(url: str, process: subprocess.Popen[bytes], seconds: float = 120.0) -> None:
    """Wait until a server answers."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert process.poll() is None, "the server is still there"
        try:
            urllib.request.urlopen(url, timeout=2).close()
        except OSError:
            time.sleep(0.5)
        else:
            return
    raise AssertionError(f"{url} does not answer")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, store: Path) -> Path:
    """A finished sweep."""
    folder = tmp_path_factory.mktemp("seen")
    (folder / "spec.yaml").write_text(yaml.safe_dump(SPEC))
    launch_here(folder / "spec.yaml", folder / "home")
    return folder / "home"


@pytest.fixture(scope="module")
def served(home: Path) -> Iterator[tuple[str, str]]:
    """`sptune ui`: its address, and that of the sweep's table as it told."""
    port = free_port()
    log = home.parent / "ui.log"
    with log.open("wb") as file:
        command = [str(SPTUNE), "ui", "--home", str(home), "--port", str(port)]
        process = subprocess.Popen(command, stdout=file, stderr=file)
    try:
        wait_for(f"http://127.0.0.1:{port}/health", process)
        told = re.search(r"seen: (http\S+)", log.read_text())
        assert told, log.read_text()
        yield f"http://127.0.0.1:{port}", told[1]
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="module")
def runs(home: Path) -> list[Run]:
    client = MlflowClient(tracking_uri=f"sqlite:///{home / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("seen")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], max_results=1000))


@pytest.fixture(scope="module")
def page() -> Iterator[Any]:
    """A page of Debian's Chromium."""
    if CHROMIUM is None:
        pytest.skip("needs Chromium (Debian: apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": 900})
        page.set_default_timeout(60_000)
        yield page
        browser.close()


def address_of(run: Run, served: tuple[str, str]) -> str:
    return f"{served[0]}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"


def the(runs: list[Run], **tags: str) -> Run:
    return next(run for run in runs if all(run.data.tags.get(name) == value for name, value in tags.items()))


def keep(page: Any, name: str) -> None:
    """A picture for the README, if asked for."""
    if folder := os.environ.get("SPTUNE_PICTURES"):
        page.wait_for_timeout(2500)  # for what fades in
        own = page.get_by_text("Path: file:")  # of this machine
        file = Path(folder, f"{name}.png")
        page.screenshot(path=str(file), mask=[own], mask_color="white")
        # A page has few colours, and a third of the bytes shows them.
        Image.open(file).convert("RGB").quantize(128).save(file, optimize=True)


def test_the_pages_are_served_to_this_machine_alone(served: tuple[str, str]) -> None:
    port = int(served[0].rpartition(":")[2].rstrip("/"))
    listening = [tuple(one.laddr) for one in psutil.net_connections("tcp") if one.status == psutil.CONN_LISTEN]
    assert [address for address in listening if address[1] == port] == [("127.0.0.1", port)]


def test_the_page_opens_in_training_mode_until_a_person_chooses_the_other(page: Any, served: tuple[str, str]) -> None:
    other = page.context.browser.new_page(viewport={"width": WIDTH, "height": 900})
    other.set_default_timeout(60_000)
    # The address as it is printed, that of the server alone, and a sweep that is found from there.
    for address in (served[1], served[0], f"{served[0]}/#/experiments/1"):
        other.goto("about:blank")
        other.goto(address)
        other.get_by_role("link", name="Model registry", exact=True).wait_for()
        assert other.get_by_text("Judges", exact=True).count() == 0, "a menu for language models"
        assert other.get_by_placeholder("Ask a question...").count() == 0, "their assistant is closed"
    other.get_by_role("button", name="GenAI", exact=True).click()
    other.get_by_text("Judges", exact=True).wait_for()
    other.goto("about:blank")
    other.goto(served[0])
    other.get_by_role("link", name="Prompts", exact=True).wait_for()
    other.close()


def test_the_table_of_a_sweep_shows_parents_children_and_our_columns(page: Any, served: tuple[str, str]) -> None:
    page.goto(served[1])
    columns = ("val/accuracy", "test/accuracy", "lr", "prompt_length", "prompt_init")
    for column in columns:
        page.get_by_test_id(f"sort-header-{column}").wait_for()
    parents = [f"{task} {method}" for task in SPEC["tasks"] for method in SPEC["methods"]]
    for parent in parents:
        link = page.get_by_role("link", name=parent, exact=True)
        link.wait_for()
        assert link.evaluate("link => link.scrollWidth <= link.clientWidth || link.clientWidth === 0")
        assert link.evaluate("link => link.closest('.ag-cell').scrollWidth <= link.closest('.ag-cell').clientWidth")
    assert page.get_by_text("final seed 42").count() == 0, "children are folded away at first"

    cells = page.locator(".ag-center-cols-container .ag-row [col-id]")
    page.wait_for_function("document.querySelectorAll('.ag-center-cols-container .ag-row').length === 2")
    shown = [(cell.get_attribute("col-id"), cell.inner_text().strip()) for cell in cells.all()]
    assert len(shown) >= 2 * (len(columns) + 2)
    assert [name for name, text in shown if text in ("", "-")] == [], "no dash in the row of a study"
    durations = [text for name, text in shown if name == "duration"]
    assert all(re.fullmatch(r"[\d.]+(s|min|h)", text) for text in durations), (
        f"of the study, not of a call: {durations}"
    )
    keep(page, "mlflow_table")

    page.locator(".ag-row", has_text="demo/digits spt_deep").locator("button:has(svg), [class*=expander]").first.click()
    page.get_by_role("link", name="final seed 42", exact=True).wait_for()
    for number in range(4):
        page.get_by_role("link", name=f"trial {number}", exact=True).wait_for()


PLOTS = """() => [...document.querySelectorAll('.js-plotly-plot')].map(plot => [
    Math.round(plot.getBoundingClientRect().top),
    plot.data.filter(trace => trace.type !== 'bar').map(trace => (trace.x ?? []).length),
])"""
"""Script that returns the position of each chart, and the number of points of each line in it."""


def test_learning_curves_are_the_first_charts_and_no_chart_has_one_dot(
    page: Any, served: tuple[str, str], runs: list[Run]
) -> None:
    own = {"task": "demo/digits", "method": "spt_deep"}
    chosen = the(runs, phase="study", **own)
    search = next(run for run in runs if run.data.tags["phase"] == "search" and run.data.tags["state"] == "complete")
    final = the(runs, phase="final", seed="42", **own)
    places = {
        f"{served[1]}&compareRunsMode=CHART": len(SPEC["methods"]),
        **{f"{address_of(run, served)}/model-metrics": 1 for run in (chosen, search, final)},
    }
    for place, num_lines in places.items():
        page.goto("about:blank")
        page.goto(place)
        page.wait_for_function("document.querySelectorAll('.js-plotly-plot').length >= 2")
        page.wait_for_timeout(2000)  # for the points
        if num_lines > 1:
            keep(page, "mlflow_charts")
        plots = sorted(page.evaluate(PLOTS))
        # Plotly has a second trace for each line.
        first = plots[0][1]
        assert len(first) >= num_lines and {*first} == {EPOCHS}, f"{place}: the first chart is a learning curve"
        assert not any(1 in points for _, points in plots), place


def test_a_pruned_trial_is_no_alarm(page: Any, served: tuple[str, str], runs: list[Run]) -> None:
    page.goto(address_of(the(runs, state="pruned"), served))
    page.get_by_text("Finished", exact=True).wait_for()
    page.get_by_text(re.compile("pruned$")).first.wait_for()
    assert page.get_by_text("Killed", exact=True).count() == 0


def test_a_study_says_what_it_came_to_and_how_to_repeat_it(page: Any, served: tuple[str, str], runs: list[Run]) -> None:
    parent = the(runs, phase="study", task="demo/digits", method="spt_deep")
    page.goto(address_of(parent, served))
    page.get_by_text("Show more", exact=True).first.wait_for()
    about = page.get_by_text("About this run", exact=True)
    about.wait_for()
    page.get_by_text(getpass.getuser(), exact=True).first.wait_for()
    keep(page, "mlflow_study")
    # The facts stand beside the description, and nothing reaches out of the window.
    assert about.bounding_box()["x"] > WIDTH / 2
    wide = (
        "[...document.querySelectorAll('main *')].filter(one => one.getBoundingClientRect().right > innerWidth).length"
    )
    assert page.evaluate(wide) == 0
    page.get_by_text("Show more", exact=True).first.click()
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    scores = [run.data.metrics["test/accuracy"] for run in children if run.data.tags["phase"] == "final"]
    page.get_by_text(f"test accuracy: {100 * sum(scores) / len(scores):.1f}").wait_for()
    page.get_by_text("best on val at the last epoch").wait_for()
    num_complete = sum(run.data.tags["phase"] == "search" and run.data.tags["state"] == "complete" for run in children)
    page.get_by_text("python -m trainer --task demo/digits").wait_for()
    assert page.locator("table", has_text="val %").locator("tr").count() == 1 + num_complete, (
        "the leaderboard is a table"
    )
    _see_picture(page, address_of(parent, served), "figures/learning_curves.png")


def test_a_trial_shows_its_params_curves_and_pictures(page: Any, served: tuple[str, str], runs: list[Run]) -> None:
    final = the(runs, phase="final", task="demo/digits", method="spt_deep", seed="42")
    place = address_of(final, served)
    page.goto(place)
    page.get_by_text("test/accuracy", exact=True).wait_for()
    page.get_by_text("prompt_init", exact=True).first.wait_for()
    page.get_by_text(final.data.tags["host"]).first.wait_for()
    keep(page, "mlflow_trial")
    page.goto(f"{place}/model-metrics")
    page.locator(".js-plotly-plot, canvas").first.wait_for()
    for name in ("learning_curve.png", "confusion.png", "prototypes.png"):
        _see_picture(page, place, name)
        if name == "prototypes.png":
            keep(page, "mlflow_prototypes")


def _see_picture(page: Any, run: str, name: str) -> None:
    """Open an artifact, and wait until its picture is there and has pixels."""
    page.goto("about:blank")  # another address behind the # alone would leave the page as it is
    page.goto(f"{run}/artifacts/{name}")
    page.get_by_role("heading", name=name.rpartition("/")[2]).or_(page.get_by_text(name, exact=True)).first.wait_for()
    page.wait_for_function(
        "[...document.images].some(i => i.complete && i.naturalWidth > 300 && i.getClientRects().length > 0)"
    )


def test_the_report_of_a_trained_sweep_is_a_page_with_its_tables_charts_and_pictures(page: Any, home: Path) -> None:
    file = home.parent / "seen-report.html"
    sptune_here("report", "seen", "--format", "html", "--out", file, home=home)
    report = page.context.browser.new_page(viewport={"width": 1200, "height": 1000}, color_scheme="light")
    report.goto(file.as_uri())
    for title in ("test accuracy, %", "cost of the methods", "between methods", "chosen on val"):
        report.locator("caption", has_text=title).wait_for()
    keep(report, "report_page")

    # Prototypes are pictures that training has made.
    study = report.locator(".study", has_text="spt_deep")
    assert study.locator("img").count() > 0 and study.locator(".curves").count() > 0
    assert report.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    study.evaluate("study => study.scrollIntoView()")
    keep(report, "report_page_study")
    report.close()


@pytest.fixture(scope="module")
def registered(home: Path) -> str:
    """What is printed when a final trial is registered."""
    return sptune_here("register", "seen", "--where", "task=demo/digits method=spt_deep", "--name", "digits", home=home)


def test_a_registered_model_says_what_it_is_and_what_it_takes(
    page: Any, served: tuple[str, str], runs: list[Run], registered: str
) -> None:
    final = the(runs, phase="final", task="demo/digits", method="spt_deep", seed="42")
    page.goto(f"{served[0]}/#/models/digits/versions/1")
    page.get_by_text(f"test accuracy {100 * final.data.metrics['test/accuracy']:.1f} %").wait_for()
    for text in ("trial_id", final.data.tags["trial_id"], "vit_nano_patch4_32.mae", "Inputs (1)", "Outputs (2)"):
        page.get_by_text(text, exact=True).first.wait_for()
    keep(page, "mlflow_model")


def test_what_mlflow_loads_and_serves_answers_as_the_classifier_does(
    home: Path, store: Path, runs: list[Run], registered: str
) -> None:
    final = the(runs, phase="final", task="demo/digits", method="spt_deep", seed="42")
    uri = f"sqlite:///{home / 'mlflow.db'}"
    rows = pq.read_table(store / "demo/digits/test.parquet").slice(0, 5)
    images = [image.as_py() for image in rows["image"]]
    folder = home / "sweeps/seen/trials" / final.data.tags["trial_id"]
    expected = [found[0] for found in trainer.load(folder).classify(images, top=1)]
    assert "models:/digits/1" in registered
    os.environ["MLFLOW_TRACKING_URI"] = uri
    try:
        model = pyfunc.load_model("models:/digits/1")
        import pandas as pd

        found = model.predict(pd.DataFrame({"image": images}))
        assert [*found["class_name"]] == [one.class_name for one in expected]
        assert [*found["confidence"]] == pytest.approx([one.confidence for one in expected], rel=1e-6)
        port = free_port()
        command = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", "models:/digits/1"]
        command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
        paths = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # MLflow looks for uvicorn there
        process = subprocess.Popen(command, env={**os.environ, "PATH": paths})
    finally:
        del os.environ["MLFLOW_TRACKING_URI"]
    try:
        wait_for(f"http://127.0.0.1:{port}/ping", process)
        data = {"columns": ["image"], "data": [[base64.b64encode(image).decode()] for image in images]}
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations",
            json.dumps({"dataframe_split": data}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            predictions = json.load(answer)["predictions"]
        assert [one["class_name"] for one in predictions] == [one.class_name for one in expected]
    finally:
        process.terminate()
        process.wait(30)
