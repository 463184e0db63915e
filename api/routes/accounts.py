"""`/accounts`, `/tokens`, `/me`, and the links that calendar programs use."""

import hashlib
import secrets
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Annotated

from litestar import Controller, Response, get, post
from litestar.di import NamedDependency
from litestar.params import JSONBody, PathParameter, QueryParameter
from sqlalchemy.ext.asyncio import AsyncConnection

from api import ical
from api.bodies.accounts import (
    AccountIn,
    AccountOut,
    AccountPage,
    CalendarLink,
    PasswordChange,
    SignIn,
    TokenOut,
)
from api.bodies.common import ID_MAX
from api.idempotency import Command, KeyHeader
from api.pages import CursorQuery, page_of, read_id_cursor
from api.passwords import Passwords
from api.requests import LimitQuery, StrictRequest
from api.responses import LOCATION, body_problems, problems
from api.routes.drivers import DriverPath, driver_feed
from api.routes.riders import RiderPath, rider_feed
from api.service import Service
from api.tokens import Tokens
from booking.accounts import Account, Principal, Role
from booking.errors import InvalidInput, NotAllowed, NotSignedIn, WrongCredentials
from booking.postgres import accounts
from booking.postgres.accounts import Credentials, Feed
from booking.postgres.ledger import add_rider

AccountPath = Annotated[int, PathParameter(ge=1, le=ID_MAX)]
_NOT_KEPT = {"Cache-Control": "no-store"}
"""Of an answer that holds a secret (RFC 6749, section 5.1)."""


class AccountsController(Controller):
    """Who uses the service."""

    path = "/accounts"
    tags = ("accounts",)

    @post(
        responses=body_problems(HTTPStatus.NOT_FOUND),
        response_headers=[LOCATION],
        operation_id="add_account",
    )
    async def add(
        self,
        data: JSONBody[AccountIn],
        service: NamedDependency[Service],
        passwords: NamedDependency[Passwords],
        request: StrictRequest,
    ) -> Response[AccountOut]:
        """Sign up as a rider; administrators add accounts of every role.

        It takes no idempotency key: an e-mail has one account at most.
        """
        who: Principal | None = request.user
        if not data.is_sign_up:
            if who is None:
                raise NotSignedIn
            if who.role is not Role.ADMINISTRATOR:
                raise NotAllowed("Only administrators add such accounts.")
        data.check()
        hashed = None if data.password is None else await passwords.hash(data.password)

        async def work(connection: AsyncConnection) -> Account:
            rider_id = data.rider_id
            if data.role is Role.RIDER and rider_id is None:
                rider_id = (await add_rider(connection, data.name or "")).id
            return await accounts.add_account(
                connection,
                data.email,
                data.role,
                password_hash=hashed,
                rider_id=rider_id,
                driver_id=data.driver_id,
                external=data.external,
            )

        added = await service.database.transact(work)
        return Response(
            AccountOut.of(added),
            status_code=HTTPStatus.CREATED,
            headers={"Location": f"/accounts/{added.id}"},
        )

    @get(responses=problems(), operation_id="list_accounts")
    async def list(
        self,
        service: NamedDependency[Service],
        limit: LimitQuery = 100,
        cursor: CursorQuery = None,
    ) -> AccountPage:
        """List accounts in order of id."""
        after = read_id_cursor(cursor)
        rows = await service.look(
            lambda connection: accounts.list_accounts(connection, after=after, limit=limit + 1)
        )
        return page_of(AccountPage, rows, limit, AccountOut.of, lambda account: account.id)

    @get("/{account_id:int}", responses=problems(HTTPStatus.NOT_FOUND), operation_id="get_account")
    async def read(self, account_id: AccountPath, service: NamedDependency[Service]) -> AccountOut:
        """Read one account."""
        return AccountOut.of(await service.look(lambda c: accounts.account(c, account_id)))

    @post(
        "/{account_id:int}/disable",
        status_code=HTTPStatus.OK,
        responses=problems(HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT),
        operation_id="disable_account",
    )
    async def disable(
        self,
        account_id: AccountPath,
        service: NamedDependency[Service],
        tokens: NamedDependency[Tokens],
        request: StrictRequest,
        idempotency_key: KeyHeader = None,
    ) -> Response[AccountOut]:
        """Disable an account for good: within a few seconds its tokens are good for nothing.

        Nobody disables their own, and the last administrator stays.
        """
        who: Principal = request.user
        command = Command(
            lambda connection: accounts.disable_account(connection, account_id, who.account_id),
            AccountOut.of,
            note=lambda _: tokens.forget(),
        )
        return await service.commands.run(request, idempotency_key, command)


class SignedInController(Controller):
    """Signing in, and one's own account."""

    tags = ("accounts",)

    @post(
        "/tokens",
        status_code=HTTPStatus.OK,
        responses=body_problems(HTTPStatus.UNAUTHORIZED),
        operation_id="create_token",
    )
    async def sign_in(
        self,
        data: JSONBody[SignIn],
        service: NamedDependency[Service],
        passwords: NamedDependency[Passwords],
        tokens: NamedDependency[Tokens],
    ) -> Response[TokenOut]:
        """Sign in by e-mail and password, for a token that others are asked with.

        Whether there is no such account, it is disabled or the password is another, the answer
        is the same, and takes as long.
        """
        tokens.check_issues()
        looked_at = datetime.now(UTC)
        found = await service.look(lambda c: accounts.credentials(c, data.email))
        right = await passwords.matches(found and found.password_hash, data.password)
        if found is None or not right or found.account.disabled_at is not None:
            raise WrongCredentials
        if passwords.is_outdated(found.password_hash or ""):
            hashed = await passwords.hash(data.password)
            await _keep(service, found, hashed, is_new=False)
        token, lasts = tokens.issue(found.account.id, looked_at)
        answer = TokenOut(token, "Bearer", int(lasts.total_seconds()))
        return Response(answer, headers=_NOT_KEPT)

    @get("/me", responses=problems(), operation_id="get_me")
    async def me(self, service: NamedDependency[Service], request: StrictRequest) -> AccountOut:
        """Read one's own account: the role, and the rider or the driver that one is."""
        who: Principal = request.user
        return AccountOut.of(await service.look(lambda c: accounts.account(c, who.account_id)))

    @post(
        "/me/password",
        status_code=HTTPStatus.OK,
        responses=body_problems(),
        operation_id="change_password",
    )
    async def change_password(
        self,
        data: JSONBody[PasswordChange],
        service: NamedDependency[Service],
        passwords: NamedDependency[Passwords],
        tokens: NamedDependency[Tokens],
        request: StrictRequest,
    ) -> AccountOut:
        """Change one's own password. Tokens from before are good for nothing then."""
        who: Principal = request.user
        known: Credentials = await service.look(
            lambda connection: accounts.credentials_of(connection, who.account_id)
        )
        right = await passwords.matches(known.password_hash, data.present_password)
        hashed = await passwords.hash(data.new_password) if right else ""
        changed = await _keep(service, known, hashed, is_new=True) if right else None
        if changed is None:
            raise InvalidInput("It is not your present password.", field="present_password")
        tokens.forget()
        return AccountOut.of(changed)


class CalendarLinksController(Controller):
    """Links for calendar programs, which cannot send a token."""

    tags = ("accounts",)

    @post(
        "/riders/{rider_id:int}/calendar-link",
        status_code=HTTPStatus.OK,
        responses=problems(HTTPStatus.NOT_FOUND),
        operation_id="link_rider_calendar",
    )
    async def link_rider(
        self, rider_id: RiderPath, service: NamedDependency[Service]
    ) -> Response[CalendarLink]:
        """Make the link to a rider's calendar; the one before it opens nothing any more."""
        return await _link(service, Feed(rider_id, None))

    @post(
        "/drivers/{driver_id:int}/calendar-link",
        status_code=HTTPStatus.OK,
        responses=problems(HTTPStatus.NOT_FOUND),
        operation_id="link_driver_calendar",
    )
    async def link_driver(
        self, driver_id: DriverPath, service: NamedDependency[Service]
    ) -> Response[CalendarLink]:
        """Make the link to a driver's calendar; the one before it opens nothing any more."""
        return await _link(service, Feed(None, driver_id))

    @get(
        "/calendar.ics",
        media_type=ical.MEDIA_TYPE,
        responses=problems(HTTPStatus.NOT_FOUND),
        operation_id="open_calendar",
    )
    async def open(
        self,
        token: Annotated[str, QueryParameter(max_length=100, description="That of the link.")],
        service: NamedDependency[Service],
        if_none_match: ical.SeenHeader = None,
    ) -> Response[bytes]:
        """Read the one calendar that a link is for, as iCalendar."""
        feed = await service.look(lambda c: accounts.linked_calendar(c, _hash(token)))
        if feed.rider_id is not None:
            return await rider_feed(service, feed.rider_id, if_none_match)
        return await driver_feed(service, feed.driver_id or 0, if_none_match)


async def _keep(
    service: Service, known: Credentials, hashed: str, *, is_new: bool
) -> Account | None:
    return await service.database.transact(
        lambda connection: accounts.set_password(connection, known, hashed, is_new=is_new)
    )


async def _link(service: Service, feed: Feed) -> Response[CalendarLink]:
    token = secrets.token_urlsafe(32)
    await service.database.transact(
        lambda connection: accounts.link_calendar(connection, feed, _hash(token))
    )
    # In the query, not in the path, which logs and metrics show.
    return Response(CalendarLink(f"/calendar.ics?token={token}"), headers=_NOT_KEPT)


def _hash(token: str) -> bytes:
    """What is kept of a link: too much was drawn at random for it to be guessed from this."""
    return hashlib.sha256(token.encode()).digest()
