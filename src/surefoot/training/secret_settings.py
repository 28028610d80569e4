"""Leave secrets out of settings that are written: TRL's classes save themselves with the hub's token."""

from __future__ import annotations

import copy
from typing import Any, Self

from surefoot.redaction import redacted

__all__ = ["SecretsStay"]


class SecretsStay:
    """Mixin for TRL's settings that writes `<redacted>` for a secret in pickles and `to_dict`.

    TRL pickles settings to `training_args.bin` and gives `to_dict` to loggers.

    The object itself, and copies of it, keep their secrets: the run still pushes with its token.
    """

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = redacted(self.__dict__)
        return state

    def to_dict(self) -> dict[str, Any]:
        plain: dict[str, Any] = redacted(super().to_dict())  # type: ignore[misc]
        return plain

    def __copy__(self) -> Self:
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        twin = object.__new__(type(self))
        memo[id(self)] = twin
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return twin
