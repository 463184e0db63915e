"""The log: a line an event, as JSON for programs or in columns for people.

Everything goes through the standard library's `logging`, so what uvicorn, SQLAlchemy and
Alembic say comes out in the same form. Fields of an event are given as `extra`; none but
those named here come through.
"""

import logging
import re
import sys
from collections.abc import Sequence
from typing import Any

import structlog
from opentelemetry import trace
from structlog.typing import EventDict, Processor

from api.request_ids import REQUEST_ID

STYLES = ("auto", "json", "text")
"""`auto` is text at a terminal, and JSON anywhere else."""

_FIELDS = ("method", "route", "status", "duration_ms")
# PostgreSQL says here what stood in the row: people's names and times, which are not for a log.
_WHAT_A_ROW_HOLDS = re.compile(r"^\s*(DETAIL|CONTEXT):.*$\n?", re.MULTILINE)


def config(level: str, style: str = "auto") -> dict[str, Any]:
    """The configuration for `logging.config.dictConfig`, here and in every worker process."""
    at_a_terminal = sys.stderr.isatty()
    as_json = style == "json" or (style == "auto" and not at_a_terminal)
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "one": {"()": formatter, "as_json": as_json, "colors": at_a_terminal},
        },
        "handlers": {
            "stderr": {
                "class": "logging.StreamHandler",
                "stream": "ext://sys.stderr",
                "formatter": "one",
            },
        },
        "root": {"handlers": ["stderr"], "level": level.upper()},
        "loggers": {
            "uvicorn.error": {"level": level.upper()},  # unset, it would trace each connection
            # At INFO the one writes every statement, and the other every address.
            "sqlalchemy": {"level": "WARNING"},
            "httpx": {"level": "WARNING"},
            "alembic.runtime.plugins": {"level": "WARNING"},
        },
    }


def formatter(*, as_json: bool, colors: bool) -> logging.Formatter:
    """Writes a record of the log as one event."""
    render: Sequence[Processor]
    if as_json:
        render = (structlog.processors.format_exc_info, _discreet, _as_json())
    else:
        render = (structlog.processors.format_exc_info, _discreet, _as_text(colors))
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.stdlib.ExtraAdder(allow=_FIELDS),
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _who_asked,
        ],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
    )


def _as_json() -> Processor:
    return structlog.processors.JSONRenderer(ensure_ascii=False)


def _as_text(colors: bool) -> Processor:
    return structlog.dev.ConsoleRenderer(
        colors=colors, exception_formatter=structlog.dev.plain_traceback
    )


def _who_asked(_logger: Any, _method: str, event: EventDict) -> EventDict:
    """Add the id of the request on whose behalf this is said, and of its trace, if any."""
    request_id = REQUEST_ID.get()
    if request_id is not None:
        event["request_id"] = request_id
    span = trace.get_current_span().get_span_context()
    if span.is_valid:
        event["trace_id"] = trace.format_trace_id(span.trace_id)
    return event


def _discreet(_logger: Any, _method: str, event: EventDict) -> EventDict:
    """Leave out what PostgreSQL quotes of a row."""
    for field in ("event", "exception"):
        if isinstance(event.get(field), str):
            event[field] = _WHAT_A_ROW_HOLDS.sub("", event[field])
    return event
