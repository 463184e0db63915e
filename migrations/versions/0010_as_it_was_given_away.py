"""Who gave a booking away is told its time as it was then, and not where it has moved since.

Of those before, the trail may know their time. Where it has forgotten it stays the one
that their calendar has shown so far.
"""

from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    """Keep the time, and the version by which their calendar program tells what is newer."""
    op.execute("""
        ALTER TABLE former_drivers
            ADD COLUMN start timestamptz,
            ADD COLUMN predicted_end timestamptz,
            ADD COLUMN version bigint
    """)
    op.execute("""
        UPDATE former_drivers AS former
        SET start = known.start, predicted_end = known.predicted_end, version = known.version
        FROM (
            SELECT had.driver_id, had.booking_id, bookings.version,
                coalesce((was.booking ->> 'start')::timestamptz,
                    lower(during) + coalesce(lead, '0')) AS start,
                coalesce((was.booking ->> 'predicted_end')::timestamptz,
                    upper(during)) AS predicted_end
            FROM former_drivers AS had
            JOIN bookings ON bookings.id = had.booking_id
            LEFT JOIN LATERAL (
                SELECT event.booking || event.changed AS booking FROM booking_events AS event
                WHERE event.booking_id = had.booking_id
                    AND (event.changed ->> 'driver_id')::bigint = had.driver_id
                ORDER BY event.written_in DESC, event.id DESC
                LIMIT 1
            ) AS was ON true
        ) AS known
        WHERE (former.driver_id, former.booking_id) = (known.driver_id, known.booking_id)
    """)
    op.execute("""
        ALTER TABLE former_drivers
            ALTER COLUMN start SET NOT NULL,
            ALTER COLUMN predicted_end SET NOT NULL,
            ALTER COLUMN version SET NOT NULL
    """)
    op.execute("""
        CREATE OR REPLACE FUNCTION remember_driver() RETURNS trigger LANGUAGE plpgsql AS $$
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


def downgrade() -> None:
    """Know only that they drove it."""
    op.execute("""
        CREATE OR REPLACE FUNCTION remember_driver() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            INSERT INTO former_drivers (driver_id, booking_id) VALUES (OLD.driver_id, OLD.id)
            ON CONFLICT DO NOTHING;
            RETURN NULL;
        END $$
    """)
    op.execute("""
        ALTER TABLE former_drivers
            DROP COLUMN start, DROP COLUMN predicted_end, DROP COLUMN version
    """)
