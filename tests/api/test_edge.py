"""What every request meets first, whatever becomes of it: an id, a limit, and the end."""

import asyncio
import json
from typing import Any

import pytest

from api.edge import Edge
from api.request_ids import REQUEST_ID
from api.stopping import Stopping

pytestmark = pytest.mark.anyio


class Caller:
    """A client of an application, without a network between."""

    def __init__(self, app: Edge, path: str = "/bookings", **headers: bytes) -> None:
        self.app = app
        self.scope: Any = {
            "type": "http",
            "method": "POST",
            "path": path,
            "headers": [(name.replace("_", "-").encode(), v) for name, v in headers.items()],
        }
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = b""
        self.was_read = False

    async def ask(self) -> "Caller":
        await self.app(self.scope, self.receive, self.send)  # type: ignore[arg-type]  # plain dictionaries, as a server sends them
        return self

    async def receive(self) -> dict[str, Any]:
        self.was_read = True
        return {"type": "http.request", "body": b"{}", "more_body": False}

    async def send(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            self.body += message["body"]


class Door:
    """An application that answers once it is opened, with the request's id."""

    def __init__(self, media_type: bytes = b"text/plain") -> None:
        self.opened = asyncio.Event()
        self.media_type = media_type

    async def __call__(self, _scope: Any, receive: Any, send: Any) -> None:
        is_stream = self.media_type == b"text/event-stream"
        start = {
            "type": "http.response.start",
            "status": 200,
            "headers": [(b"content-type", self.media_type)],
        }
        if is_stream:
            await send(start)
        await receive()
        await self.opened.wait()
        if not is_stream:
            await send(start)
        await send({"type": "http.response.body", "body": (REQUEST_ID.get() or "").encode()})


def behind(door: Door, requests_max: int = 1) -> tuple[Edge, Stopping]:
    stopping = Stopping()
    return Edge(door, requests_max=requests_max, stopping=stopping), stopping


async def under_way(caller: Caller) -> "asyncio.Task[Caller]":
    """The request, once the application has read it."""
    task = asyncio.create_task(caller.ask())
    while not caller.was_read:  # noqa: ASYNC110  # a turn of the loop or two
        await asyncio.sleep(0)
    return task


async def test_one_request_too_many_is_turned_away_unread_and_told_when_to_retry() -> None:
    door = Door()
    edge, _ = behind(door)
    first = await under_way(Caller(edge))
    refused = await Caller(edge, x_request_id=b"second").ask()
    assert (refused.status, refused.was_read) == (503, False)
    assert refused.headers["retry-after"] == "1"
    assert refused.headers["content-type"] == "application/problem+json"
    assert refused.headers["x-request-id"] == "second"
    assert json.loads(refused.body)["type"] == "/problems/service-busy"
    door.opened.set()
    assert (await first).status == 200
    assert (await Caller(edge).ask()).status == 200, "and there is room again"


async def test_whoever_watches_is_answered_also_then() -> None:
    door = Door()
    edge, _ = behind(door)
    first = await under_way(Caller(edge))
    watching = [await under_way(Caller(edge, path)) for path in ("/health", "/ready", "/metrics")]
    door.opened.set()
    assert [(await each).status for each in (first, *watching)] == [200] * 4


async def test_a_stream_that_has_begun_takes_nobodys_place() -> None:
    door = Door(b"text/event-stream")
    edge, _ = behind(door)
    streams = [await under_way(Caller(edge)) for _ in range(3)]
    door.opened.set()
    assert [(await each).status for each in streams] == [200] * 3


@pytest.mark.parametrize(
    ("brought", "kept"),
    [
        (b"abc-1 from a proxy", "abc-1 from a proxy"),
        (b" x ", "x"),
        (b"x" * 128, "x" * 128),
        (b"", None),
        (b"x" * 129, None),
        (b"two\nlines", None),
        (b"caf\xe9", None),
        (None, None),
    ],
)
async def test_an_id_that_can_be_used_is_kept_and_else_one_is_made(
    brought: bytes | None, kept: str | None
) -> None:
    door = Door()
    door.opened.set()
    headers = {} if brought is None else {"x_request_id": brought}
    answer = await Caller(behind(door)[0], **headers).ask()
    given = answer.headers["x-request-id"]
    assert answer.body.decode() == given, "the application knows it by the same id"
    assert given == kept if kept else len(given) == 32


async def test_once_it_is_to_stop_each_answer_is_the_last_of_its_connection() -> None:
    door = Door()
    door.opened.set()
    edge, stopping = behind(door)
    assert "connection" not in (await Caller(edge).ask()).headers
    stopping.tell()
    await stopping.wait()
    answer = await Caller(edge).ask()
    assert (answer.status, answer.headers["connection"]) == (200, "close")


async def test_what_the_end_cuts_off_is_told_that_nobody_knows() -> None:
    edge, stopping = behind(Door())
    caller = Caller(edge)
    task = await under_way(caller)
    stopping.tell()
    task.cancel()
    await task
    assert caller.status == 503
    assert json.loads(caller.body)["type"] == "/problems/ledger-lost"


async def test_a_request_whose_client_has_gone_is_cancelled_and_answered_nothing() -> None:
    edge, _ = behind(Door())
    caller = Caller(edge)
    task = await under_way(caller)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert caller.status == 0
