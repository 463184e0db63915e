"""The waiting list: who wants time that is taken, and what becomes of the wish.

Whoever waits is offered the time when it becomes free: a booking is *held* for them, and
it is theirs if they confirm it before the offer expires. So an entry has little to say of
itself. From the offer on, its state is read off the booking: there is no second record of
whether somebody said yes, and none that could be forgotten when a hold lapses.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from booking.errors import IllegalTransition
from booking.time_window import TimeWindow


class WaitingState(StrEnum):
    """Where an entry of the waiting list stands."""

    WAITING = "waiting"
    OFFERED = "offered"
    """Time is held for the rider, who may confirm it until the offer expires."""
    BOOKED = "booked"
    """The rider confirmed. What becomes of the booking is the booking's own life."""
    LAPSED = "lapsed"
    """The rider did not confirm in time, and the next has been asked."""
    WITHDRAWN = "withdrawn"
    """The rider waits no longer, or has declined the offer."""
    PAST = "past"
    """The time came, and nothing had become free."""


TRANSITIONS: Mapping[WaitingState, frozenset[WaitingState]] = {
    WaitingState.WAITING: frozenset(
        {WaitingState.OFFERED, WaitingState.WITHDRAWN, WaitingState.PAST}
    ),
    WaitingState.OFFERED: frozenset(
        {WaitingState.BOOKED, WaitingState.LAPSED, WaitingState.WITHDRAWN}
    ),
    WaitingState.BOOKED: frozenset(),
    WaitingState.LAPSED: frozenset(),
    WaitingState.WITHDRAWN: frozenset(),
    WaitingState.PAST: frozenset(),
}
"""From each state, the states it may become. Nobody is offered time twice under one entry:
whoever let an offer lapse joins again, behind all the others."""


def check_withdrawal(present: WaitingState) -> None:
    """Raise `IllegalTransition` unless somebody whose entry is in this state can withdraw it."""
    if WaitingState.WITHDRAWN not in TRANSITIONS[present]:
        raise IllegalTransition(
            f"An entry that is {present} cannot be withdrawn; one that is waiting or offered can.",
            field="state",
        )


@dataclass(frozen=True, slots=True)
class WaitingEntry:
    """A rider's wish for `window`, of one driver or (`driver_id` None) of any of the fleet.

    The lower its `id`, the sooner its turn.
    """

    id: int
    rider_id: int
    fleet: str
    driver_id: int | None
    window: TimeWindow
    state: WaitingState
    joined_at: datetime
    booking_id: int | None = None
    """The booking that was offered."""
    offer_expires_at: datetime | None = None
    """Until when the offer can be confirmed, while it can."""
