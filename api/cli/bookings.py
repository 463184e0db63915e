"""`taxi bookings`: who drives whom, and when."""

from datetime import UTC, datetime, tzinfo
from zoneinfo import ZoneInfo

import rich_click as click
from rich.console import Console

from api.bodies.bookings import BookingOut
from api.cli.remote import (
    ID,
    INSTANT,
    ZONE,
    Integer,
    ask,
    json_option,
    print_bookings,
    print_json,
    url_option,
)
from api.client import TaxiClient
from booking.bookings import BookingState

_OPTIONS = {
    "driver_id": "--driver",
    "rider_id": "--rider",
    "fleet": "--fleet",
    "start": "--from",
    "end": "--until",
}


@click.command("bookings")
@click.option("--driver", "driver_id", type=ID, help="Only this driver's.")
@click.option("--rider", "rider_id", type=ID, help="Only this rider's.")
@click.option("--fleet", help="Only of drivers of this fleet.")
@click.option(
    "--state", type=click.Choice([str(each) for each in BookingState]), help="Only in this state."
)
@click.option("--at-risk", is_flag=True, help="Only those that will start later than promised.")
@click.option("--from", "start", type=INSTANT, help="Only what ends after this instant.")
@click.option("--until", "end", type=INSTANT, help="Only what starts before this instant.")
@click.option("--zone", type=ZONE, help="The zone of the times shown.  [default: UTC]")
@click.option(
    "--limit", type=Integer(min=1), default=50, show_default=True, help="At most so many."
)
@url_option
@json_option
def command(
    driver_id: int | None,
    rider_id: int | None,
    fleet: str | None,
    state: str | None,
    at_risk: bool,
    start: datetime | None,
    end: datetime | None,
    zone: ZoneInfo | None,
    limit: int,
    url: str,
    as_json: bool,
) -> None:
    """List bookings in order of start."""

    async def look(client: TaxiClient) -> list[BookingOut]:
        """One more than is shown, to see whether more follow."""
        found: list[BookingOut] = []
        async for booking in client.bookings(
            driver_id=driver_id,
            rider_id=rider_id,
            fleet=fleet,
            state=None if state is None else BookingState(state),
            at_risk=at_risk or None,
            start=start,
            end=end,
        ):
            found.append(booking)
            if len(found) > limit:
                break
        return found

    found = ask(url, look, _OPTIONS)
    if as_json:
        print_json(found[:limit])
    else:
        _print(found, limit, zone or UTC)


def _print(found: list[BookingOut], limit: int, zone: tzinfo) -> None:
    console = Console(highlight=False)
    if not found:
        console.print("There are none.")
        return
    print_bookings(found[:limit], zone)
    more = f" There are more: --limit {2 * limit}." if len(found) > limit else ""
    console.print(f"Times are {zone.key if isinstance(zone, ZoneInfo) else zone}.{more}")
