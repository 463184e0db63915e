"""The small fleet of `make run`, and what to try first."""

import json
from datetime import UTC, datetime, timedelta

import httpx
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from booking.bookings import BookingRequest
from booking.drivers import MAIN_FLEET
from booking.postgres.database import Database
from booking.postgres.ledger import PostgresLedger, add_driver, add_rider
from booking.postgres.schema import SHIPPED_ALLOCATOR
from booking.postgres.tables import drivers
from booking.strategies import Act, find
from booking.time_window import TimeWindow

DRIVERS = ("Ada", "Grace", "Edsger", "Barbara", "Tony")
RIDERS = ("Katherine", "Alan", "Margaret")
_TRIP = timedelta(minutes=30)
_SEED_LOCK = 0x7A78_1002


async def seed(url: str, prevention: str) -> None:
    """Fill a recipe's database that holds no driver with a fleet, riders and bookings."""
    database = Database(url, pool_size=1)
    allocator = find(Act.ALLOCATION, SHIPPED_ALLOCATOR).load()()  # every driver is named
    ledger = find(Act.PREVENTION, prevention).load()(database, allocator)
    try:
        await ledger.transact(lambda connection: _seed(connection, ledger))
    finally:
        await database.close()


async def _seed(connection: AsyncConnection, ledger: PostgresLedger) -> None:
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
            await ledger.book_in(connection, BookingRequest(rider.id, window, driver.id))


def what_to_try(client: httpx.Client, address: str) -> str:
    """The address of the API page and three requests that work when pasted.

    Without the requests where the database is somebody's own and has nobody to book.
    """
    drivers = client.get("/drivers", params={"limit": 1, "working": True}).json()["items"]
    riders = client.get("/riders", params={"limit": 1}).json()["items"]
    start, end = _free_time(client, drivers[0]["id"]) if drivers else (None, None)
    lines = f"""
Serving on {address}

  API page            {address}/docs
"""
    if riders and start is not None:
        body = json.dumps(
            {
                "driver_id": drivers[0]["id"],
                "rider_id": riders[0]["id"],
                "start": start,
                "predicted_end": end,
            }
        )
        book = f"curl -i {address}/bookings -H 'Content-Type: application/json' -d '{body}'"
        lines += f"""
  Book                {book}
  Book again (409)    {book}
  Find a free driver  curl '{address}/availability?start={start}&end={end}'
"""
    return f"{lines}\n  Stop                Ctrl-C  (the bookings stay)\n"


def _free_time(client: httpx.Client, driver_id: int) -> tuple[str | None, str | None]:
    """Half an hour of the coming days in which the driver is free, from a full hour on."""
    start = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) + timedelta(hours=1)
    span: dict[str, str | int] = {
        "start": _z(start),
        "end": _z(start + timedelta(days=30)),
        "at_least_minutes": 90,
    }
    gaps = client.get(f"/drivers/{driver_id}/gaps", params=span).json()["items"]
    if not gaps:
        return None, None
    gap_start = datetime.fromisoformat(gaps[0]["start"])
    whole = gap_start.replace(minute=0, second=0, microsecond=0)
    begin = whole if whole == gap_start else whole + timedelta(hours=1)
    return _z(begin), _z(begin + _TRIP)


def _z(instant: datetime) -> str:
    return instant.strftime("%Y-%m-%dT%H:%M:%SZ")
