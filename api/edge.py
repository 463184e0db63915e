"""The outermost layer: each request comes by here, whatever becomes of it.

It has its id from here, and its line in the log. It is turned away here, before its body
is read, if the process has more under way than it can carry.
"""

import asyncio
import logging
import time
from collections.abc import Callable

from litestar.enums import ScopeType
from litestar.types import ASGIApp, HTTPResponseStartEvent, Message, Receive, Scope, Send

from api import metrics
from api.problems import headers_of, problem_of, problem_response
from api.request_ids import HEADER, REQUEST_ID, request_id_of
from api.stopping import Stopping
from booking.errors import LedgerLost, ServiceBusy, TaxiError

_log = logging.getLogger("api.requests")

_ALWAYS = frozenset({"/health", "/ready", "/metrics"})
"""Answered also under the heaviest load: that is when they are wanted."""
_STREAM = b"text/event-stream"


class Edge:
    """Wraps the application; at most `requests_max` requests are under way in it at once.

    A stream that has begun is not counted: it lasts, and does nothing most of the time.
    """

    def __init__(self, app: ASGIApp, *, requests_max: int, stopping: Stopping) -> None:
        self._app = app
        self._requests_max = requests_max
        self._stopping = stopping
        self._under_way = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != ScopeType.HTTP:
            await self._app(scope, receive, send)
            return
        began_s = time.perf_counter()
        answer = _Answer(send, request_id_of(scope["headers"]), self._stopping)
        REQUEST_ID.set(answer.request_id)
        try:
            if self._under_way >= self._requests_max and scope["path"] not in _ALWAYS:
                await _refuse(answer, ServiceBusy())
            else:
                await self._pass_on(scope, receive, answer)
        finally:
            if _log.isEnabledFor(logging.INFO):
                took_ms = (time.perf_counter() - began_s) * 1_000
                _log.info("request", extra=_told(scope, answer, took_ms))

    async def _pass_on(self, scope: Scope, receive: Receive, answer: "_Answer") -> None:
        self._under_way += 1
        answer.on_stream = self._leave
        try:
            await self._app(scope, receive, answer)
        except asyncio.CancelledError:
            # The time to stop is over. Whether it was recorded, nobody knows: the client
            # is told so, and finds out by its idempotency key.
            if not self._stopping.told or answer.status is not None:
                raise
            await _refuse(answer, LedgerLost())
        finally:
            if not answer.is_stream:
                self._leave()

    def _leave(self) -> None:
        self._under_way -= 1


class _Answer:
    """Sends an answer on, with the request's id on it."""

    def __init__(self, send: Send, request_id: str, stopping: Stopping) -> None:
        self._send = send
        self._stopping = stopping
        self.request_id = request_id
        self.status: int | None = None
        self.is_stream = False
        self.on_stream: Callable[[], None] = lambda: None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._begin(message)
        await self._send(message)

    def _begin(self, message: HTTPResponseStartEvent) -> None:
        self.status = message["status"]
        headers = list(message.get("headers", ()))
        if any(name == b"content-type" and value.startswith(_STREAM) for name, value in headers):
            self.is_stream = True
            self.on_stream()
        headers.append((HEADER, self.request_id.encode("ascii")))
        if self._stopping.told:
            headers.append((b"connection", b"close"))  # the next request goes elsewhere
        message["headers"] = headers


async def _refuse(answer: _Answer, error: TaxiError) -> None:
    """Answer with the error's problem, past the application."""
    metrics.count_turned_away(error)
    problem = problem_of(error)
    response = problem_response(problem, headers_of(problem.status, error))
    headers = {"Content-Type": f"{response.media_type}", **response.headers}
    await answer(
        {
            "type": "http.response.start",
            "status": problem.status,
            "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()]
            + [(b"content-length", b"%d" % len(response.content))],
        }
    )
    await answer({"type": "http.response.body", "body": response.content, "more_body": False})


def _told(scope: Scope, answer: _Answer, took_ms: float) -> dict[str, object]:
    """What the log says of a request: nothing of what it holds, and the path as a template."""
    return {
        "method": scope.get("method"),
        "route": scope.get("path_template") or None,  # None: it leads nowhere
        "status": answer.status,
        "duration_ms": round(took_ms, 1),
    }
