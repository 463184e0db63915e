"""What the ways of finding a free driver in SQL share.

An allocator that keeps what is free in a table of its own must take two locks:
one on what it keeps, and, before or after it, whatever lock its recipe wants. A
search comes from the one side and a booking for a named driver from the other,
so unless both take the locks in one order they deadlock. The order here is: the
driver's row first. `DRIVER_FIRST` brings everyone who writes bookings into it.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta

from sqlalchemy import BigInteger, ScalarSelect, Select, and_, cast, func, literal_column, select
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql.elements import ColumnElement

from booking.bookings import ACTIVE_STATES, LONGEST, Booking, BookingRequest, BookingState
from booking.errors import BookingConflict, DriverRetired
from booking.postgres import reads
from booking.postgres.ledger import Record
from booking.postgres.tables import drivers
from booking.postgres.terms import works_in

OFFERS = 8
"""How many drivers one look lists at most."""
ROUNDS_MAX = 8
"""How often a search begins again when everyone it listed was taken by others."""

ACTIVE_LIST = ", ".join(f"'{state}'" for state in BookingState if state in ACTIVE_STATES)
"""The active states, for SQL that is written by hand."""

OTHERS = f"""
    SELECT during FROM bookings
    WHERE driver_id = OLD.driver_id AND id <> OLD.id AND state IN ({ACTIVE_LIST})
      AND during && {{window}} AND lower(during) < upper({{window}})
      AND lower(during) > lower({{window}}) - interval '{LONGEST // timedelta(hours=1)} hours'
"""  # noqa: S608  # words of our own
"""For a trigger: what else holds time of the driver of OLD in a window, also without GiST.

Where a recipe keeps its word nothing does; behind one that double-books something may.
"""

_LOCK_DRIVER = """
    CREATE OR REPLACE FUNCTION driver_first() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM FROM drivers WHERE id = NEW.driver_id FOR NO KEY UPDATE;
        RETURN NEW;
    END $$
"""
DRIVER_FIRST = (
    _LOCK_DRIVER,
    """
    CREATE OR REPLACE TRIGGER bookings_driver_first
        BEFORE INSERT OR UPDATE OF driver_id, during, state ON bookings
        FOR EACH ROW EXECUTE FUNCTION driver_first()
    """,
)
"""Statements that make whoever writes a booking hold the driver's row until they are done.

Before the booking's row is there, so before the exclusion constraint can make
anyone wait for it; and before any trigger after it touches what an allocator keeps.
"""


def working(fleet: str) -> ColumnElement[bool]:
    """Whether a driver, of a statement over `drivers`, works in the fleet."""
    return drivers.c.retired_at.is_(None) & (drivers.c.fleet == fleet)


def can_come(request: BookingRequest) -> ColumnElement[bool]:
    """Whether such a driver works in the fleet and the window, and has nothing in it."""
    return and_(working(request.fleet), works_in(request.window), reads.is_free(request.window))


def somewhere(fleet: str) -> ScalarSelect[int]:
    """A random number between the first and the last id of the fleet's working drivers."""
    first, last = func.min(drivers.c.id), func.max(drivers.c.id)
    number = first + func.floor(func.random() * (last - first + 1))
    # Cast, because an id compared with a double cannot use the index.
    return select(cast(number, BigInteger)).where(working(fleet)).scalar_subquery()


def free_by_bookings(request: BookingRequest, driver_id: int | None = None) -> Select[int]:
    """Up to `OFFERS` drivers of the fleet with nothing in the window; only that one, if named."""
    statement = select(drivers.c.id).where(can_come(request))
    if driver_id is not None:
        return statement.where(drivers.c.id == driver_id)
    # Written out, not bound: a plan kept for any value must guess how few rows are wanted.
    few: ColumnElement[int] = literal_column(f"{OFFERS}")
    return statement.order_by(drivers.c.id).limit(few)


async def offer_each(
    connection: AsyncConnection, request: BookingRequest, driver_ids: Sequence[int], record: Record
) -> Booking | None:
    """Offer the booking to one after the other; None if all were refused."""
    for driver_id in driver_ids:
        try:
            return await record(connection, replace(request, driver_id=driver_id))
        except (BookingConflict, DriverRetired):
            continue
    return None


async def wait_for_each(
    connection: AsyncConnection,
    request: BookingRequest,
    driver_ids: Sequence[int],
    still_free: Callable[[int], Select[int]],
    record: Record,
    *,
    wait: bool = True,
) -> Booking | None:
    """Wait for the row of one driver after the other, look again, and book; None if all are taken.

    The look is a new statement and so sees all that the last holder of the row
    did. With `wait=False`, whoever is held by others is passed over.

    A driver who turns out to be taken is let go of, by a savepoint: two
    searches that each hold a driver and wait for the other's would deadlock.
    """
    for driver_id in driver_ids:
        async with connection.begin_nested() as savepoint:
            held = await connection.scalar(
                select(drivers.c.id)
                .where(drivers.c.id == driver_id)
                .with_for_update(key_share=True, skip_locked=not wait)
            )
            if held and await connection.scalar(still_free(driver_id)) is not None:
                booked = await offer_each(connection, request, [driver_id], record)
                if booked is not None:
                    return booked
            await savepoint.rollback()
    return None
