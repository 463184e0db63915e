"""`/bookings`: the reason for all the rest."""

from datetime import datetime
from http import HTTPStatus
from typing import Annotated

from litestar import Controller, Response, get, post
from litestar.di import NamedDependency
from litestar.enums import RequestEncodingType
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import Example
from litestar.params import (
    BodyKwarg,
    HeaderParameter,
    JSONBody,
    PathParameter,
    QueryParameter,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from api import metrics
from api.access import narrowed, shown
from api.bodies.bookings import (
    BookingIn,
    BookingOut,
    BookingPage,
    Cancellation,
    Check,
    Conflict,
    Happened,
    NewDriver,
    NewEnd,
    NewTime,
    OverrunOut,
)
from api.bodies.common import ID_MAX, window_of
from api.idempotency import Command, KeyHeader
from api.pages import CursorQuery, page_of, read_start_cursor
from api.patterns import ENTITY_TAG
from api.requests import (
    LimitQuery,
    OptionalEndQuery,
    OptionalFlagQuery,
    OptionalFleetQuery,
    OptionalIdQuery,
    OptionalStartQuery,
    StrictRequest,
    parse_instant,
)
from api.responses import (
    ETAG,
    LOCATION,
    BodyMayBeLeftOut,
    body_problems,
    booking_problems,
    problems,
)
from api.service import Service
from booking.bookings import Booking, BookingState
from booking.errors import BookingConflict
from booking.postgres import reads
from booking.postgres.overruns import Overrun, report_end_in
from booking.postgres.terms import judge
from booking.time_window import utc

BookingPath = Annotated[int, PathParameter(ge=1, le=ID_MAX)]
IfMatchHeader = Annotated[
    str | None,
    HeaderParameter(
        name="If-Match",
        pattern=ENTITY_TAG,
        description="The `ETag` of the booking as it was seen. If it has been changed since,"
        " nothing is done, and the answer is a 412.",
    ),
]


def etag_of(booking: Booking | Overrun) -> str:
    """The version of a booking as an entity tag (RFC 9110, section 8.8.3)."""
    return f'"{booking.version}"'


def version_of(if_match: str | None) -> int | None:
    """The version that a request insists on; None if any will do."""
    return None if if_match in {None, "*"} else int(str(if_match).strip('"'))


def _step_problems() -> dict[int, ResponseSpec]:
    return body_problems(HTTPStatus.NOT_FOUND, HTTPStatus.PRECONDITION_FAILED)


def _move_problems() -> dict[int, ResponseSpec]:
    return booking_problems(HTTPStatus.NOT_FOUND, HTTPStatus.PRECONDITION_FAILED)


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
        response_headers=[LOCATION, ETAG],
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
        With `hold_s` the time is held, and lost if the booking is not confirmed by then.
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
            etag=etag_of,
            takes_time=True,
        )
        return await metrics.count_booking(service.commands.run(request, idempotency_key, command))

    @post(
        "/check",
        status_code=HTTPStatus.OK,
        responses=body_problems(HTTPStatus.NOT_FOUND),
        operation_id="check_booking",
    )
    async def check(
        self, data: BookingBody, service: NamedDependency[Service], request: StrictRequest
    ) -> Check:
        """Say what a booking would meet if it were made now. Nothing is recorded or held."""
        wanted = data.request()

        async def work(connection: AsyncConnection) -> BookingConflict | None:
            await reads.rider(connection, wanted.rider_id)
            if wanted.driver_id is None:
                return None
            try:
                await judge(service.ledger.travel_times, connection, wanted)
            except BookingConflict as refusal:
                return refusal
            return None

        refusal = await service.look(work)
        conflicts = () if refusal is None else refusal.conflicts
        next_free, free_drivers = await service.alternatives(wanted, conflicts)
        nobody = wanted.driver_id is None and not free_drivers
        found = Check(
            would_conflict=refusal is not None or nobody,
            reason=None if refusal is None else refusal.reason,
            conflicts=[Conflict.of(held) for held in conflicts],
            next_free=next_free,
            free_drivers=free_drivers,
        )
        return shown(request.user, found)

    @get(responses=problems(), operation_id="list_bookings")
    async def list(
        self,
        service: NamedDependency[Service],
        request: StrictRequest,
        driver_id: OptionalIdQuery = None,
        rider_id: OptionalIdQuery = None,
        fleet: OptionalFleetQuery = None,
        booking_state: Annotated[BookingState | None, QueryParameter(name="state")] = None,
        at_risk: OptionalFlagQuery = None,
        start: OptionalStartQuery = None,
        end: OptionalEndQuery = None,
        limit: LimitQuery = 100,
        cursor: CursorQuery = None,
    ) -> BookingPage:
        """List bookings in order of `blocked_from`; what one blocks overlaps `[start, end)`.

        Riders and drivers see their own. With `at_risk=true`, only those that will start later
        than promised.
        """
        after = read_start_cursor(cursor)
        from_ = None if start is None else parse_instant(start, "start")
        until = None if end is None else parse_instant(end, "end")
        if from_ is not None and until is not None:
            window_of(from_, until)
        asked = reads.BookingFilter(
            driver_id, rider_id, booking_state, from_, until, fleet, at_risk
        )
        wanted = narrowed(request.scope, asked)
        if wanted is None:
            return BookingPage([], None)
        rows = await service.look(
            lambda connection: reads.list_bookings(connection, wanted, after=after, limit=limit + 1)
        )
        return page_of(
            BookingPage, rows, limit, BookingOut.of, lambda each: (each.window.start, each.id)
        )

    @get(
        "/{booking_id:int}",
        responses=problems(HTTPStatus.NOT_FOUND),
        response_headers=[ETAG],
        operation_id="get_booking",
    )
    async def read(
        self, booking_id: BookingPath, service: NamedDependency[Service]
    ) -> Response[BookingOut]:
        """Read one booking."""
        booking = await service.look(lambda c: reads.booking(c, booking_id))
        return Response(BookingOut.of(booking), headers={"ETag": etag_of(booking)})

    @post(
        "/{booking_id:int}/confirm",
        status_code=HTTPStatus.OK,
        responses=_step_problems(),
        response_headers=[ETAG],
        operation_id="confirm_booking",
    )
    async def confirm(
        self,
        booking_id: BookingPath,
        service: NamedDependency[Service],
        request: StrictRequest,
        if_match: IfMatchHeader = None,
        idempotency_key: KeyHeader = None,
    ) -> Response[BookingOut]:
        """Confirm a booking whose time is held, before the hold lapses."""
        return await _step(
            service, request, idempotency_key, if_match, booking_id, BookingState.CONFIRMED
        )

    @post(
        "/{booking_id:int}/cancel",
        status_code=HTTPStatus.OK,
        responses=_step_problems(),
        response_headers=[ETAG],
        operation_id="cancel_booking",
        operation_class=BodyMayBeLeftOut,
    )
    async def cancel(
        self,
        booking_id: BookingPath,
        service: NamedDependency[Service],
        request: StrictRequest,
        data: JSONBody[Cancellation] | None = None,
        if_match: IfMatchHeader = None,
        idempotency_key: KeyHeader = None,
    ) -> Response[BookingOut]:
        """Cancel a booking that is not finished; its time is free at once."""
        reason = None if data is None else data.reason
        return await _step(
            service,
            request,
            idempotency_key,
            if_match,
            booking_id,
            BookingState.CANCELLED,
            reason=reason,
        )

    @post(
        "/{booking_id:int}/reschedule",
        status_code=HTTPStatus.OK,
        responses=_move_problems(),
        response_headers=[ETAG],
        operation_id="reschedule_booking",
    )
    async def reschedule(
        self,
        booking_id: BookingPath,
        data: JSONBody[NewTime],
        service: NamedDependency[Service],
        request: StrictRequest,
        if_match: IfMatchHeader = None,
        idempotency_key: KeyHeader = None,
    ) -> Response[BookingOut]:
        """Move a booking to another time of the same driver, or leave it where it is.

        The old time is free once the new one is held. A booking is not in its own
        way, so it can be moved by less than it lasts.
        """
        window = window_of(data.start, data.predicted_end, end_field="predicted_end")
        version = version_of(if_match)
        command = Command(
            lambda connection: service.ledger.reschedule_in(
                connection, booking_id, window, version
            ),
            BookingOut.of,
            explain=lambda error: service.explain_move(error, booking_id, window),
            note=service.advice.note,
            etag=etag_of,
            takes_time=True,
        )
        return await service.commands.run(request, idempotency_key, command)

    @post(
        "/{booking_id:int}/reassign",
        status_code=HTTPStatus.OK,
        responses=_move_problems(),
        response_headers=[ETAG],
        operation_id="reassign_booking",
        operation_class=BodyMayBeLeftOut,
    )
    async def reassign(
        self,
        booking_id: BookingPath,
        service: NamedDependency[Service],
        request: StrictRequest,
        data: JSONBody[NewDriver] | None = None,
        if_match: IfMatchHeader = None,
        idempotency_key: KeyHeader = None,
    ) -> Response[BookingOut]:
        """Give a booking to another driver, or to whoever of the fleet is free.

        The time stays. The old driver is free once the new one is booked; if the new
        one is not free, nothing changes.
        """
        driver_id = None if data is None else data.driver_id
        version = version_of(if_match)
        command = Command(
            lambda connection: service.ledger.reassign_in(
                connection, booking_id, driver_id, version
            ),
            BookingOut.of,
            explain=lambda error: service.explain_reassignment(error, booking_id, driver_id),
            note=service.advice.note,
            etag=etag_of,
        )
        return await service.commands.run(request, idempotency_key, command)

    @post(
        "/{booking_id:int}/start",
        status_code=HTTPStatus.OK,
        responses=_step_problems(),
        response_headers=[ETAG],
        operation_id="start_booking",
        operation_class=BodyMayBeLeftOut,
    )
    async def start(
        self,
        booking_id: BookingPath,
        service: NamedDependency[Service],
        request: StrictRequest,
        data: JSONBody[Happened] | None = None,
        if_match: IfMatchHeader = None,
        idempotency_key: KeyHeader = None,
    ) -> Response[BookingOut]:
        """Say that the trip has started, now or at `at`."""
        return await _step(
            service,
            request,
            idempotency_key,
            if_match,
            booking_id,
            BookingState.IN_PROGRESS,
            at=_at(data),
        )

    @post(
        "/{booking_id:int}/predict-end",
        status_code=HTTPStatus.OK,
        responses=_step_problems(),
        response_headers=[ETAG],
        operation_id="predict_end",
    )
    async def predict_end(
        self,
        booking_id: BookingPath,
        data: JSONBody[NewEnd],
        service: NamedDependency[Service],
        request: StrictRequest,
        if_match: IfMatchHeader = None,
        idempotency_key: KeyHeader = None,
    ) -> Response[OverrunOut]:
        """Say when a trip that is under way will end, and save what can be saved behind it.

        The driver's next bookings are worked out again, and those at risk wait, are
        pushed back, go to another driver or are left to a dispatcher, all at once.
        """
        end, version = utc(data.predicted_end, "predicted_end"), version_of(if_match)
        command = Command(
            lambda connection: report_end_in(
                service.ledger, connection, booking_id, end, service.policy, version
            ),
            OverrunOut.of,
            note=service.note_overrun,
            etag=etag_of,
        )
        return await service.commands.run(request, idempotency_key, command)

    @post(
        "/{booking_id:int}/complete",
        status_code=HTTPStatus.OK,
        responses=_step_problems(),
        response_headers=[ETAG],
        operation_id="complete_booking",
        operation_class=BodyMayBeLeftOut,
    )
    async def complete(
        self,
        booking_id: BookingPath,
        service: NamedDependency[Service],
        request: StrictRequest,
        data: JSONBody[Happened] | None = None,
        if_match: IfMatchHeader = None,
        idempotency_key: KeyHeader = None,
    ) -> Response[BookingOut]:
        """Say that the trip has ended, now or at `at`; what is left of its time is free at once."""
        return await _step(
            service,
            request,
            idempotency_key,
            if_match,
            booking_id,
            BookingState.COMPLETED,
            at=_at(data),
        )

    @post(
        "/{booking_id:int}/no-show",
        status_code=HTTPStatus.OK,
        responses=_step_problems(),
        response_headers=[ETAG],
        operation_id="report_no_show",
        operation_class=BodyMayBeLeftOut,
    )
    async def no_show(
        self,
        booking_id: BookingPath,
        service: NamedDependency[Service],
        request: StrictRequest,
        data: JSONBody[Happened] | None = None,
        if_match: IfMatchHeader = None,
        idempotency_key: KeyHeader = None,
    ) -> Response[BookingOut]:
        """Say that the rider was not there, from the booking's start on; its time is free."""
        return await _step(
            service,
            request,
            idempotency_key,
            if_match,
            booking_id,
            BookingState.NO_SHOW,
            at=_at(data),
        )


def _at(data: Happened | None) -> datetime | None:
    return None if data is None else data.at


async def _step(
    service: Service,
    request: StrictRequest,
    key: str | None,
    if_match: str | None,
    booking_id: int,
    state: BookingState,
    *,
    at: datetime | None = None,
    reason: str | None = None,
) -> Response[BookingOut]:
    version = version_of(if_match)
    command = Command(
        lambda connection: service.ledger.change_state_in(
            connection, booking_id, state, at, reason, version
        ),
        BookingOut.of,
        note=service.advice.note,
        etag=etag_of,
    )
    return await service.commands.run(request, key, command)
