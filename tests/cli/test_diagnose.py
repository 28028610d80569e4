"""`surefoot diagnose` on a saved source: the files it leaves, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from surefoot.cli.main import main
from surefoot.diagnosis import mean_rewards
from surefoot.rewards.kinds.heads.config import HeadsConfig
from surefoot.rewards.kinds.heads.fit import train_heads
from surefoot.rewards.registry import load_source
from tests.models import WORDS

# The far texts that are long by design are longer than this source's sixteen tokens; the encoder says so.
pytestmark = pytest.mark.filterwarnings("ignore:.*texts are longer than max_length=16 tokens")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [(f"the {WORDS[i % 10]} ", f"cat {WORDS[i % 7]}", f"dog {WORDS[(i + 3) % 9]} and") for i in range(40)]
    path = tmp_path_factory.mktemp("d") / "pairs.parquet"
    columns = {key: [row[i] for row in rows] for i, key in enumerate(("prompt", "chosen", "rejected"))}
    Dataset.from_dict(columns).to_parquet(path)
    return path


def source(policy: Path, pairs: Path, folder: Path, members: int) -> Path:
    config = HeadsConfig(members=members, epochs=2, layer=0, max_length=16)
    train_heads(Dataset.from_parquet(str(pairs)), policy, config, device="cpu").save(folder)
    return folder


def test_it_writes_what_it_prints(
    policy_path: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = source(policy_path, pairs, tmp_path / "s", 4)
    assert main(["diagnose", "--reward_source", str(folder), "--dataset_name", str(pairs)]) == 0
    shown = capsys.readouterr().out
    found = json.loads((folder / "diagnose.json").read_text())
    assert found["members"] == 4
    assert found["pairs"] == 40
    assert f"{found['disagreement']['agreement']:.3f}" in shown
    assert found["verdict"]["weighting"] in ("likely", "possible", "unlikely", "nothing")
    assert "<svg" in (folder / "diagnose.html").read_text()
    loaded = load_source(folder, "cpu")
    assert loaded.diagnosis is not None
    assert loaded.diagnosis["verdict"] == found["verdict"]


def test_completions_of_a_policy_with_their_truth(policy_path: Path, pairs: Path, tmp_path: Path) -> None:
    folder = source(policy_path, pairs, tmp_path / "s", 3)
    rows = [(f"the {WORDS[i // 4]} ", f"{WORDS[i % 9]} {WORDS[i % 7]}", float(i % 5)) for i in range(32)]
    samples = tmp_path / "samples.parquet"
    columns = {key: [row[i] for row in rows] for i, key in enumerate(("prompt", "completion", "truth"))}
    Dataset.from_dict(columns).to_parquet(samples)
    assert (
        main(["diagnose", "--reward_source", str(folder), "--dataset_name", str(pairs), "--completions", str(samples)])
        == 0
    )
    found = json.loads((folder / "diagnose.json").read_text())
    assert found["heterogeneity"]["completions"] == 32
    assert found["heterogeneity"]["anchors"] == {"group": 1.0}
    assert found["known_truth"]["completions"] == 32


def test_a_smoothed_and_a_linear_source(policy_path: Path, pairs: Path, tmp_path: Path) -> None:
    """The members of a smoothed one are its first columns; a closed form is fully reliable."""
    common = [f"--dataset_name={pairs}", f"--model_name_or_path={policy_path}", "--held_out=0.4", "--max_length=16"]
    heads = ["--kind=heads", "--members=4", "--variance=smoothed", "--layer=0", "--pooling=mean", "--epochs=2"]
    found = {}
    for name, words in (("smoothed", heads), ("linear", ["--kind=linear"])):
        folder = tmp_path / name / "source"
        assert main(["reward", *words, *common, f"--output_dir={tmp_path / name}"]) == 0
        assert main(["diagnose", "--reward_source", str(folder), "--dataset_name", str(pairs)]) == 0
        found[name] = json.loads((folder / "diagnose.json").read_text())
    one = found["smoothed"]
    assert one["members"] == one["disagreement"]["members"] == 4
    scores = load_source(tmp_path / "smoothed" / "source", "cpu").score(["the cat "], ["dog runs"])
    assert mean_rewards(load_source(tmp_path / "smoothed" / "source", "cpu"), scores).tolist() == pytest.approx(
        scores[:, :4].mean(dim=1).tolist()
    )
    assert one["heterogeneity"]["has_prior"] is False
    assert found["linear"]["members"] is None
    assert found["linear"]["heterogeneity"]["reliability"] == 1.0


def test_it_knows_the_pairs_that_its_source_held_out(
    policy_path: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a dataset, and with the one that it was trained from; a split of one's own is taken whole."""
    common = [f"--dataset_name={pairs}", f"--model_name_or_path={policy_path}", "--held_out=0.4", "--max_length=16"]
    out, folder = tmp_path / "linear", tmp_path / "linear" / "source"
    assert main(["reward", "--kind=linear", *common, f"--output_dir={out}"]) == 0
    metrics = json.loads((out / "record.json").read_text())["metrics"]

    def diagnosed(*words: str) -> dict[str, Any]:
        assert main(["diagnose", "--source", str(folder), "--far_items=0", *words]) == 0
        return dict(json.loads((folder / "diagnose.json").read_text()))

    for words in ((), ("--dataset", str(pairs))):
        found = diagnosed(*words)
        assert found["pairs"] == metrics["held_out_pairs"] < 40
        assert found["accuracy"]["overall"]["value"] == metrics["accuracy_of_mean"]
        assert found["data"]["same_as_card"] is True
        assert found["data"]["left_out"] == metrics["train_pairs"]
        assert "WARNING" not in capsys.readouterr().err
        assert "trained on these pairs" not in (folder / "diagnose.html").read_text().lower()

    found = diagnosed("--dataset", str(pairs), "--split", "train")
    assert (found["pairs"], found["data"]["training"]) == (40, metrics["train_pairs"])
    assert f"WARNING: The source was trained on {metrics['train_pairs']} of these 40" in capsys.readouterr().err
    page = (folder / "diagnose.html").read_text()
    assert page.index("Trained on these pairs.") < page.index("In short")

    (folder / "pairs.safetensors").unlink()  # a source of an earlier version
    found = diagnosed("--dataset", str(pairs))
    assert (found["pairs"], found["data"]["training"]) == (40, None)
    assert "is unknown: its training pairs are not recorded" in (folder / "diagnose.html").read_text()
    assert main(["diagnose", "--source", str(folder)]) == 1
    assert "which pairs the source held out isn't recorded beside it" in capsys.readouterr().err


def test_benchmarks_are_read_and_written_back(
    policy_path: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = source(policy_path, pairs, tmp_path / "s", 3)
    first = {
        "prompt": ["the cat ", "a dog "], "chosen": ["runs", "sleeps and"], "rejected": ["dog", "red"],
        "subset": ["alpacaeval-easy", "hep-python"], "chosen_model": ["m", "m"], "id": [0, 1],
    }  # fmt: skip
    second = {
        "prompt": ["the cat ", "a dog "], "chosen": [["runs"], ["sleeps and"]], "rejected": [["dog", "a", "red"]] * 2,
        "subset": ["Math", "Focus"], "id": ["a", "b"],
    }  # fmt: skip
    for name, columns in (("one", first), ("two", second)):
        data, out = tmp_path / f"{name}.parquet", tmp_path / name
        Dataset.from_dict(columns).to_parquet(data)
        words = ["diagnose", "--reward_source", str(folder), "--dataset_name", str(data), "--output_dir", str(out)]
        assert main([*words, "--plain_text", "true"]) == 0
        assert "RewardBench's own result files" in capsys.readouterr().out
        written = sorted(path.name for path in (out / "rewardbench" / "eval-set" / "surefoot").iterdir())
        assert written == ["heads-member-0.json", "heads-member-1.json", "heads-member-2.json", "heads.json"]
        found = json.loads((out / "diagnose.json").read_text())
        benchmark = found["accuracy"]["benchmark"]
        results = json.loads((out / "rewardbench" / "eval-set" / "surefoot" / "heads.json").read_text())
        for subset in columns["subset"]:
            assert results[subset] == benchmark["subsets"][subset]["value"]
        assert main([*words, "--plain_text", "false"]) == 1  # this tokenizer has no chat template
        assert "has no chat template" in capsys.readouterr().err


def test_one_member_and_contradictory_settings(
    policy_path: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = source(policy_path, pairs, tmp_path / "one", 1)
    assert main(["diagnose", "--reward_source", str(folder), "--dataset_name", str(pairs)]) == 1
    assert "has one member, and one member can't disagree" in capsys.readouterr().err
    assert main(["diagnose", "--dataset_name", str(pairs)]) == 1
    assert "give either reward_source" in capsys.readouterr().err
    assert main(["diagnose", "--reward_source", str(folder)]) == 1
    assert "dataset_name is missing" in capsys.readouterr().err
    assert main(["diagnose", "--reward_models", "a", "b", "--dataset_name", str(pairs)]) == 1
    assert "say where the result goes" in capsys.readouterr().err
