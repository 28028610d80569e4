"""Settings of calls to a served model: where, how often, how fast, and their budget. They never hold a key."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, Literal, Self
from urllib.parse import parse_qs, urlsplit

from surefoot.errors import ConfigError
from surefoot.files import fingerprint

__all__ = ["OPENAI", "CallConfig"]

OPENAI = "https://api.openai.com/v1"


@dataclass(frozen=True)
class CallConfig:
    """Settings that every kind of reward has whose replies come from an OpenAI-compatible server.

    Args:
        endpoint: base address of an OpenAI-compatible server.
        key_variable: name of the environment variable that holds the key; none for a server that asks for none.
            OpenAI's own address takes OPENAI_API_KEY. No other address is ever sent that one unasked.
        samples: replies to each question.
        temperature: of the replies.
        reason: ask for a short reason before the rating.
        structured: how JSON is asked for. "auto" tries a JSON schema and leaves it out where the server refuses it.
        max_tokens: of a reply.
        token_parameter: what the server calls that.
        parameters: further fields of every request, such as top_p.
        sample_seed: if given, sample i is asked with `seed` this + i.
        min_valid: fewest valid replies of what is scored.
        concurrency: calls in flight.
        requests_per_minute, tokens_per_minute: limits of this process; none if None.
        retries: of one call, after its first try.
        backoff_s, backoff_limit_s: first wait before a retry, doubled each time up to the limit; the wait is drawn
            between half of that and all of it, and is never shorter than the server's Retry-After.
        timeout_s: of one try, from its start to the last byte.
        deadline_s: of all calls of one completion, with retries and waits, from the start of the first.
        budget_tokens, budget_money: of this judge in all runs that share its cache; no call starts beyond it.
        price_input, price_output: money for a million tokens.
        cache: SQLite file of the replies; `surefoot/judge.sqlite` in the user's cache directory if None.
        variance_of: "reply", s²: of one reply; or "mean", s²/n: of the mean of all replies.
        variance: "moderated" or "raw".
        max_pairs: held-out pairs that `surefoot reward` spends calls on.

    Raises:
        ConfigError: a value out of range, a contradiction, or a secret in the endpoint or the parameters.
    """

    endpoint: str = OPENAI
    key_variable: str | None = None
    samples: int = 3
    temperature: float = 1.0
    reason: bool = False
    structured: Literal["auto", "json_schema", "json_object", "none"] = "auto"
    max_tokens: int = 256
    token_parameter: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    parameters: dict[str, Any] = field(default_factory=dict)
    sample_seed: int | None = None
    min_valid: int | None = None
    concurrency: int = 16
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    retries: int = 5
    backoff_s: float = 0.5
    backoff_limit_s: float = 30.0
    timeout_s: float = 60.0
    deadline_s: float = 180.0
    budget_tokens: int | None = None
    budget_money: float | None = None
    price_input: float | None = None
    price_output: float | None = None
    cache: str | None = None
    variance_of: Literal["reply", "mean"] = "reply"
    variance: Literal["moderated", "raw"] = "moderated"
    max_pairs: int = 100

    CHOICES: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "structured": ("auto", "json_schema", "json_object", "none"),
        "token_parameter": ("max_tokens", "max_completion_tokens"),
        "variance_of": ("reply", "mean"),
        "variance": ("moderated", "raw"),
    }
    AT_LEAST: ClassVar[Mapping[str, float]] = {
        "samples": 1,
        "temperature": 0,
        "max_tokens": 1,
        "min_valid": 1,
        "concurrency": 1,
        "retries": 0,
        "backoff_s": 0,
        "backoff_limit_s": 0,
        "budget_tokens": 0,
        "budget_money": 0,
        "price_input": 0,
        "price_output": 0,
        "max_pairs": 2,
    }
    LIMITS: ClassVar[frozenset[str]] = frozenset(
        {
            *("concurrency", "requests_per_minute", "tokens_per_minute", "retries", "backoff_s", "backoff_limit_s"),
            *("timeout_s", "deadline_s", "budget_tokens", "budget_money", "price_input", "price_output", "cache"),
            *("max_pairs", "variance_of", "variance", "min_valid", "key_variable"),
        }
    )
    """Settings that change no request."""

    def __post_init__(self) -> None:
        for name, allowed in self.CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name} must be one of {', '.join(allowed)}, got '{getattr(self, name)}'")
        for name, least in self.AT_LEAST.items():
            value = getattr(self, name)
            if value is not None and not value >= least:
                raise ConfigError(f"{name} must be at least {least}, got {value}")
        for name in _POSITIVE:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name} must be positive, got {value}")
        if self.budget_money is not None and (self.price_input is None or self.price_output is None):
            raise ConfigError("budget_money needs price_input and price_output, money for a million tokens")
        self._refuse_secrets()

    def _refuse_secrets(self) -> None:
        address = urlsplit(self.endpoint)
        if address.scheme not in ("http", "https") or not address.hostname:
            raise ConfigError("endpoint must be an http or https address, such as https://api.openai.com/v1")
        if "api-version" in parse_qs(address.query, keep_blank_values=True):
            raise ConfigError(
                "endpoint must not hold Azure's ?api-version=: give Azure's v1 address, which needs none, "
                "https://NAME.openai.azure.com/openai/v1, and the deployment's name as the model"
            )
        if address.username or address.password or address.query:
            raise ConfigError("endpoint must hold no key; name the environment variable that does: key_variable")
        if self.key_variable is not None and not self.key_variable.isidentifier():
            raise ConfigError("key_variable must be the name of an environment variable, not the key itself")
        hidden = sorted(set(self.parameters) & _NOT_PARAMETERS)
        if hidden:
            raise ConfigError(f"parameters must not hold {', '.join(hidden)}; there are settings for that")

    @property
    def variable(self) -> str | None:
        """Name of the environment variable that holds the key."""
        return self.key_variable or ("OPENAI_API_KEY" if self.endpoint.rstrip("/") == OPENAI else None)

    @property
    def form_name(self) -> str:
        """What a server may refuse of a request, so that it is put in other forms (`Call.forms`)."""
        return "structured"

    @property
    def budget(self) -> tuple[float, float]:
        """Tokens and money that may be spent; infinite where there is no budget."""
        tokens, money = self.budget_tokens, self.budget_money
        return (math.inf if tokens is None else tokens, math.inf if money is None else money)

    @property
    def budget_in_words(self) -> str:
        tokens = [] if self.budget_tokens is None else [f"{self.budget_tokens} tokens"]
        money = [] if self.budget_money is None else [f"{self.budget_money:g} in money"]
        return " and ".join(tokens + money)

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Money for so many tokens; 0 without prices."""
        into, out = self.price_input or 0.0, self.price_output or 0.0
        return (prompt_tokens * into + completion_tokens * out) / 1e6

    def account(self, model: str) -> str:
        """Hash of model and settings without limits: calls with the same one share a budget."""
        return fingerprint([model, {k: v for k, v in asdict(self).items() if k not in self.LIMITS}])

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values that `from_dict` reads."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ConfigError(f"a judge has no setting {', '.join(unknown)}; it has {', '.join(sorted(known))}")
        return cls(**values)


_POSITIVE = ("requests_per_minute", "tokens_per_minute", "timeout_s", "deadline_s")
_NOT_PARAMETERS = {
    *("api_key", "authorization", "messages", "model", "n", "stream", "temperature", "response_format", "logprobs"),
    *("top_logprobs", "max_tokens", "max_completion_tokens", "seed", "headers", "extra_headers"),
    *(
        "api_base",
        "api_version",
        "base_url",
        "extra_body",
        "extra_query",
        "fallbacks",
    ),  # gateways go elsewhere by them
}
