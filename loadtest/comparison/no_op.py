"""The ceiling of the service: booking that does nothing, behind all that lies before it.

Everything else is the service's own: the server, the middleware, the decoding
and checking of the body, the encoding of the answer. What a recipe loses
against this is what recording a booking durably costs.
"""

from datetime import UTC, datetime
from itertools import count

from litestar import Response, post
from litestar.di import NamedDependency
from litestar.types import ASGIApp

from api.bodies.bookings import BookingOut
from api.idempotency import KeyHeader
from api.requests import StrictRequest
from api.routes.bookings import BookingBody
from api.service import Service
from api.settings import read_settings
from booking.bookings import Booking, BookingState
from loadtest.comparison.stand_in import STANDS_IN_FOR, as_booked, stand_in

PATH = "/no-op"
_numbers = count(1)


@post(PATH, include_in_schema=False, operation_id=STANDS_IN_FOR)
async def book_nothing(
    data: BookingBody,
    service: NamedDependency[Service],
    request: StrictRequest,
    idempotency_key: KeyHeader = None,
) -> Response[BookingOut]:
    """Answer as if it were booked."""
    del service, request, idempotency_key  # injected as they are for the real one
    wanted = data.request()
    booking = Booking(
        id=next(_numbers),
        driver_id=wanted.driver_id or 1,
        rider_id=wanted.rider_id,
        state=BookingState.CONFIRMED,
        start=wanted.window.start,
        predicted_end=wanted.window.end,
        created_at=datetime.now(UTC),
    )
    return as_booked(booking)


def from_environment() -> ASGIApp:
    """The application: what a server process is pointed at."""
    return stand_in(read_settings(), PATH, book_nothing)
