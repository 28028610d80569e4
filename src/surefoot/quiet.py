"""Silence libraries' progress bars and warnings, and show surefoot's own warnings as one line."""

from __future__ import annotations

import logging
import sys
import warnings
from typing import Any

__all__ = ["quieten"]


def quieten() -> None:
    """Silence libraries for the rest of the process; call it before the work of a command or worker."""
    import datasets
    import transformers

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)  # a file that can't be read is our error to tell
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    warnings.simplefilter("ignore", FutureWarning)
    warnings.simplefilter("ignore", DeprecationWarning)
    warnings.showwarning = _one_line


def _one_line(message: Warning | str, category: type[Warning], filename: str, *_: Any, **__: Any) -> None:
    if "surefoot" in filename or category is not UserWarning:
        sys.stderr.write(f"note: {message}\n")
