"""Within and between wordings: unbiased, anchored, split; s² and s²/n; moderated; missing replies."""

import math
from dataclasses import replace

import pytest
import torch

from surefoot.errors import ConfigError, DataError, VarianceError
from surefoot.maths import ensemble
from surefoot.rewards.anchors import AnchorStore, group_anchors
from surefoot.rewards.kinds.judge.config import JudgeConfig
from surefoot.rewards.kinds.judge.estimate import Components, Readings
from surefoot.rewards.kinds.judge.rubrics import Rubric
from surefoot.rewards.kinds.judge.source import JudgeSource
from surefoot.types import Anchors


def judge(wordings: int = 3, samples: int = 4, **settings: object) -> JudgeSource:
    rubric = Rubric("r", 1, 9, tuple(f"wording {i}" for i in range(wordings)))
    settings = {"cache": "unused.sqlite", "samples": samples} | settings
    return JudgeSource("m", JudgeConfig(**settings), rubric=rubric)  # type: ignore[arg-type]


def rows(x: torch.Tensor) -> torch.Tensor:
    """Scored rows of replies (batch, wordings, samples), NaN where missing."""
    mean = x.nanmean(dim=2)
    count = (~x.isnan()).sum(dim=2).to(x)
    square = (x - mean[..., None]).square().nansum(dim=2)
    variance = torch.where(count > 1, square / (count - 1), torch.nan)
    columns = torch.stack([mean, variance, count], dim=2).flatten(1)
    return torch.cat([mean.nanmean(dim=1, keepdim=True), columns], dim=1)


def drawn(groups: int, size: int, wordings: int, samples: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Replies with known variances: interaction 0.5, noise 2; wordings' constants per prompt are large."""
    stream = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=stream)

    quality, constant = normal(groups, size, 1, 1), 5 * normal(groups, 1, wordings, 1)
    x = quality + constant + math.sqrt(0.5) * normal(groups, size, wordings, 1)
    x = x + math.sqrt(2.0) * normal(groups, size, wordings, samples)
    return x.reshape(groups * size, wordings, samples), torch.arange(groups).repeat_interleave(size)


def own(scores: torch.Tensor, groups: torch.Tensor) -> Anchors:
    """Each group as its own anchor."""
    return group_anchors(scores, groups)


def noise_in_group(variances: torch.Tensor, size: int) -> torch.Tensor:
    """Variance of each of `size` independent values minus their mean, by definition: Σⱼ (1[i = j] − 1/size)² vⱼ."""
    coefficients = (torch.eye(size, dtype=torch.float64) - 1 / size).square()
    return (variances.reshape(-1, size) @ coefficients).flatten()


def reference(groups: int, size: int, completions: int, seed: int = 0) -> tuple[torch.Tensor, Anchors]:
    """Scored rows of `size` completions of each prompt, and anchors of as many others of the same prompts."""
    x, _ = drawn(groups, size + completions, 3, 4, seed)
    parts = rows(x).reshape(groups, size + completions, -1)
    scores, others = parts[:, :size].flatten(0, 1), parts[:, size:].mean(dim=1).repeat_interleave(size, dim=0)
    return scores, Anchors(others, "reference", torch.full((len(scores),), float(completions)))


def test_a_hand_worked_value() -> None:
    """Two completions, two wordings, two replies each."""
    x = torch.tensor([[[2.0, 4.0], [6.0, 6.0]], [[1.0, 1.0], [3.0, 5.0]]], dtype=torch.float64)
    found = judge(2, 2).components(rows(x), own(rows(x), torch.tensor([0, 0])))
    # Means 3, 6 and 1, 4; centred 1, 1 and −1, −1. s² pooled: (2 + 0)/2 = 1 and (0 + 2)/2 = 1.
    torch.testing.assert_close(found.spread, torch.zeros(2, dtype=torch.float64))
    torch.testing.assert_close(found.within, torch.tensor([0.5, 0.5], dtype=torch.float64))  # (1 − 2/2)·1 + 1/2
    torch.testing.assert_close(found.noise, torch.tensor([0.25, 0.25], dtype=torch.float64))
    torch.testing.assert_close(found.between, torch.tensor([-0.25, -0.25], dtype=torch.float64))
    torch.testing.assert_close(found.reply, torch.tensor([0.25, 0.25], dtype=torch.float64))
    torch.testing.assert_close(found.mean, torch.zeros(2, dtype=torch.float64))
    torch.testing.assert_close(found.wordings.mean(dim=1), torch.tensor([4.5, 2.5], dtype=torch.float64))


def test_a_hand_worked_value_with_a_reference_anchor() -> None:
    """One completion, two wordings of two replies; the anchor is the mean over four other completions."""
    x = torch.tensor([[[2.0, 4.0], [6.0, 6.0]]], dtype=torch.float64)
    anchor = torch.tensor([[3.0, 1.0, 4.0, 2.0, 5.0, 2.0, 2.0]], dtype=torch.float64)
    found = judge(2, 2).components(rows(x), Anchors(anchor, "reference", torch.tensor([4.0])))
    # Means 3, 6 less 1, 5: 2 and 1. s² pooled: 1; the anchor's: (4 + 2)/2 = 3, of which each mean keeps a half.
    wanted = {
        "spread": 0.5, "within": 1 + 3 / 4, "noise": 1 / 2 + 3 / 8, "between": 0.5 - 7 / 8,
        "reply": 0.5 + 7 / 8, "mean": 0.25,
    }  # fmt: skip
    for name, value in wanted.items():
        assert float(getattr(found, name)) == pytest.approx(value, rel=1e-12), name
    assert found.wordings.tolist() == [[5.0, 4.0]]  # the anchor's mean over wordings, 3, is given back


def assert_unbiased(found: Components, size: int, factor: float) -> None:
    """Each component within 4 standard errors of `factor` times its variance in `drawn`."""
    wanted = {"within": 2.0, "between": 0.5, "noise": 0.5, "reply": 2.5, "mean": (0.5 + 2 / 4) / 3}
    for name, value in wanted.items():
        seen = getattr(found, name).reshape(-1, size).mean(dim=1)
        error = float(seen.std(correction=1)) / math.sqrt(len(seen))
        assert abs(float(seen.mean()) - factor * value) < 4 * error, name
    assert bool((found.between < 0).any())  # unbiased, so not cut at 0


@pytest.mark.parametrize("size", [2, 4])
def test_components_are_unbiased_within_a_group(size: int) -> None:
    """Over 40,000 rows; a reward less its own group's mean has 1 − 1/G of its variance."""
    x, groups = drawn(40_000 // size, size, 3, 4)
    assert_unbiased(judge().components(rows(x), own(rows(x), groups)), size, 1 - 1 / size)


@pytest.mark.parametrize("completions", [1, 2, 8])
def test_components_are_unbiased_with_independent_anchors(completions: int) -> None:
    """Over 20,000 rows; a reward less the mean of M others has 1 + 1/M of its variance."""
    scores, anchors = reference(10_000, 2, completions)
    assert_unbiased(judge().components(scores, anchors), 2, 1 + 1 / completions)


@pytest.mark.parametrize("settings", [{}, {"variance_of": "mean"}, {"variance": "raw"}])
def test_siblings_mean_nothing_with_reference_anchors(settings: dict[str, str]) -> None:
    """Adding, removing or changing other completions of the prompt leaves a completion's variance as it was."""
    scores, anchors = reference(30, 4, 3)
    source = judge(**settings)
    source.calibrate(scores, anchors)
    found = source.estimate(scores, anchors)
    assert set(found.anchor_kinds) == {"reference"}
    first = torch.arange(0, len(scores), 4)
    alone = source.estimate(scores[first], replace(anchors, rows=anchors.rows[first], count=anchors.count[first]))
    other = scores.clone()
    other[1::4] = torch.nan
    other[2::4] += 3.0
    changed = source.estimate(other, anchors)
    for seen in (alone.variance, changed.variance[first]):
        torch.testing.assert_close(seen, found.variance[first], rtol=0, atol=1e-12)
    for mean in (alone.mean, changed.mean[first]):
        torch.testing.assert_close(mean, found.mean[first], rtol=0, atol=1e-12)


def test_a_constant_of_a_wording_moves_its_anchor_along() -> None:
    scores, anchors = reference(30, 4, 3)
    stream = torch.Generator().manual_seed(4)
    constants = 10 * torch.randn(30, 3, dtype=torch.float64, generator=stream).repeat_interleave(4, dim=0)

    def moved(x: torch.Tensor) -> torch.Tensor:
        y = x.clone()
        y[:, 1::3] += constants
        y[:, 0] += constants.mean(dim=1)
        return y

    source, other = judge(), judge()
    beyond = replace(anchors, rows=moved(anchors.rows))
    fitted = source.calibrate(scores, anchors)
    assert other.calibrate(moved(scores), beyond).reference_variance == pytest.approx(fitted.reference_variance)
    a, b = source.estimate(scores, anchors), source.estimate(moved(scores), beyond)
    torch.testing.assert_close(a.variance, b.variance, rtol=1e-9, atol=1e-12)
    assert a.members is not None
    assert b.members is not None
    torch.testing.assert_close(b.members - a.members, constants.mean(dim=1, keepdim=True).expand(-1, 3))


def test_a_missing_anchor_falls_back_on_the_calibration() -> None:
    """A prompt whose reference completions were all left unscored: its rows read as if no anchor were given."""
    scores, _ = reference(4, 2, 3)
    drawn_rows, _ = drawn(4, 3, 3, 4, seed=1)
    replies = rows(drawn_rows)
    replies[:3] = torch.nan
    store = AnchorStore("m on r", 3)
    store.add(["a", "b", "c", "d"], replies)
    anchors = store.of(["a", "a", "b", "b", "c", "c", "d", "d"])
    source = judge()
    with pytest.raises(DataError, match="row 0 has no anchor"):
        source.estimate(scores, anchors)
    source.calibrate(scores, anchors)
    found, plain = source.estimate(scores, anchors), source.estimate(scores)
    assert found.anchor_kinds == ["calibration"] * 2 + ["reference"] * 6
    torch.testing.assert_close(found.variance[:2], plain.variance[:2])
    torch.testing.assert_close(found.mean[:2], plain.mean[:2])
    assert float((found.variance[2:] - plain.variance[2:]).abs().min()) > 1e-6


def test_an_anchor_that_lacks_replies_is_noisier() -> None:
    """Its noise is s² over all its replies: four in the first wording (one completion has none), else eight."""
    anchored = torch.tensor([[[1.0, 3.0, 1.0, 3.0], [5.0, 7.0, 5.0, 7.0]], [[math.nan] * 4, [4.0, 6.0, 4.0, 6.0]]])
    store = AnchorStore("m on r", 2)
    store.add(["p"], rows(anchored.double()))
    x = torch.tensor([[[2.0, 2.0, 2.0, 2.0], [6.0, 6.0, 6.0, 6.0]]], dtype=torch.float64)
    found = judge(2, 4).components(rows(x), store.of(["p"]))
    # The row's own s² is 0 and the anchor's 4/3, so the noise is the mean of (4/3)/4 and (4/3)/8.
    assert float(found.noise) == pytest.approx((4 / 3 / 4 + 4 / 3 / 8) / 2, rel=1e-6)


def test_reliability_needs_four_wordings() -> None:
    x, groups = drawn(100, 2, 3, 2)
    assert "reliability" not in judge(3, 2).calibrate(rows(x), own(rows(x), groups)).notes
    stream = torch.Generator().manual_seed(0)
    groups = torch.arange(100).repeat_interleave(4)
    scale = 3.0 ** (groups % 4)  # variances that truly differ between prompts
    x = scale[:, None, None] * torch.randn(400, 6, 2, dtype=torch.float64, generator=stream)
    source = judge(6, 2)
    scores = rows(x)
    anchors = own(scores, groups)
    found = source.calibrate(scores, anchors).notes["reliability"]
    means = x.mean(dim=2)
    assert found == pytest.approx(ensemble.reliability(means - own(means, groups).rows))
    assert 0.8 < found < 1
    lone = source.calibrate(scores).notes["reliability"]
    assert lone == pytest.approx(ensemble.reliability(means - means.mean(dim=0)))


def test_s2_and_s2_over_n_are_the_errors_they_say() -> None:
    """s²/n is the variance of the estimated margin about the true one; s² that of a single reply's."""
    size = 2
    stream = torch.Generator().manual_seed(3)
    x, groups = drawn(20_000, size, 3, 4, seed=3)
    truth = torch.randn(20_000, size, 1, 1, dtype=torch.float64, generator=stream)  # the first that `drawn` draws
    margins = judge(variance_of="mean").margins(rows(x)[0::2], rows(x)[1::2])
    errors = margins.mean - (truth[:, 0] - truth[:, 1]).flatten()
    assert float(margins.variance.mean()) == pytest.approx(float(errors.square().mean()), rel=0.04)
    single = judge(variance_of="reply").margins(rows(x)[0::2], rows(x)[1::2])
    one = (x[0::2, 0, 0] - x[1::2, 0, 0]) - (truth[:, 0] - truth[:, 1]).flatten()
    assert float(single.variance.mean()) == pytest.approx(float(one.square().mean()), rel=0.04)
    estimate = judge().estimate(rows(x), own(rows(x), groups))
    assert float((estimate.mean[0::2] - estimate.mean[1::2] - margins.mean).abs().max()) < 1e-4


def test_what_a_wording_adds_to_a_prompt_is_no_variance() -> None:
    x, groups = drawn(50, 4, 3, 4)
    stream = torch.Generator().manual_seed(9)
    constants = 10 * torch.randn(50, 1, 3, 1, dtype=torch.float64, generator=stream)
    moved = (x.reshape(50, 4, 3, 4) + constants).reshape(x.shape)
    source = judge()
    found, other = (source.estimate(rows(y), own(rows(y), groups)) for y in (x, moved))
    torch.testing.assert_close(other.variance, found.variance, rtol=1e-9, atol=1e-9)
    a, b = (source.margins(rows(y)[0::2], rows(y)[1::2]) for y in (x, moved))
    torch.testing.assert_close(a.mean, b.mean)
    torch.testing.assert_close(a.variance, b.variance, rtol=1e-9, atol=1e-9)


def test_the_order_of_wordings_means_nothing() -> None:
    x, groups = drawn(20, 4, 3, 4)
    source = judge()
    a, b = (source.estimate(rows(y), own(rows(y), groups)) for y in (x, x.flip(1)))
    torch.testing.assert_close(a.mean, b.mean)
    torch.testing.assert_close(a.variance, b.variance)


def test_with_one_reply_each_wordings_are_members() -> None:
    """Then the judge is an ensemble: the same mean, variance, members and margins."""
    x, groups = drawn(30, 4, 3, 1)
    source = judge(3, 1, variance="raw")
    found = source.estimate(rows(x), own(rows(x), groups))
    wanted = ensemble.estimate(x[..., 0], own(x[..., 0], groups).rows, variance="raw")
    torch.testing.assert_close(found.mean, wanted.mean)
    torch.testing.assert_close(found.variance, wanted.variance)
    torch.testing.assert_close(found.members, wanted.members)
    margins, plain = source.margins(rows(x)[::2], rows(x)[1::2]), ensemble.margins(x[::2, :, 0], x[1::2, :, 0])
    torch.testing.assert_close(margins.variance, plain.variance)


def test_with_one_wording_replies_are_members() -> None:
    x, groups = drawn(30, 2, 1, 6)
    found = judge(1, 6, variance="raw").estimate(rows(x), own(rows(x), groups))
    s2 = x[:, 0].var(dim=1, correction=1)
    torch.testing.assert_close(found.variance, noise_in_group(s2, 2))
    means = judge(1, 6, variance="raw", variance_of="mean").estimate(rows(x), own(rows(x), groups))
    torch.testing.assert_close(means.variance, found.variance / 6)
    assert found.degrees_of_freedom is not None
    assert set(found.degrees_of_freedom.tolist()) == {5.0}


def test_moderated_as_any_small_sample_variance() -> None:
    """With one wording of many replies it is limma's own, row by row."""
    x, groups = drawn(40, 3, 1, 5)
    source = judge(1, 5)
    calibration = source.calibrate(rows(x), own(rows(x), groups))
    assert calibration.prior is not None
    s2 = x[:, 0].var(dim=1, correction=1).clamp(min=1 / 12)
    assert calibration.prior == ensemble.fit_prior(s2, 4.0)
    wanted = noise_in_group(ensemble.moderate(s2, 4.0, calibration.prior), 3)
    torch.testing.assert_close(source.estimate(rows(x), own(rows(x), groups)).variance, wanted)
    assert calibration.reference_variance == pytest.approx(float(wanted.mean()))


def test_equal_ratings_are_not_certainty() -> None:
    """Whole numbers can't show a variance below that of rounding; raw variances stay as they are."""
    x = torch.full((8, 1, 3), 7.0, dtype=torch.float64)
    x[0] = torch.tensor([5.0, 7.0, 9.0])
    groups = torch.arange(4).repeat_interleave(2)
    assert float(judge(1, 3).estimate(rows(x), own(rows(x), groups)).variance.min()) > 1 / 24
    assert float(judge(1, 3, variance="raw").estimate(rows(x), own(rows(x), groups)).variance[2:].max()) == 0


def test_distributions_have_no_noise_of_their_own() -> None:
    """A mean that was read from probabilities is exact: only wordings differ."""
    x = torch.tensor([[5.0, 5.0, 2.0, math.inf, 5.0, 2.0, math.inf], [3.0, 2.0, 1.0, math.inf, 4.0, 1.0, math.inf]])
    source = judge(2, reading="logprobs", variance="raw")
    anchors = own(x, torch.tensor([0, 0]))
    found = source.components(x, anchors)
    torch.testing.assert_close(found.noise, torch.zeros(2, dtype=torch.float64))
    torch.testing.assert_close(found.within, torch.tensor([0.75, 0.75], dtype=torch.float64))
    torch.testing.assert_close(found.spread, torch.tensor([0.5, 0.5], dtype=torch.float64))
    torch.testing.assert_close(source.estimate(x, anchors).variance, found.spread + found.within)
    store = AnchorStore("m on r", 2)
    store.add(["p"], x)
    apart = source.components(x, store.of(["p", "p"]))  # s² of 2 and 1, and the anchor's 1.5 of two completions
    assert apart.within.tolist() == [2 + 1.5 / 2, 1 + 1.5 / 2]
    assert apart.noise.tolist() == [0, 0]
    with pytest.raises(ConfigError, match="at least two wordings"):
        judge(1, reading="logprobs", variance_of="mean")


def test_one_reply_has_no_variance() -> None:
    x, groups = drawn(3, 2, 1, 1)
    source = judge(1, 1)
    found = source.estimate(rows(x))  # needs no anchor
    torch.testing.assert_close(found.mean, x[:, 0, 0])
    assert not found.has_variance
    with pytest.raises(VarianceError, match="asks for one reply"):
        source.margins(rows(x)[::2], rows(x)[1::2])
    assert source.calibrate(rows(x), own(rows(x), groups)).reference_variance is None


def test_missing_replies() -> None:
    x, groups = drawn(40, 4, 3, 4)
    x[0] = torch.nan
    x[5, 1] = torch.nan
    x[6, :, 2:] = torch.nan
    x[7, 0, 1:] = torch.nan
    scores = rows(x)
    source = judge()
    source.calibrate(scores, own(scores, groups))
    found = source.estimate(scores, own(scores, groups))
    assert found.mean.isnan().nonzero().flatten().tolist() == [0]
    assert found.variance.isnan().nonzero().flatten().tolist() == [0]
    assert source.margins(scores[:1], scores[1:2]).mean.isnan().all()
    assert source.margins(scores[:1], scores[1:2]).variance.isnan().all()


def test_a_wording_that_is_silent_for_one_completion_gives_it_nothing() -> None:
    """The second wording takes 4 off everybody; a row that lacks it must not look 2 better than its siblings."""
    x = torch.tensor([[[5.0], [1.0]], [[5.0], [1.0]], [[5.0], [math.nan]]], dtype=torch.float64)
    scores = rows(x.repeat(2, 1, 1))
    found = judge(2, 1, min_valid=1).estimate(scores, own(scores, torch.tensor([0, 0, 0, 1, 1, 1])))
    torch.testing.assert_close(found.mean, torch.full((6,), 3.0, dtype=torch.float64))


def test_lone_completions_need_a_calibration() -> None:
    x, groups = drawn(30, 2, 3, 4)
    source = judge()
    with pytest.raises(DataError, match="has no calibration to centre by; give anchors, or calibrate it first"):
        source.estimate(rows(x))
    with pytest.raises(DataError, match="row 0 has no anchor"):
        source.estimate(rows(x)[:1], own(rows(x)[:1], groups[:1]))
    source.calibrate(rows(x), own(rows(x), groups))
    found = source.estimate(rows(x))
    torch.testing.assert_close(found.mean, x.mean(dim=(1, 2)))
    assert set(found.anchor_kinds) == {"calibration"}
    with pytest.raises(DataError, match="reads rows of 10 columns"):
        source.estimate(rows(x)[:, :7])


def test_pooling() -> None:
    """s² is weighted by degrees of freedom."""
    x = torch.tensor([[[1.0, 3.0, math.nan], [1.0, 1.0, 1.0]]], dtype=torch.float64)
    readings = Readings.of(rows(x), 2)
    assert float(readings.within) == pytest.approx(2 / 3)
    assert float(readings.within_freedom) == 3
    assert float(readings.noise_share) == pytest.approx((1 / 2 + 1 / 3) / 2)
