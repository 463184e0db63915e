"""`/drivers`: the fleet."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Annotated

from litestar import Controller, Response, get, patch, post
from litestar.di import NamedDependency
from litestar.params import JSONBody, PathParameter, QueryParameter
from msgspec import UNSET
from sqlalchemy.ext.asyncio import AsyncConnection

from api import ical
from api.idempotency import Command, KeyHeader
from api.pages import CursorQuery, page_of, read_id_cursor
from api.requests import (
    EndQuery,
    LimitQuery,
    OptionalFleetQuery,
    StartQuery,
    StrictRequest,
    parse_instant,
)
from api.responses import LOCATION, body_problems, problems
from api.service import Service
from api.structs import (
    ID_MAX,
    Agenda,
    BookingOut,
    DriverChange,
    DriverIn,
    DriverOut,
    DriverPage,
    Gaps,
    WindowOut,
    window_of,
)
from booking.bookings import Booking
from booking.errors import InvalidInput
from booking.postgres import reads
from booking.postgres.ledger import add_driver, change_driver, retire_driver
from booking.time_window import TimeWindow

DriverPath = Annotated[int, PathParameter(ge=1, le=ID_MAX)]
_SPAN_MAX = timedelta(days=31)


class DriversController(Controller):
    """Who drives, what they have booked, and when they are free."""

    path = "/drivers"
    tags = ("drivers",)

    @post(responses=body_problems(), response_headers=[LOCATION], operation_id="add_driver")
    async def add(
        self,
        data: JSONBody[DriverIn],
        service: NamedDependency[Service],
        request: StrictRequest,
        idempotency_key: KeyHeader = None,
    ) -> Response[DriverOut]:
        """Add a driver."""
        command = Command(
            lambda connection: add_driver(connection, data.name, data.fleet, data.zone),
            DriverOut.of,
            note=service.advice.note_driver,
            status=HTTPStatus.CREATED,
            collection="/drivers",
        )
        return await service.commands.run(request, idempotency_key, command)

    @get(responses=problems(), operation_id="list_drivers")
    async def list(
        self,
        service: NamedDependency[Service],
        fleet: OptionalFleetQuery = None,
        working: Annotated[
            bool | None, QueryParameter(description="Only those who have not, or have, retired.")
        ] = None,
        limit: LimitQuery = 100,
        cursor: CursorQuery = None,
    ) -> DriverPage:
        """List drivers in order of id."""
        after = read_id_cursor(cursor)
        rows = await service.look(
            lambda connection: reads.list_drivers(
                connection, fleet=fleet, working=working, after=after, limit=limit + 1
            )
        )
        return page_of(DriverPage, rows, limit, DriverOut.of, lambda driver: driver.id)

    @get("/{driver_id:int}", responses=problems(HTTPStatus.NOT_FOUND), operation_id="get_driver")
    async def read(self, driver_id: DriverPath, service: NamedDependency[Service]) -> DriverOut:
        """Read one driver."""
        return DriverOut.of(await service.look(lambda c: reads.driver(c, driver_id)))

    @patch(
        "/{driver_id:int}",
        responses=body_problems(HTTPStatus.NOT_FOUND),
        operation_id="change_driver",
    )
    async def change(
        self,
        driver_id: DriverPath,
        data: JSONBody[DriverChange],
        service: NamedDependency[Service],
        request: StrictRequest,
        idempotency_key: KeyHeader = None,
    ) -> Response[DriverOut]:
        """Change a driver's name or zone; what is left out stays."""
        name = None if data.name is UNSET else data.name
        zone = None if data.zone is UNSET else data.zone
        command = Command(
            lambda connection: change_driver(connection, driver_id, name=name, zone=zone),
            DriverOut.of,
        )
        return await service.commands.run(request, idempotency_key, command)

    @post(
        "/{driver_id:int}/retire",
        status_code=HTTPStatus.OK,
        responses=problems(HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT),
        operation_id="retire_driver",
    )
    async def retire(
        self,
        driver_id: DriverPath,
        service: NamedDependency[Service],
        request: StrictRequest,
        idempotency_key: KeyHeader = None,
    ) -> Response[DriverOut]:
        """Retire a driver who has no unfinished booking. They take no more bookings."""
        command = Command(
            lambda connection: retire_driver(connection, driver_id),
            DriverOut.of,
            note=service.advice.note_driver,
        )
        return await service.commands.run(request, idempotency_key, command)

    @get(
        "/{driver_id:int}/agenda",
        responses=problems(HTTPStatus.NOT_FOUND),
        operation_id="get_agenda",
    )
    async def agenda(
        self,
        driver_id: DriverPath,
        start: StartQuery,
        end: EndQuery,
        service: NamedDependency[Service],
    ) -> Agenda:
        """List the driver's active bookings that overlap the window, in order of start."""
        window = _span(start, end)

        async def work(connection: AsyncConnection) -> Sequence[Booking]:
            await reads.driver(connection, driver_id)
            return await reads.agenda(connection, driver_id, window)

        return Agenda([BookingOut.of(row) for row in await service.look(work)])

    @get("/{driver_id:int}/gaps", responses=problems(HTTPStatus.NOT_FOUND), operation_id="get_gaps")
    async def gaps(
        self,
        driver_id: DriverPath,
        start: StartQuery,
        end: EndQuery,
        service: NamedDependency[Service],
        at_least_minutes: Annotated[
            int, QueryParameter(ge=0, le=44_640, description="Leave out shorter gaps.")
        ] = 0,
    ) -> Gaps:
        """List the parts of the window in which the driver is free; none, once retired."""
        window = _span(start, end)
        driver = await service.look(lambda connection: reads.driver(connection, driver_id))
        if driver.retired_at is not None:
            return Gaps([])
        gaps = await service.advice.gaps(driver_id, window, timedelta(minutes=at_least_minutes))
        return Gaps([WindowOut.of(gap) for gap in gaps])

    @get(
        "/{driver_id:int}/calendar.ics",
        media_type=ical.MEDIA_TYPE,
        responses=problems(HTTPStatus.NOT_FOUND),
        operation_id="driver_calendar",
    )
    async def calendar(
        self, driver_id: DriverPath, service: NamedDependency[Service]
    ) -> Response[bytes]:
        """A driver's bookings as iCalendar, for any calendar program."""

        async def work(connection: AsyncConnection) -> tuple[str, list[tuple[Booking, str]]]:
            name = (await reads.driver(connection, driver_id)).name
            since = datetime.now(UTC) - ical.KEEP
            return name, await reads.calendar(connection, since, driver_id=driver_id, rider_id=None)

        name, booked = await service.look(work)
        return ical.response(name, [(each, f"Drive {other}") for each, other in booked])


def _span(start: str, end: str) -> TimeWindow:
    """The window of a question; `InvalidInput` if it is longer than a month."""
    window = window_of(parse_instant(start, "start"), parse_instant(end, "end"))
    if window.duration > _SPAN_MAX:
        raise InvalidInput("The window is at most 31 days long.", field="end")
    return window
