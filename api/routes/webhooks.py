"""`/webhooks`: who is told by a message of ours what happened."""

from http import HTTPStatus
from typing import Annotated

from litestar import Controller, Response, delete, get, post
from litestar.di import NamedDependency
from litestar.params import JSONBody, PathParameter, QueryParameter

from api.bodies.common import ID_MAX
from api.bodies.webhooks import (
    DeliveryOut,
    DeliveryPage,
    NewWebhookOut,
    ReplayIn,
    WebhookIn,
    WebhookOut,
    Webhooks,
)
from api.idempotency import Command, KeyHeader
from api.pages import CursorQuery, page_of, read_id_cursor
from api.requests import LimitQuery, StrictRequest
from api.responses import LOCATION, body_problems, problems
from api.service import Service
from booking.postgres import outbox
from booking.postgres.events import parse_cursor
from booking.postgres.outbox import DeliveryState
from booking.time_window import utc

WebhookPath = Annotated[int, PathParameter(ge=1, le=ID_MAX)]


class WebhooksController(Controller):
    """Messages to those who want to know, signed after the Standard Webhooks specification."""

    path = "/webhooks"
    tags = ("webhooks",)

    @post(responses=body_problems(), response_headers=[LOCATION], operation_id="add_webhook")
    async def add(
        self,
        data: JSONBody[WebhookIn],
        service: NamedDependency[Service],
        request: StrictRequest,
        idempotency_key: KeyHeader = None,
    ) -> Response[NewWebhookOut]:
        """Have events sent to an address from now on.

        The answer holds the secret that the messages are signed with. It is shown this
        once. Each event is sent until it is accepted (any 2xx), so it may come more than
        once, always under the same `webhook-id`; the events of one booking come in order.
        """
        command = Command(
            lambda c: outbox.add_webhook(
                c, data.url, data.kinds, data.fleet, private=service.settings.webhook_private
            ),
            NewWebhookOut.of,
            status=HTTPStatus.CREATED,
            collection="/webhooks",
        )
        return await service.commands.run(request, idempotency_key, command)

    @get(responses=problems(), operation_id="list_webhooks")
    async def list(self, service: NamedDependency[Service]) -> Webhooks:
        """List all webhooks."""
        return Webhooks([WebhookOut.of(each) for each in await service.look(outbox.list_webhooks)])

    @get("/{webhook_id:int}", responses=problems(HTTPStatus.NOT_FOUND), operation_id="get_webhook")
    async def read(self, webhook_id: WebhookPath, service: NamedDependency[Service]) -> WebhookOut:
        """Read one webhook."""
        return WebhookOut.of(await service.look(lambda c: outbox.read_webhook(c, webhook_id)))

    @delete(
        "/{webhook_id:int}",
        status_code=HTTPStatus.OK,
        responses=problems(HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT),
        operation_id="delete_webhook",
    )
    async def remove(
        self,
        webhook_id: WebhookPath,
        service: NamedDependency[Service],
        request: StrictRequest,
        idempotency_key: KeyHeader = None,
    ) -> Response[WebhookOut]:
        """Delete a webhook, with all that it was owed. The answer is what it was."""
        command = Command(lambda c: outbox.delete_webhook(c, webhook_id), WebhookOut.of)
        return await service.commands.run(request, idempotency_key, command)

    @post(
        "/{webhook_id:int}/enable",
        status_code=HTTPStatus.OK,
        responses=problems(HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT),
        operation_id="enable_webhook",
    )
    async def enable(
        self,
        webhook_id: WebhookPath,
        service: NamedDependency[Service],
        request: StrictRequest,
        idempotency_key: KeyHeader = None,
    ) -> Response[WebhookOut]:
        """Have events sent again to a webhook that was disabled, as its receiver was gone.

        It goes on where it stopped: what happened since is sent as well, as far as it is
        remembered. The message that was answered by 410 is not; a replay sends it again.
        """
        command = Command(lambda c: outbox.enable_webhook(c, webhook_id), WebhookOut.of)
        return await service.commands.run(request, idempotency_key, command)

    @post(
        "/{webhook_id:int}/test",
        responses=problems(HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT),
        operation_id="test_webhook",
    )
    async def test(
        self,
        webhook_id: WebhookPath,
        service: NamedDependency[Service],
        request: StrictRequest,
        idempotency_key: KeyHeader = None,
    ) -> Response[DeliveryOut]:
        """Have a message sent that tells of nothing. The deliveries show what became of it."""
        command = Command(
            lambda c: outbox.queue_test(c, webhook_id),
            DeliveryOut.of,
            status=HTTPStatus.CREATED,
        )
        return await service.commands.run(request, idempotency_key, command)

    @post(
        "/{webhook_id:int}/replay",
        status_code=HTTPStatus.OK,
        responses=body_problems(HTTPStatus.NOT_FOUND),
        operation_id="replay_webhook",
    )
    async def replay(
        self,
        webhook_id: WebhookPath,
        data: JSONBody[ReplayIn],
        service: NamedDependency[Service],
        request: StrictRequest,
        idempotency_key: KeyHeader = None,
    ) -> Response[WebhookOut]:
        """Send again what happened since an instant, or from an event on.

        The messages have the ids that they had, so a receiver that keeps them knows
        what it has seen.
        """
        since = None if data.since is None else utc(data.since, "since")
        event = None if data.event is None else parse_cursor(data.event, "event")
        command = Command(
            lambda c: outbox.replay(c, webhook_id, since=since, event=event), WebhookOut.of
        )
        return await service.commands.run(request, idempotency_key, command)

    @get(
        "/{webhook_id:int}/deliveries",
        responses=problems(HTTPStatus.NOT_FOUND),
        operation_id="list_deliveries",
    )
    async def deliveries(
        self,
        webhook_id: WebhookPath,
        service: NamedDependency[Service],
        delivery_state: Annotated[DeliveryState | None, QueryParameter(name="state")] = None,
        limit: LimitQuery = 100,
        cursor: CursorQuery = None,
    ) -> DeliveryPage:
        """List what was sent to a webhook, or will be, the newest first."""
        before = None if cursor is None else read_id_cursor(cursor)
        rows = await service.look(
            lambda c: outbox.list_deliveries(
                c, webhook_id, delivery_state, before=before, limit=limit + 1
            )
        )
        return page_of(DeliveryPage, rows, limit, DeliveryOut.of, lambda delivery: delivery.id)
