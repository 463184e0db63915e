"""Who is at work, and by which request: found out once, at the edge of the service."""

from typing import Any

from litestar.enums import ScopeType
from litestar.types import ASGIApp, Receive, Scope, Send

from api.request_ids import REQUEST_ID
from booking.postgres.attribution import Attribution, attribute

ANONYMOUS = "anonymous"
"""The actor of a request that says nothing of who sends it."""


def attributing(app: ASGIApp) -> ASGIApp:
    """Middleware: what `app` does is attributed to whoever sent the request.

    It must stand behind whatever finds out who that is and puts it into the scope as
    `user`, with an `account_id` and a `role`.
    """

    async def attributed(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == ScopeType.HTTP:
            client = scope.get("client")
            origin = None if client is None else client[0]
            attribute(Attribution(_actor(scope.get("user")), REQUEST_ID.get(), origin))
        await app(scope, receive, send)

    return attributed


def _actor(user: Any) -> str:
    account_id = getattr(user, "account_id", None)
    return ANONYMOUS if account_id is None else f"account:{account_id} {user.role}"
