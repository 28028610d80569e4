"""Adaptive reading against a local judge: what is asked, when it stops, what is kept, and as a user calls it."""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from surefoot.cli.main import main
from surefoot.errors import ConfigError, DataError, ModelError
from surefoot.maths.objectives import Objective
from surefoot.rewards.anchors import group_anchors
from surefoot.rewards.kinds.adaptive_judge.config import AdaptiveJudgeConfig
from surefoot.rewards.kinds.adaptive_judge.source import AdaptiveJudge
from surefoot.rewards.kinds.judge.access import JudgeAccess
from surefoot.rewards.kinds.judge.config import JudgeConfig
from surefoot.rewards.kinds.judge.source import JudgeSource
from surefoot.rewards.registry import load_source
from surefoot.training.shaping import shape_rewards
from tests.rewards.kinds.judge.servers import Act, JudgeServer, Request, number_in, rated, reply

SAMPLES = 5


def luck(*what: object) -> int:
    """−1, 0 or 1, by its arguments alone."""
    return int(hashlib.sha256(repr(what).encode()).hexdigest(), 16) % 3 - 1


def judged(request: Request) -> Act:
    """The number in the answer, up to luck, and one point more in the second wording."""
    if "mute" in request.texts["ANSWER"]:
        return Act(reply("I won't say."))
    draw = luck(request.texts["REQUEST"], request.texts["ANSWER"], request.wording, request.sample)
    return rated(number_in(request) + draw + request.wording.startswith("Imagine"))


@pytest.fixture
def server() -> Iterator[JudgeServer]:
    with JudgeServer(judged) as running:
        yield running


@pytest.fixture
def make(server: JudgeServer, tmp_path: Path) -> Callable[..., AdaptiveJudge]:
    """Makes an adaptive judge at the server, calibrated on pairs of answers; settings of both by name."""

    def make(*, calibrated: bool = True, **settings: Any) -> AdaptiveJudge:
        own = {name: settings.pop(name) for name in ("mean_samples", "compare", "sure") if name in settings}
        usual: dict[str, Any] = {
            "endpoint": server.endpoint,
            "wordings": 1,
            "samples": SAMPLES,
            "structured": "none",
            "retries": 0,
            "timeout_s": 20.0,
            "cache": str(tmp_path / "replies.sqlite"),
        }
        source = AdaptiveJudge(JudgeSource("m", JudgeConfig(**(usual | settings))), AdaptiveJudgeConfig(**own))
        if calibrated:
            prompts = [f"calibration {i}" for i in range(20)]
            sides = source.score_pairs(prompts, ["5"] * 20, [str(3 + i % 4) for i in range(20)])
            rows = torch.cat(sides)
            source.calibrate(rows, group_anchors(rows, torch.arange(20).repeat(2), "dataset"))
        return source

    return make


def asked(server: JudgeServer, prompts: list[str]) -> Counter[tuple[str, str]]:
    """How often the server was asked of each completion of some prompts."""
    seen = Counter((request.texts["REQUEST"], request.texts["ANSWER"]) for request in server.requests)
    return Counter({key: count for key, count in seen.items() if key[0] in prompts})


def test_readings_go_to_the_comparisons_that_are_open(make: Callable[..., AdaptiveJudge], server: JudgeServer) -> None:
    source = make()
    prompts = [f"p{i}" for i in range(12)]
    # Of even prompts the second answer is far worse, of odd ones nearly as good.
    second = ["2" if i % 2 == 0 else "6 too" for i in range(12)]
    chosen, rejected = source.score_pairs(prompts, ["7"] * 12, second)
    counts = asked(server, prompts)
    clear = sum(count for (prompt, _), count in counts.items() if int(prompt[1:]) % 2 == 0)
    near = sum(count for (prompt, _), count in counts.items() if int(prompt[1:]) % 2 == 1)
    assert clear == 12, "one reading each"
    assert near > 2 * clear
    assert clear + near <= 2 * 24, "two on average"
    assert max(counts.values()) <= SAMPLES
    assert bool((chosen[::2, 0] > rejected[::2, 0]).all())
    assert source.readings_asked == clear + near
    assert source.completions_read == 24
    # Read less often, a reward is less sure.
    estimate = source.estimate(torch.cat([chosen, rejected]))
    texts = zip(prompts * 2, [*["7"] * 12, *second], strict=True)
    of_counts = torch.tensor([counts[text] for text in texts])
    assert estimate.variance[of_counts == 1].min() > estimate.variance[of_counts == SAMPLES].max()


def test_the_best_of_many_is_read_and_the_rest_is_not(make: Callable[..., AdaptiveJudge], server: JudgeServer) -> None:
    source = make(compare="best")
    answers = ["8 a", "8 b", *(f"2 {i}" for i in range(6))]
    source.score(["p"] * 8, answers)
    counts = asked(server, ["p"])
    assert all(counts["p", answer] == 1 for answer in answers[2:])
    assert counts["p", "8 a"] + counts["p", "8 b"] > 6


def test_a_pair_is_read_evenly_and_what_is_alone_as_often_as_the_mean(
    make: Callable[..., AdaptiveJudge], server: JudgeServer
) -> None:
    source = make(mean_samples=3)
    source.score(["p", "p", "q"], ["5 a", "5 b", "5"])
    counts = asked(server, ["p", "q"])
    assert counts["q", "5"] == 3
    assert abs(counts["p", "5 a"] - counts["p", "5 b"]) <= 1
    assert sum(counts.values()) <= 9


def test_equal_completions_are_read_as_one(make: Callable[..., AdaptiveJudge], server: JudgeServer) -> None:
    """They have the same replies, so they would stay open for ever and take the readings of others."""
    source = make()
    rows = source.score(["p", "q", "p", "p", "q", "p"], ["5", "7", "5", "6", "2", "5"])
    counts = asked(server, ["p", "q"])
    assert set(counts) == {("p", "5"), ("p", "6"), ("q", "7"), ("q", "2")}
    assert sum(counts.values()) <= 2 * 4
    assert counts["q", "7"] == counts["q", "2"] == 1
    assert (source.readings_asked, source.completions_read) == (sum(counts.values()), 4)
    held = rows.nan_to_num(-1.0)
    assert torch.equal(held[0], held[2])
    assert torch.equal(held[0], held[5])
    alone = make().score(["p", "p", "q", "q"], ["5", "6", "7", "2"]).nan_to_num(-1.0)
    assert torch.equal(alone, held[[0, 3, 1, 4]])


def test_nothing_is_asked_twice_and_the_result_is_the_same(
    make: Callable[..., AdaptiveJudge], server: JudgeServer
) -> None:
    source = make()
    texts = (["p"] * 4, ["5", "6", "5 too", "7"])
    first = source.score(*texts)
    before = len(server.requests)
    assert torch.equal(source.score(*texts).nan_to_num(-1.0), first.nan_to_num(-1.0))
    assert len(server.requests) == before


def test_before_calibration_everything_is_asked(make: Callable[..., AdaptiveJudge], server: JudgeServer) -> None:
    source = make(calibrated=False)
    rows = source.score(["p", "p"], ["5", "6"])
    assert set(asked(server, ["p"]).values()) == {SAMPLES}
    assert rows.shape == (2, source.num_columns)
    with pytest.raises(DataError, match="calibrate it first"):
        source.margins(rows[:1], rows[1:])


def test_calibration_finds_the_noise_and_later_ones_keep_it(make: Callable[..., AdaptiveJudge]) -> None:
    source = make(wordings=2)
    assert source.calibration is not None
    notes = dict(source.calibration.notes)
    # Luck is −1, 0 or 1: variance 2/3. A rejected answer is worth 3 to 6 against 5: mean of (difference²)/2 is 0.75.
    assert notes["reply_variance"] == pytest.approx(2 / 3, rel=0.25)
    assert notes["wording_variance"] < 0.15
    assert notes["spread_within_prompts"] == pytest.approx(0.75, rel=0.35)
    rows = source.score(["p"] * 4, ["5", "6", "5 too", "7"])
    again = source.calibrate(rows)
    assert {name: again.notes[name] for name in notes if name != "weight_cv"} == {
        name: value for name, value in notes.items() if name != "weight_cv"
    }


def test_a_wording_s_offset_is_no_reward(make: Callable[..., AdaptiveJudge], server: JudgeServer) -> None:
    """The second wording gives a point more; a completion that lacks it isn't worse for that."""
    source = make(wordings=2)
    rows = source.score(["p", "p"], ["5", "5 too"]).double()
    lacking = rows[:, 2:].clone()
    lacking[0, 4:7] = torch.tensor([torch.nan, torch.nan, 0.0])
    whole, partial = source._read(rows[:, 2:])[0][0], source._read(lacking)[0][0]
    assert abs(whole - partial) < 0.6
    assert source._read(lacking)[1][0] > source._read(rows[:, 2:])[1][0]


def test_what_can_t_be_read_is_asked_again_and_stays_unscored(
    make: Callable[..., AdaptiveJudge], server: JudgeServer
) -> None:
    source = make()
    with pytest.warns(UserWarning, match="left 1 of 3 completions unscored, with fewer than 1 valid"):
        rows = source.score(["p"] * 3, ["5", "7", "mute 5"])
    assert asked(server, ["p"])["p", "mute 5"] > 1
    estimate = source.estimate(rows)
    assert estimate.scored.tolist() == [True, True, False]
    assert estimate.variance.isnan().tolist() == [False, False, True]


def test_a_judge_that_tells_nothing_apart_warns(make: Callable[..., AdaptiveJudge]) -> None:
    source = make(calibrated=False)
    prompts = [f"n{i}" for i in range(12)]
    rows = torch.cat(source.score_pairs(prompts, ["5"] * 12, ["5"] * 12))
    with pytest.warns(UserWarning, match="tells completions of a prompt apart no better"):
        source.calibrate(rows, group_anchors(rows, torch.arange(12).repeat(2), "dataset"))
    assert source.estimate(source.score(["p", "p"], ["5", "6"])).scored.all()


def test_the_margin_s_sign_is_the_rewards(make: Callable[..., AdaptiveJudge]) -> None:
    source = make(mean_samples=2.5)
    prompts = [f"p{i}" for i in range(10)]
    chosen, rejected = source.score_pairs(prompts, [str(3 + i % 5) for i in range(10)], ["5 too"] * 10)
    margins = source.margins(chosen, rejected)
    differences = source.reward_of(chosen) - source.reward_of(rejected)
    # One prompt, two completions: the posterior of the difference is the difference of the posteriors.
    assert margins.mean.numpy() == pytest.approx(differences.numpy(), abs=1e-5)
    assert bool((margins.variance > 0).all())


def test_saved_and_loaded_it_asks_and_says_the_same(
    make: Callable[..., AdaptiveJudge], server: JudgeServer, tmp_path: Path
) -> None:
    source = make(compare="best", mean_samples=1.5)
    source.save(tmp_path / "saved")
    written = "".join(path.read_text() for path in (tmp_path / "saved").rglob("*.json"))
    assert "127.0.0.1" not in written
    access = JudgeAccess(endpoint=server.endpoint, cache=str(tmp_path / "other.sqlite"))
    loaded = load_source(tmp_path / "saved", judge=access)
    texts = (["p"] * 4, ["5", "6", "5 too", "7"])
    assert torch.equal(loaded.score(*texts).nan_to_num(-1.0), source.score(*texts).nan_to_num(-1.0))
    assert isinstance(loaded, AdaptiveJudge)
    assert loaded.config == source.config


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"mean_samples": 0.5}, "at least 1"),
        ({"mean_samples": 6}, "only samples: 5"),
        ({"compare": "all"}, "others, best"),
        ({"sure": 0.4}, "above 0.5"),
        ({"samples": 1, "mean_samples": 1}, "at least two samples"),
        ({"reading": "logprobs"}, "reading: samples"),
    ],
)
def test_settings_that_can_t_be(make: Callable[..., AdaptiveJudge], settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        make(calibrated=False, **settings)


def test_it_reads_judges_only(make: Callable[..., AdaptiveJudge], tmp_path: Path) -> None:
    make().save(tmp_path / "saved")
    panel = {"kind": "adaptive_judge", "name": "inner", "sources": ["judge"], "config": {}}
    inner = tmp_path / "saved" / "judge"
    shutil.copytree(inner, inner / "judge")
    (inner / "source.json").write_text(json.dumps(panel))
    access = JudgeAccess(endpoint="http://127.0.0.1:1/v1")
    with pytest.raises(ModelError, match="reads a judge, and 'inner' is of kind adaptive_judge"):
        load_source(tmp_path / "saved", judge=access)


def test_it_trains_weighted(make: Callable[..., AdaptiveJudge]) -> None:
    """As a trainer uses it: calibrated on completions of the reference policy, then shaped with weights."""
    source = make()
    groups = torch.arange(8) // 4
    rows = source.score(["p"] * 4 + ["q"] * 4, ["5", "6", "5 too", "7"] * 2)
    source.calibrate(rows, group_anchors(rows, groups))
    assert source.calibration is not None
    anchors = group_anchors(rows, groups)
    shaped = shape_rewards(source, Objective(weights="variance"), rows, anchors, groups, torch.zeros(8), 0.1)
    variance = source.estimate(rows).variance
    assert shaped.weight.numpy() == pytest.approx((variance / variance.mean()).clamp(0.1, 10).numpy(), rel=1e-4)
    assert len(shaped.weight.unique()) > 1


def test_reward_and_score_commands(make: Callable[..., AdaptiveJudge], server: JudgeServer, tmp_path: Path) -> None:
    rows = [{"prompt": f"r{i}", "chosen": "6", "rejected": str(3 + i % 4)} for i in range(40)]
    Dataset.from_list(rows).to_json(tmp_path / "pairs.jsonl")
    common = ["--dataset_name", str(tmp_path / "pairs.jsonl"), "--held_out", "0.5"]
    cache = ["--cache", str(tmp_path / "replies.sqlite")]
    main(
        ["reward", "--kind", "judge", "--model_name_or_path", "m", "--endpoint", server.endpoint, "--wordings", "1",
         "--samples", "5", "--structured", "none", *cache, *common, "--output_dir", str(tmp_path / "judge")]
    )  # fmt: skip
    before = len(server.requests)
    access = ["--judge_endpoint", server.endpoint, "--judge_cache", str(tmp_path / "replies.sqlite")]
    main(
        ["reward", "--kind", "adaptive_judge", "--model_name_or_path", str(tmp_path / "judge" / "source"), *access,
         "--mean_samples", "2", *common, "--output_dir", str(tmp_path / "adaptive")]
    )  # fmt: skip
    assert len(server.requests) == before, "its calibration takes the judge's replies from the cache"
    fresh = [{"prompt": f"new {i}", "chosen": "6", "rejected": str(3 + i % 4)} for i in range(30)]
    Dataset.from_list(fresh).to_json(tmp_path / "fresh.jsonl")
    main(
        ["score", "--reward_source", str(tmp_path / "adaptive" / "source"), *access, "--dataset_name",
         str(tmp_path / "fresh.jsonl"), "--output", str(tmp_path / "scored.jsonl")]
    )  # fmt: skip
    assert len(server.requests) - before <= 2 * 60
    scored = [json.loads(line) for line in (tmp_path / "scored.jsonl").read_text().splitlines()]
    assert len(scored) == 30
    assert all(row["margin_variance"] > 0 for row in scored)
