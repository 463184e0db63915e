"""What `ask_then_offer` promises beyond the contract of its port."""

import pytest

from booking.allocation.ask_then_offer import AskThenOffer
from booking.postgres.database import Database
from booking.prevention.exclusion_upsert import ExclusionUpsert
from tests.world import World, hours

pytestmark = pytest.mark.anyio


async def test_different_searches_begin_at_different_drivers(database: Database) -> None:
    world = World(database, ExclusionUpsert(database, AskThenOffer()))
    for _ in range(50):
        await world.driver()
    rider = await world.rider()
    found = {
        (await world.book(hours(hour, hour + 1), rider_id=rider)).driver_id for hour in range(30)
    }
    # 30 draws of 50 come to 3 or fewer different ones by chance once in 10 to the 28th times.
    assert len(found) > 3
