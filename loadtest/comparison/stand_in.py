"""Puts another handler in the place of `POST /bookings`, in an application that is else the same.

So that two ways of answering one request can be compared: the same server, the
same middleware, the same checks of the body, the same people in the database.
"""

import socket
import sys
from http import HTTPStatus
from typing import cast, override

import msgspec
import uvicorn
from litestar import Response
from litestar.enums import ScopeType
from litestar.handlers import HTTPRouteHandler
from litestar.types import ASGIApp, Receive, Scope, Send

from api.app import create_app
from api.bodies.bookings import BookingOut
from api.idempotency import Answer
from api.settings import Settings
from booking.bookings import Booking

_BACKLOG = 2_048

STANDS_IN_FOR = "book"
"""The operation whose place a handler takes: those may call it who may call that."""


def stand_in(settings: Settings, path: str, handler: HTTPRouteHandler) -> ASGIApp:
    """The service on the database that `settings` name, with `handler`, whose path is given."""
    app = create_app(settings)
    app.register(handler)
    raw_path = path.encode()

    async def redirect(scope: Scope, receive: Receive, send: Send) -> None:
        if (
            scope["type"] == ScopeType.HTTP
            and scope["path"] == "/bookings"
            and scope["method"] == "POST"
        ):
            scope["path"], scope["raw_path"] = path, raw_path
        await app(scope, receive, send)

    return redirect


def as_booked(booking: Booking) -> Response[BookingOut]:
    """The answer to a request to book that was met, as the service gives it."""
    body = msgspec.json.encode(BookingOut.of(booking))
    answer = Answer(HTTPStatus.CREATED, body, f"/bookings/{booking.id}").response()
    return cast("Response[BookingOut]", answer)


class _Announcing(uvicorn.Server):
    """Says where it serves, once the application has started."""

    @override
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listener in sockets or ():
            sys.stdout.write(f"Serving on http://127.0.0.1:{listener.getsockname()[1]}\n")
            sys.stdout.flush()


def main() -> None:
    """Serve the application that the module named on the command line makes, as `taxi serve` does.

    Says where, on any free port, and runs until it is told to stop.
    """
    with socket.create_server(("127.0.0.1", 0), backlog=_BACKLOG) as listener:
        config = uvicorn.Config(
            f"loadtest.comparison.{sys.argv[1]}:from_environment",
            factory=True,
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=10,
        )
        _Announcing(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
