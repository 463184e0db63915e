"""`taxi confirm`: time that was held is booked."""

from datetime import UTC

import rich_click as click

from api.bodies.bookings import BookingOut
from api.cli.remote import (
    ID,
    REFUSED,
    ask,
    json_option,
    print_bookings,
    print_json,
    print_refusal,
    url_option,
)
from api.client import TaxiClient


@click.command("confirm")
@click.argument("booking_id", metavar="BOOKING", type=ID)
@url_option
@json_option
def command(booking_id: int, url: str, as_json: bool) -> int:
    """Confirm BOOKING, given by id, whose time is held. Exits with 1 if the hold has lapsed."""

    async def confirm(client: TaxiClient) -> BookingOut:
        return await client.confirm(booking_id)

    try:
        confirmed = ask(url, confirm, {"booking_id": "BOOKING"})
    except REFUSED as refusal:
        return print_refusal(refusal, UTC, as_json=as_json)
    if as_json:
        print_json(confirmed)
    else:
        click.echo("Confirmed. Times are UTC.")
        print_bookings([confirmed], UTC)
    return 0
