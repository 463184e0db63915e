"""A driver's terms: working hours and turnaround; and a booking's lead, which follows from them.

`during` stays what is blocked, so the constraint and every index hold what they held;
the lead says how much of it lies before the trip.
"""

from alembic import op

revision = "0005"
down_revision = "0004"

_DRIVERS = (
    "ADD COLUMN turnaround_s integer",
    "ADD COLUMN shifts jsonb",
    """ADD COLUMN has_terms boolean
        GENERATED ALWAYS AS (shifts IS NOT NULL OR turnaround_s IS NOT NULL) STORED""",
    "ADD CONSTRAINT drivers_turnaround_in_bounds CHECK (turnaround_s BETWEEN 0 AND 43200)",
)
_BOOKINGS = (
    "ADD COLUMN lead interval",
    "ADD COLUMN pickup double precision[]",
    "ADD COLUMN dropoff double precision[]",
    "ADD COLUMN travel_source text",
    "ADD COLUMN lead_short_s integer NOT NULL DEFAULT 0",
    "ADD CONSTRAINT bookings_lead_not_negative CHECK (lead >= interval '0')",
    """ADD CONSTRAINT bookings_places_are_points CHECK (
        cardinality(pickup) = 2 AND cardinality(dropoff) = 2)""",
)


def upgrade() -> None:
    """Add the terms to drivers, and to bookings where they begin and end and their lead."""
    op.execute(f"ALTER TABLE drivers {', '.join(_DRIVERS)}")
    op.execute("""
        CREATE TABLE working_hours (
            driver_id bigint PRIMARY KEY REFERENCES drivers,
            works     tstzmultirange NOT NULL,
            until     timestamptz NOT NULL
        )
    """)
    op.execute("CREATE INDEX working_hours_until ON working_hours (until)")
    op.execute(f"ALTER TABLE bookings {', '.join(_BOOKINGS)}")


def downgrade() -> None:
    """Forget terms, places and leads; what was blocked is the trip then."""
    op.execute("DROP TABLE working_hours")
    for column in ("lead_short_s", "travel_source", "dropoff", "pickup", "lead"):
        op.execute(f"ALTER TABLE bookings DROP COLUMN {column}")
    for column in ("has_terms", "shifts", "turnaround_s"):
        op.execute(f"ALTER TABLE drivers DROP COLUMN {column}")
