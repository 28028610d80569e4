"""A run prints a short line for each logging step, or every metric on request."""

import re
from pathlib import Path

import pytest

from surefoot.training.step_lines import print_short_lines, step_line
from tests.training.test_float32 import trainer


def test_a_line_names_what_matters() -> None:
    logs = {"loss": 0.0, "reward/mean_of_members": 1.2345, "sequence_kl": 3.21, "beta": 0.25, "reward/variance": 0.5}
    assert step_line(logs, 8.0) == "reward 1.23, KL 3.21 of 8 nats, beta 0.25, variance 0.5"
    assert step_line(logs) == "reward 1.23, KL 3.21 nats, beta 0.25, variance 0.5"
    assert step_line({"loss": 0.69, "rewards/accuracies": 0.5, "rewards/margins": 0.01}) == (
        "loss 0.69, accuracy 0.5, margin 0.01"
    )
    assert step_line({"train_runtime": 3.0}) == ""


@pytest.mark.parametrize("disable_tqdm", [True, False])
def test_where_there_is_no_terminal_lines_are_plain(
    policy_path: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], disable_tqdm: bool
) -> None:
    mine = trainer("rloo", policy_path, tmp_path, max_steps=3, logging_steps=1, disable_tqdm=disable_tqdm)
    print_short_lines(mine, 1.0)
    capfd.readouterr()
    mine.train()
    out, err = capfd.readouterr()
    lines = out.splitlines()
    assert len(lines) == 3
    assert re.fullmatch(r"step 1/3, about \d+ s left: reward .*, KL .* of 1 nats, beta .*, tokens .*", lines[0])
    assert lines[2].startswith("step 3/3: ")
    assert "%|" not in err  # a bar
    assert len(mine.state.log_history[0]) > 20  # what trackers and trainer_state.json get
