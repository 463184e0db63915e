"""A late trip moves the bookings behind it, and what their riders were promised is kept."""

from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the promise, and ways to find who is at risk and which trips are under way."""
    op.execute("ALTER TABLE bookings ADD COLUMN promised_start timestamptz")
    op.execute(
        "CREATE INDEX bookings_at_risk ON bookings (lower(during), id)"
        " WHERE promised_start IS NOT NULL AND state IN ('held', 'confirmed')"
    )
    op.execute(
        "CREATE INDEX bookings_under_way ON bookings (upper(during)) WHERE state = 'in_progress'"
    )


def downgrade() -> None:
    """Forget it."""
    op.execute("DROP INDEX bookings_under_way, bookings_at_risk")
    op.execute("ALTER TABLE bookings DROP COLUMN promised_start")
