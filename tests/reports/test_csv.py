"""CSV for spreadsheets: text that would run as a formula is text."""

import csv
import io

import pytest

from surefoot.reports.study_files import csv_text


@pytest.mark.parametrize("text", ["=cmd|' /C calc'!A0", "+1", "-1+1", "@SUM(A1)", "\t=1", " =1", "\n=1"])
def test_formulas_are_escaped_in_cells_and_heads(text: str) -> None:
    head, row = csv.reader(io.StringIO(csv_text([{text: text}]), newline=""))
    assert (head, row) == (["'" + text], ["'" + text])


def test_numbers_and_plain_text_stay() -> None:
    rows = [{"a": -1.5, "b": "x=1", "c": None}, {"a": -2, "d": True}]
    assert csv_text(rows) == "a,b,c,d\n-1.5,x=1,,\n-2,,,True\n"


def test_a_carriage_return_ends_no_row() -> None:
    assert csv_text([{"a": "x\r=1", "b": "\r=1"}]) == "a,b\nx =1,' =1\n"
