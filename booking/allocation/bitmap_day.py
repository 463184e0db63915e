"""A bit map a driver and day: 288 slots of five minutes, and one row to lock.

Idea
----
Draw each driver's day as 288 bits, one for five minutes, 1 where a booking
touches. Whether somebody is free for a window is then one AND, and the row that
holds the bits is the thing to lock.

What happens
------------
1. From a random driver of the fleet on, and then from the first: the first row of
   the day whose bits are all 0 in the window, with that driver's own row, `FOR NO
   KEY UPDATE SKIP LOCKED`. A window over midnight meets two rows, and both must
   fit. A row that somebody else has changed meanwhile is looked at again as it is
   now.
2. The recipe records the booking, and a trigger sets the bits. When time is given
   back, it clears those that no other booking of the driver touches.
3. Nothing found? Whoever has no row for that day yet has nothing booked on it:
   write them an empty one, and look again.
4. Still nothing? Windows off the grid are rounded outward, so the bits say "taken"
   too often: a trip that ends at 10:02 sets the slot until 10:05. So ask the
   bookings themselves, exactly. Nobody: nobody was free, and the request is
   refused. Somebody: wait for those drivers one by one, look again under the lock,
   and book, up to `ROUNDS_MAX` times.

On the grid of five minutes step 4 finds only those whom others had locked. Days
are days of UTC. Everybody who writes a booking holds the driver's row first: see
`searches`.

Costs
-----
With a share p of the D drivers of the fleet free, about 1/p rows of 36 bytes of
bits; D when nobody is free, and then the same walk over the bookings as
`ask_then_offer`. A booking writes one row, or two. Memory: a row of some 100
bytes a driver and day; those of a day without active bookings may be deleted.

Breaks when
-----------
Trips keep to no grid and the fleet is nearly full: then step 4 does the work. The
first search of a day writes a row for each driver, and holds them all until it is
done. The triggers are disabled, or `bookings` is emptied by TRUNCATE, which calls
none. And recipes that lock something before the driver's row, or are stricter than
READ COMMITTED, fare as with `free_gaps_skip_locked`.
"""

from datetime import date, timedelta

from sqlalchemy import (
    BigInteger,
    Date,
    Select,
    Text,
    bindparam,
    column,
    func,
    literal,
    literal_column,
    select,
    table,
    text,
)
from sqlalchemy.dialects.postgresql import BIT, TSTZRANGE
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.selectable import NamedFromClause

from booking.bookings import Booking, BookingRequest
from booking.errors import Contended, NoDriverFree
from booking.ledgers import Claim
from booking.postgres import reads, searches
from booking.postgres.ledger import Record
from booking.postgres.tables import drivers
from booking.time_window import TimeWindow

SLOT = timedelta(minutes=5)
SLOTS = timedelta(days=1) // SLOT

_ZEROES = f"CAST(0 AS bit({SLOTS}))"

_MAPS = (
    f"""
    CREATE TABLE IF NOT EXISTS day_maps (
        driver_id bigint NOT NULL,
        fleet     text NOT NULL,
        day       date NOT NULL,
        taken     bit({SLOTS}) NOT NULL,
        PRIMARY KEY (driver_id, day)
    )
    """,
    "CREATE INDEX IF NOT EXISTS day_maps_by_day ON day_maps (fleet, day, driver_id)",
    # Of a window that does not meet the day, none: what is too long is cut off by the cast.
    f"""
    CREATE OR REPLACE FUNCTION slots_of(during tstzrange, day date) RETURNS bit({SLOTS})
    LANGUAGE sql IMMUTABLE AS $$
        SELECT (repeat('0', first) || repeat('1', last - first) || repeat('0', {SLOTS} - last))
               ::bit({SLOTS})
        FROM (
            SELECT greatest(0, floor(extract(epoch FROM lower(during) - midnight) / slot))::int,
                   least({SLOTS}, ceil(extract(epoch FROM upper(during) - midnight) / slot))::int
            FROM (VALUES (day::timestamp AT TIME ZONE 'UTC', {SLOT // timedelta(seconds=1)}))
                 AS of_day (midnight, slot)
        ) AS slots (first, last)
    $$
    """,  # noqa: S608  # words of our own
    """
    CREATE OR REPLACE FUNCTION days_of(during tstzrange) RETURNS SETOF date
    LANGUAGE sql IMMUTABLE AS $$
        SELECT first + number
        FROM (VALUES (
            (lower(during) AT TIME ZONE 'UTC')::date,
            ((upper(during) - interval '1 microsecond') AT TIME ZONE 'UTC')::date
        )) AS days (first, last), generate_series(0, last - first) AS number
    $$
    """,
)

# As wide as slots are: another booking may touch the slot in which this one begins or ends.
_WIDER = f"tstzrange(lower(OLD.during) - interval '{SLOT}', upper(OLD.during) + interval '{SLOT}')"

_BY_BOOKINGS = f"""
    CREATE OR REPLACE FUNCTION bookings_keep_day_maps() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE
        held  boolean := TG_OP <> 'INSERT' AND OLD.state IN ({searches.ACTIVE_LIST});
        holds boolean := TG_OP <> 'DELETE' AND NEW.state IN ({searches.ACTIVE_LIST});
    BEGIN
        IF held AND holds AND OLD.driver_id = NEW.driver_id AND OLD.during = NEW.during THEN
            RETURN NULL;
        END IF;
        IF held THEN
            UPDATE day_maps AS map
            SET taken = (map.taken & ~slots_of(OLD.during, map.day)) | (
                SELECT coalesce(bit_or(slots_of(others.during, map.day)), {_ZEROES})
                FROM ({searches.OTHERS.format(window=_WIDER)}) AS others
            )
            WHERE map.driver_id = OLD.driver_id AND map.day IN (SELECT days_of(OLD.during));
        END IF;
        IF holds THEN
            INSERT INTO day_maps AS map (driver_id, fleet, day, taken)
            SELECT drivers.id, drivers.fleet, day, slots_of(NEW.during, day)
            FROM drivers, days_of(NEW.during) AS day
            WHERE drivers.id = NEW.driver_id
            ON CONFLICT (driver_id, day) DO UPDATE SET taken = map.taken | EXCLUDED.taken;
        END IF;
        RETURN NULL;
    END $$
"""  # noqa: S608  # words of our own

_maps = table(
    "day_maps",
    column("driver_id", BigInteger),
    column("fleet", Text),
    column("day", Date),
    column("taken", BIT(SLOTS)),
)

# The driver first, here as well. Whoever is held by others just now goes without a row.
_OPEN_DAYS = text(f"""
    WITH unmapped AS (
        SELECT id, fleet FROM drivers
        WHERE fleet = :fleet AND retired_at IS NULL AND EXISTS (
            SELECT FROM days_of(:during) AS wanted (day)
            WHERE NOT EXISTS (
                SELECT FROM day_maps
                WHERE day_maps.driver_id = drivers.id AND day_maps.day = wanted.day))
        FOR NO KEY UPDATE SKIP LOCKED
    )
    INSERT INTO day_maps (driver_id, fleet, day, taken)
    SELECT unmapped.id, unmapped.fleet, wanted.day, {_ZEROES}
    FROM unmapped, days_of(:during) AS wanted (day)
    ON CONFLICT DO NOTHING
    RETURNING driver_id
""").bindparams(bindparam("fleet", type_=Text), bindparam("during", type_=TSTZRANGE))  # noqa: S608  # words of our own


class BitmapDay:
    """Locks the row whose bits say "free", and so needs nobody behind it to decide."""

    claim = Claim.ACROSS_PROCESSES
    schema = (
        *_MAPS,
        *searches.DRIVER_FIRST,
        _BY_BOOKINGS,
        """
        CREATE OR REPLACE TRIGGER bookings_keep_day_maps
            AFTER INSERT OR DELETE OR UPDATE OF driver_id, during, state ON bookings
            FOR EACH ROW EXECUTE FUNCTION bookings_keep_day_maps()
        """,
        # Without bookings nothing of it is needed.
        "DELETE FROM day_maps WHERE NOT EXISTS (SELECT FROM bookings)",
        # Whoever has a booking has a map from then on, so it is only the first time that counts.
        f"""
        INSERT INTO day_maps (driver_id, fleet, day, taken)
        SELECT drivers.id, drivers.fleet, day, bit_or(slots_of(bookings.during, day))
        FROM bookings JOIN drivers ON drivers.id = bookings.driver_id,
             days_of(bookings.during) AS day
        WHERE bookings.state IN ({searches.ACTIVE_LIST}) AND NOT EXISTS (SELECT FROM day_maps)
        GROUP BY drivers.id, day
        """,  # noqa: S608  # words of our own
    )

    async def allocate(
        self, connection: AsyncConnection, request: BookingRequest, record: Record
    ) -> Booking:
        """Book any free driver of the request's fleet, as `Allocator.allocate` says."""
        opened = False
        for _ in range(searches.ROUNDS_MAX):
            booked = await _book_unlocked(connection, request, record)
            if booked is None and not opened and await _open_days(connection, request):
                opened = True
                booked = await _book_unlocked(connection, request, record)
            if booked is not None:
                return booked
            listed = (await connection.scalars(searches.free_by_bookings(request))).all()
            if not listed:
                await reads.rider(connection, request.rider_id)
                raise NoDriverFree(field="start")
            booked = await searches.wait_for_each(
                connection,
                request,
                listed,
                lambda driver_id: searches.free_by_bookings(request, driver_id),
                record,
                # We hold everyone for whom we have just written a row.
                wait=not opened,
            )
            if booked is not None:
                return booked
        raise Contended


async def _book_unlocked(
    connection: AsyncConnection, request: BookingRequest, record: Record
) -> Booking | None:
    """Book the first driver from a random one on, or else from the first on; None if all fail."""
    for somewhere in (True, False):
        locked = (await connection.scalars(_lock_one(request, somewhere=somewhere))).all()
        booked = await searches.offer_each(connection, request, locked, record)
        if booked is not None:
            return booked
    return None


async def _open_days(connection: AsyncConnection, request: BookingRequest) -> bool:
    """Write an empty row for everyone of the fleet who has none; False if there was nobody."""
    opened = await connection.execute(
        _OPEN_DAYS, {"fleet": request.fleet, "during": reads.range_of(request.window)}
    )
    return opened.first() is not None


def _lock_one(request: BookingRequest, *, somewhere: bool) -> Select[int]:
    first, last = _maps.alias("first_map"), _maps.alias("last_map")
    window = request.window
    first_day = window.start.date()
    last_day = (window.end - timedelta(microseconds=1)).date()
    # The driver first, as everybody does; the maps as well, so that they are looked at again
    # if they were changed after this statement began.
    statement = (
        select(drivers.c.id)
        .select_from(first)
        .join(last, (last.c.driver_id == first.c.driver_id) & (last.c.day == last_day))
        .join(drivers, drivers.c.id == first.c.driver_id)
        .where(
            first.c.fleet == request.fleet,
            first.c.day == first_day,
            _untouched(first, window, first_day),
            _untouched(last, window, last_day),
            searches.working(request.fleet),
        )
        .order_by(first.c.driver_id)
        .limit(literal_column("1"))
        .with_for_update(key_share=True, skip_locked=True, of=[drivers, first, last])
    )
    if somewhere:
        statement = statement.where(first.c.driver_id >= searches.somewhere(request.fleet))
    return statement


def _untouched(map_: NamedFromClause, window: TimeWindow, day: date) -> ColumnElement[bool]:
    # In a subquery, which is run once and not for each row.
    wanted = select(func.slots_of(literal(reads.range_of(window), TSTZRANGE), literal(day, Date)))
    both = map_.c.taken.op("&")(wanted.scalar_subquery())
    # Not `= 0`, which the planner believes to be so rare that it reads and sorts the whole
    # day; of an inequality it expects a third, and walks until it has one.
    return func.bit_count(both) < literal_column("1")
