"""Replace secrets in settings by `<redacted>` before they are written to disk or shown.

A secret is recognised by its name (`hub_token`, `api_key`, `password`, …), at any depth; or by its form, where a token
or an address with a password is kept under another name.
"""

from __future__ import annotations

import re
from typing import Any

__all__ = ["REDACTED", "holds_secret", "redacted"]

REDACTED = "<redacted>"
_NAME = re.compile(
    r"(^|_)(token|(secret_access|api|access|secret|private|ssh)_?key|password|passwd|passphrase|secrets?|credentials?|authorization)$"
)
_WORD = re.compile(r"(pad|eos|bos|unk|sep|mask|cls|image|video|audio|stop|think|special|start|end|decoder)_token$")
"""Names of settings that are tokens of a vocabulary, not secrets."""
_LOOKS = re.compile(r"\bhf_[A-Za-z0-9]{16,}|\bsk-[\w-]{16,}|\bgh[pousr]_[A-Za-z0-9]{20,}|(?<=://)[^/\s@]+(?=@)")


def redacted(values: Any) -> Any:
    """Copy plain values with their secrets replaced; None stays None.

    >>> redacted({"hub_token": "hf_x", "model_init_kwargs": {"token": "t"}, "pad_token": "<pad>", "max_tokens": 5})
    {'hub_token': '<redacted>', 'model_init_kwargs': {'token': '<redacted>'}, 'pad_token': '<pad>', 'max_tokens': 5}
    >>> redacted("https://me:pass@host/v1")
    'https://<redacted>@host/v1'
    """
    if isinstance(values, dict):
        return {name: REDACTED if _is_secret(name, value) else redacted(value) for name, value in values.items()}
    if type(values) in (list, tuple):
        return type(values)(redacted(value) for value in values)
    return _LOOKS.sub(REDACTED, values) if isinstance(values, str) else values


def holds_secret(values: Any) -> bool:
    """Whether anything in plain values is a secret."""
    return bool(redacted(values) != values)


def _is_secret(name: Any, value: Any) -> bool:
    text = str(name).lower().replace("-", "_")
    named = _NAME.search(text) and not _WORD.search(text)
    return bool(named) and value is not None and not isinstance(value, bool | dict)
