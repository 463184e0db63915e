"""Who waits for a turn, and who is told at once that it would be too long."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from booking.errors import LedgerBusy
from booking.postgres.database import Database
from booking.postgres.gates import Gate
from booking.postgres.ledger import add_rider
from tests.world import until_someone_waits_for_a_lock

pytestmark = pytest.mark.anyio

WAIT_S_MAX = 5.0


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def gate_of(clock: Clock, turns: int = 2) -> Gate:
    return Gate(turns, waiting_max=100, wait_s_max=WAIT_S_MAX, clock=clock)


def refused_at_once(gate: Gate) -> bool:
    """Whether a newcomer is refused without having waited for even a turn of the event loop."""
    entering = gate.turn().__aenter__()
    try:
        entering.send(None)  # type: ignore[attr-defined]  # it is a coroutine
    except LedgerBusy:
        return True
    except StopIteration:
        return False
    entering.close()  # type: ignore[attr-defined]  # it waits
    return False


@asynccontextmanager
async def all_at_work(gate: Gate, turns: int = 2) -> AsyncIterator[None]:
    async with AsyncExitStack() as stack:
        for _ in range(turns):
            await stack.enter_async_context(gate.turn())
        yield


async def take(gate: Gate, clock: Clock, took_s: float, times: int) -> None:
    for _ in range(times):
        async with gate.turn():
            clock.now_s += took_s


async def test_a_gate_that_stands_still_refuses_newcomers_at_once(clock: Clock) -> None:
    gate = gate_of(clock)
    async with all_at_work(gate):
        clock.now_s = WAIT_S_MAX - 0.1
        assert not refused_at_once(gate), "it may be done in time"
        clock.now_s = WAIT_S_MAX + 0.1
        assert refused_at_once(gate)
        assert gate.waiting == 0
    assert not refused_at_once(gate), "with a turn to be had, what was is no matter"


async def test_who_has_many_before_them_is_refused_sooner(clock: Clock) -> None:
    gate = gate_of(clock)
    async with all_at_work(gate):
        waiting = [asyncio.create_task(gate.turn().__aenter__()) for _ in range(8)]
        await asyncio.sleep(0)
        clock.now_s = WAIT_S_MAX / 5
        assert not refused_at_once(gate), "the fifth round from now"
        clock.now_s += 0.1
        assert refused_at_once(gate)
        for each in waiting:
            each.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
    assert gate.waiting == 0


async def test_how_long_turns_took_of_late_counts_before_anything_stands_still(
    clock: Clock,
) -> None:
    for took_s, refused in ((WAIT_S_MAX / 2, False), (WAIT_S_MAX * 2, True)):
        gate = gate_of(clock)
        await take(gate, clock, took_s, 50)
        async with all_at_work(gate):
            assert refused_at_once(gate) is refused


async def test_one_slow_turn_among_quick_ones_is_no_standstill(clock: Clock) -> None:
    gate = gate_of(clock)
    async with gate.turn():  # slow
        await take(gate, clock, 0.1, 100)
        async with gate.turn():
            assert clock.now_s > WAIT_S_MAX
            assert not refused_at_once(gate)


async def test_a_stalled_database_is_not_queued_for_and_serves_who_waited_once_it_is_back(
    fresh_url: str, clock: Clock
) -> None:
    database, apart = Database(fresh_url, pool_size=2), Database(fresh_url, pool_size=2)
    database.gate = gate_of(clock)

    async def hire(connection: AsyncConnection) -> int:
        return (await add_rider(connection, "Alan")).id

    try:
        async with apart.engine.begin() as blocker:
            await blocker.exec_driver_sql("LOCK TABLE riders")
            stuck = [asyncio.create_task(database.transact(hire)) for _ in range(3)]
            await until_someone_waits_for_a_lock(apart, 2)
            assert database.waiting == 1
            clock.now_s += WAIT_S_MAX + 1
            newcomers = await asyncio.gather(
                *(database.transact(hire) for _ in range(50)), return_exceptions=True
            )
            assert [type(each) for each in newcomers] == [LedgerBusy] * 50
            assert not any(each.done() for each in stuck), "refused before those ahead of them"
        assert sorted(await asyncio.gather(*stuck)) == [1, 2, 3]
        assert await database.transact(hire) == 4
    finally:
        await apart.close()
        await database.close()


async def test_without_looking_ahead_all_of_them_would_queue(clock: Clock) -> None:
    gate = gate_of(clock)
    gate.expected_wait_s = lambda: 0.0  # type: ignore[method-assign]  # the control
    async with all_at_work(gate):
        clock.now_s = 100 * WAIT_S_MAX
        assert not refused_at_once(gate)
