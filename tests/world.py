"""A ledger and a few words to talk to it with, for tests."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import func, select, text

from booking.bookings import Booking, BookingRequest
from booking.drivers import MAIN_FLEET
from booking.postgres import audit, ledger
from booking.postgres.audit import Audit
from booking.postgres.database import Database
from booking.postgres.ledger import PostgresLedger
from booking.postgres.tables import bookings
from booking.time_window import TimeWindow

NewDatabase = Callable[..., str]
"""The fixture `new_database`: `new_database(recipe)` or `new_database(recipe, allocator)`."""
Execute = Callable[..., Awaitable[None]]
"""The fixture `execute`."""

MIDNIGHT = datetime(2026, 3, 8, tzinfo=UTC)


def hours(start: float, end: float) -> TimeWindow:
    """The window between two hours of one fixed day."""
    return TimeWindow(MIDNIGHT + timedelta(hours=start), MIDNIGHT + timedelta(hours=end))


async def until_someone_waits_for_a_lock(database: Database, how_many: int = 1) -> None:
    """Return once so many transactions of the database are waiting for others."""
    waiting = select(func.count()).select_from(text("pg_locks")).where(text("NOT granted"))
    # The server has no event to wait for.
    while await database.transact(lambda c: c.scalar(waiting), read_only=True) < how_many:  # noqa: ASYNC110
        await asyncio.sleep(0.01)


@dataclass(frozen=True)
class World:
    """A ledger under test."""

    database: Database
    ledger: PostgresLedger

    async def driver(self, fleet: str = MAIN_FLEET) -> int:
        """A new driver's id."""
        added = await self.database.transact(
            lambda connection: ledger.add_driver(connection, "Ada", fleet, "UTC")
        )
        return added.id

    async def rider(self) -> int:
        """A new rider's id."""
        added = await self.database.transact(lambda connection: ledger.add_rider(connection, "Bob"))
        return added.id

    async def retire(self, driver_id: int) -> None:
        """Retire a driver."""
        await self.database.transact(lambda connection: ledger.retire_driver(connection, driver_id))

    async def book(
        self, window: TimeWindow, driver_id: int | None = None, **wanted: Any
    ) -> Booking:
        """Book; a new rider unless one is named."""
        rider_id = wanted.pop("rider_id", None) or await self.rider()
        return await self.ledger.book(BookingRequest(rider_id, window, driver_id, **wanted))

    async def recorded(self) -> int:
        """How many bookings the table holds."""
        count = await self.database.transact(
            lambda connection: connection.scalar(select(func.count()).select_from(bookings)),
            read_only=True,
        )
        return count or 0

    async def audit(self) -> Audit:
        """A sweep for double bookings."""
        return await self.database.transact(audit.double_bookings, read_only=True)


async def until_all_before_have_ended(database: Database) -> None:
    """Return once every transaction that has begun by now has ended, also the server's own.

    Only then is what they wrote shown to those who read the events.
    """
    now = select(text("pg_current_xact_id()::text::bigint"))
    begun = await database.transact(lambda c: c.scalar(now))
    oldest = select(text("pg_snapshot_xmin(pg_current_snapshot())::text::bigint"))
    while await database.transact(lambda c: c.scalar(oldest), read_only=True) <= begun:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
