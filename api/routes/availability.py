"""`/availability`: who is free."""

from typing import Annotated

from litestar import Controller, get
from litestar.di import NamedDependency
from litestar.params import QueryParameter

from api.bodies.availability import Availability
from api.bodies.common import window_of
from api.requests import (
    EndQuery,
    FleetQuery,
    OptionalPlaceQuery,
    StartQuery,
    parse_instant,
    parse_place,
)
from api.responses import problems
from api.service import Service
from booking.drivers import MAIN_FLEET


class AvailabilityController(Controller):
    """Who is free, across the fleet."""

    path = "/availability"
    tags = ("availability",)

    @get(responses=problems(), operation_id="get_availability")
    async def read(
        self,
        start: StartQuery,
        end: EndQuery,
        service: NamedDependency[Service],
        fleet: FleetQuery = MAIN_FLEET,
        limit: Annotated[int, QueryParameter(ge=1, le=1_000)] = 100,
        pickup: OptionalPlaceQuery = None,
        dropoff: OptionalPlaceQuery = None,
    ) -> Availability:
        """Name drivers of the fleet who are free for the whole window, in no particular order.

        An answer, not a promise: it was true at `as_of`, and only a booking holds the time.
        Name the places, and drivers with a turnaround are left out who could not get there.
        """
        window = window_of(parse_instant(start, "start"), parse_instant(end, "end"))
        places = parse_place(pickup, "pickup"), parse_place(dropoff, "dropoff")
        free = await service.advice.free_drivers(window, fleet, limit, places=places)
        return Availability(free.ids, free.as_of, free.source)
