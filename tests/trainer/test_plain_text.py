"""Numbers with their nouns, and texts that no spreadsheet computes."""

from __future__ import annotations

import pytest

from trainer.plain_text import counted, csv_text


@pytest.mark.parametrize(
    ("number", "noun", "text"),
    [
        (0, "trial", "0 trials"),
        (1, "trial", "1 trial"),
        (2, "study", "2 studies"),
        (1, "study", "1 study"),
        (3, "key", "3 keys"),
        (2, "class", "2 classes"),
        (5, "batch", "5 batches"),
        (4, "epoch", "4 epochs"),
        (12_800, "patch token", "12,800 patch tokens"),
        (1.0, "GPU", "1 GPU"),
        (0.5, "GPU", "0.5 GPUs"),
        (2.0, "GPU", "2 GPUs"),
    ],
)
def test_a_number_has_the_noun_that_fits_it(number: float, noun: str, text: str) -> None:
    assert counted(number, noun) == text


def test_a_plural_that_is_not_regular_is_given() -> None:
    assert [counted(number, "row has", "rows have") for number in (1, 2)] == ["1 row has", "2 rows have"]


@pytest.mark.parametrize("text", ["=1+1", "+A1", "-2+3", "@SUM(A1)", "\t=1", "\r=1"])
def test_a_spreadsheet_computes_no_text(text: str) -> None:
    assert csv_text(text)[0] in "'\\"


@pytest.mark.parametrize("text", ["vtab/dtd", "own/a=b", "", "1.0", "日本", "a-b"])
def test_other_texts_stay_as_they_are(text: str) -> None:
    assert csv_text(text) == text
