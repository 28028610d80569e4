"""The last checkpoint under a budget, and what is said where there is none."""

import json
from pathlib import Path

import pytest

from surefoot.errors import RunError
from surefoot.training.checkpoints import last_checkpoint_under, last_whole_checkpoint


def run(folder: Path, kls: list[float | None], every: int = 2) -> Path:
    log = [{} if kl is None else {"sequence_kl": kl} for kl in kls]
    for step in range(every, len(kls) + 1, every):
        path = folder / f"checkpoint-{step}"
        path.mkdir(parents=True)
        (path / "trainer_state.json").write_text(json.dumps({"log_history": log[:step]}))
    return folder


def test_the_last_one_under_the_budget(tmp_path: Path) -> None:
    folder = run(tmp_path, [1, 3, 5, 7, 6, 4, 9, 11, 13, 15, 17, 19])
    assert last_checkpoint_under(folder, 5.5, window=2).name == "checkpoint-6"  # mean of 6 and 4, after a 6 over it
    assert last_checkpoint_under(folder, 2.0, window=2).name == "checkpoint-2"
    assert last_checkpoint_under(folder, 100.0).name == "checkpoint-12"


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="set save_steps"):
        last_checkpoint_under(tmp_path, 1.0)
    with pytest.raises(RunError, match="logged its KL"):
        last_checkpoint_under(run(tmp_path / "a", [None, None]), 1.0)
    with pytest.raises(RunError, match="the nearest has 4"):
        last_checkpoint_under(run(tmp_path / "b", [4.0, 4.0, 8.0, 8.0]), 1.0)


def test_a_checkpoint_that_is_not_whole_is_passed_over(tmp_path: Path) -> None:
    assert last_whole_checkpoint(tmp_path / "nothing") is None
    folder = run(tmp_path, [1.0] * 12)
    (folder / "checkpoint-best").mkdir()  # not the trainer's
    assert last_whole_checkpoint(folder) == str(folder / "checkpoint-12")  # 12 after 8, by number
    (folder / "checkpoint-12" / "trainer_state.json").write_text('{"log_hist')
    (folder / "checkpoint-14").mkdir()
    with pytest.warns(UserWarning, match="checkpoint-1[24] is not whole"):
        assert last_whole_checkpoint(folder) == str(folder / "checkpoint-10")
