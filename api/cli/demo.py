"""The small fleet of `make run`, and what to try first."""

import json
from datetime import UTC, datetime, timedelta

import click
import httpx
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from booking.bookings import BookingRequest
from booking.drivers import MAIN_FLEET
from booking.postgres.database import Database
from booking.postgres.ledger import add_driver, add_rider, insert_booking
from booking.postgres.tables import drivers
from booking.time_window import TimeWindow

DRIVERS = ("Ada", "Grace", "Edsger", "Barbara", "Tony")
RIDERS = ("Katherine", "Alan", "Margaret")
_TRIP = timedelta(minutes=30)
_SEED_LOCK = 0x7A78_1002


async def seed(url: str) -> None:
    """Fill a database that holds no driver with a fleet, riders and tomorrow's bookings."""
    database = Database(url, pool_size=1)
    try:
        await database.transact(_seed)
    finally:
        await database.close()


async def _seed(connection: AsyncConnection) -> None:
    # Two that start side by side must not both find it empty.
    await connection.execute(select(func.pg_advisory_xact_lock(_SEED_LOCK)))
    if await connection.scalar(select(func.count()).select_from(drivers)):
        return
    fleet = [await add_driver(connection, name, MAIN_FLEET, "Europe/Berlin") for name in DRIVERS]
    riders = [await add_rider(connection, name) for name in RIDERS]
    tomorrow = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(
        days=1
    )
    for number, driver in enumerate(fleet):
        for hour in (7, 10, 16):
            start = tomorrow + timedelta(hours=hour, minutes=15 * number)
            rider = riders[(number + hour) % len(riders)]
            window = TimeWindow(start, start + _TRIP)
            await insert_booking(connection, BookingRequest(rider.id, window, driver.id))


def print_demo(client: httpx.Client, address: str) -> None:
    """Print the address of the API page and three requests that work when pasted."""
    driver = client.get("/drivers", params={"limit": 1, "working": True}).json()["items"][0]["id"]
    rider = client.get("/riders", params={"limit": 1}).json()["items"][0]["id"]
    start, end = _free_time(client, driver)
    body = json.dumps(
        {"driver_id": driver, "rider_id": rider, "start": start, "predicted_end": end}
    )
    book = f"curl -i {address}/bookings -H 'Content-Type: application/json' -d '{body}'"
    free = f"curl '{address}/availability?start={start}&end={end}'"
    click.echo(
        f"""
Serving on {address}

  API page            {address}/docs

  Book                {book}
  Book again (409)    {book}
  Find a free driver  {free}

  Stop                Ctrl-C  (the bookings stay)
"""
    )


def _free_time(client: httpx.Client, driver_id: int) -> tuple[str, str]:
    """Half an hour of the coming days in which the driver is free, from a full hour on."""
    start = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) + timedelta(hours=1)
    gaps = client.get(
        f"/drivers/{driver_id}/gaps",
        params={
            "start": start.isoformat(),
            "end": (start + timedelta(days=30)).isoformat(),
            "at_least_minutes": 90,
        },
    ).json()["items"]
    gap_start = datetime.fromisoformat(gaps[0]["start"])
    whole = gap_start.replace(minute=0, second=0, microsecond=0)
    begin = whole if whole == gap_start else whole + timedelta(hours=1)
    return _z(begin), _z(begin + _TRIP)


def _z(instant: datetime) -> str:
    return instant.strftime("%Y-%m-%dT%H:%M:%SZ")
