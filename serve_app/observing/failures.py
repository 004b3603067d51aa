"""Reports of what nobody foresaw, for Sentry. Imported only where a DSN is set.

What is sent is made anew out of what is named here, because an SDK that collects by itself learns to collect more with each
version: the types of the exceptions, where in the code they were raised, and tags of ours. Their texts are left out: they name
files, columns and values.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING

from sentry_sdk import Client
from sentry_sdk.utils import event_from_exception

if TYPE_CHECKING:
    from sentry_sdk.types import Event, Hint

MOST = 30
PER_S = 60.0
"""Reports of one process: one fault in a busy service is ten thousand times the same."""
_FLUSH_S = 2.0
_FRAME = ("filename", "function", "module", "lineno", "in_app")
_TEXT = "(left out)"


class SentryReports:
    """Sends on a thread of its own; at most a hundred wait for it."""

    def __init__(self, dsn: str, deployment: str, replica: str) -> None:
        self._tags = {"deployment": deployment, "replica": replica}
        self._sent: deque[float] = deque(maxlen=MOST)
        # Not `sentry_sdk.init`: that is the process's, and others in it could send through it what we would not.
        self._client = Client(
            dsn=dsn,
            release=f"kinlens@{version('kinlens')}",
            server_name=deployment,
            default_integrations=False,
            auto_enabling_integrations=False,
            auto_session_tracking=False,
            send_client_reports=False,
            include_local_variables=False,
            include_source_context=False,
            max_request_body_size="never",
            max_breadcrumbs=0,
            shutdown_timeout=_FLUSH_S,
            before_send=scrubbed,
        )

    def report(self, error: BaseException, where: Mapping[str, str | None] | None = None, *, flush: bool = False) -> None:
        """See outlets.Reports.report."""
        now = time.monotonic()
        if len(self._sent) == MOST and now - self._sent[0] < PER_S:
            return
        self._sent.append(now)
        event, hint = event_from_exception(error, client_options=self._client.options)
        event["tags"] = self._tags | {key: value for key, value in (where or {}).items() if value is not None}
        self._client.capture_event(event, hint)
        if flush:
            self._client.flush(timeout=_FLUSH_S)

    def close(self) -> None:
        self._client.close(timeout=_FLUSH_S)


def scrubbed(event: Event, _: Hint) -> Event | None:
    """What may leave the machine of an event; nothing else does."""
    exceptions = (event.get("exception") or {}).get("values") or []
    kept: Event = {
        "exception": {
            "values": [
                {
                    "type": one.get("type"),
                    "module": one.get("module"),
                    "value": _TEXT,
                    "mechanism": {"type": "generic", "handled": True},
                    "stacktrace": {"frames": [_frame(frame) for frame in (one.get("stacktrace") or {}).get("frames") or []]},
                }
                for one in exceptions
            ]
        },
        "tags": event.get("tags", {}),
        "level": "error",
        "platform": "python",
    }
    for name in ("event_id", "timestamp", "release", "environment", "server_name"):
        if name in event:
            kept[name] = event[name]
    return kept


def _frame(frame: Mapping[str, object]) -> dict[str, object]:
    return {name: frame[name] for name in _FRAME if name in frame}
