"""The client against the running service, with somebody in between who spoils it."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from itertools import repeat
from typing import Any
from uuid import uuid4

import httpx
import pytest

from api.bodies.bookings import BookingOut
from api.client import TaxiClient, transport
from api.client.errors import (
    NoAnswer,
    NoService,
    ProblemAnswer,
    ProblemChanged,
    ProblemConflict,
    ProblemInvalid,
    ProblemNotAllowed,
    ProblemNotFound,
)
from booking.bookings import BookingState
from booking.errors import InvalidInput, NaiveInstant
from booking.waiting import WaitingState
from tests.api.conftest import NINE
from tests.conftest import RunningService

pytestmark = pytest.mark.anyio

TRIP = timedelta(minutes=30)
CARRY, LOSE, HANG, BREAK = "carry", "lose the answer", "never answer", "break the connection"


def answer(status: int, body: object = None, kind: str = "application/json", **more: str) -> bytes:
    """An answer that somebody other than the service gives."""
    content = b"" if body is None else json.dumps(body).encode()
    headers = {"Content-Type": kind, "Content-Length": len(content), "Connection": "close", **more}
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status} Said\r\n{lines}\r\n".encode() + content


def problem(status: int, kind: str, **more: str) -> bytes:
    body = {"type": kind, "title": "No.", "status": status, "detail": "No."}
    return answer(status, body, "application/problem+json", **more)


BUSY = problem(503, "/problems/ledger-busy")


class Between:
    """Stands between a client and the service: each request meets the next of `deeds`.

    A deed is one of the words above, or bytes to be answered in the service's
    place. When there are no more, requests are carried. With `keyless`, the
    idempotency keys are taken out.
    """

    def __init__(self, service: str, deeds: Iterable[str | bytes], *, keyless: bool) -> None:
        self.service = httpx.URL(service)
        self.deeds = iter(deeds)
        self.keyless = keyless
        self.keys: list[str | None] = []
        """Of every request, in order."""

    async def meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            fields = dict(
                line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line
            )
            body = await reader.readexactly(int(fields.get(b"content-length", 0)))
            key = fields.get(b"idempotency-key")
            self.keys.append(None if key is None else key.decode())
            await self.do(next(self.deeds, CARRY), head + body, reader, writer)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    async def do(
        self,
        deed: str | bytes,
        request: bytes,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        if deed in {CARRY, LOSE}:
            response = await self.carried(request)
            writer.write(b"" if deed == LOSE else response)
        elif deed == HANG:
            await reader.read()  # until the client has had enough
        elif isinstance(deed, bytes):
            writer.write(deed)

    async def carried(self, request: bytes) -> bytes:
        """The service's whole answer: what was asked is done when this returns."""
        request = request.replace(b"Connection: keep-alive", b"Connection: close")
        if self.keyless:
            request = request.replace(b"Idempotency-Key", b"X-Of-No-Meaning")
        reader, writer = await asyncio.open_connection(self.service.host, self.service.port)
        writer.write(request)
        response = await reader.read()
        writer.close()
        await writer.wait_closed()
        return response


@asynccontextmanager
async def between(
    service: RunningService, deeds: Iterable[str | bytes], *, keyless: bool = False, **options: Any
) -> AsyncIterator[tuple[Between, TaxiClient]]:
    """Somebody in between, and a client that goes through them."""
    spoiler = Between(service.address, deeds, keyless=keyless)
    async with await asyncio.start_server(spoiler.meet, "127.0.0.1", 0) as listener:
        port = listener.sockets[0].getsockname()[1]
        async with TaxiClient(f"http://127.0.0.1:{port}", **options) as client:
            yield spoiler, client


class Pauses:
    """Instead of waiting: notes for how long, and why."""

    def __init__(self) -> None:
        self.waits_s: list[float] = []
        self.reasons: list[str] = []

    async def __call__(self, reason: str, wait_s: float) -> None:
        self.reasons.append(reason)
        self.waits_s.append(wait_s)


@pytest.fixture
async def taxi(service: RunningService) -> AsyncIterator[TaxiClient]:
    async with TaxiClient(service.address) as client:
        yield client


@pytest.fixture
def fleet() -> str:
    return f"fleet-{uuid4()}"


async def collected[T](items: AsyncIterator[T]) -> list[T]:
    return [item async for item in items]


async def booked_of(service: RunningService, fleet: str) -> list[BookingOut]:
    """What the service itself says, whoever stands in between."""
    async with TaxiClient(service.address) as client:
        return await collected(client.bookings(fleet=fleet))


async def test_every_page_of_a_list_is_followed(
    service: RunningService, taxi: TaxiClient, fleet: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    drivers = [await taxi.add_driver(f"Driver {number}", fleet=fleet) for number in range(7)]
    rider = await taxi.add_rider("Alan")
    booked = [await taxi.book(rider.id, NINE, NINE + TRIP, fleet=fleet) for _ in drivers]
    monkeypatch.setattr(transport, "PAGE_ITEMS", 3)
    async with between(service, ()) as (spoiler, client):
        assert await collected(client.drivers(fleet=fleet)) == drivers
        assert len(spoiler.keys) == 3
        found = await collected(client.bookings(fleet=fleet, rider_id=rider.id))
        assert sorted(found, key=lambda each: each.id) == booked
        assert len(spoiler.keys) == 6
        assert [each async for each in client.riders() if each.id == rider.id] == [rider]
        cancelled = await client.cancel(booked[0].id)
        narrowed = client.bookings(fleet=fleet, state=BookingState.CANCELLED)
        assert await collected(narrowed) == [cancelled]
        for start, end, expected in ((NINE, NINE + TRIP, 7), (NINE + TRIP, NINE + 2 * TRIP, 0)):
            assert len(await collected(client.bookings(fleet=fleet, start=start, end=end))) == (
                expected
            )


@pytest.mark.parametrize("spoiled", [LOSE, HANG, BREAK])
async def test_a_booking_that_was_not_answered_is_sent_again_and_booked_once(
    service: RunningService, taxi: TaxiClient, fleet: str, spoiled: str
) -> None:
    rider = await taxi.add_rider("Alan")
    for name in ("Ada", "Grace"):
        await taxi.add_driver(name, fleet=fleet)
    async with between(service, [spoiled], request_s_max=2.0) as (spoiler, client):
        booking = await client.book(rider.id, NINE, NINE + TRIP, fleet=fleet)
    assert len(spoiler.keys) == 2
    assert len(set(spoiler.keys)) == 1
    assert spoiler.keys[0]
    assert await booked_of(service, fleet) == [booking]


async def test_without_its_key_it_is_booked_twice(
    service: RunningService, taxi: TaxiClient, fleet: str
) -> None:
    rider = await taxi.add_rider("Alan")
    for name in ("Ada", "Grace"):
        await taxi.add_driver(name, fleet=fleet)
    async with between(service, [LOSE], keyless=True) as (_, client):
        await client.book(rider.id, NINE, NINE + TRIP, fleet=fleet)
    assert len(await booked_of(service, fleet)) == 2


async def test_a_key_of_ones_own_is_kept_from_one_run_to_the_next(
    taxi: TaxiClient, fleet: str
) -> None:
    rider = await taxi.add_rider("Alan")
    for name in ("Ada", "Grace"):
        await taxi.add_driver(name, fleet=fleet)
    first, again, another = [
        await taxi.book(rider.id, NINE, NINE + TRIP, fleet=fleet, key=key)
        for key in (f"{fleet} 1", f"{fleet} 1", f"{fleet} 2")
    ]
    assert first == again != another
    with pytest.raises(InvalidInput, match="printable"):
        await taxi.book(rider.id, NINE, NINE + TRIP, fleet=fleet, key="schlüssel")


async def test_a_service_that_is_busy_is_asked_again_when_it_says_so(
    service: RunningService, taxi: TaxiClient
) -> None:
    rider, driver = await taxi.add_rider("Alan"), await taxi.add_driver("Ada")
    deeds = (
        problem(503, "/problems/ledger-busy", Retry_After="7"),
        problem(429, "/problems/too-many", Retry_After="2"),
        answer(502, kind="text/html"),
        answer(504, kind="text/html", Retry_After="Wed, 21 Oct 2026 07:28:00 GMT"),
        problem(409, "/problems/key-in-use", Retry_After="1"),
    )
    pauses = Pauses()
    async with between(service, deeds, pause=pauses) as (spoiler, client):
        booking = await client.book(rider.id, NINE, NINE + TRIP, driver_id=driver.id)
    assert booking.driver_id == driver.id
    assert pauses.reasons == ["503 No", "429 No", "502 Said", "504 Said", "409 No"]
    for wait_s, at_least_s in zip(pauses.waits_s, (7, 2, 0.4, 0.8, 1.6), strict=True):
        assert at_least_s <= wait_s <= 1.25 * at_least_s
    assert (len(spoiler.keys), len(set(spoiler.keys))) == (6, 1)


async def test_patience_is_bounded(service: RunningService) -> None:
    pauses = Pauses()
    too_long = problem(503, "/problems/ledger-busy", Retry_After="60")
    async with between(service, repeat(too_long), pause=pauses) as (spoiler, client):
        with pytest.raises(NoAnswer, match="not known") as caught:
            await client.book(1, NINE, NINE + TRIP)
    assert (len(spoiler.keys), pauses.waits_s) == (1, [])
    assert (caught.value.reason, caught.value.key) == ("503 No", spoiler.keys[0])
    async with between(service, repeat(BUSY), patience_s=0.4) as (spoiler, client):
        with pytest.raises(NoAnswer) as given_up:
            await client.booking(1)
    assert len(spoiler.keys) <= 3  # at once, after 0.1 s, and after 0.2 s more
    assert given_up.value.key is None, "asking leaves nobody in doubt"


async def test_what_was_refused_is_not_asked_again(
    service: RunningService, taxi: TaxiClient
) -> None:
    rider, driver = await taxi.add_rider("Alan"), await taxi.add_driver("Ada")
    first = await taxi.book(rider.id, NINE, NINE + TRIP, driver_id=driver.id)
    async with between(service, ()) as (spoiler, client):
        with pytest.raises(ProblemConflict) as refused:
            await client.book(rider.id, NINE, NINE + 2 * TRIP, driver_id=driver.id)
        assert len(spoiler.keys) == 1
    told = refused.value
    assert (told.type, told.status) == ("/problems/booking-conflict", 409)
    assert [(each.booking_id, each.start) for each in told.conflicts] == [(first.id, NINE)]
    assert told.next_free is not None
    assert told.next_free.start == first.predicted_end
    assert driver.id not in told.free_drivers
    assert [each.field for each in told.errors] == ["start"]
    async with between(service, [problem(500, "about:blank")]) as (spoiler, client):
        with pytest.raises(ProblemAnswer) as broken:
            await client.booking(first.id)
        assert (type(broken.value), broken.value.conflicts) == (ProblemAnswer, [])
        assert broken.value.next_free is None
        assert len(spoiler.keys) == 1


async def test_each_kind_of_problem_has_its_error(taxi: TaxiClient) -> None:
    with pytest.raises(ProblemNotFound) as unknown:
        await taxi.book(2**40, NINE, NINE + TRIP)
    assert (unknown.value.type, unknown.value.field) == ("/problems/unknown-rider", "rider_id")
    with pytest.raises(ProblemInvalid) as invalid:
        await taxi.add_driver("Ada", zone="Mars")
    assert (invalid.value.status, invalid.value.field) == (422, "zone")
    naive = NINE.replace(tzinfo=None)
    with pytest.raises(NaiveInstant) as caught:
        await taxi.book(1, naive, NINE + TRIP)
    assert caught.value.field == "start"
    with pytest.raises(NaiveInstant):
        await collected(taxi.bookings(start=naive))


async def test_a_booking_that_is_held_is_confirmed_moved_and_given_away(
    taxi: TaxiClient, fleet: str
) -> None:
    rider = await taxi.add_rider("Alan")
    ada, grace = [await taxi.add_driver(name, fleet=fleet) for name in ("Ada", "Grace")]
    assert await taxi.driver(ada.id) == ada
    held = await taxi.book(rider.id, NINE, NINE + TRIP, driver_id=ada.id, hold_s=600)
    assert (held.state, held.held_until is None) == (BookingState.HELD, False)
    confirmed = await taxi.confirm(held.id, version=held.version)
    later = (NINE + TRIP, NINE + 2 * TRIP)
    moved = await taxi.reschedule(held.id, *later, version=confirmed.version)
    for stale in (
        taxi.reschedule(held.id, *later, version=held.version),
        taxi.reassign(held.id, version=held.version),
        taxi.start(held.id, version=held.version),
        taxi.complete(held.id, version=held.version),
        taxi.no_show(held.id, version=held.version),
        taxi.predict_end(held.id, NINE, version=held.version),
        taxi.cancel(held.id, version=held.version),
    ):
        with pytest.raises(ProblemChanged):
            await stale
    assert await taxi.booking(held.id) == moved
    given = await taxi.reassign(held.id, grace.id, version=moved.version)
    assert (given.driver_id, given.start) == (grace.id, later[0])
    cancelled = await taxi.cancel(held.id, "rain", version=given.version)
    assert (cancelled.state, cancelled.cancel_reason) == (BookingState.CANCELLED, "rain")


async def test_what_is_booked_and_what_is_free_can_be_asked(taxi: TaxiClient, fleet: str) -> None:
    rider = await taxi.add_rider("Alan")
    ada, grace = [await taxi.add_driver(name, fleet=fleet) for name in ("Ada", "Grace")]
    day = (NINE, NINE + timedelta(hours=12))
    booking = await taxi.book(rider.id, NINE, NINE + TRIP, driver_id=ada.id)
    assert await taxi.agenda(ada.id, *day) == [booking]
    gaps = await taxi.gaps(ada.id, *day, at_least_minutes=60)
    assert [(gap.start, gap.end) for gap in gaps] == [(NINE + TRIP, day[1])]
    assert (await taxi.availability(NINE, NINE + TRIP, fleet=fleet)).items == [grace.id]
    checked = await taxi.check(rider.id, NINE, NINE + 2 * TRIP, driver_id=ada.id)
    assert [each.booking_id for each in checked.conflicts] == [booking.id]
    rows = (await taxi.schedule(*day, fleet=fleet)).items
    assert [(row.driver, row.bookings) for row in rows] == [(ada, [booking]), (grace, [])]


async def test_whoever_waits_is_offered_the_time_and_may_decline_it(
    taxi: TaxiClient, fleet: str
) -> None:
    rider, driver = await taxi.add_rider("Alan"), await taxi.add_driver("Ada", fleet=fleet)
    taken = await taxi.book(rider.id, NINE, NINE + TRIP, fleet=fleet)
    first = await taxi.wait(rider.id, NINE, NINE + TRIP, driver_id=driver.id)
    second = await taxi.wait(rider.id, NINE, NINE + TRIP, fleet=fleet)
    assert await collected(taxi.waiting_list(fleet=fleet)) == [first, second]
    await taxi.cancel(taken.id)
    offered = await taxi.waiting_entry(first.id)
    assert offered.state is WaitingState.OFFERED
    assert (await taxi.withdraw(first.id)).state is WaitingState.WITHDRAWN
    (offered,) = await collected(taxi.waiting_list(rider_id=rider.id, state=WaitingState.OFFERED))
    assert offered.id == second.id
    assert offered.booking_id is not None
    await taxi.confirm(offered.booking_id)
    assert (await taxi.waiting_entry(second.id)).state is WaitingState.BOOKED


async def test_a_trip_is_started_predicted_anew_and_completed(taxi: TaxiClient, fleet: str) -> None:
    rider, ada = await taxi.add_rider("Alan"), await taxi.add_driver("Ada", fleet=fleet)
    began = datetime.now(UTC).replace(microsecond=0) - timedelta(minutes=10)
    trip = await taxi.book(rider.id, began, began + TRIP, driver_id=ada.id)
    behind = await taxi.book(rider.id, began + TRIP, began + 2 * TRIP, driver_id=ada.id)
    started = await taxi.start(trip.id, began, version=trip.version)
    assert (started.state, started.actual_start) == (BookingState.IN_PROGRESS, began)
    end = began + TRIP + timedelta(minutes=4)
    overrun = await taxi.predict_end(trip.id, end, version=started.version)
    assert overrun.booking.predicted_end == end
    assert [(each.booking.id, each.late_s) for each in overrun.moved] == [(behind.id, 240)]
    ended = began + timedelta(minutes=9)
    done = await taxi.complete(trip.id, ended, version=overrun.booking.version)
    assert (done.state, done.actual_end) == (BookingState.COMPLETED, ended)
    missed = await taxi.book(rider.id, ended, ended + timedelta(minutes=5), driver_id=ada.id)
    assert (await taxi.no_show(missed.id, ended)).state is BookingState.NO_SHOW


@pytest.mark.parametrize(
    "deeds",
    [
        (answer(200, {"status": 7}), answer(200, [])),
        (answer(200, {"hello": "world"}), answer(200)),
        (problem(404, "about:blank"), answer(301, Location="/login")),
        (answer(200, "not gzip", Content_Encoding="gzip"), answer(404)),
    ],
    ids=["others' shapes", "no status", "problems of others", "unreadable"],
)
async def test_what_is_not_the_service_is_said_to_be_none(
    service: RunningService, deeds: tuple[bytes, bytes]
) -> None:
    async with between(service, deeds) as (spoiler, client):
        with pytest.raises(NoService):
            await client.check_service()
        with pytest.raises(NoService):
            await client.booking(1)
        assert len(spoiler.keys) == 2


async def test_a_service_that_is_there_and_busy_is_there(service: RunningService) -> None:
    async with between(service, [CARRY, BUSY]) as (spoiler, client):
        await client.check_service()
        await client.check_service()
        assert len(spoiler.keys) == 2


async def test_where_nobody_is_that_is_said() -> None:
    async with TaxiClient("http://127.0.0.1:1", patience_s=0.2) as client:
        with pytest.raises(NoService, match="cannot connect"):
            await client.check_service()
        with pytest.raises(NoAnswer, match="cannot connect"):
            await client.cancel(1)
    for wrong in ("http://a:b", "http://127.0.0.1:70000"):
        with pytest.raises(InvalidInput) as caught:
            TaxiClient(wrong)
        assert caught.value.field == "base_url"
    async with TaxiClient("ftp://127.0.0.1") as client:
        with pytest.raises(NoService, match="not an http address"):
            await client.booking(1)


async def test_what_was_seen_later_comes_as_an_instant_in_utc(taxi: TaxiClient) -> None:
    rider, driver = await taxi.add_rider("Alan"), await taxi.add_driver("Ada")
    local = datetime.fromisoformat("2031-05-06T11:00:00+02:00")
    booking = await taxi.book(rider.id, local, local + TRIP, driver_id=driver.id)
    assert booking.start == NINE
    assert booking.start.utcoffset() == timedelta(0)


async def test_a_token_says_who_asks_and_without_a_valid_one_that_is_told(
    service: RunningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with TaxiClient(service.address) as client:  # by that of the environment
        await collected(client.riders())
    monkeypatch.setenv("TAXI_TOKEN", "")
    for token in (None, "nonsense"):
        async with TaxiClient(service.address, token=token) as client:
            await client.check_service()
            with pytest.raises(ProblemNotAllowed) as refused:
                await client.agenda(1, NINE, NINE + TRIP)
            assert refused.value.type == "/problems/not-signed-in"
    with pytest.raises(InvalidInput):
        TaxiClient(service.address, token="ü")  # noqa: S106  # and none at all
