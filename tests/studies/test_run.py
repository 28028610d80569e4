"""A whole study at its smallest: records are whole, finished work is kept, and the baseline is a fair one."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from surefoot.cli.demo import demo_study
from surefoot.errors import ConfigError, RunError
from surefoot.rewards.registry import load_source
from surefoot.studies.config import StudyConfig, method_settings
from surefoot.studies.run import run_study
from surefoot.studies.runners.local import LocalRunner
from surefoot.training.objective_config import ObjectiveArguments

HEADS: dict[str, Any] = {
    "kind": "heads",
    "members": 5,
    "layer": 0,
    "bootstrap": "exponential",
    "prior_scale": 1.0,
    "learning_rate": 1e-2,
    "weight_decay": 1.0,
    "epochs": 60,
}
SMALL: dict[str, Any] = {
    "settings": {"uneven": {"world": "uneven", "pairs": 60, "held_out_pairs": 40}},
    "sources": {"heads": {**HEADS, "members": 3, "epochs": 3}},
    "kl_budgets": (6.0,),
    "evaluation_completions": 48,
    "samples_kept": 2,
}


def small(methods: list[str], seeds: list[int], **changes: Any) -> StudyConfig:
    policy = {"max_steps": 3, "calibration_prompts": 8} | changes.pop("policy", {})
    return demo_study("uneven", 60, seeds, **SMALL | {"methods": method_settings(methods), "policy": policy} | changes)


def cells(folder: Path) -> dict[tuple[str, int], dict[str, Any]]:
    found = [json.loads(path.read_text()) for path in (folder / "cells").glob("*.json")]
    return {(cell["method"], cell["seed"]): cell for cell in found}


def test_a_source_may_name_the_methods_that_are_run_with_it() -> None:
    sources = {"linear": {"kind": "linear", "methods": ["vanilla"]}, "heads": HEADS}
    made = small(["vanilla", "mean"], [0], sources=sources).cells()
    assert [(cell.source, cell.method) for cell in made] == [
        ("linear", "vanilla"),
        ("heads", "vanilla"),
        ("heads", "mean"),
    ]
    assert made[0].work["sources"] == {"reward": {"kind": "linear"}}  # no part of what the result depends on
    with pytest.raises(ConfigError, match="did you mean 'mean'"):
        small(["vanilla", "mean"], [0], sources={"linear": {"kind": "linear", "methods": ["meen"]}})


@pytest.mark.slow
def test_a_small_study_runs_once_and_a_change_reruns_only_what_it_touches(study_folder: Path) -> None:
    folder = study_folder
    seen: list[tuple[str, int, int]] = []
    methods = ["vanilla", "variance_aware_one", "variance_aware"]
    outcome = run_study(small(methods, [0]), folder, title="small", on_progress=lambda *a: seen.append(a))
    assert (outcome.finished, outcome.failed) == (3, 0)
    assert seen[-1] == ("policies", 9, 9)

    found = cells(folder)
    cell = found["variance_aware", 0]
    assert [row["step"] for row in cell["trajectory"]] == [1, 2, 3]
    assert cell["trajectory"][0]["kl"] == 0.0
    assert all(row["gold"] is not None and row["variance"] > 0 for row in cell["trajectory"])
    metrics = cell["metrics"]
    assert metrics["gold_gain"] == pytest.approx(metrics["gold_final"] - metrics["gold_reference"])
    assert len(cell["samples"]) == 2
    assert cell["prompt_completions"] == [2] * 24  # 48 completions, the test prompts taken in turn
    assert sum(cell["prompt_gains"]) / 24 == pytest.approx(metrics["gold_gain"])
    assert metrics["prompt_risk"] == sum(gain < 0 for gain in cell["prompt_gains"]) / 24
    usual = ObjectiveArguments()
    assert (cell["anchor"], cell["anchor_completions"]) == (usual.anchor, usual.anchor_completions)
    (heads,) = [json.loads(path.read_text()) for path in folder.glob("disagreement/*.json")]
    assert "reliability" in heads["known_errors"]  # unknown of three members
    assert cell["data_hash"] == found["vanilla", 0]["data_hash"]  # methods of a seed share its preferences

    # One plain model against one plain model with the members' variance: the same reward, weights that differ.
    vanilla, borrowed = found["vanilla", 0], found["variance_aware_one", 0]
    assert vanilla["trajectory"][0]["variance"] is None
    assert borrowed["trajectory"][0]["variance"] > 0
    assert borrowed["trajectory"][0]["proxy"] == pytest.approx(vanilla["trajectory"][0]["proxy"], abs=1e-6)
    trained = [load_source(path.parent / "reward" / "source") for path in folder.glob("sources/*/prepared.json")]
    assert sorted(source.num_members for source in trained) == [1, 3]  # type: ignore[attr-defined]
    assert {source.heads.shape.prior_scale for source in trained if source.num_members == 1} == {0.0}  # type: ignore[attr-defined]

    # A lost cell runs again, to the same result. More members change the ensemble's cells and not the one model's.
    kept = {path: path.stat().st_mtime_ns for path in (folder / "cells").glob("*.json")}
    lost = folder / "cells" / f"{cell['key']}.json"
    lost.unlink()
    run_study(small(methods, [0]), folder, title="small")
    assert json.loads(lost.read_text())["trajectory"] == cell["trajectory"]
    wider = {"heads": {**SMALL["sources"]["heads"], "members": 4}}
    run_study(small(["vanilla", "mean"], [0], sources=wider), folder, title="wider")
    assert len(list((folder / "cells").glob("*.json"))) == 4
    assert {path: path.stat().st_mtime_ns for path in kept if path != lost} == {
        path: stamp for path, stamp in kept.items() if path != lost
    }
    listed = json.loads((folder / "study.json").read_text())["cells"]
    assert [one["method"] for one in listed] == ["vanilla", "mean"]


KILLED = """
import sys
from pathlib import Path
from tests.studies.test_run import small
from surefoot.studies.run import run_study
run_study(small(["variance_aware"], [0], policy={"max_steps": 12, "save_steps": 2}), Path(sys.argv[1]), title="killed")
"""


@pytest.mark.slow
def test_a_killed_cell_goes_on_from_its_last_whole_checkpoint_to_the_same_end(
    study_folder: Path, tmp_path: Path
) -> None:
    killed = Path(shutil.copytree(study_folder, tmp_path / "killed"))
    config = small(["variance_aware"], [0], policy={"max_steps": 12, "save_steps": 2})
    run_study(config, study_folder, title="whole")
    whole = cells(study_folder)["variance_aware", 0]
    (cell,) = config.cells()
    place = killed / "work" / cell.key

    process = subprocess.Popen([sys.executable, "-c", KILLED, str(killed)], cwd=Path(__file__).parents[2])
    try:
        until = time.monotonic() + 240.0
        while not (place / "checkpoint-6").exists():  # checkpoint-4 is whole by then
            assert process.poll() is None, "the study ended before it could be killed"
            assert time.monotonic() < until
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    assert not cells(killed)
    spent = json.loads((place / "spent.json").read_text())
    half = place / "checkpoint-10"  # as a kill in the middle of saving leaves it
    half.mkdir(exist_ok=True)
    (half / "trainer_state.json").write_text('{"global_step": 10, "log_his')

    steps: list[str] = []
    run_study(config, killed, title="killed", on_progress=lambda stage, *rest: steps.append(stage))
    again = cells(killed)["variance_aware", 0]
    assert steps.count("policies") <= 9  # the twelve updates without the first four, and the record
    assert again["trajectory"] == whole["trajectory"]
    assert again["samples"] == whole["samples"]
    assert again["metrics"]["gold_gain"] == whole["metrics"]["gold_gain"]
    assert all(again["metrics"][name] > seconds > 0 for name, seconds in spent.items())
    assert any("is not whole" in warning for warning in again["warnings"])
    assert not place.exists()


@pytest.mark.slow
def test_a_failed_cell_is_on_record_and_runs_again_on_request(study_folder: Path) -> None:
    folder = study_folder
    broken = small(["mean"], [0], policy={"num_generations": 7})
    outcome = run_study(broken, folder, title="broken")
    assert (outcome.finished, outcome.failed) == (0, 1)
    (record,) = [json.loads(path.read_text()) for path in (folder / "failed").glob("*.json")]
    assert record["method"] == "mean"
    assert "7" in record["error"]
    stamp = record["when"]
    assert run_study(broken, folder, title="broken").failed == 1
    (same,) = [json.loads(path.read_text()) for path in (folder / "failed").glob("*.json")]
    assert same["when"] == stamp  # not tried again
    os.utime(next((folder / "failed").glob("*.json")), (0, 0))
    run_study(broken, folder, title="broken", retry_failed=True)
    assert next((folder / "failed").glob("*.json")).stat().st_mtime > 1


@pytest.mark.slow
def test_shards_share_a_folder(study_folder: Path) -> None:
    folder, config = study_folder, small(["vanilla"], [0, 1])
    first = run_study(config, folder, title="x", shard=(0, 2))
    assert (first.finished, len(list((folder / "cells").glob("*.json")))) == (1, 1)
    run_study(config, folder, title="x", runner=LocalRunner(1), shard=(1, 2))
    assert {seed for _, seed in cells(folder)} == {0, 1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": {"m": {"preset": "vanila"}}}, "unknown objective 'vanila'; did you mean 'vanilla'"),
        ({"kl_budgets": ()}, "at least one of kl_budgets"),
        ({"trainer": "ppo"}, "trainer must be rloo, grpo, exact, got 'ppo'"),
    ],
)
def test_a_wrong_grid_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        demo_study("uneven", 60, [0], **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"policy": {"learnin_rate": 1e-3}}, "unknown key 'learnin_rate' in policy; did you mean 'learning_rate'"),
        ({"policy": {"learning_rate": "fast"}}, "policy.learning_rate must be a number, got 'fast'"),
        ({"policy": {"max_steps": 2.5}}, "policy.max_steps must be a whole number, got 2.5"),
        ({"policy": {"bf16": 1, "beta": True}}, "policy.beta must be a number, got True"),
        (
            {"sources": {"heads": {"kind": "heads", "learning_rate": "1e"}}},
            "sources.heads.learning_rate must be a num",
        ),
        (
            {"sources": {"l": {"kind": "laplace", "single": {"kind": "independent", "members": 1, "epochs": "x"}}}},
            "sources.l.single.epochs must be a number, got 'x'",
        ),
        ({"policy": {"seed": 1}}, "policy.seed is set by the study's own axes"),
        ({"sources": {"heads": {"kind": "heads", "membrs": 3}}}, "did you mean 'members'"),
        ({"sources": {"heads": {"kind": "heads", "rank": 3}}}, "kind: heads has no rank"),
        ({"sources": {"l": {"kind": "laplace"}}}, "is fitted to one reward model: give that model's own settings"),
        ({"settings": {"w": {"world": "unevn"}}}, "unknown world 'unevn'"),
        ({"settings": {"w": {"model": "here", "prompts": "p"}}}, "missing: gold"),
    ],
)
def test_wrong_settings_are_refused_before_any_work(study_folder: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run_study(small(["mean"], [0], **changes), study_folder, title="x")
    assert not (study_folder / "cells").exists()


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="holds no study"):
        run_study(small(["mean"], [0]), tmp_path, title="x")


def test_equal_work_has_one_address_and_other_work_another() -> None:
    def keys(**changes: Any) -> dict[str, str]:
        return {cell.method: cell.key for cell in small(["vanilla", "mean"], [0], **changes).cells()}

    plain, wider = keys(), keys(sources={"wide": {**SMALL["sources"]["heads"], "members": 7}})
    assert plain["vanilla"] == wider["vanilla"]
    assert plain["mean"] != wider["mean"]
    assert set(keys(policy={"learning_rate": 1e-5}).values()).isdisjoint(plain.values())
    assert set(keys(kl_budgets=(3.0,)).values()).isdisjoint(plain.values())


def test_a_source_trained_again_in_its_place_is_another_source(tmp_path: Path) -> None:
    """Catches an address made of the path alone, which would take up the old weights' cells."""
    folder = tmp_path / "saved" / "members" / "0"
    folder.mkdir(parents=True)

    def keys() -> set[str]:
        return {
            cell.key for cell in small(["mean"], [0], sources={"saved": {"path": str(tmp_path / "saved")}}).cells()
        }

    (folder / "model.safetensors").write_bytes(b"old")
    first = keys()
    assert keys() == first
    (folder / "model.safetensors").write_bytes(b"new")
    assert keys() != first
    other = {"kind": "mixed", "model_name_or_path": "a", "other_models": [str(tmp_path / "saved")]}
    second = small(["mean"], [0], sources={"m": other}).cells()[0].key
    (folder / "model.safetensors").write_bytes(b"newer")
    assert small(["mean"], [0], sources={"m": other}).cells()[0].key != second
