"""Logs as one JSON object a line. They hold no text, no key and no message of an exception, which may quote a text."""

from __future__ import annotations

import json
import logging
import time
import traceback
from typing import Any

__all__ = ["LOG_CONFIG", "JsonLines", "where_raised"]

log = logging.getLogger("surefoot.serve")


class JsonLines(logging.Formatter):
    """Formats a record as JSON: time, level, message, and the fields in its `fields`."""

    def format(self, record: logging.LogRecord) -> str:
        held: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[1] is not None:
            held |= where_raised(record.exc_info[1])
        return json.dumps(held, ensure_ascii=True)


def where_raised(error: BaseException) -> dict[str, str]:
    """An exception's type and place, without its message."""
    last = traceback.extract_tb(error.__traceback__)[-1:]
    place = f"{last[0].filename}:{last[0].lineno}" if last else "unknown"
    return {"error": type(error).__name__, "at": place}


LOG_CONFIG: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"json": {"()": "surefoot.serving.logs.JsonLines"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json", "stream": "ext://sys.stderr"}},
    "loggers": {
        "uvicorn": {"handlers": ["stderr"], "level": "INFO", "propagate": False},
        "surefoot.serve": {"handlers": ["stderr"], "level": "INFO", "propagate": False},
    },
}
"""For `logging.config.dictConfig`."""
