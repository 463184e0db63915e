"""Overrun: who comes too late, what a plan does about it, and how ends are predicted."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from booking.errors import InvalidInput
from booking.overrun import (
    AlreadyPast,
    Chain,
    FreeDriver,
    NotAChain,
    Policy,
    Remedy,
    Step,
    Upcoming,
    at_risk,
    clock_passed,
    given_back,
)
from booking.predictions import EndPredictor, NothingLearnt, Quantiles, critical_fractile
from booking.time_window import TimeWindow
from loadtest.bench.overrun import experiment, tables
from loadtest.bench.overrun.__main__ import main
from loadtest.bench.overrun.experiment import Ride
from loadtest.bench.overrun.results import ALIKE, COSTS, LEARNT, Plan, Result
from loadtest.trips.distances import distances
from tests.contracts.histories import CALM, SEARCH_ONLY
from tests.world import MIDNIGHT

MINUTE = timedelta(minutes=1)
NOBODY: FreeDriver = lambda window, other_than: None  # noqa: ARG005, E731  # answers the port
DRIVER, OTHERS = 1, (2, 3, 4)


def at(minute: float) -> datetime:
    return MIDNIGHT + timedelta(minutes=minute)


def minute_of(instant: datetime) -> float:
    return (instant - MIDNIGHT) / MINUTE


def upcoming(number: int, start: float, end: float, **more: Any) -> Upcoming:
    return Upcoming(number, at(start), at(end), **more)


def chain(*spans: tuple[float, float], gap_s: float = 0) -> Chain:
    """Bookings 0, 1, ... of the driver, from minute to minute."""
    first, *following = (
        upcoming(number, *span, gap_before_s=gap_s) for number, span in enumerate(spans)
    )
    return Chain(DRIVER, first, following)


def plan_of(steps: Sequence[Step]) -> list[tuple[int, Remedy, int, float]]:
    return [(each.booking_id, each.remedy, each.driver_id, each.late_s / 60) for each in steps]


# The chain -----------------------------------------------------------------------------


def test_free_time_between_bookings_swallows_lateness() -> None:
    late = at_risk(chain((0, 30), (30, 60), (70, 90), (90, 100), (120, 130)), at(45))
    assert [(each.booking.booking_id, each.late_s / 60) for each in late] == [
        (1, 15),
        (2, 5),
        (3, 5),
    ]
    assert [minute_of(each.start) for each in late] == [45, 75, 95]


def test_travel_between_bookings_is_not_free_time() -> None:
    bookings = chain((0, 30), (40, 60), (70, 90), gap_s=600)
    assert at_risk(bookings, at(30)) == []
    assert [each.late_s for each in at_risk(bookings, at(31))] == [60, 60]


def test_lateness_counts_from_the_first_promise() -> None:
    moved = upcoming(1, 34, 60, promised_start=at(30))
    [late] = at_risk(Chain(DRIVER, upcoming(0, 0, 34), [moved]), at(36))
    assert late.late_s == 6 * 60
    patient = Policy(tolerance_s=5 * 60, may_push_back_s=5 * 60)
    steps = patient.plan(Chain(DRIVER, upcoming(0, 0, 34), [moved]), at(36), at(33), NOBODY)
    # Two and four minutes would each be borne; six are not.
    assert plan_of(steps) == [(1, Remedy.CALL_DISPATCHER, DRIVER, 6)]


def test_an_early_end_gives_the_rest_back() -> None:
    trip = upcoming(0, 10, 30)
    assert given_back(trip, at(22)) == TimeWindow(at(22), at(30))
    assert given_back(trip, at(5)) == trip.window
    assert given_back(trip, at(30)) is None
    assert given_back(trip, at(31)) is None


def test_bookings_out_of_order_are_no_chain() -> None:
    with pytest.raises(NotAChain):
        chain((0, 30), (20, 40))
    with pytest.raises(NotAChain):
        chain((30, 40), (0, 20))


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        (lambda: upcoming(1, 0, 30, gap_before_s=-1), "gap_before_s"),
        (lambda: upcoming(1, 0, 30, promised_start=at(1)), "promised_start"),
        (lambda: upcoming(1, 30, 30), "end"),
        (lambda: Policy(tolerance_s=-1), "tolerance_s"),
        (lambda: Policy(tolerance_s=60, may_push_back_s=30), "may_push_back_s"),
        (lambda: critical_fractile(0, 1), "late_cost"),
        (lambda: critical_fractile(1, float("inf")), "idle_cost"),
        (lambda: Quantiles([1]).at(1), "quantile"),
        (lambda: EndPredictor([((), 0)]), "seconds"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(wrong: Callable[[], Any], field: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        wrong()
    assert refused.value.field == field


def test_local_times_are_compared_as_instants() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    # At three in the morning the clocks go back to two: the second booking is the later one.
    first = Upcoming(
        1,
        datetime(2026, 10, 25, 2, 10, tzinfo=berlin),
        datetime(2026, 10, 25, 2, 50, tzinfo=berlin),
    )
    second = Upcoming(
        2,
        datetime(2026, 10, 25, 2, 5, fold=1, tzinfo=berlin),
        datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=berlin),
    )
    late = at_risk(Chain(DRIVER, first, [second]), datetime(2026, 10, 25, 1, 20, tzinfo=UTC))
    assert [each.late_s for each in late] == [15 * 60]


# The clock -----------------------------------------------------------------------------


def test_a_trip_under_way_does_not_end_in_the_past() -> None:
    assert clock_passed(at(0), at(30), at(29)) is None
    assert clock_passed(at(0), at(10), at(10)) == at(12)  # the least
    assert clock_passed(at(0), at(30), at(40)) == at(44)  # a tenth of forty minutes


def test_a_trip_that_does_not_end_is_predicted_anew_ever_more_seldom() -> None:
    ends = [at(60)]
    while ends[-1] < at(240):
        now = ends[-1]
        anew = clock_passed(at(0), ends[-1], now)
        assert anew is not None
        assert anew > now
        ends.append(anew)
    assert len(ends) - 1 == 15  # log 4 / log 1.1, and not one every two minutes: 90


# Remedies ------------------------------------------------------------------------------


def test_each_remedy_has_its_turn() -> None:
    bookings = chain((0, 30), (30, 60))
    policy = Policy(tolerance_s=5 * 60, may_push_back_s=15 * 60)

    def remedy(end: float, free: FreeDriver) -> list[tuple[int, Remedy, int, float]]:
        return plan_of(policy.plan(bookings, at(end), at(20), free))

    somebody: FreeDriver = lambda window, other_than: 7  # noqa: ARG005, E731
    assert remedy(30, NOBODY) == []
    assert remedy(35, somebody) == [(1, Remedy.WAIT, DRIVER, 5)]
    assert remedy(45, somebody) == [(1, Remedy.PUSH_BACK, DRIVER, 15)]
    assert remedy(46, somebody) == [(1, Remedy.GIVE_AWAY, 7, 0)]
    assert remedy(46, NOBODY) == [(1, Remedy.CALL_DISPATCHER, DRIVER, 16)]


def test_a_booking_is_not_pushed_back_at_the_cost_of_those_behind() -> None:
    somebody: FreeDriver = lambda window, other_than: 7  # noqa: ARG005, E731
    crowded = chain((0, 30), (30, 60), (60, 90))
    roomy = chain((0, 30), (30, 60), (65, 90))
    # With five minutes of free time, ten become five, which are borne.
    assert plan_of(Policy().plan(roomy, at(40), at(20), somebody)) == [
        (1, Remedy.PUSH_BACK, DRIVER, 10),
        (2, Remedy.WAIT, DRIVER, 5),
    ]
    # Given away, the first one saves the second.
    assert plan_of(Policy().plan(crowded, at(40), at(20), somebody)) == [
        (1, Remedy.GIVE_AWAY, 7, 0)
    ]


def test_nobody_is_sent_back_in_time() -> None:
    somebody: FreeDriver = lambda window, other_than: 7  # noqa: ARG005, E731
    bookings = chain((0, 30), (30, 60))
    [step] = Policy().plan(bookings, at(60), at(42), somebody)
    assert step == (1, Remedy.GIVE_AWAY, 7, TimeWindow(at(42), at(72)), 12 * 60)
    # From now on would be too late as well: a person decides.
    [step] = Policy().plan(bookings, at(60), at(46), somebody)
    assert step.remedy is Remedy.CALL_DISPATCHER
    with pytest.raises(AlreadyPast):
        Policy().plan(bookings, at(45), at(46), somebody)


# The property: whatever the chain, the overrun and the others' calendars ----------------------

Calendars = dict[int, dict[int, tuple[float, float]]]
"""Driver, booking, and its minutes: the naive model."""
Planner = Callable[[Policy, Chain, datetime, datetime, FreeDriver], list[Step]]


@dataclass(frozen=True)
class Case:
    """A world of whole minutes."""

    policy: Policy
    chain: Chain
    predicted_end: int
    now: int
    others: Calendars

    def before(self) -> Calendars:
        bookings = (self.chain.first, *self.chain.following)
        own = {each.booking_id: minutes_of(each.window) for each in bookings}
        return {DRIVER: own, **{driver: dict(held) for driver, held in self.others.items()}}

    def free_driver(self, window: TimeWindow, other_than: frozenset[int]) -> int | None:
        wanted = minutes_of(window)
        for driver, held in self.others.items():
            if driver not in other_than and not any(
                overlap(wanted, each) for each in held.values()
            ):
                return driver
        return None


def minutes_of(window: TimeWindow) -> tuple[float, float]:
    return minute_of(window.start), minute_of(window.end)


def overlap(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Whether they share a minute: counted out, as the world has whole minutes only."""
    return bool(set(range(int(one[0]), int(one[1]))) & set(range(int(other[0]), int(other[1]))))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    first = upcoming(0, 0, draw(st.integers(5, 30)))
    following, free_from = [], int(minute_of(first.predicted_end))
    for number in range(1, draw(st.integers(1, 6)) + 1):
        gap = draw(st.sampled_from((0, 0, 3)))
        start = free_from + gap + draw(st.sampled_from((0, 0, 2, 10)))
        free_from = start + draw(st.integers(1, 20))
        promised = at(start - draw(st.sampled_from((0, 0, 0, 4))))
        following.append(
            upcoming(number, start, free_from, gap_before_s=gap * 60, promised_start=promised)
        )
    predicted_end = draw(st.integers(5, 60))
    others: Calendars = {driver: {} for driver in OTHERS}
    for number, held in enumerate(others.values(), start=1):
        place = 0
        for extra in range(draw(st.integers(0, 3))):
            start = place + draw(st.integers(0, 30))
            place = start + draw(st.integers(1, 30))
            held[100 * number + extra] = (start, place)
    tolerance = draw(st.sampled_from((0, 3, 5, 10)))
    policy = Policy(tolerance * 60, (tolerance + draw(st.sampled_from((0, 5, 20)))) * 60)
    now = draw(st.integers(0, predicted_end))
    return Case(policy, Chain(DRIVER, first, following), predicted_end, now, others)


def lived_through(case: Case) -> dict[int, int]:
    """When each booking starts if nothing is done, found out minute by minute."""
    waiting, starts, minute, free_from = list(case.chain.following), {}, 0, case.predicted_end
    while waiting:
        booking = waiting[0]
        rested = minute - free_from >= booking.gap_before_s / 60
        if rested and minute >= minute_of(booking.start):
            starts[booking.booking_id] = minute
            free_from = minute + int(booking.window.duration / MINUTE)
            waiting.pop(0)
        else:
            minute += 1
    return starts


def assert_carried_out_without_overlap(case: Case, steps: Sequence[Step]) -> Calendars:
    """Takes the steps from the last to the first, looking for overlaps after each."""
    calendars = case.before()
    for step in reversed(steps):
        del calendars[DRIVER][step.booking_id]
        calendars[step.driver_id][step.booking_id] = minutes_of(step.window)
        assert_no_overlap(calendars)
    start, _ = calendars[DRIVER][0]
    calendars[DRIVER][0] = (start, case.predicted_end)
    assert_no_overlap(calendars)
    return calendars


def assert_no_overlap(calendars: Calendars) -> None:
    for held in calendars.values():
        windows = sorted(held.values())
        for one, other in pairwise(windows):
            assert not overlap(one, other)


def assert_sound(case: Case, steps: Sequence[Step]) -> None:
    starts = lived_through(case)
    bookings = {each.booking_id: each for each in case.chain.following}
    late = [number for number, each in bookings.items() if at(starts[number]) > each.start]
    assert [
        (each.booking.booking_id, minute_of(each.start))
        for each in at_risk(case.chain, at(case.predicted_end))
    ] == [(number, starts[number]) for number in late]

    moved = [step.booking_id for step in steps]
    assert moved == [number for number in late if number in moved]  # in order, each once
    before, after = case.before(), assert_carried_out_without_overlap(case, steps)
    assert sorted(n for held in after.values() for n in held) == sorted(
        n for held in before.values() for n in held
    )
    for driver, held in before.items():
        for number, window in held.items():
            if number not in moved and number:
                assert after[driver][number] == window

    free_from: float = case.predicted_end
    for number, booking in bookings.items():
        if number in after[DRIVER]:
            start, end = after[DRIVER][number]
            assert start >= free_from + booking.gap_before_s / 60
            free_from = end
    assert_as_the_policy_says(case, steps)


def assert_as_the_policy_says(case: Case, steps: Sequence[Step]) -> None:
    tolerance_s, most_s = case.policy.tolerance_s, case.policy.may_push_back_s
    bookings = {each.booking_id: each for each in case.chain.following}
    engaged = {DRIVER}
    pushed_back = False
    for step in steps:
        booking = bookings[step.booking_id]
        assert step.window.duration == booking.window.duration
        promised = booking.promised_start or booking.start
        assert step.late_s == (step.window.start - promised).total_seconds()
        if step.remedy is Remedy.WAIT:
            assert step.late_s <= tolerance_s
        else:
            assert not pushed_back, "somebody behind pays for what was pushed back"
        if step.remedy is Remedy.PUSH_BACK:
            assert tolerance_s < step.late_s <= most_s
            pushed_back = True
        if step.remedy is Remedy.GIVE_AWAY:
            assert step.driver_id not in engaged
            assert step.late_s <= most_s
            assert step.window.start == max(booking.start, at(case.now))
        else:
            assert step.driver_id == DRIVER
        if step.remedy is Remedy.CALL_DISPATCHER:
            assert step.late_s > tolerance_s
            elsewhere = booking.window.moved_to(max(booking.start, at(case.now)))
            assert (
                booking.late_s(elsewhere.start) > most_s
                or case.free_driver(elsewhere, frozenset(engaged)) is None
            )
        engaged.add(step.driver_id)


def run_property(planner: Planner, **changed: Any) -> None:
    @settings(CALM, max_examples=400, **changed)
    @given(cases())
    def whatever_happens(case: Case) -> None:
        assert_sound(
            case,
            planner(
                case.policy, case.chain, at(case.predicted_end), at(case.now), case.free_driver
            ),
        )

    whatever_happens()


def test_a_plan_leaves_no_overlap_loses_nothing_and_moves_only_what_was_at_risk() -> None:
    run_property(Policy.plan)


def forgets_the_next(
    policy: Policy, bookings: Chain, end: datetime, now: datetime, free: FreeDriver
) -> list[Step]:
    """Pushes the next one back, and does not look who is behind it."""
    return policy.plan(bookings, end, now, free)[:1]


def keeps_what_was_promised(
    policy: Policy, bookings: Chain, end: datetime, now: datetime, free: FreeDriver
) -> list[Step]:
    """Takes "wait" to mean that nothing need be done."""
    steps = policy.plan(bookings, end, now, free)
    return [step for step in steps if step.remedy is not Remedy.WAIT]


def gives_all_to_one(
    policy: Policy, bookings: Chain, end: datetime, now: datetime, free: FreeDriver
) -> list[Step]:
    """Forgets whom it has just engaged."""
    return policy.plan(
        bookings,
        end,
        now,
        lambda window, other_than: free(window, other_than & {bookings.driver_id}),
    )


def does_not_ask(
    policy: Policy, bookings: Chain, end: datetime, now: datetime, _free: FreeDriver
) -> list[Step]:
    """Gives to another driver, free or not."""
    return policy.plan(
        bookings,
        end,
        now,
        lambda window, other_than: next(  # noqa: ARG005
            (driver for driver in OTHERS if driver not in other_than), None
        ),
    )


def moves_everybody(
    policy: Policy, bookings: Chain, end: datetime, now: datetime, free: FreeDriver
) -> list[Step]:
    """Moves all that follow by the overrun, as if there were no free time between."""
    del policy, now, free
    over = max(end - bookings.first.predicted_end, timedelta(0))
    return [
        Step(
            each.booking_id,
            Remedy.PUSH_BACK,
            bookings.driver_id,
            each.window.moved_to(each.start + over),
            each.late_s(each.start + over),
        )
        for each in bookings.following
    ]


@pytest.mark.parametrize(
    "broken",
    [forgets_the_next, keeps_what_was_promised, gives_all_to_one, does_not_ask, moves_everybody],
)
def test_a_planner_that_is_wrong_is_caught(broken: Planner) -> None:
    with pytest.raises(AssertionError):
        run_property(broken, phases=SEARCH_ONLY)


# Predicted ends ------------------------------------------------------------------------

durations = st.lists(st.integers(1, 60), min_size=1, max_size=40)
costs = st.integers(1, 9)


def cost(seen: Sequence[float], predicted: float, late_cost: float, idle_cost: float) -> float:
    return sum(
        late_cost * max(0, each - predicted) + idle_cost * max(0, predicted - each) for each in seen
    )


@settings(CALM, max_examples=200)
@given(durations, costs, costs)
def test_the_critical_fractile_costs_least_of_all_predictions(
    seen: list[int], late_cost: int, idle_cost: int
) -> None:
    chosen = Quantiles(seen).at(critical_fractile(late_cost, idle_cost))
    least = min(cost(seen, minute / 2, late_cost, idle_cost) for minute in range(122))
    assert cost(seen, chosen, late_cost, idle_cost) == least


def test_the_mean_and_other_quantiles_cost_more() -> None:
    seen = [5, 6, 6, 7, 8, 9, 10, 12, 20, 60]
    right = cost(seen, Quantiles(seen).at(critical_fractile(5, 1)), 5, 1)
    for wrong in (statistics.mean(seen), Quantiles(seen).at(0.5), Quantiles(seen).at(0.99)):
        assert cost(seen, wrong, 5, 1) > right


def test_too_few_of_a_kind_borrow_their_uncertainty_but_not_their_length() -> None:
    short = [("short",)] * 400
    seen = [(kind, 600 + place) for place, kind in enumerate(short)]
    few = [(("long", "any"), 6_000.0)] * 12
    predictor = EndPredictor([*seen, *few])
    assert predictor.seconds(("short",), 0.5) == pytest.approx(799)
    assert predictor.seconds(("short",), 0.95) == pytest.approx(979)
    # Twelve are enough for a median, and too few for a 0.95, which is that of all trips.
    assert predictor.seconds(("long", "any"), 0.5) == 6_000
    assert predictor.seconds(("long", "any"), 0.95) == pytest.approx(6_000 * 979 / 799, rel=0.01)
    # Of a kind never seen, nothing is known but what all have in common.
    assert 700 < predictor.seconds(("unheard of",), 0.5) < 900
    with pytest.raises(NothingLearnt):
        EndPredictor([])


# The experiment ------------------------------------------------------------------------

TINY = Plan(trips=1_500, days=7, seeds=2, quantiles=(0.5, 0.7, 0.9))


@pytest.fixture(scope="module")
def tiny() -> Result:
    return experiment.measure(TINY)


def test_bookings_handed_on_are_those_at_risk() -> None:
    rides = [Ride(0, 45 * 60, ()), *(Ride(start * 60, 20 * 60, ()) for start in (30, 50, 75, 120))]
    held_s = [30 * 60.0, *[20 * 60.0] * 4]
    tally = experiment.drive(rides, held_s, range(5), tolerance_s=600)
    late = at_risk(chain((0, 30), (30, 50), (50, 70), (75, 95), (120, 140)), at(45))
    assert tally.late == len(late) == 3
    assert tally.late_s == sum(each.late_s for each in late) == (15 + 15 + 10) * 60
    assert (tally.handed_on, tally.too_late) == (2, 2)
    assert tally.idle_s == 0


def test_rides_are_packed_on_as_few_drivers_as_run_at_once() -> None:
    rides = [Ride(start * 60, 0, ()) for start in (0, 5, 10, 12, 20)]
    # By first fit: the first driver is free again just as the third ride begins.
    assert experiment.pack(rides, [600.0] * 5) == [[0, 2, 4], [1], [3]]


def test_a_higher_quantile_is_late_less_often_and_wastes_more(tiny: Result) -> None:
    for predictor in (LEARNT, ALIKE):
        outcomes = tiny.of(predictor)
        assert [each.quantile for each in outcomes] == list(TINY.quantiles)
        for less, more in pairwise(outcomes):
            assert sum(less.late) > sum(more.late) > 0
            assert sum(less.idle_min) < sum(more.idle_min)
            assert sum(less.drivers) <= sum(more.drivers)


def test_ends_are_kept_about_as_often_as_was_predicted(tiny: Result) -> None:
    for each in tiny.outcomes:
        share = statistics.mean(each.kept) / tiny.tried
        assert share == pytest.approx(each.quantile, abs=0.05)


def test_to_know_the_way_saves_more_than_any_buffer(tiny: Result) -> None:
    for prices in COSTS:
        knowing, ignorant = (tiny.best(each, *prices) for each in (LEARNT, ALIKE))
        assert sum(knowing.lost_min(*prices)) < sum(ignorant.lost_min(*prices))


def test_where_nothing_can_be_known_classes_do_not_help() -> None:
    plan = msgspec.structs.replace(TINY, known=0.0)
    blind = experiment.measure(plan)
    for quantile in range(len(plan.quantiles)):
        one, other = (blind.of(each)[quantile] for each in (LEARNT, ALIKE))
        lost = sum(one.alone_lost_min(1, 1)) / sum(other.alone_lost_min(1, 1))
        assert lost > 0.97


def test_the_same_seeds_give_the_same_result(tiny: Result) -> None:
    assert experiment.measure(TINY) == tiny


FILE = ["tpep_pickup_datetime,tpep_dropoff_datetime,Trip_Distance\n"] + [
    f"2019-03-04 {hour:02}:{minute:02}:00,2019-03-04 {hour:02}:{minute + 9}:00,{1 + minute / 10}\n"
    for hour in range(20)
    for minute in (1, 11, 21, 31, 41, 50)
]


def test_a_file_of_trips_is_tried_out_by_the_command(tmp_path: Path) -> None:
    trips = tmp_path / "trips.csv"
    too_long = "2019-03-04 01:00:00,2019-03-04 23:00:00,2\n"
    trips.write_text("".join([*FILE, too_long, "not a trip\n"]))
    command = [str(trips), "--zone", "America/New_York", "--out", str(tmp_path / "out")]
    ran = CliRunner().invoke(main, command)
    assert ran.exit_code == 0, ran.output
    written = msgspec.json.decode((tmp_path / "out" / "overrun.json").read_bytes(), type=Result)
    assert (written.source, written.learnt_from, written.tried) == ("trips.csv", 60, 60)
    assert written.left_out == 2
    assert "| 0.99 |" in tables.markdown(msgspec.to_builtins(written))
    assert "sha256" in (tmp_path / "out" / "overrun.svg").read_text()


def test_distances_are_found_by_line(tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("a,Trip_Distance\n1,2.5\n\n1,x\n1\n1,0\n1,3\n")
    assert distances(rows) == {2: 2.5, 7: 3.0}
    assert distances(rows, rows_max=1) == {2: 2.5}
    rows.write_text("a,b\n1,2\n")
    assert distances(rows) == {}
    table = pa.table({"trip_distance": [1.5, None, 0.0, 4.0]})
    pq.write_table(table, tmp_path / "rows.parquet")
    assert distances(tmp_path / "rows.parquet") == {1: 1.5, 4: 4.0}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--zone", "UTC"], "name TRIPS"),
        (["{file}"], "--zone"),
        (["{file}", "--zone", "Mars/Base"], "--zone"),
        (["{file}", "--zone", "UTC", "--limit", "50"], "hundred trips"),
        (["{file}", "--record"], "leave out TRIPS"),
        (["{file}.gone", "--zone", "UTC"], "cannot be read"),
    ],
)
def test_wrong_options_are_refused_by_name(tmp_path: Path, words: list[str], said: str) -> None:
    trips = tmp_path / "trips.csv"
    trips.write_text("".join(FILE))
    ran = CliRunner().invoke(main, [word.format(file=trips) for word in words])
    assert ran.exit_code == 2
    assert said in ran.output
