"""How often one may ask: by account, and where passwords could be guessed, by address.

The counts are of one process, so with several workers the limits are as many times as high.
Whoever runs the fleet is not limited.
"""

from typing import Any, override

from litestar import Request
from litestar.exceptions import TooManyRequestsException
from litestar.middleware import DefineMiddleware
from litestar.middleware.rate_limit import (
    RateLimitConfig,
    RateLimitMiddleware,
    get_remote_address,
)
from litestar.types import Receive, Scope, Send

from api.access import GUARDED, LIMITED, operation_of
from api.problems import refuse
from api.settings import Settings
from booking.accounts import Principal
from booking.errors import TooManyRequests

_OPEN = LIMITED - GUARDED
STORE = "request_counts"
"""The application's store that holds the counts; what has expired must be deleted now and then."""


class _Limit(RateLimitMiddleware):
    """Counts the requests that `concerns` says, and refuses those beyond the limit."""

    @override
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Asked before anything is made for the request: most are not concerned.
        if not self.concerns(scope):
            await self.app(scope, receive, send)
            return
        try:
            await super().__call__(scope, receive, send)
        except TooManyRequestsException as error:
            wait_s = (error.headers or {}).get(self.config.rate_limit_reset_header_key, "1")
            await refuse(TooManyRequests(wait_s=max(1, int(wait_s))), scope, receive, send)

    def concerns(self, scope: Scope) -> bool:
        """Whether the request counts."""
        raise NotImplementedError


class _ByAccount(_Limit):
    """Riders and drivers; and those who open a calendar by its link, by their address."""

    @override
    def concerns(self, scope: Scope) -> bool:
        who: Principal | None = scope["user"]
        if who is None:
            return operation_of(scope) in _OPEN
        return not who.role.runs_the_fleet


class _Guard(_Limit):
    """Whoever could be guessing."""

    @override
    def concerns(self, scope: Scope) -> bool:
        operation = operation_of(scope)
        if operation == "add_account":
            who: Principal | None = scope["user"]
            return who is None or not who.role.runs_the_fleet
        return operation in GUARDED


def _who(request: Request[Any, Any, Any]) -> str:
    who = request.scope["user"]
    return f"account {who.account_id}" if who else f"address {get_remote_address(request)}"


def _where(request: Request[Any, Any, Any]) -> str:
    return f"{operation_of(request.scope)} {get_remote_address(request)}"


def limits(settings: Settings) -> list[DefineMiddleware]:
    """Both limits, to stand behind the first door."""
    kinds = (
        (_ByAccount, settings.requests_per_min, _who),
        (_Guard, settings.sign_ins_per_min, _where),
    )
    return [
        RateLimitConfig(
            rate_limit=("minute", at_most),
            identifier_for_request=identifier,
            middleware_class=kind,
            store=STORE,
        ).middleware
        for kind, at_most, identifier in kinds
    ]
