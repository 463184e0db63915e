"""Ask, then offer: SQL says who looks free; the ledger is offered each in turn. It ships.

Idea
----
Ask for a handful of drivers who look free, and offer the booking to one after
the other. Who *looks* free may be taken a moment later, so the answer of the
query is never trusted: the prevention recipe decides, exactly as if the rider
had named that driver.

What happens
------------
1. An anti-join lists up to `OFFERS` drivers of the fleet who have no active
   booking in the window, beginning at a random driver and wrapping around, so
   that two requests for the same time seldom ask for the same driver.
2. Each is offered to the recipe until one is accepted.
3. Nobody listed: nobody was free at that moment, and the request is refused.
   Everybody listed was taken meanwhile: ask again, up to `ROUNDS_MAX` times.

How the anti-join is written decides what it costs: see `reads.is_free`.

Costs
-----
With D drivers of whom a share p is free, about `OFFERS`/p index probes of
O(log N) each, for N bookings in the table; D probes when nobody is free. The
in-memory roster answers the same question without walking; this way needs
nothing but the tables.

Breaks when
-----------
Almost nobody is free in a large fleet: it then probes nearly every driver for
each request. The random start is a number between the fleet's first id and its
last, so where the ids have a wide gap most requests begin behind the gap and
meet there: the answers are right, but requests get in each other's way. And
without a recipe behind it that decides, it double-books.
"""

from collections.abc import Sequence

from sqlalchemy import Select, literal_column, select, union_all
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql.elements import ColumnElement

from booking.bookings import Booking, BookingRequest
from booking.errors import Contended, NoDriverFree
from booking.ledgers import Claim
from booking.postgres import reads, searches
from booking.postgres.ledger import Record
from booking.postgres.tables import drivers

# Written out, not bound: a plan kept for any value must guess how few rows are wanted.
_OFFERS: ColumnElement[int] = literal_column(f"{searches.OFFERS}")


class AskThenOffer:
    """Lists who looks free and lets the ledger decide."""

    claim = Claim.NOTHING
    schema = ()

    async def allocate(
        self, connection: AsyncConnection, request: BookingRequest, record: Record
    ) -> Booking:
        """Book any free driver of the request's fleet, as `Allocator.allocate` says."""
        for _ in range(searches.ROUNDS_MAX):
            candidates = await _who_looks_free(connection, request)
            if not candidates:
                await reads.rider(connection, request.rider_id)
                raise NoDriverFree(field="start")
            booked = await searches.offer_each(connection, request, candidates, record)
            if booked is not None:
                return booked
        raise Contended


async def _who_looks_free(connection: AsyncConnection, request: BookingRequest) -> Sequence[int]:
    rows = await connection.scalars(_who_looks_free_statement(request))
    return rows.all()


def _who_looks_free_statement(request: BookingRequest) -> Select[int]:
    # Drawn once, for both halves.
    pivot = select(searches.somewhere(request.fleet).label("id")).cte("pivot")
    start = select(pivot.c.id).scalar_subquery()
    free = (
        select(drivers.c.id).where(searches.can_come(request)).order_by(drivers.c.id).limit(_OFFERS)
    )
    from_here_on = free.where(drivers.c.id >= start)
    and_from_the_beginning = free.where(drivers.c.id < start)
    around = union_all(
        from_here_on.subquery("ahead").select(), and_from_the_beginning.subquery("behind").select()
    ).subquery("around")
    return select(around.c.id).limit(_OFFERS)
