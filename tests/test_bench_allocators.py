"""The benchmark of the allocators: what it fills, what it counts, and what it makes of it."""

import asyncio
import os
import signal
import time
from collections import Counter

import asyncpg
import msgspec
import pytest

from booking.ledgers import Claim
from booking.postgres import schema
from booking.postgres.embedded import EmbeddedPostgres
from loadtest.bench import allocators, tables
from loadtest.bench.allocators import ALONE, BEHIND, Cell, ClientsDied, Plan, Result, Task, Turn

PLAN = Plan(drivers=50, slots=4, busy=(0.8, 0.9), clients=4, processes=2, repeats=1, repeat_s=0.2)
NAMES = ["free_gaps_skip_locked", "random_probing"]


@pytest.fixture(scope="module")
def result(server: EmbeddedPostgres) -> Result:
    return allocators.measure(server.url, PLAN, lambda _share, _text: None, NAMES)


def test_every_combination_is_measured_at_both_busy_shares(result: Result) -> None:
    assert {(cell.allocator, cell.behind, cell.busy) for cell in result.cells} == {
        (name, behind, busy) for name in NAMES for behind in (BEHIND, ALONE) for busy in PLAN.busy
    }
    for cell in result.cells:
        assert all(turn.booked > 0 for turn in cell.turns)
        assert not cell.safe() or cell.double_bookings() == 0


def test_what_is_recorded_makes_a_table_with_a_row_for_each(result: Result) -> None:
    recorded = msgspec.json.decode(msgspec.json.encode(result))
    table = allocators.markdown(recorded)
    rows = [line for line in table.splitlines() if line.startswith("| `")]
    assert len(rows) == len(NAMES) * 2
    assert all(row.count("|") == len(allocators.HEADINGS) + 2 for row in rows)
    assert len(tables.bars(recorded).splitlines()) == 2 + len(result.bars)


def test_each_half_hour_is_as_busy_as_it_is_said_to_be(
    result: Result, server: EmbeddedPostgres
) -> None:
    assert result.cells
    beside = f"{server.url.rpartition('/')[0]}/allocators"
    filled = schema.url_for(beside, BEHIND)

    async def booked() -> list[int]:
        connection = await asyncpg.connect(filled)
        try:
            return [
                row[0]
                for row in await connection.fetch(
                    "SELECT count(DISTINCT driver_id) FROM bookings"
                    " GROUP BY lower(during) ORDER BY lower(during)"
                )
            ]
        finally:
            await connection.close()

    assert asyncio.run(booked()) == [40, 45, 40, 45]


@pytest.mark.parametrize(
    ("rates", "double_bookings", "reached"),
    [((100.0, 86.0), 0, [True, True]), ((100.0, 84.0), 1, [False, False])],
)
def test_a_ratio_that_is_too_low_and_a_double_booking_are_told(
    rates: tuple[float, float], double_bookings: int, reached: list[bool], result: Result
) -> None:
    def cell(claim: Claim, busy: float, rate: float, double: int) -> Cell:
        return Cell(f"{claim}", ALONE, claim, busy, [Turn(rate, 1, 0, 0, double)])

    safe = [
        cell(Claim.ACROSS_PROCESSES, busy, rate, double_bookings)
        for busy, rate in zip(PLAN.busy, rates, strict=True)
    ]
    # Whoever claims nothing may double-book, and be as fast as it likes.
    unsafe = [cell(Claim.NOTHING, busy, 1_000.0, 7) for busy in PLAN.busy]
    bars = allocators.bars_of(msgspec.structs.replace(result, cells=[*safe, *unsafe]))
    assert [bar.reached for bar in bars] == reached


def killed_or_waiting(task: Task) -> Counter[str]:
    """One process of clients is killed, as by a system that lacks memory; the other waits."""
    if task.seed % 1_000 == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)
    return Counter()


@pytest.mark.timeout(50)
def test_clients_that_were_killed_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocators, "work", killed_or_waiting)
    task = Task("", NAMES[0], ALONE, half_hours=False, plan=PLAN, seed=1)
    with allocators.processes(PLAN) as pool, pytest.raises(ClientsDied):
        allocators.answers_of(pool, task)
