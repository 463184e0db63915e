"""Ceilings: ledgers that do less than they must, to see what the rest of the work costs.

No strategies: they are never offered to a service, and stand where none looks for them.
"""

from typing import override

from sqlalchemy.ext.asyncio import AsyncConnection

from booking.bookings import Booking, BookingRequest
from booking.ledgers import Claim
from booking.postgres.ledger import PostgresLedger
from booking.postgres.tables import WITHOUT_CONSTRAINT
from booking.postgres.writes import write_booking


class UncheckedInsert(PostgresLedger):
    """Inserts and looks at nothing: not at the bookings, and not whether the driver works.

    What a recipe loses against it is what its safety costs. Behind it, an
    allocator is on its own.
    """

    claim = Claim.NOTHING
    schema = WITHOUT_CONSTRAINT

    @override
    async def record(
        self, connection: AsyncConnection, request: BookingRequest, moving: Booking | None = None
    ) -> Booking:
        return await write_booking(connection, request, moving)
