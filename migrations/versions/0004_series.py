"""A recurrence is kept as it was meant, by the clock on the wall, beside its bookings.

The instants follow from the zone's rules, and those change: whoever has the wish can
work them out again.
"""

from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add the series, and to each booking which of them it is of."""
    op.execute("""
        CREATE TABLE booking_series (
            id             bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            rider_id       bigint NOT NULL REFERENCES riders,
            zone           text NOT NULL,
            wall_clock     time NOT NULL,
            duration_s     integer NOT NULL,
            weekdays       smallint[] NOT NULL,
            first_date     date NOT NULL,
            last_date      date,
            occurrences    integer,
            interval_weeks integer NOT NULL,
            created_at     timestamptz NOT NULL DEFAULT now(),
            CONSTRAINT booking_series_ends_one_way CHECK (
                (last_date IS NULL) <> (occurrences IS NULL))
        )
    """)
    op.execute("ALTER TABLE bookings ADD COLUMN series_id bigint REFERENCES booking_series")
    op.execute(
        "CREATE INDEX bookings_by_series ON bookings (series_id) WHERE series_id IS NOT NULL"
    )


def downgrade() -> None:
    """Forget the series; the bookings stay."""
    op.execute("DROP INDEX bookings_by_series")
    op.execute("ALTER TABLE bookings DROP COLUMN series_id")
    op.execute("DROP TABLE booking_series")
