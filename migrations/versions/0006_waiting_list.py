"""Riders wait for time that is taken, and are offered it in order when it becomes free.

What became of an offer is not kept here: it is the state of the booking that was held.
"""

from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Add the list, and a way to find who waits for some time of a fleet."""
    op.execute("""
        CREATE TABLE waiting_list (
            id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            rider_id     bigint NOT NULL REFERENCES riders,
            fleet        text NOT NULL,
            driver_id    bigint REFERENCES drivers,
            during       tstzrange NOT NULL,
            joined_at    timestamptz NOT NULL DEFAULT now(),
            booking_id   bigint UNIQUE REFERENCES bookings,
            withdrawn_at timestamptz,
            CONSTRAINT waiting_list_during_half_open CHECK (
                NOT isempty(during) AND lower_inc(during) AND NOT upper_inc(during)
                AND NOT lower_inf(during) AND NOT upper_inf(during)),
            CONSTRAINT waiting_list_offered_or_withdrawn CHECK (
                booking_id IS NULL OR withdrawn_at IS NULL)
        )
    """)
    op.execute(
        "CREATE INDEX waiting_list_open ON waiting_list USING gist (fleet, during)"
        " WHERE booking_id IS NULL AND withdrawn_at IS NULL"
    )
    op.execute("CREATE INDEX waiting_list_by_rider ON waiting_list (rider_id, id)")


def downgrade() -> None:
    """Send everybody home; time that is held stays held."""
    op.execute("DROP TABLE waiting_list")
