"""Who drove a booking before it was given away: their calendar must say that it is theirs no more.

By a trigger, as the recipes have several ways of writing a move.
"""

from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Remember them from now on."""
    op.execute("""
        CREATE TABLE former_drivers (
            driver_id  bigint NOT NULL REFERENCES drivers,
            booking_id bigint NOT NULL REFERENCES bookings,
            PRIMARY KEY (driver_id, booking_id)
        )
    """)
    op.execute("""
        CREATE FUNCTION remember_driver() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            INSERT INTO former_drivers (driver_id, booking_id) VALUES (OLD.driver_id, OLD.id)
            ON CONFLICT DO NOTHING;
            RETURN NULL;
        END $$
    """)
    op.execute("""
        CREATE TRIGGER bookings_driver_changed AFTER UPDATE OF driver_id ON bookings
            FOR EACH ROW WHEN (OLD.driver_id <> NEW.driver_id)
            EXECUTE FUNCTION remember_driver()
    """)


def downgrade() -> None:
    """Forget them."""
    op.execute("DROP TRIGGER bookings_driver_changed ON bookings")
    op.execute("DROP FUNCTION remember_driver")
    op.execute("DROP TABLE former_drivers")
