"""`/bookings`: the reason for all the rest."""

from http import HTTPStatus
from typing import Annotated

from litestar import Controller, Response, get, post
from litestar.di import NamedDependency
from litestar.enums import RequestEncodingType
from litestar.openapi.spec import Example
from litestar.params import BodyKwarg, JSONBody, PathParameter, QueryParameter
from sqlalchemy.ext.asyncio import AsyncConnection

from api import metrics
from api.idempotency import Command, KeyHeader
from api.pages import CursorQuery, page_of, read_start_cursor
from api.requests import (
    LimitQuery,
    OptionalEndQuery,
    OptionalFleetQuery,
    OptionalIdQuery,
    OptionalStartQuery,
    StrictRequest,
    parse_instant,
)
from api.responses import LOCATION, BodyMayBeLeftOut, body_problems, booking_problems, problems
from api.service import Service
from api.structs import (
    ID_MAX,
    BookingIn,
    BookingOut,
    BookingPage,
    Cancellation,
    Check,
    Conflict,
    Happened,
    NewTime,
    window_of,
)
from booking.bookings import BookingState
from booking.calendars import Held
from booking.errors import DriverRetired
from booking.postgres import reads

BookingPath = Annotated[int, PathParameter(ge=1, le=ID_MAX)]


BookingBody = Annotated[
    BookingIn,
    BodyKwarg(
        media_type=RequestEncodingType.JSON,
        examples=[
            Example(
                summary="Any free driver",
                value={
                    "rider_id": 1,
                    "start": "2026-12-01T09:00:00Z",
                    "predicted_end": "2026-12-01T09:30:00Z",
                },
            ),
            Example(
                summary="One driver",
                value={
                    "rider_id": 1,
                    "driver_id": 1,
                    "start": "2026-12-01T12:00:00+01:00",
                    "predicted_end": "2026-12-01T12:30:00+01:00",
                },
            ),
        ],
    ),
]


class BookingsController(Controller):
    """Who drives whom, and when."""

    path = "/bookings"
    tags = ("bookings",)

    @post(
        responses=booking_problems(HTTPStatus.NOT_FOUND),
        response_headers=[LOCATION],
        operation_id="book",
    )
    async def book(
        self,
        data: BookingBody,
        service: NamedDependency[Service],
        request: StrictRequest,
        idempotency_key: KeyHeader = None,
    ) -> Response[BookingOut]:
        """Book a driver, or any free driver of a fleet.

        Leave out `driver_id` to have any driver who is free for the whole time.
        A refusal names the bookings in the way and offers what is free instead.
        """
        wanted = data.request()
        command = Command(
            lambda connection: service.ledger.book_in(connection, wanted),
            BookingOut.of,
            explain=lambda error: service.explain(error, wanted),
            alone=lambda: service.ledger.book(wanted),
            note=service.advice.note,
            status=HTTPStatus.CREATED,
            collection="/bookings",
        )
        return await metrics.count_booking(service.commands.run(request, idempotency_key, command))

    @post(
        "/check",
        status_code=HTTPStatus.OK,
        responses=body_problems(HTTPStatus.NOT_FOUND),
        operation_id="check_booking",
    )
    async def check(self, data: BookingBody, service: NamedDependency[Service]) -> Check:
        """Say what a booking would meet if it were made now. Nothing is recorded or held."""
        wanted = data.request()

        async def work(connection: AsyncConnection) -> list[Held]:
            await reads.rider(connection, wanted.rider_id)
            if wanted.driver_id is None:
                return []
            driver = await reads.driver(connection, wanted.driver_id)
            if driver.retired_at is not None:
                raise DriverRetired(f"Driver {driver.id} has retired.", field="driver_id")
            return await reads.conflicts_of(connection, wanted.driver_id, wanted.window)

        conflicts = await service.look(work)
        next_free, free_drivers = await service.alternatives(wanted, conflicts)
        nobody = wanted.driver_id is None and not free_drivers
        return Check(
            would_conflict=bool(conflicts) or nobody,
            conflicts=[Conflict.of(held) for held in conflicts],
            next_free=next_free,
            free_drivers=free_drivers,
        )

    @get(responses=problems(), operation_id="list_bookings")
    async def list(
        self,
        service: NamedDependency[Service],
        driver_id: OptionalIdQuery = None,
        rider_id: OptionalIdQuery = None,
        fleet: OptionalFleetQuery = None,
        booking_state: Annotated[BookingState | None, QueryParameter(name="state")] = None,
        start: OptionalStartQuery = None,
        end: OptionalEndQuery = None,
        limit: LimitQuery = 100,
        cursor: CursorQuery = None,
    ) -> BookingPage:
        """List bookings in order of start; a booking must overlap `[start, end)`, if given."""
        after = read_start_cursor(cursor)
        from_ = None if start is None else parse_instant(start, "start")
        until = None if end is None else parse_instant(end, "end")
        if from_ is not None and until is not None:
            window_of(from_, until)
        wanted = reads.BookingFilter(driver_id, rider_id, booking_state, from_, until, fleet)
        rows = await service.look(
            lambda connection: reads.list_bookings(connection, wanted, after=after, limit=limit + 1)
        )
        return page_of(
            BookingPage, rows, limit, BookingOut.of, lambda booking: (booking.start, booking.id)
        )

    @get("/{booking_id:int}", responses=problems(HTTPStatus.NOT_FOUND), operation_id="get_booking")
    async def read(self, booking_id: BookingPath, service: NamedDependency[Service]) -> BookingOut:
        """Read one booking."""
        return BookingOut.of(await service.look(lambda c: reads.booking(c, booking_id)))

    @post(
        "/{booking_id:int}/cancel",
        status_code=HTTPStatus.OK,
        responses=body_problems(HTTPStatus.NOT_FOUND),
        operation_id="cancel_booking",
        operation_class=BodyMayBeLeftOut,
    )
    async def cancel(
        self,
        booking_id: BookingPath,
        service: NamedDependency[Service],
        request: StrictRequest,
        data: JSONBody[Cancellation] | None = None,
        idempotency_key: KeyHeader = None,
    ) -> Response[BookingOut]:
        """Cancel a booking that is not finished; its time is free at once."""
        reason = None if data is None else data.reason
        command = Command(
            lambda connection: service.ledger.change_state_in(
                connection, booking_id, BookingState.CANCELLED, reason=reason
            ),
            BookingOut.of,
            note=service.advice.note,
        )
        return await service.commands.run(request, idempotency_key, command)

    @post(
        "/{booking_id:int}/reschedule",
        status_code=HTTPStatus.OK,
        responses=booking_problems(HTTPStatus.NOT_FOUND),
        operation_id="reschedule_booking",
    )
    async def reschedule(
        self,
        booking_id: BookingPath,
        data: JSONBody[NewTime],
        service: NamedDependency[Service],
        request: StrictRequest,
        idempotency_key: KeyHeader = None,
    ) -> Response[BookingOut]:
        """Move a booking to another time of the same driver, or leave it where it is.

        The old time is free once the new one is held. A booking is not in its own
        way, so it can be moved by less than it lasts.
        """
        window = window_of(data.start, data.predicted_end, end_field="predicted_end")
        command = Command(
            lambda connection: service.ledger.reschedule_in(connection, booking_id, window),
            BookingOut.of,
            explain=lambda error: service.explain_move(error, booking_id, window),
            note=service.advice.note,
        )
        return await service.commands.run(request, idempotency_key, command)

    @post(
        "/{booking_id:int}/start",
        status_code=HTTPStatus.OK,
        responses=body_problems(HTTPStatus.NOT_FOUND),
        operation_id="start_booking",
        operation_class=BodyMayBeLeftOut,
    )
    async def start(
        self,
        booking_id: BookingPath,
        service: NamedDependency[Service],
        request: StrictRequest,
        data: JSONBody[Happened] | None = None,
        idempotency_key: KeyHeader = None,
    ) -> Response[BookingOut]:
        """Say that the trip has started, now or at `at`."""
        return await _happened(
            service, request, idempotency_key, booking_id, BookingState.IN_PROGRESS, data
        )

    @post(
        "/{booking_id:int}/complete",
        status_code=HTTPStatus.OK,
        responses=body_problems(HTTPStatus.NOT_FOUND),
        operation_id="complete_booking",
        operation_class=BodyMayBeLeftOut,
    )
    async def complete(
        self,
        booking_id: BookingPath,
        service: NamedDependency[Service],
        request: StrictRequest,
        data: JSONBody[Happened] | None = None,
        idempotency_key: KeyHeader = None,
    ) -> Response[BookingOut]:
        """Say that the trip has ended, now or at `at`; what is left of its time is free at once."""
        return await _happened(
            service, request, idempotency_key, booking_id, BookingState.COMPLETED, data
        )


async def _happened(
    service: Service,
    request: StrictRequest,
    key: str | None,
    booking_id: int,
    state: BookingState,
    data: Happened | None,
) -> Response[BookingOut]:
    at = None if data is None else data.at
    command = Command(
        lambda connection: service.ledger.change_state_in(connection, booking_id, state, at),
        BookingOut.of,
        note=service.advice.note,
    )
    return await service.commands.run(request, key, command)
