"""The small fleet of `make run`, its accounts, and what to try first."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import httpx
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from api.passwords import Passwords
from booking.accounts import Account, Role
from booking.bookings import BookingRequest
from booking.drivers import MAIN_FLEET
from booking.errors import InvalidInput
from booking.postgres.accounts import credentials, ensure_account
from booking.postgres.database import Database
from booking.postgres.ledger import PostgresLedger, add_driver, add_rider
from booking.postgres.schema import SHIPPED_ALLOCATOR
from booking.postgres.tables import drivers, riders
from booking.strategies import Act, find
from booking.time_window import TimeWindow

DRIVERS = ("Ada", "Grace", "Edsger", "Barbara", "Tony")
RIDERS = ("Katherine", "Alan", "Margaret")
PASSWORD = "known to everybody"  # noqa: S105  # which is why it is for loopback alone
EMAILS = {role: f"{role}@demo.example" for role in Role}
_TRIP = timedelta(minutes=30)
_SEED_LOCK = 0x7A78_1002


async def seed(url: str, prevention: str) -> list[Account]:
    """Fill a recipe's database that holds no driver with a fleet, riders and bookings.

    Returns the accounts to try it with, which are there afterwards in any database.
    """
    database = Database(url, pool_size=1)
    allocator = find(Act.ALLOCATION, SHIPPED_ALLOCATOR).load()()  # every driver is named
    ledger = find(Act.PREVENTION, prevention).load()(database, allocator)
    password_hash = await Passwords().hash(PASSWORD)
    try:
        await ledger.transact(lambda connection: _seed(connection, ledger))
        return await database.transact(lambda connection: _seed_accounts(connection, password_hash))
    finally:
        await database.close()


async def refuse_demo_accounts(url: str) -> None:
    """Raise `InvalidInput` if anybody could sign in by the demo's password."""
    database = Database(url, pool_size=1)
    try:
        there = await database.transact(_usable, read_only=True)
    finally:
        await database.close()
    if there:
        raise InvalidInput(
            f"This database has accounts whose password everybody knows: {', '.join(there)}."
            " Disable each by: taxi account disable --email ADDRESS",
            field="--host",
        )


async def _usable(connection: AsyncConnection) -> list[str]:
    found = [await credentials(connection, email) for email in EMAILS.values()]
    return [each.account.email for each in found if each and each.account.disabled_at is None]


async def _seed(connection: AsyncConnection, ledger: PostgresLedger) -> None:
    # Two that start side by side must not both find it empty.
    await connection.execute(select(func.pg_advisory_xact_lock(_SEED_LOCK)))
    if await connection.scalar(select(func.count()).select_from(drivers)):
        return
    fleet = [await add_driver(connection, name, MAIN_FLEET, "Europe/Berlin") for name in DRIVERS]
    who_books = [await add_rider(connection, name) for name in RIDERS]
    tomorrow = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(
        days=1
    )
    for number, driver in enumerate(fleet):
        for hour in (7, 10, 16):
            start = tomorrow + timedelta(hours=hour, minutes=15 * number)
            rider = who_books[(number + hour) % len(who_books)]
            window = TimeWindow(start, start + _TRIP)
            await ledger.book_in(connection, BookingRequest(rider.id, window, driver.id))


async def _seed_accounts(connection: AsyncConnection, password_hash: str) -> list[Account]:
    """An account of each role; of a rider and of a driver only if there is one."""
    await connection.execute(select(func.pg_advisory_xact_lock(_SEED_LOCK)))
    rider_id = await connection.scalar(select(func.min(riders.c.id)))
    driver_id = await connection.scalar(
        select(func.min(drivers.c.id)).where(drivers.c.retired_at.is_(None))
    )
    found = []
    for role, email in EMAILS.items():
        speaks_for = {Role.RIDER: {"rider_id": rider_id}, Role.DRIVER: {"driver_id": driver_id}}
        whom = speaks_for.get(role, {})
        if None not in whom.values():
            found.append(
                await ensure_account(connection, email, role, password_hash=password_hash, **whom)
            )
    return [each for each in found if each.disabled_at is None]


class Demo(NamedTuple):
    """Who may try the service, and a dispatcher's token for it."""

    accounts: Sequence[Account]
    token: str


def what_to_try(client: httpx.Client, address: str, demo: Demo) -> str:
    """The address of the API page, who may sign in, and requests that work when pasted.

    Without the requests where the database is somebody's own and has nobody to book.
    """
    client.headers["Authorization"] = f"Bearer {demo.token}"
    drivers = client.get("/drivers", params={"limit": 1, "working": True}).json()["items"]
    riders = client.get("/riders", params={"limit": 1}).json()["items"]
    start, end = _free_time(client, drivers[0]["id"]) if drivers else (None, None)
    emails = "\n                      ".join(each.email for each in demo.accounts)
    lines = f"""
Serving on {address}

  API page            {address}/docs
  Sign in as          {emails}
  Password            {PASSWORD}    (these three words)

  A dispatcher's      export TAXI_TOKEN={demo.token}
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
        curl = 'curl -H "Authorization: Bearer $TAXI_TOKEN"'
        book = f"{curl} -i {address}/bookings -H 'Content-Type: application/json' -d '{body}'"
        lines += f"""
  Book                {book}
  Book again (409)    {book}
  Find a free driver  {curl} '{address}/availability?start={start}&end={end}'
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
