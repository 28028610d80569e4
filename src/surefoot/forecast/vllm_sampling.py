"""Draw candidates from a policy that `vllm serve` serves, or another server with the same route `/v1/completions`."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from transformers import PreTrainedTokenizerBase

from surefoot.errors import ModelError
from surefoot.rewards.anchors import prompt_digest
from surefoot.rewards.kinds.remote import RemoteServer
from surefoot.training.sampling import mark_cut, prompt_ids
from surefoot.types import Text

__all__ = ["KEY", "VllmServer"]

KEY = "VLLM_API_KEY"
"""Environment variable with the server's key, if it asks for one; vLLM's own name for it."""
_AT_ONCE = 64
"""Requests under way."""
_PLAIN = {"top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
"""Sampling from the policy itself: a server otherwise takes defaults from the model's generation_config.json."""


class VllmServer:
    """A served policy.

    Args:
        url: address without `/v1`, as in TRL's `vllm_server_base_url`: http://127.0.0.1:8000.
        model: name under which the server has the policy.
    """

    def __init__(self, url: str, model: str) -> None:
        self._server = RemoteServer(url, os.environ.get(KEY) or None, expected="`vllm serve`")
        self._model = model

    def draw(
        self,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[Text],
        count: int,
        *,
        max_new_tokens: int,
        temperature: float,
        seed: int,
    ) -> list[Text]:
        """Draw `count` completions of each prompt, by a request for each.

        Args:
            tokenizer: of the policy; prompts become tokens here, as TRL's trainers read them.
            seed: with the prompt's own content, seeds its requests. Servers repeat a request only nearly.

        Returns:
            Completions in the prompts' formats, a prompt's one after the other; marked where `max_new_tokens` cut them
            off.

        Raises:
            DataError: the server refuses a prompt. ModelError: it refuses the key or model, or its answer isn't one.
            RunError: it was full or away for long.
        """
        limits = {"max_tokens": max_new_tokens, "temperature": temperature}
        requests = [
            {"prompt": ids, "seed": _seed(seed, prompt, i), **limits, **_PLAIN}
            for prompt, ids in ((prompt, prompt_ids(tokenizer, prompt)) for prompt in prompts)
            for i in range(count)
        ]
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            drawn = list(threads.map(self._completion, requests))
        asked = [prompt for prompt in prompts for _ in range(count)]
        texts: list[Text] = [
            text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
            for prompt, (text, _) in zip(asked, drawn, strict=True)
        ]
        return mark_cut(texts, [cut for _, cut in drawn])

    def _completion(self, request: dict[str, Any]) -> tuple[str, bool]:
        """Text, and whether the length limit cut it off."""
        answer = self._server.ask("/v1/completions", {"model": self._model, **request})
        try:
            choice = answer["choices"][0]
            return str(choice["text"]), choice["finish_reason"] == "length"
        except (KeyError, IndexError, TypeError) as error:
            raise ModelError(f"{self._server.name} answered without a completion; is it `vllm serve`?") from error


def _seed(seed: int, prompt: Text, number: int) -> int:
    return int(hashlib.sha256(f"{seed}:{prompt_digest(prompt)}:{number}".encode()).hexdigest()[:7], 16)
