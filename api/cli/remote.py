"""What the commands share that ask a running service, for people."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime, tzinfo
from http import HTTPStatus
from typing import Any, override
from zoneinfo import ZoneInfo

import msgspec
import rich_click as click
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from api.bodies.bookings import BookingOut
from api.bodies.common import ID_MAX
from api.client import TaxiClient
from api.client.errors import (
    NoService,
    ProblemAnswer,
    ProblemChanged,
    ProblemConflict,
    ProblemInvalid,
    ProblemNotAllowed,
    ProblemNotFound,
)
from booking.drivers import check_zone
from booking.errors import InvalidInput
from booking.time_window import utc

_PATIENCE_S = 10.0

REFUSED = (ProblemConflict, ProblemChanged)
"""What is raised when the request was right, and the state of things forbids it."""

url_option = click.option(
    "--url",
    default="http://127.0.0.1:8000",
    show_default=True,
    envvar="TAXI_URL",
    show_envvar=True,
    help="The service.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


class Integer(click.IntRange):
    """As its parent, which says of a text that it is not a valid integer range."""

    name = "integer"


ID = Integer(1, ID_MAX)


class _Instant(click.ParamType[datetime]):
    name = "instant"

    @override
    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime:
        try:
            instant = datetime.fromisoformat(value)
            utc(instant)
        except InvalidInput as error:
            self.fail(error.message, param, ctx)
        except ValueError:
            self.fail(f"{value!r} is not an instant such as 2026-12-01T09:00:00Z.", param, ctx)
        return instant  # with the offset in which it was given, to be shown in


class _Zone(click.ParamType[ZoneInfo]):
    name = "zone"

    @override
    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> ZoneInfo:
        try:
            return ZoneInfo(check_zone(value))
        except InvalidInput as error:
            self.fail(error.message, param, ctx)


INSTANT = _Instant()
ZONE = _Zone()


def ask[T](url: str, work: Callable[[TaxiClient], Awaitable[T]], options: Mapping[str, str]) -> T:
    """What `work` gets from the service.

    Raises `InvalidInput` for what the user got wrong, naming the option that
    `options` has for the field, and whatever else a `TaxiClient` raises.
    """
    try:
        return asyncio.run(_ask(url, work))
    except (ProblemInvalid, ProblemNotFound) as problem:
        raise _wrong_option(problem, options) from None
    except InvalidInput as error:
        where = {"base_url": "--url", **options}.get(error.field or "", error.field)
        raise InvalidInput(error.message, field=where) from None
    except ProblemNotAllowed as problem:
        if problem.status == HTTPStatus.UNAUTHORIZED:
            problem.field = "TAXI_TOKEN"
            problem.message += " `taxi account token` prints one."
        raise
    except NoService as error:
        raise NoService(error.message, field="--url") from None


async def _ask[T](url: str, work: Callable[[TaxiClient], Awaitable[T]]) -> T:
    async with TaxiClient(url, patience_s=_PATIENCE_S) as client:
        await client.check_service()  # a wrong address is to be told at once
        return await work(client)


def _wrong_option(problem: ProblemAnswer, options: Mapping[str, str]) -> InvalidInput:
    if not problem.errors:
        return InvalidInput(problem.message)
    names = [options.get(each.field, each.field) for each in problem.errors]
    return InvalidInput(" ".join(each.rule for each in problem.errors), field=", ".join(names))


def print_json(value: Any) -> None:
    """Print what went over the wire, to be read by programs."""
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2))


def print_refusal(refusal: ProblemAnswer, zone: tzinfo, *, as_json: bool) -> int:
    """Say why, and what could be had instead; the exit code of a command that was refused."""
    if as_json:
        print_json(refusal.problem)
        return 1
    console = Console(stderr=True, highlight=False)
    console.print(f"[bold red]Refused:[/] {escape(refusal.message)}")
    table = Table(box=None, show_header=False, pad_edge=False)
    for held in refusal.conflicts:
        when = span(held.start, held.predicted_end, zone)
        which = "" if held.booking_id is None else f", booking {held.booking_id}"
        table.add_row("in the way", f"{when}{which}")
    if refusal.next_free is not None:
        offer = refusal.next_free
        table.add_row("next free", span(offer.start, offer.predicted_end, zone))
    if refusal.free_drivers:
        named = ", ".join(str(each) for each in refusal.free_drivers)
        table.add_row("free then", f"driver {named}")
    if table.row_count:
        console.print(table)
    return 1


def print_bookings(
    bookings: Sequence[BookingOut],
    zone: tzinfo,
    *,
    clock: str = "%Y-%m-%d %H:%M",
    of_one_driver: bool = False,
) -> None:
    """A table as wide as the terminal at most; starts are written as `clock` says."""
    # Folded where there is no room: half an id would be another id.
    table = Table(box=None, header_style="bold", pad_edge=False)
    names = ("booking", "from", "until", *(() if of_one_driver else ("driver",)), "rider", "state")
    for name in names:
        is_id = name in {"booking", "driver", "rider"}
        table.add_column(name, justify="right" if is_id else "left", overflow="fold")
    for each in bookings:
        driver = () if of_one_driver else (str(each.driver_id),)
        table.add_row(
            str(each.id),
            f"{each.start.astimezone(zone):{clock}}",
            _until(each.start, each.predicted_end, zone),
            *driver,
            str(each.rider_id),
            Text(_state(each, zone)),
        )
    Console(highlight=False).print(table)


def span(start: datetime, end: datetime, zone: tzinfo) -> str:
    """A window in words: `2026-12-01 09:00 to 09:30`."""
    return f"{start.astimezone(zone):%Y-%m-%d %H:%M} to {_until(start, end, zone)}"


def _until(start: datetime, end: datetime, zone: tzinfo) -> str:
    """The end by the clock on the wall, and how many midnights later than the start."""
    first, last = start.astimezone(zone), end.astimezone(zone)
    days = (last.date() - first.date()).days
    return f"{last:%H:%M}" + (f" +{days}d" if days else "")


def _state(booking: BookingOut, zone: tzinfo) -> str:
    told = booking.state.replace("_", " ")
    if booking.held_until is not None:
        told += f" until {booking.held_until.astimezone(zone):%H:%M:%S}"
    if booking.late_s > 0:
        told += f", {booking.late_s / 60:.0f} min late"
    return told
