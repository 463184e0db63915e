"""`FleetIndex` against a model that keeps every word it was told in a dictionary."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from booking.allocation.gap_index import GapIndex
from booking.allocation.walk_the_fleet import WalkTheFleet
from booking.calendars import Held, gaps_between
from booking.detection.bisect_neighbours import BisectNeighbours
from booking.detection.interval_tree import IntervalTree
from booking.detection.linear_scan import LinearScan
from booking.fleet_index import (
    LOOK_AHEAD,
    Claim,
    FleetIndex,
    NotInMemory,
    next_free_among,
    search_window,
)
from booking.time_window import LATEST, TimeWindow

NOON = datetime(2026, 3, 8, 12, tzinfo=UTC)
SLOTS = 8
BUILDS = {
    "bisect and gaps": (BisectNeighbours, GapIndex),
    "tree and gaps": (IntervalTree, GapIndex),
    "scan and walk": (LinearScan, WalkTheFleet),
}


def at(start: int, end: int) -> TimeWindow:
    """A window of quarters of an hour after noon."""
    quarter = timedelta(minutes=15)
    return TimeWindow(NOON + start * quarter, NOON + end * quarter)


class DriverWord(NamedTuple):
    driver_id: int
    fleet: str | None

    def tell(self, index: FleetIndex) -> None:
        index.apply_driver(*self)


class BookingWord(NamedTuple):
    booking_id: int
    driver_id: int
    window: TimeWindow | None

    def tell(self, index: FleetIndex) -> None:
        index.apply_booking(*self)


Word = DriverWord | BookingWord
ALL_WINDOWS = [at(start, end) for start, end in itertools.combinations(range(SLOTS + 1), 2)]
QUARTERS = [at(start, start + 1) for start in range(SLOTS)]
DRIVERS = (1, 2, 3)
FLEETS = ("main", "night")
words = st.one_of(
    st.builds(DriverWord, st.sampled_from(DRIVERS), st.sampled_from((*FLEETS, None))),
    st.builds(
        BookingWord,
        st.integers(1, 6),
        st.sampled_from(DRIVERS),
        st.one_of(st.none(), st.sampled_from(ALL_WINDOWS)),
    ),
)


class Model:
    """The last word about everybody, and answers by going through all of it."""

    def __init__(self, told: Iterable[Word]) -> None:
        self.fleet_of: dict[int, str | None] = {}
        self.held: dict[int, BookingWord] = {}
        for word in told:
            if isinstance(word, DriverWord):
                self.fleet_of[word.driver_id] = word.fleet
            else:
                self.held[word.booking_id] = word

    def claims(self) -> set[Claim]:
        return {Claim(*each) for each in self.held.values() if each.window is not None}

    def conflicts(self, driver_id: int, window: TimeWindow) -> set[Held]:
        return {
            Held(each.booking_id, each.window)
            for each in self.claims()
            if each.driver_id == driver_id and each.window.overlaps(window)
        }

    def free_drivers(self, window: TimeWindow, fleet: str) -> set[int]:
        return {
            driver_id
            for driver_id, of in self.fleet_of.items()
            if of == fleet and not self.conflicts(driver_id, window)
        }

    def next_free(self, driver_id: int, window: TimeWindow) -> TimeWindow:
        tries = (window.moved_to(window.start + step * timedelta(minutes=15)) for step in range(99))
        return next(each for each in tries if not self.conflicts(driver_id, each))

    def knows(self, driver_id: int) -> bool:
        return self.fleet_of.get(driver_id) is not None or any(
            each.driver_id == driver_id for each in self.claims()
        )


def next_free(
    index: FleetIndex, driver_id: int, window: TimeWindow, besides: Sequence[Held] = ()
) -> TimeWindow | None:
    return next_free_among(index.conflicts(driver_id, search_window(window)), window, besides)


def disagreement(index: FleetIndex, model: Model) -> str | None:
    """The first question that the two answer differently."""
    return next(_disagreements(index, model), None)


def _disagreements(index: FleetIndex, model: Model) -> Iterator[str]:
    if set(index) != model.claims():
        yield "claims"
    for window, fleet in itertools.product(ALL_WINDOWS, FLEETS):
        free = index.free_drivers(window, fleet, limit=9)
        if sorted(free) != sorted(model.free_drivers(window, fleet)):
            yield f"free drivers of {fleet} in {window}: {free}"
    for driver_id, window in itertools.product(filter(model.knows, DRIVERS), ALL_WINDOWS):
        yield from _disagreements_about(index, model, driver_id, window)


def _disagreements_about(
    index: FleetIndex, model: Model, driver_id: int, window: TimeWindow
) -> Iterator[str]:
    conflicts = index.conflicts(driver_id, window)
    if conflicts != sorted(conflicts, key=lambda held: held.window.start):
        yield f"order of the conflicts of {driver_id} in {window}"
    if set(conflicts) != model.conflicts(driver_id, window):
        yield f"conflicts of {driver_id} in {window}"
    if next_free(index, driver_id, window) != model.next_free(driver_id, window):
        yield f"next free of {driver_id} after {window}"
    gaps = list(gaps_between(conflicts, window))
    for quarter in (each for each in QUARTERS if each.overlaps(window)):
        is_gap = any(gap.overlaps(quarter) for gap in gaps)
        if is_gap == bool(model.conflicts(driver_id, quarter)):
            yield f"gaps of {driver_id} in {window}"


@pytest.fixture(params=BUILDS, name="build")
def _build(request: pytest.FixtureRequest) -> tuple[type, type]:
    return BUILDS[request.param]


@pytest.fixture(name="index")
def _index(build: tuple[type, type]) -> FleetIndex:
    index = FleetIndex(*build)
    index.apply_driver(1, "main")
    index.apply_driver(2, "main")
    return index


@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)
@given(told=st.lists(words, max_size=25))
@example(told=[BookingWord(1, 1, at(0, 2)), BookingWord(2, 1, at(1, 3)), DriverWord(1, "main")])
def test_every_answer_is_the_models(build: tuple[type, type], told: list[Word]) -> None:
    index = FleetIndex(*build)
    for word in told:
        word.tell(index)
        word.tell(index)  # and again, which changes nothing
    assert disagreement(index, Model(told)) is None


@given(
    data=st.data(), told=st.lists(words, max_size=15, unique_by=lambda word: (len(word), word[0]))
)
def test_the_order_of_words_about_different_things_does_not_matter(
    data: st.DataObject, told: list[Word]
) -> None:
    index = FleetIndex(BisectNeighbours, GapIndex)
    for word in data.draw(st.permutations(told)):
        word.tell(index)
    assert disagreement(index, Model(told)) is None


class DropsWhatOverlaps(FleetIndex):
    """The index as one writes it first: what the calendar refuses is lost."""

    def apply_booking(self, booking_id: int, driver_id: int, window: TimeWindow | None) -> None:
        if window is None or not self.conflicts(driver_id, window):
            super().apply_booking(booking_id, driver_id, window)


def test_the_control_an_index_that_drops_what_overlaps_disagrees_with_the_model() -> None:
    told: list[Word] = [
        DriverWord(1, "main"),
        BookingWord(1, 1, at(0, 2)),
        BookingWord(2, 1, at(0, 2)),
        BookingWord(1, 1, None),
    ]
    index = DropsWhatOverlaps(BisectNeighbours, GapIndex)
    for word in told:
        word.tell(index)
    assert disagreement(index, Model(told)) is not None


def test_a_booking_heard_of_before_the_cancellation_that_made_room_for_it(
    index: FleetIndex,
) -> None:
    index.apply_booking(10, 1, at(0, 4))
    index.apply_booking(11, 1, at(2, 6))
    assert index.free_drivers(at(4, 6), "main", 5) == [2]
    index.apply_booking(10, 1, None)
    assert not index.conflicts(1, at(0, 2))
    assert index.free_drivers(at(4, 6), "main", 5) == [2]
    assert sorted(index.free_drivers(at(0, 2), "main", 5)) == [1, 2]


def test_what_waited_moves_in_when_there_is_room() -> None:
    made: list[BisectNeighbours] = []

    def new_calendar() -> BisectNeighbours:
        made.append(BisectNeighbours())
        return made[-1]

    index = FleetIndex(new_calendar, GapIndex)
    index.apply_booking(10, 1, at(0, 4))
    index.apply_booking(11, 1, at(2, 6))
    (calendar,) = made
    assert [held.booking_id for held in calendar] == [10]
    index.apply_booking(10, 1, None)
    assert [held.booking_id for held in calendar] == [11]


def test_a_double_booking_counts_until_both_are_gone(index: FleetIndex) -> None:
    index.apply_booking(10, 1, at(0, 4))
    index.apply_booking(11, 1, at(0, 4))
    assert [held.booking_id for held in index.conflicts(1, at(0, 4))] == [10, 11]
    index.apply_booking(10, 1, None)
    assert index.conflicts(1, at(0, 4))
    index.apply_booking(11, 1, None)
    assert not index.conflicts(1, at(0, 4))


def test_what_has_ended_is_dropped_and_no_longer_answered(index: FleetIndex) -> None:
    index.apply_booking(10, 1, at(0, 4))
    index.apply_booking(11, 1, at(6, 8))
    assert index.forget_before(NOON + timedelta(hours=1, minutes=1)) == 1
    assert [claim.booking_id for claim in index] == [11]
    with pytest.raises(NotInMemory):
        index.conflicts(1, at(0, 1))
    with pytest.raises(NotInMemory):
        index.free_drivers(at(0, 8), "main", 1)
    assert not index.conflicts(1, at(5, 6))


def test_what_had_ended_before_it_is_heard_of_is_not_held(index: FleetIndex) -> None:
    index.forget_before(at(4, 5).start)
    index.apply_booking(10, 1, at(0, 4))
    assert len(index) == 0


def test_the_horizon_never_moves_back(index: FleetIndex) -> None:
    index.forget_before(at(4, 5).start)
    index.forget_before(at(0, 1).start)
    assert index.horizon == at(4, 5).start


def test_a_driver_nobody_told_of_is_not_answered_for(index: FleetIndex) -> None:
    with pytest.raises(NotInMemory):
        index.conflicts(77, at(0, 1))
    with pytest.raises(NotInMemory):
        index.fleet_of(77)


def test_a_driver_who_retires_is_offered_no_more_and_forgotten_when_idle(index: FleetIndex) -> None:
    index.apply_booking(10, 1, at(0, 4))
    assert index.fleet_of(1) == "main"
    index.apply_driver(1, None)
    with pytest.raises(NotInMemory):
        index.fleet_of(1)
    assert index.free_drivers(at(4, 8), "main", 5) == [2]
    assert index.conflicts(1, at(0, 4))
    index.apply_booking(10, 1, None)
    with pytest.raises(NotInMemory):
        index.conflicts(1, at(0, 4))


def test_no_more_are_listed_than_asked_for_and_none_of_those_left_out(index: FleetIndex) -> None:
    for driver_id in (3, 4):
        index.apply_driver(driver_id, "main")
    assert len(index.free_drivers(at(0, 1), "main", 2)) == 2
    assert sorted(index.free_drivers(at(0, 1), "main", 2, without={1, 2})) == [3, 4]
    assert len(index.free_drivers(at(0, 1), "main", 1, without={1})) == 1
    assert index.free_drivers(at(0, 1), "nobody works here", 2) == []


def test_who_was_refused_is_not_offered_the_same_time_again(index: FleetIndex) -> None:
    unheard_of = Held(10, at(0, 2))
    assert next_free(index, 1, at(0, 1)) == at(0, 1)
    assert next_free(index, 1, at(0, 1), besides=[unheard_of]) == at(2, 3)


def test_the_next_free_window_is_looked_for_a_week_ahead_and_no_further(index: FleetIndex) -> None:
    wanted = TimeWindow(NOON, NOON + timedelta(hours=1))
    for day in range(7):
        start = NOON + timedelta(days=day)
        index.apply_booking(10 + day, 1, TimeWindow(start, start + timedelta(days=1)))
    assert next_free(index, 1, wanted) == wanted.moved_to(NOON + LOOK_AHEAD)
    index.apply_booking(99, 1, wanted.moved_to(NOON + LOOK_AHEAD))
    assert next_free(index, 1, wanted) is None


def test_the_search_stops_at_the_end_of_the_calendar(index: FleetIndex) -> None:
    wanted = TimeWindow(LATEST - timedelta(hours=1), LATEST)
    assert next_free(index, 1, wanted) == wanted
    index.apply_booking(10, 1, wanted)
    assert next_free(index, 1, wanted) is None
