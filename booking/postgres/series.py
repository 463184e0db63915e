"""Books a recurrence: every occurrence is asked for, and each has an answer of its own."""

from calendar import Day
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from itertools import pairwise
from typing import Any, NamedTuple

from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from booking.bookings import Booking, BookingRequest, BookingState
from booking.errors import (
    BookingConflict,
    IllegalTransition,
    InvalidInput,
    NoDriverFree,
    Refused,
    UnknownSeries,
)
from booking.postgres import reads
from booking.postgres.ledger import PostgresLedger, lock_drivers_of
from booking.postgres.tables import BOOKING_COLUMNS, booking_of, booking_series, bookings
from booking.postgres.writes import update_booking
from booking.recurrence import Occurrence, Recurrence


class OnConflict(StrEnum):
    """What becomes of a series of which some occurrences cannot be booked."""

    ALL_OR_NOTHING = "all_or_nothing"
    SKIP = "skip"


@dataclass(frozen=True, slots=True)
class SeriesRequest:
    """What a rider asks for: every occurrence, of one driver or of any free one each time."""

    wish: BookingRequest
    """Whose, and of whom; its window is that of the first occurrence."""
    recurrence: Recurrence
    on_conflict: OnConflict = OnConflict.ALL_OR_NOTHING

    @classmethod
    def of(
        cls,
        recurrence: Recurrence,
        on_conflict: OnConflict,
        rider_id: int,
        driver_id: int | None,
        fleet: str,
    ) -> "SeriesRequest":
        """A request for every occurrence of `recurrence`.

        Raises `InvalidInput` if two of them would overlap.
        """
        for one, next_one in pairwise(recurrence.occurrences):
            if one.window.overlaps(next_one.window):
                raise InvalidInput(
                    f"The trips of {one.local_date} and {next_one.local_date} would overlap.",
                    field="duration_s",
                )
        first = recurrence.occurrences[0].window
        return cls(BookingRequest(rider_id, first, driver_id, fleet), recurrence, on_conflict)


class Outcome(NamedTuple):
    """What became of one occurrence: it was booked, or refused."""

    occurrence: Occurrence
    booking: Booking | None = None
    refusal: Refused | None = None


class SeriesRefused(Refused):
    """Some occurrences of the series cannot be booked, so none was."""

    def __init__(self, outcomes: Sequence[Outcome]) -> None:
        refused = [each.occurrence.local_date for each in outcomes if each.refusal is not None]
        super().__init__(
            f"{len(refused)} of {len(outcomes)} occurrences cannot be booked, the first of them"
            f" on {refused[0]}, so none was.",
            field="recurrence",
        )
        self.outcomes = tuple(outcomes)


@dataclass(frozen=True, slots=True)
class Series:
    """A recurrence that was booked, with what became of each occurrence."""

    id: int
    rider_id: int
    recurrence: Recurrence
    created_at: datetime
    outcomes: tuple[Outcome, ...]


async def book_series_in(
    ledger: PostgresLedger, connection: AsyncConnection, request: SeriesRequest
) -> Series:
    """Book every occurrence, inside a transaction that is under way.

    Raises `SeriesRefused` with the answer to each if the request wants all or nothing;
    `UnknownDriver`, `DriverRetired`, `UnknownRider`; and `SeriesRefused` as well if not one
    could be booked: an empty series would be nobody's wish.
    """
    wish = request.wish
    await reads.rider(connection, wish.rider_id)
    row = (
        await connection.execute(
            insert(booking_series)
            .values(rider_id=wish.rider_id, **_columns(request.recurrence))
            .returning(booking_series.c.id, booking_series.c.created_at)
        )
    ).one()
    outcomes = [
        await _book_one(ledger, connection, row.id, wish, occurrence)
        for occurrence in request.recurrence.occurrences
    ]
    booked = sum(each.booking is not None for each in outcomes)
    wanted = len(outcomes) if request.on_conflict is OnConflict.ALL_OR_NOTHING else 1
    if booked < wanted:
        raise SeriesRefused(outcomes)
    return Series(row.id, wish.rider_id, request.recurrence, row.created_at, tuple(outcomes))


async def _book_one(
    ledger: PostgresLedger,
    connection: AsyncConnection,
    series_id: int,
    wish: BookingRequest,
    occurrence: Occurrence,
) -> Outcome:
    try:
        booked = await ledger.book_in(connection, replace(wish, window=occurrence.window))
    except (BookingConflict, NoDriverFree) as refusal:
        return Outcome(occurrence, refusal=refusal)
    return Outcome(occurrence, await update_booking(connection, booked, {"series_id": series_id}))


@dataclass(frozen=True, slots=True)
class StoredSeries:
    """A series as it stands now: the wish, and its bookings in order of start."""

    id: int
    rider_id: int
    recurrence: Recurrence
    created_at: datetime
    bookings: tuple[Booking, ...]


async def read_series(
    connection: AsyncConnection, series_id: int, *, lock: bool = False
) -> StoredSeries:
    """The series of that number; with `lock`, its bookings stay as they are until the end.

    Raises `UnknownSeries`.
    """
    found = await connection.execute(select(booking_series).where(booking_series.c.id == series_id))
    row = found.mappings().one_or_none()
    if row is None:
        raise UnknownSeries(f"There is no series {series_id}.", field="series_id")
    # In order of number, as everybody locks bookings.
    statement = (
        select(*BOOKING_COLUMNS).where(bookings.c.series_id == series_id).order_by(bookings.c.id)
    )
    if lock:
        statement = statement.with_for_update(key_share=True)
    booked = map(booking_of, await connection.execute(statement))
    in_order = tuple(sorted(booked, key=lambda each: (each.start, each.id)))
    return StoredSeries(row["id"], row["rider_id"], _recurrence(row), row["created_at"], in_order)


async def cancel_series_in(
    ledger: PostgresLedger, connection: AsyncConnection, series_id: int, reason: str | None
) -> StoredSeries:
    """Cancel every booking of the series that has not begun; the rest stays as it is.

    Raises `UnknownSeries`, or `IllegalTransition` if there is nothing left to cancel.
    """
    # Drivers before bookings, as everybody does.
    await lock_drivers_of(connection, bookings.c.series_id == series_id)
    # Locked, or a trip that begins between the look and the step would be cancelled under way.
    series = await read_series(connection, series_id, lock=True)
    open_ones = [each for each in series.bookings if each.state.to_come]
    if not open_ones:
        raise IllegalTransition(
            f"Series {series_id} has no booking left that could be cancelled.", field="state"
        )
    for each in open_ones:
        await ledger.change_state_in(connection, each.id, BookingState.CANCELLED, reason=reason)
    return await read_series(connection, series_id)


def _columns(recurrence: Recurrence) -> dict[str, Any]:
    return {
        "zone": recurrence.zone,
        "wall_clock": recurrence.wall_clock,
        "duration_s": recurrence.duration_s,
        "weekdays": sorted(recurrence.weekdays),
        "first_date": recurrence.first_date,
        "last_date": recurrence.last_date,
        "occurrences": recurrence.count,
        "interval_weeks": recurrence.interval_weeks,
    }


def _recurrence(row: Any) -> Recurrence:
    return Recurrence(
        row["zone"],
        row["wall_clock"],
        row["duration_s"],
        frozenset(map(Day, row["weekdays"])),
        row["first_date"],
        row["last_date"],
        row["occurrences"],
        row["interval_weeks"],
    )
