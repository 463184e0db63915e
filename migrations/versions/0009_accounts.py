"""Whoever asks has an account, and a calendar program has a link of its own."""

from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Add the accounts and the calendar links; there is nobody in them yet."""
    op.execute("""
        CREATE TABLE accounts (
            id                  bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            email               text NOT NULL,
            password_hash       text,
            password_changed_at timestamptz,
            role                text NOT NULL,
            rider_id            bigint REFERENCES riders,
            driver_id           bigint REFERENCES drivers,
            issuer              text,
            subject             text,
            created_at          timestamptz NOT NULL DEFAULT now(),
            disabled_at         timestamptz,
            CONSTRAINT accounts_email_not_empty CHECK (email <> ''),
            CONSTRAINT accounts_role_known CHECK (
                role IN ('rider', 'driver', 'dispatcher', 'administrator')),
            CONSTRAINT accounts_rider_when CHECK ((role = 'rider') = (rider_id IS NOT NULL)),
            CONSTRAINT accounts_driver_when CHECK ((role = 'driver') = (driver_id IS NOT NULL)),
            CONSTRAINT accounts_issuer_and_subject CHECK ((issuer IS NULL) = (subject IS NULL)),
            CONSTRAINT accounts_one_way_in CHECK (password_hash IS NULL OR issuer IS NULL)
        )
    """)
    op.execute("CREATE UNIQUE INDEX accounts_email ON accounts (lower(email))")
    op.execute(
        "CREATE UNIQUE INDEX accounts_subject ON accounts (issuer, subject)"
        " WHERE issuer IS NOT NULL"
    )
    op.execute("""
        CREATE TABLE calendar_links (
            token_hash bytea PRIMARY KEY,
            rider_id   bigint UNIQUE REFERENCES riders,
            driver_id  bigint UNIQUE REFERENCES drivers,
            created_at timestamptz NOT NULL DEFAULT now(),
            CONSTRAINT calendar_links_of_one CHECK ((rider_id IS NULL) <> (driver_id IS NULL))
        )
    """)


def downgrade() -> None:
    """Forget who may do what; the bookings stay."""
    op.execute("DROP TABLE calendar_links")
    op.execute("DROP TABLE accounts")
