"""What every handler stands on, built once by `create_app`."""

import logging
from collections.abc import Awaitable, Callable, Container, Sequence
from dataclasses import dataclass, field

from msgspec import UNSET, structs
from sqlalchemy.ext.asyncio import AsyncConnection

from api import metrics
from api.bodies.bookings import BookingProblem, Conflict, Offer
from api.bodies.problems import Problem
from api.feed import Feed
from api.idempotency import Commands
from api.problems import problem_of
from api.settings import Settings
from api.stopping import Stopping
from booking.bookings import Booking, BookingRequest
from booking.calendars import Held
from booking.errors import BookingConflict, NoDriverFree, TaxiError, Unavailable
from booking.overrun import Policy, Remedy
from booking.postgres import reads
from booking.postgres.advice import Advice
from booking.postgres.database import Database
from booking.postgres.follower import Follower
from booking.postgres.ledger import PostgresLedger
from booking.postgres.overruns import Overrun
from booking.postgres.waiting import WaitingList
from booking.time_window import TimeWindow

logger = logging.getLogger(__name__)

ALTERNATIVES_MAX = 5
"""Free drivers that a refusal offers."""


@dataclass(frozen=True, slots=True)
class Service:
    """The ledger decides, the advice knows what is free, the commands run each request once."""

    settings: Settings
    database: Database
    ledger: PostgresLedger
    follower: Follower
    advice: Advice
    commands: Commands
    policy: Policy
    waiting_list: WaitingList
    feed: Feed
    stopping: Stopping = field(default_factory=Stopping)
    """Whether this process is to stop: what would go on for ever ends then."""
    _stuck: set[tuple[int, type[TaxiError]]] = field(default_factory=set)
    """Overdue trips that cannot be helped, and why not, which has been said."""

    async def look[T](self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """Run `work` in a transaction that may only read."""
        return await self.database.transact(work, read_only=True)

    def note_overrun(self, overrun: Overrun) -> None:
        """Let this process see at once what a late trip has moved."""
        metrics.count_overrun(overrun)
        for booking in (*[each.booking for each in overrun.moved], overrun.trip):
            self.advice.note(booking)
        for each in overrun.moved:
            if each.remedy is Remedy.CALL_DISPATCHER:
                logger.warning(
                    "Booking %s will be %.0f minutes late, and nobody else is free.",
                    each.booking.id,
                    each.late_s / 60,
                )

    def note_stuck(self, trip: Booking, error: TaxiError) -> None:
        """Say that an overdue trip cannot be helped: once for each reason, and not at each look."""
        if (trip.id, type(error)) not in self._stuck:
            self._stuck.add((trip.id, type(error)))
            logger.warning("Overdue booking %s keeps its predicted end: %s", trip.id, error)

    def forget_stuck_but(self, overdue: Container[int]) -> None:
        """Forget what was said of trips that are not overdue any more."""
        self._stuck.difference_update([each for each in self._stuck if each[0] not in overdue])

    async def explain(self, error: TaxiError, request: BookingRequest) -> Problem:
        """The problem of a booking that was refused, with what is free instead."""
        problem = problem_of(error)
        if not isinstance(error, BookingConflict | NoDriverFree):
            return problem
        conflicts = error.conflicts if isinstance(error, BookingConflict) else ()
        try:
            if isinstance(error, BookingConflict):
                next_free, free_drivers = await self.alternatives(request, conflicts)
            else:
                # The database has just said that nobody is free; memory may not know it yet.
                free_drivers = []
                next_free = Offer.of(self.advice.next_free_of_fleet(request.window, request.fleet))
        except Unavailable:
            # A refusal stands on its own: where the advice fails, it offers nothing.
            next_free, free_drivers = None, []
        return BookingProblem(
            **structs.asdict(problem),
            reason=error.reason if isinstance(error, BookingConflict) else UNSET,
            conflicts=[Conflict.of(held) for held in conflicts],
            next_free=next_free,
            free_drivers=free_drivers,
        )

    async def explain_move(self, error: TaxiError, booking_id: int, window: TimeWindow) -> Problem:
        """The problem of a booking that could not be moved, likewise."""
        if not isinstance(error, BookingConflict):
            return problem_of(error)
        moving = await self.look(lambda c: reads.booking(c, booking_id))
        return await self.explain(
            error,
            BookingRequest(
                moving.rider_id,
                window,
                moving.driver_id,
                pickup=moving.pickup,
                dropoff=moving.dropoff,
            ),
        )

    async def explain_reassignment(
        self, error: TaxiError, booking_id: int, driver_id: int | None
    ) -> Problem:
        """The problem of a booking that could not be given to another driver, likewise."""
        if not isinstance(error, BookingConflict | NoDriverFree):
            return problem_of(error)
        moving = await self.look(lambda c: reads.booking(c, booking_id))
        fleet = (await self.look(lambda c: reads.driver(c, moving.driver_id))).fleet
        return await self.explain(
            error,
            BookingRequest(
                moving.rider_id,
                moving.trip,
                driver_id,
                fleet,
                pickup=moving.pickup,
                dropoff=moving.dropoff,
            ),
        )

    async def alternatives(
        self, request: BookingRequest, conflicts: Sequence[Held]
    ) -> tuple[Offer | None, list[int]]:
        """When the driver, or somebody of the fleet, is free next; and who is at this time.

        `conflicts` is what the database saw in the way, which memory may not know
        of yet. Whether anybody of a fleet is free at this time is asked of the
        database. Raises `Unavailable`.
        """
        window, driver_id = request.window, request.driver_id
        places = request.pickup, request.dropoff
        if driver_id is None:
            free = await self.advice.free_drivers_now(
                window, request.fleet, ALTERNATIVES_MAX, places=places
            )
            next_free = (
                window if free.ids else self.advice.next_free_of_fleet(window, request.fleet)
            )
            return Offer.of(next_free), free.ids
        fleet = await self.advice.fleet_of(driver_id)
        next_free = await self.advice.next_free(driver_id, window, conflicts)
        free = await self.advice.free_drivers(window, fleet, ALTERNATIVES_MAX, (driver_id,), places)
        return Offer.of(next_free), free.ids
