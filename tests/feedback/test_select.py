"""`surefoot select` as a user runs it, on saved sources: what each rule leaves, again, and what it refuses."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from surefoot.cli.main import main
from surefoot.data.messages import cut_short
from surefoot.errors import ConfigError
from surefoot.feedback.pairs import candidate_pairs, read_pairs
from surefoot.feedback.select import RULES, Candidates, _whitened, candidates_of, choose
from surefoot.maths.laplace import posterior
from surefoot.rewards.gaussian import GaussianSource, Term
from surefoot.rewards.registry import load_source
from tests.models import WORDS

SOURCES = Path(__file__).parents[1] / "saved_before" / "sources"
PROMPTS = [f"the {word} " for word in WORDS[:4]]


@pytest.fixture(scope="module")
def completions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("select") / "completions.jsonl"
    rows = [{"prompt": prompt, "completion": f"{WORDS[i % 10]} {WORDS[(3 * i + j) % 10]} and", "cut": i == 0}
            for j, prompt in enumerate(PROMPTS) for i in range(6)]  # fmt: skip
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def arguments(completions: Path, output: Path, **changes: object) -> list[str]:
    settings = {"source": SOURCES / "linear", "completions": completions, "count": 7, "rule": "d_optimal",
                "output_dir": output} | changes  # fmt: skip
    return ["select", *(f"--{name}={value}" for name, value in settings.items() if value is not None)]


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("source", ["linear", "heads"])
def test_every_rule_chooses_different_pairs_and_leaves_a_record(
    rule: str, source: str, completions: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    assert main(arguments(completions, output, rule=rule, source=SOURCES / source)) == 0
    rows, record = lines(output), json.loads((output / "record.json").read_text())
    assert len({row["pair"] for row in rows}) == 7
    assert [row["rank"] for row in rows] == list(range(7))
    assert all(row["completion_a"] != row["completion_b"] and row["rule"] == rule for row in rows)
    assert (record["config"]["rule"], record["seed"]) == (rule, 0)
    assert record["metrics"]["candidates"] == record["metrics"]["pairs_there_are"] == 60
    assert [pair.id for pair in read_pairs(output / "pairs.jsonl")] == [row["pair"] for row in rows]
    if rule == "margin_variance":
        variances = [row["margin_variance"] for row in rows]
        assert variances == sorted(variances, reverse=True)


def test_a_written_margin_is_that_of_a_over_b(completions: Path, tmp_path: Path) -> None:
    assert main(arguments(completions, tmp_path / "out", rule="margin_variance")) == 0
    source = load_source(SOURCES / "linear", "cpu")
    for row in lines(tmp_path / "out"):
        texts = [row["completion_a"], row["completion_b"]]
        marked = [cut_short(text) if text.startswith(f"{WORDS[0]} ") else text for text in texts]
        a, b = source.score([row["prompt"]] * 2, marked)[:, 0].tolist()
        assert row["margin_mean"] == pytest.approx(a - b, abs=1e-4)


def test_the_same_command_again_changes_nothing_and_another_is_refused(
    completions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(completions, tmp_path / "out", rule="random", source=None)) == 0
    before = (tmp_path / "out" / "pairs.jsonl").read_bytes()
    assert main(arguments(completions, tmp_path / "out", rule="random", source=None)) == 0
    assert (tmp_path / "out" / "pairs.jsonl").read_bytes() == before
    assert main(arguments(completions, tmp_path / "out", rule="random", source=None, seed=1)) == 1
    assert "holds another run" in capsys.readouterr().err


def test_earlier_selections_are_left_out(completions: Path, tmp_path: Path) -> None:
    settings: dict[str, object] = {"rule": "random", "source": None, "count": 30}
    assert main(arguments(completions, tmp_path / "first", **settings)) == 0
    earlier = tmp_path / "first" / "pairs.jsonl"
    assert main(arguments(completions, tmp_path / "second", exclude=earlier, **settings)) == 0
    both = [row["pair"] for name in ("first", "second") for row in lines(tmp_path / name)]
    assert len(set(both)) == 60


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rule": "d_optimall"}, "did you mean 'd_optimal'?"),
        ({"source": None}, "rule d_optimal needs a reward source"),
        ({"count": 61}, "between 1 and the 60 candidate pairs"),
        ({"count": 0}, "count must be at least 1"),
        ({"kappa": -1, "rule": "delta_ucb"}, "kappa must be at least 0"),
    ],
)
def test_what_can_t_be_done_is_refused_in_one_line(
    changes: dict[str, object], words: str, completions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(completions, tmp_path / "out", **changes)) == 1
    assert words in capsys.readouterr().err


class Features(GaussianSource):
    """A posterior over given features, without a model."""

    name = "features"

    def __init__(self, covariance: Any, features: int) -> None:
        self.terms = [Term(covariance, torch.zeros(features))]

    score = save = load = None  # type: ignore[assignment]


Features.__abstractmethods__ = frozenset()  # type: ignore[misc]


class Bare:
    """A source that gives a variance and nothing that it is made of."""

    name = "bare"

    def members_of(self, rows: torch.Tensor) -> None:
        return None


def made(features: int = 5) -> Candidates:
    stream = torch.Generator().manual_seed(0)
    rows = torch.randn(24, 1 + features, generator=stream)
    hessian = torch.randn(9, features, generator=stream).double()
    source = Features(posterior(hessian.T @ hessian, 0.5), features)
    source.variance_factor = 1.7
    prompts = torch.arange(24) // 6
    pairs, _ = candidate_pairs(prompts, [str(i) for i in range(24)], 1000, 0)
    return candidates_of(source, rows, prompts, pairs)


def test_whitened_pairs_have_the_margins_variance_for_posterior_and_members() -> None:
    candidates = made()
    torch.testing.assert_close(
        _whitened(candidates).square().sum(dim=1), candidates.margins.variance, atol=1e-9, rtol=1e-9
    )
    heads = load_source(SOURCES / "heads", "cpu")
    rows = torch.randn(24, heads.num_columns, generator=torch.Generator().manual_seed(1))
    rows[3, 0] = torch.nan  # one member didn't score one completion
    other = candidates_of(heads, rows, candidates.prompts, candidates.pairs)
    torch.testing.assert_close(_whitened(other).square().sum(dim=1), other.margins.variance, atol=1e-9, rtol=1e-9)


def test_thompson_draws_have_the_posteriors_margins() -> None:
    """Over many draws a pair's margin has the mean and variance that `margins` says."""
    candidates = made()
    assert isinstance(candidates.source, GaussianSource)
    drawn = candidates.source.sample_members(candidates.rows, 20_000, seed=0)
    margins = drawn[candidates.pairs[:, 0]] - drawn[candidates.pairs[:, 1]]
    ratio = margins.var(dim=1, correction=1) / candidates.margins.variance
    assert float((ratio - 1).abs().max()) < 0.05  # five standard errors, √(2/20000)
    error = (margins.mean(dim=1) - candidates.margins.mean) / (candidates.margins.variance / 20_000).sqrt()
    assert float(error.abs().max()) < 5


def test_pairs_without_a_margin_are_left_out() -> None:
    candidates = made()
    rows = candidates.rows.clone()
    rows[0] = torch.nan
    left = candidates_of(candidates.source, rows, candidates.prompts, candidates.pairs)
    assert len(left.pairs) == len(candidates.pairs) - 5
    for rule in RULES:
        assert 0 not in left.pairs[choose(rule, left, 20, seed=0)]


def test_a_source_without_posterior_or_members_is_refused_by_the_rules_that_need_them() -> None:
    candidates = made()
    bare = replace(candidates, source=Bare())
    assert len(choose("expected_information", bare, 3, 0)) == 3
    for rule in ("d_optimal", "double_thompson"):
        with pytest.raises(ConfigError, match=f"rule {rule} needs a posterior over weights or members, which 'bare'"):
            choose(rule, bare, 3, 0)
    with pytest.raises(ConfigError, match="rule must be one of"):
        choose("best", candidates, 3, 0)
