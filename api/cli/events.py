"""`taxi events`: what happens, as it happens."""

from contextlib import aclosing
from datetime import UTC, datetime, tzinfo
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import rich_click as click
from rich.console import Console
from rich.text import Text

from api.bodies.events import EventOut
from api.cli.remote import ID, ZONE, ask, json_option, url_option
from api.client import TaxiClient

_OPTIONS = {
    "after": "--after",
    "Last-Event-ID": "--after",
    "booking_id": "--booking",
    "driver_id": "--driver",
    "rider_id": "--rider",
}


@click.command("events")
@click.option("--booking", "booking_id", type=ID, help="Only this booking's.")
@click.option("--driver", "driver_id", type=ID, help="Only this driver's.")
@click.option("--rider", "rider_id", type=ID, help="Only this rider's.")
@click.option("--after", help="Begin behind this event; 0-0 is the first.  [default: from now on]")
@click.option("--count", type=click.IntRange(min=1), help="Stop after so many.")
@click.option("--zone", type=ZONE, help="The zone of the times shown.  [default: UTC]")
@url_option
@json_option
def command(
    booking_id: int | None,
    driver_id: int | None,
    rider_id: int | None,
    after: str | None,
    count: int | None,
    zone: ZoneInfo | None,
    url: str,
    as_json: bool,
) -> None:
    """Follow what happens to bookings until stopped by Ctrl-C.

    If the connection breaks, it goes on where it was. With --json each event is a line.
    """
    console = Console(highlight=False)

    async def follow(client: TaxiClient) -> None:
        shown = 0
        events = client.events(
            after=after, booking_id=booking_id, driver_id=driver_id, rider_id=rider_id
        )
        async with aclosing(events):
            async for event in events:
                if as_json:
                    click.echo(msgspec.json.encode(event))
                else:
                    console.print(_line(event, zone or UTC))
                shown += 1
                if shown == count:
                    return

    ask(url, follow, _OPTIONS)


def _line(event: EventOut, zone: tzinfo) -> Text:
    """An event in words, with what was different before."""
    line = Text()
    line.append(f"{event.at.astimezone(zone):%Y-%m-%d %H:%M:%S}  ", "dim")
    line.append(f"booking {event.booking_id} ")
    line.append(event.kind.replace("_", " "), "bold")
    line.append(f" by {event.actor}")
    for name, before in sorted(event.changed.items()):
        now = event.booking.get(name)
        line.append(f"; {name} {_told(before, zone)} → {_told(now, zone)}")
    return line


def _told(value: Any, zone: tzinfo) -> str:
    if value is None:
        return "none"
    try:
        return f"{datetime.fromisoformat(value).astimezone(zone):%Y-%m-%d %H:%M}"
    except (TypeError, ValueError):
        return str(value)
