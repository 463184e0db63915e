"""The contract of the port `Roster`, over every in-memory allocation strategy there is.

As with the calendars: examples, and random histories lived through together
with the oracle, which walks the fleet and scans. Rosters broken on purpose must
fail. What a file of `booking/allocation` implements says which port it is
behind: `any_free` makes it a roster.
"""

import random
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import override

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from booking.allocation import gap_index, slot_bitsets
from booking.allocation.gap_index import GapIndex
from booking.allocation.slot_bitsets import SlotBitsets
from booking.allocation.walk_the_fleet import WalkTheFleet
from booking.errors import BookingConflict, UnknownDriver
from booking.rosters import Roster
from booking.strategies import Act, strategies
from booking.time_window import TimeWindow
from tests.contracts.histories import SEARCH_ONLY, SLOTS, live_through, outcome, windows
from tests.contracts.test_calendars import ClosedBounds
from tests.world import hours

NewRoster = Callable[[], Roster]
Example = Callable[[Roster], None]

ROSTERS: dict[str, NewRoster] = {
    each.name: each.load()
    for each in strategies(Act.ALLOCATION)
    if hasattr(each.load(), "any_free")
}
EXAMPLES: list[Example] = []

each_roster = pytest.mark.parametrize("new_roster", ROSTERS.values(), ids=ROSTERS.keys())


def example(function: Example) -> Example:
    EXAMPLES.append(function)
    return function


@example
def an_empty_roster_has_nobody_free(roster: Roster) -> None:
    assert roster.any_free(hours(9, 10)) is None
    assert list(roster.free(hours(9, 10), 5)) == []
    assert list(roster.drivers()) == []


@example
def a_new_driver_is_free_at_all_times(roster: Roster) -> None:
    roster.enrol(7)
    always = TimeWindow(datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC))
    for window in (hours(9, 10), always):
        assert roster.any_free(window) == 7
        assert list(roster.free(window, 5)) == [7]
    assert list(roster.drivers()) == [7]


@example
def a_driver_enrols_once(roster: Roster) -> None:
    roster.enrol(7)
    roster.hold(7, hours(9, 10))
    with pytest.raises(ValueError, match="7"):
        roster.enrol(7)
    assert roster.any_free(hours(9, 10)) is None


@example
def a_driver_who_holds_the_time_is_not_free(roster: Roster) -> None:
    roster.enrol(1)
    roster.hold(1, hours(9, 10))
    for window in (hours(9, 10), hours(8, 9.25), hours(9.75, 11), hours(8, 11), hours(9.25, 9.5)):
        assert roster.any_free(window) is None
        assert list(roster.free(window, 5)) == []


@example
def touching_windows_leave_the_driver_free(roster: Roster) -> None:
    roster.enrol(1)
    roster.hold(1, hours(9, 10))
    roster.hold(1, hours(12, 13))
    for window in (hours(8, 9), hours(10, 12), hours(13, 14)):
        assert roster.any_free(window) == 1
    roster.hold(1, hours(10, 12))
    assert roster.any_free(hours(10, 12)) is None


@example
def one_microsecond_too_long_is_not_free(roster: Roster) -> None:
    roster.enrol(1)
    roster.hold(1, hours(9, 10))
    roster.hold(1, hours(12, 13))
    instant = timedelta(microseconds=1)
    gap = hours(10, 12)
    assert roster.any_free(TimeWindow(gap.start - instant, gap.end)) is None
    assert roster.any_free(TimeWindow(gap.start, gap.end + instant)) is None
    assert roster.any_free(gap) == 1


@example
def seconds_decide_between_two_trips_of_one_quarter_of_an_hour(roster: Roster) -> None:
    roster.enrol(1)
    minute = 1 / 60
    early, late = hours(9, 9 + 2.5 * minute), hours(9 + 3.25 * minute, 9 + 4 * minute)
    between = hours(9 + 2.5 * minute, 9 + 3.25 * minute)
    roster.hold(1, early)
    roster.hold(1, late)
    assert roster.any_free(between) == 1
    assert roster.any_free(hours(9 + 2.25 * minute, 9 + 3 * minute)) is None
    assert roster.any_free(hours(9 + 4 * minute, 9.5)) == 1
    roster.release(1, early)
    assert roster.any_free(hours(9, 9 + 3.25 * minute)) == 1
    assert roster.any_free(hours(9, 9.25)) is None
    assert roster.any_free(hours(9 + 3.5 * minute, 10)) is None


@example
def hundreds_may_enrol_while_others_drive(roster: Roster) -> None:
    for driver_id in range(200):
        roster.enrol(driver_id)
        roster.hold(driver_id, hours(9, 9.1 if driver_id % 2 else 10.1))
    assert set(roster.free(hours(9.1, 9.9), 1_000)) == set(range(1, 200, 2))
    assert len(roster.free(hours(10.1, 11), 1_000)) == 200
    assert roster.any_free(hours(9, 11)) is None


@example
def two_half_gaps_do_not_make_one_whole(roster: Roster) -> None:
    for driver_id, held in ((1, hours(9, 10)), (2, hours(10, 11))):
        roster.enrol(driver_id)
        roster.hold(driver_id, held)
    assert roster.any_free(hours(9, 11)) is None
    assert roster.any_free(hours(9, 10)) == 2
    assert roster.any_free(hours(10, 11)) == 1


@example
def each_free_driver_is_listed_once_and_no_more_than_asked_for(roster: Roster) -> None:
    for driver_id in range(10):
        roster.enrol(driver_id)
        roster.hold(driver_id, hours(9, 10))
        roster.hold(driver_id, hours(12, 13))
    roster.hold(4, hours(10, 12))
    everybody_else = {0, 1, 2, 3, 5, 6, 7, 8, 9}
    for limit in (0, 1, 4, 9, 10, 1000):
        found = list(roster.free(hours(10, 12), limit))
        assert len(found) == min(limit, 9)
        assert len(set(found)) == len(found)
        assert set(found) <= everybody_else


@example
def a_refused_window_changes_nothing(roster: Roster) -> None:
    roster.enrol(1)
    roster.hold(1, hours(9, 10))
    for window in (hours(8, 9.5), hours(9.5, 11), hours(9, 10), hours(9.25, 9.5), hours(8, 11)):
        with pytest.raises(BookingConflict):
            roster.hold(1, window)
    assert roster.any_free(hours(8, 9)) == 1
    assert roster.any_free(hours(10, 11)) == 1
    roster.release(1, hours(9, 10))
    assert roster.any_free(hours(0, 24)) == 1


@example
def released_time_is_free_and_nothing_else_is(roster: Roster) -> None:
    roster.enrol(1)
    for start in (9, 10, 11):
        roster.hold(1, hours(start, start + 1))
    roster.release(1, hours(10, 11))
    assert roster.any_free(hours(10, 11)) == 1
    assert roster.any_free(hours(9, 10)) is None
    assert roster.any_free(hours(11, 12)) is None
    roster.release(1, hours(9, 10))
    assert roster.any_free(hours(0, 11)) == 1


@example
def only_what_was_taken_can_be_given_back(roster: Roster) -> None:
    roster.enrol(1)
    roster.hold(1, hours(9, 10))
    roster.hold(1, hours(10, 11))
    for window in (hours(9, 11), hours(9, 9.5), hours(9.5, 10), hours(8, 10), hours(12, 13)):
        with pytest.raises(KeyError):
            roster.release(1, window)
    assert roster.any_free(hours(9, 10)) is None
    assert roster.any_free(hours(10, 11)) is None
    roster.release(1, hours(9, 10))
    with pytest.raises(KeyError):
        roster.release(1, hours(9, 10))


@example
def a_stranger_is_refused_everywhere(roster: Roster) -> None:
    roster.enrol(1)
    for action in (
        lambda: roster.dismiss(2),
        lambda: roster.hold(2, hours(9, 10)),
        lambda: roster.release(2, hours(9, 10)),
    ):
        with pytest.raises(UnknownDriver) as refused:
            action()
        assert refused.value.field == "driver_id"


@example
def a_dismissed_driver_is_gone_and_may_come_back_with_nothing_held(roster: Roster) -> None:
    for driver_id in (1, 2):
        roster.enrol(driver_id)
        roster.hold(driver_id, hours(9, 10))
    roster.dismiss(1)
    assert list(roster.drivers()) == [2]
    assert list(roster.free(hours(12, 13), 5)) == [2]
    with pytest.raises(UnknownDriver):
        roster.hold(1, hours(12, 13))
    roster.enrol(3)
    roster.enrol(1)
    assert set(roster.free(hours(9, 10), 5)) == {1, 3}


@example
def a_large_fleet_agrees_with_the_oracle(roster: Roster) -> None:
    rng = random.Random(20190301)
    oracle = WalkTheFleet()
    held: list[tuple[int, TimeWindow]] = []
    for driver_id in range(100, 160):
        roster.enrol(driver_id)
        oracle.enrol(driver_id)
    for _ in range(3_000):
        start = rng.randrange(0, 500) / 4
        driver_id, window = rng.randrange(100, 160), hours(start, start + rng.randrange(1, 8) / 4)
        if outcome(lambda: oracle.hold(driver_id, window)) is None:  # noqa: B023  # called at once
            roster.hold(driver_id, window)
            held.append((driver_id, window))
        else:
            with pytest.raises(BookingConflict):
                roster.hold(driver_id, window)
    _agree(roster, oracle, rng)
    rng.shuffle(held)
    for driver_id, window in held[: len(held) // 2]:
        roster.release(driver_id, window)
        oracle.release(driver_id, window)
    _agree(roster, oracle, rng)
    for driver_id in range(100, 159):
        roster.dismiss(driver_id)
        oracle.dismiss(driver_id)
    _agree(roster, oracle, rng)


def _agree(roster: Roster, oracle: Roster, rng: random.Random) -> None:
    for _ in range(150):
        start = rng.randrange(0, 520) / 4
        agree_on(hours(start, start + rng.randrange(1, 12) / 4), roster, oracle)


def agree_on(window: TimeWindow, roster: Roster, oracle: Roster) -> None:
    """Which driver is a matter of taste; whether there is one, and that they are free, is not."""
    free = set(oracle.free(window, 1_000))
    some = roster.any_free(window)
    assert some in free if free else some is None
    for limit in (0, 1, 2, 1_000):
        listed = list(roster.free(window, limit))
        assert len(listed) == min(limit, len(free))
        assert len(set(listed)) == len(listed)
        assert set(listed) <= free


driver_ids = st.integers(1, 3)


class Comparison(RuleBasedStateMachine):
    """A roster and the oracle live through the same history."""

    def __init__(self, new_roster: NewRoster) -> None:
        super().__init__()
        self.roster = new_roster()
        self.oracle = WalkTheFleet()
        self.held: list[tuple[int, TimeWindow]] = []

    def both(self, action: Callable[[Roster], None]) -> bool:
        """Whether it succeeds, which must be the same for both."""
        came_to = outcome(lambda: action(self.oracle))
        assert outcome(lambda: action(self.roster)) == came_to
        return came_to is None

    @initialize(bookings=st.lists(st.tuples(driver_ids, windows), min_size=8, max_size=24))
    def begin_with_a_busy_fleet(self, bookings: list[tuple[int, TimeWindow]]) -> None:
        for driver_id in sorted({driver_id for driver_id, _ in bookings}):
            self.enrol(driver_id)
        for driver_id, window in bookings:
            self.hold(driver_id, window)

    @rule(driver_id=driver_ids)
    def enrol(self, driver_id: int) -> None:
        self.both(lambda roster: roster.enrol(driver_id))

    @rule(driver_id=driver_ids)
    def dismiss(self, driver_id: int) -> None:
        self.both(lambda roster: roster.dismiss(driver_id))
        self.held = [each for each in self.held if each[0] != driver_id]

    @rule(driver_id=driver_ids, window=windows)
    def hold(self, driver_id: int, window: TimeWindow) -> None:
        if self.both(lambda roster: roster.hold(driver_id, window)):
            self.held.append((driver_id, window))

    @precondition(lambda self: self.held)
    @rule(which=st.integers(0, 1_000))
    def release(self, which: int) -> None:
        driver_id, window = self.held.pop(which % len(self.held))
        self.both(lambda roster: roster.release(driver_id, window))

    @rule(driver_id=driver_ids, window=windows)
    def release_at_random(self, driver_id: int, window: TimeWindow) -> None:
        if self.both(lambda roster: roster.release(driver_id, window)):
            self.held.remove((driver_id, window))

    @rule(window=windows)
    def ask(self, window: TimeWindow) -> None:
        agree_on(window, self.roster, self.oracle)

    @invariant()
    def hold_the_same(self) -> None:
        assert sorted(self.roster.drivers()) == sorted(self.oracle.drivers())
        for start in range(SLOTS):
            slot = hours(start / 2, (start + 1) / 2)
            assert sorted(self.roster.free(slot, 9)) == sorted(self.oracle.free(slot, 9))


@each_roster
@pytest.mark.parametrize("keeps", EXAMPLES, ids=[each.__name__ for each in EXAMPLES])
def test_a_roster_keeps_the_contract(new_roster: NewRoster, keeps: Example) -> None:
    keeps(new_roster())


@each_roster
def test_a_roster_agrees_with_the_oracle_through_any_history(new_roster: NewRoster) -> None:
    live_through(lambda: Comparison(new_roster))


def test_the_rosters_are_those_that_say_who_is_free() -> None:
    in_memory = {"walk_the_fleet", "walk_with_bisect", "fleet_tree", "slot_bitsets", "gap_index"}
    assert in_memory <= ROSTERS.keys()
    others = [each for each in strategies(Act.ALLOCATION) if each.name not in ROSTERS]
    assert all(hasattr(each.load(), "allocate") for each in others)


@pytest.fixture
def tiny_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gap_index, "LEAF_MAX", 2)


@pytest.mark.usefixtures("tiny_leaves")
def test_the_gap_index_agrees_with_the_oracle_when_its_leaves_split_all_the_time() -> None:
    live_through(lambda: Comparison(GapIndex))
    a_large_fleet_agrees_with_the_oracle(GapIndex())


@pytest.mark.parametrize("slot_min", [7, 45, 600])
def test_the_slot_bitsets_agree_with_the_oracle_whatever_the_slot(
    slot_min: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slot_bitsets, "SLOT", timedelta(minutes=slot_min))
    live_through(lambda: Comparison(SlotBitsets))


def test_the_slot_bitsets_keep_no_row_that_nobody_touches() -> None:
    roster = SlotBitsets()
    for driver_id in (1, 2):
        roster.enrol(driver_id)
        roster.hold(driver_id, hours(9, 10))
        roster.hold(driver_id, hours(10, 11.01))
    roster.release(1, hours(9, 10))
    roster.release(1, hours(10, 11.01))
    roster.dismiss(2)
    assert roster._rows == {}  # noqa: SLF001  # what would grow for ever


def _busy_fleet(drivers: int, windows_each: int) -> tuple[GapIndex, list[tuple[int, TimeWindow]]]:
    """A gap index, and bookings that fill it: half an hour each, ten minutes between them."""
    rng = random.Random(7)
    roster = GapIndex()
    bookings = []
    for driver_id in range(drivers):
        roster.enrol(driver_id)
        shift = rng.uniform(0, 2 / 3)
        for number in range(windows_each):
            start = shift + number * 2 / 3
            bookings.append((driver_id, hours(start, start + 1 / 2)))
    rng.shuffle(bookings)
    return roster, bookings


def test_the_gap_index_looks_at_no_gap_when_nobody_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    roster, bookings = _busy_fleet(100, 60)
    for driver_id, window in bookings:
        roster.hold(driver_id, window)
    # A long gap that comes and goes must be forgotten, or every question would look for it.
    for action in (roster.release, roster.hold):
        for driver_id, window in bookings:
            if driver_id == 0:
                action(driver_id, window)
    looked_at: list[int] = []
    lasting = gap_index._Leaf.lasting  # noqa: SLF001  # counts what is looked at

    def counted(leaf: gap_index._Leaf, before: int, end: int) -> Iterator[int]:
        looked_at.append(before)
        return lasting(leaf, before, end)

    monkeypatch.setattr(gap_index._Leaf, "lasting", counted)  # noqa: SLF001  # the same
    assert roster.any_free(hours(10, 22)) is None
    assert looked_at == []
    assert roster.any_free(hours(10, 10.1)) is not None
    assert len(looked_at) > 0


def test_the_gap_index_needs_few_bytes_a_booking() -> None:
    roster, bookings = _busy_fleet(200, 100)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for driver_id, window in bookings:
            roster.hold(driver_id, window)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (after - before) / len(bookings) < 40


def test_the_gap_index_keeps_nothing_of_drivers_who_come_and_go() -> None:
    roster, cycles = GapIndex(), 2_000

    def come_and_go() -> None:
        for driver_id in range(cycles):
            roster.enrol(driver_id)
            roster.hold(driver_id, hours(9, 10))
            roster.dismiss(driver_id)

    come_and_go()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        come_and_go()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # A place in a list alone would be 8 bytes a driver.
    assert (after - before) / cycles < 4


class RefusesNothing(WalkTheFleet):
    """Has no check: a second booking of the same time is accepted, and lost."""

    @override
    def hold(self, driver_id: int, window: TimeWindow) -> None:
        if self._calendar(driver_id).is_free(window):
            super().hold(driver_id, window)


class ReleasesTheNeighbours(WalkTheFleet):
    """Gives back everything that touches the window."""

    @override
    def release(self, driver_id: int, window: TimeWindow) -> None:
        super().release(driver_id, window)
        calendar = self._calendar(driver_id)
        for held in list(calendar):
            if window.start <= held.window.end and held.window.start <= window.end:
                calendar.release(held.booking_id)


class ReleasesWhatOverlaps(WalkTheFleet):
    """Does not ask for the window that was taken: any part of it will do."""

    @override
    def release(self, driver_id: int, window: TimeWindow) -> None:
        conflicts = self._calendar(driver_id).conflicts(window)
        if not conflicts:
            raise KeyError(window)
        for held in conflicts:
            super().release(driver_id, held.window)


class ListsEverybodyTwice(WalkTheFleet):
    """Lists a driver more than once."""

    @override
    def free(self, window: TimeWindow, limit: int) -> Sequence[int]:
        return [each for each in super().free(window, limit) for _ in range(2)][:limit]


class AsksOneDriver(WalkTheFleet):
    """Gives up after the first."""

    @override
    def any_free(self, window: TimeWindow) -> int | None:
        first = next(iter(self.drivers()), None)
        return first if first in self.free(window, 1) else None


class LeavesGapsBehind(GapIndex):
    """A dismissed driver's gaps stay in the index."""

    @override
    def dismiss(self, driver_id: int) -> None:
        self._empty_seats.append(self._seat(driver_id))
        del self._seat_of[driver_id]


class StaleMaximum(GapIndex):
    """The maxima are not told when a gap grows."""

    def __init__(self) -> None:
        super().__init__()
        self._gaps._changed = lambda *_: None  # type: ignore[method-assign]  # noqa: SLF001  # the fault


class RoundsToSlots(SlotBitsets):
    """Takes a slot that is touched for a slot that is full."""

    @override
    def _free(self, window: TimeWindow) -> Iterator[int]:
        surely = self._untouched_in(slot_bitsets._met(window))  # noqa: SLF001  # the fault
        return (self._driver_at[seat] for seat in surely.search(1))


class FreesTheWholeSlot(SlotBitsets):
    """Given back one booking, takes the slots it met for untouched, whatever else is there."""

    @override
    def release(self, driver_id: int, window: TimeWindow) -> None:
        super().release(driver_id, window)
        for slot in slot_bitsets._met(window):  # noqa: SLF001  # the fault
            self._untouch(slot, self._seat_of[driver_id])


def closed_bounds() -> Roster:
    """Takes `[]` for `[)`."""
    return WalkTheFleet(ClosedBounds)


BROKEN: list[tuple[NewRoster, Example]] = [
    (closed_bounds, touching_windows_leave_the_driver_free),
    (RefusesNothing, a_refused_window_changes_nothing),
    (ReleasesTheNeighbours, released_time_is_free_and_nothing_else_is),
    (ReleasesWhatOverlaps, only_what_was_taken_can_be_given_back),
    (ListsEverybodyTwice, each_free_driver_is_listed_once_and_no_more_than_asked_for),
    (AsksOneDriver, two_half_gaps_do_not_make_one_whole),
    (LeavesGapsBehind, a_dismissed_driver_is_gone_and_may_come_back_with_nothing_held),
    (StaleMaximum, a_new_driver_is_free_at_all_times),
    (RoundsToSlots, seconds_decide_between_two_trips_of_one_quarter_of_an_hour),
    (FreesTheWholeSlot, seconds_decide_between_two_trips_of_one_quarter_of_an_hour),
]


@pytest.mark.parametrize(("broken", "teeth"), BROKEN)
def test_a_broken_roster_fails_the_example_about_it(broken: NewRoster, teeth: Example) -> None:
    with pytest.raises((AssertionError, pytest.fail.Exception, BookingConflict)):
        teeth(broken())


@pytest.mark.parametrize("broken", [broken for broken, _ in BROKEN])
def test_a_broken_roster_disagrees_with_the_oracle(
    broken: NewRoster, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The histories' half hours would fill slots of five minutes, and hide what slots get wrong.
    monkeypatch.setattr(slot_bitsets, "SLOT", timedelta(minutes=45))
    with pytest.raises(AssertionError):
        live_through(lambda: Comparison(broken), SEARCH_ONLY)
