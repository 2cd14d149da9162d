"""The report as a page in a real browser: sorting, pointing, dark and narrow screens, paper, and no network."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from orchestrator.report_page.page import PageState, render_page
from orchestrator.spec.loader import parse_spec
from orchestrator.study.study import Study
from orchestrator.study.trial import Trial
from tests.orchestrator.conftest import drive, new_sweep
from tests.orchestrator.report.reports import run, small

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FIXED = {"epochs": 4, "warmup_epochs": 1}
WHITE = "rgb(255, 255, 255)"


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> list[Study]:
    """Studies with synthetic curves on a backbone with published results."""
    pruner = {"type": "asha", "min_epochs": 1, "reduction": 2}
    search = {"trials": 6, "startup_trials": 2, "pruner": pruner}
    raw = small(tasks=["vtab/dtd", "vtab/svhn"], fixed=FIXED, search=search)
    sweep = new_sweep(parse_spec(raw, "a test"), f"sqlite:///{tmp_path_factory.mktemp('studies') / 'studies.db'}")
    drive(sweep)
    sweep.close()
    return sweep.studies


@pytest.fixture(scope="module")
def file(studies: list[Study], tmp_path_factory: pytest.TempPathFactory) -> Path:
    picture = io.BytesIO()
    Image.new("RGB", (480, 200), "white").save(picture, "PNG")

    def read_file(trial: Trial, name: str) -> bytes | None:
        return picture.getvalue()

    file = tmp_path_factory.mktemp("page") / "report of a sweep.html"
    file.write_text(render_page(studies, read_file, PageState(written="now")), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def page(file: Path) -> Iterator[Any]:
    """The page in Debian's Chromium, with what it requested and complained of."""
    if CHROMIUM is None:
        pytest.skip("needs Chromium (Debian: apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page: Any = browser.new_page(viewport={"width": 1200, "height": 900}, color_scheme="light")
        page.requested, page.complaints = [], []
        page.on("request", lambda request: page.requested.append(request.url))
        page.on("console", lambda message: page.complaints.append(message.text))
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.goto(file.as_uri())
        yield page
        browser.close()


def texts_of(page: Any, selector: str) -> list[str]:
    return [str(text) for text in page.locator(selector).all_text_contents()]


def test_a_click_on_the_name_of_a_column_sorts_by_it(page: Any, studies: list[Study]) -> None:
    board = "#study-0 .leaderboard"
    cells = f"{board} tbody td:nth-child(3)"
    before = texts_of(page, cells)
    accuracies = sorted(map(float, before))
    assert len({*before}) > 2
    button = page.locator(f"{board} th button", has_text="val %")
    header = page.locator(f"{board} th", has_text="val %")

    button.click()
    assert (header.get_attribute("aria-sort"), [*map(float, texts_of(page, cells))]) == ("descending", accuracies[::-1])
    button.press("Enter")
    assert (header.get_attribute("aria-sort"), [*map(float, texts_of(page, cells))]) == ("ascending", accuracies)
    button.click()
    assert (header.get_attribute("aria-sort"), texts_of(page, cells)) == (None, before)

    # A difference stays below the published row that it belongs to, and rows without a number come last.
    page.locator("#results table").first.locator("th button", has_text="vtab/dtd").click()
    rows = [row.locator("td").all_text_contents() for row in page.locator("#results table").first.locator("tr").all()]
    names, column = [row[0] for row in rows[1:]], [row[2] for row in rows[1:]]
    own = [index for index, name in enumerate(names) if not name.startswith("  ")]
    numbers = [float(column[index].split()[0]) for index in own if column[index] != "—"]
    assert numbers == sorted(numbers, reverse=True)
    assert [column[index] for index in own[len(numbers) :]] == ["—"] * (len(own) - len(numbers))
    full = next(index for index, name in enumerate(names) if name.startswith("full, published"))
    assert names[full + 1].startswith("  difference")


def test_the_pointer_shows_a_trial_in_every_chart_and_in_the_leaderboard(page: Any, studies: list[Study]) -> None:
    best = studies[0].best
    assert best is not None and best.score is not None
    study = page.locator("#study-0")
    chosen = f"[data-trial='{best.number}']"
    line = study.locator(f".curves {chosen} polyline").first
    line.scroll_into_view_if_needed()
    x, y = line.evaluate("line => {const p = line.points[3].matrixTransform(line.getScreenCTM()); return [p.x, p.y]}")
    page.mouse.move(x, y)
    tooltip = page.locator(".tooltip")
    assert tooltip.is_visible()
    assert f"{100 * best.score:.4g} at epoch 4" in tooltip.inner_text()
    assert f"trial {best.number}, complete, chosen" in tooltip.inner_text()
    marked = study.locator(".marked").evaluate_all("all => all.map(one => [one.localName, one.dataset.trial])")
    assert sorted(marked) == [["g", str(best.number)]] * 3 + [["tr", str(best.number)]], "curves, params and the row"
    assert page.locator("#study-1 .marked").count() == 0

    page.mouse.move(2, 2)
    assert not tooltip.is_visible() and page.locator(".marked").count() == 0

    # The other way round.
    study.locator(".leaderboard tbody tr").nth(1).hover()
    assert study.locator("g.marked").count() == 3
    page.mouse.move(2, 2)


def test_the_page_is_dark_on_a_dark_screen_white_on_paper_and_no_wider_than_a_phone(page: Any) -> None:
    def color(selector: str, name: str) -> str:
        script = "(one, name) => getComputedStyle(one)[name]"
        return str(page.locator(selector).first.evaluate(script, name))

    ink = color("body", "color")
    assert color("body", "backgroundColor") == WHITE
    page.emulate_media(color_scheme="dark")
    assert color("body", "backgroundColor") != WHITE
    assert color("body", "color") == color(".picture svg text", "fill") == color(".chart .end", "fill") != ink
    page.emulate_media(media="print", color_scheme="dark")
    assert (color("body", "backgroundColor"), color("body", "color")) == (WHITE, ink)
    page.emulate_media(media="screen", color_scheme="light")

    page.locator("#study-1 summary").click()
    assert page.locator("#study-1").get_attribute("open") is None
    assert page.pdf()[:5] == b"%PDF-"
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("#study-1").get_attribute("open") == "", "paper has no folds"
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("#study-1").get_attribute("open") is None

    page.set_viewport_size({"width": 400, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    page.set_viewport_size({"width": 1200, "height": 900})


def test_no_table_and_no_chart_is_wider_than_a_window_of_1200_pixels(page: Any, tmp_path: Path) -> None:
    def metrics(trial: Trial) -> dict[str, float]:
        return {
            "learnable/parameters": 85_000_000.0,
            "learnable/share": 1.0,
            "train/images_per_s": 12_400.0,
            "memory/peak_gb": 72.0,
            "epoch/seconds": 36_000.0,
        }

    methods = ["spt_deep", "e2vpt_unpruned_prototypes", "full"]
    # As many params as the spec of `sptune new` has.
    space = {
        "lr": {"type": "float", "low": 0.001, "high": 0.1, "log": True},
        "weight_decay": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True},
        "head_weight_decay": {"type": "float", "low": 1e-3, "high": 1e-1, "log": True},
        "prompt_length": {"type": "choice", "values": [5, 10]},
        "prompt_init": {"type": "choice", "values": ["random", "mean_pool", "max_pool", "kmeans"]},
    }
    raw = small(methods=methods, fixed=FIXED, space=space)
    studies = run(raw, f"sqlite:///{tmp_path / 'studies.db'}", metrics=metrics)
    file = tmp_path / "wide.html"
    file.write_text(render_page(studies, lambda *_: None, PageState(written="now")), encoding="utf-8")

    other = page.context.browser.new_page(viewport={"width": 1200, "height": 900})
    other.goto(file.as_uri())
    table = other.locator(".scroll", has_text="cost of the methods")
    assert "85,000,000" in table.inner_text()
    other.evaluate("document.querySelectorAll('details').forEach(study => { study.open = true })")
    assert other.locator(".parallel").count() == len(studies)
    for box in other.locator(".scroll, figure").all():
        widths = box.evaluate("box => [box.scrollWidth, box.clientWidth]")
        assert widths[0] <= widths[1], f"nothing is to be scrolled: {box.text_content()[:200]}"
    other.close()


def test_the_page_requests_nothing_and_may_request_nothing(page: Any, file: Path) -> None:
    loaded = [url for url in page.requested if not url.startswith("data:")]
    assert (loaded, page.complaints) == ([file.as_uri()], [])
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")

    # What got past the escapes would be refused by the browser.
    refused = page.evaluate(
        """() => new Promise((resolve) => {
            const refused = [];
            document.addEventListener("securitypolicyviolation", (event) => {
                refused.push(event.effectiveDirective);
                if (refused.length === 3) resolve(refused.sort());
            });
            const picture = '<img src="https://localhost:9/x.png">';
            document.body.insertAdjacentHTML("beforeend", `${picture}<b onclick="window.ran = 1">x</b>`);
            const script = document.createElement("script");
            script.textContent = "window.ran = 1";
            document.body.append(script);
        })"""
    )
    assert refused == ["img-src", "script-src-attr", "script-src-elem"]
    assert page.evaluate("window.ran") is None
