"""Carries out act IV: a new predicted end, and what becomes of the bookings behind it.

What to do is worked out by `booking.overrun`, which is pure. Here it is done, in one
transaction: everybody concerned has moved, or nobody has. The steps are taken from
the last to the first, and the trip's own new end comes after them all, so that each
moves into time that is free by then; the ledger's recipe judges every one of them,
as it would judge a rider's.
"""

from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import takewhile
from typing import NamedTuple

from sqlalchemy import func, not_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from booking.bookings import Booking, BookingRequest, BookingState
from booking.errors import (
    BookingConflict,
    Contended,
    DriverRetired,
    EmptyWindow,
    IllegalTransition,
    NoTimeToTravel,
    NoTurnaround,
    OffShift,
)
from booking.overrun import (
    AlreadyPast,
    Chain,
    NotAChain,
    Policy,
    Remedy,
    Step,
    Upcoming,
    clock_passed,
)
from booking.postgres import reads
from booking.postgres.ledger import PostgresLedger, lock_booking
from booking.postgres.tables import (
    BOOKING_COLUMNS,
    active,
    begins,
    booking_of,
    bookings,
    drivers,
    lapsed,
    predicted_ends,
)
from booking.postgres.terms import refit_behind, works_in
from booking.postgres.writes import update_booking
from booking.time_window import TimeWindow, utc

CHAIN_MAX = 200
"""How many of the driver's next bookings a late trip may reach."""
_TRIES_MAX = 3
_UNSUITABLE_MAX = 20
_NOTHING = timedelta(0)


class Moved(NamedTuple):
    """A booking that a late trip has moved, and how."""

    booking: Booking
    remedy: Remedy
    late_s: float


@dataclass(frozen=True, slots=True)
class Overrun:
    """The trip with its new predicted end, and every booking that had to move for it."""

    trip: Booking
    moved: tuple[Moved, ...]

    @property
    def id(self) -> int:
        """The trip's number."""
        return self.trip.id

    @property
    def version(self) -> int:
        """The trip's version."""
        return self.trip.version


async def report_end(
    ledger: PostgresLedger,
    booking_id: int,
    predicted_end: datetime,
    policy: Policy,
    *,
    version: int | None = None,
) -> Overrun:
    """Say when a trip that is under way will end, and save what can be saved behind it.

    Raises `UnknownBooking`, `VersionMismatch`, `IllegalTransition` if the trip is not
    under way, `AlreadyPast`, `EmptyWindow`, `TooLong`, `BookingConflict` if another trip of
    the driver that is under way is in the way, or `Contended` if others changed the same
    bookings each time it was tried.
    """
    return await ledger.transact(
        lambda connection: report_end_in(
            ledger, connection, booking_id, predicted_end, policy, version
        )
    )


async def report_end_in(
    ledger: PostgresLedger,
    connection: AsyncConnection,
    booking_id: int,
    predicted_end: datetime,
    policy: Policy,
    version: int | None = None,
) -> Overrun:
    """Do the work of `report_end`, inside a transaction that is under way."""
    trip, now = await lock_booking(connection, booking_id, version)
    if trip.state is not BookingState.IN_PROGRESS:
        raise IllegalTransition(
            f"A booking that is {trip.state} has no new end; a trip that is in_progress has.",
            field="state",
        )
    end = utc(predicted_end, "predicted_end")
    if end < now:
        raise AlreadyPast(field="predicted_end")
    unsuitable: set[int] = set()
    tries = 0
    while tries < _TRIES_MAX - 1:
        try:
            async with connection.begin_nested():
                return await _carry_out(ledger, connection, trip, end, now, policy, unsuitable)
        except _Unsuitable as found:
            unsuitable.add(found.driver_id)
            tries += len(unsuitable) > _UNSUITABLE_MAX
        except (BookingConflict, DriverRetired, NotAChain, _Changed):
            tries += 1  # somebody booked, moved or cancelled between the look and the move
    try:
        return await _carry_out(ledger, connection, trip, end, now, policy, unsuitable)
    except (NotAChain, _Changed, _Unsuitable):
        raise Contended from None


async def overdue(connection: AsyncConnection) -> list[tuple[Booking, datetime]]:
    """The trips that are under way though their predicted end has passed; and what it is to be.

    The longest overdue first. By the clock of the database, which judges the report.
    """
    rows = await connection.execute(
        select(*BOOKING_COLUMNS, func.now())
        .where(bookings.c.state == BookingState.IN_PROGRESS, predicted_ends <= func.now())
        .order_by(predicted_ends)
    )
    trips = [(booking_of(columns), now) for *columns, now in rows]
    ends = [clock_passed(trip.began, trip.predicted_end, now) for trip, now in trips]
    return [(trip, end) for (trip, _), end in zip(trips, ends, strict=True) if end is not None]


async def _carry_out(
    ledger: PostgresLedger,
    connection: AsyncConnection,
    trip: Booking,
    end: datetime,
    now: datetime,
    policy: Policy,
    unsuitable: Collection[int],
) -> Overrun:
    following = await _following(connection, trip)
    # What is under way itself is not moved, and so in the way of the late trip.
    waiting = list(takewhile(lambda each: each.state.to_come, following))
    chain = Chain(trip.driver_id, _upcoming(trip), [_upcoming(each) for each in waiting])
    fleet = (await reads.driver(connection, trip.driver_id)).fleet

    async def find(window: TimeWindow, other_than: Collection[int]) -> int | None:
        return await _somebody_free(connection, fleet, window, {*other_than, *unsuitable})

    steps = await _plan(policy, chain, end, now, find)
    seen = {each.id: each for each in waiting}
    await _lock_as_seen(connection, [seen[step.booking_id] for step in steps])
    moved = [
        await _move(ledger, connection, seen[step.booking_id], step) for step in reversed(steps)
    ]
    request = BookingRequest(trip.rider_id, _window(trip, end), trip.driver_id, terms_met=True)
    ending = await ledger.move(connection, request, trip)
    if end < trip.predicted_end and ending.lead is not None:
        # The way to the next pick-up may begin sooner: a lead that fell short gets more of it.
        await refit_behind(ledger, connection, ending)
    return Overrun(ending, tuple(reversed(moved)))


def _window(trip: Booking, end: datetime) -> TimeWindow:
    # One that began before its time may end before it, too.
    begin = trip.window.start if trip.start < end else trip.began
    if end <= begin:
        raise EmptyWindow(field="predicted_end")
    return TimeWindow(begin, end)


async def _following(connection: AsyncConnection, trip: Booking) -> list[Booking]:
    """The driver's next bookings, in order of start; no more than a late trip could reach."""
    rows = await connection.execute(
        select(*BOOKING_COLUMNS)
        .where(
            bookings.c.driver_id == trip.driver_id,
            active,
            not_(lapsed),
            begins >= trip.predicted_end,
        )
        .order_by(begins)
        .limit(CHAIN_MAX)
    )
    return [booking_of(row) for row in rows]


class _Unsuitable(Exception):  # no error: somebody else may suit
    """A driver who is free has terms that the booking does not meet."""

    def __init__(self, driver_id: int) -> None:
        super().__init__()
        self.driver_id = driver_id


class _Changed(Exception):  # no error: the plan is out of date
    """A booking that was to be moved is not as it was seen any more."""


async def _lock_as_seen(connection: AsyncConnection, seen: Sequence[Booking]) -> None:
    """Have the rows until the transaction ends. Raises `_Changed` if one is not as it was seen."""
    rows = await connection.execute(
        select(*BOOKING_COLUMNS)
        .where(bookings.c.id.in_([each.id for each in seen]))
        .order_by(bookings.c.id)
        .with_for_update(key_share=True)
    )
    if {each.id: each for each in seen} != {each.id: each for each in map(booking_of, rows)}:
        raise _Changed


def _upcoming(booking: Booking) -> Upcoming:
    """What it blocks: the driver has to set out in time for the pick-up."""
    promised = booking.promised_start
    return Upcoming(
        booking.id,
        booking.window.start,
        booking.predicted_end,
        promised_start=promised and promised - (booking.lead or _NOTHING),
    )


class _Unasked(Exception):  # no error: a question that the plan has
    def __init__(self, window: TimeWindow, other_than: frozenset[int]) -> None:
        super().__init__()
        self.question = (window, other_than)


async def _plan(
    policy: Policy,
    chain: Chain,
    end: datetime,
    now: datetime,
    find: Callable[[TimeWindow, Collection[int]], Awaitable[int | None]],
) -> list[Step]:
    """The policy's plan. It is pure and asks for drivers; they are looked for in between.

    It is worked out anew with each answer, as many times as it asks, and once more.
    """
    answers: dict[tuple[TimeWindow, frozenset[int]], int | None] = {}

    def known(window: TimeWindow, other_than: frozenset[int]) -> int | None:
        if (window, other_than) not in answers:
            raise _Unasked(window, other_than)
        return answers[window, other_than]

    while True:
        try:
            return policy.plan(chain, end, now, known)
        except _Unasked as unasked:
            answers[unasked.question] = await find(*unasked.question)


async def _somebody_free(
    connection: AsyncConnection, fleet: str, window: TimeWindow, other_than: Collection[int]
) -> int | None:
    found: int | None = await connection.scalar(
        select(drivers.c.id)
        .where(
            drivers.c.fleet == fleet,
            drivers.c.retired_at.is_(None),
            drivers.c.id.not_in(other_than),
            works_in(window),
            reads.is_free(window),
        )
        .order_by(drivers.c.id)
        .limit(1)
    )
    return found


async def _moved_to(
    ledger: PostgresLedger, connection: AsyncConnection, booking: Booking, step: Step
) -> Booking:
    """The booking at its new time. Raises `_Unsuitable` if the driver it was to go to has terms."""
    if step.driver_id == booking.driver_id:
        # It moves with what it blocks. Lateness asks no leave of working hours.
        request = BookingRequest(booking.rider_id, step.window, step.driver_id, terms_met=True)
        return await ledger.move(connection, request, booking)
    begin = step.window.start + (booking.lead or _NOTHING)
    trip = booking.trip.moved_to(begin)
    request = BookingRequest(
        booking.rider_id, trip, step.driver_id, pickup=booking.pickup, dropoff=booking.dropoff
    )
    try:
        return await ledger.move(connection, request, booking, wait=False)
    except (NoTimeToTravel, NoTurnaround, OffShift) as error:
        raise _Unsuitable(step.driver_id) from error


async def _move(
    ledger: PostgresLedger, connection: AsyncConnection, booking: Booking, step: Step
) -> Moved:
    moved = await _moved_to(ledger, connection, booking, step)
    promised = booking.promised_start or booking.start
    values: dict[str, object] = {"promised_start": promised if step.late_s > 0 else None}
    return Moved(await update_booking(connection, moved, values), step.remedy, step.late_s)
