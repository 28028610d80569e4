"""The reward handed to the trainer is the objective's: by hand, in limits, by invariance, and by enumeration."""

import itertools
import math
import warnings
from dataclasses import replace

import pytest
import torch

from surefoot.errors import VarianceError
from surefoot.maths.advantages import leave_one_out
from surefoot.maths.objectives import Objective, preset
from surefoot.rewards.anchors import AnchorStore, group_anchors
from surefoot.rewards.kinds.function import FunctionMembers
from surefoot.training.metrics import IdleWeights, ShareOfTime, penalty_share, summary, warn_if_unreliable
from surefoot.training.shaping import ShapedRewards, shape_rewards
from surefoot.types import Anchors, Calibration, VariancePrior


def source(members: int, prior: VariancePrior | None, reference_variance: float | None) -> FunctionMembers:
    made = FunctionMembers(lambda prompts, completions: [], members)
    made.calibration = Calibration((0.0,) * members, (1.0,) * members, prior, reference_variance, 10)
    return made


def shape(
    made: FunctionMembers,
    objective: Objective,
    scores: torch.Tensor,
    groups: torch.Tensor,
    log_ratio: torch.Tensor,
    beta: float,
) -> ShapedRewards:
    """With each prompt's completions as its own anchor."""
    return shape_rewards(made, objective, scores, group_anchors(scores, groups), groups, log_ratio, beta)


def test_hand_worked() -> None:
    # Two members, one prompt. Centred: ±1 for member 0, ±3 for member 1: s² = 2 in both rows.
    scores = torch.tensor([[2.0, 13.0], [0.0, 7.0]])
    made = source(2, VariancePrior(1.0, 4.0), 1.5)  # s̃² = (1·4 + 1·2)/2 = 3, w = 2
    shaped = shape(made, Objective(), scores, torch.tensor([0, 0]), torch.tensor([0.5, -0.25]), beta=0.1)
    torch.testing.assert_close(shaped.weight, torch.tensor([2.0, 2.0], dtype=torch.float64))
    torch.testing.assert_close(shaped.reward, torch.tensor([7.5, 3.5], dtype=torch.float64))
    torch.testing.assert_close(shaped.total(0.1), torch.tensor([7.5 - 0.1, 3.5 + 0.05], dtype=torch.float64))
    literal = shape(
        made, Objective(form="literal"), scores, torch.tensor([0, 0]), torch.tensor([0.5, -0.25]), beta=0.1
    )
    torch.testing.assert_close(literal.total(0.1), torch.tensor([7.5 - 0.3, 3.5 - 0.15], dtype=torch.float64))


def test_the_effect_of_weighting_is_its_share_of_what_rewards_differ_by() -> None:
    """Two prompts of two completions: surcharges −β(w − 1) ln π/π₀ of ±.3 about their means, rewards of ±2."""
    made = source(2, VariancePrior(1.0, 1.0), 1.0)
    scores = torch.tensor([[4.0, 4.0], [0.0, 0.0]] * 2)
    shaped = shape(made, Objective(), scores, torch.tensor([0, 0, 1, 1]), torch.zeros(4), beta=0.1)
    weight, ratio = torch.tensor([3.0, 1.0, 4.0, 2.0]), torch.tensor([3.0, 9.0, 2.0, 0.0])
    shaped = replace(shaped, weight=weight, log_ratio=ratio, surcharge=-0.1 * (weight - 1) * ratio)
    values = summary(shaped, Objective(), 0.1, None)
    assert values["weight/effect"] == pytest.approx(0.3 / 2)
    none = replace(shaped, surcharge=torch.zeros(4))
    assert summary(none, Objective(), 0.1, None)["weight/effect"] == 0.0
    even = replace(shaped, reward=torch.ones(4))
    assert math.isnan(summary(even, Objective(), 0.1, None)["weight/effect"])
    assert "weight/effect" not in summary(shaped, preset("mean"), 0.1, None)


def test_the_penalty_s_share_by_hand_and_at_the_optimum() -> None:
    """Two prompts of two completions: rewards ±2 about their means, penalties ±.4 and ±.2; then the optimum."""
    made = source(2, VariancePrior(1.0, 1.0), 1.0)
    scores = torch.tensor([[4.0, 4.0], [0.0, 0.0]] * 2)
    groups, ratio = torch.tensor([0, 0, 1, 1]), torch.tensor([9.0, 1.0, 0.0, 4.0])
    shaped = shape(made, preset("mean"), scores, groups, ratio, beta=0.1)
    values = summary(shaped, preset("mean"), 0.1, None)
    assert values["reward/penalty_share"] == pytest.approx(math.sqrt((0.4**2 + 0.2**2) / 2) / 2)
    weighted = replace(shaped, surcharge=-0.1 * ratio)  # w = 2
    assert penalty_share(weighted, 0.1) == pytest.approx(2 * penalty_share(shaped, 0.1))
    optimum = replace(shaped, log_ratio=(shaped.reward + 7.0) / 0.1)
    assert penalty_share(optimum, 0.1) == pytest.approx(1.0)
    assert math.isnan(penalty_share(replace(shaped, reward=torch.full((4,), math.nan)), 0.1))


@pytest.mark.parametrize("name", ["vanilla", "mean", "wco", "lcb"])
def test_without_weighting_the_surcharge_is_exactly_zero(name: str) -> None:
    torch.manual_seed(0)
    made = source(3, VariancePrior(4.0, 1.0), 1.0)
    shaped = shape(made, preset(name), torch.randn(8, 3), torch.arange(8) // 4, torch.randn(8), beta=0.3)
    assert bool((shaped.surcharge == 0).all())


def test_equal_variances_are_the_ordinary_objective() -> None:
    torch.manual_seed(0)
    made = source(3, VariancePrior(float("inf"), 2.5), 2.5)
    scores, groups, ratio = torch.randn(8, 3), torch.arange(8) // 4, torch.randn(8)
    weighted = shape(made, preset("variance_aware"), scores, groups, ratio, beta=0.3)
    ordinary = shape(made, preset("mean"), scores, groups, ratio, beta=0.3)
    torch.testing.assert_close(weighted.total(0.3), ordinary.total(0.3), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["variance_aware", "literal", "lcb", "wco", "cvar", "kl_robust", "uwo", "brme"])
def test_offsets_and_order_of_members_do_not_matter(name: str) -> None:
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(12, 4, generator=generator, dtype=torch.float64)
    groups, ratio = torch.arange(12) // 4, torch.randn(12, generator=generator, dtype=torch.float64)
    made = source(4, VariancePrior(3.0, 1.0), 1.0)
    offsets = 100 * torch.randn(3, 4, generator=generator, dtype=torch.float64)[groups]
    base = shape(made, preset(name), scores, groups, ratio, beta=0.2)
    moved = shape(made, preset(name), scores + offsets, groups, ratio, beta=0.2)
    swapped = shape(made, preset(name), scores[:, [2, 0, 3, 1]], groups, ratio, beta=0.2)
    expected = leave_one_out(base.total(0.2), 4)
    torch.testing.assert_close(leave_one_out(moved.total(0.2), 4), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(leave_one_out(swapped.total(0.2), 4), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(moved.weight, base.weight, rtol=1e-9, atol=1e-9)


def test_hand_worked_with_an_anchor() -> None:
    """Centred by (1, 9): (1, 4) and (−1, −2), so s² = 4.5 and .5; d = d₀ = 1 and s₀² = 4: s̃² = 4.25 and 2.25."""
    scores = torch.tensor([[2.0, 13.0], [0.0, 7.0]])
    anchors = Anchors(torch.tensor([[1.0, 9.0]] * 2), "reference", torch.tensor([4.0, 4.0]))
    made, ratio = source(2, VariancePrior(1.0, 4.0), 1.5), torch.tensor([0.5, -0.25])
    shaped = shape_rewards(made, Objective(), scores, anchors, torch.tensor([0, 0]), ratio, 0.1)
    weight = torch.tensor([4.25 / 1.5, 2.25 / 1.5], dtype=torch.float64)
    torch.testing.assert_close(shaped.weight, weight)
    torch.testing.assert_close(shaped.reward, torch.tensor([7.5, 3.5], dtype=torch.float64))
    torch.testing.assert_close(shaped.total(0.1), shaped.reward - 0.1 * weight * ratio)
    assert shaped.estimate.anchor_kinds == ["reference", "reference"]
    lonely = shape_rewards(
        made, Objective(), scores, None, torch.tensor([0, 0]), ratio, 0.1
    )  # offsets of 0: s² 60.5, 24.5
    torch.testing.assert_close(lonely.weight, torch.tensor([10.0, 14.25 / 1.5], dtype=torch.float64))
    assert lonely.estimate.anchor_kinds == ["calibration", "calibration"]


@pytest.mark.parametrize("name", ["variance_aware", "literal", "lcb", "wco", "cvar", "kl_robust", "uwo", "brme"])
def test_siblings_change_nothing_about_a_completion(name: str) -> None:
    """Fewer, more or other completions of a prompt: the same reward, variance, weight and surcharge, to 1e-12."""
    generator = torch.Generator().manual_seed(2)
    scores = torch.randn(12, 4, generator=generator, dtype=torch.float64)
    ratio = torch.randn(12, generator=generator, dtype=torch.float64)
    groups, made = torch.arange(12) // 4, source(4, VariancePrior(3.0, 1.0), 1.0)
    rows = torch.randn(3, 4, generator=generator)[groups]
    anchors = Anchors(rows, "reference", torch.full((12,), 8.0))

    def of(keep: list[int], given: torch.Tensor) -> ShapedRewards:
        some = replace(anchors, rows=anchors.rows[keep], count=anchors.count[keep])
        return shape_rewards(made, preset(name), given[keep], some, groups[keep], ratio[keep], beta=0.2)

    whole, other = of(list(range(12)), scores), scores.clone()
    other[1:4] = 50 * torch.randn(3, 4, generator=generator, dtype=torch.float64)
    other[2] = math.nan
    for keep, given in (([0], scores), ([0, 1, 4, 5, 6, 11], scores), (list(range(12)), other)):
        found, same = of(keep, given), torch.tensor([i for i, k in enumerate(keep) if k == 0 or (k > 3)])
        theirs = torch.tensor(keep)[same]
        for values, expected in (
            (found.reward, whole.reward),
            (found.estimate.variance, whole.estimate.variance),
            (found.weight, whole.weight),
            (found.surcharge, whole.surcharge),
        ):
            torch.testing.assert_close(values[same], expected[theirs], rtol=1e-12, atol=1e-12)
    grouped = [shape(made, preset(name), scores[:n], groups[:n], ratio[:n], 0.2) for n in (3, 4)]
    assert float((grouped[0].estimate.variance[0] - grouped[1].estimate.variance[0]).abs()) > 1e-3  # the old way


@pytest.mark.parametrize("name", ["variance_aware", "literal", "lcb", "wco", "cvar", "kl_robust", "uwo", "brme"])
def test_a_constant_added_to_a_member_on_a_prompt_moves_its_anchor_along(name: str) -> None:
    """Anchors from scores of the member that was moved: the same weights and advantages, to 1e-12.

    In quarters, since the store keeps float32, which holds them and their means of four exactly.
    """
    generator = torch.Generator().manual_seed(4)

    def quarters(*shape: int) -> torch.Tensor:
        return torch.randint(-20, 20, shape, generator=generator) / 4.0

    scores, drawn, added = quarters(12, 4), quarters(12, 4), quarters(3, 4) * 4
    groups, ratio = torch.arange(12) // 4, torch.randn(12, generator=generator, dtype=torch.float64)
    made = source(4, VariancePrior(3.0, 1.0), 1.0)

    def shaped(offsets: torch.Tensor) -> ShapedRewards:
        store = AnchorStore(made.name, 4)
        store.add(["a", "b", "c"], drawn + offsets)
        anchors = store.of([p for p in "abc" for _ in range(4)])
        return shape_rewards(made, preset(name), scores + offsets, anchors, groups, ratio, beta=0.2)

    base, moved = shaped(torch.zeros(12, 4)), shaped(added[groups])
    torch.testing.assert_close(moved.estimate.variance, base.estimate.variance, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(moved.weight, base.weight, rtol=1e-12, atol=1e-12)
    advantages = [leave_one_out(one.total(0.2), 4) for one in (moved, base)]
    torch.testing.assert_close(advantages[0], advantages[1], rtol=1e-12, atol=1e-12)


def test_a_policy_that_concentrates_keeps_its_weights_with_an_anchor() -> None:
    """All completions of a prompt alike: by their own group the members agree, by the reference's they differ."""
    made, groups = source(3, VariancePrior(0.1, 0.01), 1.0), torch.zeros(4).long()
    alike = torch.tensor([[0.0, 3.0, 6.0]]).expand(4, 3)
    own = shape(made, Objective(), alike, groups, torch.ones(4), 0.1)
    anchors = Anchors(torch.ones(4, 3), "reference", torch.full((4,), 8.0))
    anchored = shape_rewards(made, Objective(), alike, anchors, groups, torch.ones(4), 0.1)
    assert own.weight.tolist() == [0.1] * 4  # the floor
    assert float(anchored.weight.min()) == pytest.approx((2 * 9.0 + 0.1 * 0.01) / 2.1)


def test_a_noisy_variance_is_warned_of() -> None:
    made = source(4, VariancePrior(1.0, 1.0), 1.0)
    assert made.calibration is not None
    for reliability, warned in ((0.59, True), (0.6, False), (1.0, False), (None, False)):
        notes = {} if reliability is None else {"reliability": reliability}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            warn_if_unreliable(made, replace(made.calibration, notes=notes))
        assert len(caught) == int(warned)
        assert all("reliability of 0.59" in str(one.message) for one in caught)


def test_the_share_of_time_spent_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inside for 3 of the 10 s since the first entry at 100 s."""
    times = iter([100.0, 101.0, 104.0, 106.0, 110.0])
    monkeypatch.setattr("surefoot.training.metrics.time.perf_counter", lambda: next(times))
    clock = ShareOfTime()
    for _ in range(2):
        with clock:
            pass
    assert clock.share == pytest.approx(0.3)


def test_unscored_rows_stay_nan_and_leave_their_siblings_alone() -> None:
    scores = torch.tensor([[1.0, 2.0], [float("nan"), float("nan")], [3.0, 5.0]])
    made = source(2, VariancePrior(2.0, 1.0), 1.0)
    shaped = shape(made, preset("variance_aware"), scores, torch.zeros(3).long(), torch.ones(3), beta=0.1)
    assert shaped.total(0.1).isnan().tolist() == [False, True, False]
    without = shape(made, preset("variance_aware"), scores[[0, 2]], torch.zeros(2).long(), torch.ones(2), beta=0.1)
    torch.testing.assert_close(shaped.total(0.1)[[0, 2]], without.total(0.1))
    advantages = leave_one_out(shaped.total(0.1), 3)
    assert advantages[1] == 0.0
    assert float(advantages[0]) == pytest.approx(-float(advantages[2])) != 0


def test_weighting_without_a_calibration_says_what_to_do() -> None:
    made = FunctionMembers(lambda prompts, completions: [], 2)
    with pytest.raises(VarianceError, match="calibrate the source first"):
        shape(made, preset("variance_aware"), torch.randn(2, 2), torch.zeros(2).long(), torch.ones(2), 0.1)


def sequences(vocabulary: int, length: int) -> torch.Tensor:
    return torch.tensor(list(itertools.product(range(vocabulary), repeat=length)))


def log_probabilities(logits: torch.Tensor, all_sequences: torch.Tensor) -> torch.Tensor:
    """(sequences,) of an autoregressive policy whose logits depend on position and previous token."""
    logs = logits.log_softmax(-1)  # (position, previous, token)
    previous = torch.cat([torch.zeros_like(all_sequences[:, :1]), all_sequences[:, :-1]], dim=1)
    positions = torch.arange(all_sequences.shape[1])
    return logs[positions, previous, all_sequences].sum(1)


@pytest.mark.parametrize("form", ["generalized", "literal"])
@pytest.mark.parametrize("weights", ["variance", "none"])
@pytest.mark.parametrize("aggregate", ["mean", "lcb", "wco"])
def test_policy_gradient_against_enumeration_of_all_sequences(form: str, weights: str, aggregate: str) -> None:
    """E_π[(r̃ − β·penalty) ∇ln π] with the detached penalty is the gradient of the objective (docs/method.md 8)."""
    generator = torch.Generator().manual_seed(3)
    everything = sequences(3, 3)
    size = len(everything)
    assert size == 27
    logits = torch.randn(3, 3, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    reference = log_probabilities(torch.randn(3, 3, 3, generator=generator, dtype=torch.float64), everything)
    scores = torch.randn(size, 4, generator=generator, dtype=torch.float64) * 2
    made = source(4, VariancePrior(3.0, 3.0), 3.0)
    objective = Objective(aggregate, weights=weights, form=form)
    beta = 0.7

    logs = log_probabilities(logits, everything)
    shaped = shape(made, objective, scores, torch.zeros(size).long(), (logs - reference).detach(), beta)
    probabilities = logs.exp()
    (estimated,) = torch.autograd.grad((probabilities.detach() * shaped.total(beta) * logs).sum(), logits)

    logs = log_probabilities(logits, everything)
    w, pi, pi0 = shaped.weight, logs.exp(), reference.exp()
    if form == "generalized":
        divergence = (w * (pi * (logs - reference) - pi + pi0)).sum()
    else:
        divergence = (w * pi * (logs - reference)).sum()
    (exact,) = torch.autograd.grad((pi * shaped.reward).sum() - beta * divergence, logits)
    assert float((estimated - exact).norm() / exact.norm()) < 1e-12


def batches(effect: float, share: float = 0.8) -> dict[str, float]:
    return {"weight/effect": effect, "weight/effective_sample_size": share, "beta": 0.05}


def test_weights_that_do_nothing_are_told_of_once() -> None:
    idle = IdleWeights(start=10, window=5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(10):
            idle.see(batches(0.01))  # the first batches are near the reference
    with pytest.warns(UserWarning, match=r"adds 1\.0% of what .* median of the last 5 batches.*β is 0\.05"):
        idle.see(batches(0.01))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        idle.see(batches(0.0))


@pytest.mark.parametrize(
    "seen",
    [batches(0.2), batches(0.0, share=1.0), batches(math.nan), {"beta": 0.1}],
    ids=["it acts", "even weights", "unknown", "unweighted"],
)
def test_of_weights_that_act_or_cannot_act_nothing_is_said(seen: dict[str, float]) -> None:
    idle = IdleWeights(start=3, window=5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(20):
            idle.see(seen)
