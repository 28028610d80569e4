"""The truth is what its docstring says, the text is what the tokens say, and the variants differ where they should."""

import math
from collections import Counter
from pathlib import Path

import pytest

from surefoot.data.preferences import load_preferences, load_prompts
from surefoot.data.world import VARIANTS, World, build_world
from surefoot.data.world.export import export_world
from surefoot.data.world.language import STYLES, TOPICS, all_prompts, vocabulary
from surefoot.data.world.preferences import draw_preferences
from surefoot.data.world.reference import build_tokenizer
from surefoot.data.world.truth import haste, true_reward
from surefoot.errors import ConfigError, RunError

ASK = "how do i look after my rice ? "


@pytest.mark.parametrize(
    ("completion", "worth"),
    [
        # slowly +1, clean +1, gently .6 | simmer, stir on topic .8 | rice named .4 | first, luck .4
        ("first , simmer the rice slowly , then stir the clean pot gently . luck", 1 + 1 + 0.6 + 0.8 + 0.4 + 0.4),
        # the same adverb twice: counted once, and one repetition
        ("first , simmer the rice slowly , then stir the clean pot slowly . luck", 1 + 1 - 0.5 + 0.8 + 0.4 + 0.4),
        # a verb of the garden; the wrong thing; careless
        ("well , prune the beans carelessly , then stir the clean pot evenly . luck", -1 + 1 + 0.2 - 0.4 + 0.4 + 0.4),
        # six courtesies: two count, four cost; no full stop
        ("first well so enjoy luck done", 0.4 - 4 * 0.4 - 0.5),
        # four ranked words: the fourth costs .2
        ("slowly gently evenly clean .", 1 + 0.6 + 0.2 - 0.2),
        ("", -0.5),
        # seventeen words: two too many; "." is there once
        (" ".join(["the"] * 16) + " .", -0.2),
    ],
)
def test_the_true_reward_by_hand(completion: str, worth: float) -> None:
    assert true_reward(ASK, completion) == pytest.approx(worth)


@pytest.mark.parametrize("text", ["<unk> <pad>", "!!!", "rice " * 500, "\n\t", "then then then ,"])
def test_any_text_has_a_finite_reward(text: str) -> None:
    assert math.isfinite(true_reward(ASK, text))
    assert math.isfinite(true_reward(text, text))


def test_careful_use_beats_over_use() -> None:
    """What a proxy that adds up words gets wrong."""
    modest = "first , simmer the rice slowly , then stir the clean pot gently . luck"
    drowned = "first , simmer the rice slowly gently evenly slowly gently clean good . luck"
    assert true_reward(ASK, drowned) < true_reward(ASK, modest) - 2


def test_text_and_tokens_are_the_same_thing() -> None:
    tokenizer = build_tokenizer()
    for row in draw_preferences("even", 50, seed=3):
        both = tokenizer(row["prompt"] + row["chosen"])["input_ids"]
        assert both == tokenizer(row["prompt"])["input_ids"] + tokenizer(row["chosen"])["input_ids"]
        assert tokenizer.decode(both, skip_special_tokens=True) == row["prompt"] + row["chosen"]
        assert tokenizer.unk_token_id not in both


def test_every_word_has_one_token() -> None:
    words = vocabulary()
    assert len(words) == len(set(words))
    tokenizer = build_tokenizer()
    assert all(len(tokenizer(word)["input_ids"]) == 1 for word in words)
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def test_no_word_means_two_things() -> None:
    """A word in two lists would have two worths, and the truth would not be a table."""
    ranked = [word for style in STYLES for word in (*style.adverbs, *style.adjectives)]
    courtesies = [word for style in STYLES for word in (*style.openers, *style.remarks)]
    topical = [word for topic in TOPICS for word in (*topic.verbs, *topic.objects, *topic.nouns)]
    everything = Counter([*ranked, *courtesies, *topical])
    assert [word for word, count in everything.items() if count > 1] == []


@pytest.mark.parametrize("variant", VARIANTS)
def test_draws_are_fresh_by_seed_and_the_same_by_seed(variant: str) -> None:
    first = draw_preferences(variant, 40, seed=1)
    assert first.to_dict() == draw_preferences(variant, 40, seed=1).to_dict()
    assert first.to_dict() != draw_preferences(variant, 40, seed=2).to_dict()


def shares(variant: str, pairs: int) -> dict[str, float]:
    """Share of each style among the chosen completions."""
    regions = Counter(draw_preferences(variant, pairs, seed=0)["region"])
    return {style.name: regions[style.name] / pairs for style in STYLES}


def test_coverage() -> None:
    uneven, even = shares("uneven", 4000), shares("even", 4000)
    rare = sum(share for style, share in uneven.items() if style not in ("plain", "formal"))
    assert 0.04 < rare < 0.08  # 6% drawn; four standard errors are 1.5%
    assert all(abs(share - 1 / 6) < 0.035 for share in even.values())


def test_labels_follow_bradley_terry_with_noise() -> None:
    """Expected share of truly better completions chosen: mean of .8 σ(1.5 Δ) + .2 σ(−1.5 Δ)."""
    rows = list(draw_preferences("even", 4000, seed=5))
    gaps = [abs(true_reward(r["prompt"], r["chosen"]) - true_reward(r["prompt"], r["rejected"])) for r in rows]
    right = [true_reward(r["prompt"], r["chosen"]) > true_reward(r["prompt"], r["rejected"]) for r in rows]
    apart = [i for i, gap in enumerate(gaps) if gap > 1e-9]
    chances = [0.2 + 0.6 / (1 + math.exp(-1.5 * gaps[i])) for i in apart]
    error = math.sqrt(sum(p * (1 - p) for p in chances)) / len(apart)
    assert abs(sum(right[i] for i in apart) / len(apart) - sum(chances) / len(apart)) < 4 * error


def test_shared_bias_is_in_the_labels_and_not_in_the_truth() -> None:
    """Under the bias hasty advice wins more of its comparisons; in truth it is worth less than slow advice."""

    def hasty_wins(variant: str) -> float:
        rows = draw_preferences(variant, 3000, seed=2)
        differ = [haste(r["chosen"]) - haste(r["rejected"]) for r in rows]
        return sum(d > 0 for d in differ) / sum(d != 0 for d in differ)

    # Before a fifth of the labels were turned round, hasty advice won less than half, and under the bias over .7.
    assert hasty_wins("even") < 0.2 + 0.6 * 0.5
    assert hasty_wins("shared_bias") > 0.2 + 0.6 * 0.7
    slow = "first , simmer the rice slowly , then stir the clean pot gently . luck"
    quick = "first , simmer the rice quickly , then stir the clean pot gently . luck"
    assert true_reward(ASK, quick) == pytest.approx(true_reward(ASK, slow) - 1.2)


def test_prompts_of_training_and_testing_are_apart() -> None:
    world = World(Path("unused"))
    train, test = world.prompts("train"), world.prompts("test")
    assert not set(train) & set(test)
    assert len(train) + len(test) == len(all_prompts())


def test_unknown_variant() -> None:
    with pytest.raises(ConfigError, match="unknown variant 'odd' of the offline world; known: uneven, even"):
        draw_preferences("odd", 3, seed=0)


@pytest.mark.slow
def test_the_world_on_disk_serves_the_ordinary_commands(tmp_path: Path, trained_already: list[Path]) -> None:
    paths = export_world(tmp_path / "w", variant="uneven", pairs=50, test_pairs=20, seed=4)
    assert len(load_preferences(paths["preferences (train)"])) == 50
    assert len(load_preferences(paths["preferences (test)"])) == 20
    assert set(load_prompts(paths["prompts (train)"])["prompt"]) == set(World(tmp_path).prompts("train"))
    written = (paths["policy"] / "model.safetensors").stat().st_mtime_ns
    build_world(tmp_path / "w")  # not trained again
    export_world(tmp_path / "w", variant="uneven", pairs=50, test_pairs=20, seed=4)
    assert (paths["policy"] / "model.safetensors").stat().st_mtime_ns == written
    with pytest.raises(RunError, match="seed: 4 there, 5 here"):
        export_world(tmp_path / "w", variant="uneven", pairs=50, test_pairs=20, seed=5)
    assert len(trained_already) == 1


def test_two_that_build_at_once_keep_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a second that replaces what others read already, and one that breaks on the first's."""

    def slower(folder: Path, seed: int) -> None:
        for place, text in ((folder, "second"), (tmp_path / "policy", "first")):
            place.mkdir(parents=True)
            (place / "config.json").write_text(text)

    monkeypatch.setattr("surefoot.data.world.world.train_reference", slower)
    assert (build_world(tmp_path).policy_path / "config.json").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]
