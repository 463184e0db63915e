"""The tables as the code believes them to be.

`migrations/` builds them; a test compares this file, column by column and
constraint by constraint, with the catalogue of a migrated database.
"""

from datetime import timedelta
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Computed,
    Connection,
    Date,
    DateTime,
    Double,
    ForeignKey,
    Identity,
    Index,
    Integer,
    Interval,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    Time,
    and_,
    event,
    func,
    literal_column,
    or_,
    text,
)
from sqlalchemy.dialects.postgresql import (
    ARRAY,
    JSONB,
    TSTZMULTIRANGE,
    TSTZRANGE,
    ExcludeConstraint,
)
from sqlalchemy.sql.elements import ColumnElement

from booking.accounts import Role
from booking.bookings import ACTIVE_STATES, LONGEST, Booking, BookingState
from booking.drivers import TURNAROUND_S_MAX, Driver, Rider
from booking.places import Place
from booking.postgres.attribution import changed_by

metadata = MetaData()

_INSTANT = DateTime(timezone=True)
_THIS_TRANSACTION: ColumnElement[int] = literal_column("(pg_current_xact_id()::text::bigint)")
_ROLES = ", ".join(f"'{role}'" for role in Role)
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
    Column("turnaround_s", Integer),
    # Working hours as they were meant.
    Column("shifts", JSONB(none_as_null=True)),
    # Who has terms is booked with a look at them. One column, for the statements that have none.
    Column(
        "has_terms",
        Boolean,
        Computed("shifts IS NOT NULL OR turnaround_s IS NOT NULL", persisted=True),
    ),
    CheckConstraint("name <> ''", name="drivers_name_not_empty"),
    CheckConstraint("fleet <> ''", name="drivers_fleet_not_empty"),
    CheckConstraint(
        f"turnaround_s BETWEEN 0 AND {TURNAROUND_S_MAX}", name="drivers_turnaround_in_bounds"
    ),
    Index("drivers_working", "fleet", "id", postgresql_where=literal_column("retired_at IS NULL")),
    Index("drivers_changed_in", "changed_in"),
)

# Working hours as instants, for whoever looks through a fleet. Beside the drivers, whose rows
# and index are read for each booking.
working_hours = Table(
    "working_hours",
    metadata,
    Column("driver_id", BigInteger, ForeignKey("drivers.id"), primary_key=True),
    Column("works", TSTZMULTIRANGE, nullable=False),
    Column("until", _INSTANT, nullable=False),
    Index("working_hours_until", "until"),
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
    # `during` is what is blocked; the trip is what is left of it behind the lead.
    Column("lead", Interval),
    Column("pickup", ARRAY(Double)),
    Column("dropoff", ARRAY(Double)),
    Column("travel_source", Text),
    Column("lead_short_s", Integer, nullable=False, server_default=literal_column("0")),
    # Filled by the library in every INSERT and UPDATE of the service; a trigger reads it.
    Column("changed_by", JSONB, default=changed_by, onupdate=changed_by),
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
    CheckConstraint("lead >= interval '0'", name="bookings_lead_not_negative"),
    CheckConstraint(
        "cardinality(pickup) = 2 AND cardinality(dropoff) = 2", name="bookings_places_are_points"
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

waiting_list = Table(
    "waiting_list",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("rider_id", BigInteger, ForeignKey("riders.id"), nullable=False),
    Column("fleet", Text, nullable=False),
    Column("driver_id", BigInteger, ForeignKey("drivers.id")),
    Column("during", TSTZRANGE, nullable=False),
    Column("joined_at", _INSTANT, nullable=False, server_default=func.now()),
    Column("booking_id", BigInteger, ForeignKey("bookings.id"), unique=True),
    Column("withdrawn_at", _INSTANT),
    CheckConstraint(
        "NOT isempty(during) AND lower_inc(during) AND NOT upper_inc(during)"
        " AND NOT lower_inf(during) AND NOT upper_inf(during)",
        name="waiting_list_during_half_open",
    ),
    CheckConstraint(
        "booking_id IS NULL OR withdrawn_at IS NULL", name="waiting_list_offered_or_withdrawn"
    ),
    # Open: who was offered nothing yet and has not withdrawn. What is past is not looked at,
    # as nobody gives back time that is over.
    Index(
        "waiting_list_open",
        "fleet",
        "during",
        postgresql_using="gist",
        postgresql_where=literal_column("booking_id IS NULL AND withdrawn_at IS NULL"),
    ),
    Index("waiting_list_by_rider", "rider_id", "id"),
)

# Not read from the trail, which forgets, and may do so before the trip.
former_drivers = Table(
    "former_drivers",
    metadata,
    Column("driver_id", BigInteger, ForeignKey("drivers.id"), primary_key=True),
    Column("booking_id", BigInteger, ForeignKey("bookings.id"), primary_key=True),
    # As it was when it was given away: what became of it then is none of their business.
    Column("start", _INSTANT, nullable=False),
    Column("predicted_end", _INSTANT, nullable=False),
    Column("version", BigInteger, nullable=False),
)

accounts = Table(
    "accounts",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("email", Text, nullable=False),
    Column("password_hash", Text),
    Column("password_changed_at", _INSTANT),
    Column("role", Text, nullable=False),
    Column("rider_id", BigInteger, ForeignKey("riders.id")),
    Column("driver_id", BigInteger, ForeignKey("drivers.id")),
    Column("issuer", Text),
    Column("subject", Text),
    Column("created_at", _INSTANT, nullable=False, server_default=func.now()),
    Column("disabled_at", _INSTANT),
    CheckConstraint("email <> ''", name="accounts_email_not_empty"),
    CheckConstraint(f"role IN ({_ROLES})", name="accounts_role_known"),
    CheckConstraint("(role = 'rider') = (rider_id IS NOT NULL)", name="accounts_rider_when"),
    CheckConstraint("(role = 'driver') = (driver_id IS NOT NULL)", name="accounts_driver_when"),
    CheckConstraint("(issuer IS NULL) = (subject IS NULL)", name="accounts_issuer_and_subject"),
    CheckConstraint("password_hash IS NULL OR issuer IS NULL", name="accounts_one_way_in"),
    Index("accounts_email", func.lower(literal_column("email")), unique=True),
    Index(
        "accounts_subject",
        "issuer",
        "subject",
        unique=True,
        postgresql_where=literal_column("issuer IS NOT NULL"),
    ),
)

calendar_links = Table(
    "calendar_links",
    metadata,
    # The token itself is nowhere but in the link.
    Column("token_hash", LargeBinary, primary_key=True),
    Column("rider_id", BigInteger, ForeignKey("riders.id"), unique=True),
    Column("driver_id", BigInteger, ForeignKey("drivers.id"), unique=True),
    Column("created_at", _INSTANT, nullable=False, server_default=func.now()),
    CheckConstraint("(rider_id IS NULL) <> (driver_id IS NULL)", name="calendar_links_of_one"),
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


# Who, when, what: written by triggers on `bookings`, in the transaction of the change.
booking_events = Table(
    "booking_events",
    metadata,
    Column("id", BigInteger, Identity(always=True)),
    Column("written_in", BigInteger, nullable=False, server_default=_THIS_TRANSACTION),
    # No foreign key: the trail outlives the booking, and the check would cost each booking.
    Column("booking_id", BigInteger, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("kind", Text, nullable=False),
    Column("at", _INSTANT, nullable=False, server_default=func.clock_timestamp()),
    Column("actor", Text, nullable=False),
    Column("request_id", Text),
    Column("origin", Text),
    Column("booking", JSONB, nullable=False),
    Column("changed", JSONB, nullable=False),
    PrimaryKeyConstraint("written_in", "id", name="booking_events_pkey"),
    Index("booking_events_by_booking", "booking_id", "written_in", "id"),
    Index(
        "booking_events_by_former_driver",
        literal_column("((changed ->> 'driver_id')::bigint)"),
        postgresql_where=literal_column("changed ? 'driver_id'"),
    ),
    Index("booking_events_by_time", "at", postgresql_using="brin"),
)

webhooks = Table(
    "webhooks",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("url", Text, nullable=False),
    Column("secret", Text, nullable=False),
    Column("kinds", ARRAY(Text)),
    Column("fleet", Text),
    Column("created_at", _INSTANT, nullable=False, server_default=func.now()),
    # The cursor: up to which event there is a delivery for each that is wanted.
    Column("read_in", BigInteger, nullable=False),
    Column("read_to", BigInteger, nullable=False),
    Column("disabled_at", _INSTANT),
    Column("disabled_why", Text),
)

webhook_deliveries = Table(
    "webhook_deliveries",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("webhook_id", BigInteger, ForeignKey("webhooks.id", ondelete="CASCADE"), nullable=False),
    # The event; none for a test message.
    Column("written_in", BigInteger),
    Column("event_id", BigInteger),
    Column("booking_id", BigInteger),
    Column("kind", Text, nullable=False),
    Column("happened_at", _INSTANT, nullable=False, server_default=func.now()),
    Column("state", Text, nullable=False, server_default=literal_column("'pending'")),
    Column("attempts", Integer, nullable=False, server_default=literal_column("0")),
    Column("next_try", _INSTANT, nullable=False, server_default=func.now()),
    Column("tried_at", _INSTANT),
    Column("status", SmallInteger),
    Column("error", Text),
    CheckConstraint(
        "state IN ('pending', 'delivered', 'given_up')", name="webhook_deliveries_state_known"
    ),
    Index("webhook_deliveries_by_webhook", "webhook_id", "id"),
    Index(
        "webhook_deliveries_due",
        "webhook_id",
        "next_try",
        postgresql_where=literal_column("state = 'pending'"),
    ),
    Index(
        "webhook_deliveries_in_order",
        "webhook_id",
        "booking_id",
        "id",
        postgresql_where=literal_column("state = 'pending'"),
    ),
)

# The trail is written for each statement, not for each row: bookings are written by the group,
# and a group's events are then one INSERT.
_NOTES = (
    """
    CREATE FUNCTION note_booked() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO booking_events
            (booking_id, version, kind, actor, request_id, origin, booking, changed)
        SELECT id, version,
            CASE state
                WHEN 'confirmed' THEN 'booked' WHEN 'in_progress' THEN 'started' ELSE state
            END,
            coalesce(changed_by ->> 'actor', 'database:' || session_user),
            changed_by ->> 'request_id', changed_by ->> 'origin',
            (to_jsonb(written) - '{during,changed_in,changed_by}'::text[])
                || jsonb_build_object('start', lower(during) + coalesce(lead, '0'),
                    'predicted_end', upper(during)),
            '{}'
        FROM written ORDER BY id;
        RETURN NULL;
    END $$
    """,
    """
    CREATE FUNCTION note_changed() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE
        earlier jsonb := '{}';
    BEGIN
        -- What one transaction does to a booking is one change: nobody saw what lay between.
        IF EXISTS (
            SELECT FROM before JOIN written USING (id) WHERE before.changed_in = written.changed_in
        ) THEN
            WITH taken_back AS (
                DELETE FROM booking_events AS event USING written
                WHERE event.booking_id = written.id AND event.written_in = written.changed_in
                RETURNING event.booking_id, event.version, event.changed
            )
            SELECT coalesce(jsonb_object_agg(booking_id, jsonb_build_object(
                'is_new', version = 1, 'changed', changed)), '{}')
            INTO earlier FROM taken_back;
        END IF;
        INSERT INTO booking_events
            (booking_id, version, kind, actor, request_id, origin, booking, changed)
        SELECT id, version,
            CASE
                WHEN is_new AND state = 'confirmed' THEN 'booked'
                WHEN is_new OR was ->> 'state' <> state THEN
                    CASE state WHEN 'in_progress' THEN 'started' ELSE state END
                WHEN was -> 'driver_id' <> booking -> 'driver_id' THEN 'reassigned'
                WHEN was -> 'start' <> booking -> 'start'
                    OR was -> 'predicted_end' <> booking -> 'predicted_end' THEN
                    CASE state WHEN 'in_progress' THEN 'end_predicted' ELSE 'moved' END
                ELSE 'changed'
            END,
            coalesce(who ->> 'actor', 'database:' || session_user),
            who ->> 'request_id', who ->> 'origin',
            booking,
            CASE WHEN is_new THEN '{}' ELSE (
                SELECT coalesce(jsonb_object_agg(key, value), '{}') FROM jsonb_each(was)
                WHERE key <> 'version' AND booking -> key IS DISTINCT FROM value
            ) END
        FROM (
            SELECT written.id, written.version, written.state, written.changed_by AS who,
                (to_jsonb(written) - '{during,changed_in,changed_by}'::text[])
                    || jsonb_build_object(
                        'start', lower(written.during) + coalesce(written.lead, '0'),
                        'predicted_end', upper(written.during)) AS booking,
                (to_jsonb(before) - '{during,changed_in,changed_by}'::text[])
                    || jsonb_build_object(
                        'start', lower(before.during) + coalesce(before.lead, '0'),
                        'predicted_end', upper(before.during))
                    || coalesce(earlier -> written.id::text -> 'changed', '{}') AS was,
                coalesce((earlier -> written.id::text ->> 'is_new')::boolean, false) AS is_new
            FROM written JOIN before USING (id)
            OFFSET 0 -- each is worked out once
        ) AS change
        ORDER BY id;
        RETURN NULL;
    END $$
    """,
    """
    CREATE FUNCTION note_deleted() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO booking_events (booking_id, version, kind, actor, booking, changed)
        SELECT id, version, 'deleted', 'database:' || session_user,
            (to_jsonb(before) - '{during,changed_in,changed_by}'::text[])
                || jsonb_build_object('start', lower(during) + coalesce(lead, '0'),
                    'predicted_end', upper(during)),
            '{}'
        FROM before ORDER BY id;
        RETURN NULL;
    END $$
    """,
    """
    CREATE FUNCTION keep_events() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF current_setting('taxi.may_rewrite_events', true) = 'on' OR (
            TG_OP = 'DELETE' AND OLD.written_in = pg_current_xact_id()::text::bigint
        ) THEN
            IF TG_OP = 'DELETE' THEN
                RETURN OLD;
            END IF;
            RETURN NEW;
        END IF;
        RAISE restrict_violation USING MESSAGE =
            'What happened is not changed afterwards: booking_events only grows.';
    END $$
    """,
)
_NOTED = (
    """
    CREATE TRIGGER bookings_note_booked AFTER INSERT ON bookings
        REFERENCING NEW TABLE AS written FOR EACH STATEMENT EXECUTE FUNCTION note_booked()
    """,
    """
    CREATE TRIGGER bookings_note_changed AFTER UPDATE ON bookings
        REFERENCING OLD TABLE AS before NEW TABLE AS written
        FOR EACH STATEMENT EXECUTE FUNCTION note_changed()
    """,
    """
    CREATE TRIGGER bookings_note_deleted AFTER DELETE ON bookings
        REFERENCING OLD TABLE AS before FOR EACH STATEMENT EXECUTE FUNCTION note_deleted()
    """,
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
                -- Whoever says who they are says it anew each time; the last one is not to blame.
                IF NEW.changed_by = OLD.changed_by THEN
                    NEW.changed_by := NULL;
                END IF;
                RETURN NEW;
            END $$
        """)
    )
    for function in _NOTES:
        connection.execute(text(function))


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
    if table is bookings:
        for trigger in _NOTED:
            connection.execute(text(trigger))


@event.listens_for(booking_events, "after_create")
def _keep_events(_table: Table, connection: Connection, **_: object) -> None:
    connection.execute(
        text(
            "CREATE TRIGGER booking_events_kept BEFORE UPDATE OR DELETE ON booking_events"
            " FOR EACH ROW EXECUTE FUNCTION keep_events()"
        )
    )


@event.listens_for(former_drivers, "after_create")
def _remember_drivers(_table: Table, connection: Connection, **_: object) -> None:
    connection.execute(
        text("""
            CREATE FUNCTION remember_driver() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                INSERT INTO former_drivers (driver_id, booking_id, start, predicted_end, version)
                VALUES (OLD.driver_id, OLD.id, lower(OLD.during) + coalesce(OLD.lead, '0'),
                    upper(OLD.during), NEW.version)
                ON CONFLICT (driver_id, booking_id) DO UPDATE SET
                    start = EXCLUDED.start, predicted_end = EXCLUDED.predicted_end,
                    version = EXCLUDED.version;
                RETURN NULL;
            END $$
        """)
    )
    connection.execute(
        text("""
            CREATE TRIGGER bookings_driver_changed AFTER UPDATE OF driver_id ON bookings
                FOR EACH ROW WHEN (OLD.driver_id <> NEW.driver_id)
                EXECUTE FUNCTION remember_driver()
        """)
    )


begins: ColumnElement[Any] = func.lower(bookings.c.during, type_=_INSTANT)
"""When a booking begins to take its driver's time: what is ordered and looked for."""
starts: ColumnElement[Any] = begins + func.coalesce(
    bookings.c.lead, literal_column("interval '0'"), type_=Interval
)
"""When the trip of a booking starts."""
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


def takes_bookings(terms_met: ColumnElement[bool]) -> ColumnElement[bool]:
    """Whether a driver works, and has no terms, unless these are met."""
    return and_(drivers.c.retired_at.is_(None), or_(~drivers.c.has_terms, terms_met))


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
    bookings.c.lead,
    bookings.c.pickup,
    bookings.c.dropoff,
    bookings.c.travel_source,
    bookings.c.lead_short_s,
)
"""What `booking_of` needs of a row, in its order."""

DRIVER_COLUMNS = (
    drivers.c.id,
    drivers.c.name,
    drivers.c.fleet,
    drivers.c.zone,
    drivers.c.created_at,
    drivers.c.retired_at,
    drivers.c.turnaround_s,
    drivers.c.shifts.is_not(None).label("has_shifts"),
)
RIDER_COLUMNS = (riders.c.id, riders.c.name, riders.c.created_at)


def booking_of(row: Any) -> Booking:
    """The booking in a row of `BOOKING_COLUMNS`."""
    id_, driver_id, rider_id, state, *rest, pickup, dropoff, source, short_s = row
    places = (None if place is None else Place(*place) for place in (pickup, dropoff))
    state = BookingState(state)
    return Booking(*[id_, driver_id, rider_id, state, *rest, *places, source, short_s])


def driver_of(row: Any) -> Driver:
    """The driver in a row of `DRIVER_COLUMNS`."""
    return Driver(*row)


def rider_of(row: Any) -> Rider:
    """The rider in a row of `RIDER_COLUMNS`."""
    return Rider(*row)
