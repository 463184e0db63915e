"""Traces, through to SQL, for whoever has a collector: off unless one is named.

`OTEL_EXPORTER_OTLP_ENDPOINT`, or `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`, names it; the other
variables of OpenTelemetry (service name, headers, sampler, batches) count as well. A
request that brings a `traceparent` is part of the trace that it names.

Nothing is global here, so that two applications in one process do not share a trace.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import Context
from typing import Any, override

from litestar.middleware import DefineMiddleware
from litestar.types import Scope
from opentelemetry import trace
from opentelemetry.context import Context as TraceContext
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.instrumentation.sqlalchemy.engine import EngineTracer
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Link, Status
from sqlalchemy.ext.asyncio import AsyncEngine

from api.request_ids import REQUEST_ID

_SERVICE = "taxi-booking"
_SWITCHES = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_REQUEST_ID = "taxi.request_id"
_GROUP_SIZE = "taxi.group_size"
TOLD = frozenset(
    {
        "http.method",
        "http.request.method",
        "http.route",
        "http.status_code",
        "http.response.status_code",
        "db.system",
        "db.system.name",
        "db.operation",
        "db.operation.name",
        "db.statement",
        "db.query.text",
        "exception.type",
        _REQUEST_ID,
        _GROUP_SIZE,
    }
)
"""The attributes that leave the house. Statements carry placeholders, and no values."""


def wanted(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the environment names a collector, and does not switch OpenTelemetry off."""
    off = environment.get("OTEL_SDK_DISABLED", "").lower() == "true"
    return not off and any(environment.get(each) for each in _SWITCHES)


class Tracing:
    """Makes a span of each request and of each statement that is run for it."""

    def __init__(self) -> None:
        named = OTELResourceDetector().detect().attributes
        resource = Resource.create({} if SERVICE_NAME in named else {SERVICE_NAME: _SERVICE})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._tracer = self._provider.get_tracer(_SERVICE)

    @property
    def middleware(self) -> DefineMiddleware:
        """Goes round each route, so that spans are named for it and not for the path."""
        return DefineMiddleware(
            OpenTelemetryMiddleware,  # type: ignore[arg-type]  # its own words for the same
            default_span_details=_named_for_the_route,
            server_request_hook=_with_the_request_id,
            exclude_spans=["receive", "send"],
            tracer_provider=self._provider,
            meter_provider=NoOpMeterProvider(),
        )

    def follow(self, *engines: AsyncEngine) -> None:
        """Make a span of each statement of these engines."""
        # Not by the library's own switch, which is thrown once a process and for all engines.
        usage = NoOpMeterProvider().get_meter(_SERVICE).create_up_down_counter("unused")
        for engine in engines:
            EngineTracer(self._tracer, engine.sync_engine, usage)  # type: ignore[no-untyped-call]

    @contextmanager
    def exporting(self) -> Iterator[None]:
        """Send spans to the collector until the block is left; then what is left of them."""
        # Loaded only where it is wanted: it brings an HTTP client of its own.
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415
            OTLPSpanExporter,
        )

        self._provider.add_span_processor(BatchSpanProcessor(Discreet(OTLPSpanExporter())))
        try:
            yield
        finally:
            self._provider.shutdown()

    @contextmanager
    def group(self, origins: Sequence[Context]) -> Iterator[None]:
        """Surrounds a write on behalf of those who asked in these contexts.

        For one it is a part of that one's trace. A write for several is no part of any:
        it is a trace of its own, and each side has a link to the other.
        """
        asking = [
            span
            for span in (origin.run(trace.get_current_span) for origin in origins)
            if span.get_span_context().is_valid
        ]
        if len(origins) == 1 and asking:
            with trace.use_span(asking[0], record_exception=False, set_status_on_exception=False):
                yield
            return
        with self._tracer.start_as_current_span(
            "grouped write",
            context=TraceContext(),
            links=[Link(span.get_span_context()) for span in asking],
            attributes={_GROUP_SIZE: len(origins)},
        ) as write:
            for span in asking:
                if span.is_recording():  # else its client has gone
                    span.add_link(write.get_span_context())
            yield


@contextmanager
def untraced() -> Iterator[None]:
    """What is started within makes no spans: work that no request has asked for."""
    with suppress_instrumentation():
        yield


class Discreet(SpanExporter):
    """Hands spans on, without whatever is about people, addresses or values.

    The libraries that make them add addresses, query strings and, where a statement
    failed, PostgreSQL's words, which quote the row.
    """

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter

    @override
    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return self._exporter.export([_discreet(span) for span in spans])

    @override
    def shutdown(self) -> None:
        self._exporter.shutdown()

    @override
    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._exporter.force_flush(timeout_millis)


def _discreet(span: ReadableSpan) -> ReadableSpan:
    return ReadableSpan(
        name=span.name,
        context=span.context,
        parent=span.parent,
        resource=span.resource,
        attributes=_told(span.attributes),
        events=[Event(each.name, _told(each.attributes), each.timestamp) for each in span.events],
        links=span.links,
        kind=span.kind,
        status=Status(span.status.status_code),
        start_time=span.start_time,
        end_time=span.end_time,
        instrumentation_scope=span.instrumentation_scope,
    )


def _told(attributes: Mapping[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in (attributes or {}).items() if name in TOLD}


def _named_for_the_route(scope: Scope) -> tuple[str, dict[str, Any]]:
    route = scope["path_template"]
    return f"{scope.get('method')} {route}", {"http.route": route}


def _with_the_request_id(span: trace.Span, _scope: Mapping[str, Any]) -> None:
    span.set_attribute(_REQUEST_ID, REQUEST_ID.get() or "")
