"""The report is read from records alone, escapes what models wrote, asks nothing of the network, and fits a phone."""

import base64
import hashlib
import html.parser
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.console import Console

from surefoot.files import read_json, write_json
from surefoot.reports.records import read_study
from surefoot.reports.study import build_report, summary_table
from surefoot.reports.study_figures import trajectory_figure
from surefoot.reports.summary import summarise
from tests.browser import measure_in_frame
from tests.reports.synthetic import as_an_earlier_version_wrote_it, edit_cell, place_of, write_study

HOSTILE = "<script>alert('x')</script> & \"quoted\""
GAINS = {"vanilla": [-0.5, 0.25, 0.25], "mean": [0.5, 0.5, 0.5], "variance_aware": [0.5, 0.75, 1.0]}


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return write_study(tmp_path / "study", gains=GAINS, seeds=3)


class Checker(html.parser.HTMLParser):
    """Collects tags, and fails on unclosed ones."""

    VOID = ("meta", "br", "hr", "img", "input", "link", "path", "use", "circle", "rect")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def parsed(path: Path) -> Checker:
    checker = Checker()
    checker.feed(path.read_text())
    assert checker.open == []
    return checker


def words_of(page: Path) -> str:
    return re.sub(r"\s+", " ", " ".join(parsed(page).text))


def test_the_page_is_whole_and_alone(study: Path) -> None:
    page = build_report(study)
    text = page.read_text()
    found = parsed(page)
    assert found.tags.count("svg") == 5 + 3 + 2  # of the group, a frame for each method, of the disagreement
    assert found.tags.count("script") == 1
    assert not re.search(r"(src|href)=\"(?!#)", text)
    assert "http" not in text.replace("http-equiv", "")
    assert len(text) < 200_000


def test_only_the_pages_own_script_may_run(study: Path) -> None:
    text = build_report(study).read_text()
    source = re.search(r"<script>(.*?)</script>", text, re.S)
    assert source is not None
    digest = base64.b64encode(hashlib.sha256(source.group(1).encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in text


def test_what_models_and_users_wrote_is_text(study: Path) -> None:
    for path in (study / "cells").glob("*.json"):
        cell = read_json(path)
        cell["samples"][0] |= {"prompt": HOSTILE, "completion": HOSTILE}
        write_json(path, cell)
    grid = read_json(study / "study.json")
    write_json(study / "study.json", grid | {"title": HOSTILE, "config": {"title": HOSTILE}})
    found = parsed(build_report(study))
    assert found.tags.count("script") == 1
    assert sum(HOSTILE in piece for piece in found.text) >= 6
    assert any("Second <b>finding</b>." in piece for piece in found.text)


def test_unknown_is_not_zero(study: Path) -> None:
    text = words_of(build_report(study))
    assert "true reward not scored" in text  # the reference's first sample
    assert "variance unknown" in text  # one model has none
    assert "infinite at 1 of 3 seeds" in text


def test_the_variance_of_a_sample_has_two_significant_digits(study: Path) -> None:
    """Variances of a linear head are far below .01, which two decimals would show as 0."""
    for path in (study / "cells").glob("*.json"):
        cell = read_json(path)
        cell["samples"][0]["variance"], cell["samples"][1]["variance"] = 0.000314159, 1234.5
        write_json(path, cell)
    text = words_of(build_report(study))
    assert "variance 0.00031" in text
    assert "variance 1200" in text
    assert "variance 0.00 " not in text


def test_one_titled_table_compares_the_methods(tmp_path: Path) -> None:
    """Against the baseline and the mean, at the end and at equal KL, over all groups."""
    gains = GAINS | {"lcb": [0.4, 0.4, 0.4]}
    text = build_report(write_study(tmp_path, methods=tuple(gains), gains=gains, seeds=3, budgets=(4.0, 6.0)))
    titles = re.findall(r"<caption>(.*?)</caption>", text.read_text())
    assert titles.count("Methods compared, seed by seed") == 1
    assert titles.count("Final figures by method") == 2
    table = text.read_text().split("Table: Methods compared")[1].split("</table>")[0]
    rows = [re.findall(r"<t[hd][^>]*>(?:<strong>)?([^<]*)", row) for row in table.split("<tr>")[2:]]
    pairs = [(method, "one reward model") for method in ("mean of members", "variance-aware", "LCB")]
    pairs += [(method, "the mean of members") for method in ("variance-aware", "LCB")]
    assert [tuple(row[:3]) for row in rows] == [(budget, *pair) for budget in ("4 nats", "6 nats") for pair in pairs]
    assert rows[1][3].startswith("+0.75 [")
    assert "3 of 3, p\xa0=\xa00.75; detectable\xa0" in table
    assert re.search(r"; at\xa03\.\d+\xa0nats", table)  # where nine in ten runs got


def test_a_comparison_with_one_method_is_named_in_the_title(tmp_path: Path) -> None:
    gains = {"vanilla": [-0.5, 0.25], "variance_aware": [0.5, 0.75]}
    text = build_report(write_study(tmp_path, methods=tuple(gains), gains=gains, seeds=2)).read_text()
    assert "<caption>Methods compared with one reward model, seed by seed</caption>" in text
    assert "compared with</th>" not in text


def test_the_verdict_is_a_badge(tmp_path: Path) -> None:
    gains = {"vanilla": [0.0] * 8, "mean": [0.2] * 8, "lcb": [-0.2] * 8, "uwo": [0.1, -0.1] * 4}
    text = build_report(write_study(tmp_path, methods=tuple(gains), gains=gains, seeds=8, steps=20)).read_text()
    badges = re.findall(r'<li>([^<]*) <span class="badge (\w+)">(\w+)</span>', text)
    assert badges == [
        ("mean of members", "likely", "likely"), ("LCB", "unlikely", "unlikely"), ("UWO", "possible", "possible")
    ]  # fmt: skip


def test_the_page_has_neither_markdown_nor_a_negative_zero(study: Path) -> None:
    for path in (study / "disagreement").glob("*.json"):
        found = read_json(path)
        write_json(path, found | {"verdict": ["Run `surefoot diagnose` <b>."], "offset_per_prompt": -0.001})
    text = build_report(study).read_text()
    assert "Run <code>surefoot diagnose</code> &lt;b&gt;." in text
    body = text.split("</style>")[-1].split("<script>")[0]
    assert not re.search(r"`|\*\*|[−-]0%|[−-]0\.00\b", body)


def test_an_unscored_run_is_left_out_and_not_counted_as_level(study: Path) -> None:
    edit_cell(study, place_of("uneven", "heads", "mean", 6.0, 0), gold_final=None, gold_gain=None)
    (mean,) = (one for one in summarise(read_study(study)) if one.method == "mean")
    assert (mean.runs, mean.risk.n, mean.paired.difference.n) == (3, 2, 2)
    assert "2 of 3 scored" in words_of(build_report(study))


def test_worse_prompts_are_shown_and_explained(study: Path) -> None:
    """Of five prompts, the baseline's three runs leave 5, 1 and 1 worse than the reference."""
    text = words_of(build_report(study))
    assert (
        "Prompts Variance-aware answered 0% [0%, 56%] of the prompts worse than the reference, one reward model"
        in text
    )
    assert "one reward model 47% [" in text
    assert (
        "Worse prompts: the share of evaluation prompts that the final policy answers worse than the reference does, "
        "by the mean true reward of about 10 fresh completions of each, over runs and prompts; below it the difference"
    ) in text
    assert "−47 [−" in text  # points, against the baseline
    assert "before their variance was taken, by 4 completions of the reference." in text


def test_the_reliability_of_the_variance_is_shown(study: Path) -> None:
    text = words_of(build_report(study))
    assert "The reliability of its variance is 0.53 (mean over 3 seeds): the correlation of ln s² between" in text
    assert "Weights made of a variance below 0.6 are mostly noise." in text
    (found,) = read_json(study / "summary.json")["reliability_of_variances"]
    assert (found["setting"], found["source"], found["seeds"]) == ("uneven", "heads", 3)
    assert found["reliability"] == pytest.approx((0.5 + 0.6 + 0.5) / 3)


def test_a_study_of_an_earlier_version_shows_dashes(study: Path) -> None:
    as_an_earlier_version_wrote_it(study)
    page = build_report(study)
    text = words_of(page)
    table = page.read_text().split("Table: Final figures by method")[1].split("</table>")[0]
    rows = [re.findall(r"<td[^>]*>([^<]*)", row) for row in table.split("<tr>")[2:]]
    assert [row[2] for row in rows] == ["–"] * 3
    assert "of the prompts worse than the reference" not in text
    assert "reliability" not in text
    assert "before their variance was taken" not in text
    assert read_json(study / "summary.json")["reliability_of_variances"] == []
    assert "prompts" not in " ".join(str(column.header) for column in summary_table(study).columns)


def test_policies_that_have_not_moved_are_drawn(study: Path) -> None:
    """After one update every run is still at a KL of zero, which leaves the axis no width of its own."""
    for path in (study / "cells").glob("*.json"):
        cell = read_json(path)
        write_json(path, cell | {"trajectory": [cell["trajectory"][0] | {"kl": 0.0}]})
    assert parsed(build_report(study)).open == []


def test_a_wide_terminal_table_leaves_the_prompts_out(tmp_path: Path) -> None:
    """A long name takes the room; nothing else is lost, and nothing is wrapped."""
    gains = {"vanilla": [-0.5, 0.25], "variance_aware_one": [-0.5, -0.75]}
    folder = write_study(tmp_path, methods=tuple(gains), gains=gains, seeds=2)
    assert [str(column.header) for column in summary_table(folder).columns] == [
        "", "risk of loss", "mean gain", "over one model", "KL"
    ]  # fmt: skip


def test_the_same_records_give_the_same_files(study: Path) -> None:
    names = ("report.html", "summary.json", "summary.csv", "cells.csv")
    build_report(study)
    first = [(study / name).read_text() for name in names]
    build_report(study)
    assert [(study / name).read_text() for name in names] == first


def test_the_table_fits_a_terminal(study: Path) -> None:
    console = Console(width=80, record=True)
    console.print(summary_table(study))
    text = console.export_text()
    assert "33% [6, 79]" in text
    assert len([line for line in text.splitlines() if line.strip()]) == 4 + 3  # nothing is wrapped but a heading


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 1280])
def test_it_fits_the_window(study: Path, tmp_path: Path, width: int) -> None:
    """In a frame of that width nothing but the boxes made for it is wider than the page, and each figure is drawn."""
    build_report(study)
    found = measure_in_frame(study / "report.html", width, tmp_path)
    assert found["wide"] <= width
    assert len(found["figures"]) == 10
    assert min(found["figures"]) > 60


def test_the_picture_is_a_file_of_its_own(study: Path) -> None:
    """As the README shows it: well-formed XML on a white ground, a line for each run and each method's mean."""
    text = trajectory_figure(read_study(study)).svg(standalone=True)
    root = ElementTree.fromstring(text)
    space = "{http://www.w3.org/2000/svg}"
    assert root.tag == f"{space}svg"
    assert next(iter(root)).get("fill") == "#fff"
    runs = [one for one in root.iter(f"{space}path") if one.get("stroke-opacity") == "0.3"]
    assert len(runs) == 9
    assert "variance-aware 0" in str(root.get("aria-label"))
