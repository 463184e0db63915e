"""Time can be held for a while, and every change of a booking counts its version up.

One transaction: nobody books while it looks at the rows that are there.
"""

from alembic import op

revision = "0002"
down_revision = "0001"

_STATES = "'held', 'confirmed', 'in_progress', 'completed', 'cancelled', 'no_show'"

UP = (
    """
    ALTER TABLE bookings
        ADD COLUMN held_until timestamptz,
        ADD COLUMN version bigint NOT NULL DEFAULT 1,
        DROP CONSTRAINT bookings_state_known,
        ADD CONSTRAINT bookings_state_known CHECK (state IN
            ('held', 'confirmed', 'in_progress', 'completed', 'cancelled', 'expired', 'no_show'))
    """,
    # Nothing could be held before; a row that somebody put there by hand is over.
    "UPDATE bookings SET held_until = created_at WHERE state = 'held'",
    """
    ALTER TABLE bookings ADD CONSTRAINT bookings_held_until_when CHECK (
        state <> 'held' OR held_until IS NOT NULL)
    """,
    "CREATE INDEX bookings_held ON bookings (held_until) WHERE state = 'held'",
    """
    CREATE FUNCTION stamp_booking() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        NEW.changed_in := pg_current_xact_id()::text::bigint;
        NEW.version := OLD.version + 1;
        RETURN NEW;
    END $$
    """,
    "DROP TRIGGER bookings_changed ON bookings",
    """
    CREATE TRIGGER bookings_changed BEFORE UPDATE ON bookings
        FOR EACH ROW EXECUTE FUNCTION stamp_booking()
    """,
    "ALTER TABLE idempotency_keys ADD COLUMN etag text",
)

DOWN = (
    "ALTER TABLE idempotency_keys DROP COLUMN etag",
    "DROP TRIGGER bookings_changed ON bookings",
    """
    CREATE TRIGGER bookings_changed BEFORE UPDATE ON bookings
        FOR EACH ROW EXECUTE FUNCTION stamp_changed_in()
    """,
    "DROP FUNCTION stamp_booking",
    "DROP INDEX bookings_held",
    # The older schema has no word for it; to the rider it comes to the same.
    "UPDATE bookings SET state = 'cancelled' WHERE state = 'expired'",
    f"""
    ALTER TABLE bookings
        DROP CONSTRAINT bookings_held_until_when,
        DROP CONSTRAINT bookings_state_known,
        ADD CONSTRAINT bookings_state_known CHECK (state IN ({_STATES})),
        DROP COLUMN version,
        DROP COLUMN held_until
    """,
)


def upgrade() -> None:
    """Add the columns, the state and the count."""
    for statement in UP:
        op.execute(statement)


def downgrade() -> None:
    """Take them away; what has expired is cancelled."""
    for statement in DOWN:
        op.execute(statement)
