"""The judge among other sources: asked, saved, loaded, compared with references, mixed, and used by commands."""

import json
import math
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from datasets import Dataset

from surefoot.cli.main import main
from surefoot.errors import ConfigError, DataError
from surefoot.rewards.anchors import group_anchors
from surefoot.rewards.kinds.borrowed_variance import BorrowedVariance
from surefoot.rewards.kinds.function import FunctionMembers
from surefoot.rewards.kinds.judge import packages
from surefoot.rewards.kinds.judge.access import JudgeAccess
from surefoot.rewards.kinds.judge.config import JudgeConfig
from surefoot.rewards.kinds.judge.source import JudgeSource
from surefoot.rewards.kinds.mixed import MixedSources
from surefoot.rewards.registry import load_source
from surefoot.rewards.source import RewardSource
from surefoot.training.shaping import shape_rewards
from surefoot.types import Anchors
from tests.rewards.kinds.judge.servers import Act, JudgeServer, Request, number_in, rated, reply

Make = Callable[..., JudgeSource]


def access(source: JudgeSource) -> JudgeAccess:
    """Where the judge is asked, as its maker knows and its directory doesn't."""
    return JudgeAccess(source.config.endpoint, source.config.key_variable, source.config.cache)


def noisy(request: Request) -> Act:
    """The number in the answer, and a little more or less by sample and wording."""
    luck = request.sample + len(request.wording) + int(number_in(request) * request.body["temperature"])
    return rated(min(max(number_in(request) + luck % 3 - 1, 1), 9))


def test_saved_and_loaded(judge: Make, tmp_path: Path) -> None:
    with JudgeServer(noisy) as server:
        source = judge(server, wordings=2, key_variable=None)
        scores = source.score(["p"] * 4, ["2", "4", "6", "8"])
        anchors = group_anchors(scores, torch.tensor([0, 0, 1, 1]))
        source.calibrate(scores, anchors)
        source.save(tmp_path / "source")
        loaded = load_source(tmp_path / "source", judge=access(source))
        assert isinstance(loaded, JudgeSource)
        assert loaded.config == source.config
        assert loaded.calibration == source.calibration
        found, again = source.estimate(scores, anchors), loaded.estimate(scores, anchors)
        torch.testing.assert_close(again.variance, found.variance)
        paid = len(server.requests)
        torch.testing.assert_close(loaded.score(["p"] * 4, ["2", "4", "6", "8"]), scores, equal_nan=True)
        assert len(server.requests) == paid
    assert sorted(path.name for path in (tmp_path / "source").iterdir()) == ["calibration.json", "source.json"]


def test_settings_that_can_t_be_meant(judge: Make) -> None:
    for settings, message in (
        ({"endpoint": "ftp://x"}, "must be an http"),
        ({"endpoint": "https://me:secret@host/v1"}, "must hold no key"),
        ({"endpoint": "https://host/v1?key=secret"}, "must hold no key"),
        ({"endpoint": "https://x.openai.azure.com/openai/deployments/d?api-version=1"}, "Azure's v1 address"),
        ({"top_logprobs": 1}, "top_logprobs must be at least 2"),
        ({"key_variable": "sk-secret-1"}, "not the key itself"),
        ({"samples": 0}, "samples must be at least 1"),
        ({"timeout_s": 0}, "timeout_s must be positive"),
        ({"reading": "tea leaves"}, "reading must be one of"),
        ({"budget_money": 1.0}, "needs price_input"),
        ({"parameters": {"n": 3}}, "must not hold n"),
        ({"reading": "logprobs", "reason": True}, "leave reason out"),
    ):
        with pytest.raises(ConfigError, match=message) as error:
            JudgeConfig(**settings)  # type: ignore[arg-type]
        assert "secret" not in str(error.value)
    with pytest.raises(ConfigError, match="has 4 wordings, not 5"):
        judge("http://h/v1", wordings=5)
    with pytest.raises(ConfigError, match="min_valid is 4, but 3 replies"):
        judge("http://h/v1", min_valid=4)
    with pytest.raises(ConfigError, match="no setting temprature"):
        JudgeConfig.from_dict({"temprature": 1})


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs openai, which is not installed: pip install 'surefoot\[judge\]'"):
        JudgeSource("m", JudgeConfig(cache="x"))


def test_too_few_valid_replies_are_unscored_all_the_way(judge: Make) -> None:
    """NaN in every column, in the estimate, and in the trainer's shaped rewards; siblings are as they would be."""
    from surefoot.maths.objectives import Objective

    def act(request: Request) -> Act:
        silent = request.texts["ANSWER"] == "5" and request.sample > 0
        return Act(reply("I won't say.")) if silent else noisy(request)

    with JudgeServer(act) as server:
        source = judge(server, wordings=2, min_valid=3)
        with pytest.warns(UserWarning, match=r"left 1 of 4 .*fewer than 3 valid replies \(4 × no rating in the reply"):
            scores = source.score(["p"] * 4, ["2", "5", "7", "8"])
    assert scores[:, 0].isnan().tolist() == [False, True, False, False]
    assert bool(scores[1].isnan().all())
    groups = torch.zeros(4, dtype=torch.long)
    anchors = group_anchors(scores, groups)
    source.calibrate(scores, anchors)
    found = source.estimate(scores, anchors)
    assert found.scored.tolist() == [True, False, True, True]
    shaped = shape_rewards(source, Objective(weights="variance"), scores, anchors, groups, torch.zeros(4), 0.1)
    for values in (shaped.reward, shaped.weight, shaped.surcharge):
        assert values.isnan().tolist() == [False, True, False, False]
    without = scores[[0, 2, 3]]
    alone = source.estimate(without, group_anchors(without, groups[:3]))
    torch.testing.assert_close(found.mean[[0, 2, 3]], alone.mean)


def test_compared_with_a_reference_in_both_positions(judge: Make, tmp_path: Path) -> None:
    """A judge that gives the first position two points: the bias cancels, and is no variance."""

    def act(request: Request) -> Act:
        texts = request.texts
        first, second = (int(texts[f"{place} ANSWER"]) for place in ("FIRST", "SECOND"))
        return rated(min(max(4 + second - first - 2, 1), 7))

    path = tmp_path / "references.jsonl"
    path.write_text(json.dumps({"prompt": "p", "reference": "5"}) + "\n")
    with JudgeServer(act) as server:
        source = judge(server, samples=2, references=str(path))
        scores = source.score(["p"] * 3, ["4", "5", "6"])
        assert scores[:, 0].tolist() == [-1, 0, 1]
        assert scores[:, 2].tolist() == [0, 0, 0]
        assert len(server.requests) == 10  # where completion and reference are the same text, so are both positions
        source.save(tmp_path / "source")
        path.unlink()
        assert load_source(tmp_path / "source", judge=access(source)).score(["p"], ["6"])[0, 0] == 1
        with pytest.raises(DataError, match="row 1: there is no reference answer"):
            source.score(["p", "q"], ["4", "4"])


def test_half_a_pair_is_missing(judge: Make) -> None:
    act = lambda r: Act(reply("?")) if r.texts["FIRST ANSWER"] == "ref" and r.sample == 0 else rated(5)  # noqa: E731
    with JudgeServer(act) as server:
        source = judge(server, samples=3, references={"p": "ref"})
        assert source.score(["p"], ["mine"])[0, 3] == 2


def test_a_distribution_from_one_call(judge: Make) -> None:
    def act(request: Request) -> Act:
        assert request.body["logprobs"]
        tops = [{"token": str(number_in(request) + i), "logprob": math.log(p)} for i, p in enumerate((0.6, 0.3))]
        return Act(reply(tops[0]["token"], logprobs={"content": [{**tops[0], "top_logprobs": tops}]}))

    with JudgeServer(act) as server:
        source = judge(server, reading="logprobs")
        scores = source.score(["p"] * 2, ["3", "6"])
        assert len(server.requests) == 2
    expected = [[3 + 1 / 3, 3 + 1 / 3, 2 / 9, math.inf], [6 + 1 / 3, 6 + 1 / 3, 2 / 9, math.inf]]
    torch.testing.assert_close(scores, torch.tensor(expected))
    found = source.estimate(scores, group_anchors(scores, torch.tensor([0, 0])))
    torch.testing.assert_close(found.variance, torch.tensor([1 / 9, 1 / 9], dtype=torch.float64), rtol=1e-6, atol=0)
    with JudgeServer(lambda r: Act(reply("7"))) as server, pytest.warns(UserWarning, match="no log-probabilities"):
        assert bool(judge(server, reading="logprobs").score(["p"], ["3"]).isnan().all())


def test_judges_and_reward_models_as_members(judge: Make, tmp_path: Path) -> None:
    """Two judges and two members of another kind, whose scale is a hundred times larger."""
    other = FunctionMembers(
        lambda p, c: [[100.0 * int(x), 110.0 * int(x) + 90 * (x == "4")] for x in c], 2, name="models"
    )
    with JudgeServer(noisy) as server:
        judges = [judge(server, samples=2, name=name, temperature=t) for name, t in (("a", 1.0), ("b", 0.5))]
        source = MixedSources([*judges, other])
        assert (source.name, source.num_members) == ("a + b + models", 3)
        texts = ["2", "4", "6", "8"]
        scores = source.score(["p"] * 4, texts)
        assert scores[:, 2].tolist() == [210, 465, 630, 840]
        groups = torch.zeros(4, dtype=torch.long)
        anchors = group_anchors(scores, groups)
        with pytest.raises(DataError, match="mixes sources of different scales; calibrate it first"):
            source.estimate(scores, anchors)
        source.calibrate(scores, anchors)
        found = source.estimate(scores, anchors)
        assert float(found.variance.max()) < 0.2
        assert found.mean.argsort().tolist() == [0, 1, 2, 3]
        both = MixedSources(judges)
        scores = both.score(["p"] * 4, texts)
        anchors = group_anchors(scores, groups)
        both.calibrate(scores, anchors)
        both.save(tmp_path / "mixed")
        loaded = load_source(tmp_path / "mixed", judge=access(judges[0]))
        assert isinstance(loaded, MixedSources)
        assert loaded.scale_members
        again = loaded.estimate(loaded.score(["p"] * 4, texts), anchors)
        torch.testing.assert_close(again.variance, both.estimate(scores, anchors).variance)


@pytest.mark.parametrize("judged", ["reward", "variance"])
def test_a_judge_lends_or_borrows_a_variance(judged: str, judge: Make) -> None:
    """Its rows stand beside those of two members; anchors are split as the rows are, and nothing is asked to do so."""
    models = FunctionMembers(lambda p, c: [[float(x), 1.5 * float(x)] for x in c], 2, name="models")
    with JudgeServer(noisy) as server:
        rater = judge(server, wordings=2)
        sources: dict[str, RewardSource] = {"reward": models, "variance": models} | {judged: rater}
        scores = BorrowedVariance(**sources).score(["p"] * 4, ["2", "4", "6", "8"])
        paid = len(server.requests)
        source = BorrowedVariance(**sources)  # another process, which scored nothing
        anchors = Anchors(scores.double().mean(dim=0).expand(4, -1), "reference", torch.full((4,), 4.0))
        source.calibrate(scores, anchors)
        found = source.estimate(scores, anchors)
        assert len(server.requests) == paid
    split = 7 if judged == "reward" else 2
    mean = sources["reward"].estimate(scores[:, :split], anchors.columns(0, split)).mean
    known = sources["variance"].estimate(scores[:, split:], anchors.columns(split))
    torch.testing.assert_close(found.mean, mean)
    torch.testing.assert_close(found.variance, known.variance)
    assert found.anchor_kinds == ["reference"] * 4


@pytest.fixture
def preferences(tmp_path: Path) -> Path:
    rows = [{"prompt": f"question {i}", "chosen": f"{5 + i % 4}", "rejected": f"{1 + i % 3}"} for i in range(40)]
    path = tmp_path / "pairs.parquet"
    Dataset.from_list(rows).to_parquet(path)
    return path


def test_a_pair_with_an_unscored_side_stops_nothing(
    preferences: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its other side has no anchor of its own then, and takes the calibration set's."""

    def act(request: Request) -> Act:
        return Act(reply("I won't say.")) if request.texts["ANSWER"] == "3" else noisy(request)

    with JudgeServer(act) as server:
        words = ["--kind", "judge", "--model_name_or_path", "m", "--dataset_name", str(preferences)]
        words += ["--endpoint", server.endpoint, "--cache", str(tmp_path / "r.sqlite"), "--wordings", "2"]
        words += ["--samples", "2", "--held_out", "0.5", "--max_pairs", "10", "--output_dir", str(tmp_path / "run")]
        with warnings.catch_warnings():
            warnings.simplefilter("always")  # the command shows them as notes
            assert main(["reward", *words]) == 0
    assert "of 10 completions unscored" in capsys.readouterr().err
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert record["metrics"]["judge"]["replies_read"] < record["metrics"]["judge"]["replies"] == 80
    assert record["metrics"]["accuracy_of_mean"] == 1


@pytest.mark.slow
def test_the_commands(preferences: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Made, measured and calibrated by `surefoot reward`; scored and diagnosed from its directory; nothing twice."""
    with JudgeServer(noisy) as server:
        common = ["--kind", "judge", "--model_name_or_path", "m", "--dataset_name", str(preferences)]
        words = [*common, "--endpoint", server.endpoint, "--cache", str(tmp_path / "r.sqlite"), "--wordings", "2"]
        words += ["--samples", "2", "--held_out", "0.5", "--max_pairs", "10", "--output_dir", str(tmp_path / "run")]
        assert main(["reward", *words]) == 0
        printed = capsys.readouterr().out
        assert "an LLM judge" in printed
        assert "replies with a rating: 80 of 80 (100%)" in printed
        assert re.search(r"variance of one reply: \d\.\d{3} within wordings, -?\d\.\d{3} between them", printed)
        assert "an LLM judge" in (tmp_path / "run" / "source" / "README.md").read_text()
        record = json.loads((tmp_path / "run" / "record.json").read_text())
        assert record["metrics"]["held_out_pairs"] == 10
        assert record["metrics"]["accuracy_of_mean"] == 1
        assert record["metrics"]["calibration"]["reference_variance"] > 0
        source = str(tmp_path / "run" / "source")
        output = tmp_path / "scored.parquet"
        where = ["--judge_endpoint", server.endpoint, "--judge_cache", str(tmp_path / "r.sqlite")]
        words = ["--reward_source", source, "--dataset_name", str(preferences), "--output", str(output)]
        assert main(["score", *words, *where]) == 0
        assert "replies with a rating: 320 of 320 (100%)" in capsys.readouterr().out
        scored = Dataset.from_parquet(str(output))
        assert min(scored["margin_mean"]) > 0
        assert min(scored["chosen_variance"]) > 0
        paid = len(server.requests)
        assert set(server.seen.values()) == {1}
        assert (
            main(
                ["diagnose", "--reward_source", source, "--dataset_name", str(preferences), "--far_items", "0", *where]
            )
            == 0
        )
        assert len(server.requests) == paid
    capsys.readouterr()
    mixed = [*where, "--kind", "mixed", "--model_name_or_path", source, "--other_models", source]
    words = [*mixed, "--dataset_name", str(preferences), "--held_out", "0.5", "--output_dir", str(tmp_path / "mixed")]
    assert main(["reward", *words]) == 1
    assert "agree exactly" in capsys.readouterr().err
    assert main(["reward", *common, "--output_dir", str(tmp_path / "x"), "--rank", "3"]) == 1
    assert "kind: judge has no rank" in capsys.readouterr().err
