"""Preferences by seed, judges of policies, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from surefoot.errors import ConfigError, DataError
from surefoot.rewards.anchors import group_anchors
from surefoot.rewards.gold import load_gold, refuse_members
from surefoot.rewards.kinds.borrowed_variance import BorrowedVariance
from surefoot.rewards.kinds.function import FunctionMembers
from surefoot.rewards.kinds.heads.config import HeadsConfig
from surefoot.rewards.kinds.heads.fit import train_heads
from surefoot.rewards.kinds.heads.source import SharedTrunkHeads
from surefoot.rewards.registry import load_source
from surefoot.studies.evaluation import reference_of
from surefoot.studies.settings import FromFile, build_setting
from tests.models import WORDS, save_policy

LENGTH = "def gold(prompts, completions):\n    return [float(len(text)) for text in completions]\n"


def tiny_heads(folder: Path, seed: int = 0) -> SharedTrunkHeads:
    """Two heads trained a little on pairs of words."""
    words = {"prompt": WORDS, "chosen": WORDS[1:] + WORDS[:1], "rejected": WORDS[3:] + WORDS[:3]}
    config = HeadsConfig(members=2, seed=seed, layer=0, epochs=2)
    return train_heads(Dataset.from_dict(words), save_policy(folder), config, device="cpu")


@pytest.fixture
def model(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "gold.py").write_text(LENGTH)
    prompts = Dataset.from_dict({"prompt": [f"the {word}" for word in WORDS[:9]]})
    prompts.to_json(tmp_path / "prompts.jsonl")
    return {
        "model": str(save_policy(tmp_path / "policy")),
        "prompts": str(tmp_path / "prompts.jsonl"),
        "gold": {"function": f"{tmp_path / 'gold.py'}:gold"},
        "draw": {"pairs": 60, "held_out_pairs": 20, "max_new_tokens": 6, "temperature": 1e-3, "skew": 2.0},
    }


def test_preferences_are_drawn_from_the_policy_and_labelled_by_gold(model: dict[str, Any], tmp_path: Path) -> None:
    setting = build_setting(model, tmp_path)
    assert len(setting.train_prompts) == 6
    assert len(setting.evaluation_prompts) == 3
    train, held_out = setting.preferences(5)
    assert (len(train), len(held_out)) == (60, 20)
    lengths = [(len(row["chosen"]), len(row["rejected"])) for row in train]
    assert all(chosen >= rejected for chosen, rejected in lengths)  # next to no noise in the labels
    assert any(chosen > rejected for chosen, rejected in lengths)
    assert set(train["prompt"]) <= set(setting.train_prompts)
    again, _ = setting.preferences(5)
    assert again.to_dict() == train.to_dict()
    other, _ = setting.preferences(6)
    assert other.to_dict() != train.to_dict()
    counts = sorted(train["prompt"].count(prompt) for prompt in setting.train_prompts)
    assert counts[-1] > 0.5 * 60  # skew 2: the first of six prompts has .67 of the pairs
    spread = [held_out["prompt"].count(prompt) for prompt in setting.train_prompts]
    assert max(spread) < 0.6 * 20


def test_every_seed_takes_its_own_rows_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "pairs.parquet"
    names = [str(i) for i in range(50)]
    Dataset.from_dict({"prompt": names, "chosen": [f"c{n}" for n in names], "rejected": ["r"] * 50}).to_parquet(path)
    draws = FromFile(str(path), pairs=20, held_out_pairs=10)
    (train, held_out), (other, _) = draws(1), draws(2)
    assert (len(train), len(held_out)) == (20, 10)
    assert not set(train["prompt"]) & set(held_out["prompt"])
    assert set(train["prompt"]) != set(other["prompt"])
    assert len(FromFile(str(path), pairs=0, held_out_pairs=10)(1)[0]) == 40
    with pytest.raises(DataError, match="has 50 pairs; a seed needs 60"):
        FromFile(str(path), pairs=50, held_out_pairs=10)


def test_a_source_judges_without_centring(tmp_path: Path) -> None:
    """Catches a mean centred over the batch, which would make every policy as good as any other."""
    source = tiny_heads(tmp_path / "policy")
    source.save(tmp_path / "judge")
    prompts, texts = ["the cat", "a dog"], ["red cat", "runs"]
    judged = load_gold({"source": str(tmp_path / "judge")})(prompts, texts)
    expected = load_source(tmp_path / "judge").score(prompts, texts).mean(dim=1)
    gap = expected[0] - expected[1]
    assert judged[0] - judged[1] == pytest.approx(float(gap), rel=1e-5)
    alone = load_gold({"source": str(tmp_path / "judge")})(prompts[:1], texts[:1])
    assert alone[0] == pytest.approx(judged[0], rel=1e-5)


def test_a_member_can_not_be_the_judge(tmp_path: Path) -> None:
    source = tiny_heads(tmp_path / "policy")
    source.save(tmp_path / "first")
    source.save(tmp_path / "copy")
    gold = {"source": str(tmp_path / "first")}
    for path in ("first", "copy"):
        with pytest.raises(ConfigError, match="gold is a member of source 'heads'"):
            refuse_members(gold, {"heads": {"path": str(tmp_path / path)}})
    refuse_members(gold, {"heads": {"kind": "heads"}})
    with pytest.raises(ConfigError, match="gold is a member"):
        refuse_members({"source": "owner/judge"}, {"heads": {"path": "owner/judge"}})
    refuse_members({"source": "owner/judge"}, {"heads": {"path": str(tmp_path / "first")}})
    refuse_members({"function": "x:y"}, {"heads": {"path": "nowhere"}})


def test_another_judge_judges_the_reference_anew(model: dict[str, Any], tmp_path: Path) -> None:
    """Catches what was kept of the reference taken up under another true reward, in the same file or another."""

    def judged(**changes: Any) -> dict[str, Any]:
        return reference_of(build_setting(model | changes, tmp_path), tmp_path, 6, 5)

    first = judged()
    assert judged() == first
    (tmp_path / "gold.py").write_text(LENGTH.replace("float(len(text))", "-float(len(text))"))
    assert judged()["gold"] == [-value for value in first["gold"]]
    (tmp_path / "zero.py").write_text(LENGTH.replace("float(len(text))", "0.0"))
    assert judged(gold={"function": f"{tmp_path / 'zero.py'}:gold"})["mean"] == 0.0


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({}, "gold must be"),
        ({"function": "nowhere.py:f"}, "nowhere.py does not exist"),
        ({"function": "math:nothing"}, "math has no function 'nothing'"),
        ({"function": "sqrt"}, "must be file.py:name"),
        ({"function": "a:b", "source": "c"}, "gold must be"),
    ],
)
def test_a_judge_that_is_none_is_refused(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_gold(spec)


def test_a_borrowed_variance_leaves_the_reward_alone() -> None:
    rng = np.random.default_rng(0)
    table = {text: rng.normal(size=4).tolist() for text in "abcdefgh"}
    one = FunctionMembers(lambda p, c: [[table[text][0]] for text in c], 1, "one")
    others = FunctionMembers(lambda p, c: [[10 * x for x in table[text][1:]] for text in c], 3, "others")
    source = BorrowedVariance(one, others)
    prompts, texts, groups = ["p"] * 8, list("abcdefgh"), torch.tensor([0] * 4 + [1] * 4)
    scores = source.score(prompts, texts)
    anchors = group_anchors(scores, groups)
    source.calibrate(scores, anchors)
    found = source.estimate(scores, anchors)
    theirs = others.estimate(others.score(prompts, texts), group_anchors(others.score(prompts, texts), groups))
    torch.testing.assert_close(found.variance, theirs.variance)
    mine = one.estimate(one.score(prompts, texts), group_anchors(one.score(prompts, texts), groups))
    torch.testing.assert_close(found.mean, mine.mean)
    torch.testing.assert_close(found.members[:, 0], mine.mean)  # type: ignore[index]
    assert source.calibration is others.calibration
    margin = source.margins(scores[:4], scores[4:])
    torch.testing.assert_close(margin.mean, mine.mean[:4] - mine.mean[4:])
    torch.testing.assert_close(margin.variance, others.margins(scores[:4, 1:], scores[4:, 1:]).variance)


def test_a_borrowed_variance_is_saved_and_loaded(tmp_path: Path) -> None:
    both = [tiny_heads(tmp_path / name, seed=seed) for seed, name in enumerate(("first", "second"))]
    BorrowedVariance(*both).save(tmp_path / "saved")
    loaded = load_source(tmp_path / "saved")
    prompts, texts, groups = ["the cat"] * 4, ["red", "runs", "a", "blue dog"], torch.zeros(4, dtype=torch.long)
    scores = loaded.score(prompts, texts)
    anchors = group_anchors(scores, groups)
    loaded.calibrate(scores, anchors)
    expected = both[0].score(prompts, texts).mean(dim=1)
    mean = loaded.estimate(scores, anchors).mean
    torch.testing.assert_close((mean - mean[0]).float(), expected - expected[0], atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize("pairs", [-1, 0, 2.5, True, "many", None, 2**40])
def test_counts_of_pairs_are_checked_before_any_work(pairs: object, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"pairs (of a setting must|and held_out_pairs of)"):
        build_setting({"world": "uneven", "pairs": pairs}, tmp_path)
    assert not any(tmp_path.iterdir())
