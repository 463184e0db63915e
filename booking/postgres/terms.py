"""Books on a driver's terms, and keeps what is blocked true when neighbours change.

Who has terms is booked with a look at them, so the recipes leave such drivers alone
until it has been taken (`reads.HasTerms`). The look needs the driver's row to itself:

1. Lock the driver's row `FOR NO KEY UPDATE`. Everybody who books this driver, or
   cancels what has a lead, comes by here first, and takes rows of bookings only after
   it; so nobody waits for another in a ring. (Two who each have a driver and want the
   other's could. Whoever gives a booking to a named driver takes both at once, in order
   of number; a search for any driver passes over whoever is locked.)
2. Read the shifts and judge the trip by them.
3. Read the neighbours and ask how long the ways take; `blocking.fit` says whether the
   trip fits, and what it and its successor then block.
4. Write: first a lead that shrinks, then the booking, then a lead that grows. Each
   write goes through the recipe, so that the database's own rule judges what is
   blocked, and not the trip alone.

The way is asked for while the row is held. That makes a slow routing engine a delay for
those who book the same driver; the adapter bounds it, and falls back.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, Protocol

from sqlalchemy import delete, literal, literal_column, not_, select, true, update
from sqlalchemy.dialects.postgresql import TSTZRANGE, insert
from sqlalchemy.dialects.postgresql.ranges import MultiRange
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql.elements import ColumnElement

from booking.blocking import Fit, Misfit, fit, refit
from booking.bookings import LONGEST, Booking, BookingRequest, BookingState
from booking.calendars import Held
from booking.drivers import Driver, check_turnaround
from booking.errors import BookingConflict, DriverRetired, ShiftsStrand, UnknownDriver
from booking.places import Place
from booking.postgres import reads
from booking.postgres.tables import (
    BOOKING_COLUMNS,
    DRIVER_COLUMNS,
    active,
    begins,
    booking_of,
    bookings,
    driver_of,
    drivers,
    lapsed,
    to_come,
    working_hours,
)
from booking.postgres.writes import update_booking, without_lead
from booking.shifts import Shifts, Stranded, stranded, working_windows
from booking.terms import REACH, Terms, Wish, bookable, check_shifts, neighbours, refusal_of
from booking.time_window import TimeWindow
from booking.travel import Estimate, TravelTimes, estimates

AHEAD = timedelta(days=400)
"""How far ahead working hours are worked out, for whoever looks for any driver."""
_WORKED_OUT_AGAIN = timedelta(days=30)
_CANDIDATES = 100
_LEAD_ROOM = REACH + LONGEST


type _Neighbours = tuple[Booking | None, Booking | None]
"""Of a driver: who comes before a trip, and who after."""


class Recipe(Protocol):
    """What is needed of a ledger."""

    @property
    def travel_times(self) -> TravelTimes:
        """Who says how long a way takes."""
        ...

    async def record(
        self, connection: AsyncConnection, request: BookingRequest, moving: Booking | None = None
    ) -> Booking:
        """As `PostgresLedger.record`."""
        ...

    async def expire_in(self, connection: AsyncConnection, booking_id: int) -> Booking | None:
        """As `PostgresLedger.expire_in`."""
        ...


class _Blocks(NamedTuple):
    """What a booking is to block from now on."""

    booking: Booking
    window: TimeWindow
    short_s: int = 0
    source: str | None = None

    @property
    def shrinks(self) -> bool:
        return self.window.start > self.booking.window.start

    @property
    def changes(self) -> bool:
        before = (self.booking.window, self.booking.lead_short_s, self.booking.lead is None)
        return before != (self.window, self.short_s, False)


# --- Books. ------------------------------------------------------------------------------


async def record_on_terms(
    recipe: Recipe,
    connection: AsyncConnection,
    request: BookingRequest,
    moving: Booking | None,
    *,
    wait: bool = True,
) -> Booking:
    """Record a booking, or move one, if it meets the terms of the driver it names.

    Raises as `PostgresLedger.record` does: `OffShift`, `NoTimeToTravel` and `NoTurnaround`
    are conflicts too. Without `wait`, a driver whom somebody else has is refused.
    """
    driver_id = _named(request)
    terms = await _lock_terms(connection, driver_id, wait=wait)
    check_shifts(terms.shifts, request.window)
    if terms.turnaround_s is None:
        booked = await recipe.record(connection, replace(request, terms_met=True), moving)
        return await without_lead(connection, booked)
    await _expire_lapsed(recipe, connection, driver_id)
    theirs = (await around(connection, [driver_id], request.window))[driver_id]
    fitted, estimate, after = await _fit(recipe.travel_times, terms, theirs, _wish(request), moving)
    if isinstance(fitted, Misfit):
        raise refusal_of(fitted)
    behind = _behind(after, fitted)
    if behind is not None and behind.shrinks:
        await _block(recipe, connection, behind)
    booked = await recipe.record(
        connection, replace(request, window=fitted.blocked, terms_met=True), moving
    )
    lead = request.window.start - fitted.blocked.start
    values = {"lead": lead, "lead_short_s": 0, "travel_source": estimate and estimate.source}
    booked = await update_booking(connection, booked, values)
    if behind is not None and not behind.shrinks:
        await _block(recipe, connection, behind)
    return booked


async def refit_behind(recipe: Recipe, connection: AsyncConnection, gone: Booking) -> None:
    """Fit anew what the successor of a booking blocks, which is not where `gone` says any more.

    Or which has ended, if it was driven: the way from there stays to be driven, from that
    moment on. The driver's row must be ours, as `lock_booking` sees to.
    """
    driven = gone.state is BookingState.COMPLETED
    if driven and gone.actual_end is not None:
        # One that began before its time may have ended before it, too.
        gone = replace(gone, start=gone.began, predicted_end=gone.actual_end)
    terms = await read_terms(connection, gone.driver_id)
    if terms.turnaround_s is None:
        return
    theirs = (await around(connection, [gone.driver_id], gone.trip))[gone.driver_id]
    _, after = neighbours(theirs, gone.trip, gone.id)
    if after is None or after.lead is None or not after.state.to_come:
        return
    before: Booking | None = gone
    if not driven:
        before, _ = neighbours(theirs, after.trip, after.id)  # it, if it only moved a little
    blocks = await _refit(recipe.travel_times, terms.turnaround_s, before, after)
    if blocks is not None and blocks.changes:
        await _block(recipe, connection, blocks)


async def judge(
    travel_times: TravelTimes, connection: AsyncConnection, request: BookingRequest
) -> None:
    """Raise what a booking of the driver would meet now, though nothing is written.

    `OffShift`, `NoTimeToTravel`, `NoTurnaround` or `BookingConflict`; `UnknownDriver`
    or `DriverRetired`.
    """
    driver_id = _named(request)
    terms = await read_terms(connection, driver_id)
    check_shifts(terms.shifts, request.window)
    if terms.turnaround_s is None:
        if conflicts := await reads.conflicts_of(connection, driver_id, request.window):
            raise BookingConflict(conflicts=conflicts)
        return
    theirs = (await around(connection, [driver_id], request.window))[driver_id]
    fitted, _, _ = await _fit(travel_times, terms, theirs, _wish(request), None)
    if isinstance(fitted, Misfit):
        raise refusal_of(fitted)


# --- Looks for who is free. --------------------------------------------------------------


def works_in(window: TimeWindow) -> ColumnElement[bool]:
    """Whether a driver, of a statement over `drivers`, works all of a window.

    As far ahead as working hours have been worked out; whoever has none always works.
    Written as `reads.is_free` is, and for the same reason; but as IS NOT TRUE, which the
    planner takes for a coin's toss. Of IS NULL it thinks that one driver in 200 passes,
    and then reads the whole fleet rather than stop at the first.
    """
    one: ColumnElement[int] = literal_column("1")
    not_all_of_it = (
        select(literal(value=True))
        .where(
            working_hours.c.driver_id == drivers.c.id,
            not_(working_hours.c.works.contains(literal(reads.range_of(window), TSTZRANGE))),
        )
        .limit(one)
    )
    return not_all_of_it.correlate(drivers).scalar_subquery().is_not(true())


async def free_on_terms(
    travel_times: TravelTimes,
    connection: AsyncConnection,
    wish: Wish,
    limit: int,
    without: Collection[int] = (),
) -> list[int]:
    """Up to `limit` drivers of the wish's fleet who could take it, on their terms, by number."""
    found: list[int] = []
    last = 0
    while len(found) < limit:
        rows = (await connection.execute(_candidates(wish, last, without).limit(_CANDIDATES))).all()
        fitted = {row.id: row.turnaround_s for row in rows if row.turnaround_s is not None}
        theirs = await around(connection, list(fitted), wish.window) if fitted else {}
        between = {id_: neighbours(theirs[id_], wish.window) for id_ in fitted}
        ways = dict(zip(fitted, await _ways(travel_times, wish, between.values()), strict=True))
        found += [
            row.id
            for row in rows
            if row.id not in fitted
            or isinstance(_judge(fitted[row.id], wish, between[row.id], ways[row.id]), Fit)
        ]
        if len(rows) < _CANDIDATES:
            break
        last = rows[-1].id
    return found[:limit]


async def free_windows(
    connection: AsyncConnection, driver_id: int, within: TimeWindow, at_least: timedelta
) -> list[TimeWindow]:
    """When a driver can be booked for a trip that names no place, in order.

    Somebody who does not exist, or has retired, has no terms.
    """
    row = (await connection.execute(_TERMS.where(drivers.c.id == driver_id))).one_or_none()
    there = row is not None and row.retired_at is None
    terms = _read(row, driver_id) if there else Terms()
    theirs = await around(connection, [driver_id], within)
    return list(bookable(terms, theirs[driver_id], within, at_least))


def _candidates(wish: Wish, last: int, without: Collection[int]) -> Any:
    statement = (
        select(drivers.c.id, drivers.c.turnaround_s)
        .where(
            drivers.c.id > last,
            drivers.c.retired_at.is_(None),
            drivers.c.fleet == wish.fleet,
            works_in(wish.window),
            reads.is_free(wish.window),
        )
        .order_by(drivers.c.id)
    )
    return statement.where(drivers.c.id.not_in(without)) if without else statement


# --- Lays down terms. --------------------------------------------------------------------


class LaidDown(NamedTuple):
    """A driver's working hours, if any, and the bookings to come that lie outside of them."""

    driver: Driver
    shifts: Shifts | None
    stranded: Sequence[Stranded]

    @property
    def id(self) -> int:
        """The driver's number."""
        return self.driver.id


async def laid_down(connection: AsyncConnection, driver_id: int) -> LaidDown:
    """The driver's working hours as they are. Raises `UnknownDriver`."""
    driver = await reads.driver(connection, driver_id)
    document = await connection.scalar(select(drivers.c.shifts).where(drivers.c.id == driver_id))
    shifts = None if document is None else Shifts.from_dict(document, driver.zone)
    return LaidDown(driver, shifts, await _stranded(connection, driver_id, shifts))


async def set_shifts(
    connection: AsyncConnection, driver_id: int, document: object | None, *, strand: bool
) -> LaidDown:
    """Lay down working hours, or (None) none.

    Raises `ShiftsStrand`, which names these bookings, unless `strand` says that they may
    stay where they are; `UnknownDriver`; and what `Shifts.from_dict` raises.
    """
    driver = await _lock_for_change(connection, driver_id)
    shifts = None if document is None else Shifts.from_dict(document, driver.zone)
    left_outside = await _stranded(connection, driver_id, shifts)
    if left_outside and not strand:
        raise ShiftsStrand(
            f"{len(left_outside)} bookings would lie outside of these working hours; move them,"
            " or say that they may stay.",
            stranded=left_outside,
        )
    laid = {"shifts": None if shifts is None else shifts.as_dict()}
    changed = await _change(connection, driver_id, laid)
    await _work_out(connection, driver_id, shifts)
    return LaidDown(changed, shifts, left_outside)


async def _stranded(
    connection: AsyncConnection, driver_id: int, shifts: Shifts | None
) -> list[Stranded]:
    if shifts is None:
        return []
    rows = await connection.execute(
        select(*BOOKING_COLUMNS)
        .where(bookings.c.driver_id == driver_id, to_come, not_(lapsed))
        .order_by(begins)
    )
    return stranded(shifts, [Held(each.id, each.trip) for each in map(booking_of, rows)])


async def set_turnaround(
    recipe: Recipe, connection: AsyncConnection, driver_id: int, turnaround_s: int | None
) -> Driver:
    """Lay down a turnaround, or (None) none, and fit the driver's bookings to come to it.

    None of them is refused: a lead that there is no room for falls short, and says by how
    much. Raises `UnknownDriver`, or `InvalidInput` for a turnaround out of bounds.
    """
    await _lock_for_change(connection, driver_id)
    driver = await _change(connection, driver_id, {"turnaround_s": check_turnaround(turnaround_s)})
    rows = await connection.execute(
        select(*BOOKING_COLUMNS)
        .where(bookings.c.driver_id == driver_id, active, not_(lapsed))
        .order_by(begins)
    )
    in_order = [booking_of(row) for row in rows]
    changes = []
    for number, each in enumerate(in_order):
        if not each.state.to_come:
            continue
        before, _ = neighbours(in_order[:number], each.trip)
        if turnaround_s is None:
            changes.append(_Blocks(each, each.trip))
        elif blocks := await _refit(recipe.travel_times, turnaround_s, before, each):
            changes.append(blocks)
    # First what shrinks, so that what grows finds room.
    for blocks in sorted(changes, key=lambda each: not each.shrinks):
        booked = await _block(recipe, connection, blocks)
        if turnaround_s is None:
            await without_lead(connection, booked)
    return driver


async def change_zone(connection: AsyncConnection, driver_id: int, zone: str) -> None:
    """Work the driver's hours out anew, as their clock has changed."""
    await _lock_for_change(connection, driver_id)
    document = await connection.scalar(select(drivers.c.shifts).where(drivers.c.id == driver_id))
    if document is not None:
        await _work_out(connection, driver_id, Shifts.from_dict(document, zone))


async def work_out_ahead(connection: AsyncConnection) -> int:
    """Work out the hours of those whose time worked out grows short; how many there were."""
    soon = datetime.now(UTC) + AHEAD - _WORKED_OUT_AGAIN
    rows = await connection.execute(
        select(drivers.c.id, drivers.c.zone, drivers.c.shifts)
        .join(working_hours, working_hours.c.driver_id == drivers.c.id)
        .where(working_hours.c.until < soon, drivers.c.shifts.is_not(None))
        .order_by(drivers.c.id)
        .limit(_CANDIDATES)
        .with_for_update(key_share=True, skip_locked=True, of=drivers)
    )
    due = rows.all()
    for id_, zone, document in due:
        await _work_out(connection, id_, Shifts.from_dict(document, zone))
    return len(due)


async def read_terms(connection: AsyncConnection, driver_id: int) -> Terms:
    """The driver's terms as they are now. Raises `UnknownDriver` or `DriverRetired`."""
    found = await connection.execute(_TERMS.where(drivers.c.id == driver_id))
    return _read(found.one_or_none(), driver_id)


# --- What it takes. ----------------------------------------------------------------------

_TERMS = select(drivers.c.zone, drivers.c.shifts, drivers.c.turnaround_s, drivers.c.retired_at)


async def _lock_terms(connection: AsyncConnection, driver_id: int, *, wait: bool) -> Terms:
    statement = _TERMS.where(drivers.c.id == driver_id)
    found = await connection.execute(
        statement.with_for_update(key_share=True, skip_locked=not wait)
    )
    row = found.one_or_none()
    if row is None and not wait:
        raise BookingConflict("Somebody else is booking this driver.")
    return _read(row, driver_id)


def _read(row: Any, driver_id: int) -> Terms:
    if row is None:
        raise UnknownDriver(f"There is no driver {driver_id}.", field="driver_id")
    if row.retired_at is not None:
        raise DriverRetired(f"Driver {driver_id} has retired.", field="driver_id")
    shifts = None if row.shifts is None else Shifts.from_dict(row.shifts, row.zone)
    return Terms(shifts, row.turnaround_s)


async def _lock_for_change(connection: AsyncConnection, driver_id: int) -> Driver:
    # FOR UPDATE, as in `retire_driver`: whoever books holds at least FOR KEY SHARE.
    found = await connection.execute(
        select(*DRIVER_COLUMNS).where(drivers.c.id == driver_id).with_for_update()
    )
    row = found.one_or_none()
    if row is None:
        raise UnknownDriver(f"There is no driver {driver_id}.", field="driver_id")
    return driver_of(row)


async def _change(
    connection: AsyncConnection, driver_id: int, values: Mapping[str, object]
) -> Driver:
    changed = await connection.execute(
        update(drivers).where(drivers.c.id == driver_id).values(values).returning(*DRIVER_COLUMNS)
    )
    return driver_of(changed.one())


async def _work_out(connection: AsyncConnection, driver_id: int, shifts: Shifts | None) -> None:
    if shifts is None:
        await connection.execute(
            delete(working_hours).where(working_hours.c.driver_id == driver_id)
        )
        return
    now = datetime.now(UTC)
    within = TimeWindow(now - LONGEST, now + AHEAD)
    worked = MultiRange([reads.range_of(each) for each in working_windows(shifts, within)])
    values = {"works": worked, "until": within.end}
    await connection.execute(
        insert(working_hours)
        .values(driver_id=driver_id, **values)
        .on_conflict_do_update(index_elements=[working_hours.c.driver_id], set_=values)
    )


async def around(
    connection: AsyncConnection, driver_ids: Sequence[int], window: TimeWindow
) -> Mapping[int, list[Booking]]:
    """The active bookings of each of the drivers in and around a window; one statement."""
    # PostgreSQL adds and subtracts, as its calendar goes further than Python's.
    low = literal(window.start) - literal(_LEAD_ROOM)
    high = literal(window.end) + literal(_LEAD_ROOM)
    rows = await connection.execute(
        select(*BOOKING_COLUMNS)
        .where(
            bookings.c.driver_id.in_(driver_ids),
            active,
            not_(lapsed),
            begins > low,
            begins < high,
        )
        .order_by(begins)
    )
    found: defaultdict[int, list[Booking]] = defaultdict(list)
    for each in map(booking_of, rows):
        found[each.driver_id].append(each)
    return found


async def _expire_lapsed(recipe: Recipe, connection: AsyncConnection, driver_id: int) -> None:
    """Let the driver's lapsed holds go, before leads are fitted to what is left."""
    over = await connection.scalars(
        select(bookings.c.id).where(bookings.c.driver_id == driver_id, lapsed)
    )
    for booking_id in over.all():
        await recipe.expire_in(connection, booking_id)


async def _fit(
    travel_times: TravelTimes,
    terms: Terms,
    theirs: Sequence[Booking],
    wish: Wish,
    moving: Booking | None,
) -> tuple[Fit | Misfit, Estimate | None, Booking | None]:
    """Whether it fits; who said how long the way to the pick-up takes; and the successor."""
    between = neighbours(theirs, wish.window, None if moving is None else moving.id)
    [ways] = await _ways(travel_times, wish, [between])
    return _judge(terms.turnaround_s or 0, wish, between, ways), ways[0], between[1]


async def _ways(
    travel_times: TravelTimes, wish: Wish, between: Collection[_Neighbours]
) -> list[tuple[Estimate | None, Estimate | None]]:
    """The way to the pick-up and the way onwards, between each two neighbours; asked for at once.

    None where there is no neighbour.
    """
    legs = []
    for before, after in between:
        if before is not None:
            legs.append((before.dropoff, wish.pickup, before.predicted_end))
        if after is not None:
            legs.append((wish.dropoff, after.pickup, wish.window.end))
    departing = [leaving for _, _, leaving in legs]
    found = iter(await estimates(travel_times, [leg[:2] for leg in legs], departing))
    return [
        (
            None if before is None else next(found),
            None if after is None else next(found),
        )
        for before, after in between
    ]


def _judge(
    turnaround_s: int,
    wish: Wish,
    between: _Neighbours,
    ways: tuple[Estimate | None, Estimate | None],
) -> Fit | Misfit:
    before, after = between
    to_pickup, onwards = ways
    return fit(
        None if before is None else Held(before.id, before.trip),
        wish.window,
        None if after is None else Held(after.id, after.trip),
        travel_before_s=to_pickup.duration_s if to_pickup else 0,
        travel_after_s=onwards.duration_s if onwards else 0,
        turnaround_s=turnaround_s,
    )


async def _way(
    travel_times: TravelTimes, start: Place | None, end: Place | None, departing: datetime
) -> Estimate:
    [estimate] = await estimates(travel_times, [(start, end)], departing)
    return estimate


def _behind(after: Booking | None, fitted: Fit) -> _Blocks | None:
    """What the successor blocks from now on, if that changes."""
    if after is None or fitted.after_blocked is None:
        return None
    if after.lead is None or not after.state.to_come:
        return None  # it has begun, or its driver had no turnaround
    blocks = _Blocks(after, _no_longer_than_allowed(fitted.after_blocked))
    return blocks if blocks.changes else None


async def _refit(
    travel_times: TravelTimes, turnaround_s: int, before: Booking | None, trip: Booking
) -> _Blocks | None:
    if before is None:
        return _Blocks(trip, trip.trip)
    if before.predicted_end > trip.start:
        return None  # it is late already; act four sees to that
    way = await _way(travel_times, before.dropoff, trip.pickup, before.predicted_end)
    found = refit(before.trip, trip.trip, way.duration_s, turnaround_s)
    return _Blocks(trip, _no_longer_than_allowed(found.blocked), found.missing_s, way.source)


def _no_longer_than_allowed(blocked: TimeWindow) -> TimeWindow:
    return TimeWindow(max(blocked.start, blocked.end - LONGEST), blocked.end)


async def _block(recipe: Recipe, connection: AsyncConnection, blocks: _Blocks) -> Booking:
    booking = blocks.booking
    request = BookingRequest(booking.rider_id, blocks.window, booking.driver_id, terms_met=True)
    moved = await recipe.record(connection, request, booking)
    values: dict[str, object] = {
        "lead": booking.start - blocks.window.start,
        "lead_short_s": blocks.short_s,
    }
    if blocks.source is not None:
        values["travel_source"] = blocks.source
    return await update_booking(connection, moved, values)


def _wish(request: BookingRequest) -> Wish:
    return Wish(request.window, request.fleet, request.pickup, request.dropoff)


def _named(request: BookingRequest) -> int:
    if request.driver_id is None:
        raise ValueError("terms are one driver's")
    return request.driver_id
