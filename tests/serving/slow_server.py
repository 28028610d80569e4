"""`surefoot serve` with a slow function for a source: each row takes `SLOW_MS`, and its reward is the number in it.

Every row that is scored is written to the file `SLOW_SEEN`, a number a line. While the file `SLOW_GATE` exists, it
waits.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from typing import Any
from unittest import mock

from surefoot.cli.main import main
from surefoot.rewards.kinds.function import FunctionReward

SEEN, GATE, MS = os.environ.get("SLOW_SEEN"), os.environ.get("SLOW_GATE"), float(os.environ.get("SLOW_MS", "0"))


def numbers(prompts: Sequence[Any], completions: Sequence[Any]) -> tuple[list[float], list[float]]:
    while GATE and os.path.exists(GATE):
        time.sleep(0.01)
    time.sleep(MS / 1000 * len(prompts))
    read = [int(completion.split()[0]) for completion in completions]
    if SEEN:
        with open(SEEN, "a") as file:
            file.write("".join(f"{number}\n" for number in read))
    return [float(number) for number in read], [1.0] * len(read)


if __name__ == "__main__":
    with mock.patch("surefoot.serving.run.load_source", return_value=FunctionReward(numbers, "slow")):
        sys.exit(main(["serve", "--reward_source", "slow", *sys.argv[1:]]))
