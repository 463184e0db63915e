"""`/waiting-list`: time that is taken, offered in order when it becomes free."""

from http import HTTPStatus
from typing import Annotated

from litestar import Controller, Response, get, post
from litestar.di import NamedDependency
from litestar.enums import RequestEncodingType
from litestar.openapi.spec import Example
from litestar.params import BodyKwarg, PathParameter, QueryParameter

from api.access import narrowed
from api.bodies.common import ID_MAX
from api.bodies.waiting_list import WaitingIn, WaitingOut, WaitingPage
from api.idempotency import Command, KeyHeader
from api.pages import CursorQuery, page_of, read_id_cursor
from api.requests import LimitQuery, OptionalFleetQuery, OptionalIdQuery, StrictRequest
from api.responses import LOCATION, body_problems, problems
from api.service import Service
from booking.postgres.waiting import EntryFilter, list_entries, read_entry
from booking.waiting import WaitingState

EntryPath = Annotated[int, PathParameter(ge=1, le=ID_MAX)]
WaitingBody = Annotated[
    WaitingIn,
    BodyKwarg(
        media_type=RequestEncodingType.JSON,
        examples=[
            Example(
                summary="Any driver of the fleet",
                value={
                    "rider_id": 1,
                    "start": "2026-12-01T09:00:00Z",
                    "predicted_end": "2026-12-01T09:30:00Z",
                },
            )
        ],
    ),
]


class WaitingListController(Controller):
    """Who waits for time that is taken."""

    path = "/waiting-list"
    tags = ("waiting list",)

    @post(
        responses=body_problems(HTTPStatus.NOT_FOUND),
        response_headers=[LOCATION],
        operation_id="join_waiting_list",
    )
    async def join(
        self,
        data: WaitingBody,
        service: NamedDependency[Service],
        request: StrictRequest,
        idempotency_key: KeyHeader = None,
    ) -> Response[WaitingOut]:
        """Wait for time of a driver or, without `driver_id`, of any driver of a fleet.

        When it becomes free, it is held for the first in the queue: the entry is `offered`,
        with a booking to be confirmed by `offer_expires_at`. After that the next is asked.
        Time that is free already is offered at once.
        """
        wanted = data.request()
        command = Command(
            lambda connection: service.waiting_list.join_in(connection, wanted),
            WaitingOut.of,
            status=HTTPStatus.CREATED,
            collection="/waiting-list",
            takes_time=True,
        )
        return await service.commands.run(request, idempotency_key, command)

    @get(responses=problems(), operation_id="list_waiting")
    async def list(
        self,
        service: NamedDependency[Service],
        request: StrictRequest,
        rider_id: OptionalIdQuery = None,
        driver_id: OptionalIdQuery = None,
        fleet: OptionalFleetQuery = None,
        waiting_state: Annotated[WaitingState | None, QueryParameter(name="state")] = None,
        limit: LimitQuery = 100,
        cursor: CursorQuery = None,
    ) -> WaitingPage:
        """List entries in order of joining, which is the order in which they are asked."""
        after = read_id_cursor(cursor)
        asked = EntryFilter(rider_id, driver_id, fleet, waiting_state)
        wanted = narrowed(request.scope, asked)
        if wanted is None:
            return WaitingPage([], None)
        rows = await service.look(
            lambda connection: list_entries(connection, wanted, after=after, limit=limit + 1)
        )
        return page_of(WaitingPage, rows, limit, WaitingOut.of, lambda entry: entry.id)

    @get(
        "/{entry_id:int}",
        responses=problems(HTTPStatus.NOT_FOUND),
        operation_id="get_waiting_entry",
    )
    async def read(self, entry_id: EntryPath, service: NamedDependency[Service]) -> WaitingOut:
        """Read one entry: whether it still waits, and what was offered."""
        return WaitingOut.of(await service.look(lambda c: read_entry(c, entry_id)))

    @post(
        "/{entry_id:int}/withdraw",
        status_code=HTTPStatus.OK,
        responses=problems(HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT),
        operation_id="withdraw_from_waiting_list",
    )
    async def withdraw(
        self,
        entry_id: EntryPath,
        service: NamedDependency[Service],
        request: StrictRequest,
        idempotency_key: KeyHeader = None,
    ) -> Response[WaitingOut]:
        """Wait no longer, or decline what was offered; the next in the queue is asked then."""
        command = Command(
            lambda connection: service.waiting_list.withdraw_in(connection, entry_id),
            WaitingOut.of,
        )
        return await service.commands.run(request, idempotency_key, command)
