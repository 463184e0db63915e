"""Drives trips through the running API, each as one booking, and measures the answers.

It knows the service by HTTP alone, through the client that is everybody's. A
replay brings a fleet and riders of its own, so what others have booked is not
in its way. It is a *closed* loop: each of its clients sends the next trip when
the last one is answered, so a service that slows down is asked less. What that
does to latencies is in docs/replay.md.

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
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from http import HTTPStatus
from time import perf_counter
from typing import NamedTuple

import httpx
import msgspec

from api.bodies.bookings import BookingIn, BookingOut
from api.bodies.drivers import DriverOut
from api.bodies.riders import RiderOut
from api.client import TaxiClient
from api.client.answers import Answer, problem_in, summary_of
from api.client.errors import NoAnswer, NoService, ProblemAnswer
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

_REQUEST_S_MAX = 30.0
_SETUP_PATIENCE_S = 60.0  # making the fleet and looking bookings up is not what is measured

_REFUSALS = "/problems/"
"""How the type of a problem begins that the service itself has thought of."""

_read_booking = msgspec.json.Decoder(BookingOut).decode


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


class _Acknowledged(NamedTuple):
    driver_id: int
    start_us: int
    end_us: int


class _Stopped(TaxiError):
    """The replay was stopped while a request was to be sent again."""


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
        async with self._client() as service:
            drivers, riders = await self._make_fleet(service)
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
            async with self._client() as service:
                async for booking in service.bookings(fleet=self._plan.fleet):
                    acknowledged = left.get(booking.id)
                    if acknowledged is None:
                        result.unacknowledged += 1
                    elif acknowledged == _seen(booking):
                        result.found += 1
                        del left[booking.id]
        except (NoService, NoAnswer, ProblemAnswer) as error:
            result.error = error.message
        missing = [*left, *self._acknowledged_again]
        result.missing_count = len(missing)
        result.missing = sorted(missing)[:NAMED_MAX]
        return result

    def _client(self) -> TaxiClient:
        try:
            return TaxiClient(
                self._plan.url,
                patience_s=_SETUP_PATIENCE_S,
                request_s_max=_REQUEST_S_MAX,
                connections_max=self._plan.clients,
                pause=self._pause,
            )
        except InvalidInput as error:
            raise InvalidInput(error.message, field="--url") from None

    async def _pause(self, reason: str, wait_s: float) -> None:
        """Count a request that is sent again, unless all is to stop."""
        try:
            async with asyncio.timeout(wait_s):
                await self._stopped.wait()
        except TimeoutError:
            self.tally.retries[reason] += 1
        else:
            raise _Stopped(f"stopped while it was to be sent again: {reason}")

    async def _make_fleet(self, service: TaxiClient) -> tuple[list[int], list[int]]:
        """Ids of the drivers and of the riders."""
        fleet, zone = self._plan.fleet, self._plan.zone
        await service.check_service()
        async for _ in service.drivers(fleet=fleet):
            raise InvalidInput(
                f"There are drivers in the fleet {fleet!r} already; a replay needs a new one.",
                field="--fleet",
            )
        drivers = await self._add(
            self._plan.drivers,
            lambda number: service.add_driver(f"Replay driver {number}", fleet=fleet, zone=zone),
        )
        riders = await self._add(RIDERS, lambda number: service.add_rider(f"Replay rider {number}"))
        return drivers, riders

    async def _add(
        self, count: int, add: Callable[[int], Awaitable[DriverOut | RiderOut]]
    ) -> list[int]:
        """Ids of what was added, in order of their numbers from 1 on."""
        ids: dict[int, int] = {}

        async def work(number: int) -> None:
            ids[number] = (await add(number)).id

        await self._by_all_clients(iter(range(1, count + 1)), work)
        return [ids[number] for number in sorted(ids)]

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

    async def _book(self, service: TaxiClient, sending: _Sending) -> None:
        trip, tally = sending.trip, self.tally
        body = BookingIn(
            rider_id=sending.rider_id,
            start=trip.start,
            predicted_end=trip.end,
            driver_id=sending.driver_id,
            fleet=self._plan.fleet if sending.driver_id is None else None,
        )
        try:
            answer = await service.send(
                "POST",
                "/bookings",
                body=body,
                key=f"replay {self._run} line {trip.line}",
                patience_s=self._plan.patience_s,
            )
        except NoAnswer as error:
            tally.fail(trip.line, f"given up after {error.after_s:.1f} s: {error.reason}")
            self._count_give_up()
        except _Stopped as error:
            tally.fail(trip.line, error.message)
        else:
            self._give_ups_in_a_row = 0
            self._count(trip, answer)
        self._on_settled(tally)

    def _count(self, trip: Trip, answer: Answer) -> None:
        tally, response = self.tally, answer.response
        booking = _booking_in(response)
        problem = problem_in(response)
        if booking is not None:
            tally.accepted += 1
            tally.drivers_used.add(booking.driver_id)
            tally.recalled += response.headers.get("Idempotency-Replayed") == "true"
            self._remember(trip, booking)
        elif (
            problem is not None and problem.type.startswith(_REFUSALS) and response.is_client_error
        ):
            tally.refuse(trip.line, problem.type, problem.title)
        else:
            tally.fail(trip.line, f"the service answered {summary_of(response)}")
            return
        tally.latencies_s.append(answer.latency_s)
        tally.settled_s.append(answer.settled_s)

    def _remember(self, trip: Trip, booking: BookingOut) -> None:
        if self._acknowledged is None:
            return
        if booking.id in self._acknowledged:
            self._acknowledged_again.append(booking.id)
            return
        self._acknowledged[booking.id] = _Acknowledged(
            booking.driver_id, microseconds(trip.start), microseconds(trip.end)
        )

    def _count_give_up(self) -> None:
        self._give_ups_in_a_row += 1
        if self._give_ups_in_a_row >= GIVE_UPS_IN_A_ROW_MAX and not self._stopped.is_set():
            self.tally.gone = True
            self._stopped.set()


def _first(group: BaseExceptionGroup[TaxiError]) -> TaxiError:
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first


def _booking_in(response: httpx.Response) -> BookingOut | None:
    if response.status_code != HTTPStatus.CREATED:
        return None
    try:
        return _read_booking(response.content)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _seen(booking: BookingOut) -> _Acknowledged:
    return _Acknowledged(
        booking.driver_id, microseconds(booking.start), microseconds(booking.predicted_end)
    )
