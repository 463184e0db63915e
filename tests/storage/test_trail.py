"""What is written down of every change, in its own transaction, and how it is read.

The controls: a reader that goes by the highest id misses what commits late, and a hand
that says nothing of who it is does not pass for the one before.
"""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest
from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from booking.allocation.ask_then_offer import AskThenOffer
from booking.bookings import BookingRequest, BookingState
from booking.calendars import Held
from booking.errors import BookingConflict, UnknownCursor
from booking.events import BEGINNING, BookingEvent, Cursor, EventFilter, EventKind
from booking.overrun import Policy
from booking.postgres.attribution import Attribution, attributed_to
from booking.postgres.database import Database
from booking.postgres.events import begin_anew, forget_events, parse_cursor, read_events
from booking.postgres.overruns import report_end
from booking.postgres.tables import booking_events, bookings
from booking.prevention.grouped_commit import GroupedCommit
from booking.time_window import TimeWindow
from tests.world import Execute, World, hours, until_all_before_have_ended

pytestmark = pytest.mark.anyio

ANN, BEN = Attribution("account:1 rider", "r-1", "192.0.2.1"), Attribution("account:2 dispatcher")


@pytest.fixture
async def world(database: Database) -> World:
    return World(database, GroupedCommit(database, AskThenOffer()))


async def happened(database: Database, **wanted: int) -> list[BookingEvent]:
    await until_all_before_have_ended(database)
    page = await database.transact(
        lambda c: read_events(c, BEGINNING, EventFilter(**wanted)), read_only=True
    )
    return page.events


def around_now(minutes: int, until: int) -> TimeWindow:
    now = datetime.now(UTC)
    return TimeWindow(now + timedelta(minutes=minutes), now + timedelta(minutes=until))


async def test_every_kind_of_change_is_there_with_who_did_it_and_what_was_before(
    world: World,
) -> None:
    ledger, (one, other) = world.ledger, [await world.driver(), await world.driver()]
    with attributed_to(ANN):
        held = await world.book(hours(9, 10), one, hold_s=60)
    with attributed_to(BEN):
        await ledger.change_state(held.id, BookingState.CONFIRMED)
        moved = await ledger.reschedule(held.id, hours(12, 13))
        await ledger.reassign(held.id, other)
        await ledger.change_state(held.id, BookingState.CANCELLED, reason="flu")
    events = await happened(world.database, booking_id=held.id)
    assert [(each.kind, each.actor) for each in events] == [
        (EventKind.HELD, ANN.actor),
        (EventKind.CONFIRMED, BEN.actor),
        (EventKind.MOVED, BEN.actor),
        (EventKind.REASSIGNED, BEN.actor),
        (EventKind.CANCELLED, BEN.actor),
    ]
    assert (events[0].request_id, events[0].origin) == ("r-1", "192.0.2.1")
    assert [set(each.changed) for each in events] == [
        set(),
        {"state", "held_until"},
        {"start", "predicted_end"},
        {"driver_id"},
        {"state", "cancel_reason"},
    ]
    assert datetime.fromisoformat(events[2].changed["start"]) == held.start
    assert datetime.fromisoformat(events[2].booking["start"]) == moved.start
    assert events[3].changed == {"driver_id": one}
    assert events[3].booking["driver_id"] == other
    assert events[-1].booking["cancel_reason"] == "flu"
    assert not {"changed_by", "changed_in", "during"} & set(events[-1].booking)


async def test_a_trip_leaves_its_trail_and_the_clock_is_named_for_what_nobody_did(
    world: World,
) -> None:
    driver = await world.driver()
    with attributed_to(ANN):
        trip = await world.book(around_now(-30, 5), driver)
        behind = await world.book(around_now(10, 40), driver)
        await world.ledger.change_state(trip.id, BookingState.IN_PROGRESS)
    with attributed_to(BEN):
        late = around_now(-30, 20).end
        await report_end(world.ledger, trip.id, late, Policy(300, 900))
    lapsing = await world.book(hours(1, 2), await world.driver(), hold_s=1)
    await world.database.transact(
        lambda c: c.execute(
            update(bookings).where(bookings.c.id == lapsing.id).values(held_until=func.now())
        )
    )
    with attributed_to(BEN):
        assert await world.ledger.sweep()
    kinds = {
        booking_id: [
            (each.kind, each.actor)
            for each in await happened(world.database, booking_id=booking_id)
        ]
        for booking_id in (trip.id, behind.id, lapsing.id)
    }
    assert kinds[trip.id] == [
        (EventKind.BOOKED, ANN.actor),
        (EventKind.STARTED, ANN.actor),
        (EventKind.END_PREDICTED, BEN.actor),
    ]
    assert kinds[behind.id] == [(EventKind.BOOKED, ANN.actor), (EventKind.MOVED, BEN.actor)]
    assert kinds[lapsing.id][-1] == (EventKind.EXPIRED, "clock")


async def test_people_who_are_written_for_by_one_statement_are_told_apart(world: World) -> None:
    driver, rider = await world.driver(), await world.rider()

    async def book(number: int) -> int:
        with attributed_to(Attribution(f"account:{number} rider", f"r-{number}")):
            request = BookingRequest(rider, hours(number, number + 1), driver)
            return (await world.ledger.book(request)).id

    ids = await asyncio.gather(*map(book, range(20)))
    events = {each.booking_id: each for each in await happened(world.database)}
    assert len({each.cursor.written_in for each in events.values()}) < len(ids), "no group"
    for number, id_ in enumerate(ids):
        told = events[id_]
        assert (told.actor, told.request_id) == (f"account:{number} rider", f"r-{number}")
        assert told.kind is EventKind.BOOKED


async def test_what_did_not_happen_is_not_told(world: World) -> None:
    driver = await world.driver()
    await world.book(hours(9, 10), driver)
    with pytest.raises(BookingConflict):
        await world.book(hours(9, 10), driver)

    async def change_of_mind(connection: AsyncConnection) -> None:
        await world.ledger.book_in(
            connection, BookingRequest(await world.rider(), hours(11, 12), driver)
        )
        raise BookingConflict(conflicts=[Held(1, hours(11, 12))])

    with pytest.raises(BookingConflict):
        await world.ledger.transact(change_of_mind)
    assert len(await happened(world.database)) == 1


async def test_a_hand_that_says_nothing_of_who_it_is_does_not_pass_for_the_one_before(
    world: World, fresh_url: str, execute: Execute
) -> None:
    with attributed_to(ANN):
        booked = await world.book(hours(9, 10), await world.driver())
    await execute(
        fresh_url,
        "UPDATE bookings SET cancel_reason = 'by hand'",
        "UPDATE bookings SET rider_id = rider_id",
    )
    with attributed_to(ANN):
        await world.ledger.change_state(booked.id, BookingState.CANCELLED)
    await execute(fresh_url, "DELETE FROM bookings")
    events = await happened(world.database)
    assert [each.kind for each in events] == [
        "booked",
        "changed",
        "changed",
        "cancelled",
        "deleted",
    ]
    assert [each.actor == ANN.actor for each in events] == [True, False, False, True, False]
    assert all(each.actor.startswith("database:") for each in events if each.actor != ANN.actor)
    assert [each.changed for each in events[1:3]] == [{"cancel_reason": None}, {}]


async def test_what_happened_is_not_changed_afterwards_but_may_be_forgotten(
    world: World, fresh_url: str, execute: Execute
) -> None:
    await world.book(hours(9, 10), await world.driver())
    for statement in ("UPDATE booking_events SET actor = 'nobody'", "DELETE FROM booking_events"):
        with pytest.raises(asyncpg.RestrictViolationError, match="only grows"):
            await execute(fresh_url, statement)
    assert await forget_events(world.database, timedelta(days=1)) == 0
    assert await forget_events(world.database, timedelta(0)) == 1
    assert await happened(world.database) == []


async def by_highest_id(database: Database, after: int) -> list[int]:
    """The obvious reader, which remembers the highest id that it has seen."""
    found = await database.transact(
        lambda c: c.scalars(
            select(booking_events.c.id)
            .where(booking_events.c.id > after)
            .order_by(booking_events.c.id)
        ),
        read_only=True,
    )
    return list(found)


async def test_an_event_that_commits_late_is_not_lost_but_to_a_reader_by_highest_id(
    world: World,
) -> None:
    one, other, rider = await world.driver(), await world.driver(), await world.rider()
    seen: list[Cursor] = []
    position, naive = BEGINNING, 0
    naively_seen: set[int] = set()

    async def read() -> None:
        nonlocal position, naive
        page = await world.database.transact(lambda c: read_events(c, position), read_only=True)
        seen.extend(each.cursor for each in page.events)
        position = page.position
        found = await by_highest_id(world.database, naive)
        naively_seen.update(found)
        naive = max([naive, *found])

    async def late(connection: AsyncConnection) -> None:
        await world.ledger.book_in(connection, BookingRequest(rider, hours(9, 10), one))
        await world.book(hours(9, 10), other, rider_id=rider)  # begun later, and done first
        await read()
        assert seen == [], "it comes after one that is still open"

    await world.database.transact(late)
    await until_all_before_have_ended(world.database)
    await read()
    rows = await world.database.transact(
        lambda c: c.scalars(select(booking_events.c.id)), read_only=True
    )
    everything = set(rows)
    assert len(everything) == 2
    assert {each.number for each in seen} == everything
    assert seen == sorted(set(seen))
    assert naively_seen < everything, "the control must miss one"


async def test_a_drivers_events_are_those_of_their_bookings_and_those_that_took_one_away(
    world: World,
) -> None:
    one, other, rider = await world.driver(), await world.driver(), await world.rider()
    booked = await world.book(hours(9, 10), one, rider_id=rider)
    await world.ledger.reassign(booked.id, other)
    await world.ledger.change_state(booked.id, BookingState.CANCELLED)
    await world.book(hours(9, 10), one)
    every = await happened(world.database)
    for wanted, kinds in (
        ({"driver_id": one}, ["booked", "reassigned", "booked"]),
        ({"driver_id": other}, ["reassigned", "cancelled"]),
        ({"rider_id": rider}, ["booked", "reassigned", "cancelled"]),
    ):
        found = await happened(world.database, **wanted)
        assert [each.kind for each in found] == kinds
        # A stream judges each event by itself, and comes to the same.
        assert found == [each for each in every if EventFilter(**wanted).matches(each)]


async def test_pages_join_without_a_gap_and_a_cursor_from_elsewhere_is_refused(
    world: World,
) -> None:
    driver = await world.driver()
    for hour in range(5):
        await world.book(hours(hour, hour + 1), driver)

    async def page(after: Cursor) -> Any:
        return await world.database.transact(
            lambda c: read_events(c, after, limit=2), read_only=True
        )

    found, position, more = [], BEGINNING, True
    while more:
        events, position, more = await page(position)
        found += events
    assert found == await happened(world.database)
    assert (await page(position)).events == []
    for wrong in ("", "1", "1-", "-1-2", "1-2-3", f"{'9' * 19}-0", "one-two"):
        with pytest.raises(UnknownCursor):
            parse_cursor(wrong, "after")
    with pytest.raises(UnknownCursor):
        await page(Cursor(10**15, 0))


async def test_a_dump_that_was_restored_elsewhere_can_be_followed_once_begun_anew(
    world: World, fresh_url: str, execute: Execute
) -> None:
    driver = await world.driver()
    await world.book(hours(9, 10), driver)
    await execute(  # as if by a server that had come much further
        fresh_url,
        "ALTER TABLE booking_events DISABLE TRIGGER USER",
        "UPDATE booking_events SET written_in = written_in + 1000000000",
        "ALTER TABLE booking_events ENABLE TRIGGER USER",
    )
    await until_all_before_have_ended(world.database)
    shown = await world.database.transact(lambda c: read_events(c, BEGINNING), read_only=True)
    assert shown.events == [], "with nothing to mend, nothing is shown"
    await world.database.transact(begin_anew)
    await world.book(hours(10, 11), driver)
    kept = await happened(world.database)
    assert [datetime.fromisoformat(each.booking["start"]).hour for each in kept] == [9, 10]
