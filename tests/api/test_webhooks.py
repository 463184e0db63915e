"""Webhooks: real receivers on loopback, which are slow, away, unwilling or gone."""

import asyncio
import contextlib
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, NamedTuple

import httpx
import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from api import deliveries
from api.deliveries import Deliveries
from booking.allocation.ask_then_offer import AskThenOffer
from booking.bookings import BookingRequest, BookingState
from booking.errors import InvalidInput, TooManyWebhooks, UnknownWebhook, WebhookDisabled
from booking.events import BEGINNING, EventKind
from booking.postgres import outbox
from booking.postgres.database import Database
from booking.postgres.events import read_events
from booking.postgres.outbox import Delivery, DeliveryState, NewWebhook
from booking.prevention.grouped_commit import GroupedCommit
from booking.webhooks import JITTER, RETRY_S, check_url, wait_s
from tests.world import World, hours, until_all_before_have_ended

A_LONG_TIME_S = 60.0
"""Only a hang lasts this long; no test depends on being quick."""
AWAY = "cannot connect"
AT_ONCE = (0.0,) * 50
"""No pause before the next attempts."""


class Message(NamedTuple):
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def told(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found

    @property
    def booking_id(self) -> int:
        id_: int = self.told["data"]["booking_id"]
        return id_


Answer = Callable[[Message], Awaitable[int]]


async def accept(_message: Message) -> int:
    return 204


class Receiver:
    """Somebody who is told. `answer` says with which status, after as long as it likes."""

    def __init__(self, answer: Answer = accept) -> None:
        self.answer = answer
        self.came: list[Message] = []
        """Every message, in order."""
        self.taken: list[Message] = []
        """Those that were accepted."""
        self.port = 0
        self._news = asyncio.Condition()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/taxi"

    @asynccontextmanager
    async def listening(self) -> AsyncIterator["Receiver"]:
        server = await asyncio.start_server(self._meet, "127.0.0.1", self.port)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()

    async def _meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            lines = [line.partition(": ") for line in head.split("\r\n")[1:] if line]
            headers = {name.lower(): value for name, _, value in lines}
            message = Message(headers, await reader.readexactly(int(headers["content-length"])))
            await self._note(self.came, message)
            status = await self.answer(message)
            if 200 <= status < 300:
                await self._note(self.taken, message)
            more = "Location: http://127.0.0.1:9/elsewhere\r\n" if 300 <= status < 400 else ""
            writer.write(
                f"HTTP/1.1 {status} Said\r\n{more}Content-Length: 0\r\n"
                "Connection: close\r\n\r\n".encode()
            )
            await writer.drain()
        writer.close()

    async def _note(self, where: list[Message], message: Message) -> None:
        async with self._news:
            where.append(message)
            self._news.notify_all()

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(A_LONG_TIME_S), self._news:
            await self._news.wait_for(holds)


@pytest.fixture
async def world(database: Database) -> World:
    return World(database, GroupedCommit(database, AskThenOffer()))


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with Receiver().listening() as there:
        yield there


async def add(world: World, url: str, *kinds: EventKind, fleet: str | None = None) -> NewWebhook:
    return await world.database.transact(
        partial(outbox.add_webhook, url=url, kinds=kinds or None, fleet=fleet, private=True)
    )


def deliveries_of(world: World, **options: Any) -> Deliveries:
    usual: dict[str, Any] = {
        "answer_s_max": A_LONG_TIME_S,
        "retry_s": AT_ONCE,
        "poll_interval_s": 0.01,
        "private": True,
    }
    return Deliveries(world.database, **usual | options)


async def log_of(world: World, webhook_id: int) -> list[Delivery]:
    return await world.database.transact(
        lambda c: outbox.list_deliveries(c, webhook_id, None, before=None, limit=1_000),
        read_only=True,
    )


async def until_settled(world: World, webhook_id: int, count: int) -> list[Delivery]:
    """The log, the oldest first, once so many are no longer pending."""
    async with asyncio.timeout(A_LONG_TIME_S):
        while True:
            log = await log_of(world, webhook_id)
            if sum(each.state is not DeliveryState.PENDING for each in log) >= count:
                return log[::-1]
            await asyncio.sleep(0.01)


@pytest.mark.anyio
async def test_a_message_is_verified_by_somebody_elses_library_and_a_forged_one_is_not(
    world: World, receiver: Receiver
) -> None:
    hook = await add(world, receiver.url)
    driver = await world.driver()
    async with deliveries_of(world).running():
        booked = await world.book(hours(9, 10), driver)
        await receiver.until(lambda: len(receiver.taken) == 1)
        (settled,) = await until_settled(world, hook.id, 1)
    (message,) = receiver.taken
    told = Webhook(hook.secret).verify(message.body, message.headers)
    assert told["type"] == "booking.booked"
    assert told["data"]["booking"]["id"] == booked.id
    assert told["timestamp"] == told["data"]["at"]
    assert message.id == f"evt_{told['data']['id']}"
    assert "origin" not in told["data"], "where somebody sits is nobody else's business"
    assert (settled.state, settled.attempts, settled.status) == ("delivered", 1, 204)
    forged = message.body.replace(b"confirmed", b"cancelled")
    for secret, body in (
        ((await add(world, receiver.url)).secret, message.body),
        (hook.secret, forged),
    ):
        with pytest.raises(WebhookVerificationError):
            Webhook(secret).verify(body, message.headers)


@pytest.mark.anyio
async def test_only_what_is_wanted_is_sent(world: World, receiver: Receiver) -> None:
    here, elsewhere = await world.driver(), await world.driver("night")
    await world.book(hours(1, 2), here)  # before there was a webhook
    await until_all_before_have_ended(world.database)
    await add(world, receiver.url, EventKind.CANCELLED, fleet="night")
    for driver in (here, elsewhere):
        booked = await world.book(hours(9, 10), driver)
        await world.ledger.change_state(booked.id, BookingState.CANCELLED)
    async with deliveries_of(world).running():
        await receiver.until(lambda: len(receiver.taken) == 1)
    assert [each.told["data"]["booking"]["driver_id"] for each in receiver.came] == [elsewhere]


@pytest.mark.anyio
async def test_a_bookings_events_come_in_order_and_hold_back_no_other_bookings(
    world: World,
) -> None:
    """The first booking's first event is not accepted until the second booking's are all there."""
    others_done = asyncio.Event()
    stubborn = 0

    async def answer(message: Message) -> int:
        if message.booking_id == stubborn and not others_done.is_set():
            return 500
        return 200

    driver = await world.driver()
    async with Receiver(answer).listening() as receiver:
        hook = await add(world, receiver.url)
        stubborn = (await world.book(hours(9, 10), driver)).id
        easy = (await world.book(hours(10, 11), driver)).id
        for id_ in (stubborn, easy):
            await world.ledger.change_state(id_, BookingState.CANCELLED)
        async with deliveries_of(world, retry_s=(0.0,) * 10_000).running():
            await receiver.until(lambda: len(receiver.taken) == 2)
            assert [each.booking_id for each in receiver.taken] == [easy, easy]
            others_done.set()
            log = await until_settled(world, hook.id, 4)
    by_booking = defaultdict(list)
    for message in receiver.taken:
        by_booking[message.booking_id].append(message.told["type"])
    assert set(map(tuple, by_booking.values())) == {("booking.booked", "booking.cancelled")}
    refused = [each for each in receiver.came if each.booking_id == stubborn]
    assert {each.id for each in refused[:-1]} == {refused[0].id}, "always under the same id"
    assert max(each.attempts for each in log) > 1


@pytest.mark.anyio
async def test_a_slow_webhook_receiver_slows_no_booking_and_no_other_receiver(
    world: World, receiver: Receiver
) -> None:
    released = asyncio.Event()

    async def hold(_message: Message) -> int:
        await released.wait()
        return 200

    driver, rider = await world.driver(), await world.rider()
    async with Receiver(hold).listening() as slow, deliveries_of(world).running():
        await add(world, slow.url)
        await add(world, receiver.url)
        for hour in range(10):
            await world.ledger.book(BookingRequest(rider, hours(hour, hour + 1), driver))
        await slow.until(lambda: len(slow.came) == 4)
        await receiver.until(lambda: len(receiver.taken) == 10)
        for hour in range(10, 20):
            await world.ledger.book(BookingRequest(rider, hours(hour, hour + 1), driver))
        await receiver.until(lambda: len(receiver.taken) == 20)
        assert (len(slow.came), len(slow.taken)) == (4, 0), "so many are under way, and no more"
        assert await world.database.transact(outbox.lag_s, read_only=True) > 0
        released.set()
        await slow.until(lambda: len(slow.taken) == 20)
    assert await world.database.transact(outbox.lag_s, read_only=True) == 0


@pytest.mark.anyio
async def test_what_happened_while_a_receiver_was_away_is_there_when_it_is_back(
    world: World,
) -> None:
    receiver = Receiver()
    async with receiver.listening():
        pass  # only for a port that nobody listens on afterwards
    hook = await add(world, receiver.url)
    driver = await world.driver()
    async with deliveries_of(world, retry_s=(0.05,) * 1_000).running():
        booked = [(await world.book(hours(hour, hour + 1), driver)).id for hour in range(3)]
        async with asyncio.timeout(A_LONG_TIME_S):
            while [each.error for each in await log_of(world, hook.id)] != [AWAY] * 3:  # noqa: ASYNC110  # it is in the database
                await asyncio.sleep(0.01)
        async with receiver.listening():
            await until_settled(world, hook.id, 3)
    assert sorted(each.booking_id for each in receiver.taken) == booked


@pytest.mark.anyio
async def test_a_receiver_that_is_gone_is_not_asked_again(world: World) -> None:
    async def gone(_message: Message) -> int:
        return 410

    driver = await world.driver()
    async with Receiver(gone).listening() as receiver, deliveries_of(world).running():
        hook = await add(world, receiver.url)
        await world.book(hours(9, 10), driver)
        (settled,) = await until_settled(world, hook.id, 1)
        assert settled.state is DeliveryState.GIVEN_UP
        await world.book(hours(10, 11), driver)
        await until_all_before_have_ended(world.database)
        to_do = await world.database.transact(outbox.to_do, read_only=True)
        assert (to_do.to_copy, to_do.to_send) == ([], [])
        assert len(receiver.came) == 1
        # Until it is enabled: then it is told what happened meanwhile.
        receiver.answer = accept
        enabled = await world.database.transact(lambda c: outbox.enable_webhook(c, hook.id))
        assert (enabled.disabled_at, enabled.disabled_why) == (None, None)
        await receiver.until(lambda: len(receiver.taken) == 1)
        await until_settled(world, hook.id, 2)
        receiver.answer = gone
        await world.book(hours(11, 12), driver)
        await until_settled(world, hook.id, 3)
    seen = await world.database.transact(lambda c: outbox.read_webhook(c, hook.id))
    assert seen.disabled_at is not None
    with pytest.raises(WebhookDisabled, match="410"):
        await world.database.transact(lambda c: outbox.queue_test(c, hook.id))


@pytest.mark.anyio
async def test_a_redirect_is_not_followed_and_what_fails_each_time_is_given_up(
    world: World,
) -> None:
    async def elsewhere(_message: Message) -> int:
        return 302

    driver = await world.driver()
    async with Receiver(elsewhere).listening() as receiver:
        hook = await add(world, receiver.url)
        booked = await world.book(hours(9, 10), driver)
        await world.ledger.change_state(booked.id, BookingState.CANCELLED)
        async with deliveries_of(world, retry_s=(0.0, 0.0)).running():
            first, second = await until_settled(world, hook.id, 2)
    assert [(each.state, each.attempts, each.status) for each in (first, second)] == [
        ("given_up", 3, 302),
        ("given_up", 3, 302),
    ]
    assert [each.told["type"] for each in receiver.came] == (
        ["booking.booked"] * 3 + ["booking.cancelled"] * 3
    )


@pytest.mark.anyio
async def test_a_name_that_leads_into_a_private_network_is_not_connected_to(
    world: World, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = f"http://localhost:{receiver.port}/"
    hooks = [await add(world, url) for url in (receiver.url, named)]
    await world.book(hours(9, 10), await world.driver())
    async with deliveries_of(world, private=False, retry_s=()).running():
        for hook in hooks:
            (settled,) = await until_settled(world, hook.id, 1)
            assert (settled.state, settled.error) == ("given_up", "the address is not a public one")
    assert receiver.came == []
    # The control: an address that passes is connected to, and so is any where that is allowed.
    monkeypatch.setattr(deliveries, "is_public", lambda _: True)
    for private in (False, True):
        for hook in hooks:
            await world.database.transact(lambda c, id_=hook.id: outbox.queue_test(c, id_))
        async with deliveries_of(world, private=private).running():
            await receiver.until(
                lambda expected=4 if private else 2: len(receiver.taken) == expected
            )


@pytest.mark.anyio
async def test_several_processes_never_have_one_bookings_events_under_way_at_once(
    world: World,
) -> None:
    under_way: set[int] = set()
    overlaps: list[int] = []

    async def answer(message: Message) -> int:
        if message.booking_id in under_way:
            overlaps.append(message.booking_id)
        under_way.add(message.booking_id)
        await asyncio.sleep(0)
        under_way.discard(message.booking_id)
        return 503 if len(receiver.came) % 5 == 0 else 200

    driver = await world.driver()
    receiver = Receiver(answer)
    async with receiver.listening():
        hook = await add(world, receiver.url)
        ids = [(await world.book(hours(hour, hour + 1), driver)).id for hour in range(12)]
        for id_ in ids:
            await world.ledger.change_state(id_, BookingState.CANCELLED)
        async with contextlib.AsyncExitStack() as processes:
            for _ in range(3):
                await processes.enter_async_context(deliveries_of(world).running())
            await until_settled(world, hook.id, 24)
    assert overlaps == []
    for id_ in ids:
        told = [each.told["type"] for each in receiver.taken if each.booking_id == id_]
        assert told == ["booking.booked", "booking.cancelled"]


@pytest.mark.anyio
async def test_a_delivery_whose_process_died_is_due_again_when_its_lease_is_over(
    world: World,
) -> None:
    hook = await add(world, "http://127.0.0.1:9/")
    await world.book(hours(9, 10), await world.driver())
    await until_all_before_have_ended(world.database)
    transact = world.database.transact
    assert await transact(lambda c: outbox.copy_events(c, hook.id))
    (died,) = await transact(lambda c: outbox.claim(c, hook.id, 9, lease_s=0.0))
    (again,) = await transact(lambda c: outbox.claim(c, hook.id, 9, lease_s=1_000.0))
    assert (died.id, died.attempt, again.attempt) == (again.id, 1, 2)
    assert await transact(lambda c: outbox.claim(c, hook.id, 9, lease_s=1_000.0)) == []
    # The one that was given up for dead has no say any more.
    await transact(lambda c: outbox.settle(c, died, DeliveryState.DELIVERED))
    assert [each.state for each in await log_of(world, hook.id)] == [DeliveryState.PENDING]
    await transact(lambda c: outbox.settle(c, again, DeliveryState.DELIVERED))
    assert [each.state for each in await log_of(world, hook.id)] == [DeliveryState.DELIVERED]


@pytest.mark.anyio
async def test_what_was_sent_can_be_sent_again_under_the_same_ids(
    world: World, receiver: Receiver
) -> None:
    hook = await add(world, receiver.url)
    driver = await world.driver()
    async with deliveries_of(world).running():
        for hour in range(4):
            await world.book(hours(hour, hour + 1), driver)
        await until_settled(world, hook.id, 4)
        page = await world.database.transact(lambda c: read_events(c, BEGINNING), read_only=True)
        third = page.events[2]
        await world.database.transact(lambda c: outbox.replay(c, hook.id, event=third.cursor))
        await until_settled(world, hook.id, 6)
        await world.database.transact(lambda c: outbox.replay(c, hook.id, since=page.events[1].at))
        await until_settled(world, hook.id, 9)
    every = [f"evt_{each.cursor}" for each in page.events]
    sent = [each.id for each in receiver.taken]
    assert sorted(sent) == sorted(every + every[2:] + every[1:])
    for since, event in ((None, None), (third.at, third.cursor)):
        with pytest.raises(InvalidInput):
            await world.database.transact(
                lambda c, s=since, e=event: outbox.replay(c, hook.id, since=s, event=e)
            )


@pytest.mark.anyio
async def test_there_are_only_so_many(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "WEBHOOKS_MAX", 1)
    hook = await add(world, "https://example.com")
    with pytest.raises(TooManyWebhooks):
        await add(world, "https://example.com")
    await world.database.transact(lambda c: outbox.delete_webhook(c, hook.id))
    await add(world, "https://example.com")
    with pytest.raises(UnknownWebhook):
        await world.database.transact(lambda c: outbox.delete_webhook(c, hook.id))


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com",
        "https://example.com:8443/a/b?c=d",
        "https://[2606:4700::1111]/x",
        "https://[::ffff:1.1.1.1]/x",
    ],
)
def test_messages_may_go_there(url: str) -> None:
    assert check_url(url) == url


@pytest.mark.parametrize(
    "url",
    [
        "https://10.0.0.1/",
        "https://169.254.169.254/",
        "https://[::ffff:10.0.0.1]/",
        "https://[64:ff9b::10.0.0.1]/",
        "https://[fd00::1]/",
        "https://[ff0e::1]/",
        "https://0.0.0.0/",
        "https://LOCALHOST/",
        "http://127.0.0.1:80/x",
        "http://127.1.2.3",
        "http://[::1]:9/",
        "http://localhost/x",
    ],
)
def test_messages_go_within_a_private_network_only_where_that_is_allowed(url: str) -> None:
    with pytest.raises(InvalidInput, match="private network") as refused:
        check_url(url)
    assert refused.value.field == "url"
    assert check_url(url, private=True) == url


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/",
        "http://10.0.0.1/",
        "http://[2001:db8::1]/",
        "http://localhost.example.com/",
        "http://127.0.0.1.example.com/",
        "https://user:secret@example.com/",
        "http://127.0.0.1\\@example.com/",
        "http://127.0.0.1#@example.com/",
        "https://example.com/#part",
        "https://example.com:99999/",
        "https://example.com/a b",
        "https:///x",
        "ftp://example.com/",
        "example.com",
        f"https://example.com/{'x' * 2_000}",
        "https://example.com/\n",
    ],
)
def test_messages_may_not_go_there(url: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        check_url(url, private=True)
    assert refused.value.field == "url"


def test_waits_grow_as_the_specification_proposes_and_then_end() -> None:
    for dice in (0.0, 0.5, 0.999):
        waits = [wait_s(attempts, dice) for attempts in range(1, len(RETRY_S) + 1)]
        assert waits == [each * (1 + dice * JITTER) for each in RETRY_S]
        assert wait_s(len(RETRY_S) + 1, dice) is None
    assert (RETRY_S[0], RETRY_S[-1]) == (5, 86_400)


# --- Over HTTP. ----------------------------------------------------------------------------


def test_a_webhook_over_http(client: httpx.Client) -> None:
    body = {"url": "http://127.0.0.1:9/taxi", "kinds": ["cancelled", "no_show"]}
    key = {"Idempotency-Key": "one-webhook"}
    made = client.post("/webhooks", json=body, headers=key)
    assert made.status_code == 201
    secret, hook = made.json()["secret"], made.json()["webhook"]
    assert secret.startswith("whsec_")
    assert client.post("/webhooks", json=body, headers=key).json() == made.json()
    path = made.headers["Location"]
    assert client.get(path).json() == hook
    assert client.get("/webhooks").json()["items"] == [hook]
    assert secret not in client.get("/webhooks").text

    sent = client.post(f"{path}/test")
    assert (sent.status_code, sent.json()["kind"], sent.json()["event"]) == (201, "test", None)
    listed = client.get(f"{path}/deliveries", params={"state": "pending"}).json()
    assert [each["id"] for each in listed["items"]] == [sent.json()["id"]]
    assert client.post(f"{path}/replay", json={"since": "2026-01-01T00:00:00Z"}).status_code == 200

    assert client.post(f"{path}/enable").json() == hook, "it is enabled as it is"

    assert client.delete(path).json()["id"] == hook["id"]
    for method, where, sends in (
        ("GET", path, None),
        ("DELETE", path, None),
        ("POST", f"{path}/enable", None),
        ("POST", f"{path}/test", None),
        ("POST", f"{path}/replay", {"event": "1-1"}),
        ("GET", f"{path}/deliveries", None),
    ):
        answer = client.request(method, where, json=sends)
        assert (answer.status_code, answer.json()["type"]) == (404, "/problems/unknown-webhook")


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"url": "http://example.com"}, "url"),
        ({"url": "https://example.com", "kinds": ["crashed"]}, "kinds[0]"),
        ({"url": "https://example.com", "kinds": []}, "kinds"),
        ({"url": "https://example.com", "secret": "mine"}, "secret"),
        ({}, "url"),
    ],
)
def test_a_webhook_that_will_not_do_is_refused_and_told_why(
    client: httpx.Client, wrong: dict[str, Any], field: str
) -> None:
    answer = client.post("/webhooks", json=wrong)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == field


def test_the_lag_is_a_metric(client: httpx.Client) -> None:
    assert "taxi_outbox_lag_seconds" in client.get("/metrics").text
