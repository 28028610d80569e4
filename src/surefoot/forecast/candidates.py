"""Candidates of a forecast: completions of the reference policy, drawn once and kept, or read from a file."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor
from trl import ModelConfig

from surefoot.data.messages import is_cut
from surefoot.data.preferences import load_completions
from surefoot.errors import DataError
from surefoot.files import fingerprint, write_text
from surefoot.forecast.vllm_sampling import VllmServer
from surefoot.rewards.trunk.text_encoder import prompt_keys
from surefoot.training.prepare_anchors import draw_completions
from surefoot.training.run_online import load_policy_tokenizer
from surefoot.training.sampling import load_policy, mark_cut
from surefoot.types import Text

__all__ = ["FEWEST", "Texts", "draw_candidates", "group_texts", "read_candidates"]

FEWEST = 8
"""Candidates of a prompt, below which its optimum says nothing."""


@dataclass(frozen=True, eq=False)
class Texts:
    """Prompts with their completions.

    Args:
        prompts, completions: one of each for each row.
        places: (prompts, candidates) row of each candidate, −1 where a prompt has fewer than others.
        order: (rows,) where each row was in what was given.
        left_out: prompts with fewer than `FEWEST` completions.
    """

    prompts: list[Text]
    completions: list[Text]
    places: Int[Tensor, "prompts candidates"]
    order: Int[Tensor, "rows"]
    left_out: int = 0


def draw_candidates(
    model_name_or_path: str,
    prompts: Sequence[Text],
    count: int,
    folder: Path,
    *,
    max_completion_length: int,
    temperature: float = 1.0,
    seed: int = 0,
    prompts_per_batch: int = 8,
    vllm_server_base_url: str | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Draw `count` completions of each prompt and write them to `folder/candidates.jsonl`, a line for each.

    Batches that are finished are kept in `folder/parts`, by their content, so that an interrupted call goes on.

    Args:
        vllm_server_base_url: of `vllm serve`, which then has the policy; here only its tokenizer is loaded.
        on_progress: called with (prompts done, prompts).
    """
    target = folder / "candidates.jsonl"
    if target.exists():
        return target
    tokenizer = load_policy_tokenizer(ModelConfig(model_name_or_path=model_name_or_path))
    policy: Callable[..., list[Text]]
    if vllm_server_base_url is None:
        policy = partial(draw_completions, load_policy(model_name_or_path))
    else:
        policy = VllmServer(vllm_server_base_url, model_name_or_path).draw
    lines: list[str] = []
    for start in range(0, len(prompts), prompts_per_batch):
        some = list(prompts[start : start + prompts_per_batch])
        settings = [some, count, max_completion_length, temperature, seed, model_name_or_path]
        part = folder / "parts" / f"{fingerprint(settings)}.jsonl"
        if not part.exists():
            texts = policy(
                tokenizer, some, count, max_new_tokens=max_completion_length, temperature=temperature, seed=seed
            )
            rows = zip((prompt for prompt in some for _ in range(count)), texts, strict=True)
            write_text(part, "".join(_line(prompt, text) for prompt, text in rows))
        lines.append(part.read_text(encoding="utf-8"))
        if on_progress is not None:
            on_progress(min(start + prompts_per_batch, len(prompts)), len(prompts))
    return write_text(target, "".join(lines))


def _line(prompt: Text, completion: Text) -> str:
    return (
        json.dumps({"prompt": prompt, "completion": completion, "cut": is_cut(completion)}, ensure_ascii=False) + "\n"
    )


def read_candidates(name: str) -> tuple[list[Text], list[Text]]:
    """(prompts, completions) of a file in any layout of completions; a column `cut` marks those that a limit cut off.

    Raises:
        DataError: a column is missing, or a row can't be read.
    """
    table = load_completions(name)
    completions = list(table["completion"])
    if "cut" in table.column_names:
        completions = mark_cut(completions, table["cut"])
    return list(table["prompt"]), completions


def group_texts(prompts: Sequence[Text], completions: Sequence[Text]) -> Texts:
    """Bring rows of the same prompt together, in the order of their first row.

    Raises:
        DataError: no prompt has enough completions.
    """
    if len(prompts) != len(completions):
        raise DataError(f"{len(prompts)} prompts for {len(completions)} completions; give one prompt for each")
    rows: dict[str, list[int]] = {}
    for row, key in enumerate(prompt_keys(list(prompts))):
        rows.setdefault(key, []).append(row)
    kept = [group for group in rows.values() if len(group) >= FEWEST]
    if not kept:
        most = max((len(group) for group in rows.values()), default=0)
        raise DataError(
            f"no prompt has {FEWEST} completions (the most is {most}); draw more of each from the reference policy"
        )
    order = [row for group in kept for row in group]
    places = torch.full((len(kept), max(map(len, kept))), -1)
    first = 0
    for place, group in enumerate(kept):
        places[place, : len(group)] = torch.arange(first, first + len(group))
        first += len(group)
    return Texts(
        [prompts[row] for row in order],
        [completions[row] for row in order],
        places,
        torch.tensor(order),
        len(rows) - len(kept),
    )
