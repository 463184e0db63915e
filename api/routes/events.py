"""`/events`: what happened, by the page or as it happens; and the trail of each booking."""

from http import HTTPStatus
from typing import Annotated

from litestar import Controller, get
from litestar.di import NamedDependency
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import HeaderParameter, PathParameter, QueryParameter
from litestar.response import ServerSentEvent
from sqlalchemy.ext.asyncio import AsyncConnection

from api.bodies.common import ID_MAX
from api.bodies.events import EventOut, EventsPage, Trail, TrailEntry
from api.requests import LimitQuery, OptionalIdQuery, StrictRequest
from api.responses import problems
from api.service import Service
from api.tokens import Tokens
from booking.events import BEGINNING, EventFilter
from booking.postgres import reads
from booking.postgres.events import EventPage, parse_cursor, read_events

BookingPath = Annotated[int, PathParameter(ge=1, le=ID_MAX)]
AfterQuery = Annotated[
    str | None,
    QueryParameter(
        max_length=40,
        description="Only what comes after this event: an `id`, or a `position`.",
    ),
]
LastEventHeader = Annotated[
    str | None,
    HeaderParameter(
        name="Last-Event-ID",
        max_length=40,
        description="The last event that was received; the stream goes on behind it.",
    ),
]
_STREAM = "text/event-stream"


class EventsController(Controller):
    """What happened to bookings, and who did it."""

    tags = ("events",)

    @get("/events", responses=problems(), operation_id="list_events")
    async def list(
        self,
        service: NamedDependency[Service],
        after: AfterQuery = None,
        booking_id: OptionalIdQuery = None,
        driver_id: OptionalIdQuery = None,
        rider_id: OptionalIdQuery = None,
        limit: LimitQuery = 100,
    ) -> EventsPage:
        """List what happened, in an order in which nothing is added before what was read.

        Read on behind `position`, now or later. A driver's events are those of their
        bookings, and those by which a booking was given to somebody else. Events appear
        once every transaction that began before theirs has ended.
        """
        start = BEGINNING if after is None else parse_cursor(after, "after")
        wanted = EventFilter(booking_id, driver_id, rider_id)
        page = await service.look(lambda c: read_events(c, start, wanted, limit=limit))
        return EventsPage(
            [EventOut.of(each) for each in page.events], str(page.position), page.more
        )

    @get(
        "/events/stream",
        media_type=_STREAM,
        responses=problems()
        | {
            HTTPStatus.OK: ResponseSpec(
                str,
                description="Server-sent events: `id`, `event` (the kind), and in `data` the"
                " event as `/events` lists it.",
                media_type=_STREAM,
                generate_examples=False,
            )
        },
        operation_id="follow_events",
    )
    async def stream(
        self,
        service: NamedDependency[Service],
        tokens: NamedDependency[Tokens],
        request: StrictRequest,
        after: AfterQuery = None,
        last_event_id: LastEventHeader = None,
        booking_id: OptionalIdQuery = None,
        driver_id: OptionalIdQuery = None,
        rider_id: OptionalIdQuery = None,
    ) -> ServerSentEvent:
        """Follow what happens, as server-sent events.

        It begins behind `Last-Event-ID`, else behind `after`, else with what happens
        from now on. Whoever is cut off goes on from the last `id` and misses nothing.
        Whoever does not keep up is cut off, and so is whose token is good for nothing any more.
        """
        field, begin = ("Last-Event-ID", last_event_id) if last_event_id else ("after", after)
        place = None if begin is None else parse_cursor(begin, field)
        start = await service.feed.check(place)
        wanted = EventFilter(booking_id, driver_id, rider_id)
        told = service.feed.stream(wanted, start)
        return ServerSentEvent(tokens.while_good(request.auth, told))

    @get(
        "/bookings/{booking_id:int}/events",
        responses=problems(HTTPStatus.NOT_FOUND),
        operation_id="get_booking_events",
    )
    async def trail(
        self,
        booking_id: BookingPath,
        service: NamedDependency[Service],
        after: AfterQuery = None,
        limit: LimitQuery = 100,
    ) -> Trail:
        """Read what happened to one booking: what, when, by whom, by which request, from where."""
        start = BEGINNING if after is None else parse_cursor(after, "after")

        async def work(connection: AsyncConnection) -> EventPage:
            wanted = EventFilter(booking_id)
            page = await read_events(connection, start, wanted, limit=limit)
            if not page.events:
                await reads.booking(connection, booking_id)
            return page

        page = await service.look(work)
        return Trail([TrailEntry.of(each) for each in page.events], str(page.position), page.more)
