"""Settings of `surefoot serve`."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass, field

from surefoot.errors import ConfigError

__all__ = ["ServeArguments"]

_AT_LEAST_ONE = (
    *("workers", "max_rows", "max_characters", "max_body_mib", "max_bodies_mib", "max_waiting", "max_waiting_tokens"),
    *("batch_tokens", "max_connections", "max_anchors"),
)


@dataclass
class ServeArguments:
    """What is served, where, and within which limits."""

    reward_source: str = field(metadata={"help": "Directory of a reward source, or its name on the hub."})
    host: str = field(default="127.0.0.1", metadata={"help": "Address to listen on; off loopback a key is needed."})
    port: int = field(default=8000, metadata={"help": "To listen on."})
    key_variable: str = field(
        default="SUREFOOT_SERVE_KEY",
        metadata={"help": "Environment variable that holds the key which clients must send; no key if it is unset."},
    )
    workers: int = field(default=1, metadata={"help": "Processes behind the address, each with a source of its own."})
    device: str | None = field(default=None, metadata={"help": "Of the source; the first accelerator if none."})
    anchor_file: str | None = field(
        default=None, metadata={"help": "Anchors made by `surefoot anchors`, to centre variances by."}
    )
    anchor_memory: str | None = field(
        default=None,
        metadata={
            "help": "SQLite file of the anchors made from clients' reference completions; in memory, and with one "
            "worker only, if none."
        },
    )
    max_anchors: int = field(default=100_000, metadata={"help": "Prompts whose anchors are made from clients'."})
    reference_variance: float | None = field(
        default=None, metadata={"help": "Weight is variance over this; the calibration's if none."}
    )
    end_of_text: str | None = field(
        default=None,
        metadata={
            "help": "Text of the end token of completions at /get_reward, as <|im_end|>: it is taken off, and a "
            "completion without it counts as cut off at the length limit."
        },
    )
    batch_tokens: int = field(default=16_384, metadata={"help": "Of a batch, about (four characters are a token)."})
    max_waiting: int = field(default=4096, metadata={"help": "Rows in the queue; more are refused."})
    max_waiting_tokens: int = field(default=4_000_000, metadata={"help": "Of all rows in the queue, about."})
    max_rows: int = field(default=1024, metadata={"help": "Rows of one request."})
    max_characters: int = field(default=200_000, metadata={"help": "Of one row's prompt and completion."})
    max_body_mib: int = field(default=8, metadata={"help": "Of one request."})
    max_bodies_mib: int = field(default=256, metadata={"help": "Of all requests that are being received."})
    max_connections: int = field(default=2048, metadata={"help": "Open at a time; further ones get 503."})
    body_seconds: float = field(default=20.0, metadata={"help": "In which a request must have been sent."})
    drain_seconds: float = field(default=60.0, metadata={"help": "For accepted requests after SIGTERM."})

    @property
    def key(self) -> str | None:
        """The key that clients must send; None for none."""
        return os.environ.get(self.key_variable) or None

    def check(self) -> None:
        """Refuse settings that can't be served, before anything is loaded.

        Raises:
            ConfigError: what is wrong; also a host off loopback without a key.
        """
        for name in _AT_LEAST_ONE:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("body_seconds", "drain_seconds", "reference_variance"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name} must be positive, got {value}")
        if not 0 <= self.port < 65536:
            raise ConfigError(f"port must be between 0 and 65535, got {self.port}")
        if self.max_rows > self.max_waiting:
            raise ConfigError(f"max_rows, {self.max_rows}, must not be more than max_waiting, {self.max_waiting}")
        if not _is_loopback(self.host) and self.key is None:
            raise ConfigError(
                f"host {self.host} can be reached from other machines, and {self.key_variable} holds no key: set that "
                "environment variable, or listen on 127.0.0.1"
            )


def _is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address; a name other than localhost counts as reachable."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
