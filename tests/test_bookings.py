"""The life of a booking, what a request may ask for, and what refusals say."""

import itertools
from datetime import timedelta

import pytest

from booking import errors
from booking.bookings import (
    ACTIVE_STATES,
    LONGEST,
    TRANSITIONS,
    Booking,
    BookingRequest,
    BookingState,
    check_transition,
)
from booking.drivers import MAIN_FLEET, check_zone
from booking.errors import BookingConflict, IllegalTransition, InvalidInput, TaxiError, TooLong
from booking.time_window import TimeWindow
from tests.world import hours

ALLOWED = {
    ("held", "confirmed"),
    ("held", "cancelled"),
    ("held", "expired"),
    ("confirmed", "in_progress"),
    ("confirmed", "cancelled"),
    ("confirmed", "no_show"),
    ("in_progress", "completed"),
    ("in_progress", "cancelled"),
}
"""Written out a second time on purpose: whoever changes the table says so twice."""

PAIRS = list(itertools.product(BookingState, repeat=2))


@pytest.mark.parametrize(("present", "wanted"), PAIRS)
def test_every_step_is_allowed_or_refused_as_written(
    present: BookingState, wanted: BookingState
) -> None:
    if (present, wanted) in ALLOWED:
        check_transition(present, wanted)
        return
    with pytest.raises(IllegalTransition) as refused:
        check_transition(present, wanted)
    assert refused.value.field == "state"
    for option in TRANSITIONS[present]:
        assert option in refused.value.message


def test_every_pair_of_states_was_looked_at() -> None:
    assert len(PAIRS) == len(BookingState) ** 2
    assert {pair for pair in PAIRS if pair in ALLOWED} == ALLOWED


def test_nothing_leaves_a_final_state_and_no_final_state_holds_time() -> None:
    final = {state for state in BookingState if not TRANSITIONS[state]}
    assert final == {"completed", "cancelled", "expired", "no_show"}
    assert final.isdisjoint(ACTIVE_STATES)
    for state in final:
        with pytest.raises(IllegalTransition, match="final"):
            check_transition(state, BookingState.CONFIRMED)


def test_time_that_was_given_back_is_never_taken_again() -> None:
    for state, allowed in TRANSITIONS.items():
        if not state.active:
            assert not any(after.active for after in allowed)


def test_every_state_can_be_reached_from_a_first_one_and_can_end() -> None:
    def reachable(start: BookingState) -> set[BookingState]:
        seen, unseen = set(), {start}
        while unseen:
            state = unseen.pop()
            seen.add(state)
            unseen |= TRANSITIONS[state] - seen
        return seen

    assert reachable(BookingState.HELD) == set(BookingState)
    for state in BookingState:
        assert any(not TRANSITIONS[after] for after in reachable(state))


def test_a_booking_may_last_a_day_and_not_a_microsecond_more() -> None:
    day = TimeWindow(hours(0, 1).start, hours(0, 1).start + LONGEST)
    assert BookingRequest(rider_id=1, window=day).window == day
    too_long = TimeWindow(day.start, day.end + timedelta(microseconds=1))
    with pytest.raises(TooLong) as refused:
        BookingRequest(rider_id=1, window=too_long)
    assert refused.value.field == "predicted_end"
    assert str(LONGEST // timedelta(hours=1)) in str(refused.value)


def test_a_request_that_names_nobody_asks_the_main_fleet() -> None:
    request = BookingRequest(rider_id=1, window=hours(9, 10))
    assert request.driver_id is None
    assert request.fleet == MAIN_FLEET


def test_a_booking_keeps_what_was_promised_when_the_trip_went_otherwise() -> None:
    promised = hours(9, 10)
    booking = Booking(
        id=1,
        driver_id=2,
        rider_id=3,
        state=BookingState.COMPLETED,
        start=promised.start,
        predicted_end=promised.end,
        created_at=promised.start,
        actual_start=hours(9.25, 11).start,
        actual_end=hours(9.25, 11).end,
    )
    assert booking.window == promised


def _all_errors(root: type[TaxiError] = TaxiError) -> list[type[TaxiError]]:
    children = [each for each in root.__subclasses__() if each.__module__ == errors.__name__]
    return [root, *(below for child in children for below in _all_errors(child))]


@pytest.mark.parametrize("error", _all_errors())
def test_an_errors_docstring_is_its_message(error: type[TaxiError]) -> None:
    message = (error.__doc__ or "").splitlines()[0]
    assert message.endswith(".")
    assert str(error()) == error().message == message
    assert str(error("Something else.")) == "Something else."


def test_every_error_of_the_module_was_looked_at() -> None:
    defined = {
        each
        for each in vars(errors).values()
        if isinstance(each, type) and issubclass(each, Exception)
    }
    assert defined == set(_all_errors())
    assert len(defined) > 15


def test_a_conflict_carries_what_is_in_the_way() -> None:
    assert BookingConflict().conflicts == ()
    assert BookingConflict().field == "start"
    with pytest.raises(TaxiError):
        raise BookingConflict


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York", "UTC"])
def test_a_zone_is_an_iana_name(zone: str) -> None:
    assert check_zone(zone) == zone


@pytest.mark.parametrize("zone", ["Berlin", "", "../etc/passwd", "Europe/", "a" * 5000, "\0"])
def test_what_is_no_zone_is_refused(zone: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        check_zone(zone)
    assert refused.value.field == "zone"
