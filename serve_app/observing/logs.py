"""Log lines as JSON, one object a line, on whatever handlers a process has."""

from __future__ import annotations

import json
import logging
import logging.handlers
from datetime import UTC, datetime
from typing import Literal

LOGGER = "ray.serve"
"""Serve's own: it writes to the replica's file. Ours are this one and those below it."""


class JsonFormatter(logging.Formatter):
    """`fields` of a record, a mapping, stand beside what every line has."""

    def __init__(self, deployment: str, replica: str) -> None:
        super().__init__()
        self._own = {"deployment": deployment, "replica": replica}

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            **self._own,
        }
        fields = getattr(record, "fields", None)
        if isinstance(fields, dict):
            line.update(fields)
        else:
            line["message"] = record.getMessage()
            line["source"] = f"{record.filename}:{record.lineno}"
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=True, default=str)


def configure_logging(log_format: Literal["json", "text"], deployment: str, replica: str) -> None:
    """Takes effect for the handlers that are there. With `text` they stay as Serve made them."""
    if log_format == "text":
        return
    formatter = JsonFormatter(deployment, replica)
    for handler in logging.getLogger(LOGGER).handlers:
        target = handler.target if isinstance(handler, logging.handlers.MemoryHandler) else handler
        if target is not None:
            target.setFormatter(formatter)
