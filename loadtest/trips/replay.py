"""Drives trips through the running API, each as one booking, and measures the answers.

It knows the service by HTTP alone. A replay brings a fleet and riders of its
own, so what others have booked is not in its way. It is a *closed* loop: each
of its clients sends the next trip when the last one is answered, so a service
that slows down is asked less. What that does to latencies is in docs/replay.md.

Each booking is sent under an idempotency key of its own. A request that was
turned away for the moment (429, 503), or whose connection broke, is sent again
under that key until it is answered or patience runs out: so a booking whose
answer was lost is not made twice.
"""

import asyncio
import random
import secrets
from array import array
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from http import HTTPStatus
from time import perf_counter
from typing import Any, NamedTuple

import httpx

from booking.errors import InvalidInput, TaxiError
from booking.time_window import microseconds
from loadtest.trips.files import Trip

RIDERS = 8
"""Who books. More would change nothing: a rider may have any number of bookings."""

NAMED_MAX = 1_000
"""How many failed or missing bookings are named; those beyond are only counted."""

GIVE_UPS_IN_A_ROW_MAX = 10
"""After so many trips without any answer the service is taken to be gone."""

LINES_A_REASON_MAX = 10

_AGAIN = frozenset(
    {
        HTTPStatus.TOO_MANY_REQUESTS,
        HTTPStatus.BAD_GATEWAY,
        HTTPStatus.SERVICE_UNAVAILABLE,
        HTTPStatus.GATEWAY_TIMEOUT,
    }
)
_KEY_IN_USE = "/problems/key-in-use"  # the first sending of this request still runs
_REQUEST_S_MAX = 30.0
_SETUP_PATIENCE_S = 60.0  # making the fleet and looking bookings up is not what is measured
_FIRST_PAUSE_S = 0.1
_PAUSE_S_MAX = 5.0
_PAGE = 1_000


class NoService(TaxiError):
    """No booking service answers there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How to replay: `clients` at once, for any of `drivers` new drivers of `fleet`.

    With `named` each trip asks for one driver, whom `seed` picks. A request is
    sent again for `patience_s` at most.
    """

    url: str
    fleet: str
    drivers: int
    zone: str = "UTC"
    clients: int = 1
    named: bool = False
    seed: int = 0
    patience_s: float = 30.0


@dataclass(slots=True)
class Refusal:
    """How often one kind of problem was answered, and on which lines first."""

    title: str
    count: int = 0
    lines: list[int] = field(default_factory=list)


class Failure(NamedTuple):
    """A trip that has no answer, or one that is no answer to a booking."""

    line: int
    reason: str


@dataclass(slots=True)
class Verification:
    """What the service, asked afterwards, still knows of the bookings that it acknowledged."""

    found: int = 0
    """Acknowledged, and there as they were acknowledged."""
    missing: list[int] = field(default_factory=list)
    """Ids of those that are not, that are different, or that another trip was told as well; at
    most `NAMED_MAX`."""
    missing_count: int = 0
    unacknowledged: int = 0
    """There, but acknowledged to nobody: a trip that failed may have been booked all the same."""
    error: str | None = None
    """Why the service could not be asked, if it could not; the figures are then incomplete."""


@dataclass(slots=True)
class Tally:
    """What became of the trips that were sent."""

    accepted: int = 0
    refused: dict[str, Refusal] = field(default_factory=dict)
    """By the type of the problem."""
    failed: int = 0
    failures: list[Failure] = field(default_factory=list)
    """The first `NAMED_MAX`."""
    retries: Counter[str] = field(default_factory=Counter)
    """Requests that were sent again, by the reason; those that made the fleet are among them."""
    recalled: int = 0
    """Acceptances that were the stored answer to an earlier sending."""
    drivers_used: set[int] = field(default_factory=set)
    latencies_s: array[float] = field(default_factory=lambda: array("d"))
    """From sending to the whole answer, of the sending that was answered."""
    settled_s: array[float] = field(default_factory=lambda: array("d"))
    """From the first sending of a trip to its answer, pauses included."""
    wall_s: float = 0.0
    """From the first trip's sending to the last one's answer."""
    interrupted: bool = False
    gone: bool = False
    """Whether the replay stopped because nothing answered any more."""

    @property
    def refusals(self) -> int:
        """Trips refused, for whatever reason."""
        return sum(each.count for each in self.refused.values())

    @property
    def settled(self) -> int:
        """Trips that were sent and are done with."""
        return self.accepted + self.refusals + self.failed

    def refuse(self, line: int, kind: str, title: str) -> None:
        """Count a refusal."""
        refusal = self.refused.setdefault(kind, Refusal(title))
        refusal.count += 1
        if len(refusal.lines) < LINES_A_REASON_MAX:
            refusal.lines.append(line)

    def fail(self, line: int, reason: str) -> None:
        """Count a failure."""
        self.failed += 1
        if len(self.failures) < NAMED_MAX:
            self.failures.append(Failure(line, reason))


class _Sending(NamedTuple):
    trip: Trip
    rider_id: int
    driver_id: int | None


class _Answer(NamedTuple):
    response: httpx.Response
    latency_s: float
    settled_s: float


class _Acknowledged(NamedTuple):
    driver_id: int
    start_us: int
    end_us: int


class _GaveUp(Exception):
    """Patience ran out; the message is the last thing that went wrong."""


class Replay:
    """One replay. `on_settled` hears of every trip that is done with.

    The bookings that were acknowledged are remembered for `verify` only if
    `remember`.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        remember: bool = False,
        on_settled: Callable[[Tally], None] = lambda _: None,
    ) -> None:
        self.tally = Tally()
        self._plan = plan
        self._acknowledged: dict[int, _Acknowledged] | None = {} if remember else None
        self._acknowledged_again: list[int] = []
        """Ids that a trip was told after another: one booking cannot be both of them."""
        self._on_settled = on_settled
        self._run = secrets.token_hex(8)
        self._stopped = asyncio.Event()
        self._give_ups_in_a_row = 0

    def stop(self) -> None:
        """Send no more trips; those on their way are still waited for."""
        self.tally.interrupted = True
        self._stopped.set()

    async def run(self, trips: Iterable[Trip]) -> None:
        """Make the fleet and the riders and send every trip; the result is in `tally`.

        Raises `NoService` if nothing answers at the start, `InvalidInput` if
        the fleet has drivers already, and whatever reading the trips raises.
        """
        async with self._service() as service:
            await self._check_service(service)
            await self._check_fleet(service)
            names = [f"Replay driver {number}" for number in range(1, self._plan.drivers + 1)]
            more = {"fleet": self._plan.fleet, "zone": self._plan.zone}
            drivers = await self._add(service, "/drivers", names, more)
            names = [f"Replay rider {number}" for number in range(1, RIDERS + 1)]
            riders = await self._add(service, "/riders", names, {})
            began = perf_counter()
            await self._by_all_clients(
                self._sendings(trips, drivers, riders), lambda sending: self._book(service, sending)
            )
            self.tally.wall_s = perf_counter() - began

    async def verify(self) -> Verification:
        """Look every acknowledged booking up."""
        left = dict(self._acknowledged or {})
        result = Verification()
        try:
            async with self._service() as service:
                async for booking in self._bookings(service):
                    acknowledged = left.get(booking["id"])
                    if acknowledged is None:
                        result.unacknowledged += 1
                    elif acknowledged == _seen(booking):
                        result.found += 1
                        del left[booking["id"]]
        except NoService as error:
            result.error = error.message
        missing = [*left, *self._acknowledged_again]
        result.missing_count = len(missing)
        result.missing = sorted(missing)[:NAMED_MAX]
        return result

    @asynccontextmanager
    async def _service(self) -> AsyncIterator[httpx.AsyncClient]:
        try:
            client = httpx.AsyncClient(
                base_url=self._plan.url,
                limits=httpx.Limits(max_connections=self._plan.clients),
                timeout=_REQUEST_S_MAX,
                trust_env=False,
            )
        except httpx.InvalidURL as error:
            raise InvalidInput(f"It is not an address: {error}.", field="--url") from None
        async with client:
            yield client

    async def _check_service(self, service: httpx.AsyncClient) -> None:
        """Without patience: who starts a replay wants to be told of a wrong address at once."""
        try:
            response = await service.get("/health")
        except httpx.TransportError as error:
            raise NoService(
                f"No booking service answers at {self._plan.url} ({_reason(error)})."
                " Start one by `taxi serve`, or name another by --url."
            ) from error
        if response.is_success and isinstance(_body(response), dict):
            return
        raise NoService(f"What answers at {self._plan.url} is not the booking service.")

    async def _check_fleet(self, service: httpx.AsyncClient) -> None:
        there = await self._must(
            service, "GET", "/drivers", params={"fleet": self._plan.fleet, "limit": 1}
        )
        if there["items"]:
            raise InvalidInput(
                f"There are drivers in the fleet {self._plan.fleet!r} already;"
                " a replay needs a new one.",
                field="--fleet",
            )

    async def _add(
        self, service: httpx.AsyncClient, path: str, names: list[str], more: Mapping[str, str]
    ) -> list[int]:
        """Ids of what was added, in order of `names`."""
        ids: dict[str, int] = {}

        async def add(name: str) -> None:
            added = await self._must(
                service, "POST", path, json={"name": name, **more}, key=f"{path} {name}"
            )
            ids[name] = added["id"]

        await self._by_all_clients(iter(names), add)
        return [ids[name] for name in names if name in ids]

    def _sendings(
        self, trips: Iterable[Trip], drivers: list[int], riders: list[int]
    ) -> Iterator[_Sending]:
        dice = random.Random(self._plan.seed)
        for number, trip in enumerate(trips):
            driver_id = dice.choice(drivers) if self._plan.named else None
            yield _Sending(trip, riders[number % len(riders)], driver_id)

    async def _by_all_clients[T](
        self, items: Iterator[T], work: Callable[[T], Awaitable[None]]
    ) -> None:
        """Give the items to the plan's clients, each of which takes the next when it is done."""

        async def client() -> None:
            while not self._stopped.is_set():
                try:
                    item = next(items)
                except StopIteration:
                    return
                await work(item)

        try:
            async with asyncio.TaskGroup() as clients:
                for _ in range(self._plan.clients):
                    clients.create_task(client())
        except* TaxiError as group:
            raise _first(group) from None

    async def _book(self, service: httpx.AsyncClient, sending: _Sending) -> None:
        trip, tally = sending.trip, self.tally
        whose = (
            {"fleet": self._plan.fleet}
            if sending.driver_id is None
            else {"driver_id": sending.driver_id}
        )
        body = {
            "rider_id": sending.rider_id,
            "start": trip.start.isoformat(),
            "predicted_end": trip.end.isoformat(),
            **whose,
        }
        try:
            answer = await self._ask(
                service,
                "POST",
                "/bookings",
                self._plan.patience_s,
                json=body,
                key=f"line {trip.line}",
            )
        except _GaveUp as error:
            tally.fail(trip.line, str(error))
            self._count_give_up()
        else:
            self._give_ups_in_a_row = 0
            self._count(trip, answer)
        self._on_settled(tally)

    def _count(self, trip: Trip, answer: _Answer) -> None:
        tally, response = self.tally, answer.response
        body = _body(response)
        kind = _problem_type(body)
        if response.status_code == HTTPStatus.CREATED and isinstance(body, dict):
            tally.accepted += 1
            tally.drivers_used.add(body["driver_id"])
            tally.recalled += response.headers.get("Idempotency-Replayed") == "true"
            self._remember(trip, body)
        elif response.is_client_error and kind is not None:
            tally.refuse(trip.line, kind, str(body["title"]))
        else:
            tally.fail(trip.line, f"the service answered {_summary(response)}")
            return
        tally.latencies_s.append(answer.latency_s)
        tally.settled_s.append(answer.settled_s)

    def _remember(self, trip: Trip, body: Mapping[str, Any]) -> None:
        if self._acknowledged is None:
            return
        if body["id"] in self._acknowledged:
            self._acknowledged_again.append(body["id"])
            return
        self._acknowledged[body["id"]] = _Acknowledged(
            body["driver_id"], microseconds(trip.start), microseconds(trip.end)
        )

    def _count_give_up(self) -> None:
        self._give_ups_in_a_row += 1
        if self._give_ups_in_a_row >= GIVE_UPS_IN_A_ROW_MAX and not self._stopped.is_set():
            self.tally.gone = True
            self._stopped.set()

    async def _must(
        self, service: httpx.AsyncClient, method: str, path: str, **request: Any
    ) -> Any:
        """The body of an answer that must be a success, or `NoService`."""
        try:
            answer = await self._ask(service, method, path, _SETUP_PATIENCE_S, **request)
        except _GaveUp as error:
            raise NoService(f"{method} {path}: {error}.") from None
        if not answer.response.is_success:
            raise NoService(f"{method} {path}: the service answered {_summary(answer.response)}.")
        return _body(answer.response)

    async def _ask(
        self,
        service: httpx.AsyncClient,
        method: str,
        path: str,
        patience_s: float,
        *,
        key: str = "",
        **request: Any,
    ) -> _Answer:
        """Send until answered. Raises `_GaveUp` when patience has run out or all is to stop."""
        headers = {"Idempotency-Key": f"replay {self._run} {key}"} if key else {}
        began = perf_counter()
        pause_s = _FIRST_PAUSE_S
        while True:
            sent = perf_counter()
            retry_after_s = 0.0
            try:
                response = await service.request(method, path, headers=headers, **request)
            except httpx.TransportError as error:
                reason = _reason(error)
            else:
                if not _to_be_sent_again(response):
                    now = perf_counter()
                    return _Answer(response, now - sent, now - began)
                reason = _summary(response)
                retry_after_s = _retry_after_s(response)
            wait_s = max(retry_after_s, pause_s) * (1 + random.random() / 4)
            if perf_counter() - began + wait_s > patience_s:
                raise _GaveUp(f"given up after {perf_counter() - began:.1f} s: {reason}")
            if await self._stopped_within(wait_s):
                raise _GaveUp(f"stopped while it was to be sent again: {reason}")
            self.tally.retries[reason] += 1
            pause_s = min(2 * pause_s, _PAUSE_S_MAX)

    async def _stopped_within(self, wait_s: float) -> bool:
        try:
            async with asyncio.timeout(wait_s):
                return await self._stopped.wait()
        except TimeoutError:
            return False

    async def _bookings(self, service: httpx.AsyncClient) -> AsyncIterator[dict[str, Any]]:
        params: dict[str, Any] = {"fleet": self._plan.fleet, "limit": _PAGE}
        while True:
            page = await self._must(service, "GET", "/bookings", params=params)
            for booking in page["items"]:
                yield booking
            if page["next_cursor"] is None:
                return
            params["cursor"] = page["next_cursor"]


def _first(group: BaseExceptionGroup[TaxiError]) -> TaxiError:
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first


def _to_be_sent_again(response: httpx.Response) -> bool:
    return response.status_code in _AGAIN or (
        response.status_code == HTTPStatus.CONFLICT
        and _problem_type(_body(response)) == _KEY_IN_USE
    )


def _retry_after_s(response: httpx.Response) -> float:
    value = response.headers.get("Retry-After", "")
    return float(value) if value.isdecimal() else 0.0  # a date is not worth a clock's error


def _body(response: httpx.Response) -> Any:
    try:
        return response.json()
    except ValueError:
        return None


def _problem_type(body: Any) -> str | None:
    kind = body.get("type") if isinstance(body, dict) else None
    return kind if isinstance(kind, str) and kind.startswith("/problems/") else None


def _summary(response: httpx.Response) -> str:
    body = _body(response)
    title = body.get("title") if isinstance(body, dict) else response.reason_phrase
    return f"{response.status_code} {title or response.reason_phrase}"


_REASONS: Mapping[type[Exception], str] = {
    httpx.ConnectError: "cannot connect",
    httpx.ConnectTimeout: "no connection in time",
    httpx.TimeoutException: "no answer in time",
    httpx.UnsupportedProtocol: "not an http address",
    httpx.TransportError: "connection lost",
}


def _reason(error: httpx.TransportError) -> str:
    return next(text for kind, text in _REASONS.items() if isinstance(error, kind))


def _seen(booking: Mapping[str, Any]) -> _Acknowledged:
    start, end = (datetime.fromisoformat(booking[name]) for name in ("start", "predicted_end"))
    return _Acknowledged(booking["driver_id"], microseconds(start), microseconds(end))
