"""Measure the true reward of a policy's completions; the reference policy's is measured once and kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from transformers import AutoTokenizer

from surefoot.data.messages import is_cut
from surefoot.errors import DataError
from surefoot.files import fingerprint, read_json, write_json
from surefoot.rewards.source import RewardSource
from surefoot.rewards.trunk.text_encoder import prompt_keys
from surefoot.studies.settings import EVALUATION_SEED, Setting
from surefoot.training.sampling import load_policy, mark_cut, sample_completions
from surefoot.types import Anchors, Text

__all__ = ["judge_policy", "prompt_gains", "prompt_risk", "reference_anchors", "reference_of"]


def reference_of(setting: Setting, folder: Path, completions: int, max_new_tokens: int) -> dict[str, Any]:
    """The reference policy's completions of the evaluation prompts with their true reward; of the training prompts
    the mean alone (`train_mean`), where trajectories start.

    Args:
        completions: of each.
        max_new_tokens: of a completion.
    """
    path = folder / "reference" / f"{fingerprint([setting.identity, completions, max_new_tokens, 'cut'])}.json"
    if path.exists():
        held: dict[str, Any] = read_json(path)
        return held | {"completions": mark_cut(held["completions"], held["cut"])}
    model = load_policy(setting.policy, setting.device)
    tokenizer = AutoTokenizer.from_pretrained(setting.policy, trust_remote_code=False)
    judged = judge_policy(setting, model, tokenizer, setting.evaluation_prompts, completions, max_new_tokens)
    train = judge_policy(setting, model, tokenizer, setting.train_prompts, completions, max_new_tokens)
    judged["train_mean"] = train["mean"]
    write_json(path, judged)
    return judged


def judge_policy(
    setting: Setting, model: Any, tokenizer: Any, prompts: list[Text], completions: int, max_new_tokens: int
) -> dict[str, Any]:
    """Sample a policy and give `prompts`, `completions`, `cut` (by the length limit), true rewards `gold`, and `mean`.

    Gold is None where it couldn't be told.

    The prompts are taken in turn, with one seed for all policies.

    Raises:
        DataError: gold told nothing at all.
    """
    asked = [prompts[i % len(prompts)] for i in range(completions)]
    texts = sample_completions(model, tokenizer, asked, max_new_tokens=max_new_tokens, seed=EVALUATION_SEED)
    gold = [value if math.isfinite(value) else None for value in setting.gold(asked, texts)]
    known = [value for value in gold if value is not None]
    if not known:
        raise DataError(f"gold gave no finite reward for any of {len(asked)} completions")
    cut = [is_cut(text) for text in texts]
    return {"prompts": asked, "completions": texts, "cut": cut, "gold": gold, "mean": sum(known) / len(known)}


def prompt_gains(reference: dict[str, Any], final: dict[str, Any]) -> tuple[list[float | None], list[int]]:
    """Of each evaluation prompt, in the order of its first completion: the final policy's mean true reward minus the
    reference's, and the number of the final policy's completions behind it.

    A gain is None where gold told nothing of one of the two; completions without a true reward don't count.

    Args:
        reference, final: of `judge_policy`, on the same prompts.
    """
    before, after = _gold_by_prompt(reference), _gold_by_prompt(final)
    pairs = [(before.get(key, []), values) for key, values in after.items()]
    gains = [fmean(theirs) - fmean(ours) if ours and theirs else None for ours, theirs in pairs]
    return gains, [len(theirs) for _, theirs in pairs]


def prompt_risk(gains: list[float | None]) -> float | None:
    """Share of the prompts with a known gain that are worse off than under the reference; None if none is known.

    >>> prompt_risk([0.5, -0.1, None, 0.0]) == 1 / 3
    True
    """
    worse = [gain < 0 for gain in gains if gain is not None]
    return sum(worse) / len(worse) if worse else None


def reference_anchors(source: RewardSource, reference: dict[str, Any], prompts: Sequence[Text], most: int) -> Anchors:
    """Anchors of some evaluation prompts from the reference policy's completions that were judged.

    Args:
        reference: of `judge_policy`, on the same prompts.
        most: completions of a prompt that are scored for its anchor.
    """
    keys, asked = prompt_keys(reference["prompts"]), prompt_keys(prompts)
    places = {key: [i for i, other in enumerate(keys) if other == key][:most] for key in dict.fromkeys(asked)}
    wanted = [i for rows_of_prompt in places.values() for i in rows_of_prompt]
    scores = source.score(*([reference[name][i] for i in wanted] for name in ("prompts", "completions"))).double()
    rows = dict(zip(places, scores.split([len(rows_of_prompt) for rows_of_prompt in places.values()]), strict=True))
    count = torch.tensor([float(len(places[key])) for key in asked])
    return Anchors(torch.stack([rows[key].nanmean(dim=0) for key in asked]), "reference", count)


def _gold_by_prompt(judged: dict[str, Any]) -> dict[str, list[float]]:
    """The known true rewards of each prompt's completions; nothing is an empty list."""
    known: dict[str, list[float]] = {}
    for key, value in zip(prompt_keys(judged["prompts"]), judged["gold"], strict=True):
        known.setdefault(key, []).extend([] if value is None else [value])
    return known
