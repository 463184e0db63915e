"""Brings the events to the webhooks, beside the service's own work.

Every server process does it; who brings what is settled in the database (`outbox.py`).
Each webhook has a few messages under way at once, of its own, so a slow receiver
keeps nobody waiting but itself. Bookings know nothing of all this.
"""

import asyncio
import logging
import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from http import HTTPStatus
from typing import NamedTuple

import httpx
import msgspec
from standardwebhooks import Webhook

from api import metrics
from api.bodies.events import EventOut
from booking.errors import Unavailable
from booking.postgres import outbox
from booking.postgres.database import Database
from booking.postgres.outbox import WEBHOOKS_MAX, Claimed, DeliveryState
from booking.webhooks import RETRY_S, wait_s

logger = logging.getLogger(__name__)

UNDER_WAY_MAX = 4
"""Messages under way to one webhook at once, in one process."""
_LEASE_MARGIN_S = 45.0
"""How much longer than an answer may take a delivery is ours: time to write down how it went."""
_LAG_INTERVAL_S = 5.0
_GRACE_S = 5.0
_ANSWER_BYTES_MAX = 16 * 1024
_OK, _REDIRECTED = 200, 300

_encode = msgspec.json.Encoder().encode


class Outcome(NamedTuple):
    """How an attempt went: the status of the answer, or why there was none."""

    status: int | None
    error: str | None

    @property
    def accepted(self) -> bool:
        """Whether the receiver took the message."""
        return self.status is not None and _OK <= self.status < _REDIRECTED

    @property
    def gone(self) -> bool:
        """Whether the receiver wants no more messages, ever."""
        return self.status == HTTPStatus.GONE


class Deliveries:
    """Copies what webhooks want, and brings it to them.

    The waits between the attempts are those of `retry_s`. A receiver has `answer_s_max`
    seconds for its answer, from the connection on.
    """

    def __init__(
        self,
        database: Database,
        *,
        answer_s_max: float,
        retry_s: Sequence[float] = RETRY_S,
        poll_interval_s: float = 0.5,
    ) -> None:
        self._database = database
        self._answer_s_max = answer_s_max
        self._retry_s = retry_s
        self._poll_interval_s = poll_interval_s
        self._under_way: Counter[int] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._http: httpx.AsyncClient | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Deliver in the background until the block is left; what is under way may end."""
        helpers = [asyncio.create_task(self._work()), asyncio.create_task(self._watch_the_lag())]
        try:
            yield
        finally:
            for helper in helpers:
                helper.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=_GRACE_S)
            for task in self._tasks:
                task.cancel()  # what it had is due again when the lease is over
            await asyncio.gather(*self._tasks, return_exceptions=True)
            if self._http is not None:
                await self._http.aclose()

    async def _work(self) -> None:
        while True:
            self._wake.clear()
            try:
                await self._turn()
            except Unavailable as error:
                logger.warning("The webhooks wait for now: %s", error)
            except Exception:
                logger.exception("The webhooks failed; they try again")
            with suppress(TimeoutError):
                async with asyncio.timeout(self._poll_interval_s):
                    await self._wake.wait()

    async def _turn(self) -> None:
        """Copy what is new, and send off what is due."""
        to_do = await self._database.transact(outbox.to_do, read_only=True)
        for webhook_id in to_do.to_copy:
            copy = partial(outbox.copy_events, webhook_id=webhook_id)
            if await self._database.transact(copy):
                self._wake.set()  # what was copied is due
        for webhook_id in to_do.to_send:
            free = UNDER_WAY_MAX - self._under_way[webhook_id]
            if free <= 0:
                continue
            lease_s = self._answer_s_max + _LEASE_MARGIN_S
            claimed = await self._database.transact(
                partial(outbox.claim, webhook_id=webhook_id, limit=free, lease_s=lease_s)
            )
            for each in claimed:
                self._send_off(webhook_id, each)

    def _send_off(self, webhook_id: int, claimed: Claimed) -> None:
        def done(task: asyncio.Task[None]) -> None:
            self._under_way[webhook_id] -= 1
            self._tasks.discard(task)
            self._wake.set()  # there is room, and the booking's next event may be due

        self._under_way[webhook_id] += 1
        task = asyncio.create_task(self._deliver(claimed))
        self._tasks.add(task)
        task.add_done_callback(done)

    async def _deliver(self, claimed: Claimed) -> None:
        try:
            outcome = await self._attempt(claimed)
            await self._settle(claimed, outcome)
        except Unavailable as error:
            # It is due again when the lease is over: at least once.
            logger.warning("What became of a delivery could not be written down: %s", error)
        except Exception:
            logger.exception("Delivery %s failed", claimed.id)

    async def _attempt(self, claimed: Claimed) -> Outcome:
        if claimed.event is None and not claimed.is_test:
            return Outcome(None, "the event has been forgotten")
        now = datetime.now(UTC)
        message_id, body = message_of(claimed)
        headers = {
            "content-type": "application/json",
            "webhook-id": message_id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": Webhook(claimed.secret).sign(message_id, now, body),
        }
        try:
            async with asyncio.timeout(self._answer_s_max):
                return await self._post(claimed.url, body, headers)
        except (TimeoutError, httpx.TimeoutException):
            return Outcome(None, "no answer in time")
        except httpx.ConnectError:
            return Outcome(None, "cannot connect")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            return Outcome(None, type(error).__name__)

    async def _post(self, url: str, body: str, headers: dict[str, str]) -> Outcome:
        async with self._client().stream("POST", url, content=body, headers=headers) as answer:
            read = 0
            # Nothing of it is kept. It is read so that the connection can be used again.
            async for chunk in answer.aiter_raw():
                read += len(chunk)
                if read > _ANSWER_BYTES_MAX:
                    break
            outcome = Outcome(answer.status_code, None)
        return outcome if outcome.accepted else outcome._replace(error="not accepted")

    def _client(self) -> httpx.AsyncClient:
        if self._http is None:
            # Nowhere else than told: neither by a redirect nor by a proxy of the environment.
            self._http = httpx.AsyncClient(
                timeout=self._answer_s_max,
                follow_redirects=False,
                trust_env=False,
                # Counted for each webhook: what they all shared, a slow one could use up.
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=WEBHOOKS_MAX),
            )
        return self._http

    async def _settle(self, claimed: Claimed, outcome: Outcome) -> None:
        next_in_s = wait_s(claimed.attempt, random.random(), self._retry_s)  # noqa: S311  # jitter
        forgotten = claimed.event is None and not claimed.is_test
        if outcome.accepted:
            state, next_in_s = DeliveryState.DELIVERED, 0.0
        elif outcome.gone or forgotten or next_in_s is None:
            state, next_in_s = DeliveryState.GIVEN_UP, 0.0
        else:
            state = DeliveryState.PENDING
        if outcome.gone:
            await self._database.transact(
                partial(outbox.disable, claimed=claimed, why="the receiver answered 410 Gone")
            )
        await self._database.transact(
            partial(
                outbox.settle,
                claimed=claimed,
                state=state,
                wait_s=next_in_s,
                status=outcome.status,
                error=outcome.error,
            )
        )

    async def _watch_the_lag(self) -> None:
        while True:
            try:
                lag_s = await self._database.transact(outbox.lag_s, read_only=True)
            except Unavailable:
                pass  # the work says so
            except Exception:
                logger.exception("How far the webhooks are behind is not known")
            else:
                metrics.note_outbox_lag(lag_s)
            await asyncio.sleep(_LAG_INTERVAL_S)


def message_of(claimed: Claimed) -> tuple[str, str]:
    """The message's id, which stays the same however often it is sent, and its body."""
    event = claimed.event
    if event is None:
        told: dict[str, object] = {
            "type": "test",
            "timestamp": claimed.happened_at,
            "data": {},
        }
        return f"test_{claimed.id}", _encode(told).decode()
    told = {
        "type": f"booking.{event.kind.value}",
        "timestamp": event.at,
        "data": EventOut.of(event),
    }
    return f"evt_{event.cursor}", _encode(told).decode()
