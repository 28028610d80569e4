"""A panel whose judges' errors are known by construction: its section must say what was built into them."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from surefoot.data.comparisons import Comparisons
from surefoot.diagnosis import ScoredComparisons, diagnose
from surefoot.diagnosis.panel import Panel, panel_figures
from surefoot.diagnosis.sections import plain
from surefoot.reports.diagnosis import build_diagnosis, diagnosis_tables
from surefoot.rewards.anchors import group_anchors
from surefoot.rewards.kinds.judge.config import JudgeConfig
from surefoot.rewards.kinds.judge.source import JudgeSource
from surefoot.rewards.kinds.panel.source import PanelSource

PAIRS = 400
NOISE = 0.2
"""Variance of a reply; each judge gives two, so that a mean rating has half of it."""


def panel(*families: str) -> PanelSource:
    """Judges that are never asked."""
    config = JudgeConfig(endpoint="http://127.0.0.1:9/v1", wordings=1, samples=2)
    return PanelSource([JudgeSource(f"m{j}", config, name=f"m{j}") for j in range(len(families))], families)


def rows_of(ratings: Tensor, noise: float = NOISE) -> Tensor:
    """Scored rows of judges with one wording and two replies: (mean, mean, s², 2) of each."""
    stream = torch.Generator().manual_seed(1)
    replies = ratings[..., None] + math.sqrt(noise) * torch.randn(*ratings.shape, 2, generator=stream).double()
    mean, variance = replies.mean(dim=-1), replies.var(dim=-1, correction=1)
    return torch.stack([mean, mean, variance, torch.full_like(mean, 2.0)], dim=2).flatten(1)


def measured(source: PanelSource, ratings: Tensor, noise: float = NOISE) -> Panel:
    """Of pairs whose rows stand in turn, the chosen one first."""
    rows, prompts = rows_of(ratings, noise), np.arange(len(ratings)) // 2
    anchors = group_anchors(rows, torch.from_numpy(prompts), "dataset")
    even = np.arange(0, len(ratings), 2)
    return panel_figures(source, rows, (even, even + 1), prompts, [anchors])


def drawn(own: list[float], shared: float = 0.0, pairs: int = PAIRS) -> tuple[Tensor, Tensor]:
    """(worth of the rows, ratings): own variance of each judge, and an error of variance `shared` in the first two."""
    stream = torch.Generator().manual_seed(0)
    worth = torch.randn(2 * pairs, 1, generator=stream).double()
    worth = worth.view(-1, 2).sort(dim=1, descending=True).values.reshape(-1, 1)  # the chosen one is the better
    error = torch.randn(2 * pairs, len(own), generator=stream).double() * torch.tensor(own).double().sqrt()
    error[:, :2] += math.sqrt(shared) * torch.randn(2 * pairs, 1, generator=stream).double()
    return worth, worth + error


def test_reliabilities_scales_and_offsets() -> None:
    """Reward variance 1 and own variances .2, 1 and 3, on scales of 1, 2 and .5 with offsets 0, 3 and 5.

    The reward's variance within a pair sorted by worth is that of any pair. Noise of a mean rating is .5 in the
    judge's own ratings, up to half as much as all else. At 2,000 pairs a reliability's standard error is about .03,
    a scale's 2.5%.
    """
    _, ratings = drawn([0.2, 1.0, 3.0], pairs=2000)
    scale, offset = torch.tensor([1.0, 2.0, 0.5]).double(), torch.tensor([0.0, 3.0, 5.0]).double()
    found = measured(panel("a", "b", "c"), ratings * scale + offset, noise=1.0)
    noise = 0.5 / scale.square()
    expected = 1 / (1 + torch.tensor([0.2, 1.0, 3.0]) + noise)
    for j, judge in enumerate(found.judges):
        assert judge.reliability.value == pytest.approx(float(expected[j]), abs=0.08)
        assert judge.reliability.low < judge.reliability.value < judge.reliability.high
        assert judge.reliability.high - judge.reliability.low < 0.2
        assert judge.offset == pytest.approx(float(offset[j]), abs=0.3)
        assert (judge.name, judge.family) == (f"m{j}", "abc"[j])
    own = torch.tensor([1.2, 2.0, 4.0]).sqrt() * scale / math.sqrt(2)  # a pair's own mean takes half of the variance
    torch.testing.assert_close(torch.tensor([j.scale for j in found.judges]), own.float(), rtol=0.07, atol=0)
    weights = [judge.weight for judge in found.judges]
    assert weights == sorted(weights, reverse=True)


def test_a_shared_error_shows_as_agreement_on_mistakes_and_between_families() -> None:
    """Judges m0 and m1 err together. As two families they pass for reliable; as one, m2 and m3 contradict them."""
    _, ratings = drawn([0.3] * 4, shared=2.0)
    apart, together = measured(panel("a", "b", "c", "d"), ratings), measured(panel("a", "a", "c", "d"), ratings)
    kappas = {tuple(each.judges): each for each in apart.pairs_of_judges}
    assert len(kappas) == 6
    assert kappas["m0", "m1"].mistakes.low > 0.3
    assert kappas["m2", "m3"].mistakes.value < 0.3
    assert kappas["m0", "m1"].sides.value > kappas["m0", "m2"].sides.high
    assert [each.same_family for each in together.pairs_of_judges] == [True] + [False] * 5
    assert together.judges[0].reliability.high < apart.judges[0].reliability.value
    assert together.judges[0].weight + together.judges[1].weight < together.judges[2].weight
    assert together.between_share.low > 0.7
    fair = measured(panel("a", "a", "c", "d"), drawn([0.01] * 4)[1])
    assert fair.between_share.high < 0.6


def test_perfect_judges_and_those_at_chance() -> None:
    """κ of mistakes is unknown where nobody makes one, though all agree; coins agree with nobody."""
    worth, _ = drawn([0.0] * 3)
    rows = torch.cat([worth, worth, torch.randn(len(worth), 1, generator=torch.Generator().manual_seed(3))], dim=1)
    source = panel("a", "b", "c")
    exact = rows_of(rows.double() * 3, noise=1e-12)
    prompts = np.arange(len(rows)) // 2
    even = np.arange(0, len(rows), 2)
    near = [group_anchors(exact, torch.from_numpy(prompts), "dataset")]
    found = panel_figures(source, exact, (even, even + 1), prompts, near)
    assert found.pairs_of_judges[0].sides.value == 1
    assert math.isnan(found.pairs_of_judges[0].mistakes.value)
    assert abs(found.pairs_of_judges[1].sides.value) < 0.2  # four standard errors of .05
    assert 0 < found.together.sides.value < 0.6
    assert source.calibration is None  # put back


def test_the_section_in_json_and_on_the_page(tmp_path: Path) -> None:
    """Beside the other sections, with unknown figures as null; two families have no reliabilities."""
    _, ratings = drawn([0.3, 1.0])
    rows = rows_of(ratings)
    source = panel("a", "<b>")
    source.calibrate(rows, group_anchors(rows, torch.arange(len(rows)) // 2, "dataset"))
    held = source.calibration
    comparisons = Comparisons(
        name="n",
        format="pairs",
        prompts=[f"p{i // 2:03}" for i in range(len(rows))],
        completions=[f"c{i}" for i in range(len(rows))],
        items=np.arange(len(rows)) // 2,
        correct=np.arange(len(rows)) % 2 == 0,
        ids=[str(i) for i in range(PAIRS)],
        subsets=[""] * PAIRS,
    )
    found = diagnose(source, comparisons, ScoredComparisons(rows, np.array([], dtype=np.int64), {}))
    assert source.calibration == held
    section = json.loads(json.dumps(found))["panel"]
    assert section == plain(measured(source, ratings))
    assert section["judges"][0]["reliability"] == {"value": None, "low": None, "high": None, "n": len(rows)}
    assert section["together"]["sides"]["n"] == PAIRS
    tables = diagnosis_tables(found)
    assert tables["panel"][2][1][:4] == ("m1", "<b>", "0.50", "unknown")
    assert len(tables["panel_agreement"][2]) == 1
    page = build_diagnosis(tmp_path / "d.html", found, {}).read_text()
    for title in ("Judges of the panel", "Agreement of the judges", "&lt;b&gt;"):
        assert title in page
    assert "panel" not in diagnosis_tables({name: value for name, value in found.items() if name != "panel"})
