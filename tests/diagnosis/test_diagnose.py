"""Sources whose errors are known by construction: the diagnosis must say what was built into them."""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from surefoot.data.comparisons import Comparisons
from surefoot.diagnosis import diagnose, score_comparisons
from surefoot.errors import DataError, VarianceError
from surefoot.rewards.anchors import AnchorStore
from surefoot.rewards.kinds.function import FunctionMembers, FunctionReward
from surefoot.rewards.score_cache import source_hash

MEMBERS = 5
KNOWN = [f"plain{i}" for i in range(40)]
RARE = [f"rare{i}" for i in range(40)]


@cache
def noise(*what: object) -> float:
    """A standard normal number that depends on its arguments alone."""
    seed = int(hashlib.sha256(repr(what).encode()).hexdigest()[:12], 16)
    return float(np.random.default_rng(seed).standard_normal())


def worth(text: str) -> float:
    return sum(noise("worth", word) for word in text.split()) / math.sqrt(max(1, len(text.split())))


def unsure(text: str) -> float:
    """How far members err: little on known words, much on rare ones and on anything else."""
    words = text.split()
    return 0.1 + 2.0 * sum(word not in KNOWN for word in words) / max(1, len(words))


def flat(text: str) -> float:
    return 0.7


def members_of(sd: Callable[[str], float], offset: float = 0.0) -> Callable[..., torch.Tensor]:
    """Five members around the truth; `offset` is the size of what each adds to all completions of a prompt."""

    def function(prompts: Sequence[Any], completions: Sequence[Any]) -> torch.Tensor:
        rows = [
            [
                worth(text) + sd(text) * noise("member", k, text) + offset * noise("offset", k, prompt)
                for k in range(MEMBERS)
            ]
            for prompt, text in zip(prompts, completions, strict=True)
        ]
        return torch.tensor(rows, dtype=torch.float64)

    return function


class Members(FunctionMembers):
    """In float64, so that invariances hold to rounding."""

    def score(self, prompts: Any, completions: Any) -> torch.Tensor:
        return torch.as_tensor(self.function(prompts, completions))


def comparisons(items: int = 120, sides: int = 2, seed: int = 0) -> Comparisons:
    """Right completions are better by the truth; a third of the completions is of rare words."""
    rng = np.random.default_rng(seed)
    prompts, completions, numbers, correct = [], [], [], []
    for i in range(items):
        words = [RARE if rng.random() < 1 / 3 else KNOWN for _ in range(sides)]
        texts = sorted((" ".join(rng.choice(w, 6).tolist()) for w in words), key=worth, reverse=True)
        prompts += [f"prompt {i}"] * sides
        completions += texts
        numbers += [i] * sides
        correct += [place == 0 for place in range(sides)]
    return Comparisons(
        name="made", format="pairs", prompts=prompts, completions=completions, items=np.array(numbers),
        correct=np.array(correct), subsets=["even" if i % 2 == 0 else "odd" for i in range(items)],
        ids=[str(i) for i in range(items)],
    )  # fmt: skip


def run(source: Any, data: Comparisons, **keywords: Any) -> dict[str, Any]:
    found = diagnose(source, data, score_comparisons(source, data, far_items=60), **keywords)
    json.dumps(found, allow_nan=False)  # plain values throughout
    return found


def test_a_source_that_knows_where_it_errs() -> None:
    found = run(Members(members_of(unsure), MEMBERS), comparisons())
    assert found["heterogeneity"]["variation"] > 0.3
    assert found["usefulness"]["above_baseline"]["sd_over_margin"]["low"] > 0
    assert found["far"]["foreign"]["auroc"]["low"] > 0.5
    assert found["verdict"]["weighting"] == "likely"
    assert set(found["accuracy"]["subsets"]) == {"even", "odd"}
    assert found["accuracy"]["overall"]["value"] > 0.8


def test_a_flat_source_gives_weighting_nothing() -> None:
    found = run(Members(members_of(flat), MEMBERS), comparisons(items=300))
    assert found["heterogeneity"]["prior_freedom"] is None or found["heterogeneity"]["variation"] < 0.15
    auroc = found["usefulness"]["auroc"]["variance"]
    assert auroc["low"] < 0.5 < auroc["high"]
    assert found["verdict"]["weighting"] in ("nothing", "unlikely")


def test_far_texts_of_a_source_that_errs_alike_on_all_texts_are_not_told() -> None:
    """An anchor that held the ordinary completion would make any far text look uncertain (AUROC .8 here)."""
    found = run(Members(members_of(flat), MEMBERS), comparisons(items=300))
    assert len(found["far"]) == 7
    for one in found["far"].values():
        assert (one["auroc"]["low"] or 0.0) < 0.5
        assert one["auroc"]["value"] < 0.6


def reference(source: Any, prompts: list[str], seed: int = 9) -> AnchorStore:
    """Eight completions of each prompt, as the reference policy would draw them."""
    rng = np.random.default_rng(seed)
    store = AnchorStore(source.name, 8)
    for prompt in prompts:
        texts = [" ".join(rng.choice(KNOWN, 6).tolist()) for _ in range(8)]
        store.add([prompt], source.score([prompt] * 8, texts))
    return store


def test_reference_anchors_are_used_where_they_are_known_and_said() -> None:
    data, source = comparisons(), Members(members_of(unsure), MEMBERS)
    store = reference(source, [f"prompt {i}" for i in range(90)])
    found = run(source, data, anchors=store)
    assert found["heterogeneity"]["anchors"] == pytest.approx({"reference": 0.75, "calibration": 0.25})
    every = reference(source, data.prompts[::2])
    found = run(source, data, anchors=every)
    assert found["heterogeneity"]["anchors"] == {"reference": 1.0}
    scores = score_comparisons(source, data, far_items=0).rows
    anchors = every.of(data.prompts)
    source.calibrate(scores, anchors)
    weight = source.estimate(scores, anchors).variance.numpy()
    weight = np.clip(weight / weight.mean(), 0.1, 10.0)
    assert found["heterogeneity"]["effective_share"] == pytest.approx(weight.sum() ** 2 / (240 * (weight**2).sum()))
    assert found["far"]["foreign"]["auroc"]["low"] > 0.5


def test_what_a_member_adds_to_a_prompt_cancels_in_reference_anchors_too() -> None:
    data, found = comparisons(), []
    for offset in (0.0, 3.0):
        source = Members(members_of(unsure, offset=offset), MEMBERS)
        found.append(run(source, data, anchors=reference(source, data.prompts[::2])))
    plain, moved = found
    for name in ("variation", "variation_within", "reliability"):
        assert plain["heterogeneity"][name] == pytest.approx(moved["heterogeneity"][name], rel=1e-4)
    for kind, one in plain["far"].items():
        assert one["auroc"]["value"] == pytest.approx(moved["far"][kind]["auroc"]["value"], abs=1e-3)


def test_the_reliability_of_the_variance() -> None:
    """Known by construction: errors of one size everywhere leave noise alone; without members nothing is known."""
    noisy, real = (run(Members(members_of(sd), MEMBERS), comparisons(items=300)) for sd in (flat, unsure))
    assert noisy["heterogeneity"]["reliability"] < 0.3
    assert real["heterogeneity"]["reliability"] > 0.7
    assert any("mostly noise" in line for line in noisy["verdict"]["lines"])
    three = run(Members(lambda p, c: members_of(unsure)(p, c)[:, :3], 3), comparisons())
    assert three["heterogeneity"]["reliability"] is None
    assert any("reliability of the variance is unknown" in line for line in three["verdict"]["lines"])


def test_pairs_without_a_prompt_are_not_one_prompt() -> None:
    data = comparisons()
    bare = replace(data, prompts=[""] * len(data.prompts))
    found = run(Members(members_of(unsure), MEMBERS), bare)
    assert found["heterogeneity"]["anchors"] == {"calibration": 1.0}


def rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    return [rounded(inner) for inner in value] if isinstance(value, list) else value


def compared(found: dict[str, Any]) -> Any:
    """Everything that an offset or an order of members may not change."""
    names = ("usefulness", "far", "calibration", "disagreement")
    kept = {name: rounded(found[name]) for name in names}
    kept["far"] = {kind: one["auroc"] for kind, one in kept["far"].items()}
    kept["calibration"].pop("nll_of_members")
    for name in ("offset_overall", "offset_per_prompt", "accuracy_of_members", "verdict"):
        kept["disagreement"].pop(name)
    return kept


def test_what_a_member_adds_to_a_whole_prompt_changes_nothing() -> None:
    plain = run(Members(members_of(unsure), MEMBERS), comparisons())
    moved = run(Members(members_of(unsure, offset=3.0), MEMBERS), comparisons())
    assert moved["disagreement"]["offset_per_prompt"] > 0.8
    assert compared(plain) == compared(moved)


def test_the_order_of_members_changes_nothing() -> None:
    function = members_of(unsure)
    swapped = Members(lambda p, c: function(p, c)[:, [3, 1, 4, 0, 2]], MEMBERS)
    assert compared(run(Members(function, MEMBERS), comparisons())) == compared(run(swapped, comparisons()))


def test_three_completions_of_a_prompt_are_centred_together() -> None:
    found = run(Members(members_of(unsure), MEMBERS), comparisons(items=60, sides=4))
    assert found["pairs"] == 180
    assert found["heterogeneity"]["anchors"] == {"dataset": 1.0}
    assert found["heterogeneity"]["variation_within"] > 0.2
    alone = run(Members(members_of(unsure), MEMBERS), comparisons())
    assert alone["heterogeneity"]["anchors"] == {"calibration": 1.0}


def test_a_function_with_a_variance_has_no_members_to_compare() -> None:
    def function(prompts: Any, completions: Any) -> tuple[list[float], list[float]]:
        return [worth(t) + unsure(t) * noise("one", t) for t in completions], [unsure(t) ** 2 for t in completions]

    found = run(FunctionReward(function), comparisons())
    assert found["disagreement"] is None
    assert found["calibration"]["members"] is None
    assert found["heterogeneity"]["has_prior"] is False
    assert found["heterogeneity"]["anchors"] == {}
    assert found["heterogeneity"]["reliability"] is None
    assert found["usefulness"]["above_baseline"]["sd_over_margin"]["low"] > 0


def test_the_calibration_factor_is_found() -> None:
    """Variances a tenth of what they should be ask for a larger factor, and the fitted NLL is the lower.

    Not for one ten times as large: the prior draws both towards 1.
    """

    def function(scale: float) -> Callable[..., tuple[list[float], list[float]]]:
        def given(prompts: Any, completions: Any) -> tuple[list[float], list[float]]:
            means = [4 * worth(t) + 3 * noise("one", t) for t in completions]
            return means, [scale * 9.0] * len(means)

        return given

    small, right = (run(FunctionReward(function(s)), comparisons(items=400)) for s in (0.1, 1.0))
    assert small["calibration"]["factor"] > 5 * right["calibration"]["factor"]
    assert small["calibration"]["fitted"]["nll"]["value"] < small["calibration"]["mean"]["nll"]["value"]


def test_samples_of_a_policy_and_their_truth() -> None:
    data = comparisons()
    source = Members(members_of(unsure), MEMBERS)
    rng = np.random.default_rng(3)
    prompts = [f"q{i // 6}" for i in range(240)]
    texts = [" ".join(rng.choice(RARE if rng.random() < 0.5 else KNOWN, 6).tolist()) for _ in prompts]
    truth = np.array([worth(text) for text in texts])
    rows = source.score(prompts, texts)
    found = run(source, data, samples=(rows, prompts, truth))
    assert found["heterogeneity"]["completions"] == 240
    assert found["heterogeneity"]["anchors"] == {"group": 1.0}
    assert found["known_truth"]["spearman"]["low"] > 0.2
    assert found["known_truth"]["correlation"] > 0.5


def test_the_sources_own_calibration_is_left_alone() -> None:
    source = Members(members_of(unsure), MEMBERS)
    before = source.calibrate(source.score(["a"] * 9, KNOWN[:9]))
    run(source, comparisons())
    assert source.calibration is before


def test_unscored_pairs_are_counted_and_one_member_is_refused() -> None:
    function = members_of(unsure)

    def some(prompts: Any, completions: Any) -> torch.Tensor:
        rows = function(prompts, completions)
        rows[[prompt == "prompt 7" for prompt in prompts]] = torch.nan
        return rows

    found = run(Members(some, MEMBERS), comparisons())
    assert (found["pairs"], found["unscored_pairs"]) == (119, 1)
    with pytest.raises(VarianceError, match="has one member, and one member can't disagree"):
        run(Members(lambda p, c: function(p, c)[:, :1], 1), comparisons())
    with pytest.raises(DataError, match="only 0 of 120 pairs were scored"):
        run(Members(lambda p, c: function(p, c) * torch.nan, MEMBERS), comparisons())


def test_examples_are_those_on_which_members_split_most() -> None:
    found = run(Members(members_of(unsure), MEMBERS), comparisons())
    sds = [one["sd"] for one in found["examples"]]
    assert sds == sorted(sds, reverse=True)
    for one in found["examples"]:
        assert min(one["members"]) < 0 < max(one["members"])
        assert one["sd"] == pytest.approx(float(np.std(one["members"], ddof=1)))


def test_scoring_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    """Parts that were finished are read back; texts that changed are scored anew."""
    scored: list[int] = []
    inner = members_of(flat)

    def counting(prompts: Any, completions: Any) -> torch.Tensor:
        if len(scored) == 1:
            scored.append(0)
            raise KeyboardInterrupt
        scored.append(len(completions))
        return inner(prompts, completions)

    data = comparisons(items=700)
    source = Members(counting, MEMBERS)
    with pytest.raises(KeyboardInterrupt):
        score_comparisons(source, data, far_items=20, cache=tmp_path)
    assert scored == [1024, 0]
    first = score_comparisons(source, data, far_items=20, cache=tmp_path)
    assert sum(scored) == 1400 + 7 * 20
    again = score_comparisons(source, data, far_items=20, cache=tmp_path)
    assert sum(scored) == 1400 + 7 * 20
    torch.testing.assert_close(first.rows, again.rows)
    score_comparisons(source, comparisons(items=700, seed=1), far_items=0, cache=tmp_path)
    assert sum(scored) == 1400 + 7 * 20 + 1400


def test_a_source_is_known_by_its_content(tmp_path: Path) -> None:
    source = Members(members_of(flat), MEMBERS)
    assert source_hash(source, None) is None
    (tmp_path / "source.json").write_text("{}")
    (tmp_path / "weights.safetensors").write_bytes(b"one")
    first = source_hash(source, tmp_path)
    (tmp_path / "calibration.json").write_text("{}")
    (tmp_path / "diagnose.json").write_text("{}")
    (tmp_path / "pairs.safetensors").write_bytes(b"keys")
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores" / "x.json").write_text("{}")
    assert source_hash(source, tmp_path) == first
    (tmp_path / "weights.safetensors").write_bytes(b"two")
    assert source_hash(source, tmp_path) != first
