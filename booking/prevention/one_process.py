"""One process: calendars in memory, and a queue for each driver. Safe until there are two.

Idea
----
Keep each driver's calendar in memory, as in act I, and let the requests for one
driver come one after the other. That is right as long as every request comes
through this one process.

What happens
------------
1. Wait for the driver's turn: an `asyncio.Lock`, first come, first served, which
   the transaction keeps until it has ended. So nobody sees a booking that may
   yet be rolled back, and nobody is refused on account of one.
2. Look in the driver's calendar, which is read from the database the first time.
   Taken? Refuse, and let go of the driver if any other would do.
3. `INSERT`, and hold the time in the calendar.
4. The transaction was not committed, or went back to a savepoint? The calendars
   of the drivers that it had are forgotten, and read again when they are next
   asked: simpler than taking back step by step, and right whatever was done.

Time given back, and a move, go the same way.

Costs
-----
A look is O(log n) for n active bookings of the driver, in memory, and the insert
O(log N) for N bookings in the table: three round trips (driver, rider, insert).
The first look at a driver reads n rows. Memory for every active booking of the
drivers that were asked for, and a start that is slow for each.

Breaks when
-----------
There is a second process: each has calendars of its own, neither hears of what
the other books, and both book the same time. `taxi serve --workers 2` is enough;
so is a deployment that starts the new version before it stops the old one, or a
hand at `psql`. And an answer to a COMMIT that is lost on the way leaves it open
for a moment what the calendar should hold.
"""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import cast, override

from sqlalchemy import Connection, event, select
from sqlalchemy.ext.asyncio import AsyncConnection

from booking.bookings import Booking, BookingRequest
from booking.calendars import Held
from booking.detection.bisect_neighbours import BisectNeighbours
from booking.errors import BookingConflict, Contended
from booking.ledgers import Claim
from booking.postgres import reads
from booking.postgres.database import Database
from booking.postgres.ledger import Allocator, PostgresLedger
from booking.postgres.tables import (
    INDEX_INSTEAD,
    active,
    begins,
    bookings,
    predicted_ends,
)
from booking.postgres.writes import write_booking
from booking.time_window import TimeWindow
from booking.travel import TravelTimes

_WAIT_S_MAX = 5.0
"""The longest wait for a driver's turn: two transactions may wait for each other's, unseen."""

_TURNS = "taxi_turns"
"""The execution option with the drivers whose turn a transaction has."""


@dataclass(slots=True)
class _Driver:
    """What is remembered of a driver; a calendar that is None must be read."""

    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    calendar: BisectNeighbours | None = None


class OneProcess(PostgresLedger):
    """Looks in memory, one request for a driver after the other.

    `book_in` and its like work only in a transaction of `transact`: no other
    tells how it ended.
    """

    claim = Claim.ONE_PROCESS
    schema = INDEX_INSTEAD

    def __init__(
        self,
        database: Database,
        allocator: Allocator,
        travel_times: TravelTimes | None = None,
    ) -> None:
        super().__init__(database, allocator, travel_times)
        self._drivers: defaultdict[int, _Driver] = defaultdict(_Driver)
        event.listen(database.engine.sync_engine, "rollback_savepoint", _went_back)

    @override
    async def transact[T](self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        turns: dict[int, _Driver] = {}

        async def remembered(connection: AsyncConnection) -> T:
            _forget(turns)  # an earlier attempt was rolled back
            await connection.execution_options(**{_TURNS: turns})
            return await work(connection)

        committed = False
        try:
            result = await super().transact(remembered)
            committed = True
        finally:
            if not committed:
                _forget(turns)
            for driver in turns.values():
                driver.turn.release()
        return result

    @override
    async def record(
        self, connection: AsyncConnection, request: BookingRequest, moving: Booking | None = None
    ) -> Booking:
        driver_id = await reads.named_driver(connection, request)
        turns = _turns(connection)
        newcomer = driver_id not in turns
        calendar = await self._calendar(connection, driver_id)
        conflicts = _besides(calendar, request.window, moving)
        if conflicts and not await self.in_the_way(connection, request, moving, driver_id):
            conflicts = _besides(calendar, request.window, moving)  # a hold has lapsed
        if conflicts:
            if newcomer:
                # Two allocations that each keep a driver and wait for the other's would wait long.
                turns.pop(driver_id).turn.release()
            raise BookingConflict(conflicts=conflicts)
        booked = await write_booking(connection, request, moving)
        if moving is not None:
            await self.release(connection, moving)
        calendar.hold(booked.id, booked.window)
        return booked

    @override
    async def release(self, connection: AsyncConnection, booking: Booking) -> None:
        _release(await self._calendar(connection, booking.driver_id), booking)

    async def _calendar(self, connection: AsyncConnection, driver_id: int) -> BisectNeighbours:
        """The driver's calendar, once it is our turn, which is kept until the transaction ends."""
        turns = _turns(connection)
        if driver_id not in turns:
            driver = self._drivers[driver_id]
            try:
                async with asyncio.timeout(_WAIT_S_MAX):
                    await driver.turn.acquire()
            except TimeoutError:
                raise Contended from None
            turns[driver_id] = driver
        driver = turns[driver_id]
        if driver.calendar is None:
            driver.calendar = await _read(connection, driver_id)
        return driver.calendar


async def _read(connection: AsyncConnection, driver_id: int) -> BisectNeighbours:
    calendar = BisectNeighbours()
    rows = await connection.execute(
        select(bookings.c.id, begins, predicted_ends)
        .where(bookings.c.driver_id == driver_id, active)
        .order_by(begins)
    )
    for booking_id, start, end in rows:
        # Of a double booking, which another process must have had a hand in, the first counts.
        with suppress(BookingConflict):
            calendar.hold(booking_id, TimeWindow(start, end))
    return calendar


def _besides(calendar: BisectNeighbours, window: TimeWindow, moving: Booking | None) -> list[Held]:
    found = calendar.conflicts(window)
    return [held for held in found if moving is None or held.booking_id != moving.id]


def _release(calendar: BisectNeighbours, booking: Booking) -> None:
    # Not held: the booking is given back already, as it was not there when the calendar was
    # read, or another process made it.
    with suppress(KeyError):
        calendar.release(booking.id)


def _turns(connection: AsyncConnection) -> dict[int, _Driver]:
    """The drivers whose turn the transaction has."""
    begun = cast("Connection", connection.sync_connection)
    return cast("dict[int, _Driver]", begun.get_execution_options()[_TURNS])


def _went_back(connection: Connection, *_: object) -> None:
    """What a transaction did since the savepoint it goes back to never was."""
    _forget(connection.get_execution_options().get(_TURNS, {}))


def _forget(turns: dict[int, _Driver]) -> None:
    for driver in turns.values():
        driver.calendar = None
