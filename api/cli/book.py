"""`taxi book`: a driver, or whoever is free."""

from datetime import UTC, datetime, timedelta, tzinfo

import rich_click as click
from rich.console import Console

from api.bodies.bookings import BookingOut
from api.cli.remote import (
    ID,
    INSTANT,
    REFUSED,
    Integer,
    ask,
    json_option,
    print_bookings,
    print_json,
    print_refusal,
    url_option,
)
from api.client import TaxiClient
from api.client.errors import NoAnswer
from booking.bookings import HOLD_S_MAX, LONGEST
from booking.errors import InvalidInput
from booking.time_window import utc

_MINUTE = timedelta(minutes=1)
_OPTIONS = {
    "rider_id": "--rider",
    "driver_id": "--driver",
    "fleet": "--fleet",
    "start": "--at",
    "predicted_end": "--minutes",
    "hold_s": "--hold-s",
    "Idempotency-Key": "--key",
}


@click.command("book")
@click.option("--rider", "rider_id", required=True, type=ID, help="Who books.")
@click.option("--driver", "driver_id", type=ID, help="Whom; without it, whoever is free.")
@click.option("--fleet", help="Whoever is free of this fleet.  [default: main]")
@click.option(
    "--at",
    "start",
    required=True,
    type=INSTANT,
    help="When it starts, with its offset from UTC: 2026-12-01T09:00+01:00.",
)
@click.option(
    "--minutes",
    required=True,
    type=Integer(1, LONGEST // _MINUTE),
    help="How long it will take.",
)
@click.option(
    "--hold-s",
    type=Integer(1, HOLD_S_MAX),
    help="Only hold the time, for so many seconds, to be confirmed by then.",
)
@click.option("--key", help="Repeats a booking whose answer was lost, and does not book twice.")
@url_option
@json_option
def command(
    rider_id: int,
    driver_id: int | None,
    fleet: str | None,
    start: datetime,
    minutes: int,
    hold_s: int | None,
    key: str | None,
    url: str,
    as_json: bool,
) -> int:
    """Book a driver, or whoever of a fleet is free.

    Exits with 1 if it was refused, and says what is in the way and what is free instead.
    """
    if driver_id is not None and fleet is not None:
        raise InvalidInput("Name a driver or a fleet, not both.", field="--driver, --fleet")

    if start < datetime.now(UTC):
        # It may be meant so: a trip that was not written down in time.
        click.echo(f"Note: {start:%Y-%m-%d %H:%M %z} has passed.", err=True)

    async def book(client: TaxiClient) -> BookingOut:
        return await client.book(
            rider_id,
            start,
            utc(start) + minutes * _MINUTE,
            driver_id=driver_id,
            fleet=fleet,
            hold_s=hold_s,
            key=key,
        )

    zone = start.tzinfo or UTC  # for mypy: INSTANT lets none through without an offset
    try:
        booked = ask(url, book, _OPTIONS)
    except REFUSED as refusal:
        return print_refusal(refusal, zone, as_json=as_json)
    except NoAnswer as error:
        error.message += f" The same command with --key {error.key} does not book twice."
        raise
    if as_json:
        print_json(booked)
    else:
        _print(booked, zone)
    return 0


def _print(booked: BookingOut, zone: tzinfo) -> None:
    console = Console(highlight=False)
    console.print(f"[green]Booked.[/] Times are {booked.start.astimezone(zone):%Z}.")
    print_bookings([booked], zone)
    if booked.held_until is not None:
        console.print(f"It lapses unless it is confirmed: taxi confirm {booked.id}")
