"""`/schedule`: a whole fleet and its bookings, as a dispatcher's page shows them."""

from datetime import UTC, datetime, timedelta

from litestar import Controller, get
from litestar.di import NamedDependency

from api.bodies.bookings import BookingOut
from api.bodies.common import window_of
from api.bodies.drivers import DriverOut
from api.bodies.schedule import Schedule, ScheduleRow
from api.requests import EndQuery, FleetQuery, StartQuery, parse_instant
from api.responses import problems
from api.service import Service
from booking.drivers import MAIN_FLEET
from booking.errors import InvalidInput
from booking.postgres import reads

SCHEDULE_MAX = timedelta(days=8)
"""The longest stretch of a schedule: a week, and the day on which the clocks change."""


class ScheduleController(Controller):
    """A whole fleet at once."""

    path = "/schedule"
    tags = ("availability",)

    @get(responses=problems(), operation_id="read_schedule")
    async def read(
        self,
        start: StartQuery,
        end: EndQuery,
        service: NamedDependency[Service],
        fleet: FleetQuery = MAIN_FLEET,
    ) -> Schedule:
        """Read every working driver of a fleet, with their active bookings in `[start, end)`."""
        window = window_of(parse_instant(start, "start"), parse_instant(end, "end"))
        if window.duration > SCHEDULE_MAX:
            raise InvalidInput(
                f"A schedule reaches over {SCHEDULE_MAX.days} days at most.", field="end"
            )
        as_of = datetime.now(UTC)
        rows = await service.look(lambda c: reads.schedule(c, fleet, window))
        return Schedule(
            [ScheduleRow(DriverOut.of(who), list(map(BookingOut.of, has))) for who, has in rows],
            as_of,
        )
