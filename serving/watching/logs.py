"""Log lines with the job, tenant, request and trace they are about. JSON where nobody reads along.

Messages are ours and never hold a prompt or a key. `bind` names what the lines of a block are about, in this thread or
task and in those that it starts by `asyncio.to_thread`.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Literal

from serving.watching import tracing

LogFormat = Literal["auto", "text", "json"]

_about: ContextVar[dict[str, str] | None] = ContextVar("about", default=None)


@contextmanager
def bind(**about: str | None) -> Iterator[None]:
    """job, tenant, request_id, trace_id of every line that is logged in this block."""
    known = {name: value for name, value in about.items() if value}
    token = _about.set({**(_about.get() or {}), **known})
    try:
        yield
    finally:
        _about.reset(token)


def set_up(log_format: LogFormat = "auto", *, process: str = "") -> None:
    """Sends this process's log lines to stderr; `auto` is text at a terminal and JSON elsewhere."""
    as_json = log_format == "json" or (log_format == "auto" and not sys.stderr.isatty())
    handler = logging.StreamHandler()
    handler.addFilter(_name_what_it_is_about)
    handler.setFormatter(_Json(process) if as_json else _Text(process))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    # They say each request to a store or a receiver, with its URL.
    for name in ("httpx", "httpcore", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _name_what_it_is_about(record: logging.LogRecord) -> bool:
    about = dict(_about.get() or {})
    traced = tracing.trace_id(tracing.current())
    if traced:
        about.setdefault("trace_id", traced)
    record.about = about
    return True


class _Json(logging.Formatter):
    """One object a line."""

    def __init__(self, process: str):
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **({"process": self._process} if self._process else {}),
            **getattr(record, "about", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


class _Text(logging.Formatter):
    """For people: time, level, logger, message, and what it is about in brackets."""

    def __init__(self, process: str):
        super().__init__(f"%(asctime)s %(levelname)s {process + ' ' if process else ''}%(name)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        about = getattr(record, "about", {})
        shown = " ".join(f"{name}={value}" for name, value in about.items())
        return super().formatMessage(record) + (f" [{shown}]" if shown else "")
