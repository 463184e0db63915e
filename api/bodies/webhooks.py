"""Webhooks, and the messages to them."""

from typing import Annotated, Self

from msgspec import Meta, Struct

from api.bodies.common import FleetName, Id, Instant, Page
from api.bodies.events import EventId
from booking.events import EventKind
from booking.postgres.outbox import Delivery, DeliveryState, NewWebhook, Webhook
from booking.webhooks import URL_CHARS_MAX

WebhookUrl = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=URL_CHARS_MAX,
        description="https; or http on this machine, where the service allows it.",
        examples=["https://example.com/taxi"],
    ),
]


class WebhookIn(Struct, forbid_unknown_fields=True):
    """Who is to be told: where, and of what. What is left out is not restricted."""

    url: WebhookUrl
    kinds: Annotated[list[EventKind], Meta(min_length=1, max_length=50)] | None = None
    fleet: FleetName | None = None


class WebhookOut(Struct):
    """A webhook. Its secret was shown when it was created, and is not shown again."""

    id: Id
    url: str
    kinds: list[str] | None
    fleet: str | None
    created_at: Instant
    disabled_at: Instant | None
    disabled_why: str | None

    @classmethod
    def of(cls, webhook: Webhook) -> Self:
        """As it goes over the wire."""
        return cls(
            webhook.id,
            webhook.url,
            None if webhook.kinds is None else list(webhook.kinds),
            webhook.fleet,
            webhook.created_at,
            webhook.disabled_at,
            webhook.disabled_why,
        )


class NewWebhookOut(Struct):
    """A webhook that was just created, with the secret that its messages are signed with."""

    webhook: WebhookOut
    secret: str

    @classmethod
    def of(cls, new: NewWebhook) -> Self:
        """As it goes over the wire."""
        return cls(WebhookOut.of(new.webhook), new.secret)


class Webhooks(Struct):
    """All webhooks."""

    items: list[WebhookOut]


class ReplayIn(Struct, forbid_unknown_fields=True):
    """From where on events are to be sent again: an instant, or an event."""

    since: Instant | None = None
    event: Annotated[str, Meta(max_length=40)] | None = None


class DeliveryOut(Struct):
    """One message to one webhook: what became of it, and when it is tried next."""

    id: Id
    webhook_id: Id
    event: EventId | None
    booking_id: Id | None
    kind: str
    happened_at: Instant
    state: DeliveryState
    attempts: int
    next_try: Instant | None
    tried_at: Instant | None
    status: int | None
    error: str | None

    @classmethod
    def of(cls, delivery: Delivery) -> Self:
        """As it goes over the wire."""
        pending = delivery.state is DeliveryState.PENDING
        return cls(
            delivery.id,
            delivery.webhook_id,
            None if delivery.event is None else str(delivery.event),
            delivery.booking_id,
            delivery.kind,
            delivery.happened_at,
            delivery.state,
            delivery.attempts,
            delivery.next_try if pending else None,
            delivery.tried_at,
            delivery.status,
            delivery.error,
        )


class DeliveryPage(Page[DeliveryOut]):
    """A part of the list of a webhook's deliveries, the newest first."""

    items: list[DeliveryOut]
