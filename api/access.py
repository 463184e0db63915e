"""Who may do what: one table, held against every request by the doors (`api/doors.py`).

An operation that is not in the table is denied to everybody, so whoever adds a route must say
here for whom it is.

What is not yours answers exactly as what does not exist, so ids say nothing to those who guess
them.
"""

import ipaddress
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from http import HTTPStatus
from typing import Any, Protocol, cast

import msgspec
from litestar.handlers import HTTPRouteHandler
from litestar.types import Scope
from sqlalchemy.ext.asyncio import AsyncConnection

from api.bodies.bookings import BookingProblem, Check, Conflict
from api.bodies.common import ID_MAX
from api.bodies.problems import Problem
from api.bodies.series import SeriesOut, SeriesProblem
from api.responses import problem_spec
from booking.accounts import Principal, Role
from booking.errors import (
    NotFound,
    UnknownBooking,
    UnknownDriver,
    UnknownEntry,
    UnknownRider,
    UnknownSeries,
)
from booking.postgres.accounts import Owners, owners_of_booking, owners_of_entry, owners_of_series


class Of(StrEnum):
    """Of what a role may do something: of everything, or of what is theirs."""

    ALL = "all there is"
    RIDER = "the rider in the path, if it is they"
    DRIVER = "the driver in the path, if it is they"
    BOOKING = "the booking in the path, if it is theirs"
    SERIES = "the series in the path, if it is theirs"
    ENTRY = "the entry of the waiting list in the path, if it is theirs"
    BODY = "what the body asks for, if its `rider_id` is they"
    LIST = "those of the list that are theirs"
    """The handler narrows the list, by `narrowed`."""


class Open(StrEnum):
    """To whom an operation is open that nobody need sign in for."""

    NOBODY = "nobody"
    EVERYBODY = "everybody"
    LOOPBACK = "who asks from this machine"
    EVERYBODY_BY_NAME = "everybody, and it makes a difference who"


@dataclass(frozen=True, slots=True)
class Rule:
    """Who may do one thing, and of what."""

    roles: Mapping[Role, Of] = field(default_factory=dict)
    open_to: Open = Open.NOBODY


_FLEET = {Role.DISPATCHER: Of.ALL, Role.ADMINISTRATOR: Of.ALL}
_EVERYBODY = Rule(open_to=Open.EVERYBODY)
_ADMINISTRATORS = Rule({Role.ADMINISTRATOR: Of.ALL})
_DISPATCHERS = Rule(_FLEET)
_WHOEVER_SIGNED_IN = Rule(dict.fromkeys(Role, Of.ALL))


def _fleet_and(*, rider: Of | None = None, driver: Of | None = None) -> Rule:
    """Dispatchers and administrators, and riders or drivers so far."""
    others = {Role.RIDER: rider, Role.DRIVER: driver}
    return Rule(_FLEET | {role: of for role, of in others.items() if of is not None})


RULES: Mapping[str, Rule] = {
    # Whoever watches over the service, and the documentation.
    "get_health": _EVERYBODY,
    "get_readiness": _EVERYBODY,
    "list_problems": _EVERYBODY,
    "get_problem": _EVERYBODY,
    "/": _EVERYBODY,
    "/docs": _EVERYBODY,
    "/docs/openapi.json": _EVERYBODY,
    "/docs/{path}": _EVERYBODY,
    "/docs-assets": _EVERYBODY,
    "/metrics": Rule({Role.ADMINISTRATOR: Of.ALL}, Open.LOOPBACK),
    # Where a library asks for the head alone.
    "/riders/{rider_id}/calendar.ics": _fleet_and(rider=Of.RIDER),
    "/drivers/{driver_id}/calendar.ics": _fleet_and(driver=Of.DRIVER),
    # Accounts.
    "create_token": _EVERYBODY,
    "add_account": Rule(dict.fromkeys(Role, Of.ALL), Open.EVERYBODY_BY_NAME),
    "get_me": _WHOEVER_SIGNED_IN,
    "change_password": _WHOEVER_SIGNED_IN,
    "list_accounts": _ADMINISTRATORS,
    "get_account": _ADMINISTRATORS,
    "disable_account": _ADMINISTRATORS,
    "link_rider_calendar": _fleet_and(rider=Of.RIDER),
    "link_driver_calendar": _fleet_and(driver=Of.DRIVER),
    "open_calendar": _EVERYBODY,  # the token of the link is the key
    # Bookings.
    "book": _fleet_and(rider=Of.BODY),
    "check_booking": _fleet_and(rider=Of.BODY),
    "list_bookings": _fleet_and(rider=Of.LIST, driver=Of.LIST),
    "get_booking": _fleet_and(rider=Of.BOOKING, driver=Of.BOOKING),
    "confirm_booking": _fleet_and(rider=Of.BOOKING),
    "cancel_booking": _fleet_and(rider=Of.BOOKING),
    "reschedule_booking": _fleet_and(rider=Of.BOOKING),
    "reassign_booking": _DISPATCHERS,
    "start_booking": _fleet_and(driver=Of.BOOKING),
    "predict_end": _fleet_and(driver=Of.BOOKING),
    "complete_booking": _fleet_and(driver=Of.BOOKING),
    "report_no_show": _fleet_and(driver=Of.BOOKING),
    # Series.
    "book_series": _fleet_and(rider=Of.BODY),
    "get_series": _fleet_and(rider=Of.SERIES),
    "cancel_series": _fleet_and(rider=Of.SERIES),
    # The waiting list.
    "join_waiting_list": _fleet_and(rider=Of.BODY),
    "list_waiting": _fleet_and(rider=Of.LIST),
    "get_waiting_entry": _fleet_and(rider=Of.ENTRY),
    "withdraw_from_waiting_list": _fleet_and(rider=Of.ENTRY),
    # Riders and drivers.
    "add_rider": _DISPATCHERS,
    "list_riders": _DISPATCHERS,
    "get_rider": _fleet_and(rider=Of.RIDER),
    "rider_calendar": _fleet_and(rider=Of.RIDER),
    "add_driver": _DISPATCHERS,
    "list_drivers": _DISPATCHERS,
    "get_driver": _fleet_and(driver=Of.DRIVER),
    "change_driver": _DISPATCHERS,
    "retire_driver": _DISPATCHERS,
    "get_agenda": _fleet_and(driver=Of.DRIVER),
    "get_gaps": _fleet_and(driver=Of.DRIVER),
    "driver_calendar": _fleet_and(driver=Of.DRIVER),
    "get_shifts": _fleet_and(driver=Of.DRIVER),
    "set_shifts": _DISPATCHERS,
    "drop_shifts": _DISPATCHERS,
    # The fleet.
    "get_availability": _fleet_and(rider=Of.ALL),
    "read_schedule": _DISPATCHERS,
    # What happened says who did it and from where, so it is not for those it happened to.
    "list_events": _DISPATCHERS,
    "follow_events": _DISPATCHERS,
    "get_booking_events": _DISPATCHERS,
    # What a webhook is told leaves the house.
    "add_webhook": _ADMINISTRATORS,
    "list_webhooks": _ADMINISTRATORS,
    "get_webhook": _ADMINISTRATORS,
    "delete_webhook": _ADMINISTRATORS,
    "enable_webhook": _ADMINISTRATORS,
    "test_webhook": _ADMINISTRATORS,
    "replay_webhook": _ADMINISTRATORS,
    "list_deliveries": _ADMINISTRATORS,
}
"""By `operation_id`; by their path where a library's routes have none."""

GUARDED = frozenset({"create_token", "add_account", "change_password"})
"""Where somebody could guess passwords, or try addresses: these have a stricter limit."""

LIMITED = GUARDED | {"open_calendar"}
"""Where those are limited as well who do not sign in, by their address."""

Look = Callable[[Callable[[AsyncConnection], Awaitable[Owners | None]]], Awaitable[Owners | None]]
"""Runs a question in a transaction that may only read."""


def operation_of(scope: Scope) -> str:
    """What the table calls the operation that a request is routed to."""
    operation = getattr(scope["route_handler"], "operation_id", None)
    if isinstance(operation, str):
        return operation
    # What is mounted has no template of its own.
    return scope["path_template"] or min(scope["route_handler"].paths)


def rule_of(scope: Scope) -> Rule | None:
    """Who may do what the request asks for; None if it is not listed, so that nobody may."""
    return RULES.get(operation_of(scope))


def _of(scope: Scope) -> Of | None:
    """Of what the one who asks may do it; None if it is not about roles."""
    who: Principal | None = scope["user"]
    rule = None if who is None else rule_of(scope)
    return None if who is None or rule is None else rule.roles.get(who.role)


# What is theirs ----------------------------------------------------------------------------------


def is_narrow(scope: Scope) -> bool:
    """Whether the one who asks may do it, but not to everything."""
    return _of(scope) not in {None, Of.ALL}


async def check_path(scope: Scope, look: Look) -> None:
    """Raise what there being no such thing raises, if what the path names is not theirs."""
    of = _of(scope)
    who: Principal = scope["user"]
    if of is Of.RIDER:
        _same(scope, "rider_id", who.rider_id, UnknownRider)
    elif of is Of.DRIVER:
        _same(scope, "driver_id", who.driver_id, UnknownDriver)
    elif of is not None and of in _OWNED:
        owned = _OWNED[of]
        number = _number_in(scope, owned.parameter)
        if number is not None:
            found = await look(lambda connection: owned.ask(connection, number))
            owned.check(found, who, number)


class _Ask(Protocol):
    async def __call__(
        self, connection: AsyncConnection, number: int, /, *, lock: bool = False
    ) -> Owners | None: ...


@dataclass(frozen=True, slots=True)
class _Owned:
    """Something with owners, named by a parameter of the path."""

    parameter: str
    kind: str
    ask: _Ask
    missing: type[NotFound]

    def check(self, owners: Owners | None, who: Principal, number: int) -> None:
        """Raise what there not being one raises, if it is not theirs."""
        if owners is None or not owners.include(who):
            raise self.missing(f"There is no {self.kind} {number}.", field=self.parameter)


_OWNED: Mapping[Of, _Owned] = {
    Of.BOOKING: _Owned("booking_id", "booking", owners_of_booking, UnknownBooking),
    Of.SERIES: _Owned("series_id", "series", owners_of_series, UnknownSeries),
    Of.ENTRY: _Owned("entry_id", "entry", owners_of_entry, UnknownEntry),
}


def _same(scope: Scope, parameter: str, own: int | None, missing: type[NotFound]) -> None:
    number = _number_in(scope, parameter)
    if number is not None and number != own:
        kind = parameter.removesuffix("_id")
        raise missing(f"There is no {kind} {number}.", field=parameter)


def _number_in(scope: Scope, parameter: str) -> int | None:
    """The number in the path; None if nothing can have it, as the route will say."""
    number = cast("int", scope["path_params"][parameter])  # as the route has it
    return number if 1 <= number <= ID_MAX else None


def is_loopback(host: str) -> bool:
    """Whether nobody but this machine reaches, or is, that host."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


# What the handlers, and those who read bodies and run commands, ask of the table -----------------


def check_body(scope: Scope, body: Any) -> None:
    """Raise `UnknownRider` if the body asks for somebody else than the one who asks."""
    if _of(scope) is Of.BODY and body.rider_id != scope["user"].rider_id:
        raise UnknownRider(f"There is no rider {body.rider_id}.", field="rider_id")


def recheck(scope: Scope) -> Callable[[AsyncConnection], Awaitable[None]] | None:
    """Asks again, within the transaction that changes it, whether the thing is theirs.

    A trip may have been given to another driver since the door. None, where there is nothing
    to ask.
    """
    of = _of(scope)
    if of is None or of not in _OWNED:
        return None
    owned, who = _OWNED[of], cast("Principal", scope["user"])
    number = cast("int", scope["path_params"][owned.parameter])

    async def ask(connection: AsyncConnection) -> None:
        owned.check(await owned.ask(connection, number, lock=True), who, number)

    return ask


class Narrow(Protocol):
    """A filter that can be narrowed to a rider's, or to a driver's."""

    @property
    def rider_id(self) -> int | None:
        """Only this rider's."""
        ...

    @property
    def driver_id(self) -> int | None:
        """Only this driver's."""
        ...


def narrowed[F: Narrow](scope: Scope, wanted: F) -> F | None:
    """The filter, narrowed to what is theirs; None if nothing is left.

    For a list that the table says holds only what is theirs.
    """
    if _of(scope) is not Of.LIST:
        return wanted
    who: Principal = scope["user"]
    for name, own in (("rider_id", who.rider_id), ("driver_id", who.driver_id)):
        if own is not None:
            if getattr(wanted, name) not in {None, own}:
                return None
            wanted = replace(wanted, **{name: own})  # type: ignore[type-var]  # a dataclass
    return wanted


def shown[T](who: Principal | None, answer: T) -> T:
    """The answer as the one who asks may see it: to riders, what is in the way has no number.

    The times stay: a rider can find them out anyhow, by asking when the driver is free.
    """
    if who is None or who.role is not Role.RIDER:
        return answer
    if isinstance(answer, BookingProblem | Check) and answer.conflicts:
        return msgspec.structs.replace(answer, conflicts=_nameless(answer.conflicts))
    if isinstance(answer, SeriesProblem | SeriesOut) and answer.occurrences:
        occurrences = [
            msgspec.structs.replace(each, conflicts=_nameless(each.conflicts))
            for each in answer.occurrences
        ]
        return msgspec.structs.replace(answer, occurrences=occurrences)
    return answer


def _nameless(conflicts: list[Conflict]) -> list[Conflict]:
    return [msgspec.structs.replace(each, booking_id=None) for each in conflicts]


# The documentation -------------------------------------------------------------------------------


def document(handler: HTTPRouteHandler) -> None:
    """Have the OpenAPI document say of the operation what the table says.

    It is made from the handlers when it is first asked for.
    """
    rule = RULES.get(str(handler.operation_id), Rule())
    statuses = {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.TOO_MANY_REQUESTS}
    if rule.open_to is Open.EVERYBODY:
        handler.security = [{}]  # anybody, where the document would ask for a token
        statuses = {HTTPStatus.TOO_MANY_REQUESTS} if handler.operation_id in LIMITED else set()
    documented = {status: problem_spec(status, Problem) for status in sorted(statuses)}
    handler.responses = documented | dict(handler.responses or {})
