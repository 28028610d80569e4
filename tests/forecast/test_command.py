"""`surefoot forecast` as a user runs it: what it leaves, how it goes on, and that its config trains."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from datasets import Dataset

from surefoot.cli.main import main
from surefoot.rewards.kinds.heads.config import HeadsConfig
from surefoot.rewards.kinds.heads.fit import train_heads
from tests.models import WORDS, save_policy

PROMPTS = [f"the {word} " for word in WORDS[:4]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy, a source of four heads, prompts, and a true reward."""
    place = tmp_path_factory.mktemp("forecast")
    policy = save_policy(place / "policy")
    rows = [(PROMPTS[i % 4], f"cat {WORDS[i % 7]}", f"dog {WORDS[(i + 3) % 9]} and") for i in range(40)]
    data = Dataset.from_dict({key: [row[i] for row in rows] for i, key in enumerate(("prompt", "chosen", "rejected"))})
    source = train_heads(data, policy, HeadsConfig(members=4, epochs=3, layer=0, max_length=16), device="cpu")
    source.save(place / "source")
    Dataset.from_dict({"prompt": PROMPTS}).to_parquet(place / "prompts.parquet")
    (place / "gold.py").write_text(
        "def gold(prompts, completions):\n    return [text.count('cat') for text in completions]\n"
    )
    return place


def arguments(folder: Path, output: Path, **changes: object) -> list[str]:
    settings = {
        "source": folder / "source",
        "model_name_or_path": folder / "policy",
        "dataset_name": folder / "prompts.parquet",
        "n": 24,
        "max_completion_length": 5,
        "prompts_per_batch": 2,
        "runs": 3,
        "output_dir": output,
    } | changes
    return ["forecast", *(f"--{name}={value}" for name, value in settings.items() if value is not None)]


@pytest.mark.slow
def test_forecast_from_policy_to_page_and_config(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    assert main(arguments(folder, output, gold=f"{folder / 'gold.py'}:gold")) == 0
    shown = capsys.readouterr().out
    found = json.loads((output / "forecast.json").read_text())
    assert (found["prompts"], found["candidates"], found["gold"]) == (4, 24, True)
    lines = [json.loads(line) for line in (output / "candidates.jsonl").read_text().splitlines()]
    assert len(lines) == 4 * 24
    assert len({line["completion"] for line in lines}) > 20
    page = (output / "forecast.html").read_text()
    assert page.count("<svg") == 4
    assert all(line.split(":")[0] in page for line in found["recommendation"]["reasons"])
    assert "turns as the truth" in shown

    # The same again is the finished one; the candidates of one forecast serve another.
    stamp = (output / "forecast.json").stat().st_mtime_ns
    assert main(arguments(folder, output, gold=f"{folder / 'gold.py'}:gold")) == 0
    assert (output / "forecast.json").stat().st_mtime_ns == stamp
    again = tmp_path / "again"
    given = {"model_name_or_path": None, "dataset_name": None, "completions": output / "candidates.jsonl"}
    assert main(arguments(folder, again, gold=f"{folder / 'gold.py'}:gold", **given)) == 0
    assert json.loads((again / "forecast.json").read_text())["rows"] == found["rows"]


@pytest.mark.slow
def test_an_interrupted_forecast_keeps_its_parts(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from surefoot.forecast import candidates as module

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    few = {"objectives": "variance_aware", "kl_budgets": 1}
    main(arguments(folder, whole, **few))
    real, calls = module.draw_completions, []

    def once(*args: object, **settings: object) -> object:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "draw_completions", once)
    assert main(arguments(folder, broken, **few)) == 130
    assert not (broken / "candidates.jsonl").exists()
    assert main(arguments(folder, broken, **few)) == 0
    assert len(calls) == 3  # two batches: the first was kept
    assert (broken / "candidates.jsonl").read_text() == (whole / "candidates.jsonl").read_text()
    assert json.loads((broken / "forecast.json").read_text()) == json.loads((whole / "forecast.json").read_text())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the variance of 'heads' is nearly the same:UserWarning")
def test_the_config_that_it_writes_trains(folder: Path, tmp_path: Path) -> None:
    from surefoot.forecast.run import ForecastArguments, training_config

    row = {"objective": "variance_aware_lcb:2", "preset": "variance_aware_lcb", "aggregate_parameter": 2.0,
           "kl_budget": 1.0, "beta": 0.4321}  # fmt: skip
    args = ForecastArguments(
        output_dir=str(tmp_path / "out"),
        reward_source=str(folder / "source"),
        model_name_or_path=str(folder / "policy"),
        dataset_name=str(folder / "prompts.parquet"),
        max_completion_length=5,
    )
    config = tmp_path / "rloo.yaml"
    config.write_text(training_config(row, args))
    assert yaml.safe_load(config.read_text())["beta"] == 0.432
    words = ["rloo", "--config", str(config), "--max_steps=2", "--per_device_train_batch_size=8",
             "--num_generations=4", "--report_to=none", "--use_cpu=true", "--calibration_prompts=4"]  # fmt: skip
    assert main(words) == 0
    record = json.loads((tmp_path / "out" / "policy" / "record.json").read_text())
    assert record["config"]["target_kl"] == 1.0


def test_contradictions_are_refused(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(folder, tmp_path / "a", completions="x.jsonl")) == 1
    assert "give either model_name_or_path and dataset_name" in capsys.readouterr().err
    assert main(arguments(folder, tmp_path / "b", n=0)) == 1
    assert "n must be at least 1, got 0" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def test_the_best_candidates_are_found_by_content() -> None:
    from surefoot.forecast.candidates import group_texts

    prompts = ["b", "a"] * 8 + ["c"]
    texts = group_texts(prompts, [f"{i}" for i in range(17)])
    assert texts.prompts[:8] == ["b"] * 8
    assert texts.completions[:8] == [str(i) for i in range(0, 16, 2)]
    assert texts.left_out == 1
    assert torch.equal(texts.order[:8], torch.arange(0, 16, 2))
