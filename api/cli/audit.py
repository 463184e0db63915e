"""`taxi audit`: sweep the ledger for double bookings."""

import asyncio
import json
from typing import Any

import rich_click as click
from rich.console import Console
from rich.table import Table

from api.cli.home import server_url, strategy_options
from booking.calendars import Held
from booking.postgres.audit import Audit, double_bookings
from booking.postgres.database import Database
from booking.postgres.schema import plainly_told, url_for

_SWEEP_S_MAX = 3_600.0
_SHOWN_MAX = 20


@click.command("audit")
@strategy_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(prevention: str, allocator: str, as_json: bool) -> int:
    """Sweep the ledger for double bookings. Exits with 1 if it finds one."""
    with server_url() as url:
        own_url = url_for(url, prevention, allocator)
        with plainly_told(own_url):
            audit = asyncio.run(_sweep(own_url))
    if as_json:
        click.echo(json.dumps(_as_json(audit), indent=2))
    else:
        _print(audit)
    return 0 if audit.clean else 1


async def _sweep(url: str) -> Audit:
    database = Database(url, pool_size=1, statement_s_max=_SWEEP_S_MAX)
    try:
        return await database.transact(double_bookings, read_only=True)
    finally:
        await database.close()


def _as_json(audit: Audit) -> dict[str, Any]:
    return {
        "bookings": audit.bookings,
        "drivers": audit.drivers,
        "double_bookings": [
            {
                "driver_id": found.driver_id,
                "earlier": _held_as_json(found.earlier),
                "later": _held_as_json(found.later),
            }
            for found in audit.double_bookings
        ],
        "malformed": list(audit.malformed),
    }


def _held_as_json(held: Held) -> dict[str, Any]:
    return {
        "booking_id": held.booking_id,
        "start": held.window.start.isoformat(),
        "predicted_end": held.window.end.isoformat(),
    }


def _print(audit: Audit) -> None:
    console = Console(highlight=False)
    swept = f"{audit.bookings:,} active bookings of {audit.drivers:,} drivers swept"
    if audit.clean:
        console.print(f"[green]No double booking.[/] {swept}.")
        return
    console.print(
        f"[bold red]{len(audit.double_bookings):,} double bookings,"
        f" {len(audit.malformed):,} malformed windows.[/] {swept}."
    )
    table = Table("driver", "booking", "from", "until", "and", "from", box=None)
    for found in audit.double_bookings[:_SHOWN_MAX]:
        earlier, later = found.earlier, found.later
        table.add_row(
            str(found.driver_id),
            str(earlier.booking_id),
            f"{earlier.window.start:%Y-%m-%d %H:%M:%SZ}",
            f"{earlier.window.end:%H:%M:%SZ}",
            str(later.booking_id),
            f"{later.window.start:%H:%M:%SZ}",
        )
    console.print(table)
    if len(audit.double_bookings) > _SHOWN_MAX:
        console.print(f"… and {len(audit.double_bookings) - _SHOWN_MAX:,} more; --json has all.")
    if audit.malformed:
        console.print(f"Malformed: bookings {', '.join(map(str, audit.malformed[:_SHOWN_MAX]))}.")
