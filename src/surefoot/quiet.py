"""Keeps libraries' own progress bars and warnings out of a command's output; surefoot's warnings become one line."""

from __future__ import annotations

import logging
import sys
import warnings
from typing import Any

__all__ = ["quieten"]


def quieten() -> None:
    """Call before the work of a command or of a worker process: what remains on the terminal is what surefoot says."""
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
