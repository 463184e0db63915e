"""The tables as the code believes them to be.

`migrations/` builds them; a test compares this file, column by column and
constraint by constraint, with the catalogue of a migrated database.
"""

from datetime import timedelta
from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Connection,
    Date,
    DateTime,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    Time,
    and_,
    event,
    func,
    literal_column,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, TSTZRANGE, ExcludeConstraint
from sqlalchemy.sql.elements import ColumnElement

from booking.bookings import ACTIVE_STATES, LONGEST, Booking, BookingState
from booking.drivers import Driver, Rider

metadata = MetaData()

_INSTANT = DateTime(timezone=True)
_THIS_TRANSACTION: ColumnElement[int] = literal_column("(pg_current_xact_id()::text::bigint)")
_STATES = ", ".join(f"'{state}'" for state in BookingState)
_ACTIVE = ", ".join(f"'{state}'" for state in BookingState if state in ACTIVE_STATES)

NO_DOUBLE_BOOKING = "bookings_no_double_booking"
"""The exclusion constraint: no two active bookings of one driver overlap."""

WITHOUT_CONSTRAINT = (f"ALTER TABLE bookings DROP CONSTRAINT IF EXISTS {NO_DOUBLE_BOOKING}",)
"""Statements that take the exclusion constraint away: for recipes that go without it."""
INDEX_INSTEAD = (
    *WITHOUT_CONSTRAINT,
    (
        "CREATE INDEX IF NOT EXISTS bookings_by_during ON bookings"
        f" USING gist (driver_id, during) WHERE (state IN ({_ACTIVE}))"
    ),
)
"""The same, and a plain index over the same columns in its place."""

drivers = Table(
    "drivers",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("name", Text, nullable=False),
    Column("fleet", Text, nullable=False),
    Column("zone", Text, nullable=False),
    Column("created_at", _INSTANT, nullable=False, server_default=func.now()),
    Column("retired_at", _INSTANT),
    # The transaction that wrote the row last: how a follower finds what is new.
    Column("changed_in", BigInteger, nullable=False, server_default=_THIS_TRANSACTION),
    CheckConstraint("name <> ''", name="drivers_name_not_empty"),
    CheckConstraint("fleet <> ''", name="drivers_fleet_not_empty"),
    Index("drivers_working", "fleet", "id", postgresql_where=literal_column("retired_at IS NULL")),
    Index("drivers_changed_in", "changed_in"),
)

riders = Table(
    "riders",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("name", Text, nullable=False),
    Column("created_at", _INSTANT, nullable=False, server_default=func.now()),
    CheckConstraint("name <> ''", name="riders_name_not_empty"),
)

booking_series = Table(
    "booking_series",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("rider_id", BigInteger, ForeignKey("riders.id"), nullable=False),
    Column("zone", Text, nullable=False),
    Column("wall_clock", Time, nullable=False),
    Column("duration_s", Integer, nullable=False),
    Column("weekdays", ARRAY(SmallInteger), nullable=False),
    Column("first_date", Date, nullable=False),
    Column("last_date", Date),
    Column("occurrences", Integer),
    Column("interval_weeks", Integer, nullable=False),
    Column("created_at", _INSTANT, nullable=False, server_default=func.now()),
    CheckConstraint(
        "(last_date IS NULL) <> (occurrences IS NULL)", name="booking_series_ends_one_way"
    ),
)

bookings = Table(
    "bookings",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("driver_id", BigInteger, ForeignKey("drivers.id"), nullable=False),
    Column("rider_id", BigInteger, ForeignKey("riders.id"), nullable=False),
    Column("state", Text, nullable=False),
    Column("during", TSTZRANGE, nullable=False),
    Column("actual_start", _INSTANT),
    Column("actual_end", _INSTANT),
    Column("cancel_reason", Text),
    Column("created_at", _INSTANT, nullable=False, server_default=func.now()),
    Column("changed_in", BigInteger, nullable=False, server_default=_THIS_TRANSACTION),
    Column("series_id", BigInteger, ForeignKey("booking_series.id")),
    Column("promised_start", _INSTANT),
    Column("held_until", _INSTANT),
    # Counted up by the trigger that stamps the row, so that no hand can forget it.
    Column("version", BigInteger, nullable=False, server_default=literal_column("1")),
    CheckConstraint(f"state IN ({_STATES})", name="bookings_state_known"),
    CheckConstraint("state <> 'held' OR held_until IS NOT NULL", name="bookings_held_until_when"),
    # An empty range overlaps nothing, so the exclusion constraint would let any number in.
    CheckConstraint("NOT isempty(during)", name="bookings_during_not_empty"),
    CheckConstraint(
        "lower_inc(during) AND NOT upper_inc(during)"
        " AND NOT lower_inf(during) AND NOT upper_inf(during)",
        name="bookings_during_half_open",
    ),
    # Whoever looks for what overlaps a window need not look further back than this.
    CheckConstraint(
        f"upper(during) - lower(during) <= interval '{LONGEST // timedelta(hours=1)} hours'",
        name="bookings_during_at_most_a_day",
    ),
    CheckConstraint(
        "actual_end IS NULL OR actual_end > actual_start", name="bookings_actual_end_after_start"
    ),
    CheckConstraint(
        "(state = 'completed') = (actual_end IS NOT NULL)", name="bookings_completed_has_ended"
    ),
    CheckConstraint(
        "state NOT IN ('in_progress', 'completed') OR actual_start IS NOT NULL",
        name="bookings_started_has_started",
    ),
    # The driver stands first: with the range first the index is ordered by time, and a look
    # at one driver reads what everybody else has booked then.
    ExcludeConstraint(
        ("driver_id", "="),
        ("during", "&&"),
        name=NO_DOUBLE_BOOKING,
        using="gist",
        where=literal_column(f"state IN ({_ACTIVE})"),
    ),
    Index("bookings_by_driver", "driver_id", func.lower(literal_column("during")), "id"),
    Index("bookings_by_rider", "rider_id", func.lower(literal_column("during")), "id"),
    Index("bookings_by_start", func.lower(literal_column("during")), "id"),
    Index("bookings_changed_in", "changed_in"),
    Index(
        "bookings_at_risk",
        func.lower(literal_column("during")),
        "id",
        postgresql_where=literal_column(
            "promised_start IS NOT NULL AND state IN ('held', 'confirmed')"
        ),
    ),
    Index(
        "bookings_under_way",
        func.upper(literal_column("during")),
        postgresql_where=literal_column("state = 'in_progress'"),
    ),
    Index(
        "bookings_by_series",
        "series_id",
        postgresql_where=literal_column("series_id IS NOT NULL"),
    ),
    Index("bookings_held", "held_until", postgresql_where=literal_column("state = 'held'")),
)

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("key", Text, primary_key=True),
    Column("fingerprint", LargeBinary, nullable=False),
    Column("status", SmallInteger, nullable=False),
    Column("location", Text),
    Column("body", LargeBinary, nullable=False),
    Column("created_at", _INSTANT, nullable=False, server_default=func.now()),
    Column("etag", Text),
    Index("idempotency_keys_created_at", "created_at"),
)


@event.listens_for(metadata, "before_create")
def _create_stamp(_metadata: MetaData, connection: Connection, **_: object) -> None:
    connection.execute(
        text("""
            CREATE FUNCTION stamp_changed_in() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                NEW.changed_in := pg_current_xact_id()::text::bigint;
                RETURN NEW;
            END $$
        """)
    )
    connection.execute(
        text("""
            CREATE FUNCTION stamp_booking() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                NEW.changed_in := pg_current_xact_id()::text::bigint;
                NEW.version := OLD.version + 1;
                RETURN NEW;
            END $$
        """)
    )


@event.listens_for(drivers, "after_create")
@event.listens_for(bookings, "after_create")
def _stamp_changes(table: Table, connection: Connection, **_: object) -> None:
    stamp = "stamp_booking" if table is bookings else "stamp_changed_in"
    connection.execute(
        text(
            f"CREATE TRIGGER {table.name}_changed BEFORE UPDATE ON {table.name}"
            f" FOR EACH ROW EXECUTE FUNCTION {stamp}()"
        )
    )


starts: ColumnElement[Any] = func.lower(bookings.c.during, type_=_INSTANT)
"""When a booking starts."""
predicted_ends: ColumnElement[Any] = func.upper(bookings.c.during, type_=_INSTANT)
"""When a booking is predicted to end."""
active: ColumnElement[bool] = bookings.c.state.in_(
    # Literal, not bound: only so can the planner see that the partial index applies.
    [literal_column(f"'{state}'") for state in BookingState if state in ACTIVE_STATES]
)
"""Whether a booking keeps others out of its time."""
to_come: ColumnElement[bool] = bookings.c.state.in_(
    [literal_column(f"'{state}'") for state in BookingState if state.to_come]
)
"""Whether a booking has not begun and may yet."""
lapsed: ColumnElement[bool] = and_(
    bookings.c.state == literal_column(f"'{BookingState.HELD}'"),
    bookings.c.held_until <= func.now(),
)
"""Whether a booking is a hold whose time is over, though nobody has let it expire yet."""

BOOKING_COLUMNS = (
    bookings.c.id,
    bookings.c.driver_id,
    bookings.c.rider_id,
    bookings.c.state,
    starts.label("start"),
    predicted_ends.label("predicted_end"),
    bookings.c.created_at,
    bookings.c.actual_start,
    bookings.c.actual_end,
    bookings.c.cancel_reason,
    bookings.c.promised_start,
    bookings.c.held_until,
    bookings.c.series_id,
    bookings.c.version,
)
"""What `booking_of` needs of a row, in its order."""

DRIVER_COLUMNS = (
    drivers.c.id,
    drivers.c.name,
    drivers.c.fleet,
    drivers.c.zone,
    drivers.c.created_at,
    drivers.c.retired_at,
)
RIDER_COLUMNS = (riders.c.id, riders.c.name, riders.c.created_at)


def booking_of(row: Any) -> Booking:
    """The booking in a row of `BOOKING_COLUMNS`."""
    id_, driver_id, rider_id, state, *rest = row
    return Booking(id_, driver_id, rider_id, BookingState(state), *rest)


def driver_of(row: Any) -> Driver:
    """The driver in a row of `DRIVER_COLUMNS`."""
    return Driver(*row)


def rider_of(row: Any) -> Rider:
    """The rider in a row of `RIDER_COLUMNS`."""
    return Rider(*row)
