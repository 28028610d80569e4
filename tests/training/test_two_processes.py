"""A prompt's completions may be scored by different processes; anchors, weights and β must not notice."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from datasets import Dataset

from surefoot.rewards.kinds.function import FunctionMembers
from surefoot.training.preference_weights import add_variances
from tests.training.two_processes import PAIRS, members

SCRIPT = Path(__file__).with_name("two_processes.py")


@pytest.mark.slow
def test_groups_split_between_two_processes(policy_path: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, str(SCRIPT), str(policy_path), str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]  # the bridge checks every batch's advantages on both
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert first["rows"] == 8  # one group of eight, four completions from each process
    assert len(first["anchors"]) == 4
    assert max(abs(value) for row in first["anchors"].values() for value in row) > 0.1
    draws = [json.loads((tmp_path / f"drawn{rank}.json").read_text()) for rank in (0, 1)]
    assert [len(draw) for draw in draws[0]] == [len(draw) for draw in draws[1]]  # as many calls, of as many rows
    for mine, theirs in zip(*draws, strict=True):
        count = Counter(mine + theirs)
        assert sum(count.values()) in (3 * len(count), 3 * len(count) + 1)  # both together draw three of each
    times = Counter(prompt for mine, theirs in zip(*draws, strict=True) for prompt in {*mine, *theirs})
    assert set(times.values()) == {1}  # no anchor is made twice
    shares = [json.loads((tmp_path / f"scored{rank}.json").read_text()) for rank in (0, 1)]
    assert [len(share) for share in shares] == [12, 12]  # two of four prompts each, three pairs of each, both sides
    assert not set(shares[0]) & set(shares[1])
    alone = add_variances(Dataset.from_dict(PAIRS), FunctionMembers(members, 5), rows=3)
    assert first["pairs"] == alone.to_dict()


@pytest.mark.slow
def test_two_processes_agree_with_one(policy_path: Path, tmp_path: Path) -> None:
    """One process, two that each hold the policy whole, and two over which FSDP2 shards it end with the same weights.

    All three run on the same global batches and completions (see `fsdp.py`).
    """
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    ways = {"one": ([], "no"), "two": (torchrun, "no"), "sharded": (torchrun, "yes")}
    found = {}
    for way, (launcher, sharded) in ways.items():
        output = tmp_path / way
        output.mkdir()
        words = [sys.executable, *launcher, str(SCRIPT.with_name("fsdp.py")), str(policy_path), str(output), sharded]
        done = subprocess.run(words, capture_output=True, text=True, timeout=180)
        assert done.returncode == 0, done.stderr[-3000:]
        found[way] = json.loads((output / "found.json").read_text())
    assert {way: found[way].pop("sharded") for way in ways} == {"one": False, "two": False, "sharded": True}
    assert found["two"]["sampled_variance"] == pytest.approx(found["sharded"].pop("sampled_variance"), rel=1e-5)
    del found["one"]["sampled_variance"], found["two"]["sampled_variance"]  # other completions, by construction
    assert found["one"]["weight_spread"] > 0.1
    assert max(map(abs, found["one"]["log_ratio"])) > 1e-3
    assert len([name for name in found["one"] if name.startswith("anchor of")]) >= 2
    for way in ("two", "sharded"):
        assert found[way].keys() == found["one"].keys()
        for name, value in found["one"].items():
            assert found[way][name] == pytest.approx(value, rel=1e-5, abs=1e-5), (way, name)
