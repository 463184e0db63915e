"""`/riders`: who books."""

from datetime import UTC, datetime
from http import HTTPStatus
from typing import Annotated

from litestar import Controller, HttpMethod, Response, get, post, route
from litestar.di import NamedDependency
from litestar.params import JSONBody, PathParameter
from sqlalchemy.ext.asyncio import AsyncConnection

from api import ical
from api.bodies.common import ID_MAX
from api.bodies.riders import RiderIn, RiderOut, RiderPage
from api.idempotency import Command, KeyHeader
from api.pages import CursorQuery, page_of, read_id_cursor
from api.requests import LimitQuery, StrictRequest
from api.responses import LOCATION, body_problems, problems
from api.service import Service
from booking.bookings import Booking
from booking.postgres import reads
from booking.postgres.ledger import add_rider

RiderPath = Annotated[int, PathParameter(ge=1, le=ID_MAX)]


class RidersController(Controller):
    """Who books."""

    path = "/riders"
    tags = ("riders",)

    @post(responses=body_problems(), response_headers=[LOCATION], operation_id="add_rider")
    async def add(
        self,
        data: JSONBody[RiderIn],
        service: NamedDependency[Service],
        request: StrictRequest,
        idempotency_key: KeyHeader = None,
    ) -> Response[RiderOut]:
        """Add a rider."""
        command = Command(
            lambda connection: add_rider(connection, data.name),
            RiderOut.of,
            status=HTTPStatus.CREATED,
            collection="/riders",
        )
        return await service.commands.run(request, idempotency_key, command)

    @get(responses=problems(), operation_id="list_riders")
    async def list(
        self,
        service: NamedDependency[Service],
        limit: LimitQuery = 100,
        cursor: CursorQuery = None,
    ) -> RiderPage:
        """List riders in order of id."""
        after = read_id_cursor(cursor)
        rows = await service.look(
            lambda connection: reads.list_riders(connection, after=after, limit=limit + 1)
        )
        return page_of(RiderPage, rows, limit, RiderOut.of, lambda rider: rider.id)

    @get("/{rider_id:int}", responses=problems(HTTPStatus.NOT_FOUND), operation_id="get_rider")
    async def read(
        self,
        rider_id: RiderPath,
        service: NamedDependency[Service],
    ) -> RiderOut:
        """Read one rider."""
        return RiderOut.of(await service.look(lambda c: reads.rider(c, rider_id)))

    @get(
        "/{rider_id:int}/calendar.ics",
        media_type=ical.MEDIA_TYPE,
        responses=problems(HTTPStatus.NOT_FOUND) | ical.NOT_MODIFIED,
        response_headers=[ical.ETAG],
        operation_id="rider_calendar",
    )
    async def calendar(
        self,
        rider_id: RiderPath,
        service: NamedDependency[Service],
        if_none_match: ical.SeenHeader = None,
    ) -> Response[bytes]:
        """A rider's bookings as iCalendar, for any calendar program."""
        return await rider_feed(service, rider_id, if_none_match)

    @route(
        "/{rider_id:int}/calendar.ics",
        http_method=HttpMethod.HEAD,
        media_type=ical.MEDIA_TYPE,
        include_in_schema=False,
    )
    async def calendar_head(
        self,
        rider_id: RiderPath,
        service: NamedDependency[Service],
        if_none_match: ical.SeenHeader = None,
    ) -> Response[bytes]:
        """Answer as `calendar` does; the server leaves the body out."""
        return await rider_feed(service, rider_id, if_none_match)


async def rider_feed(service: Service, rider_id: int, seen: str | None) -> Response[bytes]:
    """A rider's calendar, unless it is the one that was seen. Raises `UnknownRider`."""

    async def work(connection: AsyncConnection) -> tuple[str, list[tuple[Booking, str]]]:
        name = (await reads.rider(connection, rider_id)).name
        since = datetime.now(UTC) - ical.KEEP
        return name, await reads.calendar(connection, since, driver_id=None, rider_id=rider_id)

    name, booked = await service.look(work)
    return ical.response(name, [(each, f"Ride with {other}") for each, other in booked], seen)
