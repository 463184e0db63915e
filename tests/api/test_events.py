"""What happened, over HTTP: the trail of a booking, pages of events, and a stream that resumes."""

import asyncio
import contextlib
import json
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import httpx
import pytest

from api.bodies.events import EventOut
from api.client import TaxiClient
from api.client.errors import NoAnswer, ProblemInvalid
from api.feed import Feed
from booking.allocation.ask_then_offer import AskThenOffer
from booking.errors import TooManyStreams
from booking.events import BEGINNING, EVERYTHING, EventFilter
from booking.postgres.database import Database
from booking.prevention.grouped_commit import GroupedCommit
from tests.conftest import ADMINISTRATOR_ID, AUTHORIZATION, RunningService
from tests.world import World, hours

Wish = Callable[..., dict[str, Any]]
A_LONG_TIME_S = 60.0
"""Only a hang lasts this long; no test depends on being quick."""


def settled(client: httpx.Client, path: str, wanted: int, **params: Any) -> list[dict[str, Any]]:
    """The events, once there are so many: they appear when all before them have ended."""
    give_up_at = time.monotonic() + A_LONG_TIME_S
    while True:
        found: list[dict[str, Any]] = client.get(path, params=params).json()["items"]
        if len(found) >= wanted or time.monotonic() > give_up_at:
            return found
        time.sleep(0.02)


def test_the_trail_of_a_booking_says_who_when_what_and_from_where(
    client: httpx.Client, wish: Wish
) -> None:
    told = {"X-Request-ID": "desk-7/42"}
    booked = client.post("/bookings", json=wish(), headers=told)
    assert booked.headers["X-Request-ID"] == "desk-7/42"
    path = booked.headers["Location"]
    cancelled = client.post(f"{path}/cancel", json={"reason": "flu"})
    first, second = settled(client, f"{path}/events", 2)
    assert (first["kind"], first["actor"], first["request_id"], first["origin"]) == (
        "booked",
        f"account:{ADMINISTRATOR_ID} administrator",
        "desk-7/42",
        "127.0.0.1",
    )
    assert (second["kind"], second["version"]) == ("cancelled", 2)
    assert second["request_id"] == cancelled.headers["X-Request-ID"] != "desk-7/42"
    assert second["changed"] == {"state": "confirmed", "cancel_reason": None}
    assert second["booking"]["cancel_reason"] == "flu"
    assert client.get("/bookings/999999999/events").status_code == 404


@pytest.mark.parametrize("wrong", ["", "line\tbreak", "x" * 129, "über"])
def test_a_request_id_that_could_spoil_a_log_is_replaced(client: httpx.Client, wrong: str) -> None:
    answer = client.get("/health", headers={"X-Request-ID": wrong.encode("latin-1")})
    assert answer.status_code == 200
    assert answer.headers["X-Request-ID"] not in {"", wrong}


def test_every_answer_names_its_request(client: httpx.Client) -> None:
    for path, status in (("/nowhere", 404), ("/bookings/0", 422), ("/bookings/99999999", 404)):
        answer = client.get(path, headers={"X-Request-ID": "mine"})
        assert (answer.status_code, answer.headers["X-Request-ID"]) == (status, "mine")


def test_events_are_listed_by_the_page_and_for_one_driver_or_rider(
    client: httpx.Client, wish: Wish, driver_id: int, rider_id: int
) -> None:
    for minute in range(0, 150, 30):
        assert client.post("/bookings", json=wish(minute, minute + 30)).status_code == 201
    every = settled(client, "/events", 5, rider_id=rider_id)
    assert [each["booking"]["driver_id"] for each in every] == [driver_id] * 5
    read, after = [], "0-0"
    while True:
        page = client.get("/events", params={"driver_id": driver_id, "after": after, "limit": 2})
        read += page.json()["items"]
        after = page.json()["position"]
        if not page.json()["more"]:
            break
    assert read == every
    assert client.get("/events", params={"after": after}).json()["items"] == []


@pytest.mark.parametrize("after", ["one", "1", "99999999999999999-0"])
@pytest.mark.parametrize("path", ["/events", "/events/stream"])
def test_a_cursor_that_nobody_gave_out_is_refused(
    client: httpx.Client, path: str, after: str
) -> None:
    answer = client.get(path, params={"after": after})
    assert answer.status_code == 422
    assert answer.json()["type"] == "/problems/unknown-cursor"
    assert answer.json()["errors"][0]["field"] == "after"


def messages(lines: Iterator[str]) -> Iterator[dict[str, str]]:
    """The messages of a stream, by name; comments by the empty one."""
    message: dict[str, str] = {}
    for line in lines:
        if line:
            name, _, value = line.partition(":")
            message[name] = value.strip()
        else:
            yield message
            message = {}


def test_a_stream_that_was_cut_goes_on_where_it_was(client: httpx.Client, wish: Wish) -> None:
    begin = client.get("/events").json()["position"]
    wanted = {"rider_id": str(wish()["rider_id"])}
    ids, last = [], None
    for cut in range(3):
        # What happens while nobody listens must come as well.
        for number in (0, 1):
            minute = 60 * cut + 30 * number
            assert client.post("/bookings", json=wish(minute, minute + 30)).status_code == 201
        headers = {} if last is None else {"Last-Event-ID": last}
        params = wanted | ({"after": begin} if last is None else {})
        with client.stream("GET", "/events/stream", params=params, headers=headers) as stream:
            assert stream.status_code == 200
            assert stream.headers["Content-Type"].startswith("text/event-stream")
            for message in messages(stream.iter_lines()):
                last = message.get("id", last)
                if "data" in message:
                    event = json.loads(message["data"])
                    assert (event["id"], event["kind"]) == (message["id"], message["event"])
                    ids.append(event["id"])
                if len(ids) == 2 * cut + 2:
                    break
    assert ids == [each["id"] for each in settled(client, "/events", 6, **wanted)]


def test_a_stream_ends_when_the_service_stops(
    fresh_url: str, serve: Callable[..., RunningService]
) -> None:
    service = serve(fresh_url)
    with (
        httpx.Client(
            headers=AUTHORIZATION, base_url=service.address, trust_env=False, timeout=A_LONG_TIME_S
        ) as client,
        client.stream("GET", "/events/stream") as stream,
    ):
        lines = stream.iter_lines()
        assert next(lines).startswith(":")
        service.process.send_signal(signal.SIGTERM)
        rest = list(lines)  # to its end, which is orderly: else this would raise
    assert not any(line.startswith("data") for line in rest)
    service.process.wait(A_LONG_TIME_S)


# --- The feed itself, which many share. ----------------------------------------------------


@pytest.fixture
async def world(database: Database) -> World:
    return World(database, GroupedCommit(database, AskThenOffer()))


@asynccontextmanager
async def feed_on(world: World, **options: Any) -> AsyncIterator[Feed]:
    feed = Feed(world.database, **{"streams_max": 10, "poll_interval_s": 0.01} | options)
    async with feed.running():
        yield feed


async def take(stream: Any, count: int) -> list[str]:
    """The ids of so many events; comments are passed over."""
    ids: list[str] = []
    async with asyncio.timeout(A_LONG_TIME_S):
        while len(ids) < count:
            message = await anext(stream)
            if message.data is not None:
                ids.append(str(message.id))
    return ids


@pytest.mark.anyio
async def test_who_does_not_keep_up_is_dropped_and_the_others_are_not(world: World) -> None:
    driver = await world.driver()
    async with feed_on(world, behind_max=5, heartbeat_s=0.01) as feed:
        begin = await feed.check(None)
        quick, slow = feed.stream(EVERYTHING, begin), feed.stream(EVERYTHING, begin)
        joined = asyncio.Event()

        async def read_no_further() -> None:
            """As a server does whose client does not read: it is stuck in sending."""
            for _ in range(2):  # the greeting, and a sign of life: it has joined
                assert (await anext(slow)).data is None
            joined.set()
            await asyncio.Event().wait()

        stuck = asyncio.create_task(read_no_further())
        async with aclosing(quick):
            await joined.wait()
            ids = []
            for hour in range(12):
                await world.book(hours(hour, hour + 1), driver)
                ids += await take(quick, 1)
            with pytest.raises(asyncio.CancelledError):
                await stuck
            await slow.aclose()
            assert feed.streams == 1
            # It comes back with the last one that it got.
            again = feed.stream(EventFilter(driver_id=driver), begin)
            async with aclosing(again):
                assert await take(again, 12) == ids


@pytest.mark.anyio
async def test_who_reads_nothing_is_dropped_before_it_has_joined_as_well(world: World) -> None:
    await world.book(hours(9, 10), await world.driver())
    async with feed_on(world, stuck_s_max=0.01) as feed:
        stream = feed.stream(EVERYTHING, BEGINNING)

        async def read_no_further() -> None:
            await take(stream, 1)
            await asyncio.Event().wait()

        async with asyncio.timeout(A_LONG_TIME_S):
            with pytest.raises(asyncio.CancelledError):
                await asyncio.create_task(read_no_further())
        await stream.aclose()
        assert feed.streams == 0


@pytest.mark.anyio
async def test_streams_have_a_limit_and_one_poll_serves_them_all(world: World) -> None:
    driver = await world.driver()
    async with feed_on(world, streams_max=3, heartbeat_s=0.01) as feed:
        begin = await feed.check(None)
        streams = [feed.stream(EVERYTHING, begin) for _ in range(3)]
        for stream in streams:
            for _ in range(2):  # the greeting, and a sign of life: it has joined
                assert (await anext(stream)).data is None
        with pytest.raises(TooManyStreams):
            await feed.check(None)
        assert [each async for each in feed.stream(EVERYTHING, begin)] == []
        await world.book(hours(9, 10), driver)
        first, *others = [await take(stream, 1) for stream in streams]
        assert others == [first, first]
        await streams[0].aclose()
        await feed.check(None)
        feed.stop()
        for stream in streams[1:]:
            assert [each async for each in stream if each.data is not None] == []
        assert feed.streams == 0
        with pytest.raises(TooManyStreams):
            await feed.check(None)


# --- The client. -----------------------------------------------------------------------------


class Wire:
    """Stands between a client and the service, and can be cut."""

    def __init__(self, service: str) -> None:
        self._service = httpx.URL(service)
        self._pairs: set[asyncio.StreamWriter] = set()
        self.connections = 0

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        there = await asyncio.open_connection(self._service.host, self._service.port)
        self._pairs |= {writer, there[1]}
        await asyncio.gather(self._pump(reader, there[1]), self._pump(there[0], writer))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        writer.close()

    def cut(self) -> None:
        for writer in self._pairs:
            writer.transport.abort()
        self._pairs.clear()


@pytest.mark.anyio
async def test_the_client_takes_up_a_stream_that_broke(service: RunningService) -> None:
    async with TaxiClient(service.address) as direct:
        driver, rider = await direct.add_driver("Ada"), await direct.add_rider("Alan")

        async def book(hour: int) -> int:
            window = hours(hour, hour + 1)
            booked = await direct.book(rider.id, window.start, window.end, driver_id=driver.id)
            return booked.id

        wire = Wire(service.address)
        async with await asyncio.start_server(wire.carry, "127.0.0.1", 0) as listener:
            port = listener.sockets[0].getsockname()[1]
            async with TaxiClient(f"http://127.0.0.1:{port}") as client:
                wanted = [await book(0)] * 2
                await direct.cancel(wanted[0], "a line\u2028that ends in the middle")
                events = client.events(after="0-0", rider_id=rider.id)
                seen: list[EventOut] = []
                async with aclosing(events), asyncio.timeout(A_LONG_TIME_S):
                    async for event in events:
                        seen.append(event)
                        if len(seen) == 6:
                            break
                        wanted.append(await book(len(seen)))
                        if len(seen) % 2:
                            wire.cut()
                assert [each.booking_id for each in seen] == wanted[:6]
                assert seen[1].booking["cancel_reason"] == "a line\u2028that ends in the middle"
                assert wire.connections > 1
            listener.close()
            wire.cut()


@pytest.mark.anyio
async def test_the_client_gives_up_in_time_and_tells_what_it_asked_wrongly(
    service: RunningService,
) -> None:
    async with TaxiClient(service.address) as client:
        with pytest.raises(ProblemInvalid):
            await anext(client.events(after="nonsense"))
    async with TaxiClient("http://127.0.0.1:9", patience_s=0.2) as client:
        with pytest.raises(NoAnswer, match="cannot connect"):
            await anext(client.events())
