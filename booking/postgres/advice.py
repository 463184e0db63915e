"""`Advice`: who is free and when, from memory while it is fresh, else from the database.

Both give the same answers; they differ in price and in age. Nothing here decides
anything: by the time an answer arrives it may be out of date, and whoever acts
on it asks the ledger, which decides.
"""

from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime, timedelta
from typing import Literal, NamedTuple

from sqlalchemy import Select, select
from sqlalchemy.ext.asyncio import AsyncConnection

from booking.bookings import Booking
from booking.calendars import Held, gaps_between
from booking.drivers import Driver
from booking.fleet_index import NotInMemory, next_free_among, search_window
from booking.postgres import reads
from booking.postgres.database import Database
from booking.postgres.follower import Follower
from booking.postgres.tables import drivers
from booking.time_window import TimeWindow

Source = Literal["memory", "database"]

FLEET_STEP = timedelta(minutes=5)
FLEET_SEARCH = timedelta(hours=24)


class FreeDrivers(NamedTuple):
    """Drivers who were free at `as_of`, and who said so."""

    ids: list[int]
    as_of: datetime
    source: Source


class Advice:
    """Answers from a follower's index, or with `follower=None` always from the database.

    The methods that ask the database raise `Unavailable` when it is away.
    """

    def __init__(self, database: Database, follower: Follower | None = None) -> None:
        self._database = database
        self._follower = follower

    async def free_drivers(
        self, window: TimeWindow, fleet: str, limit: int, without: Collection[int] = ()
    ) -> FreeDrivers:
        """Up to `limit` working drivers of the fleet who are free for the whole window.

        Fewer only if there are no more; which ones, when there are more, is left
        open. Drivers in `without` are left out.
        """
        remembered = self._from_memory(
            lambda follower: FreeDrivers(
                follower.index.free_drivers(window, fleet, limit, without),
                follower.as_of,
                "memory",
            )
        )
        if remembered is not None:
            return remembered
        return await self.free_drivers_now(window, fleet, limit, without)

    async def free_drivers_now(
        self, window: TimeWindow, fleet: str, limit: int, without: Collection[int] = ()
    ) -> FreeDrivers:
        """What `free_drivers` answers, asked of the database however fresh memory is."""
        as_of = datetime.now(UTC)

        async def ask(connection: AsyncConnection) -> Sequence[int]:
            return (await connection.scalars(_who_is_free(window, fleet, limit, without))).all()

        ids = await self._database.transact(ask, read_only=True)
        return FreeDrivers(list(ids), as_of, "database")

    async def fleet_of(self, driver_id: int) -> str:
        """The fleet for which the driver works. Raises `UnknownDriver`."""
        remembered = self._from_memory(lambda follower: follower.index.fleet_of(driver_id))
        if remembered is not None:
            return remembered
        driver = await self._database.transact(
            lambda connection: reads.driver(connection, driver_id), read_only=True
        )
        return driver.fleet

    async def next_free(
        self, driver_id: int, window: TimeWindow, besides: Sequence[Held] = ()
    ) -> TimeWindow | None:
        """The driver's next free window like this one, as `fleet_index.next_free_among` says.

        An unknown driver is free at once.
        """
        wide = search_window(window)
        return next_free_among(await self.conflicts(driver_id, wide), window, besides)

    def next_free_of_fleet(self, window: TimeWindow, fleet: str) -> TimeWindow | None:
        """The next window like this one for which somebody of the fleet is free.

        Ask it when nobody is free for `window` itself: what it finds begins later
        by a multiple of `FLEET_STEP`, within `FLEET_SEARCH`. From memory alone, as
        it asks many times, so it is None as well while memory cannot answer, or
        believes that somebody is free for `window`: then it is behind.
        """

        def search(follower: Follower) -> TimeWindow | None:
            if follower.index.free_drivers(window, fleet, 1):
                return None
            # Near the end of the calendar there is less to search.
            room = min(FLEET_SEARCH, search_window(window).end - window.end)
            for step in range(1, room // FLEET_STEP + 1):
                later = window.moved_to(window.start + step * FLEET_STEP)
                if follower.index.free_drivers(later, fleet, 1):
                    return later
            return None

        return self._from_memory(search)

    async def gaps(
        self, driver_id: int, within: TimeWindow, at_least: timedelta = timedelta(0)
    ) -> list[TimeWindow]:
        """The parts of `within` in which the driver is free, each no shorter than `at_least`."""
        return list(gaps_between(await self.conflicts(driver_id, within), within, at_least))

    async def conflicts(self, driver_id: int, window: TimeWindow) -> list[Held]:
        """The driver's active bookings that overlap the window, in order of start."""
        remembered = self._from_memory(lambda follower: follower.index.conflicts(driver_id, window))
        if remembered is not None:
            return remembered
        return await self._database.transact(
            lambda connection: reads.conflicts_of(connection, driver_id, window), read_only=True
        )

    def note(self, booking: Booking) -> None:
        """Let this process see at once what it has just recorded or changed itself."""
        if self._follower is not None:
            self._follower.note(booking)

    def note_driver(self, driver: Driver) -> None:
        """Let this process see at once a driver it has just added or retired itself."""
        if self._follower is not None:
            self._follower.note_driver(driver)

    def _from_memory[T](self, ask: Callable[[Follower], T]) -> T | None:
        if self._follower is None or not self._follower.fresh:
            return None
        try:
            return ask(self._follower)
        except NotInMemory:
            return None


def _who_is_free(
    window: TimeWindow, fleet: str, limit: int, without: Collection[int]
) -> Select[int]:
    statement = (
        select(drivers.c.id)
        .where(drivers.c.retired_at.is_(None), drivers.c.fleet == fleet, reads.is_free(window))
        .order_by(drivers.c.id)
        .limit(limit)
    )
    return statement.where(drivers.c.id.not_in(without)) if without else statement
