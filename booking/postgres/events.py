"""Reads what happened, in an order in which nothing is missed.

The rows of `booking_events` are written by triggers, each in the transaction of its
change. Their ids are given when a row is written, not when it is committed. A reader
that remembers the highest id it has seen therefore misses whatever took a lower one
and commits later.

So the place of an event is (transaction, id), and only what lies before
`pg_snapshot_xmin` is shown: every transaction with a lower number has ended, and
none can come after. A place that was read is never filled afterwards. The
argument is that of `follower.py`, which can go without the wait, as it keeps no order.

The price: while a transaction that has written stays open, nothing that was written
after it began is shown, and whoever follows lags behind by so long. Its like is
bounded: a statement ends after `TAXI_STATEMENT_S_MAX`, and a session of the service
that idles within a transaction after a minute.

The numbers of transactions are those of one server. After a dump was restored on
another, `begin_anew` is to be called.
"""

import re
from datetime import timedelta
from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    Boolean,
    ColumnElement,
    Select,
    and_,
    delete,
    func,
    literal,
    literal_column,
    or_,
    select,
    tuple_,
    union,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from booking.errors import UnknownCursor
from booking.events import EVERYTHING, BookingEvent, Cursor, EventFilter, EventKind
from booking.postgres.database import Database
from booking.postgres.tables import booking_events, bookings, webhook_deliveries, webhooks

PAGE_EVENTS = 500
"""How many events are read at once."""

_FORGOTTEN_AT_ONCE = 10_000

_CURSOR = re.compile(r"([0-9]{1,18})-([0-9]{1,18})")
_XMIN: ColumnElement[int] = literal_column(
    "pg_snapshot_xmin(pg_current_snapshot())::text::bigint", BigInteger
)
PLACE = (booking_events.c.written_in, booking_events.c.id)
"""What events are in the order of."""
EVENT_COLUMNS = (
    *PLACE,
    booking_events.c.booking_id,
    booking_events.c.version,
    booking_events.c.kind,
    booking_events.c.at,
    booking_events.c.actor,
    booking_events.c.request_id,
    booking_events.c.origin,
    booking_events.c.booking,
    booking_events.c.changed,
)
"""What `event_of` needs of a row, in its order."""


class EventPage(NamedTuple):
    """Some events in their order, and where the next page begins."""

    events: list[BookingEvent]
    position: Cursor
    more: bool
    """Whether there was more to read when this was read."""


def event_of(row: Any) -> BookingEvent:
    """The event in a row of `EVENT_COLUMNS`."""
    written_in, number, booking_id, version, kind, *rest = row
    return BookingEvent(Cursor(written_in, number), booking_id, version, EventKind(kind), *rest)


def parse_cursor(written: str, field: str) -> Cursor:
    """The cursor that was written so. Raises `UnknownCursor`, naming `field`."""
    found = _CURSOR.fullmatch(written)
    if found is None:
        raise UnknownCursor(field=field)
    return Cursor(int(found[1]), int(found[2]))


def behind(place: Cursor) -> ColumnElement[bool]:
    """Whether an event comes after `place`."""
    return tuple_(*PLACE) > tuple_(*(literal(each, BigInteger) for each in place))


def ended(horizon: Cursor) -> ColumnElement[bool]:
    """Whether an event was written by a transaction from before `horizon`."""
    return booking_events.c.written_in < literal(horizon.written_in, BigInteger)


async def present_position(connection: AsyncConnection) -> Cursor:
    """The place before which nothing will be added: whoever reads on from here misses nothing."""
    return Cursor((await connection.execute(select(_XMIN))).scalar_one(), 0)


async def read_events(
    connection: AsyncConnection,
    after: Cursor,
    wanted: EventFilter = EVERYTHING,
    *,
    limit: int = PAGE_EVENTS,
) -> EventPage:
    """The next events behind `after` that are wanted, at most `limit`, in order.

    Raises `UnknownCursor` for a place that this server has not reached.
    """
    # A statement of its own: the next one sees all that had ended when this one looked.
    horizon = await present_position(connection)
    if after > horizon:
        raise UnknownCursor(field="after")
    found = _wanted(wanted, after, horizon).cte("found")
    if wanted.driver_id is not None or wanted.rider_id is not None:
        # Else the planner may walk through everybody's events for the few of one of them.
        found = found.prefix_with("MATERIALIZED")
    rows = await connection.execute(
        select(found).order_by(found.c.written_in, found.c.id).limit(limit + 1)
    )
    events = [event_of(row) for row in rows]
    if len(events) > limit:
        return EventPage(events[:limit], events[limit - 1].cursor, more=True)
    return EventPage(events, horizon, more=False)


def _wanted(wanted: EventFilter, after: Cursor, horizon: Cursor) -> Select[Any]:
    event = booking_events.c
    statement = select(*EVENT_COLUMNS).where(behind(after), ended(horizon))
    if wanted.booking_id is not None:
        statement = statement.where(event.booking_id == wanted.booking_id)
    if wanted.rider_id is not None:
        theirs = select(bookings.c.id).where(bookings.c.rider_id == wanted.rider_id)
        statement = statement.where(event.booking_id.in_(theirs))
    if wanted.driver_id is not None:
        # Literally, as the indexes have it.
        driver = literal(wanted.driver_id, BigInteger)
        lost = and_(_has_former("booking_events"), _former("booking_events") == driver)
        gone = booking_events.alias("gone")
        theirs_or_lost = union(
            select(bookings.c.id).where(bookings.c.driver_id == driver),
            select(gone.c.booking_id).where(_has_former("gone"), _former("gone") == driver),
        )
        present: ColumnElement[int] = literal_column(
            "(booking_events.booking ->> 'driver_id')::bigint", BigInteger
        )
        statement = statement.where(
            event.booking_id.in_(theirs_or_lost), or_(present == driver, lost)
        )
    return statement


def _has_former(table: str) -> ColumnElement[bool]:
    """Whether the booking was given to another driver by the event."""
    return literal_column(f"{table}.changed ? 'driver_id'", Boolean)


def _former(table: str) -> ColumnElement[int]:
    """The driver that it was taken from."""
    return literal_column(f"({table}.changed ->> 'driver_id')::bigint", BigInteger)


async def forget_events(database: Database, older_than: timedelta) -> int:
    """Forget what happened longer ago than `older_than`, and what was delivered of it.

    Answers how many events there were. It is the one way in which the trail gets shorter.
    """
    old = booking_events.c.at < func.now() - older_than
    some = select(*PLACE).where(old).limit(_FORGOTTEN_AT_ONCE).correlate(None)

    async def forget_some(connection: AsyncConnection) -> int:
        await _may_rewrite(connection)
        await connection.execute(
            delete(webhook_deliveries).where(
                webhook_deliveries.c.state != "pending",
                webhook_deliveries.c.tried_at < func.now() - older_than,
            )
        )
        return (
            await connection.execute(delete(booking_events).where(tuple_(*PLACE).in_(some)))
        ).rowcount

    forgotten, last = 0, _FORGOTTEN_AT_ONCE
    while last == _FORGOTTEN_AT_ONCE:  # no statement shall take long
        last = await database.transact(forget_some)
        forgotten += last
    return forgotten


async def begin_anew(connection: AsyncConnection) -> None:
    """After a dump was restored on another server: forget the old one's transactions.

    The events stay, before all that is to come and in the order in which they were
    written. Webhooks go on where they were, and may be told a few things twice. Cursors
    that were given out are void.
    """
    await _may_rewrite(connection)
    event, hook = booking_events.c, webhooks.c
    unread = (
        select(func.min(event.id) - 1)
        .where(tuple_(*PLACE) > tuple_(hook.read_in, hook.read_to))
        .correlate(webhooks)
    )
    last = select(func.coalesce(func.max(event.id), 0))
    read_to = func.coalesce(unread.scalar_subquery(), last.scalar_subquery())
    await connection.execute(update(webhooks).values(read_in=0, read_to=read_to))
    await connection.execute(
        update(webhook_deliveries)
        .where(webhook_deliveries.c.written_in.is_not(None))
        .values(written_in=0)
    )
    await connection.execute(update(booking_events).values(written_in=0))


async def _may_rewrite(connection: AsyncConnection) -> None:
    await connection.execute(
        select(func.set_config("taxi.may_rewrite_events", "on", literal_column("true")))
    )
