"""What a judge has cost so far: tokens, money, latency, retries and failures."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from surefoot.rewards.kinds.judge.call_config import CallConfig
from surefoot.rewards.kinds.judge.reply_cache import ReplyCache, default_path

__all__ = ["Totals", "totals", "totals_of"]


@dataclass(frozen=True)
class Totals:
    """Sums over finished calls.

    Args:
        calls: finished, with or without a reply.
        replies: that came.
        missing: calls without one, by reason.
        retries: tries after the first.
        tokens: (of prompts, of replies).
        money: by the prices in the settings.
        latency: seconds, (median, 95th percentile) of calls with a reply; None without one.
    """

    calls: int
    replies: int
    missing: dict[str, int]
    retries: int
    tokens: tuple[int, int]
    money: float
    latency: tuple[float, float] | None

    def to_dict(self) -> dict[str, Any]:
        return {
            "calls": self.calls,
            "replies": self.replies,
            "missing": self.missing,
            "retries": self.retries,
            "prompt_tokens": self.tokens[0],
            "completion_tokens": self.tokens[1],
            "money": self.money,
            "latency_median_s": None if self.latency is None else self.latency[0],
            "latency_95_s": None if self.latency is None else self.latency[1],
        }


def totals(cache: ReplyCache, since: float = 0.0) -> Totals:
    """Sum the calls of the cache's account, made by any process.

    Args:
        since: seconds since the epoch; earlier calls are left out.
    """
    rows = cache.rows(
        "select outcome, tries, prompt_tokens, completion_tokens, money, latency from calls "
        "where account = ? and time >= ?",
        cache.account,
        since,
    )
    latencies = sorted(row[5] for row in rows if row[0] == "reply")
    return Totals(
        calls=len(rows),
        replies=len(latencies),
        missing=dict(Counter(row[0] for row in rows if row[0] != "reply")),
        retries=sum(max(row[1] - 1, 0) for row in rows),
        tokens=(sum(row[2] for row in rows), sum(row[3] for row in rows)),
        money=sum(row[4] for row in rows),
        latency=(_quantile(latencies, 0.5), _quantile(latencies, 0.95)) if latencies else None,
    )


def totals_of(model: str, config: CallConfig, since: float = 0.0) -> Totals:
    """Sum what a model with these settings has cost in all processes that share its cache."""
    cache = ReplyCache(config.cache or default_path(), config.account(model))
    try:
        return totals(cache, since)
    finally:
        cache.close()


def _quantile(ordered: list[float], share: float) -> float:
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]
