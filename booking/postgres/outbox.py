"""Webhooks, and what each of them is still owed.

Two steps, each a short transaction. *Copying* reads the events behind a webhook's
cursor, as everybody reads them (`events.py`), and notes a delivery for each that it
wants; the cursor moves in the same transaction. *Claiming* takes deliveries that are
due, for a while: whoever claims one has it until its lease is over, also if that process dies,
and then it is due again. So everything is delivered at least once.

A delivery is claimed only if no earlier one of the same booking is pending for that
webhook. So a booking's events arrive in order, and one that is not accepted holds back
the later ones of its own booking, and nobody else's.

No transaction is open while a message is under way.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    and_,
    any_,
    delete,
    exists,
    extract,
    func,
    insert,
    literal,
    select,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncConnection

from booking.errors import (
    InvalidInput,
    TooManyWebhooks,
    UnknownCursor,
    UnknownWebhook,
    WebhookDisabled,
)
from booking.events import BookingEvent, Cursor, EventKind
from booking.postgres.events import (
    EVENT_COLUMNS,
    PLACE,
    ended,
    event_of,
    present_position,
    read_events,
)
from booking.postgres.tables import booking_events, drivers, webhook_deliveries, webhooks
from booking.webhooks import check_url, new_secret

WEBHOOKS_MAX = 50
"""How many webhooks there may be: each has messages under way of its own."""
TEST = "test"
"""The kind of a message that tells of no event."""
_ONE_AT_A_TIME = 0x7765_6268  # the advisory lock of whoever adds a webhook

_WEBHOOK_COLUMNS = (
    webhooks.c.id,
    webhooks.c.url,
    webhooks.c.kinds,
    webhooks.c.fleet,
    webhooks.c.created_at,
    webhooks.c.disabled_at,
    webhooks.c.disabled_why,
)
_unread = tuple_(*PLACE) > tuple_(webhooks.c.read_in, webhooks.c.read_to)
_due = webhook_deliveries
_earlier = webhook_deliveries.alias("earlier")


class DeliveryState(StrEnum):
    """What became of a message."""

    PENDING = "pending"
    DELIVERED = "delivered"
    GIVEN_UP = "given_up"


@dataclass(frozen=True, slots=True)
class Webhook:
    """Somebody who is told: where, and of what. The secret is not among it."""

    id: int
    url: str
    kinds: Sequence[str] | None
    """None: of every kind."""
    fleet: str | None
    created_at: datetime
    disabled_at: datetime | None
    disabled_why: str | None


@dataclass(frozen=True, slots=True)
class NewWebhook:
    """A webhook that was just added, with the secret that is told this once."""

    webhook: Webhook
    secret: str

    @property
    def id(self) -> int:
        """The webhook's number."""
        return self.webhook.id


@dataclass(frozen=True, slots=True)
class Delivery:
    """One message to one webhook, and how far it has come."""

    id: int
    webhook_id: int
    event: Cursor | None
    """None for a test."""
    booking_id: int | None
    kind: str
    happened_at: datetime
    state: DeliveryState
    attempts: int
    next_try: datetime
    tried_at: datetime | None
    status: int | None
    error: str | None


class Claimed(NamedTuple):
    """A delivery that is ours to make, for as long as was said."""

    id: int
    attempt: int
    url: str
    secret: str
    happened_at: datetime
    event: BookingEvent | None
    """None for a test, or if it has been forgotten meanwhile."""
    is_test: bool


async def add_webhook(
    connection: AsyncConnection,
    url: str,
    kinds: Sequence[EventKind] | None,
    fleet: str | None,
    *,
    private: bool = False,
) -> NewWebhook:
    """Add a webhook; it is told what happens from now on.

    Raises `InvalidInput` for an address that will not do, which one that is not public does
    only where `private` ones are allowed; and `TooManyWebhooks`.
    """
    check_url(url, private=private)
    # One at a time, or two could both be the last that there may be.
    await connection.execute(select(func.pg_advisory_xact_lock(_ONE_AT_A_TIME)))
    if (await connection.scalar(select(func.count()).select_from(webhooks)) or 0) >= WEBHOOKS_MAX:
        raise TooManyWebhooks
    secret, here = new_secret(), await present_position(connection)
    added = await connection.execute(
        insert(webhooks)
        .values(
            url=url,
            secret=secret,
            kinds=None if kinds is None else sorted(set(kinds)),
            fleet=fleet,
            read_in=here.written_in,
            read_to=here.number,
        )
        .returning(*_WEBHOOK_COLUMNS)
    )
    return NewWebhook(Webhook(*added.one()), secret)


async def list_webhooks(connection: AsyncConnection) -> list[Webhook]:
    """All webhooks in order of id; there are `WEBHOOKS_MAX` at most."""
    rows = await connection.execute(select(*_WEBHOOK_COLUMNS).order_by(webhooks.c.id))
    return [Webhook(*row) for row in rows]


async def read_webhook(connection: AsyncConnection, webhook_id: int) -> Webhook:
    """One webhook. Raises `UnknownWebhook`."""
    return await _webhook(connection, select(*_WEBHOOK_COLUMNS), webhook_id)


async def delete_webhook(connection: AsyncConnection, webhook_id: int) -> Webhook:
    """Delete a webhook with all that it was owed. Raises `UnknownWebhook`."""
    return await _webhook(connection, delete(webhooks).returning(*_WEBHOOK_COLUMNS), webhook_id)


async def enable_webhook(connection: AsyncConnection, webhook_id: int) -> Webhook:
    """Have a webhook told again, from where it stopped; one that is told already stays so.

    Raises `UnknownWebhook`.
    """
    statement = update(webhooks).values(disabled_at=None, disabled_why=None)
    return await _webhook(connection, statement.returning(*_WEBHOOK_COLUMNS), webhook_id)


async def _webhook(connection: AsyncConnection, statement: Any, webhook_id: int) -> Webhook:
    row = (await connection.execute(statement.where(webhooks.c.id == webhook_id))).one_or_none()
    if row is None:
        raise UnknownWebhook(f"There is no webhook {webhook_id}.", field="webhook_id")
    return Webhook(*row)


async def list_deliveries(
    connection: AsyncConnection,
    webhook_id: int,
    state: DeliveryState | None,
    *,
    before: int | None,
    limit: int,
) -> list[Delivery]:
    """What was sent to a webhook or will be, the newest first. Raises `UnknownWebhook`."""
    await read_webhook(connection, webhook_id)
    statement = select(webhook_deliveries).where(webhook_deliveries.c.webhook_id == webhook_id)
    if state is not None:
        statement = statement.where(webhook_deliveries.c.state == state)
    if before is not None:
        statement = statement.where(webhook_deliveries.c.id < before)
    rows = await connection.execute(statement.order_by(webhook_deliveries.c.id.desc()).limit(limit))
    return [_delivery_of(row) for row in rows]


def _delivery_of(row: Any) -> Delivery:
    return Delivery(
        row.id,
        row.webhook_id,
        None if row.event_id is None else Cursor(row.written_in, row.event_id),
        row.booking_id,
        row.kind,
        row.happened_at,
        DeliveryState(row.state),
        row.attempts,
        row.next_try,
        row.tried_at,
        row.status,
        row.error,
    )


async def queue_test(connection: AsyncConnection, webhook_id: int) -> Delivery:
    """Have a message sent that tells of nothing. Raises `UnknownWebhook`, `WebhookDisabled`."""
    await _lock_enabled(connection, webhook_id)
    queued = await connection.execute(
        insert(webhook_deliveries)
        .values(webhook_id=webhook_id, kind=TEST)
        .returning(*webhook_deliveries.c)
    )
    return _delivery_of(queued.one())


async def replay(
    connection: AsyncConnection,
    webhook_id: int,
    *,
    since: datetime | None = None,
    event: Cursor | None = None,
) -> Webhook:
    """Send again what happened since an instant, or from an event on.

    The cursor is put back. What was pending from there on is queued anew, so that a
    booking's events keep their order. Raises `UnknownWebhook`, `WebhookDisabled`,
    `InvalidInput` unless one of the two is given, or `UnknownCursor`.
    """
    present = await _lock_enabled(connection, webhook_id)
    start = min(await _start_of_replay(connection, since, event), present)
    await connection.execute(
        delete(webhook_deliveries).where(
            webhook_deliveries.c.webhook_id == webhook_id,
            webhook_deliveries.c.state == DeliveryState.PENDING,
            tuple_(webhook_deliveries.c.written_in, webhook_deliveries.c.event_id)
            > tuple_(*(literal(each, BigInteger) for each in start)),
        )
    )
    statement = (
        update(webhooks)
        .values(read_in=start.written_in, read_to=start.number)
        .returning(*_WEBHOOK_COLUMNS)
    )
    return await _webhook(connection, statement, webhook_id)


async def _start_of_replay(
    connection: AsyncConnection, since: datetime | None, event: Cursor | None
) -> Cursor:
    """The place before the first event that is to be sent again."""
    if (since is None) == (event is None):
        raise InvalidInput("Say since when, or from which event on: one of the two.", field="since")
    here = await present_position(connection)
    if event is not None:
        if event > here:
            raise UnknownCursor(field="event")
        return Cursor(event.written_in, max(event.number - 1, 0))
    first = (
        await connection.execute(
            select(*PLACE)
            .where(booking_events.c.at >= since, ended(here))
            .order_by(*PLACE)
            .limit(1)
        )
    ).one_or_none()
    return here if first is None else Cursor(first[0], first[1] - 1)


async def _lock_enabled(connection: AsyncConnection, webhook_id: int) -> Cursor:
    """Have the webhook's row, so that nobody copies meanwhile; its cursor."""
    webhook = await _webhook(
        connection, select(*_WEBHOOK_COLUMNS).with_for_update(key_share=True), webhook_id
    )
    if webhook.disabled_at is not None:
        raise WebhookDisabled(
            f"Webhook {webhook_id} is disabled: {webhook.disabled_why}.", field="webhook_id"
        )
    read = select(webhooks.c.read_in, webhooks.c.read_to).where(webhooks.c.id == webhook_id)
    return Cursor(*(await connection.execute(read)).one())


class ToDo(NamedTuple):
    """Webhooks for which something is to be done."""

    to_copy: list[int]
    """There are events behind their cursor."""
    to_send: list[int]
    """Something may be due."""


async def to_do(connection: AsyncConnection) -> ToDo:
    """Look for work."""
    here = await present_position(connection)
    unread = exists().where(_unread, ended(here)).correlate(webhooks)
    due = exists().where(
        _due.c.webhook_id == webhooks.c.id,
        _due.c.state == DeliveryState.PENDING,
        _due.c.next_try <= func.now(),
    )
    rows = (
        await connection.execute(
            select(webhooks.c.id, unread, due).where(webhooks.c.disabled_at.is_(None))
        )
    ).all()
    return ToDo([id_ for id_, has, _ in rows if has], [id_ for id_, _, has in rows if has])


async def copy_events(connection: AsyncConnection, webhook_id: int) -> bool:
    """Note a delivery for each of the next events that the webhook wants.

    Whether anything was done: it is not while somebody else is at it.
    """
    hook = (
        await connection.execute(
            select(webhooks.c.kinds, webhooks.c.fleet, webhooks.c.read_in, webhooks.c.read_to)
            .where(webhooks.c.id == webhook_id, webhooks.c.disabled_at.is_(None))
            .with_for_update(key_share=True, skip_locked=True)
        )
    ).one_or_none()
    if hook is None:
        return False
    page = await read_events(connection, Cursor(hook.read_in, hook.read_to))
    wanted = [each for each in page.events if hook.kinds is None or each.kind in hook.kinds]
    if hook.fleet is not None:
        fleet = await _drivers_of(connection, hook.fleet, wanted)
        wanted = [each for each in wanted if each.booking["driver_id"] in fleet]
    if wanted:
        await connection.execute(
            insert(webhook_deliveries), [_owed(webhook_id, each) for each in wanted]
        )
    if page.events:
        last = page.events[-1].cursor
        await connection.execute(
            update(webhooks)
            .where(webhooks.c.id == webhook_id)
            .values(read_in=last.written_in, read_to=last.number)
        )
    return bool(page.events)


def _owed(webhook_id: int, event: BookingEvent) -> dict[str, object]:
    return {
        "webhook_id": webhook_id,
        "written_in": event.cursor.written_in,
        "event_id": event.cursor.number,
        "booking_id": event.booking_id,
        "kind": event.kind.value,
        "happened_at": event.at,
    }


async def _drivers_of(
    connection: AsyncConnection, fleet: str, events: Sequence[BookingEvent]
) -> set[int]:
    ids = sorted({each.booking["driver_id"] for each in events})
    of_these = any_(literal(ids, ARRAY(BigInteger)))
    found = await connection.scalars(
        select(drivers.c.id).where(drivers.c.fleet == fleet, drivers.c.id == of_these)
    )
    return set(found)


async def claim(
    connection: AsyncConnection, webhook_id: int, limit: int, lease_s: float
) -> list[Claimed]:
    """Take at most `limit` deliveries that are due, for `lease_s` seconds.

    The first pending one of each booking only, and none that somebody else has.
    """
    next_ones = (
        select(_due.c.id)
        .where(
            _due.c.webhook_id == webhook_id,
            _due.c.state == DeliveryState.PENDING,
            _due.c.next_try <= func.now(),
            ~exists().where(
                _earlier.c.webhook_id == _due.c.webhook_id,
                _earlier.c.booking_id == _due.c.booking_id,
                _earlier.c.state == DeliveryState.PENDING,
                _earlier.c.id < _due.c.id,
            ),
        )
        .order_by(_due.c.id)
        .limit(limit)
        .with_for_update(of=_due, skip_locked=True)
        .cte("next_ones")
    )
    taken = (
        update(webhook_deliveries)
        .where(webhook_deliveries.c.id == next_ones.c.id)
        .values(
            attempts=webhook_deliveries.c.attempts + 1,
            next_try=func.now() + timedelta(seconds=lease_s),
        )
        .returning(
            webhook_deliveries.c.id.label("delivery_id"),
            webhook_deliveries.c.webhook_id,
            webhook_deliveries.c.attempts,
            webhook_deliveries.c.kind.label("delivered_kind"),
            webhook_deliveries.c.happened_at,
            webhook_deliveries.c.written_in.label("of_transaction"),
            webhook_deliveries.c.event_id,
        )
        .cte("taken")
    )
    rows = await connection.execute(
        select(taken, webhooks.c.url, webhooks.c.secret, *EVENT_COLUMNS)
        .join_from(taken, webhooks, webhooks.c.id == taken.c.webhook_id)
        .join(
            booking_events,
            and_(
                booking_events.c.written_in == taken.c.of_transaction,
                booking_events.c.id == taken.c.event_id,
            ),
            isouter=True,
        )
        .order_by(taken.c.delivery_id)
    )
    return [_claimed_of(row) for row in rows]


def _claimed_of(row: Any) -> Claimed:
    columns = row[-len(EVENT_COLUMNS) :]
    return Claimed(
        row.delivery_id,
        row.attempts,
        row.url,
        row.secret,
        row.happened_at,
        None if columns[1] is None else event_of(columns),
        row.delivered_kind == TEST,
    )


async def settle(
    connection: AsyncConnection,
    claimed: Claimed,
    state: DeliveryState,
    *,
    wait_s: float = 0.0,
    status: int | None = None,
    error: str | None = None,
) -> None:
    """Write down what became of an attempt; while it stays pending, the next is in `wait_s`.

    Nothing is written if the lease was over and somebody else has made another attempt.
    """
    next_try = func.now() + timedelta(seconds=wait_s)
    settled = await connection.execute(
        update(webhook_deliveries)
        .where(
            webhook_deliveries.c.id == claimed.id,
            webhook_deliveries.c.attempts == claimed.attempt,
            webhook_deliveries.c.state == DeliveryState.PENDING,
        )
        .values(state=state, next_try=next_try, tried_at=func.now(), status=status, error=error)
        .returning(webhook_deliveries.c.webhook_id, webhook_deliveries.c.booking_id)
    )
    row = settled.one_or_none()
    if row is None or state is not DeliveryState.PENDING or row.booking_id is None:
        return
    # Those behind it cannot go before it, and need not be looked at until then.
    await connection.execute(
        update(webhook_deliveries)
        .where(
            webhook_deliveries.c.webhook_id == row.webhook_id,
            webhook_deliveries.c.booking_id == row.booking_id,
            webhook_deliveries.c.state == DeliveryState.PENDING,
            webhook_deliveries.c.id > claimed.id,
        )
        .values(next_try=next_try)
    )


async def disable(connection: AsyncConnection, claimed: Claimed, why: str) -> None:
    """Send nothing more to the webhook of this delivery."""
    of_this = select(webhook_deliveries.c.webhook_id).where(webhook_deliveries.c.id == claimed.id)
    await connection.execute(
        update(webhooks)
        .where(webhooks.c.id == of_this.scalar_subquery(), webhooks.c.disabled_at.is_(None))
        .values(disabled_at=func.now(), disabled_why=why)
    )


async def lag_s(connection: AsyncConnection) -> float:
    """How long the oldest event that a webhook is still owed has been waiting, in seconds."""
    here = await present_position(connection)
    oldest_pending = (
        select(func.min(webhook_deliveries.c.happened_at))
        .join(webhooks, webhooks.c.id == webhook_deliveries.c.webhook_id)
        .where(
            webhooks.c.disabled_at.is_(None), webhook_deliveries.c.state == DeliveryState.PENDING
        )
    )
    next_unread = (
        select(booking_events.c.at)
        .where(_unread, ended(here))
        .order_by(*PLACE)
        .limit(1)
        .correlate(webhooks)
        .scalar_subquery()
    )
    oldest_unread = select(func.min(next_unread)).where(webhooks.c.disabled_at.is_(None))
    oldest = func.least(oldest_pending.scalar_subquery(), oldest_unread.scalar_subquery())
    waited = await connection.scalar(select(extract("epoch", func.clock_timestamp() - oldest)))
    return 0.0 if waited is None else max(float(waited), 0.0)
