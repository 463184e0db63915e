"""The doors that every request goes through, and Litestar's plugin that puts them there.

They stand at the application: no route, no controller and no router can leave them out. They
are middlewares and no guards, as a guard is given a copy of its route's handler each time.
"""

from typing import override

from litestar.config.app import AppConfig
from litestar.di import Provide
from litestar.handlers import HTTPRouteHandler
from litestar.middleware import DefineMiddleware
from litestar.openapi.spec import Components, SecurityScheme
from litestar.plugins import InitPlugin, ReceiveRoutePlugin
from litestar.routes import HTTPRoute
from litestar.routes.base import BaseRoute
from litestar.stores.memory import MemoryStore
from litestar.types import ASGIApp, Receive, Scope, Send

from api.access import Look, Open, check_path, document, is_loopback, is_narrow, rule_of
from api.attribution import attributing
from api.limits import STORE, limits
from api.passwords import Passwords
from api.problems import refuse
from api.routes.accounts import (
    AccountsController,
    CalendarLinksController,
    SignedInController,
)
from api.settings import Settings
from api.tokens import Tokens
from booking.errors import NotAllowed, NotSignedIn, TaxiError
from booking.postgres.database import Database


class Door:
    """The first door: who is it, and may somebody of that role do this at all?

    The one who asks is in `request.user` from here on: a `Principal`, or None. Their token
    is in `request.auth`, for what outlasts this look at it.
    """

    def __init__(self, app: ASGIApp, tokens: Tokens) -> None:
        self._app = app
        self._tokens = tokens

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the request pass, or answer it."""
        scope["user"] = scope["auth"] = None
        try:
            await self._admit(scope)
        except TaxiError as error:
            await refuse(error, scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _admit(self, scope: Scope) -> None:
        rule = rule_of(scope)
        if rule is not None and rule.open_to is Open.EVERYBODY:
            return
        if _asks_what_there_is(scope):
            return
        if rule is None:
            raise NotAllowed
        token = _token_in(scope)
        if token is None:
            if not _is_open(rule.open_to, scope):
                raise NotSignedIn
            return
        principal = scope["user"] = await self._tokens.principal_of(token)
        if principal.role not in rule.roles:
            raise NotAllowed
        scope["auth"] = token


class InnerDoor:
    """The second door: what riders and drivers ask for by its number must be theirs.

    It stands behind the limits, so that those who try numbers are counted.
    """

    def __init__(self, app: ASGIApp, look: Look) -> None:
        self._app = app
        self._look = look

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the request pass, or answer it."""
        if is_narrow(scope):
            try:
                await check_path(scope, self._look)
            except TaxiError as error:
                await refuse(error, scope, receive, send)
                return
        await self._app(scope, receive, send)


def _is_open(open_to: Open, scope: Scope) -> bool:
    if open_to is Open.LOOPBACK:
        client = scope.get("client")
        return client is not None and is_loopback(client[0])
    return open_to is Open.EVERYBODY_BY_NAME


def _asks_what_there_is(scope: Scope) -> bool:
    """Whether the framework itself answers, with the methods that there are."""
    return scope.get("method") == "OPTIONS" and _says_what_there_is(scope["route_handler"])


def _says_what_there_is(handler: object) -> bool:
    """Whether it is the framework's own handler of `OPTIONS`."""
    return (
        isinstance(handler, HTTPRouteHandler)
        and handler.operation_id is None
        and handler.http_methods == {"OPTIONS"}
    )


def _token_in(scope: Scope) -> str | None:
    """The bearer token of the request. Raises `NotSignedIn` if it comes in another way."""
    given = next((value for name, value in scope["headers"] if name == b"authorization"), None)
    if given is None:
        return None
    kind, _, token = given.decode("latin-1").partition(" ")
    if kind.lower() != "bearer" or not token:
        raise NotSignedIn
    return token


# Not as Litestar's JWTAuth describes it: it gives the scheme a name, which the standard forbids.
_SCHEME = SecurityScheme(
    type="http",
    scheme="bearer",
    bearer_format="JWT",
    description="A token from `POST /tokens`, or from the issuer that the service trusts.",
)


class Doors(InitPlugin, ReceiveRoutePlugin):
    """Accounts, their routes, and the doors: to be given to the application.

    `standings` is asked how accounts stand, and should have no other work; `look` runs a
    question in a transaction. Raises as `Tokens` does.
    """

    def __init__(self, settings: Settings, standings: Database, look: Look) -> None:
        self._settings = settings
        self._look = look
        self._tokens = Tokens(settings, standings)
        self._passwords = Passwords()
        self._counts = MemoryStore()

    async def forget_counts(self) -> None:
        """Forget how often somebody asked whose minute is over. To be called now and then."""
        await self._counts.delete_expired()

    @override
    def on_app_init(self, app_config: AppConfig) -> AppConfig:
        app_config.route_handlers.extend(
            [AccountsController, SignedInController, CalendarLinksController]
        )
        app_config.dependencies |= {
            "tokens": Provide(lambda: self._tokens, sync_to_thread=False),
            "passwords": Provide(lambda: self._passwords, sync_to_thread=False),
        }
        app_config.middleware.extend(
            [
                DefineMiddleware(Door, tokens=self._tokens),
                *limits(self._settings),
                DefineMiddleware(InnerDoor, look=self._look),
                attributing,
            ]
        )
        app_config.stores = {STORE: self._counts}
        if app_config.openapi_config is not None:
            app_config.openapi_config.components = Components(security_schemes={"bearer": _SCHEME})
            app_config.openapi_config.security = [{"bearer": []}]
        return app_config

    @override
    def receive_route(self, route: BaseRoute) -> None:
        if isinstance(route, HTTPRoute):
            for handler in route.route_handlers:
                document(handler)
                if _says_what_there_is(handler):
                    # Litestar makes it for the first method of a path, and keeps it when others
                    # come, so that it knows of the first alone.
                    fresh = route.create_options_handler(route.path).fn
                    handler._fn = fresh  # noqa: SLF001  # what `fn` gives, which cannot be set
