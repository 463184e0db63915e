"""`PostgresLedger`: what every prevention recipe shares, and the port `Allocator`.

A recipe is a subclass in `booking/prevention/` that says how to *record* a
booking within a transaction, which isolation it runs under, what the database
must have for it, and what it claims. The transaction itself, the
choice of a driver and the life of a booking are the same for all of them and
stand here.
"""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from typing import ClassVar, Protocol

from sqlalchemy import func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from booking.bookings import (
    Booking,
    BookingRequest,
    BookingState,
    check_movable,
    check_transition,
)
from booking.calendars import Held
from booking.drivers import Driver, Rider, check_zone
from booking.errors import (
    BookingConflict,
    Contended,
    DriverStillBooked,
    InvalidInput,
    UnknownBooking,
    UnknownDriver,
)
from booking.ledgers import Claim, Ledger
from booking.postgres import reads
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
from booking.time_window import TimeWindow, utc

Record = Callable[[AsyncConnection, BookingRequest], Awaitable[Booking]]
"""Records a booking for the driver that the request names, or raises `BookingConflict`."""

_CLOCK_SKEW = timedelta(minutes=1)
_TRIES_MAX = 3


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

    def __init__(self, database: Database, allocator: Allocator) -> None:
        self.database = database
        self.allocator = allocator

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
        request's window and is not in its own way.

        Raises as `Ledger.book` does, and leaves the transaction usable, as the
        allocator then offers the booking to another driver.
        """

    async def release(self, connection: AsyncConnection, booking: Booking) -> None:
        """Give back the time of a booking that has just ceased to be active.

        For a recipe that keeps account of time elsewhere than in `bookings`.
        """

    async def offer(self, connection: AsyncConnection, request: BookingRequest) -> Booking:
        """Record a booking for one of several drivers that would do; raises as `record` does."""
        if not self.holds_the_refused:
            return await self.record(connection, request)
        async with connection.begin_nested():
            return await self.record(connection, request)

    async def transact[T](self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """Run `work` in one transaction of the recipe's isolation; see `Database.transact`."""
        return await self.database.transact(work, isolation=self.isolation)

    async def book(self, request: BookingRequest) -> Booking:
        """Record the booking or refuse it, as `Ledger.book` says."""
        return await self.transact(lambda connection: self.book_in(connection, request))

    async def book_in(self, connection: AsyncConnection, request: BookingRequest) -> Booking:
        """Do the work of `book`, inside a transaction that is under way."""
        if request.driver_id is None:
            return await self.allocator.allocate(connection, request, self.offer)
        return await self.record(connection, request)

    async def change_state(
        self,
        booking_id: int,
        wanted: BookingState,
        *,
        at: datetime | None = None,
        reason: str | None = None,
    ) -> Booking:
        """Take one step in the booking's life, as `Ledger.change_state` says."""
        return await self.transact(
            lambda connection: self.change_state_in(connection, booking_id, wanted, at, reason)
        )

    async def change_state_in(
        self,
        connection: AsyncConnection,
        booking_id: int,
        wanted: BookingState,
        at: datetime | None = None,
        reason: str | None = None,
    ) -> Booking:
        """Do the work of `change_state`, inside a transaction that is under way."""
        present, now = await _lock_booking(connection, booking_id)
        check_transition(present.state, wanted)
        values = _step(present, wanted, now, at, reason)
        changed = await update_booking(connection, present, values)
        if present.state.active and not changed.state.active:
            await self.release(connection, changed)
        return changed

    async def reschedule(self, booking_id: int, window: TimeWindow) -> Booking:
        """Move the booking to another time, as `Ledger.reschedule` says."""
        return await self.transact(
            lambda connection: self.reschedule_in(connection, booking_id, window)
        )

    async def reschedule_in(
        self, connection: AsyncConnection, booking_id: int, window: TimeWindow
    ) -> Booking:
        """Do the work of `reschedule`, inside a transaction that is under way."""
        present, _ = await _lock_booking(connection, booking_id)
        check_movable(present.state)
        request = BookingRequest(present.rider_id, window, present.driver_id)
        return await self.record(connection, request, present)


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


async def write_booking(
    connection: AsyncConnection, request: BookingRequest, moving: Booking | None = None
) -> Booking:
    """Insert a confirmed booking, or move one, with no look at anything else."""
    during = reads.range_of(request.window)
    if moving is not None:
        return await update_booking(connection, moving, {"during": during})
    statement = (
        insert(bookings)
        .values(
            driver_id=request.driver_id,
            rider_id=request.rider_id,
            state=BookingState.CONFIRMED,
            during=during,
        )
        .returning(*BOOKING_COLUMNS)
    )
    return booking_of((await connection.execute(statement)).one())


async def update_booking(
    connection: AsyncConnection, booking: Booking, values: dict[str, object]
) -> Booking:
    """Change a booking's row, with no look at anything else."""
    changed = await connection.execute(
        update(bookings)
        .where(bookings.c.id == booking.id)
        .values(values)
        .returning(*BOOKING_COLUMNS)
    )
    return booking_of(changed.one())


async def _lock_booking(connection: AsyncConnection, booking_id: int) -> tuple[Booking, datetime]:
    """The booking, whose row is ours until the transaction ends, and the present instant."""
    locked = await connection.execute(
        # Not now(), which is when the transaction began: it may have waited for this row,
        # and a trip must not seem to end before the step it waited for.
        select(*BOOKING_COLUMNS, func.clock_timestamp())
        .where(bookings.c.id == booking_id)
        .with_for_update(key_share=True)
    )
    row = locked.one_or_none()
    if row is None:
        raise UnknownBooking(f"There is no booking {booking_id}.", field="booking_id")
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
    if wanted is BookingState.IN_PROGRESS:
        values["actual_start"] = happened_at
    if wanted is BookingState.COMPLETED:
        if present.actual_start is not None and happened_at <= present.actual_start:
            raise InvalidInput("A trip must end after it started.", field="at")
        values["actual_end"] = happened_at
    if wanted is BookingState.CANCELLED:
        values["cancel_reason"] = reason
    return values


async def add_driver(connection: AsyncConnection, name: str, fleet: str, zone: str) -> Driver:
    """Add a driver. Raises `InvalidInput` for an empty name or fleet, or an unknown zone."""
    added = await connection.execute(
        insert(drivers)
        .values(
            name=_not_empty(name, "name"),
            fleet=_not_empty(fleet, "fleet"),
            zone=check_zone(zone),
        )
        .returning(*DRIVER_COLUMNS)
    )
    return driver_of(added.one())


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
    return text
