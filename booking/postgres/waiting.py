"""The waiting list: time that a transaction gives back is offered in that transaction.

Which locks are held when: whoever gives time back has the rows of the bookings concerned,
and whatever its recipe holds of their drivers. Then, as its last work, it offers:

1. One look finds who waits for that time, in order of joining. It locks nothing. An entry
   fits if the driver whose time was given back is free for all of it, and *only that
   driver is offered*: another one might be locked by somebody who waits for us.
2. For each, in a savepoint: the entry is locked, and passed over if somebody else has it
   (`SKIP LOCKED`), so nobody ever waits for an entry while offering. Then the time is
   held, through the ledger's recipe, as for anybody.

A transaction that gives back the time of several drivers (a series, a late trip) may so
come to hold one driver and want another. And who moves a booking has written it before
they wait for the one that goes away here. So offers wait for a lock no longer than
`LOCK_MS_MAX`, which is the end of any ring they are part of: the offer is undone, the rest
stands, and `catch_up` comes by within seconds. Whoever withdraws locks the entry first and
then the booking; nobody takes the two the other way round and waits.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any, NamedTuple, Self

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    DateTime,
    FromClause,
    Interval,
    ScalarSelect,
    Select,
    Text,
    and_,
    bindparam,
    case,
    cast,
    column,
    extract,
    func,
    insert,
    literal,
    literal_column,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY, TSTZRANGE
from sqlalchemy.ext.asyncio import AsyncConnection

from booking.bookings import Booking, BookingRequest, BookingState
from booking.errors import (
    DriverRetired,
    InvalidInput,
    NoDriverFree,
    TaxiError,
    UnknownEntry,
)
from booking.postgres import reads
from booking.postgres.database import SERIALIZATION_FAILURE, sqlstate_of
from booking.postgres.ledger import GivenBack, PostgresLedger, lock_booking
from booking.postgres.tables import active, bookings, drivers, waiting_list
from booking.time_window import TimeWindow
from booking.waiting import WaitingEntry, WaitingState, check_withdrawal

_log = logging.getLogger(__name__)

OFFER_S = 300
"""How long an offer stands unless told otherwise."""
LOCK_MS_MAX = 100
"""The longest wait for a lock while offering. Below PostgreSQL's `deadlock_timeout`."""
LOOKED_AT_MAX = 32
"""How many entries one transaction looks at, and how many `catch_up` does."""
_DRIVERS_MAX = 8
"""How many free drivers are tried for one entry."""

_INSTANT = DateTime(timezone=True)

_wanted_from: ColumnElement[Any] = func.lower(waiting_list.c.during, type_=_INSTANT)
_wanted_until: ColumnElement[Any] = func.upper(waiting_list.c.during, type_=_INSTANT)
_open = and_(
    waiting_list.c.booking_id.is_(None),
    waiting_list.c.withdrawn_at.is_(None),
)
"""Whether nothing was offered yet, nor the entry withdrawn."""
_waiting = and_(_open, _wanted_from > func.now())
"""Whether an entry still waits."""


def _would_do(driver_id: ColumnElement[int]) -> ColumnElement[bool]:
    """Whether a driver of the entry's fleet is one that it waits for."""
    return or_(waiting_list.c.driver_id.is_(None), waiting_list.c.driver_id == driver_id)


def _is_free(
    driver_id: ColumnElement[int], during: ColumnElement[Any], *outer: FromClause
) -> ColumnElement[bool]:
    """Whether nothing at all is booked in that time, as `reads.is_free` asks it.

    A hold that has lapsed still is: it is for the sweep to end it, which comes back here.
    """
    taken = (
        select(literal(value=True))
        .where(bookings.c.driver_id == driver_id, active, bookings.c.during.overlaps(during))
        .limit(literal_column("1"))
    )
    return taken.correlate(*outer).scalar_subquery().is_(None)


def _wishes_for(
    driver_id: ColumnElement[int], during: ColumnElement[Any], outer: FromClause
) -> FromClause:
    """Who waits for some of that time of a driver, for a statement over `outer`.

    With `OFFSET 0`, which keeps PostgreSQL from taking it apart: before the tables have been
    analyzed it would join everybody who waits with every driver. So it asks the index.
    """
    return (
        select(
            waiting_list.c.id,
            waiting_list.c.rider_id,
            waiting_list.c.during,
            _wanted_from.label("start"),
            _wanted_until.label("end"),
        )
        .join_from(drivers, waiting_list, waiting_list.c.fleet == drivers.c.fleet)
        .where(
            drivers.c.id == driver_id,
            drivers.c.retired_at.is_(None),
            waiting_list.c.during.overlaps(during),
            _would_do(drivers.c.id),
            _waiting,
        )
        .offset(literal_column("0"))
        .correlate(outer)
        .lateral("wish")
    )


# The statements, built once.

_FREED = (
    func.unnest(
        bindparam("driver_ids", type_=ARRAY(BigInteger)),
        bindparam("starts", type_=ARRAY(_INSTANT)),
        bindparam("ends", type_=ARRAY(_INSTANT)),
    )
    .table_valued(
        column("driver_id", BigInteger),
        column("start", _INSTANT),
        column("end", _INSTANT),
        name="freed",
    )
    .render_derived()
)
_given_back = func.tstzrange(_FREED.c.start, _FREED.c.end, type_=TSTZRANGE)
_wish = _wishes_for(_FREED.c.driver_id, _given_back, _FREED)
_LEFT_S = cast(func.floor(extract("epoch", _wish.c.start - func.clock_timestamp())), BigInteger)
_WHO_WAITS: Select[Any] = (
    select(_wish.c.id, _wish.c.rider_id, _FREED.c.driver_id, _wish.c.start, _wish.c.end, _LEFT_S)
    .join_from(_FREED, _wish, true())
    .where(_is_free(_FREED.c.driver_id, _wish.c.during, _FREED, _wish))
    .order_by(_wish.c.id, _FREED.c.driver_id)
    .limit(literal_column(f"{LOOKED_AT_MAX}"))
)
_WAIT_BRIEFLY = select(func.set_config("lock_timeout", f"{LOCK_MS_MAX}ms", literal(value=True)))

_IS_AWAITED = (
    select(literal(value=True))
    .join_from(bookings, _wishes_for(bookings.c.driver_id, bookings.c.during, bookings), true())
    .where(bookings.c.id == bindparam("booking_id", type_=BigInteger))
    .limit(literal_column("1"))
)

_FREE_DRIVERS = (
    select(drivers.c.id)
    .join_from(
        waiting_list,
        drivers,
        and_(drivers.c.fleet == waiting_list.c.fleet, _would_do(drivers.c.id)),
    )
    .where(
        waiting_list.c.id == bindparam("entry_id", type_=BigInteger),
        drivers.c.retired_at.is_(None),
        _is_free(drivers.c.id, waiting_list.c.during, drivers, waiting_list),
    )
    .order_by(drivers.c.id)
    .limit(literal_column(f"{_DRIVERS_MAX}"))
)


def _as_text(state: WaitingState) -> ColumnElement[str]:
    return literal(state.value, Text)


_still_held = and_(bookings.c.state == BookingState.HELD, bookings.c.held_until > func.now())
_state = case(
    (waiting_list.c.withdrawn_at.is_not(None), _as_text(WaitingState.WITHDRAWN)),
    (_waiting, _as_text(WaitingState.WAITING)),
    (waiting_list.c.booking_id.is_(None), _as_text(WaitingState.PAST)),
    # A hold that was confirmed has no end any more, whatever became of the booking then.
    (bookings.c.held_until.is_(None), _as_text(WaitingState.BOOKED)),
    (bookings.c.state == BookingState.CANCELLED, _as_text(WaitingState.WITHDRAWN)),
    (_still_held, _as_text(WaitingState.OFFERED)),
    else_=_as_text(WaitingState.LAPSED),
)
_ENTRIES: Select[Any] = select(
    waiting_list.c.id,
    waiting_list.c.rider_id,
    waiting_list.c.fleet,
    waiting_list.c.driver_id,
    _wanted_from,
    _wanted_until,
    _state,
    waiting_list.c.joined_at,
    waiting_list.c.booking_id,
    bookings.c.held_until,
).join_from(waiting_list, bookings, bookings.c.id == waiting_list.c.booking_id, isouter=True)


class _Wish(NamedTuple):
    """An entry that fits what was given back."""

    entry_id: int
    rider_id: int
    driver_id: int
    window: TimeWindow
    left_s: int
    """Until it begins."""

    @classmethod
    def of(cls, row: Any) -> Self:
        entry_id, rider_id, driver_id, start, end, left_s = row
        return cls(entry_id, rider_id, driver_id, TimeWindow(start, end), left_s)


class WaitingList:
    """Who waits, in order of joining, and the `Queue` that a ledger offers its time to.

    An offer is a hold of `offer_s` seconds, or until the trip should begin, if that is
    sooner. `note` hears of each once it is durable.
    """

    def __init__(
        self,
        ledger: PostgresLedger,
        offer_s: int = OFFER_S,
        note: Callable[[Booking], None] = lambda _: None,
    ) -> None:
        self._ledger = ledger
        self._offer_s = offer_s
        self._note = note
        self._seen_to = 0

    async def join_in(self, connection: AsyncConnection, wish: BookingRequest) -> WaitingEntry:
        """Put a rider on the list, inside a transaction that is under way.

        If the time is free it is offered at once, to whoever waits for it longest: nobody
        waits for what is there. Raises `UnknownRider`, `UnknownDriver`, `DriverRetired`,
        `NoDriverFree` if nobody works in the fleet, and `InvalidInput` for time that has
        begun.
        """
        await reads.rider(connection, wish.rider_id)
        fleet = await _fleet_of(connection, wish)
        now = await connection.scalar(select(func.clock_timestamp()))
        if now is not None and wish.window.start <= now:
            raise InvalidInput("Nobody waits for what has begun.", field="start")
        joined = await connection.execute(
            insert(waiting_list)
            .values(
                rider_id=wish.rider_id,
                fleet=fleet,
                driver_id=wish.driver_id,
                during=reads.range_of(wish.window),
            )
            .returning(waiting_list.c.id)
        )
        await _await_who_is_leaving(connection, fleet, wish)
        return await self._serve(connection, joined.scalar_one())

    async def withdraw_in(self, connection: AsyncConnection, entry_id: int) -> WaitingEntry:
        """Wait no longer, or decline what was offered; the next in turn is asked then.

        Raises `UnknownEntry`, or `IllegalTransition` once there is nothing to withdraw.
        """
        locked = await connection.execute(
            select(waiting_list.c.booking_id)
            .where(waiting_list.c.id == entry_id)
            .with_for_update(key_share=True)
        )
        row = locked.one_or_none()
        if row is not None and row.booking_id is not None:
            # Before the look: the rider may be confirming at this moment.
            await lock_booking(connection, row.booking_id, None)
        entry = await read_entry(connection, entry_id)
        check_withdrawal(entry.state)
        if entry.booking_id is None:
            mine = update(waiting_list).where(waiting_list.c.id == entry_id)
            await connection.execute(mine.values(withdrawn_at=func.now()))
        else:
            await self._ledger.change_state_in(
                connection,
                entry.booking_id,
                BookingState.CANCELLED,
                reason="The offer was declined.",
            )
        return await read_entry(connection, entry_id)

    async def offer(
        self, connection: AsyncConnection, given_back: Sequence[GivenBack]
    ) -> list[Booking]:
        """Offer what has become free, as `Queue.offer` says."""
        found = await connection.execute(
            _WHO_WAITS,
            {
                "driver_ids": [each.driver_id for each in given_back],
                "starts": [each.window.start for each in given_back],
                "ends": [each.window.end for each in given_back],
            },
        )
        wishes = [_Wish.of(row) for row in found]
        if not wishes:
            return []
        await connection.execute(_WAIT_BRIEFLY)
        served: set[int] = set()
        offered: list[Booking] = []
        for wish in wishes:
            gone = any(
                each.driver_id == wish.driver_id and each.window.overlaps(wish.window)
                for each in offered
            )
            # Whoever has it or cannot have it any more is not even tried: each try costs.
            if gone or wish.left_s < 1 or wish.entry_id in served:
                continue
            booking = await self._try_to_offer(connection, wish)
            if booking is not None:
                served.add(wish.entry_id)
                offered.append(booking)
        return offered

    async def is_awaited(self, connection: AsyncConnection, booking_id: int) -> bool:
        """Whether somebody waits for some of the time that the booking holds."""
        return bool(await connection.scalar(_IS_AWAITED, {"booking_id": booking_id}))

    def note(self, booking: Booking) -> None:
        """Hear of an offer once it is durable."""
        self._note(booking)

    async def catch_up(self) -> None:
        """Offer what became free unseen: to the next few who wait, each in a transaction.

        It goes round: where many wait, each is looked at in turn. Raises `Unavailable`.
        """
        after = self._seen_to
        entry_ids = await self._ledger.database.transact(
            lambda connection: _next_in_turn(connection, after), read_only=True
        )
        self._seen_to = entry_ids[-1] if len(entry_ids) == LOOKED_AT_MAX else 0
        for entry_id in entry_ids:
            await self._ledger.transact(partial(self._serve, entry_id=entry_id))

    async def _serve(self, connection: AsyncConnection, entry_id: int) -> WaitingEntry:
        """Offer the time of an entry where it is free, to it or to whoever is before it."""
        free = await connection.scalars(_FREE_DRIVERS, {"entry_id": entry_id})
        for driver_id in free.all():
            entry = await read_entry(connection, entry_id)
            if entry.state is not WaitingState.WAITING:
                return entry
            await self.offer(connection, [GivenBack(driver_id, entry.window)])
        return await read_entry(connection, entry_id)

    async def _try_to_offer(self, connection: AsyncConnection, wish: _Wish) -> Booking | None:
        """Hold the time for whoever wishes it; None if it cannot be, and they keep their place."""
        try:
            async with connection.begin_nested():
                return await self._offer_to(connection, wish)
        except TaxiError:
            return None  # it does not fit after all
        except Exception as error:
            if sqlstate_of(error) == SERIALIZATION_FAILURE:
                raise  # the savepoint does not help: all of the transaction must be run again
            _log.warning(
                "Entry %s was not offered its time: %s",
                wish.entry_id,
                getattr(error, "orig", None) or error,
            )
            return None

    async def _offer_to(self, connection: AsyncConnection, wish: _Wish) -> Booking | None:
        mine = await connection.scalar(
            select(waiting_list.c.id)
            .where(waiting_list.c.id == wish.entry_id, _open)
            .with_for_update(key_share=True, skip_locked=True)
        )
        if mine is None:
            return None  # somebody else is serving it, or it is being withdrawn
        hold_s = min(self._offer_s, wish.left_s)
        booking = await self._ledger.book_in(
            connection, BookingRequest(wish.rider_id, wish.window, wish.driver_id, hold_s=hold_s)
        )
        taken = update(waiting_list).where(waiting_list.c.id == wish.entry_id)
        await connection.execute(taken.values(booking_id=booking.id))
        return booking


def waited_for(rider_id: int) -> ScalarSelect[timedelta]:
    """How long the trips are, taken together, that the rider still waits for: in a statement."""
    total = func.sum(_wanted_until - _wanted_from, type_=Interval)
    return (
        select(func.coalesce(total, literal(timedelta(), Interval)))
        .where(waiting_list.c.rider_id == rider_id, _waiting)
        .scalar_subquery()
    )


async def read_entry(connection: AsyncConnection, entry_id: int) -> WaitingEntry:
    """Raises `UnknownEntry`."""
    row = (await connection.execute(_ENTRIES.where(waiting_list.c.id == entry_id))).one_or_none()
    if row is None:
        raise UnknownEntry(f"There is no entry {entry_id}.", field="entry_id")
    return _entry_of(row)


@dataclass(frozen=True, slots=True)
class EntryFilter:
    """Which entries to list; None does not narrow."""

    rider_id: int | None = None
    driver_id: int | None = None
    fleet: str | None = None
    state: WaitingState | None = None


async def list_entries(
    connection: AsyncConnection, wanted: EntryFilter, *, after: int, limit: int
) -> list[WaitingEntry]:
    """Up to `limit` entries in order of joining, from just behind `after`."""
    statement = _ENTRIES.where(waiting_list.c.id > after).order_by(waiting_list.c.id).limit(limit)
    for column_, value in (
        (waiting_list.c.rider_id, wanted.rider_id),
        (waiting_list.c.driver_id, wanted.driver_id),
        (waiting_list.c.fleet, wanted.fleet),
        (_state, wanted.state),
    ):
        if value is not None:
            statement = statement.where(column_ == value)
    return [_entry_of(row) for row in await connection.execute(statement)]


def _entry_of(row: Any) -> WaitingEntry:
    """The entry in a row of `_ENTRIES`."""
    id_, rider_id, fleet, driver_id, start, end, state, joined_at, booking_id, until = row
    state = WaitingState(state)
    expires_at: datetime | None = until if state is WaitingState.OFFERED else None
    window = TimeWindow(start, end)
    return WaitingEntry(
        id_, rider_id, fleet, driver_id, window, state, joined_at, booking_id, expires_at
    )


async def _fleet_of(connection: AsyncConnection, wish: BookingRequest) -> str:
    """The fleet that the wish is of. Raises as `join_in` does."""
    if wish.driver_id is not None:
        driver = await reads.driver(connection, wish.driver_id)
        if driver.retired_at is not None:
            raise DriverRetired(f"Driver {driver.id} has retired.", field="driver_id")
        return driver.fleet
    works = select(drivers.c.id).where(
        drivers.c.fleet == wish.fleet, drivers.c.retired_at.is_(None)
    )
    if await connection.scalar(works.limit(literal_column("1"))) is None:
        raise NoDriverFree(f"Nobody works in the fleet {wish.fleet}.", field="fleet")
    return wish.fleet


async def _await_who_is_leaving(
    connection: AsyncConnection, fleet: str, wish: BookingRequest
) -> None:
    """Wait for whoever is just giving back some of that time, and keep others from beginning to.

    They looked for who waits before they could see this entry; we would look before we can
    see what they give back, and the rider would wait for time that is free. They have the
    booking's row, and so one of us waits for the other.
    """
    of_fleet = select(drivers.c.id).where(drivers.c.fleet == fleet)
    wanted = bookings.c.driver_id == wish.driver_id
    await connection.execute(
        select(bookings.c.id)
        .where(
            bookings.c.driver_id.in_(of_fleet) if wish.driver_id is None else wanted,
            active,
            reads.overlaps(wish.window),
        )
        .order_by(bookings.c.id)
        .with_for_update(read=True)
    )


async def _next_in_turn(connection: AsyncConnection, after: int) -> Sequence[int]:
    rows = await connection.scalars(
        select(waiting_list.c.id)
        .where(_waiting, waiting_list.c.id > after)
        .order_by(waiting_list.c.id)
        .limit(LOOKED_AT_MAX)
    )
    return rows.all()
