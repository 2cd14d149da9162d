"""The command `report`: several sweeps, formats and mistakes in names."""

from __future__ import annotations

import csv
import io
import statistics
from pathlib import Path

import pytest
from rich.console import Console

from orchestrator.cli.progress import progress_table
from orchestrator.report.results_table import OVER_GROUPS, OVER_TASKS
from orchestrator.spec.schema import SweepSpec
from orchestrator.sweep.sweep import Sweep
from tests.orchestrator.conftest import Sptune, drive, new_sweep
from tests.orchestrator.report.formats import Page, of_latex, of_markdown
from tests.orchestrator.report.reports import MAE, ONLY_FULL, SMALL, run, small


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with two sweeps over different tasks, and a third that has a study of the first."""
    folder = tmp_path_factory.mktemp("home")
    url = f"sqlite:///{folder / 'studies.db'}"
    run(small(name="first", tasks=["vtab/dtd", "vtab/svhn"]), url)
    run(small(name="second", tasks=["fgvc/nabirds"], final={"seeds": [42, 7]}), url)
    run(small(name="third", tasks=["vtab/dtd"], **ONLY_FULL), url)
    return folder


def test_several_sweeps_are_joined_in_one_report(home: Path, sptune: Sptune) -> None:
    status, out, error = sptune("report", "first", "second", "--home", home, "--format", "csv")
    assert (status, error) == (0, "")
    csv_lines = [*csv.DictReader(io.StringIO(out))]
    means = {(line["method"], line["column"]): float(line["mean"]) for line in csv_lines if line["kind"] == "ours"}
    for method in ("spt_deep", "full"):
        over = [means[method, task] for task in SMALL["tasks"]]
        assert means[method, OVER_TASKS] == pytest.approx(statistics.mean(over))
        assert means[method, OVER_GROUPS] == pytest.approx((statistics.mean(over[:2]) + over[2]) / 2)
    status, out, _ = sptune("report", "first", "second", "--home", home)
    assert status == 0
    assert "Values are mean ± std over seeds 7, 42, 44." in out
    assert "Trials: 24 complete, 0 pruned, 0 failed, 0 missing." in out
    assert sptune("report", "first", "first", "--home", home) == sptune("report", "first", "--home", home)


def test_cost_is_a_table_on_request(home: Path, sptune: Sptune) -> None:
    _, plain, _ = sptune("report", "first", "--home", home)
    status, out, _ = sptune("report", "first", "--home", home, "--cost")
    assert (status, "cost of the methods" in plain, "cost of the methods" in out) == (0, False, True)
    told = "error: --cost adds a table, and csv has only the main one: choose another format.\n"
    assert sptune("report", "first", "--home", home, "--cost", "--format", "csv") == (2, "", told)


@pytest.mark.parametrize("form", ["markdown", "latex", "html"])
def test_the_command_writes_the_report_in_each_format(form: str, home: Path, sptune: Sptune) -> None:
    status, out, error = sptune("report", "first", "--home", home, "--format", form)
    assert (status, error) == (0, "")
    tables = {"markdown": of_markdown, "latex": of_latex, "html": lambda text: Page(text).tables}[form](out)
    leaderboards = [3, 3, 3, 3] if form == "html" else []
    cost = [3] if form == "html" else []
    assert [len(rows) for rows in tables][1:] == [2, *cost, 5, 3, *leaderboards], (
        "comparisons, cost, chosen params and what is searched"
    )
    assert [words for words, _ in tables[0][0]] == ["method", "tuned %", "vtab/dtd", "vtab/svhn", OVER_TASKS]


def test_a_study_in_two_sweeps_is_refused(home: Path, sptune: Sptune) -> None:
    status, out, error = sptune("report", "first", "third", "--home", home)
    assert (status, out) == (2, "")
    assert f"vtab/dtd full {MAE} train_size 1.0 is in several of these sweeps" in error
    assert "Traceback" not in error


def test_an_unknown_sweep_is_refused_with_the_nearest_name(home: Path, sptune: Sptune) -> None:
    for sweeps in (["frist"], ["first", "frist"]):
        status, out, error = sptune("report", *sweeps, "--home", home)
        assert (status, out) == (2, "")
        assert error.count("frist") == 2 and "did you mean 'first'?" in error
        assert len(error.strip().splitlines()) == 1


def test_the_progress_of_a_running_sweep_lists_every_study(spec: SweepSpec, record_url: str) -> None:
    sweep: Sweep = new_sweep(spec, record_url)
    drive(sweep, workers=3, events=12)
    console = Console(file=io.StringIO(), width=300)
    console.print(progress_table(sweep.summaries()))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    finished = sum(trial.state.is_finished for study in sweep.studies for trial in study.search_table.trials)
    assert f"{finished}/10" in text
    assert "demo/shapes_loc" in text, "studies without a running trial are listed, too"
