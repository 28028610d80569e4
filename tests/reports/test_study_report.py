"""The report is read from records alone, escapes what models wrote, asks nothing of the network, and fits a phone."""

import html.parser
import math
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from surefoot.errors import RunError
from surefoot.files import write_json
from surefoot.reports.records import read_study, summarise
from surefoot.reports.study import build_report, summary_table
from tests.reports.browser import measure_in_frame

METHODS = ["vanilla", "mean", "variance_aware"]
HOSTILE = "<script>alert('x')</script> & \"quoted\""


def disagreement() -> dict[str, Any]:
    interval = {"value": 0.6, "low": 0.5, "high": 0.7, "n": 100}
    return {
        "pairs": 100,
        "members": 3,
        "accuracy_of_members": [interval] * 3,
        "accuracy_of_mean": interval,
        "split": interval,
        "minority": None,
        "agreement": 0.8,
        "tau": 0.6,
        "offset_overall": 0.1,
        "offset_per_prompt": 0.5,
        "margin_sd": [0.1, 0.2, 0.3],
        "prior_freedom": None,
        "variance_cv": 0.4,
        "error_auroc": {
            "variance": interval,
            "sd_over_margin": {"value": None, "low": None, "high": None, "n": 100},
            "margin": interval,
        },
        "verdict": ["First finding.", "Second <b>finding</b>."],
    }


def make_cell(method: str, seed: int, gain: float) -> dict[str, Any]:
    rng = random.Random(f"{method}{seed}")
    path = [
        {"step": t, "kl": 0.1 * t, "proxy": 0.05 * t, "gold": 1 + gain * t / 40 + 0.1 * rng.gauss(0, 1),
         "variance": None if method == "vanilla" else 0.3, "weight": 1.0, "beta": 0.2}
        for t in range(1, 41)
    ]  # fmt: skip
    sample = {
        "prompt": f"how {HOSTILE} ?",
        "reference": "plain",
        "completion": HOSTILE,
        "proxy": 1.0,
        "variance": None,
        "gold": 0.5,
        "gold_reference": None,
    }
    metrics = {"gold_reference": 1.0, "gold_final": 1.0 + gain, "gold_gain": gain, "kl_final": 4.0}
    return {
        "kind": "cell",
        "method": method,
        "seed": seed,
        "metrics": metrics,
        "trajectory": path,
        "samples": [sample],
    }


GAINS = {"vanilla": [-0.5, 0.25, 0.25], "mean": [0.5, 0.5, 0.5], "variance_aware": [0.5, 0.75, 1.0]}


@pytest.fixture
def study(tmp_path: Path) -> Path:
    for method in METHODS:
        for seed, gain in enumerate(GAINS[method]):
            write_json(tmp_path / "cells" / f"{method}-{seed}.json", make_cell(method, seed, gain))
    write_json(tmp_path / "disagreement" / "0.json", disagreement())
    settings = {
        "kind": "study", "title": "a <study>", "config": {"pairs": 100}, "methods": METHODS, "seeds": [0, 1, 2],
        "kl_budget": 4.0, "versions": {"torch": "2"}, "commit": None,
    }  # fmt: skip
    write_json(tmp_path / "study.json", settings)
    return tmp_path


class Checker(html.parser.HTMLParser):
    """Collects tags, and fails on unclosed ones."""

    VOID = ("meta", "br", "hr", "img", "input", "link", "path", "use")

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


def test_the_page_is_whole_and_alone(study: Path) -> None:
    page = build_report(study)
    text = page.read_text()
    found = parsed(page)
    assert found.tags.count("svg") == 3
    assert found.tags.count("script") == 0
    assert not re.search(r"(src|href)=\"(?!#)", text)
    assert "http://" not in text.replace("http://www.w3.org", "")
    assert "https://" not in text
    identities = re.findall(r'\bid="([^"]+)"', text)
    assert len(identities) == len(set(identities))
    assert len(text) < 1_000_000


def test_what_models_wrote_is_text(study: Path) -> None:
    found = parsed(build_report(study))
    assert "script" not in found.tags
    assert any(HOSTILE in piece for piece in found.text)
    assert any("Second <b>finding</b>." in piece for piece in found.text)


def test_unknown_is_not_zero(study: Path) -> None:
    text = " ".join(parsed(build_report(study)).text)
    assert "true reward not scored" in text  # the reference's sample
    assert "variance unknown" in text
    assert "prior degrees of freedom d₀ of the variance infinite" in re.sub(r"\s+", " ", text)


def test_figures_in_words_by_hand(study: Path) -> None:
    text = re.sub(r"\s+", " ", " ".join(parsed(build_report(study)).text))
    assert "One reward model: ended below the reference in 1 of 3 runs; mean gain in true reward 0.00" in text
    assert "Variance-aware: ended below the reference in 0 of 3 runs; mean gain in true reward 0.75" in text
    assert "3 runs of each method demonstrate and don't prove" in text
    assert "in up to 56% of them" in text  # Wilson's upper end for 0 of 3


def test_the_summary_by_hand(study: Path) -> None:
    by_name = {one.method: one for one in summarise(read_study(study))}
    assert by_name["vanilla"].risk.value == pytest.approx(1 / 3)
    assert by_name["variance_aware"].spread == pytest.approx(0.25)
    assert by_name["mean"].spread == 0.0
    assert by_name["vanilla"].worst == -0.5
    assert math.isnan(by_name["vanilla"].spread_p)
    assert by_name["variance_aware"].paired.value == pytest.approx(0.75)  # 1, .5 and .75 over the same seed's
    assert by_name["variance_aware"].paired.low == pytest.approx(0.5)
    assert math.isnan(by_name["vanilla"].paired.value)


def test_many_runs_are_not_called_few(study: Path) -> None:
    for method in METHODS:
        for seed in range(3, 25):
            write_json(study / "cells" / f"{method}-{seed}.json", make_cell(method, seed, 0.5))
    text = " ".join(parsed(build_report(study)).text)
    assert "don't prove" not in text
    assert "With 25 runs of each method" in text


def test_an_unscored_run_is_left_out_and_not_counted_as_level(study: Path) -> None:
    cell = make_cell("mean", 0, 0.0)
    cell["metrics"] |= {"gold_final": None, "gold_gain": None}
    write_json(study / "cells" / "mean-0.json", cell)
    (mean,) = (one for one in summarise(read_study(study)) if one.method == "mean")
    assert mean.risk.n == 2
    build_report(study)


def test_the_table_for_the_terminal(study: Path) -> None:
    console = Console(width=160, record=True)
    console.print(summary_table(study))
    text = console.export_text()
    assert "variance-aware" in text
    assert "33% [6%, 79%]" in text


def test_what_is_not_a_study(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no study\.json"):
        build_report(tmp_path)
    write_json(tmp_path / "study.json", {"methods": []})
    with pytest.raises(RunError, match="without any finished cell"):
        build_report(tmp_path)


def test_the_same_records_give_the_same_page(study: Path) -> None:
    first = build_report(study).read_text()
    assert build_report(study).read_text() == first


def test_no_torch_is_loaded(study: Path) -> None:
    code = (
        "import sys; from surefoot.reports.study import build_report; build_report(sys.argv[1]);"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(study)], check=True)


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
def test_it_fits_the_window(study: Path, tmp_path: Path, width: int) -> None:
    """In a frame of that width nothing but the boxes made for it is wider than the page, and each figure is drawn."""
    build_report(study)
    found = measure_in_frame(study / "report.html", width, tmp_path)
    assert found["wide"] <= width
    assert len(found["figures"]) == 3
    assert min(found["figures"]) > 100
    assert found["focus"] >= 4  # every scrolling box can be reached by keyboard
