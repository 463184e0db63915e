"""The blocked window: what fits between two trips, and what changes when one goes.

One driver's trips are made, moved and cancelled at random through `fit` and
`refit`, against a model that knows of neither: it counts minutes, and works out
every lead from scratch after every step.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import pairwise
from typing import ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from booking.blocking import Fit, Misfit, Reason, fit, refit
from booking.calendars import Held
from booking.time_window import TimeWindow
from tests.contracts.histories import CALM, SEARCH_ONLY, live_through
from tests.world import MIDNIGHT, hours

TURNAROUND_MIN = 4
TRAVEL_MIN = ((0, 5, 50), (40, 0, 7), (6, 45, 0))
"""Minutes from a place (row) to another (column): quick one way round, slow the other, so
the way by the third place is often shorter, as it is with estimates of mixed sources."""
RUSH_MIN = 10
"""So much longer it takes whoever leaves in the second half of an hour."""
DAY_MIN = 360

minutes = st.integers(0, DAY_MIN)
lengths = st.integers(1, 45)
places = st.sampled_from([0, 1, 2, 0, 1, 2, None])
which_trip = st.integers(0, 20)


@dataclass(frozen=True)
class Trip:
    """From and to a minute of the day, and from and to a place, if it is known."""

    id: int
    start: int
    end: int
    pick_up: int | None
    drop_off: int | None

    @property
    def window(self) -> TimeWindow:
        return hours(self.start / 60, self.end / 60)

    @property
    def held(self) -> Held:
        return Held(self.id, self.window)


def travel_min(before: Trip | None, after: Trip | None) -> int:
    if before is None or after is None or before.drop_off is None or after.pick_up is None:
        return 0
    rush = RUSH_MIN if before.end % 60 >= 30 else 0
    return TRAVEL_MIN[before.drop_off][after.pick_up] + rush


# --- The model: minutes, and everything from scratch. -----------------------------------------


def in_order(trips: Iterable[Trip]) -> list[Trip]:
    return sorted(trips, key=lambda trip: trip.start)


def all_blocked(trips: Iterable[Trip]) -> dict[int, TimeWindow]:
    """What each trip blocks."""
    ordered = in_order(trips)
    blocked = {trip.id: trip.window for trip in ordered[:1]}
    for before, trip in pairwise(ordered):
        lead = travel_min(before, trip) + TURNAROUND_MIN
        blocked[trip.id] = hours(max(trip.start - lead, before.end) / 60, trip.end / 60)
    return blocked


def troubles(trips: Iterable[Trip], wanted: Trip) -> dict[int, tuple[Reason, int]]:
    """The trips in the way of `wanted`: why, and (unless they overlap) by how many minutes."""
    found = {}
    others = [trip for trip in trips if trip.id != wanted.id]
    for before, after in pairwise(in_order([*others, wanted])):
        other = after if before == wanted else before
        travel = travel_min(before, after)
        missing = travel + TURNAROUND_MIN - (after.start - before.end)
        if wanted in {before, after} and missing > 0:
            enough = missing <= TURNAROUND_MIN
            found[other.id] = (Reason.TURNAROUND if enough else Reason.TRAVEL, missing)
    for trip in others:
        if set(range(trip.start, trip.end)) & set(range(wanted.start, wanted.end)):
            found[trip.id] = (Reason.OVERLAP, 0)
    return found


# --- The driver: neighbours, `fit` and `refit`. -----------------------------------------------


class Driver:
    """One driver's trips, and what they block, kept like the rows of a table.

    Each write is checked at once against every other row, as an exclusion
    constraint does.
    """

    def __init__(self) -> None:
        self.trips: dict[int, Trip] = {}
        self.blocked: dict[int, TimeWindow] = {}

    def place(self, wanted: Trip) -> Fit | Misfit:
        """Make the trip, or move it to where it is wanted."""
        before, after = self._neighbours(wanted)
        answer = self._fit(before, wanted, after)
        if isinstance(answer, Fit):
            changes = self._without(wanted.id)
            changes[wanted.id] = answer.blocked
            if after is not None and answer.after_blocked is not None:
                changes[after.id] = answer.after_blocked
            self.trips[wanted.id] = wanted
            self._write(wanted.id, changes)
        return answer

    def cancel(self, trip_id: int) -> None:
        changes = self._without(trip_id)
        del self.trips[trip_id], self.blocked[trip_id]
        self._write(trip_id, changes)

    def _without(self, trip_id: int) -> dict[int, TimeWindow]:
        """What the successor of a trip blocks once the trip has gone."""
        if trip_id not in self.trips:
            return {}
        before, after = self._neighbours(self.trips[trip_id])
        return {} if after is None else {after.id: self._refit(before, after)}

    def _neighbours(self, wanted: Trip) -> tuple[Trip | None, Trip | None]:
        others = in_order(trip for trip in self.trips.values() if trip.id != wanted.id)
        before = [trip for trip in others if trip.start < wanted.start]
        after = [trip for trip in others if trip.start >= wanted.start]
        return before[-1] if before else None, after[0] if after else None

    def _fit(self, before: Trip | None, wanted: Trip, after: Trip | None) -> Fit | Misfit:
        return fit(
            before.held if before else None,
            wanted.window,
            after.held if after else None,
            travel_before_s=60 * travel_min(before, wanted),
            travel_after_s=60 * travel_min(wanted, after),
            turnaround_s=60 * TURNAROUND_MIN,
        )

    def _refit(self, before: Trip | None, after: Trip) -> TimeWindow:
        return refit(
            before.window if before else None,
            after.window,
            travel_s=60 * travel_min(before, after),
            turnaround_s=60 * TURNAROUND_MIN,
        ).blocked

    def _write(self, changed_id: int, changes: dict[int, TimeWindow]) -> None:
        """Leads that shrink, the trip itself, leads that grow."""
        for trip_id in sorted(changes, key=lambda each: self._turn(each, changed_id, changes)):
            self.blocked[trip_id] = changes[trip_id]
            for other_id, other in self.blocked.items():
                assert other_id == trip_id or not other.overlaps(changes[trip_id])

    def _turn(self, trip_id: int, changed_id: int, changes: dict[int, TimeWindow]) -> int:
        if trip_id == changed_id:
            return 1
        return 0 if changes[trip_id].start >= self.blocked[trip_id].start else 2


class DriverMachine(RuleBasedStateMachine):
    """A driver's day."""

    kind: ClassVar[type[Driver]] = Driver

    def __init__(self) -> None:
        super().__init__()
        self.driver = self.kind()
        self.trips: dict[int, Trip] = {}
        self.next_id = 1

    @initialize(trips=st.lists(st.tuples(lengths, places, places), min_size=6, max_size=6))
    def begin(self, trips: list[tuple[int, int | None, int | None]]) -> None:
        """A busy day: one trip close behind the other."""
        for trip in trips:
            self.make_behind(-1, 1, *trip)

    @rule(start=minutes, length=lengths, pick_up=places, drop_off=places)
    def make(self, start: int, length: int, pick_up: int | None, drop_off: int | None) -> None:
        self._place(Trip(self.next_id, start, start + length, pick_up, drop_off))
        self.next_id += 1

    @rule(
        which=which_trip,
        slack=st.integers(0, 3),
        length=lengths,
        pick_up=places,
        drop_off=places,
    )
    def make_behind(
        self, which: int, slack: int, length: int, pick_up: int | None, drop_off: int | None
    ) -> None:
        """As the next behind another trip, a minute too early or with a minute or two to spare."""
        if before := self._pick(which):
            soon = Trip(self.next_id, before.end, before.end + length, pick_up, drop_off)
            start = before.end + travel_min(before, soon) + TURNAROUND_MIN + slack - 1
            self.make(start, length, pick_up, drop_off)
        else:
            self.make(0, length, pick_up, drop_off)

    @rule(which=which_trip, start=minutes, length=lengths)
    def move(self, which: int, start: int, length: int) -> None:
        if trip := self._pick(which):
            self._place(replace(trip, start=start, end=start + length))

    @rule(which=which_trip, by=st.integers(-20, 20), longer=st.integers(-20, 20))
    def shift(self, which: int, by: int, longer: int) -> None:
        if trip := self._pick(which):
            start = max(trip.start + by, 0)
            self._place(replace(trip, start=start, end=max(trip.end + by + longer, start + 1)))

    @rule(which=which_trip)
    def cancel(self, which: int) -> None:
        if trip := self._pick(which):
            self.driver.cancel(trip.id)
            del self.trips[trip.id]

    def _pick(self, which: int) -> Trip | None:
        return in_order(self.trips.values())[which % len(self.trips)] if self.trips else None

    def _place(self, wanted: Trip) -> None:
        in_the_way = troubles(self.trips.values(), wanted)
        answer = self.driver.place(wanted)
        if isinstance(answer, Fit):
            assert in_the_way == {}
            self.trips[wanted.id] = wanted
            return
        reasons = [reason for reason, _ in in_the_way.values()]
        assert answer.reason == next(each for each in Reason if each in reasons)
        assert in_the_way[answer.in_the_way.booking_id][0] == answer.reason
        if answer.reason != Reason.OVERLAP:
            alike = [each for reason, each in in_the_way.values() if reason == answer.reason]
            assert answer.missing_s == 60 * max(alike)

    @invariant()
    def blocks_what_the_model_says(self) -> None:
        assert self.driver.blocked == all_blocked(self.trips.values())

    @invariant()
    def never_blocks_a_minute_twice(self) -> None:
        ordered = sorted(self.driver.blocked.values())
        assert all(before.end <= after.start for before, after in pairwise(ordered))


def test_a_drivers_day_agrees_with_the_model_after_every_step() -> None:
    live_through(DriverMachine)


# --- The controls: each must be caught. -------------------------------------------------------


class ForgetsTheNeighbour(Driver):
    """When a trip goes, its successor counts as the first of the day."""

    def _refit(self, _: Trip | None, after: Trip) -> TimeWindow:
        return super()._refit(None, after)


class LeavesTheLead(Driver):
    """When a trip goes, its successor's lead stays as it was."""

    def _without(self, _: int) -> dict[int, TimeWindow]:
        return {}


class LeadRunsOn(Driver):
    """A lead that grows may run into the trip before."""

    def _refit(self, before: Trip | None, after: Trip) -> TimeWindow:
        lead = travel_min(before, after) + TURNAROUND_MIN if before else 0
        return hours((after.start - lead) / 60, after.end / 60)


class LeadTakesAll(Driver):
    """A lead takes all the time there is, needed or not."""

    def _refit(self, before: Trip | None, after: Trip) -> TimeWindow:
        return TimeWindow(before.window.end, after.window.end) if before else after.window


class LooksBackOnly(Driver):
    """Asks nothing about the trip that comes after."""

    def _fit(self, before: Trip | None, wanted: Trip, _: Trip | None) -> Fit | Misfit:
        return super()._fit(before, wanted, None)


class TurnsOnTheSpot(Driver):
    """Fits trips without the turnaround."""

    def _fit(self, before: Trip | None, wanted: Trip, after: Trip | None) -> Fit | Misfit:
        return fit(
            before.held if before else None,
            wanted.window,
            after.held if after else None,
            travel_before_s=60 * travel_min(before, wanted),
            travel_after_s=60 * travel_min(wanted, after),
            turnaround_s=0,
        )


class WritesTheTripFirst(Driver):
    """Writes the trip before its successor's lead has shrunk."""

    def _turn(self, trip_id: int, changed_id: int, _: dict[int, TimeWindow]) -> int:
        return 0 if trip_id == changed_id else 1


class WritesTheTripLast(Driver):
    """Writes the trip after its successor's lead has grown."""

    def _turn(self, trip_id: int, changed_id: int, _: dict[int, TimeWindow]) -> int:
        return 1 if trip_id == changed_id else 0


@pytest.mark.parametrize(
    "kind",
    [
        ForgetsTheNeighbour,
        LeavesTheLead,
        LeadRunsOn,
        LeadTakesAll,
        LooksBackOnly,
        TurnsOnTheSpot,
        WritesTheTripFirst,
        WritesTheTripLast,
    ],
)
def test_a_broken_driver_is_caught(kind: type[Driver]) -> None:
    broken = type("Broken", (DriverMachine,), {"kind": kind})
    with pytest.raises(AssertionError):
        live_through(broken, SEARCH_ONLY)


# --- One at a time. ---------------------------------------------------------------------------

MORNING = Held(1, hours(9, 10))
NOON = Held(2, hours(12, 13))


def between(wanted: TimeWindow, **changes: int) -> Fit | Misfit:
    times = {"travel_before_s": 600, "travel_after_s": 1200, "turnaround_s": 300}
    return fit(MORNING, wanted, NOON, **(times | changes))


def test_a_trip_between_two_blocks_the_way_to_it_and_its_successor_the_way_from_it() -> None:
    assert between(hours(10.25, 11.5)) == Fit(hours(10, 11.5), hours(11.5 + 1 / 12, 13))


def test_the_first_trip_of_a_driver_has_no_lead() -> None:
    alone = fit(None, NOON.window, None, travel_before_s=9, travel_after_s=9, turnaround_s=9)
    assert alone == Fit(NOON.window, None)
    assert refit(None, NOON.window, travel_s=9, turnaround_s=9).blocked == NOON.window


def test_without_travel_and_turnaround_trips_may_touch() -> None:
    touching = between(hours(10, 12), travel_before_s=0, travel_after_s=0, turnaround_s=0)
    assert touching == Fit(hours(10, 12), NOON.window)


@pytest.mark.parametrize(
    ("wanted", "reason", "in_the_way", "missing_s"),
    [
        (hours(9.5, 11), Reason.OVERLAP, MORNING, 1800 + 900),
        (hours(11, 12.5), Reason.OVERLAP, NOON, 1800 + 1500),
        (hours(12, 12.5), Reason.OVERLAP, NOON, 1800 + 1500),
        (hours(9.5, 14), Reason.OVERLAP, NOON, 7200 + 1500),
        (hours(9.95, 12), Reason.OVERLAP, MORNING, 180 + 900),  # plainer than travel, if less
        (hours(10.1, 11), Reason.TRAVEL, MORNING, 900 - 360),
        (hours(11, 11.75), Reason.TRAVEL, NOON, 1500 - 900),
        (hours(10.1, 11.75), Reason.TRAVEL, NOON, 600),  # more than the 540 to the morning
        (hours(10.2, 11.75), Reason.TRAVEL, NOON, 600),  # plainer than the morning's turnaround
        (hours(10.2, 11), Reason.TURNAROUND, MORNING, 900 - 720),
        (hours(11, 11 + 2 / 3), Reason.TURNAROUND, NOON, 300),
    ],
)
def test_a_refusal_names_the_reason_the_trip_and_the_missing_time(
    wanted: TimeWindow, reason: Reason, in_the_way: Held, missing_s: int
) -> None:
    assert between(wanted) == Misfit(reason, in_the_way, missing_s)


@settings(CALM)
@given(st.integers(-7_200_000_000, 900_000_000 - 1))
def test_what_is_missing_is_just_enough_to_the_second(gap_us: int) -> None:
    def behind_the_morning(later_s: int) -> Fit | Misfit:
        start = MORNING.window.end + timedelta(microseconds=gap_us, seconds=later_s)
        return fit(
            MORNING,
            NOON.window.moved_to(start),
            None,
            travel_before_s=600,
            travel_after_s=0,
            turnaround_s=300,
        )

    refused = behind_the_morning(0)
    assert isinstance(refused, Misfit)
    assert isinstance(behind_the_morning(refused.missing_s), Fit)
    assert isinstance(behind_the_morning(refused.missing_s - 1), Misfit)


def test_a_cancellation_gives_back_the_lead_that_is_no_longer_needed() -> None:
    shorter = refit(MORNING.window, NOON.window, travel_s=60, turnaround_s=60)
    assert (shorter.blocked, shorter.missing_s) == (hours(12 - 2 / 60, 13), 0)


def test_a_lead_ends_where_the_trip_before_does_and_says_what_is_missing() -> None:
    cut = refit(MORNING.window, NOON.window, travel_s=7_200, turnaround_s=60)
    assert (cut.blocked, cut.missing_s) == (hours(10, 13), 60)
    none_left = refit(hours(9, 12), NOON.window, travel_s=50, turnaround_s=10)
    assert (none_left.blocked, none_left.missing_s) == (NOON.window, 60)


def test_no_lead_is_fitted_between_trips_that_overlap() -> None:
    a_microsecond_too_late = TimeWindow(MIDNIGHT, NOON.window.start + timedelta(microseconds=1))
    with pytest.raises(ValueError, match="begins before"):
        refit(a_microsecond_too_late, NOON.window, travel_s=0, turnaround_s=0)
