"""What a trainer is given wrongly is told when it is made, with what to do; nothing is loaded or trained first."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, IterableDataset
from trl import DPOConfig, GRPOConfig, RLOOConfig

import surefoot
from surefoot.errors import ConfigError, DataError, ModelError, VarianceError
from surefoot.training.best_of_n import BestOfNArguments, run_best_of_n
from tests.models import save_policy

TRL = {"RLOO": RLOOConfig, "GRPO": GRPOConfig, "DPO": DPOConfig}
ONLINE = ["RLOO", "GRPO"]
PROMPTS = Dataset.from_dict({"prompt": ["the ", "a "]})
PAIRS = Dataset.from_dict({"prompt": ["the "], "chosen": ["cat"], "rejected": ["dog"]})


def length(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
    return [float(len(text)) for text in completions]


def spaces(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
    return [float(text.count(" ")) for text in completions]


TWO = surefoot.FunctionMembers.of(length, spaces)


def make(kind: str, folder: Path, reward: Any = TWO, model: Any = "policy", **changes: Any) -> Any:
    """A trainer of that kind; changes are of its arguments."""
    config = getattr(surefoot, f"VarianceAware{kind}Config")
    trainer = getattr(surefoot, f"VarianceAware{kind}Trainer")
    settings = {"output_dir": str(folder / "out"), "report_to": "none", "use_cpu": True}
    online = {"num_generations": 2, "per_device_train_batch_size": 2, **changes.pop("settings", {})}
    given: dict[str, Any] = {"args": config(**settings | (online if kind in ONLINE else {}))}
    given |= {"reward_funcs": reward, "train_dataset": PROMPTS} if kind in ONLINE else {"source": reward}
    given |= {} if kind in ONLINE else {"train_dataset": PAIRS}
    return trainer(str(folder / model) if isinstance(model, str) else model, **given | changes)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_policy(tmp_path / "policy")
    return tmp_path


@pytest.mark.parametrize("kind", TRL)
def test_the_config_of_trl(kind: str, folder: Path) -> None:
    args = TRL[kind](output_dir=str(folder / "out"), bf16=False, use_cpu=True, report_to="none")
    with pytest.raises(
        ConfigError, match=rf"must be a VarianceAware{kind}Config, got a {kind}Config.*write surefoot\.V"
    ):
        make(kind, folder, args=args)


@pytest.mark.parametrize("kind", ONLINE)
@pytest.mark.parametrize("name", ["train_dataset", "eval_dataset"])
def test_a_dataset_without_prompts(kind: str, name: str, folder: Path) -> None:
    table = PROMPTS.rename_column("prompt", "prompts")
    said = rf"{name} has no column 'prompt'; it has prompts; rename 'prompts': dataset\.rename_column"
    with pytest.raises(DataError, match=said):
        make(kind, folder, **{name: table})
    with pytest.raises(DataError, match=said):
        make(kind, folder, **{name: IterableDataset.from_generator(lambda: iter(table))})
    with pytest.raises(DataError, match=rf"{name}\['b'\] has no column"):
        make(kind, folder, **{name: {"a": PROMPTS, "b": table}})


@pytest.mark.parametrize("kind", TRL)
def test_an_empty_dataset(kind: str, folder: Path) -> None:
    empty = (PROMPTS if kind in ONLINE else PAIRS).select([])
    with pytest.raises(DataError, match="train_dataset is empty"):
        make(kind, folder, train_dataset=empty)


@pytest.mark.parametrize("kind", TRL)
def test_the_name_of_a_dataset(kind: str, folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"must be a dataset, got the text 'prompts\.jsonl'; load it with"):
        make(kind, folder, train_dataset="prompts.jsonl")


def test_pairs_without_a_side(folder: Path) -> None:
    with pytest.raises(DataError, match="train_dataset has no column 'rejected'; it has prompt, chosen, refused"):
        make("DPO", folder, train_dataset=PAIRS.rename_column("rejected", "refused"))


@pytest.mark.parametrize("kind", TRL)
def test_a_mistyped_model(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match=r"can't load model '.*/polcy'.*did you mean '.*/policy'"):
        make(kind, folder, model="polcy")


@pytest.mark.parametrize("kind", ONLINE)
def test_a_mistyped_reward_model(kind: str, folder: Path) -> None:
    with pytest.raises(ModelError, match=r"can't load model '.*/nothing'"):
        make(kind, folder, reward=[str(folder / "nothing"), str(folder / "policy")])


@pytest.mark.parametrize("kind", ONLINE)
def test_two_functions_are_members_or_rewards(kind: str, folder: Path) -> None:
    said = (
        r"2 reward functions can be two things: members, .*\(give surefoot\.FunctionMembers\.of\(length, spaces\)\), "
        r"or rewards that are added, as in TRL, and have none \(preset='mean'\)"
    )
    with pytest.raises(VarianceError, match=said):
        make(kind, folder, reward=[length, spaces])
    assert make(kind, folder, reward=[length, spaces], settings={"preset": "mean"}).reward_func_names[-1] == "spaces"
    assert make(kind, folder, reward=TWO).source.num_members == 2


@pytest.mark.parametrize("kind", ONLINE)
@pytest.mark.parametrize("preset", ["variance_aware", "lcb"])
def test_one_function_has_no_variance(kind: str, preset: str, folder: Path) -> None:
    with pytest.raises(
        VarianceError, match=rf"preset '{preset}' needs a variance, and one function, length, has none"
    ):
        make(kind, folder, reward=length, settings={"preset": preset})


@pytest.mark.parametrize("kind", ONLINE)
def test_one_member_has_no_variance(kind: str, folder: Path) -> None:
    one = surefoot.FunctionMembers(lambda prompts, completions: torch.zeros(len(prompts), 1), 1, "lonely")
    with pytest.raises(VarianceError, match="'lonely' has one member, which can't disagree: give two reward models"):
        make(kind, folder, reward=one)
    assert make(kind, folder, reward=one, settings={"preset": "vanilla"}).source is one


def test_functions_as_members() -> None:
    rows = TWO.score(["p", "p"], ["a b", "c"])
    assert rows.tolist() == [[3.0, 1.0], [1.0, 0.0]]
    assert surefoot.FunctionMembers.of(length, lambda **_: [None]).score(["p"], ["c"])[0, 1].isnan()
    with pytest.raises(ModelError, match="members are at least two functions, got 1"):
        surefoot.FunctionMembers.of(length)


def test_best_of_n_by_one_member(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = surefoot.FunctionMembers(lambda prompts, completions: torch.zeros(len(prompts), 1), 1, "lonely")
    monkeypatch.setattr("surefoot.training.best_of_n.load_source", lambda name: one)
    PROMPTS.to_json(folder / "prompts.jsonl")
    args = BestOfNArguments(
        str(folder / "out"), str(folder / "policy"), str(folder / "prompts.jsonl"), "source", preset="lcb"
    )
    with pytest.raises(VarianceError, match="preset 'lcb' needs a variance, and 'lonely' has one member"):
        run_best_of_n(args, {})
    assert not (folder / "out").exists()
