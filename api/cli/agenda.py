"""`taxi agenda`: what a driver has to do."""

from datetime import date, datetime, time, timedelta
from zoneinfo import ZoneInfo

import rich_click as click
from rich.console import Console
from rich.markup import escape

from api.bodies.bookings import BookingOut
from api.bodies.drivers import DriverOut
from api.cli.remote import ID, ZONE, ask, json_option, print_bookings, print_json, url_option
from api.client import TaxiClient
from booking.errors import InvalidInput
from booking.time_window import utc

_OPTIONS = {"driver_id": "DRIVER", "start": "--day", "end": "--day"}


@click.command("agenda")
@click.argument("driver_id", metavar="DRIVER", type=ID)
@click.option(
    "--day",
    type=click.DateTime(["%Y-%m-%d"]),
    metavar="YYYY-MM-DD",
    help="Which local day.  [default: today]",
)
@click.option(
    "--zone", type=ZONE, help="The zone of the day and of the times.  [default: the driver's]"
)
@url_option
@json_option
def command(
    driver_id: int, day: datetime | None, zone: ZoneInfo | None, url: str, as_json: bool
) -> None:
    """Show what DRIVER, given by id, has booked on one local day."""

    async def look(client: TaxiClient) -> tuple[DriverOut, date, ZoneInfo, list[BookingOut]]:
        driver = await client.driver(driver_id)
        local = zone or ZoneInfo(driver.zone)
        local_day = (day or datetime.now(local)).date()
        return driver, local_day, local, await client.agenda(driver_id, *_bounds(local_day, local))

    driver, local_day, local, bookings = ask(url, look, _OPTIONS)
    if as_json:
        print_json(bookings)
        return
    console = Console(highlight=False)
    console.print(
        f"[bold]{escape(driver.name)}[/] (driver {driver.id}),"
        f" {local_day:%A} {local_day}, {local.key}"
    )
    if not bookings:
        console.print("Nothing is booked.")
        return
    print_bookings(bookings, local, clock=_clock(local_day, local), of_one_driver=True)


def _bounds(day: date, zone: ZoneInfo) -> tuple[datetime, datetime]:
    """From midnight to midnight by the clock on the wall: 23 to 25 hours."""
    try:
        next_day = day + timedelta(days=1)
    except OverflowError:
        raise InvalidInput("It is the last there is.", field="--day") from None
    midnights = (datetime.combine(each, time(), zone) for each in (day, next_day))
    first, last = (utc(each, "--day") for each in midnights)
    return first, last


def _clock(day: date, zone: ZoneInfo) -> str:
    """How times are written: with their offset on a day on which an hour may come twice."""
    first, last = (each.astimezone(zone) for each in _bounds(day, zone))
    return "%H:%M" if first.utcoffset() == last.utcoffset() else "%H:%M %z"
