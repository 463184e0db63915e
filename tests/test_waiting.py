"""What may become of an entry of the waiting list."""

import itertools

import pytest

from booking.errors import IllegalTransition
from booking.waiting import TRANSITIONS, WaitingState, check_withdrawal

ALLOWED = {
    ("waiting", "offered"),
    ("waiting", "withdrawn"),
    ("waiting", "past"),
    ("offered", "booked"),
    ("offered", "lapsed"),
    ("offered", "withdrawn"),
}
"""Written out a second time on purpose: whoever changes the table says so twice."""


def test_an_entry_may_become_what_is_written_here() -> None:
    pairs = itertools.product(WaitingState, repeat=2)
    assert {(one, other) for one, other in pairs if other in TRANSITIONS[one]} == ALLOWED
    assert set(TRANSITIONS) == set(WaitingState)


@pytest.mark.parametrize("state", WaitingState)
def test_who_waits_or_was_asked_may_withdraw(state: WaitingState) -> None:
    if state in {"waiting", "offered"}:
        check_withdrawal(state)
        return
    with pytest.raises(IllegalTransition) as refused:
        check_withdrawal(state)
    assert refused.value.field == "state"
