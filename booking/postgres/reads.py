"""Statements that look and change nothing."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

from sqlalchemy import (
    DateTime,
    Interval,
    and_,
    literal,
    literal_column,
    not_,
    select,
    text,
    tuple_,
)
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
    begins,
    booking_of,
    bookings,
    driver_of,
    drivers,
    former_drivers,
    lapsed,
    predicted_ends,
    rider_of,
    riders,
    to_come,
)
from booking.time_window import TimeWindow, utc

_CALENDAR_MAX = 1_000
_SWEPT_MAX = 1_000
"""Holds that one sweep lets expire, at most; the next comes soon."""


class HasTerms(Exception):  # no error: the ledger has to judge them first
    """The driver has terms, and nobody has looked whether the request meets them."""


def overlaps(window: TimeWindow) -> ColumnElement[bool]:
    """Whether a booking overlaps `window`, by the range operator and so by the GiST index."""
    return cast("ColumnElement[bool]", bookings.c.during.overlaps(range_of(window)))


def holds(driver_id: int | ColumnElement[int], window: TimeWindow) -> ColumnElement[bool]:
    """Whether a booking keeps others out of part of `window` of that driver's time."""
    return and_(bookings.c.driver_id == driver_id, active, not_(lapsed), overlaps(window))


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


async def standing_in(
    connection: AsyncConnection, driver_id: int, window: TimeWindow, besides: Booking | None = None
) -> tuple[list[Held], list[int]]:
    """What `conflicts_of` says, and the holds in that time that have lapsed, by number."""
    statement = (
        select(bookings.c.id, begins, predicted_ends, lapsed.label("lapsed"))
        .where(bookings.c.driver_id == driver_id, active, overlaps(window))
        .order_by(begins)
    )
    if besides is not None:
        statement = statement.where(bookings.c.id != besides.id)
    return sorted_out((await connection.execute(statement)).all())


def sorted_out(rows: Iterable[Sequence[Any]]) -> tuple[list[Held], list[int]]:
    """Rows of id, start, end and whether it has lapsed: those in the way, and the lapsed."""
    held: list[Held] = []
    over: list[int] = []
    for id_, start, end, has_lapsed in rows:
        if has_lapsed:
            over.append(id_)
        else:
            held.append(Held(id_, TimeWindow(start, end)))
    return held, over


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
    conflicts, _ = await standing_in(connection, driver_id, window, besides)
    return conflicts


async def lapsed_holds(connection: AsyncConnection) -> list[int]:
    """Holds whose time is over, by number, the longest over first."""
    found = await connection.scalars(
        select(bookings.c.id).where(lapsed).order_by(bookings.c.held_until).limit(_SWEPT_MAX)
    )
    return list(found)


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

    Raises `UnknownDriver`, `DriverRetired` or `UnknownRider`; and `HasTerms` if the driver's
    terms are still to be judged.
    """
    row = (
        await connection.execute(
            select(drivers.c.retired_at, drivers.c.has_terms)
            .where(drivers.c.id == request.driver_id)
            .with_for_update(read=not alone, key_share=True)
        )
    ).one_or_none()
    if row is None:
        raise UnknownDriver(f"There is no driver {request.driver_id}.", field="driver_id")
    if row.retired_at is not None:
        raise DriverRetired(f"Driver {request.driver_id} has retired.", field="driver_id")
    await rider(connection, request.rider_id)
    if row.has_terms and not request.terms_met:
        raise HasTerms
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
    at_risk: bool | None = None

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
    statement = select(*BOOKING_COLUMNS).order_by(begins, bookings.c.id).limit(limit)
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
        statement = statement.where(predicted_ends > wanted.start, begins > longest_before)
    if wanted.end is not None:
        statement = statement.where(begins < wanted.end)
    if wanted.fleet is not None:
        of_fleet = select(drivers.c.id).where(drivers.c.fleet == wanted.fleet)
        statement = statement.where(bookings.c.driver_id.in_(of_fleet))
    if wanted.at_risk is not None:
        at_risk = and_(bookings.c.promised_start.is_not(None), to_come, not_(lapsed))
        statement = statement.where(at_risk if wanted.at_risk else not_(at_risk))
    if after is not None:
        statement = statement.where(tuple_(begins, bookings.c.id) > after)
    return [booking_of(row) for row in await connection.execute(statement)]


async def agenda(
    connection: AsyncConnection, driver_id: int, window: TimeWindow
) -> Sequence[Booking]:
    """The driver's active bookings in `window`, in order of start."""
    rows = await connection.execute(
        select(*BOOKING_COLUMNS).where(holds(driver_id, window)).order_by(begins)
    )
    return [booking_of(row) for row in rows]


async def schedule(
    connection: AsyncConnection, fleet: str, window: TimeWindow
) -> list[tuple[Driver, list[Booking]]]:
    """Every working driver of the fleet by number, with their active bookings in `window`.

    One statement, however large the fleet.
    """
    rows = await connection.execute(
        select(*DRIVER_COLUMNS, *BOOKING_COLUMNS)
        .join_from(drivers, bookings, holds(drivers.c.id, window), isouter=True)
        .where(drivers.c.fleet == fleet, drivers.c.retired_at.is_(None))
        .order_by(drivers.c.id, begins)
    )
    width = len(DRIVER_COLUMNS)
    found: dict[int, tuple[Driver, list[Booking]]] = {}
    for row in rows:
        _, has = found.setdefault(row[0], (driver_of(row[:width]), []))
        if row[width] is not None:
            has.append(booking_of(row[width:]))
    return list(found.values())


async def calendar(
    connection: AsyncConnection, since: datetime, *, driver_id: int | None, rider_id: int | None
) -> list[tuple[Booking, str]]:
    """Bookings of a driver, or of a rider, that end after `since`, with the other's name.

    In every state; the latest of them if there are more than a calendar should hold.
    """
    other = riders.c.name if rider_id is None else drivers.c.name
    whose = (
        bookings.c.driver_id == driver_id if rider_id is None else bookings.c.rider_id == rider_id
    )
    longest_before = literal(since, DateTime(timezone=True)) - literal(LONGEST, Interval)
    rows = await connection.execute(
        select(other, *BOOKING_COLUMNS)
        .join_from(bookings, drivers, drivers.c.id == bookings.c.driver_id)
        .join(riders, riders.c.id == bookings.c.rider_id)
        .where(whose, predicted_ends > since, begins > longest_before)
        .order_by(begins.desc())
        .limit(_CALENDAR_MAX)
    )
    return [(booking_of(of_booking), name) for name, *of_booking in reversed(rows.all())]


async def given_away(
    connection: AsyncConnection, since: datetime, driver_id: int
) -> list[tuple[Booking, str]]:
    """What another driver has now, as it was for this one, with the rider's name.

    Cancelled, at the time that it had when it was given away; what became of it then is not
    told. Otherwise as `calendar` says.
    """
    had = former_drivers.c
    rows = await connection.execute(
        select(
            riders.c.name,
            bookings.c.id,
            bookings.c.rider_id,
            had.start,
            had.predicted_end,
            bookings.c.created_at,
            had.version,
        )
        .join_from(former_drivers, bookings, bookings.c.id == had.booking_id)
        .join(riders, riders.c.id == bookings.c.rider_id)
        .where(
            had.driver_id == driver_id, bookings.c.driver_id != driver_id, had.predicted_end > since
        )
        .order_by(had.start.desc())
        .limit(_CALENDAR_MAX)
    )
    return [
        (
            Booking(
                id_,
                driver_id,
                rider_id,
                BookingState.CANCELLED,
                start,
                end,
                created_at,
                version=version,
                cancel_reason="Given to another driver.",
            ),
            name,
        )
        for name, id_, rider_id, start, end, created_at, version in reversed(rows.all())
    ]


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
