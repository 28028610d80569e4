"""What a policy's completions are worth in true reward, and the reference policy's, measured once a study."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer

from surefoot.errors import DataError
from surefoot.files import fingerprint, read_json, write_json
from surefoot.studies.settings import EVALUATION_SEED, Setting, sample
from surefoot.types import Text

__all__ = ["judge_policy", "reference_of"]


def reference_of(setting: Setting, folder: Path, completions: int, max_new_tokens: int) -> dict[str, Any]:
    """The reference policy's completions of the evaluation prompts with their true reward; of the training prompts
    the mean alone (`train_mean`), where trajectories start.

    Args:
        completions: of each.
        max_new_tokens: of a completion.
    """
    path = folder / "reference" / f"{fingerprint([setting.identity, completions, max_new_tokens])}.json"
    if path.exists():
        held: dict[str, Any] = read_json(path)
        return held
    model = AutoModelForCausalLM.from_pretrained(setting.policy)
    tokenizer = AutoTokenizer.from_pretrained(setting.policy)
    found = judge_policy(setting, model, tokenizer, setting.evaluation_prompts, completions, max_new_tokens)
    train = judge_policy(setting, model, tokenizer, setting.train_prompts, completions, max_new_tokens)
    found["train_mean"] = train["mean"]
    write_json(path, found)
    return found


def judge_policy(
    setting: Setting, model: Any, tokenizer: Any, prompts: list[Text], completions: int, max_new_tokens: int
) -> dict[str, Any]:
    """`prompts`, `completions`, their `gold` (None where it couldn't be told), and the mean of what is known.

    The prompts are taken in turn, with one seed for all policies.

    Raises:
        DataError: gold told nothing at all.
    """
    asked = [prompts[i % len(prompts)] for i in range(completions)]
    texts = sample(model, tokenizer, asked, max_new_tokens=max_new_tokens, seed=EVALUATION_SEED)
    gold = [value if math.isfinite(value) else None for value in setting.gold(asked, texts)]
    known = [value for value in gold if value is not None]
    if not known:
        raise DataError(f"gold gave no finite reward for any of {len(asked)} completions")
    return {"prompts": asked, "completions": texts, "gold": gold, "mean": sum(known) / len(known)}
