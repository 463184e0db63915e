"""The experiment of chapter 12: what dies between two writes is lost or invented."""

import pytest

from loadtest.bench.dual_write import Counted, Plan, Way, cells, count
from tests.world import NewDatabase

PLAN = Plan(rounds=2, messages=5, clients=3)  # one message lost, one acknowledgement


async def counted(new_database: NewDatabase, way: Way) -> Counted:
    return await count(new_database("grouped_commit"), way, PLAN)


@pytest.mark.anyio
async def test_with_an_outbox_nothing_is_lost_or_invented_but_told_twice(
    new_database: NewDatabase,
) -> None:
    found = await counted(new_database, Way.OUTBOX)
    assert (found.lost, found.invented) == (0, 0)
    assert found.booked == found.told > 0
    assert found.again >= 1
    assert cells(found)[0] == Way.OUTBOX


@pytest.mark.anyio
async def test_two_writes_lose_or_invent_in_either_order(new_database: NewDatabase) -> None:
    written_first = await counted(new_database, Way.WRITE_FIRST)
    assert written_first.lost >= 1
    assert written_first.invented == 0
    told_first = await counted(new_database, Way.TELL_FIRST)
    assert told_first.invented >= 1
