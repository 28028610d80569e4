"""A panel against local judges: what one family makes of answers shows between families; saved, missing, commanded."""

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from torch import Tensor

from surefoot.cli.main import main
from surefoot.errors import ConfigError, DataError, ModelError
from surefoot.maths.objectives import Objective
from surefoot.rewards.anchors import group_anchors
from surefoot.rewards.kinds.function import FunctionMembers
from surefoot.rewards.kinds.judge.access import JudgeAccess
from surefoot.rewards.kinds.judge.config import JudgeConfig
from surefoot.rewards.kinds.judge.source import JudgeSource
from surefoot.rewards.kinds.panel.config import PanelConfig
from surefoot.rewards.kinds.panel.source import PanelSource
from surefoot.rewards.registry import load_source
from surefoot.training.shaping import shape_rewards
from surefoot.types import Anchors
from tests.rewards.kinds.judge.servers import Act, JudgeServer, Request, number_in, rated, reply

TEXTS = [f"{worth} {style}" for worth in (2, 4, 6) for style in ("plain", "florid")]
"""Answers worth their number."""
GROUPS = torch.arange(12) // 6


def luck(*what: object) -> int:
    """−1, 0 or 1, by its arguments alone."""
    return int(hashlib.sha256(repr(what).encode()).hexdigest(), 16) % 3 - 1


def judged(request: Request) -> Act:
    """Model b likes florid answers, in all its wordings and replies; model c rates two points lower; all are noisy."""
    model, answer = request.body["model"], request.texts["ANSWER"]
    rating = number_in(request) + luck(model, answer, request.wording, request.sample, request.texts["REQUEST"])
    rating += 2 * (model == "b" and "florid" in answer) + (0 if model == "c" else 2)
    return Act(reply("I won't say.")) if model == "mute" else rated(min(max(rating, 1), 9))


@pytest.fixture
def server() -> Iterator[JudgeServer]:
    with JudgeServer(judged) as running:
        yield running


@pytest.fixture
def make(server: JudgeServer, tmp_path: Path) -> Callable[..., PanelSource]:
    """Makes a panel of models at the server: two wordings, two samples, a cache of the test's own."""

    def judge(model: str) -> JudgeSource:
        config = JudgeConfig(
            endpoint=server.endpoint,
            wordings=2,
            samples=2,
            structured="none",
            retries=0,
            timeout_s=20.0,
            cache=str(tmp_path / "replies.sqlite"),
        )
        return JudgeSource(model, config, name=model)

    return lambda models, *families: PanelSource([judge(model) for model in models], families or None)


def rows_of(source: PanelSource) -> tuple[Tensor, Anchors]:
    """Two prompts with six answers each, which are their own anchor."""
    scores = source.score(["p"] * 6 + ["q"] * 6, TEXTS * 2)
    return scores, group_anchors(scores, GROUPS)


def test_a_family_s_bias_shows_between_families_alone(make: Callable[..., PanelSource]) -> None:
    """Judge b likes florid answers, which its own wordings and replies agree about; d in its place is fair."""
    between, within, own = [], [], []
    for models in (["a", "d", "c"], ["a", "b", "c"]):
        source = make(models)
        scores, anchors = rows_of(source)
        source.calibrate(scores, anchors)
        parts = source.components(scores, anchors)
        between.append(float(parts.between.mean()))
        within.append(float(parts.within.mean()))
        logged = source.variance_parts(scores, anchors)
        assert logged == pytest.approx({"between_families": between[-1], "within_families": within[-1]})
        assert source.calibration is not None
        assert source.calibration.notes["variance_between_families"] == pytest.approx(between[-1])
        alone = scores[:, source._parts[1]]
        own.append(float(source.judges[1].components(alone, group_anchors(alone, GROUPS)).mean.mean()))
    assert between[1] > 4 * abs(between[0])
    assert within[1] < 2 * within[0]
    assert own[1] < 2 * own[0]
    reliability = source.reliabilities()["reliability"]
    assert reliability[1] == min(reliability)
    assert source.reliabilities()["weight"][1] == min(source.reliabilities()["weight"])


def test_offsets_and_scales_are_the_judges_own(make: Callable[..., PanelSource]) -> None:
    """Rewards are in the judges' common unit; a judge that rates everything two points lower disagrees with nobody."""
    source = make(["a", "c"])
    scores, anchors = rows_of(source)
    with pytest.raises(DataError, match="holds judges of different scales; calibrate it first"):
        source.estimate(scores, anchors)
    source.calibrate(scores, anchors)
    assert source.offsets[0] - source.offsets[1] == pytest.approx(2, abs=0.5)
    found = source.estimate(scores, anchors)
    for j, column in enumerate(source.judged(scores, anchors).rewards.T):
        judge = source.judges[j]
        mine = scores[:, source._parts[j]]
        own = judge.components(mine, group_anchors(mine, GROUPS))
        level = own.wordings.nanmean(dim=1)
        torch.testing.assert_close(
            column, (level - level.view(2, 6).mean(dim=1).repeat_interleave(6)) / source.scales[j]
        )
    lower = scores.clone()
    means = [k for part in source._parts[1:] for k in (part.start, *range(part.start + 1, part.stop, 3))]
    lower[:, means] -= 2
    again = source.estimate(lower, group_anchors(lower, GROUPS))
    torch.testing.assert_close(again.variance, found.variance, rtol=1e-5, atol=0)
    torch.testing.assert_close(found.members.mean(dim=1), found.mean)  # type: ignore[union-attr]
    margins = source.margins(scores[:6], scores[6:])
    torch.testing.assert_close(margins.mean, source.reward_of(scores[:6]) - source.reward_of(scores[6:]))
    without = source.estimate(scores)
    assert without.anchor_kinds == ["calibration"] * 12
    torch.testing.assert_close(without.mean, source.reward_of(scores))


def test_missing_judges(make: Callable[..., PanelSource]) -> None:
    """Two families are enough and give the reward that they give alone; one is no panel, and its row unscored."""
    source = make(["a", "b", "c"])
    scores, anchors = rows_of(source)
    source.calibrate(scores, anchors)
    _, b, c = source._parts
    scores[0, c], scores[1, b], scores[1, c], scores[2] = math.nan, math.nan, math.nan, math.nan
    found = source.estimate(scores, anchors)
    assert found.scored.tolist() == [True, False, False] + [True] * 9
    assert found.variance.isnan().tolist() == [False, True, True] + [False] * 9
    assert found.members is not None
    assert found.members.isnan().sum(dim=1).tolist() == [1, 3, 3] + [0] * 9
    assert found.degrees_of_freedom is not None
    assert found.degrees_of_freedom[0] == 1
    weight = source.reliabilities()["weight"]
    own = source.judged(scores, anchors)
    expected = (weight[0] * own.rewards[0, 0] + weight[1] * own.rewards[0, 1]) / (weight[0] + weight[1])
    level = sum(w * x for w, x in zip(weight, own.anchors[0], strict=True))
    torch.testing.assert_close(found.mean[0], expected + level)
    shaped = shape_rewards(source, Objective(weights="variance"), scores, anchors, GROUPS, torch.zeros(12), 0.1)
    for values in (shaped.reward, shaped.weight, shaped.surcharge):
        assert values.isnan().tolist() == [False, True, True] + [False] * 9
    margin = source.margins(scores[6:9], scores[:3])
    assert margin.mean.isnan().tolist() == [False, True, True]
    assert source.reward_of(scores)[:3].isnan().tolist() == [False, True, True]
    anchors.rows[:, c] = math.nan  # no anchor of judge c: its mean over the calibration set
    fallen = source.judged(scores, anchors)
    torch.testing.assert_close(fallen.rewards[3, :2], own.rewards[3, :2])
    torch.testing.assert_close(fallen.anchors[3, 2] * source.scales[2], torch.tensor(source.offsets[2]).double())


def test_a_judge_that_says_nothing_can_t_be_calibrated(make: Callable[..., PanelSource]) -> None:
    source = make(["a", "b"])
    scores, anchors = rows_of(source)
    scores[:, source._parts[1]] = math.nan
    with pytest.raises(DataError, match="wording 0 of 'b' rated none of the 12 calibration rows"):
        source.calibrate(scores, anchors)
    assert source.calibration is None


def test_families(make: Callable[..., PanelSource]) -> None:
    """The model's name where none is given; a bias that two judges share is one voice's."""
    assert make(["a", "b"]).families == ("a", "b")
    with pytest.raises(ConfigError, match="at least two families, got a; wordings and replies of one model share"):
        make(["a", "a"])
    with pytest.raises(ConfigError, match="one for each judge: 2 judges, 3 families"):
        make(["a", "b"], "x", "y", "z")
    with pytest.raises(ModelError, match=r"'models' is of kind .*; kind: mixed takes any sources"):
        PanelSource([FunctionMembers(lambda p, c: [[1.0, 2.0] for _ in c], 2, name="models")])
    source = make(["a", "c", "b"], "x", "x", "y")
    scores, anchors = rows_of(source)
    source.calibrate(scores, anchors)
    assert source.reliabilities()["weight"] == [0.25, 0.25, 0.5]
    assert all(math.isnan(value) for value in source.reliabilities()["reliability"])
    assert source.estimate(scores, anchors).degrees_of_freedom.tolist() == [1] * 12  # type: ignore[union-attr]


def test_the_variance_is_raw_unless_moderation_is_asked_for(make: Callable[..., PanelSource]) -> None:
    """A prior draws the variances of completions together: what one of them differs by shows less."""
    source = make(["a", "b", "c"])
    assert PanelConfig().variance == source.variance_kind == "raw"
    scores, anchors = rows_of(source)
    source.calibrate(scores, anchors)
    raw, parts = source.estimate(scores, anchors).variance, source.components(scores, anchors)
    torch.testing.assert_close(raw, parts.share * parts.between.clamp(min=0) + parts.within)
    source.variance_kind = "moderated"
    moderated = source.estimate(scores, anchors).variance
    assert (moderated - parts.within).std() < 0.7 * (raw - parts.within).std()


def test_saved_and_loaded(make: Callable[..., PanelSource], server: JudgeServer, tmp_path: Path) -> None:
    source = make(["a", "b", "c"], "x", "y", "z")
    scores, anchors = rows_of(source)
    source.calibrate(scores, anchors)
    source.save(tmp_path / "panel")
    assert server.endpoint not in "".join(path.read_text() for path in (tmp_path / "panel").rglob("*.json"))
    access = {m: JudgeAccess(server.endpoint, cache=str(tmp_path / "replies.sqlite")) for m in "abc"}
    loaded = load_source(tmp_path / "panel", judge=access)
    assert isinstance(loaded, PanelSource)
    assert loaded.families == ("x", "y", "z")
    assert loaded.calibration == source.calibration
    assert loaded.reliabilities() == source.reliabilities()
    paid = len(server.requests)
    torch.testing.assert_close(loaded.score(["p"] * 6, TEXTS), scores[:6], equal_nan=True)
    assert len(server.requests) == paid
    found, again = source.estimate(scores, anchors), loaded.estimate(scores, anchors)
    torch.testing.assert_close(again.mean, found.mean)
    torch.testing.assert_close(again.variance, found.variance)
    held = json.loads((tmp_path / "panel" / "source.json").read_text())
    for change, error, said in (
        ({"families": ["x", "x", "x"]}, ConfigError, "at least two families"),
        ({"families": "xyz"}, ModelError, "families must be a list of names, got 'xyz'"),
        ({"variance": "none"}, ModelError, "variance must be moderated or raw, got 'none'"),
    ):
        changed = held | {"config": held["config"] | change}
        (tmp_path / "panel" / "source.json").write_text(json.dumps(changed))
        with pytest.raises(error, match=said):
            load_source(tmp_path / "panel", judge=access)
    two = make(["a", "b"])
    two.calibration = source.calibration
    with pytest.raises(DataError, match="is of 6 wordings, but its judges have 4; calibrate it again"):
        two.estimate(scores[:, : two.num_columns])


def test_the_commands(
    make: Callable[..., PanelSource],
    server: JudgeServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Made of saved judges and measured by `surefoot reward`; diagnosed from its directory; no reply is paid twice."""
    preferences = tmp_path / "pairs.parquet"
    pairs = [{"prompt": f"question {i}", "chosen": f"{5 + i % 4}", "rejected": f"{1 + i % 3}"} for i in range(20)]
    Dataset.from_list(pairs).to_parquet(preferences)
    for judge in make(["a", "b", "c"]).judges:
        judge.save(tmp_path / judge.model)
    where = ["--judge_endpoint", server.endpoint, "--judge_cache", str(tmp_path / "replies.sqlite")]
    a, b, c = (str(tmp_path / model) for model in "abc")
    words = ["--kind", "panel", "--model_name_or_path", a, "--other_models", b, c, "--families", "x", "y", "z"]
    words += ["--dataset_name", str(preferences), "--held_out", "0.5", "--output_dir", str(tmp_path / "run")]
    assert main(["reward", *words, *where]) == 0
    printed = capsys.readouterr().out
    assert "a panel of 3 LLM judges of 3 families" in printed
    assert re.search(r"replies with a rating: (\d+) of \1\n", printed)
    assert re.search(r"variance between families: -?\d\.\d{3}; noise of their weighted mean: \d\.\d{3}", printed)
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert record["metrics"]["accuracy_of_mean"] == 1
    assert set(record["metrics"]["calibration"]["notes"]) >= {"judge_0_weight", "judge_2_reliability"}
    paid = len(server.requests)
    words = ["--reward_source", str(tmp_path / "run" / "source"), "--far_items", "0"]
    assert main(["diagnose", *words, "--output_dir", str(tmp_path / "diagnosis"), *where]) == 0
    assert len(server.requests) == paid
    assert "Judges of the panel" in capsys.readouterr().out
    figures = json.loads((tmp_path / "diagnosis" / "diagnose.json").read_text())["panel"]
    assert [judge["family"] for judge in figures["judges"]] == ["x", "y", "z"]
    assert "κ of mistakes" in (tmp_path / "diagnosis" / "diagnose.html").read_text()


def test_the_accuracy_is_that_of_the_weighted_mean(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], make: Callable[..., PanelSource]
) -> None:
    """a and b are one voice against c. In the even pairs the plain mean of the three is wrong, the weighted one isn't:
    margins of about −1, −2 and 2 in units of their scales."""
    ratings = {"a": ((4, 6), (2, 7)), "b": ((3, 7), (7, 3)), "c": ((7, 3), (7, 3))}

    def act(request: Request) -> Act:
        side, pair = request.texts["ANSWER"].split()
        return rated(ratings[request.body["model"]][int(pair) % 2][side == "bad"])

    preferences = tmp_path / "pairs.parquet"
    pairs = [{"prompt": f"q{i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(8)]
    Dataset.from_list(pairs).to_parquet(preferences)
    for judge in make(["a", "b", "c"]).judges:
        judge.save(tmp_path / judge.model)
    a, b, c = (str(tmp_path / model) for model in "abc")
    words = ["--kind", "panel", "--model_name_or_path", a, "--other_models", b, c, "--families", "x", "x", "y"]
    words += ["--dataset_name", str(preferences), "--dataset_train_split", "train", "--dataset_test_split", "train"]
    with JudgeServer(act) as server:
        where = ["--judge_endpoint", server.endpoint, "--judge_cache", str(tmp_path / "others.sqlite")]
        assert main(["reward", *words, "--output_dir", str(tmp_path / "run"), *where]) == 0
    metrics = json.loads((tmp_path / "run" / "record.json").read_text())["metrics"]
    assert metrics["accuracy_of_members"] == [0, 0.5, 1]
    assert metrics["accuracy_of_mean"] == 1
    assert "their weighted mean" in capsys.readouterr().out
