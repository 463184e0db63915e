"""`Advice`: who is free and when, from memory while it is fresh, else from the database.

Both give the same answers; they differ in price and in age. Nothing here decides
anything: by the time an answer arrives it may be out of date, and whoever acts
on it asks the ledger, which decides.
"""

from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime, timedelta
from typing import Literal, NamedTuple

from sqlalchemy.ext.asyncio import AsyncConnection

from booking.bookings import Booking
from booking.calendars import Held, gaps_between
from booking.drivers import Driver
from booking.fleet_index import NotInMemory, next_free_among, search_window
from booking.places import Place
from booking.postgres import reads, terms
from booking.postgres.database import Database
from booking.postgres.follower import Follower
from booking.terms import Wish
from booking.time_window import TimeWindow
from booking.travel import GreatCircle, TravelTimes

Source = Literal["memory", "database"]
Places = tuple[Place | None, Place | None]
"""Where a trip begins and ends, as far as that is known."""
NOWHERE: Places = (None, None)

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

    def __init__(
        self,
        database: Database,
        follower: Follower | None = None,
        travel_times: TravelTimes | None = None,
    ) -> None:
        self._database = database
        self._follower = follower
        self._travel_times = travel_times or GreatCircle("UTC")

    async def free_drivers(
        self,
        window: TimeWindow,
        fleet: str,
        limit: int,
        without: Collection[int] = (),
        places: Places = NOWHERE,
    ) -> FreeDrivers:
        """Up to `limit` working drivers of the fleet who are free for the whole window.

        Fewer only if there are no more; which ones, when there are more, is left
        open. Drivers in `without` are left out. Memory knows nothing of terms, so for a
        fleet where anybody has some the database is asked.
        """
        remembered = self._from_memory(
            lambda follower: (
                None
                if follower.fleet_has_terms(fleet)
                else FreeDrivers(
                    follower.index.free_drivers(window, fleet, limit, without),
                    follower.as_of,
                    "memory",
                )
            )
        )
        if remembered is not None:
            return remembered
        return await self.free_drivers_now(window, fleet, limit, without, places)

    async def free_drivers_now(
        self,
        window: TimeWindow,
        fleet: str,
        limit: int,
        without: Collection[int] = (),
        places: Places = NOWHERE,
    ) -> FreeDrivers:
        """What `free_drivers` answers, asked of the database however fresh memory is."""
        as_of = datetime.now(UTC)
        wish = Wish(window, fleet, *places)

        async def ask(connection: AsyncConnection) -> list[int]:
            return await terms.free_on_terms(self._travel_times, connection, wish, limit, without)

        ids = await self._database.transact(ask, read_only=True)
        return FreeDrivers(ids, as_of, "database")

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

        An unknown driver is free at once. On terms, it is the next for a trip that names no place.
        """
        wide = search_window(window)
        if self._asks_for_more(driver_id):
            gaps = await self.gaps(driver_id, wide, window.duration)
            return window.moved_to(gaps[0].start) if gaps else None
        return next_free_among(await self.conflicts(driver_id, wide), window, besides)

    def next_free_of_fleet(self, window: TimeWindow, fleet: str) -> TimeWindow | None:
        """The next window like this one for which somebody of the fleet is free.

        Ask it when nobody is free for `window` itself: what it finds begins later
        by a multiple of `FLEET_STEP`, within `FLEET_SEARCH`. From memory alone, as
        it asks many times, so it is None as well while memory cannot answer, or
        believes that somebody is free for `window`: then it is behind. Nor does it know
        of terms, so it is None for a fleet where anybody has some.
        """

        def search(follower: Follower) -> TimeWindow | None:
            if follower.fleet_has_terms(fleet) or follower.index.free_drivers(window, fleet, 1):
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
        """The parts of `within` in which the driver is free, each no shorter than `at_least`.

        On terms, those in which a trip that names no place can be booked.
        """
        if self._asks_for_more(driver_id):
            return await self._database.transact(
                lambda connection: terms.free_windows(connection, driver_id, within, at_least),
                read_only=True,
            )
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

    def _asks_for_more(self, driver_id: int) -> bool:
        """Whether the driver has terms, or may have, for all that memory knows."""
        known = self._from_memory(lambda follower: follower.has_terms(driver_id))
        return known is not False

    def _from_memory[T](self, ask: Callable[[Follower], T]) -> T | None:
        if self._follower is None or not self._follower.fresh:
            return None
        try:
            return ask(self._follower)
        except NotInMemory:
            return None
