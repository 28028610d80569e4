"""DPO: TRL's own trajectory without weights, the weighted loss by hand with them, and the optimum they lead to."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM, PrinterCallback
from trl import DPOConfig, DPOTrainer

from surefoot.errors import ConfigError, DataError, VarianceError
from surefoot.rewards.anchors import AnchorStore, group_anchors
from surefoot.rewards.kinds.function import FunctionMembers
from surefoot.training.dpo_config import VarianceAwareDPOConfig
from surefoot.training.dpo_trainer import VarianceAwareDPOTrainer
from surefoot.training.preference_weights import add_variances, add_weights, anchors_of
from tests.training.test_rloo_trainer import difference, members, moved, sequence_log_probability

PAIRS = {
    "prompt": ["the", "a", "red", "green"] * 4,
    "chosen": [" cat runs", " cat", " cat and dog", " dog cat"] * 4,
    "rejected": [" dog", " dog dog", " runs", " a dog sleeps"] * 4,
}


def common(output: Path, **changes: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "output_dir": str(output), "per_device_train_batch_size": 4, "max_steps": 10, "learning_rate": 1e-3,
        "beta": 0.3, "bf16": False, "logging_steps": 1, "report_to": "none", "save_strategy": "no",
        "gradient_checkpointing": False, "disable_tqdm": True, "use_cpu": True,
    }  # fmt: skip
    return settings | changes


def ours(policy: Path, output: Path, data: Dataset | None = None, source: Any = None, **changes: Any) -> Any:
    trainer = VarianceAwareDPOTrainer(
        str(policy),
        VarianceAwareDPOConfig(**common(output, **changes)),
        train_dataset=Dataset.from_dict(PAIRS) if data is None else data,
        source=source,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def weighted(chosen: float, rejected: float) -> Dataset:
    return Dataset.from_dict(PAIRS | {"chosen_weight": [chosen] * 16, "rejected_weight": [rejected] * 16})


@pytest.mark.parametrize("how", ["off", "weights of one", "precomputed"])
def test_the_stock_trajectory(policy_path: Path, tmp_path: Path, how: str) -> None:
    changes: dict[str, Any] = {"precompute_ref_log_probs": True} if how == "precomputed" else {}
    theirs = DPOTrainer(
        str(policy_path), args=DPOConfig(**common(tmp_path / "a", **changes)), train_dataset=Dataset.from_dict(PAIRS)
    )
    theirs.remove_callback(PrinterCallback)
    theirs.train()
    if how == "off":
        mine = ours(policy_path, tmp_path / "b", weights="none")
    else:
        mine = ours(policy_path, tmp_path / "b", weighted(1.0, 1.0), **changes)
    mine.train()
    assert moved(theirs, policy_path) > 1e-3
    assert difference(theirs, mine) <= 1e-6


@pytest.mark.parametrize("objective", ["generalized", "literal"])
@pytest.mark.parametrize("precompute", [False, True])
def test_the_loss_by_hand(policy_path: Path, tmp_path: Path, objective: str, precompute: bool) -> None:
    """−log σ(β[w_c ℓ_c − w_r ℓ_r]) from log-probabilities of single unpadded sequences."""
    trainer = ours(
        policy_path, tmp_path, weighted(2.0, 0.5), objective=objective, max_steps=4,
        precompute_ref_log_probs=precompute,
    )  # fmt: skip
    trainer.train()
    rows = [trainer.train_dataset[i] for i in range(4)]
    batch = trainer.data_collator(rows)
    trainer.model.train()
    with torch.no_grad():
        found = float(trainer._compute_loss(trainer.model, batch, False))
    reference = AutoModelForCausalLM.from_pretrained(policy_path)
    losses = []
    for row in rows:
        prompt = torch.tensor(row["prompt_ids"])
        ratio = {
            side: sequence_log_probability(trainer.model, prompt, torch.tensor(row[f"{side}_ids"]))
            - sequence_log_probability(reference, prompt, torch.tensor(row[f"{side}_ids"]))
            for side in ("chosen", "rejected")
        }
        one = 1.0 if objective == "literal" else 0.0
        margin = 2.0 * (ratio["chosen"] + one) - 0.5 * (ratio["rejected"] + one)
        losses.append(-float(logsigmoid(torch.tensor(0.3 * margin))))
    assert found == pytest.approx(sum(losses) / 4, rel=1e-4)


def test_the_weighted_optimum_is_reached(policy_path: Path, tmp_path: Path) -> None:
    """Pairs preferred in exact Bradley-Terry shares: β(w_c ℓ_c − w_r ℓ_r) becomes the log-odds, here ln 3."""
    data = Dataset.from_dict({
        "prompt": ["the"] * 4,
        "chosen": [" cat"] * 3 + [" dog"],
        "rejected": [" dog"] * 3 + [" cat"],
        "chosen_weight": [2.0] * 3 + [0.5],
        "rejected_weight": [0.5] * 3 + [2.0],
    })  # fmt: skip
    trainer = ours(
        policy_path, tmp_path, data, max_steps=150, learning_rate=3e-3, beta=1.0, lr_scheduler_type="cosine"
    )
    trainer.train()
    reference = AutoModelForCausalLM.from_pretrained(policy_path)
    first, second = trainer.train_dataset[0], trainer.train_dataset[3]
    prompt = torch.tensor(first["prompt_ids"])
    cat, dog = (
        sequence_log_probability(trainer.model, prompt, torch.tensor(row["chosen_ids"]))
        - sequence_log_probability(reference, prompt, torch.tensor(row["chosen_ids"]))
        for row in (first, second)
    )
    assert 2.0 * cat - 0.5 * dog == pytest.approx(float(torch.log(torch.tensor(3.0))), abs=0.02)


def test_weights_come_from_a_source_once(policy_path: Path, tmp_path: Path) -> None:
    source = FunctionMembers(members, 3)
    data = Dataset.from_dict(PAIRS)
    source.calibrate(source.score(data["prompt"], data["chosen"]))
    trainer = ours(policy_path, tmp_path, source=source, weight_floor=0.01, weight_ceiling=100.0, max_steps=2)
    sides = [torch.tensor(list(trainer.train_dataset[f"{side}_weight"])) for side in ("chosen", "rejected")]
    assert float(torch.cat(sides).mean()) == pytest.approx(1.0, abs=1e-5)
    scores = torch.cat([source.score(data["prompt"], data[side]) for side in ("chosen", "rejected")])
    anchors = group_anchors(scores, (torch.arange(16) % 4).repeat(2), "dataset")  # all pairs of a prompt
    variance = source.estimate(scores, anchors).variance
    assert trainer.anchor_shares == {"dataset": 1.0}
    torch.testing.assert_close(torch.cat(sides).double(), variance / variance.mean(), rtol=1e-5, atol=1e-6)
    trainer.train()
    assert moved(trainer, policy_path) > 1e-4
    assert all(row["anchor/dataset"] == 1.0 for row in trainer.state.log_history if "loss" in row)


def reference_anchors(source: Any, prompts: list[str]) -> AnchorStore:
    """Two completions of each prompt stand for the reference policy's."""
    store = AnchorStore(source.name, 2)
    texts = [" cat", " dog runs"] * len(prompts)
    repeated = [prompt for prompt in prompts for _ in range(2)]
    scores = source.score(repeated, texts)
    store.add(prompts, scores)
    store.add_probe(repeated[0], texts[0], scores[0])
    return store


def test_variances_are_centred_by_the_anchor_file_where_it_has_the_prompt(policy_path: Path, tmp_path: Path) -> None:
    source = FunctionMembers(members, 3)
    data = Dataset.from_dict(PAIRS)
    source.calibrate(source.score(data["prompt"], data["chosen"]))
    path = reference_anchors(source, ["the", "a", "red"]).save(tmp_path / "anchors.safetensors")
    trainer = ours(policy_path, tmp_path, source=source, anchor_file=str(path), max_steps=2)
    assert trainer.anchor_shares == pytest.approx({"reference": 0.75, "dataset": 0.25})
    trainer.train()
    row = next(row for row in trainer.state.log_history if "loss" in row)
    assert (row["anchor/reference"], row["anchor/dataset"]) == pytest.approx((0.75, 0.25))
    found = add_variances(data, source, AnchorStore.load(path))
    assert list(found["anchor"][:4]) == ["reference", "reference", "reference", "dataset"]
    score = source.score(["red"], [" cat and dog"])
    expected = source.estimate(score, AnchorStore.load(path).of(["red"])).variance
    assert found["chosen_variance"][2] == pytest.approx(float(expected))
    last = torch.cat([source.score(["green"], [text]) for text in (" dog cat", " a dog sleeps")])
    pair = source.estimate(last, group_anchors(last, torch.zeros(2).long(), "dataset")).variance
    assert found["rejected_variance"][3] == pytest.approx(float(pair[1]))


def test_neither_siblings_nor_the_order_of_pairs_nor_blocks_change_an_anchored_variance() -> None:
    source = FunctionMembers(members, 3)
    data = Dataset.from_dict(PAIRS)
    source.calibrate(source.score(data["prompt"], data["chosen"]))
    store = reference_anchors(source, ["the", "a", "red"])
    whole = add_variances(data, source, store)
    order = [5, 2, 14, 9, 0, 7, 12, 1, 3, 15, 8, 4, 6, 10, 13, 11]
    moved = add_variances(data.select(order), source, store, rows=3)
    alone = add_variances(data.select([1, 2]), source, store)
    for name in ("chosen_variance", "rejected_variance"):
        values = list(whole[name])
        assert list(moved[name]) == pytest.approx([values[i] for i in order], rel=1e-12)
        assert list(alone[name]) == pytest.approx(values[1:3], rel=1e-12)
    assert anchors_of(whole.remove_columns("anchor")) == {}
    assert anchors_of(data.add_column("anchor", ["a text of the user's"] * 16)) == {}


def test_scoring_goes_on_where_it_was_interrupted_and_tells_how_far_it_is(policy_path: Path, tmp_path: Path) -> None:
    calls: list[int] = []

    def score(prompts: Any, completions: Any) -> Any:
        calls.append(len(prompts))
        if len(calls) == 6:
            raise KeyboardInterrupt
        return members(prompts, completions)

    source = FunctionMembers(score, 3)
    data = Dataset.from_dict(PAIRS)
    source.calibrate(torch.tensor(members(data["prompt"], data["chosen"])))
    shown: list[tuple[int, int]] = []
    with pytest.raises(KeyboardInterrupt):
        add_variances(data, source, rows=4, cache=tmp_path / "scores", on_progress=lambda *n: shown.append(n))
    assert shown == [(0, 16), (4, 16), (8, 16)]  # both sides of each; the third block's other side was interrupted
    found = add_variances(data, source, rows=4, cache=tmp_path / "scores", on_progress=lambda *n: shown.append(n))
    assert shown[3:] == [(0, 16), (4, 16), (8, 16), (12, 16), (16, 16)]
    assert calls == [4] * 10  # six calls, then both sides of the last two blocks alone
    plain = FunctionMembers(members, 3)
    plain.calibrate(plain.score(data["prompt"], data["chosen"]))
    assert found.to_dict() == add_variances(data, plain, rows=4).to_dict()
    for seen in ([16, 16], []):
        del calls[:]
        trainer = VarianceAwareDPOTrainer(
            str(policy_path),
            VarianceAwareDPOConfig(**common(tmp_path)),
            train_dataset=data,
            source=source,
            scores=tmp_path / "of the trainer",
            on_progress=lambda *n: shown.append(n),
        )
        assert calls == seen
        assert shown.pop() == (16, 16)
        assert trainer.train_dataset["chosen_weight"][:] == add_weights(found)["chosen_weight"][:]


def test_an_anchor_file_that_is_of_no_use_is_refused(policy_path: Path, tmp_path: Path) -> None:
    source = FunctionMembers(members, 3)
    path = str(reference_anchors(source, ["the"]).save(tmp_path / "anchors.safetensors"))
    with pytest.raises(ConfigError, match="give a source, or leave it out"):
        ours(policy_path, tmp_path, anchor_file=path)
    with pytest.raises(ConfigError, match="the data have chosen_weight and rejected_weight already"):
        ours(policy_path, tmp_path, weighted(1.0, 1.0), source=source, anchor_file=path)
    with pytest.raises(ConfigError, match="weights is 'none'"):
        ours(policy_path, tmp_path, source=source, anchor_file=path, weights="none")
    other = FunctionMembers(lambda p, c: torch.tensor(members(p, c)) + 1.0, 3)
    with pytest.raises(DataError, match="scores the completions kept with them differently"):
        ours(policy_path, tmp_path, source=other, anchor_file=path)


def test_bad_variances_are_named() -> None:
    data = Dataset.from_dict(PAIRS)
    with pytest.raises(DataError, match="no chosen_variance and no rejected_variance; add them with `surefoot score`"):
        add_weights(data)
    some = data.add_column("chosen_variance", [1.0] * 15 + [None]).add_column("rejected_variance", [1.0] * 16)
    with pytest.raises(DataError, match="row 15 has no finite chosen_variance"):
        add_weights(some)
    text = data.add_column("chosen_variance", ["x"] * 16).add_column("rejected_variance", [1.0] * 16)
    with pytest.raises(DataError, match="row 0 has no finite chosen_variance"):
        add_weights(text)
    less = data.add_column("chosen_variance", [1.0, -1.0] * 8).add_column("rejected_variance", [1.0] * 16)
    with pytest.raises(DataError, match="row 1 has a negative chosen_variance"):
        add_weights(less)
    zero = data.add_column("chosen_variance", [0.0] * 16).add_column("rejected_variance", [0.0] * 16)
    with pytest.raises(VarianceError, match="every variance is zero"):
        add_weights(zero)
    with pytest.raises(VarianceError):
        add_variances(data, FunctionMembers(lambda p, c: [[1.0]] * len(p), 1))


def test_settings_that_cannot_be_weighted(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="loss_type ipo can't be weighted"):
        VarianceAwareDPOConfig(**common(tmp_path, loss_type="ipo"))
    with pytest.raises(ConfigError, match="can't be weighted: the weighted optimum"):
        VarianceAwareDPOConfig(**common(tmp_path, f_divergence_type="js_divergence"))
    with pytest.raises(ConfigError, match="objective must be one of generalized, literal"):
        VarianceAwareDPOConfig(**common(tmp_path, objective="exact"))
    with pytest.raises(ConfigError, match="0 < weight_floor"):
        VarianceAwareDPOConfig(**common(tmp_path, weight_floor=2.0))
    assert VarianceAwareDPOConfig(**common(tmp_path, weights="none", loss_type="ipo")).weights == "none"
