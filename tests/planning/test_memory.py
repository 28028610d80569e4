from dataclasses import replace

import pytest

from surefoot.errors import ConfigError
from surefoot.planning.activations import layer_saved
from surefoot.planning.memory import ALLOWANCE_SHARE, CONTEXT_BYTES, plan_memory
from surefoot.planning.shapes import MemoryPlan, MemoryRun, ModelShape, RewardPlan

# hidden 8, 2 heads of 4, 1 key head, intermediate 16, 25 words, 2 layers; a layer has
# q 64 + k, v 2 × 32 + o 64 + mlp 3 × 128 + norms 2 × 8 = 592, the root 2 × 200 + 8 = 408.
SHAPE = ModelShape("tiny", 1592, 592, 408, 8, 2, 2, 1, 4, 16, 25)
RUN = MemoryRun(device="cpu", precision="fp32", batch=2, prompt=6, completion=4, generations=2)
BIG = ModelShape("7B", 7_615_616_512, 233_057_792, 1_089_998_336, 3584, 28, 28, 4, 128, 18944, 152064)


def line(plan: MemoryPlan, phase: str, name: str) -> int:
    return next(x.bytes for x in plan.phase(phase).lines if x.name.startswith(name))


def test_weights_states_and_reference_of_a_tiny_model() -> None:
    plan = plan_memory(SHAPE, RUN, RewardPlan("none"))
    assert line(plan, "rewards", "policy: weights") == 1592 * 4
    assert line(plan, "rewards", "policy: adamw") == 1592 * 8
    assert line(plan, "rewards", "reference") == 1592 * 4
    assert plan.phase("rewards").bytes == 1592 * 16


def test_activations_of_a_layer_by_hand() -> None:
    # per token: norms 2 × 3 × 8 × 4; q, k, v, output 4 × 8 × 4, sums 2 × 4, mask 10 × 4; mlp 4 × 16 × 4
    assert layer_saved(SHAPE, RUN) == 192 + 128 + 8 + 40 + 256
    assert layer_saved(SHAPE, replace(RUN, attention="flash")) == 192 + 96 + 8 + 256
    assert layer_saved(SHAPE, replace(RUN, attention="eager")) == 192 + 128 + 4 * 2 * 10 + 256


def test_checkpointing_keeps_each_layers_input() -> None:
    plan = plan_memory(SHAPE, RUN, RewardPlan("none"))
    assert line(plan, "loss", "activations") == 2 * 20 * 8 * 4
    plan = plan_memory(SHAPE, replace(RUN, gradient_checkpointing=False), RewardPlan("none"))
    assert line(plan, "loss", "activations") == 2 * 20 * 624


def test_the_cache_of_sampling_by_hand() -> None:
    run = replace(RUN, batch=4, prompt=2, completion=64)
    plan = plan_memory(SHAPE, run, RewardPlan("none"))
    assert line(plan, "generation", "cache") == 2 * 4 * 4 * 4 * 66 * 2.5  # half a layer's is being copied
    assert line(plan, "generation", "logits") == 4 * 25 * 16


def test_zero_stage_3_is_16_bytes_of_a_parameter_divided_by_the_gpus() -> None:
    run = MemoryRun(gpus=8, sharding="zero3", reference="none")
    plan = plan_memory(BIG, run, RewardPlan("none"))
    names = ("policy: weights", "policy: fp32 master", "policy: adamw", "policy: gradients")
    assert sum(line(plan, "loss", name) for name in names) == BIG.parameters * 16 // 8  # ZeRO paper, section 3.1


def test_sharding_divides_the_policy_and_not_the_reward_or_the_activations() -> None:
    one, eight = (plan_memory(BIG, MemoryRun(gpus=n, sharding="fsdp")) for n in (1, 8))
    for name in ("policy: weights", "policy: adamw", "reference", "policy: gradients"):
        assert line(eight, "backward, last layer", name) == pytest.approx(
            line(one, "backward, last layer", name) / 8, abs=1
        )
    for name in ("reward: trunk", "activations", "output head", "gathered"):
        assert line(eight, "loss", name) == line(one, "loss", name)
    assert plan_memory(BIG, MemoryRun(gpus=8)).peak.bytes == plan_memory(BIG, MemoryRun(gpus=1)).peak.bytes


def test_heads_cost_nothing_and_independent_models_cost_k_times() -> None:
    def reward(kind: str, members: int) -> int:
        plan = plan_memory(BIG, MemoryRun(), RewardPlan(kind, members))
        return sum(x.bytes for x in plan.phase("loss").lines if x.name.startswith("reward"))

    assert reward("heads", 10) / reward("heads", 1) - 1 < 1e-4
    assert reward("independent", 10) == 10 * reward("independent", 1)
    assert reward("lora", 10) < 2 * reward("independent", 2)
    assert reward("none", 5) == 0


@pytest.mark.parametrize("change", [{"batch": 32}, {"prompt": 1024}, {"completion": 1024}, {"attention": "eager"}])
def test_more_of_anything_takes_more(change: dict[str, object]) -> None:
    less = MemoryRun(batch=16, gradient_checkpointing=False)
    before, after = plan_memory(BIG, less), plan_memory(BIG, replace(less, **change))  # type: ignore[arg-type]
    assert after.peak.bytes > before.peak.bytes
    assert all(b.bytes >= a.bytes for a, b in zip(before.phases, after.phases, strict=True))


def test_what_lora_8_bits_and_checkpointing_save() -> None:
    full = plan_memory(BIG, MemoryRun()).peak.bytes
    assert plan_memory(BIG, MemoryRun(lora_rank=16)).peak.bytes < full / 2
    assert plan_memory(BIG, MemoryRun(optimiser="adamw_8bit")).peak.bytes < full
    assert plan_memory(BIG, MemoryRun(gradient_checkpointing=False)).peak.bytes > full


def test_zero_stage_3_gathers_the_policy_to_sample() -> None:
    run = MemoryRun(gpus=8, sharding="zero3")
    assert line(plan_memory(BIG, run), "generation", "gathered") == 2 * BIG.parameters
    apart = plan_memory(BIG, replace(run, gather_for_generation=False))
    assert line(apart, "generation", "gathered") == max(2 * 10**9, 2 * (BIG.root_parameters + 2 * 233_057_792))


def test_the_peak_is_the_largest_phase_and_the_allowance_is_a_line_of_it() -> None:
    plan = plan_memory(BIG, MemoryRun())
    assert plan.peak.bytes == max(phase.bytes for phase in plan.phases) == plan.to_dict()["peak"]["bytes"]
    rest = sum(x.bytes for x in plan.peak.lines[:-1])
    assert plan.peak.lines[-1].bytes == pytest.approx(CONTEXT_BYTES + ALLOWANCE_SHARE * rest, abs=1)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"gpus": 0}, "gpus must be at least 1"),
        ({"sharding": "fdsp"}, "sharding must be one of none, fsdp, zero3, got 'fdsp'"),
        ({"reference": "adapter"}, "needs lora_rank"),
        ({"lora_rank": -1}, "lora_rank"),
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        MemoryRun(**wrong)  # type: ignore[arg-type]


def test_no_members_are_refused() -> None:
    with pytest.raises(ConfigError, match="members must be at least 1, got 0"):
        RewardPlan("heads", 0)
