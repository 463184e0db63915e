"""`TaxiClient`: the running service, from Python.

A connection that breaks leaves a client in doubt whether it has booked. So
every command goes under an idempotency key, and is sent again under that key
until it is answered or patience runs out: it is carried out once at most.
What is merely asked is sent again as well.
"""

import asyncio
import os
import random
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from http import HTTPStatus
from time import perf_counter
from typing import NamedTuple, Self
from uuid import uuid4

import httpx
import msgspec
from msgspec import Struct

from api.bodies.availability import Availability
from api.bodies.bookings import (
    BookingIn,
    BookingOut,
    BookingPage,
    BookingProblem,
    Cancellation,
    Check,
    Conflict,
    Happened,
    NewDriver,
    NewEnd,
    NewTime,
    Offer,
    OverrunOut,
    PlaceBody,
)
from api.bodies.common import Page, WindowOut
from api.bodies.drivers import Agenda, DriverIn, DriverOut, DriverPage, Gaps
from api.bodies.events import EventOut
from api.bodies.operations import Status
from api.bodies.problems import FieldError
from api.bodies.riders import RiderIn, RiderOut, RiderPage
from api.bodies.schedule import Schedule
from api.bodies.waiting_list import WaitingIn, WaitingOut, WaitingPage
from booking.bookings import BookingState
from booking.drivers import MAIN_FLEET
from booking.errors import InvalidInput, TaxiError
from booking.places import Place
from booking.time_window import utc
from booking.waiting import WaitingState

PAGE_ITEMS = 1_000
"""Items that are asked for at once; the service gives no more."""

_AGAIN = frozenset(
    {
        HTTPStatus.TOO_MANY_REQUESTS,
        HTTPStatus.BAD_GATEWAY,
        HTTPStatus.SERVICE_UNAVAILABLE,
        HTTPStatus.GATEWAY_TIMEOUT,
    }
)
_KEY_IN_USE = "/problems/key-in-use"  # the first sending of this command still runs
_KEY_CHARS_MAX = 255
_PORT_MAX = 65_535
_FIRST_PAUSE_S = 0.1
_PAUSE_S_MAX = 5.0
_QUIET_S_MAX = 45.0
"""A stream of events is cut off if nothing at all comes for so long; three times its heartbeat."""
_JITTER = 0.25
"""A pause is longer by up to this share of it, so that those who failed together part."""

Pause = Callable[[str, float], Awaitable[None]]
"""`await pause(reason, wait_s)` is called before a request is sent again."""

_encode = msgspec.json.Encoder().encode


class NoService(TaxiError):
    """No booking service answers there."""


class NoAnswer(TaxiError):
    """The request was not answered, and patience ran out.

    Whether a command was carried out is then not known; sent again under its
    `key`, it is not carried out twice. `reason` is what went wrong last.
    """

    def __init__(self, url: str, after_s: float, reason: str, key: str | None) -> None:
        self.after_s = after_s
        self.reason = reason
        self.key = key
        doubt = "" if key is None else " Whether it was carried out is not known."
        super().__init__(f"Given up on {url} after {after_s:.1f} s: {reason}.{doubt}")


class ProblemAnswer(TaxiError):
    """The service answered with a problem."""

    def __init__(self, problem: BookingProblem) -> None:
        self.problem = problem
        errors = problem.errors or []
        super().__init__(problem.detail, field=errors[0].field if errors else None)

    @property
    def type(self) -> str:
        """Which problem, such as `/problems/booking-conflict`."""
        return self.problem.type

    @property
    def status(self) -> int:
        """The status of the answer."""
        return self.problem.status

    @property
    def errors(self) -> list[FieldError]:
        """The inputs that break a rule."""
        return self.problem.errors or []

    @property
    def conflicts(self) -> list[Conflict]:
        """The bookings in the way."""
        return self.problem.conflicts or []

    @property
    def next_free(self) -> Offer | None:
        """When it could be had instead, if that is known."""
        return self.problem.next_free or None

    @property
    def free_drivers(self) -> list[int]:
        """Who is free at the time asked for."""
        return self.problem.free_drivers or []


class ProblemInvalid(ProblemAnswer):
    """The request breaks a rule."""


class ProblemNotFound(ProblemAnswer):
    """There is nothing with that id."""


class ProblemConflict(ProblemAnswer):
    """The present state of things forbids it."""


class ProblemChanged(ProblemAnswer):
    """The booking is not at the version named any more."""


class ProblemNotAllowed(ProblemAnswer):
    """The token is missing, or not valid any more, or its account may not do that."""


_PROBLEMS: Mapping[int, type[ProblemAnswer]] = {
    HTTPStatus.BAD_REQUEST: ProblemInvalid,
    HTTPStatus.CONTENT_TOO_LARGE: ProblemInvalid,
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: ProblemInvalid,
    HTTPStatus.UNPROCESSABLE_ENTITY: ProblemInvalid,
    HTTPStatus.UNAUTHORIZED: ProblemNotAllowed,
    HTTPStatus.FORBIDDEN: ProblemNotAllowed,
    HTTPStatus.NOT_FOUND: ProblemNotFound,
    HTTPStatus.CONFLICT: ProblemConflict,
    HTTPStatus.PRECONDITION_FAILED: ProblemChanged,
}


class Answer(NamedTuple):
    """An answer of the service, whatever it says, and how long it took."""

    response: httpx.Response
    latency_s: float
    """From sending to the whole answer, of the sending that was answered."""
    settled_s: float
    """From the first sending, pauses included."""


class _Again(Exception):  # no error: it is asked again
    """The service does not answer now."""


class _Message(NamedTuple):
    id: str
    data: str


async def _sleep(_reason: str, wait_s: float) -> None:
    await asyncio.sleep(wait_s)


class TaxiClient:
    """The service at `base_url`; to be entered by `async with`.

    A request waits for its answer `request_s_max` seconds at most. It is sent
    again, for `patience_s` in all, when there is no connection, when it breaks
    or is too slow, on 429, 502, 503 and 504, and while an earlier sending of
    the same command still runs; `Retry-After` is heeded. `pause` waits in
    between, and may raise to break off. `token` says who asks; without one, that in the
    environment does, `TAXI_TOKEN`.

    The methods raise `ProblemAnswer` for what the service refuses, `NoAnswer`
    when patience runs out, `NoService` when something else answers, and
    `InvalidInput`, as for instants without an offset. Those that change a
    booking take the `version` at which it was seen: if it has been changed
    since, `ProblemChanged` is raised, and nothing done.
    """

    def __init__(
        self,
        base_url: str,
        *,
        patience_s: float = 30.0,
        request_s_max: float = 15.0,
        connections_max: int = 10,
        pause: Pause = _sleep,
        token: str | None = None,
    ) -> None:
        self.base_url = base_url
        self._patience_s = patience_s
        self._pause = pause
        try:
            # A proxy of the environment would be asked for what is on this machine.
            self._http = httpx.AsyncClient(
                base_url=base_url,
                limits=httpx.Limits(max_connections=connections_max),
                timeout=request_s_max,
                trust_env=False,
                headers=_authorization(token or os.environ.get("TAXI_TOKEN")),
            )
        except httpx.InvalidURL as error:
            raise InvalidInput(f"It is not an address: {error}.", field="base_url") from None
        if (self._http.base_url.port or 0) > _PORT_MAX:
            raise InvalidInput(f"A port is at most {_PORT_MAX}.", field="base_url")

    async def __aenter__(self) -> Self:
        await self._http.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def check_service(self) -> None:
        """Raise `NoService` unless the service answers, at once and without patience."""
        heard = await self._try("GET", "/health", {})
        if isinstance(heard, str):
            raise NoService(
                f"No booking service answers at {self.base_url} ({heard})."
                " Is `taxi serve` running there?"
            )
        if heard.status_code == HTTPStatus.SERVICE_UNAVAILABLE and problem_in(heard):
            return  # it is there, and says in its own words that it is busy
        try:
            self._decoded(heard, Status)
        except ProblemAnswer:
            raise self._another(heard) from None

    async def add_driver(
        self,
        name: str,
        *,
        fleet: str = MAIN_FLEET,
        zone: str = "UTC",
        turnaround_s: int | None = None,
    ) -> DriverOut:
        """Add a driver."""
        body = DriverIn(name, fleet, zone, turnaround_s)
        return await self._command(DriverOut, "/drivers", body)

    async def add_rider(self, name: str) -> RiderOut:
        """Add a rider."""
        return await self._command(RiderOut, "/riders", RiderIn(name))

    async def driver(self, driver_id: int) -> DriverOut:
        """One driver."""
        return await self._get(DriverOut, f"/drivers/{driver_id}")

    def drivers(
        self, *, fleet: str | None = None, working: bool | None = None
    ) -> AsyncIterator[DriverOut]:
        """All drivers, or those of a fleet, in order of id."""
        return self._each(DriverPage, "/drivers", fleet=fleet, working=working)

    def riders(self) -> AsyncIterator[RiderOut]:
        """All riders in order of id."""
        return self._each(RiderPage, "/riders")

    async def book(
        self,
        rider_id: int,
        start: datetime,
        predicted_end: datetime,
        *,
        driver_id: int | None = None,
        fleet: str | None = None,
        hold_s: int | None = None,
        pickup: Place | None = None,
        dropoff: Place | None = None,
        key: str | None = None,
    ) -> BookingOut:
        """Book a driver, or any free driver of a fleet.

        A program that is to survive its own crash brings its own `key`, kept
        beforehand: under it, the same booking is not made twice.
        """
        wanted = _wanted(rider_id, start, predicted_end, driver_id, fleet)
        wanted.hold_s = hold_s
        wanted.pickup, wanted.dropoff = PlaceBody.of(pickup), PlaceBody.of(dropoff)
        return await self._command(BookingOut, "/bookings", wanted, key=key)

    async def check(
        self,
        rider_id: int,
        start: datetime,
        predicted_end: datetime,
        *,
        driver_id: int | None = None,
        fleet: str | None = None,
    ) -> Check:
        """What `book` would meet now. Nothing is recorded."""
        wanted = _wanted(rider_id, start, predicted_end, driver_id, fleet)
        answer = await self.send("POST", "/bookings/check", body=wanted)
        return self._decoded(answer.response, Check)

    async def booking(self, booking_id: int) -> BookingOut:
        """One booking."""
        return await self._get(BookingOut, f"/bookings/{booking_id}")

    def bookings(
        self,
        *,
        driver_id: int | None = None,
        rider_id: int | None = None,
        fleet: str | None = None,
        state: BookingState | None = None,
        at_risk: bool | None = None,
        start: datetime | None = None,
        end: datetime | None = None,
    ) -> AsyncIterator[BookingOut]:
        """All bookings that fit, in order of start; they overlap `[start, end)`, if given."""
        return self._each(
            BookingPage,
            "/bookings",
            driver_id=driver_id,
            rider_id=rider_id,
            fleet=fleet,
            state=state,
            at_risk=at_risk,
            start=None if start is None else _instant(start, "start"),
            end=None if end is None else _instant(end, "end"),
        )

    async def confirm(self, booking_id: int, *, version: int | None = None) -> BookingOut:
        """Confirm a booking whose time is held."""
        return await self._step(booking_id, "confirm", None, version)

    async def cancel(
        self, booking_id: int, reason: str | None = None, *, version: int | None = None
    ) -> BookingOut:
        """Cancel a booking that is not finished; its time is free at once."""
        return await self._step(booking_id, "cancel", Cancellation(reason), version)

    async def reschedule(
        self,
        booking_id: int,
        start: datetime,
        predicted_end: datetime,
        *,
        version: int | None = None,
    ) -> BookingOut:
        """Move a booking to another time of the same driver, or leave it where it is."""
        body = NewTime(utc(start, "start"), utc(predicted_end, "predicted_end"))
        return await self._step(booking_id, "reschedule", body, version)

    async def reassign(
        self, booking_id: int, driver_id: int | None = None, *, version: int | None = None
    ) -> BookingOut:
        """Give a booking to another driver, or to whoever of the fleet is free."""
        return await self._step(booking_id, "reassign", NewDriver(driver_id), version)

    async def start(
        self, booking_id: int, at: datetime | None = None, *, version: int | None = None
    ) -> BookingOut:
        """Say that the trip has started, now or at `at`."""
        return await self._step(booking_id, "start", _happened(at), version)

    async def complete(
        self, booking_id: int, at: datetime | None = None, *, version: int | None = None
    ) -> BookingOut:
        """Say that the trip has ended, now or at `at`."""
        return await self._step(booking_id, "complete", _happened(at), version)

    async def no_show(
        self, booking_id: int, at: datetime | None = None, *, version: int | None = None
    ) -> BookingOut:
        """Say that the rider was not there."""
        return await self._step(booking_id, "no-show", _happened(at), version)

    async def predict_end(
        self, booking_id: int, predicted_end: datetime, *, version: int | None = None
    ) -> OverrunOut:
        """Say when a trip that is under way will end; what had to move is in the answer."""
        body = NewEnd(utc(predicted_end, "predicted_end"))
        path = f"/bookings/{booking_id}/predict-end"
        return await self._command(OverrunOut, path, body, version=version)

    async def wait(
        self,
        rider_id: int,
        start: datetime,
        predicted_end: datetime,
        *,
        driver_id: int | None = None,
        fleet: str | None = None,
        key: str | None = None,
    ) -> WaitingOut:
        """Wait for time of a driver, or of any driver of a fleet; offered at once if it is free.

        What is offered is a booking, to be confirmed by `offer_expires_at`.
        """
        wanted = WaitingIn(
            rider_id, utc(start, "start"), utc(predicted_end, "predicted_end"), driver_id, fleet
        )
        return await self._command(WaitingOut, "/waiting-list", wanted, key=key)

    async def waiting_entry(self, entry_id: int) -> WaitingOut:
        """One entry of the waiting list."""
        return await self._get(WaitingOut, f"/waiting-list/{entry_id}")

    def waiting_list(
        self,
        *,
        rider_id: int | None = None,
        fleet: str | None = None,
        state: WaitingState | None = None,
    ) -> AsyncIterator[WaitingOut]:
        """All entries that fit, in order of joining."""
        return self._each(WaitingPage, "/waiting-list", rider_id=rider_id, fleet=fleet, state=state)

    async def withdraw(self, entry_id: int) -> WaitingOut:
        """Wait no longer, or decline what was offered."""
        return await self._command(WaitingOut, f"/waiting-list/{entry_id}/withdraw", None)

    async def agenda(self, driver_id: int, start: datetime, end: datetime) -> list[BookingOut]:
        """The driver's active bookings that overlap `[start, end)`, in order of start."""
        agenda = await self._get(Agenda, f"/drivers/{driver_id}/agenda", **_span(start, end))
        return agenda.items

    async def gaps(
        self, driver_id: int, start: datetime, end: datetime, *, at_least_minutes: int = 0
    ) -> list[WindowOut]:
        """When the driver is free in `[start, end)`, in order."""
        span = _span(start, end)
        path = f"/drivers/{driver_id}/gaps"
        return (await self._get(Gaps, path, at_least_minutes=at_least_minutes, **span)).items

    async def availability(
        self, start: datetime, end: datetime, *, fleet: str = MAIN_FLEET, limit: int = 100
    ) -> Availability:
        """Drivers who were free for the whole of `[start, end)`: an answer, not a promise."""
        span = _span(start, end)
        return await self._get(Availability, "/availability", fleet=fleet, limit=limit, **span)

    async def schedule(
        self, start: datetime, end: datetime, *, fleet: str = MAIN_FLEET
    ) -> Schedule:
        """Every working driver of a fleet, with what they have in `[start, end)`."""
        return await self._get(Schedule, "/schedule", fleet=fleet, **_span(start, end))

    async def events(
        self,
        *,
        after: str | None = None,
        booking_id: int | None = None,
        driver_id: int | None = None,
        rider_id: int | None = None,
    ) -> AsyncGenerator[EventOut]:
        """What happens, as it happens and without end: from now on, or behind the event `after`.

        A stream that breaks is taken up again where it broke, so nothing is missed and
        nothing comes twice. Raises `NoAnswer` when it cannot be taken up for `patience_s`,
        and otherwise as the class says.
        """
        wanted = {"booking_id": booking_id, "driver_id": driver_id, "rider_id": rider_id}
        params = {name: value for name, value in wanted.items() if value is not None}
        last, silent_since, pause_s = after, None, _FIRST_PAUSE_S
        while True:
            reason = "the stream ended"
            try:
                async with self._stream(params, last) as response:
                    async for message in _messages(response):
                        silent_since, pause_s = None, _FIRST_PAUSE_S
                        last = message.id or last
                        if message.data:
                            yield msgspec.json.decode(message.data, type=EventOut)
            except _Again as again:
                reason = str(again)
            except httpx.TransportError as error:
                reason = next(text for kind, text in _REASONS.items() if isinstance(error, kind))
            now = perf_counter()
            silent_since = silent_since or now
            if now - silent_since + pause_s > self._patience_s:
                raise NoAnswer(self.base_url, now - silent_since, reason, None)
            await self._pause(reason, pause_s * (1 + random.random() * _JITTER))  # noqa: S311  # no secret
            pause_s = min(2 * pause_s, _PAUSE_S_MAX)

    @asynccontextmanager
    async def _stream(
        self, params: Mapping[str, int], last: str | None
    ) -> AsyncIterator[httpx.Response]:
        headers = {} if last is None else {"Last-Event-ID": last}
        timeout = httpx.Timeout(self._http.timeout.connect, read=_QUIET_S_MAX)
        async with self._http.stream(
            "GET", "/events/stream", params=params, headers=headers, timeout=timeout
        ) as response:
            if not response.is_success:
                await response.aread()
                if _to_be_sent_again(response):
                    raise _Again(summary_of(response))
                self._decoded(response, Status)  # raises the problem
            yield response

    async def send(
        self,
        method: str,
        path: str,
        *,
        body: Struct | None = None,
        params: Mapping[str, str | int | bool] | None = None,
        key: str | None = None,
        version: int | None = None,
        patience_s: float | None = None,
    ) -> Answer:
        """Send a request until it is answered, be it by a refusal.

        For what no other method is for. `patience_s` takes the place of the
        client's own. Raises as the class says, but for `ProblemAnswer`.
        """
        headers = {} if key is None else {"Idempotency-Key": _checked(key)}
        if version is not None:
            headers["If-Match"] = f'"{version}"'
        content = None
        if body is not None:
            content = _encode(body)
            headers["Content-Type"] = "application/json"
        patience_s = self._patience_s if patience_s is None else patience_s
        began = perf_counter()
        pause_s = _FIRST_PAUSE_S
        while True:
            sent = perf_counter()
            heard = await self._try(method, path, headers, content, params)
            now = perf_counter()
            if isinstance(heard, str):
                reason, wait_s = heard, pause_s
            elif not _to_be_sent_again(heard):
                return Answer(heard, now - sent, now - began)
            else:
                reason, wait_s = summary_of(heard), max(pause_s, _retry_after_s(heard))
            wait_s *= 1 + random.random() * _JITTER  # noqa: S311  # no secret
            if now - began + wait_s > patience_s:
                raise NoAnswer(self.base_url, now - began, reason, key)
            await self._pause(reason, wait_s)
            pause_s = min(2 * pause_s, _PAUSE_S_MAX)

    async def _try(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        content: bytes | None = None,
        params: Mapping[str, str | int | bool] | None = None,
    ) -> httpx.Response | str:
        """The answer, or the reason why there is none."""
        try:
            return await self._http.request(
                method, path, headers=headers, content=content, params=params
            )
        except httpx.UnsupportedProtocol:
            raise NoService(f"{self.base_url} is not an http address.") from None
        except httpx.TransportError as error:
            return next(text for kind, text in _REASONS.items() if isinstance(error, kind))
        except httpx.DecodingError:
            raise NoService(f"What answers at {self.base_url} cannot be read.") from None

    async def _get[T](self, shape: type[T], path: str, **params: str | int | bool | None) -> T:
        given = {name: value for name, value in params.items() if value is not None}
        return self._decoded((await self.send("GET", path, params=given)).response, shape)

    async def _each[T](
        self, shape: type[Page[T]], path: str, **params: str | int | bool | None
    ) -> AsyncIterator[T]:
        cursor = None
        while True:
            page = await self._get(shape, path, limit=PAGE_ITEMS, cursor=cursor, **params)
            for item in page.items:
                yield item
            if page.next_cursor is None:
                return
            cursor = page.next_cursor

    async def _command[T](
        self,
        shape: type[T],
        path: str,
        body: Struct | None,
        *,
        version: int | None = None,
        key: str | None = None,
    ) -> T:
        key = str(uuid4()) if key is None else key
        answer = await self.send("POST", path, body=body, key=key, version=version)
        return self._decoded(answer.response, shape)

    async def _step(
        self, booking_id: int, step: str, body: Struct | None, version: int | None
    ) -> BookingOut:
        path = f"/bookings/{booking_id}/{step}"
        return await self._command(BookingOut, path, body, version=version)

    def _decoded[T](self, response: httpx.Response, shape: type[T]) -> T:
        """The body of a success; else raises the problem, or `NoService`."""
        if response.is_success:
            try:
                return msgspec.json.decode(response.content, type=shape)
            except (msgspec.DecodeError, UnicodeDecodeError):
                pass  # no booking service answers so
        problem = problem_in(response)
        if problem is None:
            raise self._another(response)
        raise _PROBLEMS.get(response.status_code, ProblemAnswer)(problem)

    def _another(self, response: httpx.Response) -> NoService:
        return NoService(
            f"What answers at {self.base_url} is not the booking service ({summary_of(response)})."
        )


async def _messages(response: httpx.Response) -> AsyncIterator[_Message]:
    """The messages of a stream of server-sent events; comments come as empty ones.

    <https://html.spec.whatwg.org/multipage/server-sent-events.html>
    """
    id_, data = "", list[str]()
    async for line in _lines(response):
        name, _, value = line.partition(":")
        if not line:
            yield _Message(id_, "\n".join(data))
            data = []
        elif name == "id":
            id_ = value.removeprefix(" ")
        elif name == "data":
            data.append(value.removeprefix(" "))


async def _lines(response: httpx.Response) -> AsyncIterator[str]:
    """The lines of a body, as they come. The library would also end some within a text of JSON."""
    rest = b""
    async for chunk in response.aiter_bytes():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line.rstrip(b"\r").decode()


def problem_in(response: httpx.Response) -> BookingProblem | None:
    """The problem that a response carries, if any."""
    if not response.headers.get("Content-Type", "").startswith("application/problem+json"):
        return None
    try:
        return msgspec.json.decode(response.content, type=BookingProblem)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def summary_of(response: httpx.Response) -> str:
    """A response in a few words: `503 Service Unavailable`, or the title of its problem."""
    problem = problem_in(response)
    said = response.reason_phrase if problem is None else problem.title.rstrip(".")
    return f"{response.status_code} {said}".rstrip()


_REASONS: Mapping[type[Exception], str] = {
    httpx.ConnectError: "cannot connect",
    httpx.ConnectTimeout: "no connection in time",
    httpx.TimeoutException: "no answer in time",
    httpx.TransportError: "connection lost",
}


def _to_be_sent_again(response: httpx.Response) -> bool:
    if response.status_code != HTTPStatus.CONFLICT:
        return response.status_code in _AGAIN
    problem = problem_in(response)
    return problem is not None and problem.type == _KEY_IN_USE


def _retry_after_s(response: httpx.Response) -> float:
    value = response.headers.get("Retry-After", "")
    return float(value) if value.isdecimal() else 0.0  # a date is not worth a clock's error


def _authorization(token: str | None) -> dict[str, str]:
    if not token:
        return {}
    if not (token.isascii() and token.isprintable()):
        raise InvalidInput("It is not a token.", field="TAXI_TOKEN")
    return {"Authorization": f"Bearer {token}"}


def _checked(key: str) -> str:
    if not (key.isascii() and key.isprintable() and 1 <= len(key) <= _KEY_CHARS_MAX):
        raise InvalidInput(
            f"A key is 1 to {_KEY_CHARS_MAX} printable characters of ASCII.",
            field="Idempotency-Key",
        )
    return key


def _wanted(
    rider_id: int,
    start: datetime,
    predicted_end: datetime,
    driver_id: int | None,
    fleet: str | None,
) -> BookingIn:
    return BookingIn(
        rider_id=rider_id,
        start=utc(start, "start"),
        predicted_end=utc(predicted_end, "predicted_end"),
        driver_id=driver_id,
        fleet=fleet,
    )


def _happened(at: datetime | None) -> Happened | None:
    return None if at is None else Happened(utc(at, "at"))


def _span(start: datetime, end: datetime) -> dict[str, str]:
    return {"start": _instant(start, "start"), "end": _instant(end, "end")}


def _instant(instant: datetime, field: str) -> str:
    return utc(instant, field).isoformat()
