"""`/drivers`: the fleet."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Annotated

from litestar import Controller, HttpMethod, Response, delete, get, patch, post, put, route
from litestar.di import NamedDependency
from litestar.params import JSONBody, PathParameter, QueryParameter
from msgspec import UNSET, convert, to_builtins
from msgspec.structs import asdict
from sqlalchemy.ext.asyncio import AsyncConnection

from api import ical
from api.bodies.bookings import BookingOut
from api.bodies.common import ID_MAX, WindowOut, window_of
from api.bodies.drivers import (
    Agenda,
    DriverChange,
    DriverIn,
    DriverOut,
    DriverPage,
    Gaps,
    ShiftsBody,
    ShiftsOut,
    StrandedOut,
    StrandProblem,
)
from api.bodies.problems import Problem
from api.idempotency import Command, KeyHeader
from api.pages import CursorQuery, page_of, read_id_cursor
from api.problems import problem_of
from api.requests import (
    EndQuery,
    LimitQuery,
    OptionalFleetQuery,
    StartQuery,
    StrictRequest,
    parse_instant,
)
from api.responses import LOCATION, body_problems, problem_spec, problems
from api.service import Service
from booking.bookings import Booking
from booking.drivers import Driver
from booking.errors import InvalidInput, ShiftsStrand, TaxiError
from booking.postgres import reads
from booking.postgres.ledger import add_driver, change_driver, retire_driver
from booking.postgres.terms import LaidDown, laid_down, set_shifts, set_turnaround
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
            lambda connection: add_driver(
                connection, data.name, data.fleet, data.zone, data.turnaround_s
            ),
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
        """Change a driver's name, zone or turnaround; what is left out stays.

        With another turnaround, what the driver's bookings to come block is fitted anew.
        None is refused: one that there is too little time for says so in `lead_short_s`.
        """
        name = None if data.name is UNSET else data.name
        zone = None if data.zone is UNSET else data.zone

        async def work(connection: AsyncConnection) -> Driver:
            changed = await change_driver(connection, driver_id, name=name, zone=zone)
            if data.turnaround_s is UNSET:
                return changed
            return await set_turnaround(service.ledger, connection, driver_id, data.turnaround_s)

        command = Command(work, DriverOut.of, note=service.advice.note_driver)
        return await service.commands.run(request, idempotency_key, command)

    @get(
        "/{driver_id:int}/shifts",
        responses=problems(HTTPStatus.NOT_FOUND),
        operation_id="get_shifts",
    )
    async def shifts(self, driver_id: DriverPath, service: NamedDependency[Service]) -> ShiftsOut:
        """Read a driver's working hours; without any, the driver can be booked at any time."""

        async def work(connection: AsyncConnection) -> LaidDown:
            return await laid_down(connection, driver_id)

        return shifts_out(await service.look(work))

    @put(
        "/{driver_id:int}/shifts",
        responses=body_problems(HTTPStatus.NOT_FOUND)
        | {409: problem_spec(HTTPStatus.CONFLICT, StrandProblem)},
        operation_id="set_shifts",
    )
    async def set_shifts(
        self,
        driver_id: DriverPath,
        data: JSONBody[ShiftsBody],
        service: NamedDependency[Service],
        request: StrictRequest,
        strand: Annotated[
            bool | None, QueryParameter(description="Let bookings stay that would lie outside.")
        ] = None,
        idempotency_key: KeyHeader = None,
    ) -> Response[ShiftsOut]:
        """Lay down working hours, breaks and time off, by the clock of the driver's zone.

        If bookings to come would lie outside, nothing is changed and the answer names them,
        unless `strand=true` says that they may stay.
        """
        document = to_builtins(data)
        command = Command(
            lambda connection: set_shifts(connection, driver_id, document, strand=bool(strand)),
            shifts_out,
            explain=_explain_strands,
            note=lambda laid: service.advice.note_driver(laid.driver),
        )
        return await service.commands.run(request, idempotency_key, command)

    @delete(
        "/{driver_id:int}/shifts",
        status_code=HTTPStatus.OK,
        responses=problems(HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT),
        operation_id="drop_shifts",
    )
    async def drop_shifts(
        self,
        driver_id: DriverPath,
        service: NamedDependency[Service],
        request: StrictRequest,
        idempotency_key: KeyHeader = None,
    ) -> Response[ShiftsOut]:
        """Lay down no working hours: the driver can be booked at any time."""
        command = Command(
            lambda connection: set_shifts(connection, driver_id, None, strand=True),
            shifts_out,
            note=lambda laid: service.advice.note_driver(laid.driver),
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
        responses=problems(HTTPStatus.NOT_FOUND) | ical.NOT_MODIFIED,
        response_headers=[ical.ETAG],
        operation_id="driver_calendar",
    )
    async def calendar(
        self,
        driver_id: DriverPath,
        service: NamedDependency[Service],
        if_none_match: ical.SeenHeader = None,
    ) -> Response[bytes]:
        """A driver's bookings as iCalendar, for any calendar program.

        What was given to another driver is in it as cancelled.
        """
        return await driver_feed(service, driver_id, if_none_match)

    @route(
        "/{driver_id:int}/calendar.ics",
        http_method=HttpMethod.HEAD,
        media_type=ical.MEDIA_TYPE,
        include_in_schema=False,
    )
    async def calendar_head(
        self,
        driver_id: DriverPath,
        service: NamedDependency[Service],
        if_none_match: ical.SeenHeader = None,
    ) -> Response[bytes]:
        """Answer as `calendar` does; the server leaves the body out."""
        return await driver_feed(service, driver_id, if_none_match)


async def driver_feed(service: Service, driver_id: int, seen: str | None) -> Response[bytes]:
    """A driver's calendar, unless it is the one that was seen. Raises `UnknownDriver`."""

    async def work(connection: AsyncConnection) -> tuple[str, list[tuple[Booking, str]]]:
        name = (await reads.driver(connection, driver_id)).name
        since = datetime.now(UTC) - ical.KEEP
        has = await reads.calendar(connection, since, driver_id=driver_id, rider_id=None)
        return name, has + await reads.given_away(connection, since, driver_id)

    # As of one moment, or a booking on its way from one to the other would be in neither.
    name, booked = await service.database.transact(
        work, isolation="REPEATABLE READ", read_only=True
    )
    events = [(each, f"Drive {other}") for each, other in booked]
    return ical.response(name, events, seen)


def shifts_out(laid: LaidDown) -> ShiftsOut:
    """Working hours as they go over the wire."""
    shifts = None if laid.shifts is None else convert(laid.shifts.as_dict(), ShiftsBody)
    return ShiftsOut(shifts, laid.driver.zone, [StrandedOut.of(each) for each in laid.stranded])


async def _explain_strands(error: TaxiError) -> Problem:
    problem = problem_of(error)
    if not isinstance(error, ShiftsStrand):
        return problem
    stranded = [StrandedOut.of(each) for each in error.stranded]
    return StrandProblem(**asdict(problem), stranded=stranded)


def _span(start: str, end: str) -> TimeWindow:
    """The window of a question; `InvalidInput` if it is longer than a month."""
    window = window_of(parse_instant(start, "start"), parse_instant(end, "end"))
    if window.duration > _SPAN_MAX:
        raise InvalidInput("The window is at most 31 days long.", field="end")
    return window
