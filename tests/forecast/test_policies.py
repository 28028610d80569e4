"""One β for all prompts: budgets are met, the optimum is the exact one, and what can't be reached is unknown."""

import math

import pytest
import torch

from surefoot.errors import ConfigError
from surefoot.forecast.policies import largest_budget, policies_at_budgets, uniform_reference
from surefoot.theory.exact import optimum

PROMPTS, COUNT = 5, 40


def problem(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    stream = torch.Generator().manual_seed(seed)
    reward = torch.randn(PROMPTS, COUNT, generator=stream, dtype=torch.float64) * torch.arange(1, 6)[:, None]
    weight = torch.randn(PROMPTS, COUNT, generator=stream, dtype=torch.float64).exp().clamp(0.1, 10)
    return reward, weight, uniform_reference(torch.ones(PROMPTS, COUNT, dtype=torch.bool))


@pytest.mark.parametrize("form", ["generalized", "literal"])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_mean_kl_is_the_budget_and_the_policy_the_optimum_at_its_beta(weighted: bool, form: str) -> None:
    reward, weight, reference = problem()
    w = weight if weighted else None
    budgets = [1.0, 1.5, 2.5]  # the literal form has no small ones: it doesn't tend to the reference
    found = policies_at_budgets(reward, w, reference, budgets, form)  # type: ignore[arg-type]
    assert found.kl.tolist() == pytest.approx(budgets, abs=1e-5)
    for place, beta in enumerate(found.beta.tolist()):
        torch.testing.assert_close(found.policy[place], optimum(reward, reference, w, beta, form).policy)  # type: ignore[arg-type]
    by_prompt = (found.policy[0] * (found.policy[0].clamp(min=1e-300).log() - reference)).sum(dim=1)
    assert float(by_prompt.mean()) == pytest.approx(1.0, abs=1e-5)
    assert float(by_prompt.max() - by_prompt.min()) > 0.5  # the budget is held over prompts, not on each


def test_a_candidate_without_reward_is_never_chosen_and_a_constant_changes_nothing() -> None:
    reward, weight, _ = problem()
    scored = torch.ones(PROMPTS, COUNT, dtype=torch.bool)
    scored[0, :30] = False
    reference = uniform_reference(scored)
    found = policies_at_budgets(reward, weight, reference, [1.0])
    assert float(found.policy[0, 0, :30].sum()) == 0.0
    assert found.policy[0].sum(dim=1).tolist() == pytest.approx([1.0] * PROMPTS, abs=1e-9)
    moved = policies_at_budgets(reward + torch.arange(PROMPTS)[:, None] * 7.0, weight, reference, [1.0])
    torch.testing.assert_close(moved.policy, found.policy, atol=1e-7, rtol=0)


def test_effective_candidates_of_a_policy_that_is_uniform_over_some() -> None:
    """Two candidates of four have the reward: with all mass on them, 1/Σπ² = 2 at a KL of ln 2."""
    reward = torch.tensor([[1.0, 1.0, 0.0, 0.0]], dtype=torch.float64)
    found = policies_at_budgets(
        reward, None, uniform_reference(torch.ones(1, 4, dtype=torch.bool)), [math.log(2) - 1e-6]
    )
    assert float(found.effective) == pytest.approx(2.0, abs=1e-3)


def test_budgets_out_of_reach_are_unknown_and_bad_ones_refused() -> None:
    reward, _, reference = problem()
    found = policies_at_budgets(reward, None, reference, [1.0, 5.0])  # −ln π₀ is ln 40 = 3.7 at most
    assert found.reached.tolist() == [True, False]
    assert bool(found.policy[1].isnan().all())
    for budgets in ([], [0.0], [2.0, 1.0]):
        with pytest.raises(ConfigError, match="positive and rising"):
            policies_at_budgets(reward, None, reference, budgets)


def test_largest_budget_leaves_e_candidates() -> None:
    assert 64 / math.exp(largest_budget(64)) == pytest.approx(math.e)
