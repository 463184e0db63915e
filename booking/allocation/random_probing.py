"""Random probing: look at a few drivers drawn at random, and at everybody only if none is free.

Idea
----
Draw a few drivers at random and look at those alone, however large the fleet is.
While a fair share of the fleet is free, one of `PROBES` drivers is so for certain, or
as good as.

What happens
------------
1. One statement draws `PROBES` random ids, takes for each the next working driver
   of the fleet, and keeps those who look free.
2. Each of these is offered to the recipe, which decides.
3. None of them free, or all of them refused: up to `OFFERS` of *everybody* who
   looks free are offered. Nobody there: nobody was free, and the request is
   refused. All taken meanwhile: draw again, up to `ROUNDS_MAX` times.

Without step 3 it would refuse while drivers are free: of all the ways to be
wrong the one that no audit of the bookings can see.

Costs
-----
`PROBES` index probes of O(log D) for the drivers and of O(log N) for their
bookings, with D drivers and N bookings. With a share p of the fleet free, step 1
fails with probability (1 - p)^PROBES: 18 % at p = 0.1, 72 % at p = 0.02. Step 3
then costs up to D probes.

Breaks when
-----------
Almost nobody is free: then it probes for nothing, and walks the fleet after all.
Drivers behind a wide gap in the ids are drawn more often than others, as every
number within the gap leads to the first one behind it. And without a recipe
behind it that decides, it double-books.
"""

from sqlalchemy import BigInteger, Select, cast, func, literal_column, select, true
from sqlalchemy.ext.asyncio import AsyncConnection

from booking.bookings import Booking, BookingRequest
from booking.errors import Contended, NoDriverFree
from booking.ledgers import Claim
from booking.postgres import reads, searches
from booking.postgres.ledger import Record
from booking.postgres.tables import drivers
from booking.postgres.terms import works_in

PROBES = 16


class RandomProbing:
    """Draws a few drivers and lets the ledger decide."""

    claim = Claim.NOTHING
    schema = ()

    async def allocate(
        self, connection: AsyncConnection, request: BookingRequest, record: Record
    ) -> Booking:
        """Book any free driver of the request's fleet, as `Allocator.allocate` says."""
        for _ in range(searches.ROUNDS_MAX):
            # A driver who was drawn twice is offered once.
            drawn = list(dict.fromkeys(await connection.scalars(_drawn(request))))
            booked = await searches.offer_each(connection, request, drawn, record)
            if booked is not None:
                return booked
            listed = (await connection.scalars(searches.free_by_bookings(request))).all()
            if not listed:
                await reads.rider(connection, request.rider_id)
                raise NoDriverFree(field="start")
            booked = await searches.offer_each(connection, request, listed, record)
            if booked is not None:
                return booked
        raise Contended


def _drawn(request: BookingRequest) -> Select[int]:
    """Who looks free of the drivers next to `PROBES` random ids."""
    ends = (
        select(func.min(drivers.c.id).label("first"), func.max(drivers.c.id).label("last"))
        .where(searches.working(request.fleet))
        .cte("ends")
    )
    # Drawn in a subquery of its own, where random() is asked once a row.
    number = ends.c.first + func.floor(func.random() * (ends.c.last - ends.c.first + 1))
    draws = func.generate_series(1, PROBES).table_valued("draw")
    points = (
        select(cast(number, BigInteger).label("id"))
        .select_from(ends.join(draws, true()))
        .subquery("points")
    )
    others = drivers.alias("others")
    drawn = (
        select(others.c.id)
        .where(others.c.retired_at.is_(None), others.c.fleet == request.fleet)
        .where(others.c.id >= points.c.id)
        .order_by(others.c.id)
        .limit(literal_column("1"))
        .lateral("drawn")
    )
    return (
        select(drivers.c.id)
        .select_from(points)
        .join(drawn, true())
        .join(drivers, drivers.c.id == drawn.c.id)
        .where(works_in(request.window), reads.is_free(request.window))
    )
