"""`taxi cancel`: a booking's time is free again."""

from datetime import UTC

import rich_click as click

from api.bodies.bookings import BookingOut
from api.cli.remote import (
    ID,
    REFUSED,
    Integer,
    ask,
    json_option,
    print_json,
    print_refusal,
    span,
    url_option,
)
from api.client import TaxiClient

_OPTIONS = {"booking_id": "BOOKING", "reason": "--reason", "If-Match": "--version"}


@click.command("cancel")
@click.argument("booking_id", metavar="BOOKING", type=ID)
@click.option("--reason", help="Why; it is kept with the booking.")
@click.option(
    "--version",
    type=Integer(min=1),
    help="Only if nobody has changed the booking since it had this version.",
)
@url_option
@json_option
def command(
    booking_id: int, reason: str | None, version: int | None, url: str, as_json: bool
) -> int:
    """Cancel BOOKING, given by id. Exits with 1 if it cannot be cancelled any more."""

    async def cancel(client: TaxiClient) -> BookingOut:
        return await client.cancel(booking_id, reason, version=version)

    try:
        cancelled = ask(url, cancel, _OPTIONS)
    except REFUSED as refusal:
        return print_refusal(refusal, UTC, as_json=as_json)
    if as_json:
        print_json(cancelled)
    else:
        when = span(cancelled.start, cancelled.predicted_end, UTC)
        click.echo(
            f"Booking {cancelled.id} is cancelled; driver {cancelled.driver_id} is free"
            f" from {when} UTC."
        )
    return 0
