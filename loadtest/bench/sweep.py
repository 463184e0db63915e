"""The audit of a benchmark's database: nothing is worth measuring that double-books unseen."""

from booking.postgres.audit import double_bookings
from booking.postgres.database import Database

_SWEEP_S_MAX = 600.0


async def double_booked(url: str) -> int:
    """How many double bookings there are, among all bookings of all drivers."""
    database = Database(url, pool_size=1, statement_s_max=_SWEEP_S_MAX)
    try:
        audit = await database.transact(double_bookings, read_only=True)
        return len(audit.double_bookings)
    finally:
        await database.close()
