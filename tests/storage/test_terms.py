"""Bookings on a driver's terms: working hours, the way to the pick-up, turnaround.

Over one recipe that rests on the constraint, one that locks, and one with tables of its own.
"""

import asyncio
from calendar import Day
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, time, timedelta
from functools import partial
from itertools import pairwise
from random import Random
from typing import Any

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.exc import DBAPIError

from booking.allocation.ask_then_offer import AskThenOffer
from booking.bookings import Booking, BookingRequest, BookingState
from booking.errors import (
    BookingConflict,
    NoDriverFree,
    NoTimeToTravel,
    NoTurnaround,
    OffShift,
    Refused,
    ShiftsStrand,
)
from booking.overrun import Policy
from booking.places import Place
from booking.postgres import reads, terms
from booking.postgres.advice import Advice
from booking.postgres.database import Database
from booking.postgres.overruns import report_end
from booking.postgres.series import SeriesRequest, book_series_in, cancel_series_in
from booking.postgres.tables import bookings, drivers
from booking.recurrence import Recurrence
from booking.strategies import Act, find
from booking.terms import Wish, neighbours
from booking.time_window import TimeWindow
from booking.travel import Departing, Estimate, Source, departures
from tests.contracts.racer import count_deadlocks
from tests.world import NewDatabase, World, until_someone_waits_for_a_lock

pytestmark = pytest.mark.anyio

KINDS = ("grouped_commit", "row_lock", "free_gaps")
NOON = datetime.now(UTC).replace(hour=12, minute=0, second=0, microsecond=0) + timedelta(days=1)
HOME, STATION, AIRPORT = Place(0, 0), Place(0, 1), Place(0, 60)
TURNAROUND_S = 300


class MinutesByLongitude:
    """A world in which a degree of longitude is a minute's drive, so that a test can count."""

    def __init__(self) -> None:
        self.calls = 0

    async def between(
        self, pairs: Sequence[tuple[Place, Place]], departing: Departing
    ) -> list[Estimate]:
        self.calls += 1
        departures(departing, len(pairs))  # each has an offset
        return [
            Estimate(round(60 * abs(end.longitude_deg - start.longitude_deg)), Source.GREAT_CIRCLE)
            for start, end in pairs
        ]


@pytest.fixture(params=KINDS)
async def world(
    request: pytest.FixtureRequest, emptied_database: NewDatabase
) -> AsyncIterator[World]:
    recipe = find(Act.PREVENTION, request.param)
    # Patient: many ask for one driver here, on whatever machine.
    database = Database(emptied_database(recipe.name), wait_s_max=60, statement_s_max=60)
    ledger = recipe.load()(database, AskThenOffer(), MinutesByLongitude())
    yield World(database, ledger)
    await database.close()


def at(start_min: float, end_min: float) -> TimeWindow:
    """Between two minutes after some noon that is yet to come."""
    return TimeWindow(NOON + timedelta(minutes=start_min), NOON + timedelta(minutes=end_min))


async def fitted(world: World, turnaround_s: int | None = TURNAROUND_S) -> int:
    """A driver with a turnaround."""
    driver = await world.driver()
    await world.database.transact(
        lambda c: terms.set_turnaround(world.ledger, c, driver, turnaround_s)
    )
    return driver


async def read(world: World, booking: Booking) -> Booking:
    return await world.database.transact(lambda c: reads.booking(c, booking.id), read_only=True)


async def active_of(world: World, driver: int) -> list[Booking]:
    day = TimeWindow(NOON - timedelta(days=2), NOON + timedelta(days=5))
    return list(
        await world.database.transact(lambda c: reads.agenda(c, driver, day), read_only=True)
    )


def wrong(theirs: Sequence[Booking], turnaround_s: int = TURNAROUND_S) -> list[str]:
    """What is not as it should be in a driver's bookings: the rule, said once more and plainly."""
    found = [
        f"{one.id} and {other.id} overlap"
        for one, other in pairwise(sorted(theirs, key=lambda each: each.window))
        if one.window.overlaps(other.window)
    ]
    for each in theirs:
        before, _ = neighbours(theirs, each.trip, each.id)
        lead_s = 0.0
        if before is not None:
            way_s = 0.0
            if before.dropoff and each.pickup:
                way_s = 60 * abs(each.pickup.longitude_deg - before.dropoff.longitude_deg)
            gap_s = (each.start - before.predicted_end).total_seconds()
            lead_s = min(way_s + turnaround_s, gap_s)
            if each.lead_short_s != max(0, way_s + turnaround_s - gap_s):
                found.append(f"{each.id} does not say by how much its lead falls short")
        if each.lead is None or each.lead.total_seconds() != lead_s:
            found.append(f"{each.id} keeps {each.lead} free and not {lead_s} s")
    return found


async def test_what_is_blocked_is_the_trip_the_way_to_it_and_the_turnaround(world: World) -> None:
    driver = await fitted(world)
    first = await world.book(at(0, 30), driver, pickup=HOME, dropoff=STATION)
    assert first.window == first.trip  # nobody was anywhere before
    far = await world.book(at(120, 150), driver, pickup=AIRPORT, dropoff=AIRPORT)
    assert far.trip == at(120, 150)
    assert far.window == at(120 - 59 - 5, 150)
    assert far.travel_source == Source.GREAT_CIRCLE
    assert wrong(await active_of(world, driver)) == []


async def test_a_refusal_names_what_there_is_no_time_for(world: World) -> None:
    driver = await fitted(world)
    await world.book(at(0, 30), driver, pickup=HOME, dropoff=HOME)
    for start_min, pickup, reason in (
        (20, HOME, BookingConflict),
        (40, AIRPORT, NoTimeToTravel),
        (33, HOME, NoTurnaround),
    ):
        with pytest.raises(BookingConflict) as refused:
            await world.book(at(start_min, start_min + 30), driver, pickup=pickup)
        assert type(refused.value) is reason
    # And before the booking, where it is the other trip that could not be reached.
    with pytest.raises(NoTimeToTravel):
        await world.book(at(-40, -30), driver, dropoff=AIRPORT)
    assert len(await active_of(world, driver)) == 1


async def test_a_trip_between_two_others_takes_only_what_is_needed_of_the_way(
    world: World,
) -> None:
    driver = await fitted(world)
    await world.book(at(0, 30), driver, dropoff=HOME)
    last = await world.book(at(120, 150), driver, pickup=AIRPORT)
    assert last.window.start == at(55, 60).start
    # It lies in what was blocked for the way, and makes that way another one.
    between = await world.book(at(60, 110), driver, pickup=STATION, dropoff=AIRPORT)
    assert (await read(world, last)).window == at(115, 150)
    assert wrong(await active_of(world, driver)) == []
    await world.ledger.change_state(between.id, BookingState.CANCELLED)
    assert (await read(world, last)).window == last.window


async def test_a_lead_that_there_is_no_room_for_after_a_cancellation_says_so(world: World) -> None:
    driver = await fitted(world)
    await world.book(at(0, 30), driver, dropoff=HOME)
    between = await world.book(at(40, 90), driver, pickup=HOME, dropoff=AIRPORT)
    last = await world.book(at(95, 100), driver, pickup=AIRPORT, dropoff=AIRPORT)
    await world.ledger.change_state(between.id, BookingState.CANCELLED)
    left = await read(world, last)
    # 60 minutes of way and 5 of turnaround find room in 65.
    assert (left.window, left.lead_short_s) == (at(30, 100), 0)
    closer = await world.ledger.reschedule(last.id, at(97, 100))
    assert wrong(await active_of(world, driver)) == []
    assert closer.lead == timedelta(minutes=65)


async def test_editing_a_booking_does_not_get_it_round_what_is_blocked(world: World) -> None:
    driver = await fitted(world)
    await world.book(at(0, 30), driver, dropoff=HOME)
    second = await world.book(at(120, 150), driver, pickup=AIRPORT)
    with pytest.raises(NoTimeToTravel):
        await world.ledger.reschedule(second.id, at(60, 90))
    assert (await read(world, second)).window == second.window
    moved = await world.ledger.reschedule(second.id, at(105, 135))  # by a quarter of an hour
    assert moved.window == at(40, 135)


async def test_the_database_itself_holds_what_is_blocked(world: World) -> None:
    driver = await fitted(world)
    await world.book(at(0, 30), driver, dropoff=HOME)
    second = await world.book(at(120, 150), driver, pickup=AIRPORT)
    third = await world.book(at(300, 310), driver, pickup=AIRPORT)
    by_hand = (
        update(bookings)
        .where(bookings.c.id == third.id)
        .values(during=reads.range_of(TimeWindow(second.window.start, second.start)), lead=None)
    )
    if world.ledger.schema:  # the control: without the constraint nothing holds it
        await world.database.transact(lambda c: c.execute(by_hand))
        assert (await world.audit()).double_bookings
        return
    with pytest.raises(DBAPIError, match="bookings_no_double_booking"):
        await world.database.transact(lambda c: c.execute(by_hand))


@pytest.mark.parametrize("seed", range(2))
async def test_after_whatever_is_done_every_lead_is_that_of_its_neighbour(
    world: World, seed: int
) -> None:
    random = Random(seed)  # a test's
    places = [None, HOME, STATION, Place(0, 20), AIRPORT]
    theirs = [await fitted(world), await fitted(world), await world.driver()]
    rider = await world.rider()
    booked: dict[int, Booking] = {}

    async def step() -> None:
        begin = random.randrange(0, 900, 5)
        window = at(begin, begin + random.choice([10, 30, 60]))
        what = random.choice(["book", "book", "any", "move", "give", "cancel"])
        if what in {"book", "any"} or not booked:
            driver = random.choice(theirs) if what == "book" else None
            wanted: dict[str, Any] = {
                "pickup": random.choice(places),
                "dropoff": random.choice(places),
                "rider_id": rider,
            }
            new = await world.book(window, driver, **wanted)
            booked[new.id] = new
            return
        number = random.choice(list(booked))
        if what == "move":
            await world.ledger.reschedule(number, window)
        elif what == "give":
            await world.ledger.reassign(number, random.choice(theirs))
        else:
            await world.ledger.change_state(number, BookingState.CANCELLED)
            del booked[number]

    done = 0
    for _ in range(60):
        try:
            await step()
            done += 1
        except Refused:
            pass
        for driver in theirs[:2]:
            assert wrong(await active_of(world, driver)) == []
    assert done > 15
    assert all(each.lead is None for each in await active_of(world, theirs[2]))
    # The control: a lead that nobody fitted is seen.
    some = next(each for each in await active_of(world, theirs[0]) if each.lead)
    spoilt = update(bookings).where(bookings.c.id == some.id).values(lead=timedelta(seconds=1))
    await world.database.transact(lambda c: c.execute(spoilt))
    assert wrong(await active_of(world, theirs[0]))


async def test_many_at_once_find_their_place_between_neighbours(world: World) -> None:
    driver, rider = await fitted(world), await world.rider()
    deadlocks = count_deadlocks(world.database)
    random = Random(7)  # a test's
    wishes = [
        (at(start, start + 20), random.choice([HOME, STATION, Place(0, 9)]))
        for start in random.sample(range(0, 400, 5), 24)
    ]
    answers = await asyncio.gather(
        *(
            world.book(window, driver, rider_id=rider, pickup=place, dropoff=place)
            for window, place in wishes
        ),
        return_exceptions=True,
    )
    booked = [each for each in answers if isinstance(each, Booking)]
    others = {type(each) for each in answers} - {Booking}
    assert all(issubclass(each, BookingConflict) for each in others), others
    theirs = await active_of(world, driver)
    assert {each.id for each in theirs} == {each.id for each in booked}
    assert len(booked) > 3
    assert wrong(theirs) == []
    # Cancelled all at once, each refits what is left behind it.
    await asyncio.gather(
        *(
            world.ledger.change_state(each.id, BookingState.CANCELLED)
            for each in random.sample(booked, len(booked) // 2)
        )
    )
    assert wrong(await active_of(world, driver)) == []
    assert deadlocks == []


async def test_a_hold_that_lapses_takes_its_lead_along(world: World) -> None:
    driver = await fitted(world)
    await world.book(at(0, 30), driver, dropoff=HOME)
    held = await world.book(at(60, 70), driver, dropoff=AIRPORT, hold_s=60)
    last = await world.book(at(120, 150), driver, pickup=AIRPORT)
    assert last.window == at(115, 150)
    over = update(bookings).where(bookings.c.id == held.id).values(held_until=func.now())
    await world.database.transact(lambda c: c.execute(over))
    assert [each.id for each in await world.ledger.sweep()] == [held.id]
    assert (await read(world, last)).window == at(55, 150)


async def test_a_late_trip_pushes_its_successor_back_with_its_lead(world: World) -> None:
    driver = await fitted(world)
    now = datetime.now(UTC)
    trip = await world.book(TimeWindow(now, now + timedelta(hours=1)), driver, dropoff=HOME)
    behind = TimeWindow(now + timedelta(minutes=66), now + timedelta(minutes=90))
    after = await world.book(behind, driver, pickup=STATION)
    assert after.lead == timedelta(minutes=6)
    await world.ledger.change_state(trip.id, BookingState.IN_PROGRESS)
    late = now + timedelta(minutes=70)
    policy = Policy(tolerance_s=3_600, may_push_back_s=7_200)
    overrun = await report_end(world.ledger, trip.id, late, policy)
    [moved] = overrun.moved
    assert moved.booking.start == late + timedelta(minutes=6)
    assert moved.booking.promised_start == after.start
    assert moved.late_s == 600
    assert moved.booking.window.start == late


async def test_who_cancels_a_series_waits_for_its_driver_before_they_have_its_bookings(
    world: World,
) -> None:
    driver, rider = await fitted(world), await world.rider()
    wish = BookingRequest(rider, at(0, 30), driver)
    day = NOON.date()
    weekly = Recurrence("UTC", time(12), 1800, frozenset(Day), day, last_date=day)
    wanted = SeriesRequest(wish, weekly)
    made = await world.ledger.transact(lambda c: book_series_in(world.ledger, c, wanted))
    async with world.database.engine.begin() as other:
        mine = select(drivers.c.id).where(drivers.c.id == driver)
        await other.execute(mine.with_for_update(key_share=True))
        cancelled = asyncio.create_task(
            world.ledger.transact(lambda c: cancel_series_in(world.ledger, c, made.id, None))
        )
        await until_someone_waits_for_a_lock(world.database)
        # It has no booking yet: whoever has the driver can go on.
        its = select(bookings.c.id).where(bookings.c.series_id == made.id)
        free = await other.execute(its.with_for_update(key_share=True, nowait=True))
        assert len(free.all()) == 1
    assert [each.state for each in (await cancelled).bookings] == [BookingState.CANCELLED]


@pytest.mark.parametrize("way", ["predicted", "completed"])
async def test_a_trip_that_ends_early_gives_a_lead_that_fell_short_what_it_lacked(
    world: World, way: str
) -> None:
    driver = await fitted(world)
    now = datetime.now(UTC).replace(microsecond=0) - timedelta(minutes=20)

    def after(start_min: float, end_min: float) -> TimeWindow:
        return at(start_min, end_min).moved_to(now + timedelta(minutes=start_min))

    trip = await world.book(after(0, 60), driver, dropoff=HOME)
    between = await world.book(after(70, 90), driver, pickup=HOME, dropoff=AIRPORT)
    last = await world.book(after(95, 100), driver, pickup=AIRPORT)
    await world.ledger.change_state(between.id, BookingState.CANCELLED)
    await world.ledger.change_state(trip.id, BookingState.IN_PROGRESS, at=now)
    short = await read(world, last)
    assert (short.window, short.lead_short_s) == (after(60, 100), 30 * 60)
    if way == "predicted":
        await report_end(world.ledger, trip.id, after(25, 30).start, Policy())
    else:
        ended = after(15, 20).start
        await world.ledger.change_state(trip.id, BookingState.COMPLETED, at=ended)
    refitted = await read(world, last)
    assert (refitted.window, refitted.lead_short_s) == (after(30, 100), 0)
    assert refitted.travel_source == Source.GREAT_CIRCLE
    with pytest.raises(BookingConflict):
        await world.book(after(45, 50), driver, pickup=HOME, dropoff=HOME)


async def test_a_turnaround_that_is_laid_down_later_fits_what_is_booked(world: World) -> None:
    driver = await world.driver()
    await world.book(at(0, 30), driver, dropoff=HOME)
    near = await world.book(at(32, 40), driver, pickup=HOME, dropoff=HOME)
    far = await world.book(at(200, 210), driver, pickup=AIRPORT)
    assert near.lead is None
    set_to = terms.set_turnaround
    await world.database.transact(lambda c: set_to(world.ledger, c, driver, 300))
    assert (await read(world, near)).lead_short_s == 180
    assert (await read(world, far)).window == at(200 - 65, 210)
    assert wrong(await active_of(world, driver)) == []
    await world.database.transact(lambda c: set_to(world.ledger, c, driver, None))
    assert [each.lead for each in await active_of(world, driver)] == [None] * 3
    assert (await read(world, far)).window == at(200, 210)


DAY_SHIFT = {
    "weekly": {
        day: [{"from": "08:00", "until": "16:00", "breaks": [{"from": "12:00", "until": "12:30"}]}]
        for day in ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
    }
}
EIGHT = -4 * 60  # minutes from noon


async def with_shifts(world: World, driver: int, *, strand: bool = False) -> terms.LaidDown:
    return await world.database.transact(
        lambda c: terms.set_shifts(c, driver, DAY_SHIFT, strand=strand)
    )


async def test_a_driver_is_not_booked_outside_of_their_working_hours(world: World) -> None:
    driver = await world.driver()
    await with_shifts(world, driver)
    for start_min, end_min, word in (
        (EIGHT - 10, EIGHT + 20, "off shift"),
        (-10, 10, "break"),
        (230, 250, "off shift"),
    ):
        with pytest.raises(OffShift, match=word):
            await world.book(at(start_min, end_min), driver)
    booked = await world.book(at(30, 240), driver)
    with pytest.raises(OffShift):
        await world.ledger.reschedule(booked.id, at(20, 240))
    with pytest.raises(NoDriverFree):
        await world.book(at(-10, 10))
    other = await world.driver()
    assert (await world.book(at(-10, 10))).driver_id == other


async def test_working_hours_show_what_they_would_strand_before_they_do_anything(
    world: World,
) -> None:
    driver = await world.driver()
    inside, outside = await world.book(at(60, 90), driver), await world.book(at(300, 330), driver)
    with pytest.raises(ShiftsStrand) as refused:
        await with_shifts(world, driver)
    assert [each.booking_id for each in refused.value.stranded] == [outside.id]
    await world.book(at(400, 410), driver)  # nothing was done
    laid = await with_shifts(world, driver, strand=True)
    assert laid.driver.has_shifts
    assert {each.booking_id for each in laid.stranded} > {outside.id}
    assert inside.id not in {each.booking_id for each in laid.stranded}
    assert (await read(world, outside)).state is BookingState.CONFIRMED
    await world.database.transact(lambda c: terms.set_shifts(c, driver, None, strand=False))
    await world.book(at(500, 510), driver)


async def test_hours_that_change_wait_for_a_booking_that_is_under_way(world: World) -> None:
    """Or a booking would be let in by the old hours, and nobody told that it is stranded."""
    driver, rider = await world.driver(), await world.rider()
    await with_shifts(world, driver)
    whole_day = TimeWindow(NOON - timedelta(days=1), NOON + timedelta(days=2))
    async with world.database.engine.begin() as other:
        await terms.set_shifts(other, driver, {"weekly": {}}, strand=False)
        booking = asyncio.create_task(world.book(at(60, 90), driver, rider_id=rider))
        await until_someone_waits_for_a_lock(world.database)
        found = await other.scalar(select(func.count()).select_from(bookings))
        assert found == 0
    with pytest.raises(OffShift):
        await booking
    free = await world.database.transact(
        lambda c: terms.free_windows(c, driver, whole_day, timedelta(0)), read_only=True
    )
    assert free == []


async def test_a_search_asks_for_the_ways_of_all_who_may_be_free_at_once(world: World) -> None:
    rider, near, far = await world.rider(), [], []
    for number in range(6):
        driver = await fitted(world)
        (far if number % 2 else near).append(driver)
        # Each ends at another time, and so leaves at another.
        place = AIRPORT if number % 2 else HOME
        for window in (at(-30, number), at(90, 120)):
            await world.book(window, driver, rider_id=rider, pickup=place, dropoff=place)
    times = MinutesByLongitude()
    wish = Wish(at(20, 40), pickup=HOME, dropoff=HOME)
    found = await world.database.transact(
        lambda c: terms.free_on_terms(times, c, wish, 10), read_only=True
    )
    assert found == near
    assert times.calls == 1
    # The control: one by one, it is asked for each.
    for driver in far:
        asked = BookingRequest(rider, wish.window, driver, pickup=HOME, dropoff=HOME)
        with pytest.raises(NoTimeToTravel):
            await world.database.transact(partial(terms.judge, times, request=asked))
    assert times.calls == 1 + len(far)


@pytest.mark.parametrize("seed", range(2))
async def test_whatever_availability_offers_is_bookable(world: World, seed: int) -> None:
    random = Random(seed)  # a test's
    advice = Advice(world.database, travel_times=world.ledger.travel_times)
    rider = await world.rider()
    drivers = [await fitted(world, random.choice([None, 0, 300, 900])) for _ in range(5)]
    for driver in drivers[::2]:
        await with_shifts(world, driver)
    places = [None, HOME, STATION, Place(0, 20)]
    offered = 0
    for _ in range(30):
        begin = random.randrange(-300, 300, 5)
        window = at(begin, begin + random.choice([15, 45]))
        trip = random.choice(places), random.choice(places)
        free = await advice.free_drivers_now(window, "main", 9, places=trip)
        offered += len(free.ids)
        if free.ids:
            chosen = random.choice(free.ids)
            await world.book(window, chosen, rider_id=rider, pickup=trip[0], dropoff=trip[1])
        # A gap, whole, of somebody.
        driver = random.choice(drivers)
        near = at(begin, begin + 200)
        for gap in (await advice.gaps(driver, near, timedelta(minutes=10)))[:1]:
            await world.book(gap, driver, rider_id=rider)
    assert offered > 10
