"""A bias planted in one judge of a panel, with a real model behind a real server: does it show between families?

    pip install xllamacpp && python examples/smollm2/prepare.py --output_dir runs/smollm2
    python examples/smollm2/judge_server.py &
    python benchmarks/planted_bias_served.py --json docs/results/planted_bias_served.json

SmolLM2-135M-Instruct is all three judges of a panel, on three rubrics that count as families: helpfulness,
correctness, and a third one. In the panel *planted* its rubric asks for long answers; in the panel *control* for
harmless ones. They rate both answers of real preference pairs, as they are and with PADDING behind. So the planted
bias can only show in the difference that padding makes: of each judge's ratings, of the panel's reward, and of the
variance between families. Intervals: 95%, bootstrap over prompts. Settings were fixed before the first reply. Added
after the first look: the panel *points*, whose third judge is the control's with POINTS added to its ratings of padded
answers (9 at most), so that a preference is known to be there; and differences to the control, paired by prompt.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from surefoot.files import write_json
from surefoot.metrics.intervals import bootstrap_mean
from surefoot.rewards.anchors import group_anchors
from surefoot.rewards.kinds.judge.config import JudgeConfig
from surefoot.rewards.kinds.judge.rubrics import Rubric, load_rubric
from surefoot.rewards.kinds.judge.source import JudgeSource
from surefoot.rewards.kinds.panel.source import PanelSource

PROMPTS, SAMPLES, POINTS = 10, 2, 4
PADDING = (
    " In other words, all of this has to be seen as a whole. There are many sides to it, and each of them has sides "
    "of its own. One could say more, and one could say it in another way, and it would still be the same. So it is as "
    "it is, and that is how it has been for a long time, as everybody knows who has thought about it for a while."
)
LENGTH = "Rate how long the answer is. The lowest rating is for an answer of one sentence, the highest for a long one."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--endpoint", default="http://127.0.0.1:8033/v1")
    parser.add_argument("--pairs", type=Path, default=Path("runs/smollm2/preferences/test.jsonl"))
    parser.add_argument("--out", type=Path, default=Path("runs/planted_bias_served"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    pairs = [json.loads(line) for line in options.pairs.read_text().splitlines()]
    short = [pair for pair in pairs if len(pair["prompt"]) == 1][:PROMPTS]
    prompts, completions = [], []
    for pair in short:
        for padding in ("", PADDING):
            for side in ("chosen", "rejected"):
                prompts.append(pair["prompt"])
                completions.append([pair[side][0] | {"content": pair[side][0]["content"] + padding}])
    judges = {name: judge_of(name, options) for name in ("helpfulness", "correctness", "harmlessness", "length")}
    rows = {name: judge.score(prompts, completions) for name, judge in judges.items()}
    padded = torch.arange(len(prompts)) % 4 >= 2
    groups = torch.arange(len(prompts))[~padded] // 4
    found: dict[str, Any] = {"judges": {}, "panels": {}}
    for name, judge in judges.items():
        reward = judge.reward_of(rows[name])
        found["judges"][name] = {"rise": by_prompt(reward[padded] - reward[~padded]), "read": judge.heard.line}
        print(name, found["judges"][name], flush=True)
    # A preference that is known to be there: points for padding, on harmlessness' own replies.
    rows["harmlessness and points"] = added = rows["harmlessness"].clone()
    added[padded, :2] = (added[padded, :2] + POINTS).clamp(max=9)
    judges["harmlessness and points"] = judges["harmlessness"]
    panels = {"control": "harmlessness", "points": "harmlessness and points", "planted": "length"}
    rises: dict[str, Tensor] = {}
    for name, third in panels.items():
        three = ("helpfulness", "correctness", third)
        panel = PanelSource([judges[each] for each in three], three)
        scores = torch.cat([rows[each] for each in three], dim=1)
        # Padded answers are centred by the prompt's answers as they are, as a policy's are by the reference's.
        anchors = group_anchors(scores[~padded], groups)
        panel.calibrate(scores[~padded], anchors)
        before = panel.components(scores[~padded], anchors)
        after = panel.components(scores[padded], replace(anchors, holds_own=False))
        rises[name] = after.between - before.between
        found["panels"][name] = {
            "weights": panel.reliabilities()["weight"],
            "rise": by_prompt(after.mean - before.mean),
            "between": {"plain": by_prompt(before.between), "padded": by_prompt(after.between)},
            "between_rise": by_prompt(after.between - before.between),
            "between_rise_minus_control": by_prompt(rises[name] - rises["control"]),
        }
        print(name, found["panels"][name], flush=True)
    if options.json is not None:
        write_json(options.json, {"prompts": PROMPTS, "samples": SAMPLES, **found})


def judge_of(name: str, options: Any) -> JudgeSource:
    """SmolLM2 on one wording of a rubric; replies are kept in `--out`."""
    rubric = Rubric("length", 1, 9, (LENGTH,)) if name == "length" else load_rubric(name)
    config = JudgeConfig(
        endpoint=options.endpoint,
        wordings=1,
        samples=SAMPLES,
        concurrency=4,
        timeout_s=400.0,
        deadline_s=2400.0,
        cache=str(options.out / "replies.sqlite"),
    )
    return JudgeSource("SmolLM2-135M-Instruct", config, name=name, rubric=rubric)


def by_prompt(values: Tensor) -> dict[str, Any]:
    """Mean over prompts, each with two answers."""
    means = values.view(-1, 2).nanmean(dim=1)
    return bootstrap_mean(means[~means.isnan()].tolist(), np.random.default_rng(0)).to_dict()


if __name__ == "__main__":
    main()
