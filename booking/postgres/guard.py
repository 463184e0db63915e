"""The way to the exclusion constraint for a table that holds double bookings already.

PostgreSQL can add a foreign key or a CHECK as NOT VALID, for new rows alone, and look at
the old ones later. For an exclusion constraint it can not: it is added over all rows at
once, or, if two of them overlap, not at all. So the rule is first held elsewhere:

1. `stand`: a table of *claims* with the constraint, empty as yet, and a trigger by which
   every booking that is new, or moved, has to get in there. From the moment it stands
   there are no new double bookings; the old ones stay until they are dealt with.
2. `backfill`: the bookings that were there get their claims, a few at a time. Who is
   under way goes first, then who was booked first. Those who do not get in are the
   double bookings.
3. `resolve`: one of each such pair is given to another driver, if one is free.
4. `constrain`: with everybody in, the constraint is put on the bookings themselves, and
   the guard is taken away, in one transaction.

People book all the while. What they meet is the error that the constraint would give
them, 23P01, from the first step on. Only the last step keeps them waiting, for as long
as the index takes to build.

Each step can be done again: after an interruption, begin at the first.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from datetime import timedelta
from enum import StrEnum
from typing import NamedTuple

from sqlalchemy import DateTime, TextClause, func, select, text
from sqlalchemy.dialects.postgresql import ExcludeConstraint
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.schema import AddConstraint

from booking.bookings import ACTIVE_STATES, LONGEST, Booking, BookingState
from booking.errors import (
    Contended,
    DriverRetired,
    HoldLapsed,
    IllegalTransition,
    NoDriverFree,
    TaxiError,
)
from booking.postgres.database import Database
from booking.postgres.ledger import PostgresLedger, lock_booking
from booking.postgres.tables import (
    BOOKING_COLUMNS,
    NO_DOUBLE_BOOKING,
    active,
    booking_of,
    bookings,
)
from booking.time_window import TimeWindow

CLAIMS = "booking_claims"
"""The table of claims; it is there as long as the guard stands."""

BATCH = 1_000
"""Numbers of bookings that one transaction of `backfill` goes through."""

LOCK_S_MAX = 1
"""How long a lock on the table is waited for: everybody who books waits behind that."""
_LOCK_TRIES_MAX = 20
_PAUSE_S = 0.5

_RULE = next(
    each
    for each in bookings.constraints
    if isinstance(each, ExcludeConstraint) and each.name == NO_DOUBLE_BOOKING
)
_DRIVER, _WINDOW = (column.name for column in _RULE.columns)
_held = bookings.c[_WINDOW]
_INSTANT = DateTime(timezone=True)
_ACTIVE = ", ".join(f"'{state}'" for state in BookingState if state in ACTIVE_STATES)
_LONGEST = f"interval '{LONGEST // timedelta(hours=1)} hours'"


def _overlapping(other: str, this: str) -> str:
    """Whether two rows are active, of one driver, and overlap; bounded so that a B-tree will do."""
    return f"""
        {other}.{_DRIVER} = {this}.{_DRIVER} AND {other}.id <> {this}.id
        AND {other}.state IN ({_ACTIVE})
        AND {other}.{_WINDOW} && {this}.{_WINDOW}
        AND lower({other}.{_WINDOW}) < upper({this}.{_WINDOW})
        AND lower({other}.{_WINDOW}) > lower({this}.{_WINDOW}) - {_LONGEST}
    """


_STAND = (
    f"""
    CREATE TABLE IF NOT EXISTS {CLAIMS} (
        booking_id bigint PRIMARY KEY,
        driver_id  bigint NOT NULL,
        held       tstzrange NOT NULL,
        CONSTRAINT {CLAIMS}_no_double_booking EXCLUDE USING gist (
            driver_id WITH =, held WITH &&)
    )
    """,
    # As its owner, since whoever books need not know of the claims.
    f"""
    CREATE OR REPLACE FUNCTION claim_time() RETURNS trigger LANGUAGE plpgsql
    SECURITY DEFINER SET search_path FROM CURRENT AS $$
    BEGIN
        IF TG_OP <> 'INSERT' AND OLD.state IN ({_ACTIVE}) THEN
            IF TG_OP = 'UPDATE' AND NEW.state IN ({_ACTIVE})
               AND NEW.{_DRIVER} = OLD.{_DRIVER} AND NEW.{_WINDOW} = OLD.{_WINDOW} THEN
                RETURN NULL;  -- it holds what it held
            END IF;
            DELETE FROM {CLAIMS} WHERE booking_id = OLD.id;
        END IF;
        IF TG_OP <> 'DELETE' AND NEW.state IN ({_ACTIVE}) THEN
            -- Those who were there before the guard may have no claim yet.
            PERFORM FROM bookings AS other WHERE {_overlapping("other", "NEW")};
            IF FOUND THEN
                RAISE EXCEPTION 'the driver has a booking in that time'
                    USING ERRCODE = 'exclusion_violation', TABLE = 'bookings',
                          CONSTRAINT = '{NO_DOUBLE_BOOKING}';
            END IF;
            -- And those who come at the same moment meet here.
            INSERT INTO {CLAIMS} VALUES (NEW.id, NEW.{_DRIVER}, NEW.{_WINDOW});
        END IF;
        RETURN NULL;
    END $$
    """,  # noqa: S608  # names of our own
    """
    CREATE OR REPLACE TRIGGER bookings_claim AFTER INSERT OR UPDATE OR DELETE ON bookings
        FOR EACH ROW EXECUTE FUNCTION claim_time()
    """,
)
_FALL = (
    "DROP TRIGGER bookings_claim ON bookings",
    "DROP FUNCTION claim_time",
    f"DROP TABLE {CLAIMS}",
)

# FOR SHARE: whoever is about to cancel one of them, or to move it, is waited for, and
# what comes of it is looked at. A claim on time that was given back would stay for good.
_CLAIM = f"""
    INSERT INTO {CLAIMS} (booking_id, driver_id, held)
    SELECT id, {_DRIVER}, {_WINDOW} FROM bookings
    WHERE state IN ({_ACTIVE}) AND {{which}}
      AND NOT EXISTS (SELECT FROM {CLAIMS} WHERE booking_id = id)
    ORDER BY id FOR SHARE
    ON CONFLICT DO NOTHING
    RETURNING booking_id
"""  # noqa: S608  # names of our own
_CLAIM_UNDER_WAY = text(_CLAIM.format(which=f"state = '{BookingState.IN_PROGRESS}'"))
_CLAIM_SOME = text(_CLAIM.format(which="id > :after AND id <= :until"))
_CLAIM_ONE = text(_CLAIM.format(which="id = :id"))
_UNCLAIMED = text(
    f"SELECT id FROM bookings WHERE state IN ({_ACTIVE})"  # noqa: S608  # names of our own
    f" AND NOT EXISTS (SELECT FROM {CLAIMS} WHERE booking_id = id) ORDER BY id"
)


class StillDoubleBooked(TaxiError):
    """There are double bookings left: the constraint cannot be put over them."""


class NoGuard(TaxiError):
    """The guard does not stand: without it there would be new double bookings meanwhile."""


class AlreadyConstrained(TaxiError):
    """The exclusion constraint stands already."""


class Conflict(NamedTuple):
    """A double booking: which of the two keeps the driver's time, and which has to go."""

    stays: Booking
    goes: Booking


class Fate(StrEnum):
    """What became of a booking that had to go."""

    GONE = "gone"
    """It has ended meanwhile, or was cancelled."""
    FITS = "fits"
    """What was in its way has gone."""
    GIVEN_AWAY = "given_away"
    """Another driver has it, at its time."""
    LEFT = "left"
    """Nobody is free, or its trip has begun. A person decides."""


class Constrained(NamedTuple):
    """How many active bookings the constraint was put over, and what it took."""

    bookings: int
    took_s: float
    lock_tries: int


async def conflicts(connection: AsyncConnection) -> list[Conflict]:
    """The double bookings, as they would be resolved; no guard is needed to see them.

    A trip that is under way stays, and else the booking that was made first.
    """
    rows = await connection.execute(
        select(
            func.lower(_held, type_=_INSTANT), func.upper(_held, type_=_INSTANT), *BOOKING_COLUMNS
        ).where(
            active,
            text(
                f"EXISTS (SELECT FROM bookings AS other WHERE {_overlapping('other', 'bookings')})"
            ),
        )
    )
    return judge((TimeWindow(start, end), booking_of(rest)) for start, end, *rest in rows)


def judge(contenders: Iterable[tuple[TimeWindow, Booking]]) -> list[Conflict]:
    """Who stays and who goes, of active bookings and the time that each holds."""
    kept: dict[int, list[tuple[TimeWindow, Booking]]] = {}
    found = []
    for window, booking in sorted(contenders, key=lambda each: _rank(each[1])):
        there = kept.setdefault(booking.driver_id, [])
        for held, stays in there:
            if held.overlaps(window):
                found.append(Conflict(stays, booking))
                break
        else:
            there.append((window, booking))
    return found


def _rank(booking: Booking) -> tuple[bool, int]:
    return booking.state is not BookingState.IN_PROGRESS, booking.id


async def stand(database: Database) -> None:
    """Put up the guard: from now on nobody is double-booked any more.

    Raises `AlreadyConstrained`, or `Contended` if the table was in use too much.
    """

    async def work(connection: AsyncConnection) -> None:
        if await _is_constrained(connection):
            raise AlreadyConstrained
        await _wait_little(connection)
        for statement in _STAND:
            await connection.exec_driver_sql(statement)

    await _with_the_lock(database, work)


async def backfill(database: Database, batch: int = BATCH) -> AsyncIterator[int]:
    """Give claims to the bookings that were there; how many got one, batch by batch."""

    async def claim(statement: TextClause, **which: int) -> int:
        return await database.transact(lambda c: _claim(c, statement, which))

    yield await claim(_CLAIM_UNDER_WAY)
    last = await database.transact(
        lambda connection: connection.scalar(select(func.max(bookings.c.id))), read_only=True
    )
    for after in range(0, last or 0, batch):
        yield await claim(_CLAIM_SOME, after=after, until=after + batch)


async def _claim(connection: AsyncConnection, statement: TextClause, which: dict[str, int]) -> int:
    rows = await connection.execute(statement, which)
    return len(rows.all())


async def resolve(ledger: PostgresLedger) -> AsyncIterator[tuple[int, Fate]]:
    """See to every booking without a claim, through the ledger; its number, and what became of it.

    In the order in which they were made, each in a transaction of its own.
    """
    await ledger.sweep()
    unclaimed = await ledger.database.transact(_unclaimed, read_only=True)
    for booking_id in unclaimed:
        yield booking_id, await _see_to(ledger, booking_id)


async def _see_to(ledger: PostgresLedger, booking_id: int) -> Fate:
    async def look(connection: AsyncConnection) -> Fate:
        booking, _ = await lock_booking(connection, booking_id, None)
        if not booking.state.active:
            return Fate.GONE
        return Fate.FITS if await _claim(connection, _CLAIM_ONE, {"id": booking_id}) else Fate.LEFT

    fate = await ledger.transact(look)
    if fate is not Fate.LEFT:
        return fate
    try:
        await ledger.reassign(booking_id, None)
    except (NoDriverFree, DriverRetired, IllegalTransition, HoldLapsed, Contended):
        return Fate.LEFT
    return Fate.GIVEN_AWAY


async def constrain(database: Database) -> Constrained:
    """Put the constraint on the bookings, and take the guard away, in one transaction.

    It keeps everybody out while it builds the index. Raises `NoGuard`,
    `AlreadyConstrained`, `StillDoubleBooked`, or `Contended` if the table was in use too
    much.
    """

    async def work(connection: AsyncConnection) -> tuple[int, float]:
        if await _is_constrained(connection):
            raise AlreadyConstrained
        if await connection.scalar(text(f"SELECT to_regclass('{CLAIMS}') IS NULL")):
            raise NoGuard
        await _wait_little(connection)
        await connection.execute(text("LOCK TABLE bookings IN ACCESS EXCLUSIVE MODE"))
        if left := await _unclaimed(connection):
            raise StillDoubleBooked(f"{len(left)} bookings have no claim on their time.")
        count = await connection.scalar(text(f"SELECT count(*) FROM {CLAIMS}"))  # noqa: S608  # our own name
        began_s = time.monotonic()
        # Without it, the tables would from now on be made without the constraint.
        await connection.execute(AddConstraint(_RULE, isolate_from_table=False))
        for statement in _FALL:
            await connection.exec_driver_sql(statement)
        return count or 0, time.monotonic() - began_s

    (count, took_s), tries = await _with_the_lock(database, work)
    return Constrained(count, took_s, tries)


async def _unclaimed(connection: AsyncConnection) -> list[int]:
    return list(await connection.scalars(_UNCLAIMED))


async def _is_constrained(connection: AsyncConnection) -> bool:
    found = await connection.scalar(
        text(
            "SELECT 1 FROM pg_constraint WHERE conname = :name AND conrelid = 'bookings'::regclass"
        ),
        {"name": NO_DOUBLE_BOOKING},
    )
    return found is not None


async def _wait_little(connection: AsyncConnection) -> None:
    await connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_S_MAX}s'"))


async def _with_the_lock[T](
    database: Database, work: Callable[[AsyncConnection], Awaitable[T]]
) -> tuple[T, int]:
    """Run `work`, and again after a pause while the lock cannot be had; and how often."""
    tries = 1
    while True:
        try:
            return await database.transact(work), tries
        except Contended:
            if tries == _LOCK_TRIES_MAX:
                raise
        await asyncio.sleep(_PAUSE_S)  # those who waited behind us go first
        tries += 1
