"""Brings the events to the webhooks, beside the service's own work.

Every server process does it; who brings what is settled in the database (`outbox.py`).
Each webhook has a few messages under way at once, of its own, so a slow receiver
keeps nobody waiting but itself. Bookings know nothing of all this.
"""

import asyncio
import ipaddress
import logging
import random
import socket
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from http import HTTPStatus
from typing import NamedTuple, override

import httpcore
import httpx
import msgspec
from standardwebhooks import Webhook

from api import metrics
from api.bodies.events import EventOut
from booking.errors import Unavailable
from booking.postgres import outbox
from booking.postgres.database import Database
from booking.postgres.outbox import WEBHOOKS_MAX, Claimed, DeliveryState
from booking.webhooks import RETRY_S, is_public, wait_s

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
    seconds for its answer, from the connection on. It may be on this machine or in a private
    network only where `private` addresses are allowed.
    """

    def __init__(
        self,
        database: Database,
        *,
        answer_s_max: float,
        private: bool = False,
        retry_s: Sequence[float] = RETRY_S,
        poll_interval_s: float = 0.5,
    ) -> None:
        self._database = database
        self._answer_s_max = answer_s_max
        self._private = private
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
        except _NotPublic:
            return Outcome(None, "the address is not a public one")
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
            # Counted for each webhook: what they all shared, a slow one could use up.
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=WEBHOOKS_MAX)
            transport = httpx.AsyncHTTPTransport if self._private else _ToPublicAddresses
            # Nowhere else than told: neither by a redirect nor by a proxy of the environment.
            self._http = httpx.AsyncClient(
                timeout=self._answer_s_max,
                follow_redirects=False,
                trust_env=False,
                transport=transport(trust_env=False, limits=limits),
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


# Where connections may lead ----------------------------------------------------------------------


class _NotPublic(Exception):  # no error of the domain: it is noted as why there was no answer
    """What was to be connected to is this machine, or in a private network."""


class _OnlyPublic(httpcore.AsyncNetworkBackend):
    """Connects to public addresses alone.

    A name is looked up once, and what was looked at is what is connected to: asked a second
    time, it could lead elsewhere.
    """

    def __init__(self) -> None:
        self._any = httpcore.AnyIOBackend()

    @override
    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # as httpcore has it
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise httpcore.ConnectError(str(error)) from error
        addresses = [str(address[0]) for *_, address in found]
        if not all(is_public(ipaddress.ip_address(each)) for each in addresses):
            raise _NotPublic
        share_s = None if timeout is None else timeout / len(addresses)
        failures: list[Exception] = []
        for each in addresses:
            try:
                return await self._any.connect_tcp(
                    each, port, share_s, local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failures.append(error)
        raise failures[-1]


class _ToPublicAddresses(httpx.AsyncHTTPTransport):
    """As its parent, which has no parameter for where connections may lead."""

    def __init__(self, *, trust_env: bool, limits: httpx.Limits) -> None:
        super().__init__(trust_env=trust_env, limits=limits)
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=httpx.create_ssl_context(trust_env=trust_env),
            max_connections=limits.max_connections,
            max_keepalive_connections=limits.max_keepalive_connections,
            keepalive_expiry=limits.keepalive_expiry,
            network_backend=_OnlyPublic(),
        )
