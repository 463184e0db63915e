"""Every change of a booking is written down with it, and told to those who want to know.

The trail is written by triggers, in the transaction of the change itself, so that no
path can forget it. For each statement, not for each row: bookings are written by the
group, and a group's events are then one INSERT.
"""

from alembic import op

revision = "0008"
down_revision = "0007"

UP = (
    "ALTER TABLE bookings ADD COLUMN changed_by jsonb",
    """
    CREATE TABLE booking_events (
        id          bigint GENERATED ALWAYS AS IDENTITY,
        written_in  bigint NOT NULL DEFAULT (pg_current_xact_id()::text::bigint),
        booking_id  bigint NOT NULL,
        version     bigint NOT NULL,
        kind        text NOT NULL,
        at          timestamptz NOT NULL DEFAULT clock_timestamp(),
        actor       text NOT NULL,
        request_id  text,
        origin      text,
        booking     jsonb NOT NULL,
        changed     jsonb NOT NULL,
        PRIMARY KEY (written_in, id)
    )
    """,
    "CREATE INDEX booking_events_by_booking ON booking_events (booking_id, written_in, id)",
    """
    CREATE INDEX booking_events_by_former_driver
        ON booking_events (((changed ->> 'driver_id')::bigint)) WHERE changed ? 'driver_id'
    """,
    "CREATE INDEX booking_events_by_time ON booking_events USING brin (at)",
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
    """
    CREATE OR REPLACE FUNCTION stamp_booking() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        NEW.changed_in := pg_current_xact_id()::text::bigint;
        NEW.version := OLD.version + 1;
        -- Whoever says who they are says it anew each time; the last one is not to blame.
        IF NEW.changed_by = OLD.changed_by THEN
            NEW.changed_by := NULL;
        END IF;
        RETURN NEW;
    END $$
    """,
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
    """
    CREATE TRIGGER booking_events_kept BEFORE UPDATE OR DELETE ON booking_events
        FOR EACH ROW EXECUTE FUNCTION keep_events()
    """,
    """
    CREATE TABLE webhooks (
        id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        url           text NOT NULL,
        secret        text NOT NULL,
        kinds         text[],
        fleet         text,
        created_at    timestamptz NOT NULL DEFAULT now(),
        read_in       bigint NOT NULL,
        read_to       bigint NOT NULL,
        disabled_at   timestamptz,
        disabled_why  text
    )
    """,
    """
    CREATE TABLE webhook_deliveries (
        id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        webhook_id   bigint NOT NULL REFERENCES webhooks ON DELETE CASCADE,
        written_in   bigint,
        event_id     bigint,
        booking_id   bigint,
        kind         text NOT NULL,
        happened_at  timestamptz NOT NULL DEFAULT now(),
        state        text NOT NULL DEFAULT 'pending',
        attempts     integer NOT NULL DEFAULT 0,
        next_try     timestamptz NOT NULL DEFAULT now(),
        tried_at     timestamptz,
        status       smallint,
        error        text,
        CONSTRAINT webhook_deliveries_state_known CHECK (
            state IN ('pending', 'delivered', 'given_up'))
    )
    """,
    "CREATE INDEX webhook_deliveries_by_webhook ON webhook_deliveries (webhook_id, id)",
    """
    CREATE INDEX webhook_deliveries_due ON webhook_deliveries (webhook_id, next_try)
        WHERE state = 'pending'
    """,
    """
    CREATE INDEX webhook_deliveries_in_order ON webhook_deliveries (webhook_id, booking_id, id)
        WHERE state = 'pending'
    """,
)

DOWN = (
    "DROP TABLE webhook_deliveries, webhooks",
    "DROP TRIGGER bookings_note_booked ON bookings",
    "DROP TRIGGER bookings_note_changed ON bookings",
    "DROP TRIGGER bookings_note_deleted ON bookings",
    "DROP TABLE booking_events",
    "DROP FUNCTION note_booked, note_changed, note_deleted, keep_events",
    """
    CREATE OR REPLACE FUNCTION stamp_booking() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        NEW.changed_in := pg_current_xact_id()::text::bigint;
        NEW.version := OLD.version + 1;
        RETURN NEW;
    END $$
    """,
    "ALTER TABLE bookings DROP COLUMN changed_by",
)


def upgrade() -> None:
    """Add the trail and the triggers that write it, the webhooks, and what they are owed."""
    for statement in UP:
        op.execute(statement)


def downgrade() -> None:
    """Forget what happened, and who wanted to know."""
    for statement in DOWN:
        op.execute(statement)
