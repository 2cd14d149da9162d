"""The page of a sweep: it has every number, reads text of users as text, and loads nothing."""

from __future__ import annotations

import dataclasses
import html.parser
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from orchestrator.cli import html_report
from orchestrator.report_page.page import PageState, SectionCache, render_page
from orchestrator.spec.loader import parse_spec
from orchestrator.study.selection import rank_by_val
from orchestrator.study.storage.database import StudyDatabase
from orchestrator.study.study import Study
from orchestrator.study.trial import Failure, FailureCause, Trial
from tests.orchestrator.conftest import Sptune
from tests.orchestrator.report.reports import ONLY_FULL, run, small
from trainer.plain_text import printable

ONE_STUDY = {"tasks": ["vtab/dtd"], "methods": ["spt_deep"], "fixed": {"epochs": 3, "warmup_epochs": 1}}
ONE_TRIAL = ONE_STUDY | ONLY_FULL | {"search": {"trials": 1}, "final": {"seeds": [42]}}
AWKWARD = (
    "<script>alert(1)</script>", "</script><script>alert(2)</script>", "</style><i>x</i>", "</title><i>x</i>",
    "\"><img src=x onerror=alert(1)>", "' onload='alert(1)", "</pre><iframe src='https://x.org'>", "]]> --> <!-- ",
    "&lt;b&gt; &amp;", "url(https://x.org/x.png)", "javascript:alert(1)", "\x1b[2J", "evil\u202egpj.exe", "caf\udce9",
    "$a$ {x} `y` 字", "#000000", 'style="fill: #000000"',
)  # fmt: skip
SECRET = "postgresql://ada:geheim@db/x"
PNG = b"\x89PNG\r\n\x1a\n, and what follows"
NOW = PageState(written="Written by a test.")


class Page(html.parser.HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.by_tag: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == [], "every tag is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        self.by_tag.setdefault(tag, []).append("")
        if tag not in ("meta", "br", "img", "wbr"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        for tag in {*self._open}:
            self.by_tag[tag][-1] += data

    def values(self, name: str) -> list[str]:
        return [value for key, value in self.attributes if key == name]


def nothing(trial: Trial, name: str) -> bytes | None:
    return None


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> list[Study]:
    """One study, with a failed search trial and an error of each kind in its texts."""

    def fail(trial: Trial) -> Failure | None:
        broken = (trial.phase, trial.number) == ("search", 1)
        return Failure(cause=FailureCause.ERROR, error=f"OSError: {SECRET} <script>") if broken else None

    raw = small(**ONE_STUDY, search={"trials": 3, "sampler": "random"})
    url = f"sqlite:///{tmp_path_factory.mktemp('studies') / 'studies.db'}"
    return run(raw, url, fail=fail, metrics=lambda trial: {"train/loss": 2.0}, facts=lambda _: {"device": "A100 <b>"})


def test_the_page_has_the_trials_the_curves_the_spec_and_the_provenance(studies: list[Study]) -> None:
    (study,) = studies
    best = study.best
    assert best is not None
    text = render_page(studies, nothing, NOW)
    page = Page(text)

    # The leaderboard: the complete trials from the best to the worst, then the failed one.
    ranked = rank_by_val(study.search_table.trials)
    board = re.search(r'<div class="leaderboard">.*?</table>', text, re.DOTALL)
    assert board is not None
    rows = re.findall(r"<tr>\n<td[^>]*>(?:<b>)?(\d+)", board[0])
    assert rows == [*(str(trial.number) for trial in ranked), "1"] and ranked[0] == best

    # A curve has the values of its trial, which the pointer shows.
    curves = re.findall(
        r'class="trial (\w+)" data-trial="(\d+)"><title>[^<]*</title><polyline transform="[^"]*" points="([^"]*)"', text
    )
    assert len(curves) == 2 * len(ranked), "val accuracy and train loss"
    for word, number, points in curves:
        trial = study.search_table.trials[int(number)]
        assert word == ("chosen" if trial == best else "complete")
        assert points.startswith("1,") and [point.partition(",")[0] for point in points.split()] == ["1", "2", "3"]
        assert points == "1,2 2,2 3,2" or float(points.rpartition(",")[2]) == pytest.approx(100 * (trial.score or 0))

    # A line of parallel coordinates for each trial that has an accuracy.
    assert len(re.findall(r'style="--quality: \d+%"', text)) == len(ranked)

    # The spec can be launched as it stands.
    spec = next(words for words in page.by_tag["pre"] if words.startswith("name:"))
    assert parse_spec(yaml.safe_load(spec), "the page") == study.spec
    for words in ("device: A100 <b>", "python -m trainer --task vtab/dtd", "Written by a test.", "test accuracy, %"):
        assert words in page.text


def test_the_page_has_the_prototypes_of_the_chosen_params_and_no_damaged_picture(studies: list[Study]) -> None:
    asked: list[tuple[str, str]] = []

    def read_file(trial: Trial, name: str) -> bytes | None:
        asked.append((trial.phase, name))
        return PNG if trial.phase == "search" else None

    page = Page(render_page(studies, read_file, NOW, has_figures=False))
    assert asked == [("final", "prototypes.png"), ("search", "prototypes.png")]
    assert [value[:22] for value in page.values("src")] == ["data:image/png;base64,"]
    assert "img" not in Page(render_page(studies, lambda trial, name: b"damaged", NOW, has_figures=False)).tags


def test_the_page_loads_nothing_and_runs_its_own_script_alone(studies: list[Study]) -> None:
    page = Page(render_page(studies, nothing, NOW))
    (policy,) = (value for name, value in page.attributes if name == "content" and "default-src" in value)
    assert policy.startswith("default-src 'none'; script-src 'sha256-") and "http" not in policy
    assert not {*page.tags} & {"link", "iframe", "object", "embed", "base", "form", "image"}
    assert all(value.startswith("#") for name in ("href", "xlink:href") for value in page.values(name))
    assert not re.search(r"url\((?!#)|@import|fetch\(|XMLHttp|WebSocket|import\(", "".join(page.by_tag["style"]))
    ids = page.values("id")
    assert len(ids) == len({*ids}), "figures have ids of their own"
    links = {value[1:] for name in ("href", "xlink:href") for value in page.values(name)}
    assert links <= {*ids}, "every link has its place"


def test_text_of_users_is_text_everywhere(studies: list[Study], tmp_path: Path) -> None:
    """In names, errors, params, reasons and facts, whatever validation would say of them today."""
    word = " ".join(AWKWARD)

    def fail(trial: Trial) -> Failure | None:
        index = trial.number if trial.phase == "search" else 0
        error = f"{AWKWARD[index]} {SECRET}"
        return Failure(cause=FailureCause.ERROR, error=error) if index else None

    raw = small(**ONE_STUDY, search={"trials": 5, "sampler": "random"})
    (study,) = run(raw, f"sqlite:///{tmp_path / 'studies.db'}", fail=fail, facts=lambda _: {"device": word})
    study.search_table.save_stop_reason(f"{word} {SECRET}")

    # Of the plan and the spec, with names that the loader refuses. Figures have no room for all of them in one name.
    dimensions = [*study.plan.space.items()]
    renamed = {name: f"{awkward} {name}" for (name, _), awkward in zip(dimensions, AWKWARD[2:], strict=False)}
    space = {renamed[name]: dimension for name, dimension in dimensions}
    study.plan = dataclasses.replace(study.plan, task=f"own/{AWKWARD[0]}", backbone=AWKWARD[-1], space=space)
    study.spec = study.spec.model_copy(update={"name": word})
    trials = study.search_table.trials
    trials[:] = [
        dataclasses.replace(trial, params={renamed[name]: value for name, value in trial.params.items()})
        for trial in trials
    ]

    text = render_page([study], nothing, NOW)
    page = Page(text)
    assert {*page.tags} <= {*Page(render_page(studies, nothing, NOW)).tags}, "no tag comes from a text"
    assert page.tags.count("script") == 1 and page.tags.count("style") == 1
    assert [name for name, _ in page.attributes if name.startswith("on")] == []
    assert page.by_tag["title"][0] == f"{printable(word)} – sptune report"
    for part in (
        *renamed.values(),
        f"own/{AWKWARD[0]}",
        AWKWARD[-1],
        f"stopped: {printable(word)}",
        f"device: {printable(word)}",
    ):
        assert part in page.text
    assert all(printable(awkward) in page.text for awkward in AWKWARD)
    assert "geheim" not in text and "***" in text
    assert "\x1b" not in text and "\u202e" not in text
    text.encode()


def test_a_section_is_written_again_only_when_its_study_has_changed(studies: list[Study]) -> None:
    (study,) = studies
    cache = SectionCache()
    read: list[str] = []

    def read_file(trial: Trial, name: str) -> bytes | None:
        read.append(name)
        return None

    pages = [render_page(studies, read_file, NOW, cache, has_figures=False) for _ in range(2)]
    assert pages[0] == pages[1] and len(read) == 2, "final and chosen trial, once"
    before = study.search_table.trials[0]
    study.search_table.trials[0] = dataclasses.replace(before, epochs=before.epochs[:-1])
    try:
        assert render_page(studies, read_file, NOW, cache, has_figures=False) != pages[0]
    finally:
        study.search_table.trials[0] = before


def test_a_sweep_without_a_trial_has_a_page(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    (study,) = run(small(**ONE_TRIAL), url)
    study.delete_trials()
    text = render_page([study], nothing, PageState(written="now", progress="0 of 3 trials finished", refresh_s=10))
    page = Page(text)
    assert "no complete trial yet" in page.text and "0 of 3 trials finished" in page.text
    assert "refresh" in page.values("http-equiv") and "10" in page.values("content")


@pytest.mark.slow
def test_watching_writes_the_page_until_the_driver_ends_or_ctrl_c(
    tmp_path: Path, sptune: Sptune, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(html_report, "WATCH_S", 0.01)
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    run(small(**ONE_TRIAL), url)
    lease = StudyDatabase(url).lease("small")
    main_thread = threading.main_thread().ident
    assert main_thread is not None

    def interrupt() -> None:
        signal.pthread_kill(main_thread, signal.SIGINT)

    ends: dict[str, Callable[[], None]] = {"interrupted.html": interrupt, "ended.html": lease.release}
    lease.acquire("small")
    for name, end in ends.items():
        file = tmp_path / name
        seen: list[str] = []

        def end_after_first_page(file: Path = file, end: Callable[[], None] = end, seen: list[str] = seen) -> None:
            # The file appears whole.
            while not file.exists():
                time.sleep(0.01)
            seen.append(file.read_text(encoding="utf-8"))
            end()

        thread = threading.Thread(target=end_after_first_page)
        thread.start()
        status, out, error = sptune("report", "small", "--home", tmp_path, "--format", "html", "--watch", "--out", file)
        thread.join()
        assert (status, error) == (0, ""), out
        assert ("stopped watching." in out) == (end is interrupt)
        assert 'http-equiv="refresh"' in seen[0] and seen[0].endswith("</html>\n")
        last = file.read_text(encoding="utf-8")
        assert 'http-equiv="refresh"' not in last and last.endswith("</html>\n")
    assert [*tmp_path.glob("*.part")] == []


def test_a_spec_that_is_named_by_its_file_stands_in_the_page_as_written(tmp_path: Path, sptune: Sptune) -> None:
    raw = small(**ONE_TRIAL)
    run(raw, f"sqlite:///{tmp_path / 'studies.db'}")
    file = tmp_path / "spec.yaml"
    question = "# Does <SPT> win? 字\n"
    written = question + yaml.safe_dump(raw)
    for encoding, text, is_as_written in (
        ("utf-16", written.replace("\n", "\r\n"), True),
        # Edited since, so it is not what ran.
        ("utf-8", written.replace("trials: 1", "trials: 2"), False),
    ):
        file.write_bytes(text.encode(encoding))
        status, out, error = sptune("report", file, "--home", tmp_path, "--format", "html")
        assert (status, error) == (0, "")
        (spec,) = (words for words in Page(out).by_tag["pre"] if "name: small" in words)
        assert (spec == written) == is_as_written
        assert yaml.safe_load(spec)["search"]["trials"] == 1


def test_the_options_of_files_say_what_they_need(tmp_path: Path, sptune: Sptune) -> None:
    run(small(**ONE_TRIAL), f"sqlite:///{tmp_path / 'studies.db'}")
    where = ("report", "small", "--home", tmp_path)
    status, out, error = sptune(*where, "--out", tmp_path / "x")
    assert (status, out) == (2, "") and "--format html, markdown, latex or csv" in error
    status, out, error = sptune(*where, "--watch", "--format", "csv")
    assert (status, out) == (2, "") and "--format html" in error
    for form in ("html", "csv", "latex"):
        status, out, error = sptune(*where, "--format", form, "--json")
        assert (status, out) == (2, "") and "leave --format out" in error
    status, out, error = sptune(*where, "--format", "html", "--out", "/proc/x/report.html")
    assert (status, out) == (2, "") and "/proc/x" in error and "Traceback" not in error
    assert sptune(*where, "--format", "csv", "--out", tmp_path / "x.csv") == (0, "", "")
    assert (tmp_path / "x.csv").read_text(encoding="utf-8") == sptune(*where, "--format", "csv")[1]
