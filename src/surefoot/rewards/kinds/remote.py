"""A source behind `surefoot serve`: the server scores rows, and anchors and calibration are the client's own.

Its address and key come from the caller or the environment, never from a saved source, which could otherwise send
prompts anywhere: `SUREFOOT_REMOTE_URL`, and `SUREFOOT_REMOTE_KEY_VARIABLE`, which names the variable with the key.
"""

from __future__ import annotations

import http.client
import json
import math
import os
import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from jaxtyping import Float
from torch import Tensor

from surefoot.data.messages import is_cut
from surefoot.errors import ConfigError, DataError, ModelError, RowError, RunError
from surefoot.files import whole_directory, write_json
from surefoot.rewards.registry import register
from surefoot.rewards.saved import SOURCE, read_source
from surefoot.rewards.source import MemberSource, RewardSource, given_estimate, plain_constants
from surefoot.rewards.trunk.text_encoder import check_rows
from surefoot.types import Anchors, Calibration, MarginEstimate, RewardEstimate, Text

__all__ = ["KEY_VARIABLE", "URL", "RemoteMembers", "RemoteReward", "RemoteServer", "connect"]

URL, KEY_VARIABLE = "SUREFOOT_REMOTE_URL", "SUREFOOT_REMOTE_KEY_VARIABLE"
_PART = 256
"""Rows of one request."""
_AT_ONCE = 4
"""Requests under way, so that the server always has rows waiting."""


class RemoteServer:
    """HTTP requests to one server. A request is tried again while the server is full, away or restarting.

    Scoring twice does no harm, so also a request whose response was lost is sent again.

    Args:
        url: address, as in http://127.0.0.1:8000; https works as well.
        key: that the server asks for.
        timeout_s: of one try.
        patience_s: of all tries together.
        expected: the command that should be behind the address, for errors.
    """

    def __init__(
        self,
        url: str,
        key: str | None = None,
        timeout_s: float = 300.0,
        patience_s: float = 900.0,
        expected: str = "`surefoot serve`",
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"the server's address must be like http://127.0.0.1:8000, got '{url:.80}'")
        if parts.username is not None or parts.query:
            raise ConfigError("give the key of the server in a variable, not in its address")
        self._parts, self._key, self._timeout, self._patience = parts, key, timeout_s, patience_s
        self._expected = expected
        self.name = f"{parts.scheme}://{parts.netloc}{parts.path}".rstrip("/")

    def ask(self, path: str, payload: Any = None) -> Any:
        """The JSON that the server answers: to GET, or to POST with a payload.

        Raises:
            DataError: it refuses what was sent. ModelError: it refuses the key, failed, or isn't such a server.
            RunError: it was full or away for longer than `patience_s`.
        """
        end, tries = time.monotonic() + self._patience, 0
        while True:
            try:
                status, wait, body = self._once(path, payload)
                if status == 200:
                    return json.loads(body)
                reason = _reason(body) or f"HTTP {status}"
            except (OSError, http.client.HTTPException) as error:
                status, wait, reason = 503, 0.0, f"no answer ({type(error).__name__})"
            except ValueError:
                raise ModelError(f"{self.name}{path} doesn't answer in JSON; is it {self._expected}?") from None
            if status not in (408, 429, 502, 503, 504):
                raise (DataError if status in (413, 422) else ModelError)(f"{self.name}{path}: {reason}")
            wait = max(wait, min(10.0, 0.1 * 2.0**tries)) * random.uniform(1.0, 1.25)  # clients don't all come at once
            if time.monotonic() + wait > end:
                raise RunError(f"{self.name}{path}: {reason}, for {self._patience:.0f} s; run the same again later")
            tries += 1
            time.sleep(wait)

    def _once(self, path: str, payload: Any) -> tuple[int, float, bytes]:
        """Status, seconds to wait, and body of one try on a connection of its own."""
        secure = self._parts.scheme == "https"
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        connection = kind(self._parts.hostname or "", self._parts.port, timeout=self._timeout)
        headers = {"Content-Type": "application/json"} | (
            {"Authorization": f"Bearer {self._key}"} if self._key else {}
        )
        try:
            body = None if payload is None else json.dumps(payload).encode()
            connection.request(
                "GET" if payload is None else "POST", self._parts.path.rstrip("/") + path, body, headers
            )
            response = connection.getresponse()
            return response.status, _seconds(response.headers.get("Retry-After")), response.read()
        finally:
            connection.close()

    def score(
        self, prompts: Sequence[Text], completions: Sequence[Text], columns: int
    ) -> Float[Tensor, "rows columns"]:
        """The served source's scored rows.

        Raises:
            RowError: a row can't be scored. DataError, ModelError, RunError: as `ask`.
        """
        check_rows(prompts, completions)
        starts = range(0, len(prompts), _PART)
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            parts = threads.map(lambda start: self._part(prompts, completions, start), starts)
            rows = [row for part in parts for row in part]
        scores = torch.tensor(rows, dtype=torch.float32).view(len(prompts), -1) if rows else torch.zeros(0, columns)
        if scores.shape[1] != columns:
            raise ModelError(f"{self.name} gave rows of {scores.shape[1]} columns, not {columns}: another source now?")
        return scores

    def _part(self, prompts: Sequence[Text], completions: Sequence[Text], start: int) -> list[list[float]]:
        own = list(completions[start : start + _PART])
        sent = {"prompts": list(prompts[start : start + _PART]), "completions": own, "rows": True}
        cut = [is_cut(completion) for completion in own]
        answer = self.ask("/v1/rewards", sent | ({"cut": cut} if any(cut) else {}))
        for row, reason in answer["errors"].items():
            raise RowError(start + int(row), reason)
        return [[math.nan if x is None else x for x in row] for row in answer["rows"]]


@register("remote")
class RemoteMembers(MemberSource):
    """A served source of members: the server scores, and all arithmetic is done here, from the calibration it sent.

    Args:
        server: that was connected to.
        about: its description (`/v1/source`).
    """

    made_from = "served model"

    def __init__(self, server: RemoteServer, about: dict[str, Any]) -> None:
        self.server, self.name, self.fingerprint = server, about["name"], about["fingerprint"]
        self._members = int(about["num_members"])
        self.calibration = _calibration(about)
        self.variance_factor = float(about["variance_factor"])
        self.variance_kind, self.scale_members = about["variance_kind"], about["scale_members"]

    @property
    def num_members(self) -> int:
        return self._members

    def score(self, prompts: Sequence[Text], completions: Sequence[Text]) -> Float[Tensor, "batch columns"]:
        return self.server.score(prompts, completions, self.num_columns)

    def save(self, directory: str | Path) -> None:
        _save(self, directory)

    @classmethod
    def load(cls, directory: Path, device: str | torch.device | None = None) -> RewardSource:
        """Connect to the server that the environment names, which must serve the source that was saved."""
        held, source = read_source(directory), connect()
        for name, value in _identity(source).items():
            if held.get(name) != value:
                raise ModelError(
                    f"{directory} is a remote source with {name} {held.get(name)!r:.80}, but the server that {URL} "
                    f"names has {value!r:.80}; serve the right source, or save the remote one again"
                )
        return source


class RemoteReward(RewardSource):
    """A served source of any other kind: the server scores, and does the arithmetic of its posterior on the rows.

    The server's variance factor is in its variances; this one's own starts at 1.

    Args:
        server: that was connected to.
        about: its description (`/v1/source`).
    """

    kind = "remote"
    made_from = "served model"

    def __init__(self, server: RemoteServer, about: dict[str, Any]) -> None:
        self.server, self.name, self.fingerprint = server, about["name"], about["fingerprint"]
        self.centred = bool(about["centred"])
        self._columns, self._members = int(about["columns"]), about["num_members"]
        held = _calibration(about)
        self.calibration = None if held is None else replace(held, variance_factor=1.0)
        own = about["calibration_anchor"]
        self._own_anchor = None if own is None else torch.tensor(own, dtype=torch.float64)

    @property
    def num_columns(self) -> int:
        return self._columns

    @property
    def num_members(self) -> int | None:
        return None if self._members is None else int(self._members)

    def score(self, prompts: Sequence[Text], completions: Sequence[Text]) -> Float[Tensor, "batch columns"]:
        return self.server.score(prompts, completions, self.num_columns)

    def _estimate(self, scores: Float[Tensor, "batch columns"], anchors: Anchors | None) -> RewardEstimate:
        held = None
        if anchors is not None:
            own = {"kind": anchors.kind, "holds_own": anchors.holds_own}
            held = {"rows": _plain(anchors.rows), "count": _plain(anchors.count), **own}
        answer = self.server.ask("/v1/estimate", {"scores": _plain(scores), "anchors": held})
        if answer["variance"] is None:
            return RewardEstimate(_column(answer["mean"]))
        return given_estimate(_column(answer["mean"]), _column(answer["variance"]))

    def _margins(
        self, chosen: Float[Tensor, "pairs columns"], rejected: Float[Tensor, "pairs columns"]
    ) -> MarginEstimate:
        answer = self.server.ask("/v1/margins", {"chosen": _plain(chosen), "rejected": _plain(rejected)})
        return MarginEstimate(_column(answer["mean"]), _column(answer["variance"]))

    def _constants(self, scores: Float[Tensor, "batch columns"], anchors: Anchors | None) -> Calibration:
        return plain_constants(scores[:, 0])

    def _calibration_anchor(self) -> Float[Tensor, "columns"] | None:
        return self._own_anchor

    def save(self, directory: str | Path) -> None:
        _save(self, directory)

    @classmethod
    def load(cls, directory: Path, device: str | torch.device | None = None) -> RewardSource:
        return RemoteMembers.load(directory, device)


def connect(
    url: str | None = None, key: str | None = None, *, patience_s: float = 900.0
) -> RemoteMembers | RemoteReward:
    """The source that a server has.

    Args:
        url: of `surefoot serve`; None takes that of the environment variable `SUREFOOT_REMOTE_URL`.
        key: None takes it from the variable that `SUREFOOT_REMOTE_KEY_VARIABLE` names, if that is set.
        patience_s: how long a request is tried again while the server is full or away.

    Raises:
        ConfigError: there is no address, or no key where one is named. ModelError, RunError: see `RemoteServer.ask`.
    """
    address = url or os.environ.get(URL)
    if not address:
        raise ConfigError(
            f"a remote source's files don't say where your texts go: set {URL}, as http://127.0.0.1:8000"
        )
    variable = os.environ.get(KEY_VARIABLE)
    if key is None and variable:
        key = os.environ.get(variable)
        if not key:
            raise ConfigError(f"{KEY_VARIABLE} names {variable}, which holds no key; set it")
    server = RemoteServer(address, key, patience_s=patience_s)
    about = server.ask("/v1/source")
    try:
        return RemoteMembers(server, about) if about["arithmetic"] == "members" else RemoteReward(server, about)
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{server.name} doesn't describe a source of this version: {error}") from error


def _save(source: RemoteMembers | RemoteReward, directory: str | Path) -> None:
    """Write by what a server that has another source is told apart; caches of scores go by it, too."""
    with whole_directory(directory) as folder:
        write_json(folder / SOURCE, {"kind": "remote", **_identity(source)})


def _identity(source: Any) -> dict[str, Any]:
    shape = {"columns": source.num_columns, "num_members": source.num_members}
    return {"name": source.name, "fingerprint": source.fingerprint, **shape}


def _calibration(about: dict[str, Any]) -> Calibration | None:
    return None if about["calibration"] is None else Calibration.from_dict(about["calibration"])


def _plain(values: Float[Tensor, "..."]) -> list[Any]:
    """Numbers as JSON has them, null for NaN and infinity."""
    return [
        _plain(row) if row.ndim else (float(row) if bool(row.isfinite()) else None) for row in values.double().unbind()
    ]


def _column(values: list[float | None]) -> Float[Tensor, "rows"]:
    return torch.tensor([math.nan if value is None else value for value in values], dtype=torch.float64)


def _reason(body: bytes) -> str | None:
    """What a refusal says, if it is one of ours."""
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return None


def _seconds(value: str | None) -> float:
    try:
        return min(120.0, max(0.0, float(value or 0)))
    except ValueError:
        return 0.0
