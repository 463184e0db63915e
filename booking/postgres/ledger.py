"""`PostgresLedger`: what every prevention recipe shares, and the port `Allocator`.

A recipe is a subclass in `booking/prevention/` that says how to *record* a
booking within a transaction, which isolation it runs under, what the database
must have for it, and what it claims. The transaction itself, the
choice of a driver and the life of a booking are the same for all of them and
stand here.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import ClassVar, NamedTuple, Protocol, cast

from sqlalchemy import ColumnElement, Connection, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from booking.bookings import (
    Booking,
    BookingRequest,
    BookingState,
    check_movable,
    check_transition,
)
from booking.calendars import Held
from booking.drivers import Driver, Rider, check_turnaround, check_zone
from booking.errors import (
    BookingConflict,
    Contended,
    DriverRetired,
    DriverStillBooked,
    HoldLapsed,
    InvalidInput,
    TooEarly,
    TooLong,
    UnknownBooking,
    UnknownDriver,
    VersionMismatch,
)
from booking.ledgers import Claim, Ledger
from booking.postgres import reads, terms
from booking.postgres.attribution import as_the_clock
from booking.postgres.database import Database, Isolation
from booking.postgres.tables import (
    BOOKING_COLUMNS,
    DRIVER_COLUMNS,
    RIDER_COLUMNS,
    active,
    booking_of,
    bookings,
    driver_of,
    drivers,
    rider_of,
    riders,
)
from booking.postgres.writes import update_booking, without_lead
from booking.time_window import EARLIEST, LATEST, TimeWindow, utc
from booking.travel import GreatCircle, TravelTimes

Record = Callable[[AsyncConnection, BookingRequest], Awaitable[Booking]]
"""Records a booking for the driver that the request names, or raises `BookingConflict`."""

_IN_ONE_LINE = re.compile(r"[^\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_CLOCK_SKEW = timedelta(minutes=1)
_TRIES_MAX = 3
_ALWAYS = TimeWindow(EARLIEST, LATEST)
_GIVEN_BACK = "taxi_given_back"
"""The execution option with the time that a transaction has given back."""


class Allocator(Protocol):
    """Port: finds a free driver in SQL and books them, inside the ledger's transaction."""

    @property
    def claim(self) -> Claim:
        """What it promises of itself, behind a recipe that inserts and looks at nothing.

        `Claim.NOTHING` needs a recipe that decides. Any other holds as long as nobody
        books but through it.
        """
        ...

    @property
    def schema(self) -> tuple[str, ...]:
        """As `PostgresLedger.schema`: for what it keeps besides the bookings."""
        ...

    async def allocate(
        self, connection: AsyncConnection, request: BookingRequest, record: Record
    ) -> Booking:
        """Book any free driver of the request's fleet, through `record`, which decides.

        Raises `NoDriverFree` if at some moment of the call no driver was free,
        and `Contended` if every driver that looked free was taken by others.
        """
        ...


class GivenBack(NamedTuple):
    """Time of a driver that may have become free."""

    driver_id: int
    window: TimeWindow


class Queue(Protocol):
    """Port: those who wait for time that is taken."""

    async def offer(
        self, connection: AsyncConnection, given_back: Sequence[GivenBack]
    ) -> Sequence[Booking]:
        """Offer what has become free to those who wait for it; the bookings that hold it for them.

        In the transaction that gave it back, as its last work. What becomes of an offer
        never undoes what the transaction did.
        """
        ...

    async def is_awaited(self, connection: AsyncConnection, booking_id: int) -> bool:
        """Whether somebody waits for some of the time that the booking holds."""
        ...

    def note(self, booking: Booking) -> None:
        """Hear of an offer once it is durable."""
        ...


class PostgresLedger(Ledger, ABC):
    """A `Ledger` on PostgreSQL; subclasses say how a booking is recorded."""

    claim: ClassVar[Claim]
    isolation: ClassVar[Isolation] = "READ COMMITTED"
    schema: ClassVar[tuple[str, ...]] = ()
    """Statements that fit a migrated database to the recipe; each may be run again.

    The migrated database has the exclusion constraint. A recipe that does not
    rest on it must take it away, or it would be studied under its protection.
    """
    may_deadlock: ClassVar[bool] = False
    """Whether requests for the same time may wait for each other, until PostgreSQL ends one.

    It is run again; if it loses each time, the answer is `Contended`.
    """
    may_give_up: ClassVar[bool] = False
    """Whether requests for one driver may be answered `Contended` though there is room for all.

    So it is where the loser of a race is sent back to the start, and not made to wait.
    """
    holds_the_refused: ClassVar[bool] = False
    """Whether a driver stays locked for a request that was refused, until its transaction ends.

    Each offer then stands in a savepoint, and a refusal goes back to it: two allocations
    that each hold a driver and wait for the other's would deadlock.
    """

    def __init__(
        self,
        database: Database,
        allocator: Allocator,
        travel_times: TravelTimes | None = None,
    ) -> None:
        self.database = database
        self.allocator = allocator
        self.travel_times = travel_times or GreatCircle("UTC")
        """Who says how long a way takes, for drivers with a turnaround."""
        self.queue: Queue | None = None
        """Who is offered the time that transactions give back; nobody, unless it is set.

        It is set once there is one, as it books through this ledger itself.
        """

    @property
    def waiting(self) -> int:
        """How many requests wait for their turn."""
        return self.database.waiting

    @abstractmethod
    async def record(
        self, connection: AsyncConnection, request: BookingRequest, moving: Booking | None = None
    ) -> Booking:
        """Record a booking for `request.driver_id` unless it overlaps.

        With `moving`, no new booking: that one, whose row is locked, moves to the
        request's window and driver, and is not in its own way.

        Raises as `Ledger.book` does, and leaves the transaction usable, as the
        allocator then offers the booking to another driver.
        """

    async def release(self, connection: AsyncConnection, booking: Booking) -> None:
        """Give back the time of a booking that has just ceased to be active.

        For a recipe that keeps account of time elsewhere than in `bookings`.
        """

    async def in_the_way(
        self,
        connection: AsyncConnection,
        request: BookingRequest,
        moving: Booking | None,
        driver_id: int | None = None,
    ) -> list[Held]:
        """What keeps the request from its driver. Holds that have lapsed expire, and do not.

        Without `driver_id`, driver and rider are looked up first; raises then as
        `reads.named_driver` does.
        """
        if driver_id is None:
            driver_id = await reads.named_driver(connection, request)
        found = await reads.standing_in(connection, driver_id, request.window, moving)
        return await self.unless_lapsed(connection, *found, moving)

    async def unless_lapsed(
        self,
        connection: AsyncConnection,
        conflicts: list[Held],
        lapsed: Sequence[int],
        moving: Booking | None,
    ) -> list[Held]:
        """The conflicts; where there are none, the lapsed holds expire.

        One that somebody else is changing at this moment is in the way until that is done.
        To wait for it could be to wait for each other. And one for whose time somebody
        waits is in the way of a newcomer until the sweep has offered it to them; but not
        of a booking that moves, as a late trip must not be stopped by an offer.
        """
        if conflicts:
            return conflicts
        return [
            held
            for booking_id in lapsed
            if (held := await self._still_held(connection, booking_id, moving)) is not None
        ]

    async def _still_held(
        self, connection: AsyncConnection, booking_id: int, moving: Booking | None
    ) -> Held | None:
        """Let the hold expire; what it holds, if it cannot or must not."""
        queue = self.queue if moving is None else None
        awaited = queue is not None and await queue.is_awaited(connection, booking_id)
        if not awaited and await self.expire_in(connection, booking_id):
            return None
        booking = await reads.booking(connection, booking_id)
        return Held(booking.id, booking.window) if booking.state.active else None

    async def expire_in(self, connection: AsyncConnection, booking_id: int) -> Booking | None:
        """Let a hold that has lapsed expire, unless somebody else has its row."""
        lapsed = (
            select(bookings.c.id)
            .where(
                bookings.c.id == booking_id,
                bookings.c.state == BookingState.HELD,
                bookings.c.held_until <= func.clock_timestamp(),
            )
            .with_for_update(key_share=True, skip_locked=True)
        )
        with as_the_clock():
            changed = await connection.execute(
                update(bookings)
                .where(bookings.c.id.in_(lapsed.scalar_subquery()))
                .values(state=BookingState.EXPIRED)
                .returning(*BOOKING_COLUMNS)
            )
        row = changed.one_or_none()
        if row is None:
            return None
        expired = booking_of(row)
        await self._end(connection, expired)
        return expired

    async def _end(self, connection: AsyncConnection, booking: Booking) -> None:
        """Do what is to be done for a booking that has just ceased to be active."""
        await self.release(connection, booking)
        give_back(connection, GivenBack(booking.driver_id, booking.window))

    async def sweep(self) -> list[Booking]:
        """Let every hold that has lapsed expire, each in a transaction of its own."""
        numbers = await self.database.transact(reads.lapsed_holds, read_only=True)
        swept = [
            await self.transact(partial(self._sweep_one, booking_id=booking_id))
            for booking_id in numbers
        ]
        return [booking for booking in swept if booking is not None]

    async def _sweep_one(self, connection: AsyncConnection, booking_id: int) -> Booking | None:
        await lock_drivers_of(connection, bookings.c.id == booking_id)
        expired = await self.expire_in(connection, booking_id)
        if expired is not None and expired.lead is not None:
            await terms.refit_behind(self, connection, expired)
        return expired

    async def offer(
        self, connection: AsyncConnection, request: BookingRequest, moving: Booking | None = None
    ) -> Booking:
        """Enter a booking for one of several drivers that would do; raises as `record` does."""
        # Whoever holds a driver already, as of a booking that moves, waits for no other.
        wait = moving is None
        if not self.holds_the_refused:
            return await self.enter(connection, request, moving, wait=wait)
        async with connection.begin_nested():
            return await self.enter(connection, request, moving, wait=wait)

    async def enter(
        self,
        connection: AsyncConnection,
        request: BookingRequest,
        moving: Booking | None = None,
        *,
        wait: bool = True,
    ) -> Booking:
        """Record a booking, on the terms of its driver where there are any; raises as `record`.

        Without `wait`, a driver with terms whom somebody else has is refused. Where the
        terms are met, or do not matter, a booking that moves takes its lead along.
        """
        if request.terms_met:
            return await self.record(connection, request, moving)
        try:
            entered = await self.record(connection, request, moving)
        except reads.HasTerms:
            # A refusal takes back what was made room for, and lets go of the driver.
            async with connection.begin_nested():
                entered = await terms.record_on_terms(self, connection, request, moving, wait=wait)
        else:
            entered = await without_lead(connection, entered)
        if moving is not None and moving.lead is not None:
            await terms.refit_behind(self, connection, moving)
        return entered

    async def transact[T](self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """Run `work` in one transaction of the recipe's isolation; see `Database.transact`.

        What it gives back is offered to those who wait, as the last thing before the
        COMMIT: nobody sees the time free in between. And no sooner: on its way, a late
        trip gives back time that it takes again.
        """
        queue = self.queue
        if queue is None:
            return await self.database.transact(work, isolation=self.isolation)
        offered: list[Booking] = []

        async def and_offer(connection: AsyncConnection) -> T:
            offered.clear()  # an earlier attempt was rolled back
            given_back: list[GivenBack] = []
            await connection.execution_options(**{_GIVEN_BACK: given_back})
            result = await work(connection)
            if given_back:
                offered.extend(await queue.offer(connection, given_back))
            return result

        result = await self.database.transact(and_offer, isolation=self.isolation)
        for booking in offered:
            queue.note(booking)
        return result

    async def book(self, request: BookingRequest) -> Booking:
        """Record the booking or refuse it, as `Ledger.book` says."""
        return await self.transact(lambda connection: self.book_in(connection, request))

    async def book_in(self, connection: AsyncConnection, request: BookingRequest) -> Booking:
        """Do the work of `book`, inside a transaction that is under way."""
        booked = await self._enter_or_allocate(connection, request)
        values: dict[str, object] = {}
        for name, place in (("pickup", request.pickup), ("dropoff", request.dropoff)):
            if place is not None:
                values[name] = [place.latitude_deg, place.longitude_deg]
        if request.hold_s is not None:
            until = func.clock_timestamp() + timedelta(seconds=request.hold_s)
            values |= {"state": BookingState.HELD, "held_until": until}
        return await update_booking(connection, booked, values) if values else booked

    async def _enter_or_allocate(
        self,
        connection: AsyncConnection,
        request: BookingRequest,
        moving: Booking | None = None,
        *,
        wait: bool = True,
    ) -> Booking:
        if request.driver_id is not None:
            return await self.enter(connection, request, moving, wait=wait)
        return await self.allocator.allocate(
            connection, request, lambda ours, offered: self.offer(ours, offered, moving)
        )

    async def change_state(
        self,
        booking_id: int,
        wanted: BookingState,
        *,
        at: datetime | None = None,
        reason: str | None = None,
        version: int | None = None,
    ) -> Booking:
        """Take one step in the booking's life, as `Ledger.change_state` says."""
        return await self.transact(
            lambda connection: self.change_state_in(
                connection, booking_id, wanted, at, reason, version
            )
        )

    async def change_state_in(
        self,
        connection: AsyncConnection,
        booking_id: int,
        wanted: BookingState,
        at: datetime | None = None,
        reason: str | None = None,
        version: int | None = None,
    ) -> Booking:
        """Do the work of `change_state`, inside a transaction that is under way."""
        present, now = await lock_booking(connection, booking_id, version)
        check_transition(present.state, wanted)
        if wanted is BookingState.CONFIRMED:
            await _check_hold(connection, present)
        values = _step(present, wanted, now, at, reason)
        changed = await update_booking(connection, present, values)
        if wanted is BookingState.IN_PROGRESS and changed.began < changed.start:
            return await self._hold_from(connection, changed, changed.began)
        if present.state.active and not changed.state.active:
            await self._end(connection, changed)
            if changed.lead is not None:
                await terms.refit_behind(self, connection, changed)
        return changed

    async def move(
        self,
        connection: AsyncConnection,
        request: BookingRequest,
        moving: Booking,
        *,
        wait: bool = True,
    ) -> Booking:
        """Record the booking at the request's time and driver; its old time is given back.

        Its row is locked. Raises as `enter` does or, if any driver would do, as
        `Allocator.allocate` does.
        """
        moved = await self._enter_or_allocate(connection, request, moving, wait=wait)
        give_back(connection, GivenBack(moving.driver_id, moving.window))
        return moved

    async def _hold_from(
        self, connection: AsyncConnection, trip: Booking, begin: datetime
    ) -> Booking:
        """Hold the time of a trip that has begun before its time, if it can be had.

        What happened is no request: where another booking holds the time, it stays so.
        """
        with suppress(BookingConflict, TooLong, DriverRetired):
            request = BookingRequest(
                trip.rider_id,
                TimeWindow(begin, trip.predicted_end),
                trip.driver_id,
                terms_met=True,
            )
            async with connection.begin_nested():
                held = await self.record(connection, request, trip)
                if held.lead is None:
                    return held
                return await update_booking(connection, held, {"lead": timedelta(0)})
        return trip

    async def reschedule(
        self, booking_id: int, window: TimeWindow, *, version: int | None = None
    ) -> Booking:
        """Move the booking to another time, as `Ledger.reschedule` says."""
        return await self.transact(
            lambda connection: self.reschedule_in(connection, booking_id, window, version)
        )

    async def reschedule_in(
        self,
        connection: AsyncConnection,
        booking_id: int,
        window: TimeWindow,
        version: int | None = None,
    ) -> Booking:
        """Do the work of `reschedule`, inside a transaction that is under way."""
        present = await _lock_movable(connection, booking_id, version)
        moved = await self.move(connection, _asked_again(present, window=window), present)
        if moved.promised_start is None:
            return moved
        # Whoever asks for another time is promised that one.
        return await update_booking(connection, moved, {"promised_start": None})

    async def reassign(
        self, booking_id: int, driver_id: int | None, *, version: int | None = None
    ) -> Booking:
        """Give the booking to another driver, as `Ledger.reassign` says."""
        return await self.transact(
            lambda connection: self.reassign_in(connection, booking_id, driver_id, version)
        )

    async def reassign_in(
        self,
        connection: AsyncConnection,
        booking_id: int,
        driver_id: int | None,
        version: int | None = None,
    ) -> Booking:
        """Do the work of `reassign`, inside a transaction that is under way."""
        present = await _lock_movable(connection, booking_id, version, driver_id)
        if driver_id == present.driver_id:
            return present
        fleet = (await reads.driver(connection, present.driver_id)).fleet
        request = replace(_asked_again(present), driver_id=driver_id, fleet=fleet)
        return await self.move(connection, request, present)


def give_back(connection: AsyncConnection, given_back: GivenBack) -> None:
    """Say that time of a driver may have become free: it is offered before the COMMIT.

    In a transaction of `PostgresLedger.transact`; elsewhere nobody listens. What was said
    since a savepoint stays said when the transaction goes back to it: a look too many.
    """
    begun = cast("Connection", connection.sync_connection)
    begun.get_execution_options().get(_GIVEN_BACK, []).append(given_back)


async def write_or_refuse(
    write: Callable[[], Awaitable[Booking | None]],
    in_the_way: Callable[[], Awaitable[Sequence[Held]]],
) -> Booking:
    """Write; where that brings nothing, refuse, and name what is in the way.

    If nothing is in the way any more, it writes again, so that every refusal has a
    booking to show for it.

    Raises `BookingConflict`, `Contended` after a few tries, and what the two raise.
    """
    for _ in range(_TRIES_MAX):
        booked = await write()
        if booked is not None:
            return booked
        if conflicts := await in_the_way():
            raise BookingConflict(conflicts=conflicts)
    raise Contended


def _asked_again(present: Booking, window: TimeWindow | None = None) -> BookingRequest:
    """What was asked for when it was booked, for another time if one is given."""
    return BookingRequest(
        present.rider_id,
        window or present.trip,
        present.driver_id,
        pickup=present.pickup,
        dropoff=present.dropoff,
    )


async def _lock_movable(
    connection: AsyncConnection,
    booking_id: int,
    version: int | None,
    driver_id: int | None = None,
) -> Booking:
    """The booking, whose row is ours until the transaction ends, if it may be moved.

    With `driver_id`, the driver to whom it is to be given.
    """
    present, _ = await lock_booking(connection, booking_id, version, driver_id)
    check_movable(present.state)
    await _check_hold(connection, present)
    return present


async def _check_hold(connection: AsyncConnection, present: Booking) -> None:
    """Raise `HoldLapsed` if the time is held and no longer ours to give."""
    if present.state is not BookingState.HELD or present.held_until is None:
        return
    # Asked for once the row is ours: the wait for it may have outlasted the hold.
    now = await connection.scalar(select(func.clock_timestamp()))
    if now is not None and present.held_until <= now:
        raise HoldLapsed(f"The hold lapsed at {present.held_until:%H:%M:%S} UTC.", field="state")


async def lock_drivers_of(
    connection: AsyncConnection, *such: ColumnElement[bool], and_driver_id: int | None = None
) -> Sequence[int]:
    """Have the drivers of such bookings, and one more, where there is a turnaround; who they are.

    In order of number. The bookings themselves come after them.
    """
    concerned = select(bookings.c.driver_id).where(*such)
    whose: ColumnElement[bool] = drivers.c.id.in_(concerned)
    if and_driver_id is not None:
        whose = or_(whose, drivers.c.id == and_driver_id)
    locked = await connection.scalars(
        select(drivers.c.id)
        .where(whose, drivers.c.turnaround_s.is_not(None))
        .order_by(drivers.c.id)
        .with_for_update(key_share=True)
    )
    return locked.all()


async def lock_booking(
    connection: AsyncConnection,
    booking_id: int,
    version: int | None,
    driver_id: int | None = None,
) -> tuple[Booking, datetime]:
    """The booking, whose row is ours until the transaction ends, and the present instant.

    If it has a lead, so is its driver's before it, and that of `driver_id`, where there is
    a turnaround. Raises `UnknownBooking`, `VersionMismatch`, or `Contended` if the booking was
    given to another driver each time.
    """
    # Most have none, and cost one statement.
    found = await _lock_row(connection, booking_id, bookings.c.lead.is_(None))
    for _ in range(_TRIES_MAX):
        if found is not None:
            break
        locked = await lock_drivers_of(
            connection, bookings.c.id == booking_id, and_driver_id=driver_id
        )
        found = await _lock_row(connection, booking_id)
        if found is None:
            raise UnknownBooking(f"There is no booking {booking_id}.", field="booking_id")
        if found[0].lead is not None and found[0].driver_id not in locked:
            found = None
    if found is None:
        raise Contended
    booking, now = found
    if version is not None and booking.version != version:
        raise VersionMismatch(
            f"Booking {booking_id} is at version {booking.version}, not {version}; read it again.",
            field="If-Match",
        )
    return booking, now


async def _lock_row(
    connection: AsyncConnection, booking_id: int, *such: ColumnElement[bool]
) -> tuple[Booking, datetime] | None:
    locked = await connection.execute(
        # Not now(), which is when the transaction began: a trip must not seem to end before
        # the step that this one waited for.
        select(*BOOKING_COLUMNS, func.clock_timestamp())
        .where(bookings.c.id == booking_id, *such)
        .with_for_update(key_share=True)
    )
    row = locked.one_or_none()
    if row is None:
        return None
    *columns, now = row
    return booking_of(columns), now


def _step(
    present: Booking,
    wanted: BookingState,
    now: datetime,
    at: datetime | None,
    reason: str | None,
) -> dict[str, object]:
    """What a step in the booking's life changes in its row."""
    happened_at = now if at is None else utc(at, "at")
    if happened_at > now + _CLOCK_SKEW:
        raise InvalidInput("What happened cannot lie in the future.", field="at")
    values: dict[str, object] = {"state": wanted}
    if wanted is BookingState.CONFIRMED:
        values["held_until"] = None
    if wanted is BookingState.NO_SHOW and happened_at < present.start:
        raise TooEarly(
            f"A rider can be missed from {present.start:%Y-%m-%dT%H:%M:%SZ} on, when the trip"
            " should have begun.",
            field="at",
        )
    if wanted is BookingState.IN_PROGRESS:
        values["actual_start"] = happened_at
    if wanted is BookingState.COMPLETED:
        if present.actual_start is not None and happened_at <= present.actual_start:
            raise InvalidInput("A trip must end after it started.", field="at")
        values["actual_end"] = happened_at
    if wanted is BookingState.CANCELLED:
        values["cancel_reason"] = reason
    return values


async def add_driver(
    connection: AsyncConnection,
    name: str,
    fleet: str,
    zone: str,
    turnaround_s: int | None = None,
) -> Driver:
    """Add a driver.

    Raises `InvalidInput` for an empty name or fleet, an unknown zone, or a turnaround out
    of bounds.
    """
    added = await connection.execute(
        insert(drivers)
        .values(
            name=_not_empty(name, "name"),
            fleet=_not_empty(fleet, "fleet"),
            zone=check_zone(zone),
            turnaround_s=check_turnaround(turnaround_s),
        )
        .returning(*DRIVER_COLUMNS)
    )
    driver = driver_of(added.one())
    give_back(connection, GivenBack(driver.id, _ALWAYS))
    return driver


async def change_driver(
    connection: AsyncConnection, driver_id: int, *, name: str | None, zone: str | None
) -> Driver:
    """Change what is not None.

    Raises `UnknownDriver`, or `InvalidInput` for an empty name or an unknown zone.
    """
    values = {}
    if name is not None:
        values["name"] = _not_empty(name, "name")
    if zone is not None:
        values["zone"] = check_zone(zone)
        await terms.change_zone(connection, driver_id, zone)
    if not values:
        return await reads.driver(connection, driver_id)
    changed = await connection.execute(
        update(drivers).where(drivers.c.id == driver_id).values(values).returning(*DRIVER_COLUMNS)
    )
    row = changed.one_or_none()
    if row is None:
        raise UnknownDriver(f"There is no driver {driver_id}.", field="driver_id")
    return driver_of(row)


async def retire_driver(connection: AsyncConnection, driver_id: int) -> Driver:
    """Retire a driver with no active booking; a driver who has retired stays as they are.

    Raises `UnknownDriver`, or `DriverStillBooked` naming how many bookings are left.
    """
    # FOR UPDATE, not the weaker lock of an ordinary change: whoever books holds FOR KEY
    # SHARE on this row, so nobody can slip a booking in between the look and the write.
    locked = await connection.execute(
        select(*DRIVER_COLUMNS).where(drivers.c.id == driver_id).with_for_update()
    )
    row = locked.one_or_none()
    if row is None:
        raise UnknownDriver(f"There is no driver {driver_id}.", field="driver_id")
    if driver_of(row).retired_at is not None:
        return driver_of(row)
    left = await connection.scalar(
        select(func.count()).select_from(bookings).where(bookings.c.driver_id == driver_id, active)
    )
    if left:
        raise DriverStillBooked(
            f"Driver {driver_id} still has {left} unfinished bookings; cancel or complete them.",
            field="driver_id",
        )
    retired = await connection.execute(
        update(drivers)
        .where(drivers.c.id == driver_id)
        .values(retired_at=func.now())
        .returning(*DRIVER_COLUMNS)
    )
    return driver_of(retired.one())


async def add_rider(connection: AsyncConnection, name: str) -> Rider:
    """Add a rider. Raises `InvalidInput` for an empty name."""
    added = await connection.execute(
        insert(riders).values(name=_not_empty(name, "name")).returning(*RIDER_COLUMNS)
    )
    return rider_of(added.one())


def _not_empty(text: str, field: str) -> str:
    if not text:
        raise InvalidInput("It must not be empty.", field=field)
    if not _IN_ONE_LINE.fullmatch(text):
        raise InvalidInput("It must be one line, without control characters.", field=field)
    return text
