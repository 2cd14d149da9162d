"""A report as CSV, opened in a spreadsheet."""

from __future__ import annotations

import csv
import io

import pytest

from orchestrator.report.render import to_csv
from orchestrator.report.results_table import ResultsRow, ResultsTable, Score


@pytest.mark.parametrize("text", ["=1+1", "+A1", "-2+3", "@SUM(A1)", '=HYPERLINK("http://x")', "\t=1", "\r=1"])
def test_a_spreadsheet_computes_no_text_of_a_user(text: str) -> None:
    # A difference of two accuracies is negative, and a number.
    score = Score(mean=-1.5, std=0.25, seeds=(42,))
    row = ResultsRow(kind="ours", names=(text, "b", "1.0"), source=text, scores={text: score}, protocol=(text,))
    table = ResultsTable(tasks=(text,), groups={}, rows=[row])
    header, line = csv.reader(io.StringIO(to_csv(table)))
    cells = dict(zip(header, line, strict=True))
    assert (cells["mean"], cells["std"], cells["missing"]) == ("-1.5", "0.25", "0")
    for name in ("method", "column", "source", "protocol"):
        assert not cells[name].startswith(("=", "+", "-", "@", "\t", "\r")), name
        assert text.strip() in cells[name]
