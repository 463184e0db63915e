"""What the handlers share, where no running service is needed to see it."""

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from api.bodies.bookings import BookingProblem, Conflict
from api.feed import Feed
from api.idempotency import Commands
from api.service import Service
from api.settings import as_environment, read_settings
from booking.allocation.ask_then_offer import AskThenOffer
from booking.allocation.gap_index import GapIndex
from booking.bookings import BookingRequest
from booking.calendars import Held
from booking.detection.bisect_neighbours import BisectNeighbours
from booking.errors import BookingConflict, InvalidInput, NoDriverFree, Unavailable
from booking.fleet_index import FleetIndex
from booking.overrun import Policy
from booking.postgres.advice import Advice
from booking.postgres.database import Database
from booking.postgres.follower import Follower
from booking.postgres.waiting import WaitingList
from booking.prevention.exclusion_upsert import ExclusionUpsert
from booking.time_window import TimeWindow
from tests.api.conftest import NINE

pytestmark = pytest.mark.anyio

NOWHERE = "postgresql://taxi:taxi@127.0.0.1:1/taxi"
WINDOW = TimeWindow(NINE, NINE + timedelta(minutes=30))


@pytest.fixture
async def cut_off() -> AsyncIterator[Service]:
    """A service whose database cannot be reached."""
    database = Database(NOWHERE)
    ledger = ExclusionUpsert(database, AskThenOffer())
    follower = Follower(database, FleetIndex(BisectNeighbours, GapIndex))
    settings = read_settings({"DATABASE_URL": NOWHERE})
    yield Service(
        settings,
        database,
        ledger,
        follower,
        Advice(database, follower),
        Commands(ledger),
        Policy(),
        WaitingList(ledger),
        Feed(database, streams_max=1),
    )
    await database.close()


async def test_a_refusal_stands_on_its_own_when_nobody_can_say_what_is_free(
    cut_off: Service,
) -> None:
    request = BookingRequest(1, WINDOW, 1)
    held = Held(7, WINDOW)
    problem = await cut_off.explain(BookingConflict(conflicts=[held]), request)
    assert isinstance(problem, BookingProblem)
    assert problem.conflicts == [Conflict.of(held)]
    assert (problem.next_free, problem.free_drivers) == (None, [])
    nobody = await cut_off.explain(NoDriverFree(), BookingRequest(1, WINDOW))
    assert isinstance(nobody, BookingProblem)
    assert (nobody.next_free, nobody.free_drivers) == (None, [])


@pytest.mark.parametrize("driver_id", [None, 1])
async def test_a_check_does_not_take_an_outage_for_an_answer(
    cut_off: Service, driver_id: int | None
) -> None:
    with pytest.raises(Unavailable):
        await cut_off.alternatives(BookingRequest(1, WINDOW, driver_id), ())


def test_settings_go_through_the_environment_and_back_and_never_show_themselves() -> None:
    given = {"DATABASE_URL": NOWHERE, "TAXI_POOL_SIZE": "3", "TAXI_WAIT_S_MAX": "0.5"}
    settings = read_settings(given)
    assert (settings.pool_size, settings.wait_s_max) == (3, 0.5)
    assert read_settings(as_environment(settings)) == settings
    assert NOWHERE not in repr(settings)
    with pytest.raises(InvalidInput) as missing:
        read_settings({})
    assert missing.value.field == "DATABASE_URL"
