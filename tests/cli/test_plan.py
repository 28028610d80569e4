import json
import re

import pytest
from rich.console import Console

from surefoot.cli.parsing import parse
from surefoot.cli.plan import MemoryPlanArguments, memory_json, memory_plan, memory_table
from surefoot.errors import ConfigError
from surefoot.planning.memory import plan_memory
from surefoot.planning.process_memory import LIBRARIES_BYTES


def shown(plan: object) -> str:
    console = Console(width=160, record=True, file=None, quiet=False)
    with console.capture() as captured:
        console.print(memory_table(plan))  # type: ignore[arg-type]
    return captured.get()


def test_on_a_cpu_the_process_s_own_memory_is_counted() -> None:
    plan = memory_plan("7B", MemoryPlanArguments(device="cpu", reward_kind="none"))
    bare = plan_memory(plan.shape, plan.run, plan.reward)
    text = shown(plan)
    assert plan.run.sharding == "none"
    assert "one process on a CPU" in text
    assert "process: Python and its libraries" in text
    assert "per GPU" not in text
    for whole, phase in zip(plan.phases, bare.phases, strict=True):
        assert whole.bytes == LIBRARIES_BYTES + phase.bytes
    assert memory_json(plan)["fits"] is None


def test_a_frozen_reward_model_takes_half_in_bfloat16() -> None:
    sizes = [
        memory_plan("7B", MemoryPlanArguments(device="cpu", reward_dtype=dtype)).phase("rewards").lines
        for dtype in ("auto", "float32", "bfloat16")
    ]
    auto, single, half = (next(line.bytes for line in lines if line.name == "reward: trunk") for lines in sizes)
    assert auto == single == 2 * half


def test_the_table_shows_the_arithmetic_and_says_whether_it_fits() -> None:
    text = shown(memory_plan("7B", MemoryPlanArguments()))
    assert "7,615,616,512 parameters × 8 B / 8 GPUs" in text
    assert re.search(r"loss \(peak\) +│ +\d+\.\d\d", text)
    assert "fits into 80 GiB" in text
    assert "not measured" in text
    assert "does not fit" in shown(memory_plan("70B", MemoryPlanArguments()))


def test_json_has_every_phase_and_line() -> None:
    found = json.loads(json.dumps(memory_json(memory_plan("7B", MemoryPlanArguments(reward_size="32B")))))
    assert found["reward"]["shape"]["name"] == "32B"
    assert found["peak"]["bytes"] == max(phase["bytes"] for phase in found["phases"])
    assert all(sum(x["bytes"] for x in phase["lines"]) == phase["bytes"] for phase in found["phases"])


def test_settings_come_from_the_command_line() -> None:
    words = ["--gpus", "16", "--sharding", "zero3", "--members", "3", "--reward_kind", "independent"]
    (given,) = parse((MemoryPlanArguments,), words, "study")
    plan = memory_plan("7b", given)
    assert (plan.run.gpus, plan.run.sharding, plan.reward.members) == (16, "zero3", 3)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"members": 0}, "members must be at least 1"), ({"precision": "fp8"}, "precision must be one")],
)
def test_wrong_settings_are_refused(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        memory_plan("7B", MemoryPlanArguments(**wrong))  # type: ignore[arg-type]
