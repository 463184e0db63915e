"""Drivers, riders, and bookings of which no two active ones share a driver's time.

The range column is stored, not an expression: the exclusion constraint then
reads as what it means, and comparing the catalogue is exact.
"""

from alembic import op

revision = "0001"
down_revision = None

UP = (
    "CREATE EXTENSION IF NOT EXISTS btree_gist",
    """
    CREATE TABLE drivers (
        id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        name       text NOT NULL CONSTRAINT drivers_name_not_empty CHECK (name <> ''),
        fleet      text NOT NULL CONSTRAINT drivers_fleet_not_empty CHECK (fleet <> ''),
        zone       text NOT NULL,
        created_at timestamptz NOT NULL DEFAULT now(),
        retired_at timestamptz,
        changed_in bigint NOT NULL DEFAULT (pg_current_xact_id()::text::bigint)
    )
    """,
    "CREATE INDEX drivers_working ON drivers (fleet, id) WHERE retired_at IS NULL",
    "CREATE INDEX drivers_changed_in ON drivers (changed_in)",
    """
    CREATE TABLE riders (
        id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        name       text NOT NULL CONSTRAINT riders_name_not_empty CHECK (name <> ''),
        created_at timestamptz NOT NULL DEFAULT now()
    )
    """,
    """
    CREATE TABLE bookings (
        id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        driver_id     bigint NOT NULL REFERENCES drivers,
        rider_id      bigint NOT NULL REFERENCES riders,
        state         text NOT NULL,
        during        tstzrange NOT NULL,
        actual_start  timestamptz,
        actual_end    timestamptz,
        cancel_reason text,
        created_at    timestamptz NOT NULL DEFAULT now(),
        changed_in    bigint NOT NULL DEFAULT (pg_current_xact_id()::text::bigint),
        CONSTRAINT bookings_state_known CHECK (state IN
            ('held', 'confirmed', 'in_progress', 'completed', 'cancelled', 'no_show')),
        CONSTRAINT bookings_during_not_empty CHECK (NOT isempty(during)),
        CONSTRAINT bookings_during_half_open CHECK (
            lower_inc(during) AND NOT upper_inc(during)
            AND NOT lower_inf(during) AND NOT upper_inf(during)),
        CONSTRAINT bookings_during_at_most_a_day CHECK (
            upper(during) - lower(during) <= interval '24 hours'),
        CONSTRAINT bookings_actual_end_after_start CHECK (
            actual_end IS NULL OR actual_end > actual_start),
        CONSTRAINT bookings_completed_has_ended CHECK (
            (state = 'completed') = (actual_end IS NOT NULL)),
        CONSTRAINT bookings_started_has_started CHECK (
            state NOT IN ('in_progress', 'completed') OR actual_start IS NOT NULL),
        CONSTRAINT bookings_no_double_booking EXCLUDE USING gist (
            driver_id WITH =, during WITH &&)
            WHERE (state IN ('held', 'confirmed', 'in_progress'))
    )
    """,
    "CREATE INDEX bookings_by_driver ON bookings (driver_id, lower(during), id)",
    "CREATE INDEX bookings_by_rider ON bookings (rider_id, lower(during), id)",
    "CREATE INDEX bookings_by_start ON bookings (lower(during), id)",
    "CREATE INDEX bookings_changed_in ON bookings (changed_in)",
    """
    CREATE TABLE idempotency_keys (
        key         text PRIMARY KEY,
        fingerprint bytea NOT NULL,
        status      smallint NOT NULL,
        location    text,
        body        bytea NOT NULL,
        created_at  timestamptz NOT NULL DEFAULT now()
    )
    """,
    "CREATE INDEX idempotency_keys_created_at ON idempotency_keys (created_at)",
    """
    -- A default is for inserts alone; an update by whatever hand must be found as well.
    CREATE FUNCTION stamp_changed_in() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        NEW.changed_in := pg_current_xact_id()::text::bigint;
        RETURN NEW;
    END $$
    """,
    """
    CREATE TRIGGER drivers_changed BEFORE UPDATE ON drivers
        FOR EACH ROW EXECUTE FUNCTION stamp_changed_in()
    """,
    """
    CREATE TRIGGER bookings_changed BEFORE UPDATE ON bookings
        FOR EACH ROW EXECUTE FUNCTION stamp_changed_in()
    """,
)

# The extension stays: others may have come to rest on it.
DOWN = (
    "DROP TABLE idempotency_keys, bookings, riders, drivers",
    "DROP FUNCTION stamp_changed_in",
)


def upgrade() -> None:
    """Create everything."""
    for statement in UP:
        op.execute(statement)


def downgrade() -> None:
    """Drop everything."""
    for statement in DOWN:
        op.execute(statement)
