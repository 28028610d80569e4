"""The page of a diagnosis: models' text is escaped, unknown figures are said so, and it fits a phone."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from surefoot.reports.diagnosis import build_diagnosis, diagnosis_tables, print_diagnosis
from tests.browser import measure_in_frame
from tests.diagnosis.test_diagnose import MEMBERS, Members, comparisons, members_of, run, unsure
from tests.reports.test_study_report import HOSTILE, parsed


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return run(Members(members_of(unsure), MEMBERS), comparisons())


def test_everything_is_there_and_escaped(found: dict[str, Any], tmp_path: Path) -> None:
    found = json.loads(json.dumps(found))
    found["examples"][0]["chosen"] = HOSTILE
    found["source"] = HOSTILE
    page = build_diagnosis(tmp_path / "d.html", found, {"source": HOSTILE, "split": None})
    read = parsed(page)
    assert read.tags.count("svg") == 5
    assert sum(HOSTILE in piece for piece in read.text) == 3
    assert "script" not in read.tags
    text = page.read_text()
    for title, _, _ in diagnosis_tables(found).values():
        assert title.replace("'", "&#39;") in text
    assert "http" not in text.replace("http://www.w3.org", "")


def test_a_source_without_members(found: dict[str, Any], tmp_path: Path) -> None:
    found = found | {"disagreement": None, "members": None, "far": {}, "examples": []}
    read = parsed(build_diagnosis(tmp_path / "d.html", found, {}))
    assert read.tags.count("svg") == 3
    assert "Disagreement of the members" not in "".join(read.text)


def test_figures_are_shown_with_their_intervals(found: dict[str, Any]) -> None:
    console = Console(width=160, record=True)
    print_diagnosis(console, found)
    text = console.export_text()
    auroc = found["usefulness"]["auroc"]["sd_over_margin"]
    assert f"{auroc['value']:.3f} [{auroc['low']:.3f}, {auroc['high']:.3f}]" in text
    assert found["verdict"]["lines"][0] in text.replace("\n", " ")


def test_no_torch_is_loaded(found: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "diagnose.json").write_text(json.dumps(found))
    code = (
        "import json, sys; from surefoot.reports.diagnosis import build_diagnosis;"
        "build_diagnosis(sys.argv[2], json.load(open(sys.argv[1])), {});"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "diagnose.json"), str(tmp_path / "d.html")], check=True)


def test_the_anchors_and_the_reliability_are_shown(found: dict[str, Any], tmp_path: Path) -> None:
    def shown(name: str, **changes: Any) -> str:
        other = found | {"heterogeneity": found["heterogeneity"] | changes}
        return "".join(parsed(build_diagnosis(tmp_path / f"{name}.html", other, {})).text)

    page = shown("known", reliability=0.41, anchors={"dataset": 0.25, "reference": 0.75})
    assert "reliability of the variance (1 at most; below 0.6 mostly noise)0.41" in page
    assert "their prompt's own completions (25%), the reference policy's completions (75%)" in page
    page = shown("unknown", reliability=None, anchors={})
    assert "below 0.6 mostly noise)unknown" in page
    assert "nothing: the variance is given as it stands" in page


def test_the_verdict_is_a_badge_and_advice_is_no_markdown(found: dict[str, Any], tmp_path: Path) -> None:
    for weighting, words in (("possible", "possible"), ("nothing", "nothing to work with")):
        verdict = found["verdict"] | {"weighting": weighting, "advice": ["train with `surefoot reward`, <b>"]}
        text = build_diagnosis(tmp_path / "d.html", found | {"verdict": verdict}, {}).read_text()
        assert f'<span class="badge {weighting}">{words}</span>' in text
        assert "train with <code>surefoot reward</code>, &lt;b&gt;" in text
        assert "`" not in text


def test_training_pairs_are_named_before_anything_else(found: dict[str, Any], tmp_path: Path) -> None:
    data = found["data"] | {"warning": "The source was trained on 7 of these 120 pairs.", "training": 7}
    text = build_diagnosis(tmp_path / "d.html", found | {"data": data}, {}).read_text()
    assert 0 < text.index("trained on 7 of these") < text.index("In short")
    console = Console(width=160, record=True)
    print_diagnosis(console, found | {"data": data})
    assert console.export_text().startswith("The source was trained on 7 of these 120 pairs.")


def test_a_diagnosis_of_an_earlier_version_is_shown(found: dict[str, Any], tmp_path: Path) -> None:
    old = {name: value for name, value in found.items() if name not in ("data", "card")}
    read = "".join(parsed(build_diagnosis(tmp_path / "d.html", old, {})).text)
    assert "Compared with the card" not in read
    assert "In short" in read


def test_small_spreads_and_shares_below_nothing(found: dict[str, Any], tmp_path: Path) -> None:
    changes = {"margin_sd": [0.00123, 0.00234, 0.00345], "offset_overall": -0.001}
    table = diagnosis_tables(found | {"disagreement": found["disagreement"] | changes})["disagreement"]
    rows = {str(row[0]): row[1] for row in table[2]}
    assert rows["standard deviation of the margin, 10 / 50 / 90% quantile"] == "0.0012 / 0.0023 / 0.0034"
    assert rows["share of the raw variance that is one constant per member"] == "0%"


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 1280])
def test_it_fits_the_window(found: dict[str, Any], tmp_path: Path, width: int) -> None:
    page = build_diagnosis(tmp_path / "d.html", found, {})
    seen = measure_in_frame(page, width, tmp_path)
    assert seen["wide"] <= width
    assert len(seen["figures"]) == 5
    assert min(seen["figures"]) > 100
