"""Statements that write a booking's row and look at nothing else."""

from sqlalchemy import insert, update
from sqlalchemy.ext.asyncio import AsyncConnection

from booking.bookings import Booking, BookingRequest, BookingState
from booking.postgres import reads
from booking.postgres.tables import BOOKING_COLUMNS, booking_of, bookings


async def write_booking(
    connection: AsyncConnection, request: BookingRequest, moving: Booking | None = None
) -> Booking:
    """Insert a confirmed booking, or move one, with no look at anything else."""
    during = reads.range_of(request.window)
    if moving is not None:
        there: dict[str, object] = {"during": during}
        if request.driver_id != moving.driver_id:
            there["driver_id"] = request.driver_id
        return await update_booking(connection, moving, there)
    statement = (
        insert(bookings)
        .values(
            driver_id=request.driver_id,
            rider_id=request.rider_id,
            state=BookingState.CONFIRMED,
            during=during,
        )
        .returning(*BOOKING_COLUMNS)
    )
    return booking_of((await connection.execute(statement)).one())


async def without_lead(connection: AsyncConnection, booking: Booking) -> Booking:
    """The booking, which blocks its trip and no more from now on."""
    if booking.lead is None:
        return booking
    nothing: dict[str, object] = {"lead": None, "lead_short_s": 0, "travel_source": None}
    return await update_booking(connection, booking, nothing)


async def update_booking(
    connection: AsyncConnection, booking: Booking, values: dict[str, object]
) -> Booking:
    """Change a booking's row, with no look at anything else."""
    changed = await connection.execute(
        update(bookings)
        .where(bookings.c.id == booking.id)
        .values(values)
        .returning(*BOOKING_COLUMNS)
    )
    return booking_of(changed.one())
