"""Statements that look and change nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import cast

from sqlalchemy import DateTime, Interval, and_, literal, literal_column, select, text, tuple_
from sqlalchemy.dialects.postgresql import Range
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql.elements import ColumnElement

from booking.bookings import LONGEST, Booking, BookingRequest, BookingState
from booking.calendars import Held
from booking.drivers import Driver, Rider
from booking.errors import DriverRetired, UnknownBooking, UnknownDriver, UnknownRider
from booking.postgres.tables import (
    BOOKING_COLUMNS,
    DRIVER_COLUMNS,
    RIDER_COLUMNS,
    active,
    booking_of,
    bookings,
    driver_of,
    drivers,
    predicted_ends,
    rider_of,
    riders,
    starts,
)
from booking.time_window import TimeWindow, utc


def overlaps(window: TimeWindow) -> ColumnElement[bool]:
    """Whether a booking overlaps `window`, by the range operator and so by the GiST index."""
    return cast("ColumnElement[bool]", bookings.c.during.overlaps(range_of(window)))


def holds(driver_id: int | ColumnElement[int], window: TimeWindow) -> ColumnElement[bool]:
    """Whether a booking keeps others out of part of `window` of that driver's time."""
    return and_(bookings.c.driver_id == driver_id, active, overlaps(window))


def is_free(window: TimeWindow) -> ColumnElement[bool]:
    """Whether a driver, of a statement over `drivers`, has no active booking in `window`.

    Written `(SELECT true … LIMIT 1) IS NULL`, which the planner runs as one index
    probe a driver, and so stops early. As `NOT EXISTS` it chooses to join the
    whole fleet.
    """
    # Written out, not bound: a plan kept for any value must guess how few rows are wanted.
    one: ColumnElement[int] = literal_column("1")
    taken = select(literal(value=True)).where(holds(drivers.c.id, window)).limit(one)
    return taken.correlate(drivers).scalar_subquery().is_(None)


def range_of(window: TimeWindow) -> Range[datetime]:
    """The window as PostgreSQL's type for it."""
    return Range(window.start, window.end, bounds="[)")


async def conflicts_of(
    connection: AsyncConnection,
    driver_id: int,
    window: TimeWindow,
    *,
    besides: Booking | None = None,
) -> list[Held]:
    """The driver's active bookings that overlap `window`, in order of start.

    All but `besides`: a booking that is being moved is not in its own way.
    """
    statement = (
        select(bookings.c.id, starts, predicted_ends)
        .where(holds(driver_id, window))
        .order_by(starts)
    )
    if besides is not None:
        statement = statement.where(bookings.c.id != besides.id)
    rows = await connection.execute(statement)
    return [Held(id_, TimeWindow(start, end)) for id_, start, end in rows]


async def in_the_way(
    connection: AsyncConnection, request: BookingRequest, moving: Booking | None
) -> list[Held]:
    """What keeps the request from the driver it names; raises as `named_driver` does."""
    driver_id = await named_driver(connection, request)
    return await conflicts_of(connection, driver_id, request.window, besides=moving)


async def driver(connection: AsyncConnection, driver_id: int) -> Driver:
    """Raises `UnknownDriver`."""
    row = (
        await connection.execute(select(*DRIVER_COLUMNS).where(drivers.c.id == driver_id))
    ).one_or_none()
    if row is None:
        raise UnknownDriver(f"There is no driver {driver_id}.", field="driver_id")
    return driver_of(row)


async def named_driver(
    connection: AsyncConnection, request: BookingRequest, *, alone: bool = False
) -> int:
    """The driver whom the request names, once driver and rider are known to be able to book.

    The driver's row is held `FOR KEY SHARE` until the transaction ends: the lock
    that the insert's foreign key takes anyway, and that `retire_driver` waits
    for. `alone=True` holds it `FOR NO KEY UPDATE`, which one transaction can do
    at a time.

    Raises `UnknownDriver`, `DriverRetired` or `UnknownRider`.
    """
    row = (
        await connection.execute(
            select(drivers.c.retired_at)
            .where(drivers.c.id == request.driver_id)
            .with_for_update(read=not alone, key_share=True)
        )
    ).one_or_none()
    if row is None:
        raise UnknownDriver(f"There is no driver {request.driver_id}.", field="driver_id")
    if row.retired_at is not None:
        raise DriverRetired(f"Driver {request.driver_id} has retired.", field="driver_id")
    await rider(connection, request.rider_id)
    return cast("int", request.driver_id)


async def rider(connection: AsyncConnection, rider_id: int) -> Rider:
    """Raises `UnknownRider`."""
    row = (
        await connection.execute(select(*RIDER_COLUMNS).where(riders.c.id == rider_id))
    ).one_or_none()
    if row is None:
        raise UnknownRider(f"There is no rider {rider_id}.", field="rider_id")
    return rider_of(row)


async def booking(connection: AsyncConnection, booking_id: int) -> Booking:
    """Raises `UnknownBooking`."""
    row = (
        await connection.execute(select(*BOOKING_COLUMNS).where(bookings.c.id == booking_id))
    ).one_or_none()
    if row is None:
        raise UnknownBooking(f"There is no booking {booking_id}.", field="booking_id")
    return booking_of(row)


@dataclass(frozen=True, slots=True)
class BookingFilter:
    """Which bookings to list; None does not narrow.

    Raises what `utc` does for a `start` or an `end`.
    """

    driver_id: int | None = None
    rider_id: int | None = None
    state: BookingState | None = None
    start: datetime | None = None
    end: datetime | None = None
    fleet: str | None = None

    def __post_init__(self) -> None:
        for field in ("start", "end"):
            if (instant := getattr(self, field)) is not None:
                object.__setattr__(self, field, utc(instant, field))


async def list_bookings(
    connection: AsyncConnection,
    wanted: BookingFilter,
    *,
    after: tuple[datetime, int] | None,
    limit: int,
) -> list[Booking]:
    """Up to `limit` bookings in order of start and id, from just behind `after`."""
    statement = select(*BOOKING_COLUMNS).order_by(starts, bookings.c.id).limit(limit)
    if wanted.driver_id is not None:
        statement = statement.where(bookings.c.driver_id == wanted.driver_id)
    if wanted.rider_id is not None:
        statement = statement.where(bookings.c.rider_id == wanted.rider_id)
    if wanted.state is not None:
        statement = statement.where(bookings.c.state == wanted.state)
    if wanted.start is not None:
        # The second bound follows from the first, and lets the index skip the past.
        # PostgreSQL subtracts, as its calendar goes further back than Python's.
        longest_before = literal(wanted.start, DateTime(timezone=True)) - literal(LONGEST, Interval)
        statement = statement.where(predicted_ends > wanted.start, starts > longest_before)
    if wanted.end is not None:
        statement = statement.where(starts < wanted.end)
    if wanted.fleet is not None:
        of_fleet = select(drivers.c.id).where(drivers.c.fleet == wanted.fleet)
        statement = statement.where(bookings.c.driver_id.in_(of_fleet))
    if after is not None:
        statement = statement.where(tuple_(starts, bookings.c.id) > after)
    return [booking_of(row) for row in await connection.execute(statement)]


async def agenda(
    connection: AsyncConnection, driver_id: int, window: TimeWindow
) -> Sequence[Booking]:
    """The driver's active bookings in `window`, in order of start."""
    rows = await connection.execute(
        select(*BOOKING_COLUMNS).where(holds(driver_id, window)).order_by(starts)
    )
    return [booking_of(row) for row in rows]


async def list_drivers(
    connection: AsyncConnection,
    *,
    fleet: str | None,
    working: bool | None,
    after: int,
    limit: int,
) -> list[Driver]:
    """Up to `limit` drivers in order of id, from just behind `after`."""
    statement = (
        select(*DRIVER_COLUMNS).where(drivers.c.id > after).order_by(drivers.c.id).limit(limit)
    )
    if fleet is not None:
        statement = statement.where(drivers.c.fleet == fleet)
    if working is not None:
        statement = statement.where((drivers.c.retired_at.is_(None)) == working)
    return [driver_of(row) for row in await connection.execute(statement)]


async def list_riders(connection: AsyncConnection, *, after: int, limit: int) -> list[Rider]:
    """Up to `limit` riders in order of id, from just behind `after`."""
    statement = select(*RIDER_COLUMNS).where(riders.c.id > after).order_by(riders.c.id).limit(limit)
    return [rider_of(row) for row in await connection.execute(statement)]


async def ping(connection: AsyncConnection) -> None:
    """Ask for nothing but an answer."""
    await connection.execute(text("SELECT 1"))
