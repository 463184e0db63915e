"""Travel times from an OSRM server: one that is well, and every way not to be.

The server is a real one on loopback, as small as can be. It reads the address
as OSRM does and answers from a rule that anybody can work out, or is broken in
the way that a test says.
"""

import asyncio
import contextlib
import json
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from api.osrm import Osrm
from booking.errors import InvalidInput, NaiveInstant
from booking.places import Place
from booking.travel import Estimate, GreatCircle, Source

pytestmark = pytest.mark.anyio

NOW = datetime(2026, 3, 9, 8, tzinfo=UTC)
HERE, THERE, ELSEWHERE = Place(52.5, 13.3), Place(52.6, 13.4), Place(-33.9, -70.6)
LONG_S = 60.0
"""A limit that is never reached."""

Answer = Callable[[str], bytes]
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter, str], Awaitable[None]]


def seconds(start: Place, end: Place) -> float:
    """The road by the rule of our server: longer northwards, and never whole seconds."""
    north = 10 * (end.latitude_deg - start.latitude_deg)
    return round(1000 + 100 * north + abs(end.longitude_deg - start.longitude_deg), 1) + 0.1


def by_road(start: Place, end: Place) -> Estimate:
    return Estimate(int(seconds(start, end)) + 1, Source.OSRM)


# --- What the server says. --------------------------------------------------------------------

ADDRESS = re.compile(
    r"/table/v1/driving/(?P<coordinates>[-0-9.,;]+)\?annotations=duration&generate_hints=false"
    r"&sources=(?P<sources>[0-9;]+)&destinations=(?P<destinations>[0-9;]+)"
)


def table(address: str) -> dict[str, Any]:
    """The reply of the table service."""
    asked = ADDRESS.fullmatch(address)
    assert asked is not None, address
    coordinates = [each.split(",") for each in asked["coordinates"].split(";")]
    places = [Place(float(latitude), float(longitude)) for longitude, latitude in coordinates]
    assert len(places) >= 2  # OSRM refuses a table of a single coordinate
    sources = [places[int(number)] for number in asked["sources"].split(";")]
    destinations = [places[int(number)] for number in asked["destinations"].split(";")]
    return {
        "code": "Ok",
        "sources": [waypoint(place) for place in sources],
        "destinations": [waypoint(place) for place in destinations],
        "durations": [[seconds(start, end) for end in destinations] for start in sources],
    }


def waypoint(place: Place) -> dict[str, Any]:
    return {"name": "", "location": [place.longitude_deg, place.latitude_deg], "distance": 7.5}


def reply(body: bytes, status: str = "200 OK", more: str = "") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\n{more}"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def as_json(body: object) -> bytes:
    return reply(json.dumps(body).encode())


def well(address: str) -> bytes:
    return as_json(table(address))


def with_changes(**changes: object) -> Answer:
    return lambda address: as_json(table(address) | changes)


def always(answer: bytes) -> Answer:
    return lambda _: answer


class Server:
    """Answers each request by `answer`, and keeps the addresses that were asked for."""

    def __init__(self) -> None:
        self.answer: Answer = well
        self.handle: Handler | None = None
        self.asked: list[str] = []
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                self.asked.append(head.split(b" ", 2)[1].decode())
                if self.handle:
                    await self.handle(reader, writer, self.asked[-1])
                    break
                writer.write(self.answer(self.asked[-1]))
                await writer.drain()
        writer.close()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    served = Server()
    async with await asyncio.start_server(served.serve, "127.0.0.1", 0, limit=2**20) as listener:
        port = listener.sockets[0].getsockname()[1]
        served.url = f"http://127.0.0.1:{port}"
        yield served


CITY = GreatCircle("Europe/Berlin")


def osrm(server: Server, **settings: Any) -> Osrm:
    return Osrm(server.url, CITY, **({"timeout_s": LONG_S} | settings))


async def fallback(*pairs: tuple[Place, Place]) -> list[Estimate]:
    estimates = await CITY.between(pairs, NOW)
    assert {estimate.source for estimate in estimates} == {Source.GREAT_CIRCLE}
    return estimates


# --- A server that is well. -------------------------------------------------------------------


async def test_many_pairs_are_one_request_and_each_gets_its_own_cell(server: Server) -> None:
    pairs = [(HERE, THERE), (THERE, HERE), (ELSEWHERE, THERE), (HERE, HERE), (HERE, THERE)]
    async with osrm(server) as times:
        assert await times.between(pairs, NOW) == [by_road(*pair) for pair in pairs]
    assert len(server.asked) == 1
    assert by_road(HERE, THERE) != by_road(THERE, HERE)


async def test_a_place_is_sent_with_its_longitude_first(server: Server) -> None:
    async with osrm(server) as times:
        await times.between([(Place(52.5, 0.0000004), ELSEWHERE)], NOW)
    (asked,) = server.asked
    assert asked.startswith("/table/v1/driving/0.000000,52.500000;-70.600000,-33.900000?")


async def test_a_table_that_would_be_refused_for_its_size_is_asked_for_in_parts(
    server: Server,
) -> None:
    pairs = [(Place(1 + n / 1000, 2), Place(1, 3 + n / 1000)) for n in range(250)]
    async with osrm(server) as times:
        assert await times.between(pairs, NOW) == [by_road(*pair) for pair in pairs]
    assert len(server.asked) == 3


async def test_no_pairs_are_no_request(server: Server) -> None:
    async with osrm(server) as times:
        assert await times.between([], NOW) == []
    assert server.asked == []


async def test_a_server_below_a_path_is_asked_there(server: Server) -> None:
    server.answer = lambda address: well(address.removeprefix("/routing/berlin"))
    async with Osrm(f"{server.url}/routing/berlin/", CITY, timeout_s=LONG_S) as times:
        assert await times.between([(HERE, THERE)], NOW) == [by_road(HERE, THERE)]


# --- What it cannot tell falls back alone. ----------------------------------------------------


async def test_where_there_is_no_road_the_fallback_answers_and_says_so(server: Server) -> None:
    server.answer = with_changes(durations=[[None, 12], [0, None]])
    pairs = [(HERE, THERE), (HERE, HERE), (THERE, THERE), (THERE, HERE)]
    async with osrm(server) as times:
        found = await times.between(pairs, NOW)
    no_road = await fallback((HERE, THERE), (THERE, HERE))
    assert found == [no_road[0], Estimate(12, Source.OSRM), Estimate(0, Source.OSRM), no_road[1]]


@pytest.mark.parametrize("end", ["sources", "destinations"])
async def test_a_place_beyond_the_map_is_not_taken_for_the_nearest_road_on_it(
    server: Server, end: str
) -> None:
    server.answer = with_changes(**{end: [waypoint(HERE) | {"distance": 877_187.0239}]})
    async with osrm(server) as times:
        assert await times.between([(HERE, THERE)], NOW) == await fallback((HERE, THERE))


async def test_a_place_that_is_refused_says_nothing_of_the_servers_health(server: Server) -> None:
    refused = b'{"code":"NoSegment","message":"Could not find a matching segment"}'
    server.answer = always(reply(refused, "400 Bad Request"))
    async with osrm(server, failures_max=1) as times:
        for _ in range(3):
            assert await times.between([(HERE, THERE)], NOW) == await fallback((HERE, THERE))
    assert len(server.asked) == 3


# --- A server that is not well. ---------------------------------------------------------------

UNUSABLE: dict[str, Answer] = {
    "500": always(reply(b"{}", "500 Internal Server Error")),
    "503 with a good body": lambda address: well(address).replace(b"200 OK", b"503 Busy"),
    "404": always(reply(b"not here", "404 Not Found")),
    "a redirect": always(reply(b"", "302 Found", "Location: /elsewhere\r\n")),
    "no content": always(b"HTTP/1.1 204 No Content\r\n\r\n"),
    "no HTTP": always(b"SSH-2.0-OpenSSH_9.2\r\n\r\n"),
    "no JSON": always(reply(b"<html></html>")),
    "no UTF-8": always(reply(b'{"code": "\xff"}')),
    "cut off": lambda address: well(address)[:-9] + b"]" * 9,
    "deeply nested": always(reply(b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}")),
    "not compressed": lambda address: well(address).replace(
        b"\r\nContent-L", b"\r\nContent-Encoding: gzip\r\nContent-L"
    ),
    "a list": always(as_json([])),
    "another code": with_changes(code="NoTable"),
    "no table": with_changes(durations=None),
    "no rows": with_changes(durations=[]),
    "a row too many": with_changes(durations=[[1.0], [1.0]]),
    "a column too many": with_changes(durations=[[1.0, 1.0]]),
    "a column too few": with_changes(durations=[[]]),
    "no waypoints": with_changes(sources=[]),
    "a waypoint too many": with_changes(destinations=[waypoint(HERE)] * 2),
    "a waypoint without distance": with_changes(sources=[{}]),
    "text": with_changes(durations=[["12"]]),
    "a truth": with_changes(durations=[[True]]),
    "negative": with_changes(durations=[[-0.1]]),
    "not a number": with_changes(durations=[[float("nan")]]),
    "endless": with_changes(durations=[[float("inf")]]),
    "years": with_changes(durations=[[1e12]]),
}


@pytest.mark.parametrize("answer", UNUSABLE.values(), ids=UNUSABLE.keys())
async def test_after_an_unusable_answer_the_fallback_answers_and_says_so(
    server: Server, answer: Answer, caplog: pytest.LogCaptureFixture
) -> None:
    async with osrm(server) as times:
        server.answer = answer
        assert await times.between([(HERE, THERE)], NOW) == await fallback((HERE, THERE))
        server.answer = well
        assert await times.between([(HERE, THERE)], NOW) == [by_road(HERE, THERE)]
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert "13.3" not in warnings[0].getMessage()


async def test_what_came_before_a_failure_is_kept(server: Server) -> None:
    pairs = [(Place(1 + n / 1000, 2), Place(1, 3)) for n in range(150)]
    server.answer = lambda address: well(address) if len(server.asked) == 1 else b"no\r\n\r\n"
    async with osrm(server) as times:
        found = await times.between(pairs, NOW)
    assert found == [by_road(*pair) for pair in pairs[:100]] + await fallback(*pairs[100:])


async def never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _: str) -> None:
    """Says nothing until the client hangs up."""
    await reader.read()
    writer.close()


async def drop_by_drop(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, address: str
) -> None:
    """Sends a good answer so that each byte comes in time, and the last one never."""
    writer.write(well(address)[:-1])
    while not reader.at_eof():
        await writer.drain()
        await asyncio.sleep(0.01)
        writer.write(b" ")


async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter, address: str) -> None:
    writer.write(well(address)[:-20])
    await writer.drain()


@pytest.mark.parametrize("handle", [never, drop_by_drop])
async def test_the_wait_is_bounded_for_the_whole_answer(server: Server, handle: Handler) -> None:
    server.handle = handle
    async with osrm(server, timeout_s=0.1) as times:
        assert await times.between([(HERE, THERE)], NOW) == await fallback((HERE, THERE))
    assert len(server.asked) == 1


async def test_a_server_that_hangs_up_is_fallen_back_from(server: Server) -> None:
    server.handle = hang_up
    async with osrm(server) as times:
        assert await times.between([(HERE, THERE)], NOW) == await fallback((HERE, THERE))


async def test_a_server_that_is_not_there_is_fallen_back_from() -> None:
    async with await asyncio.start_server(lambda *_: None, "127.0.0.1", 0) as listener:
        port = listener.sockets[0].getsockname()[1]
    async with Osrm(f"http://127.0.0.1:{port}", CITY, timeout_s=LONG_S) as times:
        assert await times.between([(HERE, THERE)], NOW) == await fallback((HERE, THERE))


# --- The circuit. -----------------------------------------------------------------------------


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


async def test_a_server_that_fails_in_a_row_is_left_alone_until_it_has_cooled_down(
    server: Server,
) -> None:
    clock = Clock()
    server.answer = always(reply(b"", "500 Broken"))
    async with osrm(server, failures_max=3, cooldown_s=30, clock=clock) as times:

        def fails_after_five_seconds(_: str) -> bytes:
            clock.now_s += 5
            return reply(b"", "500 Broken")

        async def asks() -> bool:
            before = len(server.asked)
            (found,) = await times.between([(HERE, THERE)], NOW)
            assert found in {by_road(HERE, THERE), *await fallback((HERE, THERE))}
            return len(server.asked) > before

        assert [await asks() for _ in range(5)] == [True, True, True, False, False]
        clock.now_s = 29.9
        assert not await asks()
        clock.now_s = 30
        assert [await asks() for _ in range(2)] == [True, False]  # one trial, which fails
        clock.now_s = 60
        server.answer = fails_after_five_seconds
        assert await asks()
        clock.now_s = 94.9
        assert not await asks()
        clock.now_s = 95
        server.answer = well
        assert [await asks() for _ in range(3)] == [True] * 3
        server.answer = always(reply(b"", "500 Broken"))
        assert [await asks() for _ in range(4)] == [True, True, True, False]


async def test_failures_with_a_success_between_them_are_not_in_a_row(server: Server) -> None:
    async with osrm(server, failures_max=2) as times:
        for answer in (always(b"no\r\n\r\n"), well) * 3:
            server.answer = answer
            await times.between([(HERE, THERE)], NOW)
    assert len(server.asked) == 6


async def test_only_one_request_tries_a_server_that_failed(server: Server) -> None:
    clock = Clock()
    async with osrm(server, failures_max=1, clock=clock) as times:
        server.answer = always(reply(b"", "500 Broken"))
        await times.between([(HERE, THERE)], NOW)
        server.answer = well
        clock.now_s = 1_000
        ten = await asyncio.gather(*[times.between([(HERE, THERE)], NOW) for _ in range(10)])
        sources = [estimate.source for (estimate,) in ten]
    assert sorted(sources) == [Source.GREAT_CIRCLE] * 9 + [Source.OSRM]
    assert len(server.asked) == 2


# --- What is asked wrongly. -------------------------------------------------------------------


@pytest.mark.parametrize(
    "url", ["", "osrm", "127.0.0.1:5000", "ftp://osrm", "http://", "http://osrm:port", "http://[::"]
)
def test_what_is_no_address_of_a_server_is_refused(url: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        Osrm(url, CITY)
    assert refused.value.field == "url"


async def test_a_departure_without_an_offset_is_refused(server: Server) -> None:
    async with osrm(server) as times:
        with pytest.raises(NaiveInstant):
            await times.between([(HERE, THERE)], datetime(2026, 3, 9))  # noqa: DTZ001 the point
