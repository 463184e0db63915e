"""A trace, seen end to end in a collector on loopback."""

import asyncio
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import asyncpg
import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from api import tracing
from tests.api.conftest import add, at
from tests.conftest import AUTHORIZATION, RunningService

NAME = "Philippa"
TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"


class Collector:
    """Takes what is sent by OTLP over HTTP, and keeps it."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.resources: list[dict[str, str]] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:  # the library's name
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector.take(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def take(self, request: ExportTraceServiceRequest) -> None:
        for resource in request.resource_spans:
            self.resources.append(_attributes(resource.resource))
            for scope in resource.scope_spans:
                self.spans.extend(scope.spans)

    def named(self, name: str) -> list[Span]:
        return [span for span in self.spans if span.name == name]

    def below(self, span: Span) -> list[Span]:
        return [each for each in self.spans if each.parent_span_id == span.span_id]


def _attributes(thing: Any) -> dict[str, str]:
    return {each.key: each.value.string_value or str(each.value) for each in thing.attributes}


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    thread = threading.Thread(target=made.server.serve_forever)
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()
    thread.join()


def test_a_trace_goes_from_the_request_through_to_sql_and_tells_nothing_it_must_not(
    fresh_url: str,
    serve: Callable[..., RunningService],
    collector: Collector,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    endpoint = f"http://127.0.0.1:{collector.server.server_port}"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
    running = serve(fresh_url)
    with httpx.Client(
        headers=AUTHORIZATION, base_url=running.address, trust_env=False, timeout=30
    ) as client:
        driver = add(client, "/drivers", {"name": NAME})
        rider = add(client, "/riders", {"name": NAME})
        body = {"driver_id": driver, "rider_id": rider}
        traced = {"traceparent": f"00-{TRACE}-{PARENT}-01", "X-Request-ID": "abc-1"}
        wanted = body | {"start": at(0), "predicted_end": at(30)}
        booked = client.post("/bookings", json=wanted, headers=traced)
        assert booked.status_code == 201
        other = client.post("/bookings", json=body | {"start": at(60), "predicted_end": at(90)})
        moved = client.post(
            f"/bookings/{other.json()['id']}/reschedule",
            json={"start": at(15), "predicted_end": at(45)},
        )
        assert moved.status_code == 409
    asyncio.run(together(running, fresh_url, body))
    running.process.terminate()  # what is left of the spans is sent before it ends
    running.process.wait(timeout=60)

    [request] = [span for span in collector.spans if span.trace_id.hex() == TRACE and is_http(span)]
    assert request.name == "POST /bookings"
    assert request.parent_span_id.hex() == PARENT
    assert _attributes(request)["taxi.request_id"] == "abc-1"
    [statement] = collector.below(request)
    assert statement.trace_id.hex() == TRACE
    assert statement.kind == Span.SPAN_KIND_CLIENT
    assert "INSERT INTO bookings" in _attributes(statement)["db.statement"]
    assert {each["service.name"] for each in collector.resources} == {"taxi-booking"}
    check_a_refusal(collector)
    check_a_group(collector)
    told = {name for span in collector.spans for name in _attributes(span)}
    assert told <= tracing.TOLD
    everything = "".join(str(span) for span in collector.spans)
    for secret in (NAME, "127.0.0.1", "2031-05-06", "httpx"):
        assert secret not in everything


def is_http(span: Span) -> bool:
    return span.kind == Span.SPAN_KIND_SERVER


def check_a_refusal(collector: Collector) -> None:
    [refused] = collector.named("POST /bookings/{booking_id}/reschedule")
    failed = [
        each for each in collector.below(refused) if each.status.code == Status.STATUS_CODE_ERROR
    ]
    assert failed, "the constraint's error is seen"
    assert {each.status.message for each in failed} == {""}, "but not the row it quotes"


def check_a_group(collector: Collector) -> None:
    groups = collector.named("grouped write")
    asking = {span.span_id: span for span in collector.named("POST /bookings")}
    assert groups, "with no group, nothing is shown"
    for group in groups:
        assert group.parent_span_id == b""
        assert len(group.links) > 1
        assert len({link.span_id for link in group.links}) == len(group.links)
        for link in group.links:
            linked = asking[link.span_id].links
            assert [each.span_id for each in linked] == [group.span_id]
        statements = [_attributes(each)["db.statement"] for each in collector.below(group)]
        assert any("INSERT INTO bookings" in each for each in statements)


async def together(running: RunningService, url: str, body: dict[str, Any]) -> None:
    """Ask for eight bookings while the table is locked, so that some have to share a write."""
    wanted = [body | {"start": at(m), "predicted_end": at(m + 30)} for m in range(120, 360, 30)]

    def book(each: dict[str, Any]) -> int:
        sent = httpx.post(
            f"{running.address}/bookings",
            json=each,
            headers=AUTHORIZATION,
            trust_env=False,
            timeout=30,
        )
        return sent.status_code

    blocker = await asyncpg.connect(url)
    with ThreadPoolExecutor(len(wanted)) as pool:
        async with blocker.transaction():
            await blocker.execute("LOCK TABLE bookings")
            loop = asyncio.get_running_loop()
            answers = [loop.run_in_executor(pool, book, each) for each in wanted]
            await asyncio.to_thread(until_under_way, running, len(wanted))
        assert await asyncio.gather(*answers) == [201] * len(wanted)
    await blocker.close()


def until_under_way(running: RunningService, count: int) -> None:
    told = re.compile(r'^taxi_requests_in_progress\{.*path="/bookings".*\} (\S+)$', re.MULTILINE)
    for _ in range(300):
        text = httpx.get(f"{running.address}/metrics", trust_env=False).text
        if sum(map(float, told.findall(text))) >= count:
            return
        time.sleep(0.02)
    pytest.fail("the requests do not come to be under way together")


def test_without_a_collector_nothing_is_traced() -> None:
    endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}
    assert tracing.wanted(endpoint)
    assert not tracing.wanted({})
    assert not tracing.wanted({"OTEL_EXPORTER_OTLP_ENDPOINT": ""})
    assert not tracing.wanted(endpoint | {"OTEL_SDK_DISABLED": "true"})
