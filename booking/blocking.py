"""What a booking really takes of its driver's time: the blocked window.

A trip is `[start, predicted_end)`. Before it the driver has to get there, so
what is blocked is

    [start - lead, predicted_end)        lead = travel + turnaround

with the travel from where the trip before ends to this pick-up. Nothing lies
before a driver's first booking, so its lead is zero; and without both places the
travel is. Two bookings conflict when their blocked windows overlap.

The lead depends on who comes before, so a booking that is made, moved or
cancelled changes the lead of its successor as well:

* `fit` answers whether a trip fits between its neighbours with the whole lead on
  both sides, and what it and its successor then block;
* `refit` says what a booking blocks when the one before it has gone. It never
  refuses, as a cancellation cannot be forbidden. If the way from the trip that
  now comes before is longer than the time between the two, the lead ends there:
  a blocked window never begins before the trip before it ends. So the windows of
  one driver never overlap, whatever was cancelled, and what is missing is told.

Two neighbours are enough, as a driver's trips never overlap: the last that starts
before the wanted trip does, and the first that starts with it or later. For a
booking that moves, they are its neighbours with itself left out.

A database that checks each row as it is written has to be told in this order:
first the leads that shrink, then the trip itself, then the leads that grow. Each
row then meets only what is final, or lies within what was blocked before. And
whoever reads neighbours and writes what follows from them keeps every other
writer away from that driver in between; the ranges alone cannot tell that the
lead of one was fitted to a neighbour who has changed.
"""

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from booking.calendars import Held
from booking.time_window import TimeWindow

_NOTHING = timedelta(0)


class Reason(StrEnum):
    """Why a trip does not fit, the plainest first."""

    OVERLAP = "overlap"
    """The driver would be on two trips at once."""
    TRAVEL = "travel"
    """The trips do not overlap, but the way between them takes longer than there is time."""
    TURNAROUND = "turnaround"
    """The way can be driven, but too little is left of the driver's turnaround."""


_PLAINEST = tuple(Reason)


@dataclass(frozen=True, slots=True)
class Fit:
    """The trip fits: what it blocks, and what its successor blocks from now on."""

    blocked: TimeWindow
    after_blocked: TimeWindow | None


@dataclass(frozen=True, slots=True)
class Misfit:
    """The trip does not fit: why, and which trip is in the way.

    `missing_s` is by how many seconds, rounded up, the two would have to lie
    further apart.
    """

    reason: Reason
    in_the_way: Held
    missing_s: int


@dataclass(frozen=True, slots=True)
class Refit:
    """What a booking blocks now, and how many seconds, rounded up, its lead falls short."""

    blocked: TimeWindow
    missing_s: int


def fit(
    before: Held | None,
    wanted: TimeWindow,
    after: Held | None,
    *,
    travel_before_s: int,
    travel_after_s: int,
    turnaround_s: int,
) -> Fit | Misfit:
    """Whether a trip `wanted` fits between its neighbours, or what is in its way.

    All windows are those of the trips, not of what they block. `travel_before_s`
    leads from `before` to `wanted` and `travel_after_s` from there to `after`.
    If both neighbours are in the way, the plainer reason is told, and of two
    alike the one where more is missing.
    """
    misfits = []
    if before is not None:
        gap = wanted.start - before.window.end
        misfits.append(_misfit(before, gap, travel_before_s, turnaround_s))
    if after is not None:
        gap = after.window.start - wanted.end
        misfits.append(_misfit(after, gap, travel_after_s, turnaround_s))
    in_the_way = [misfit for misfit in misfits if misfit is not None]
    if in_the_way:
        return min(in_the_way, key=lambda each: (_PLAINEST.index(each.reason), -each.missing_s))
    return Fit(
        refit(before and before.window, wanted, travel_before_s, turnaround_s).blocked,
        after and refit(wanted, after.window, travel_after_s, turnaround_s).blocked,
    )


def refit(before: TimeWindow | None, trip: TimeWindow, travel_s: int, turnaround_s: int) -> Refit:
    """What `trip` blocks when `before` has become the trip before it, or None has.

    `travel_s` leads from `before` to `trip`. Raises `ValueError` if the two
    overlap, as no lead could mend that.
    """
    if before is None:
        return Refit(trip, missing_s=0)
    needed = timedelta(seconds=travel_s + turnaround_s)
    gap = trip.start - before.end
    if gap < _NOTHING:
        raise ValueError(f"the trip {trip} begins before the trip {before} ends")
    blocked = TimeWindow(trip.start - min(needed, gap), trip.end)
    return Refit(blocked, _seconds_up(max(needed - gap, _NOTHING)))


def _misfit(neighbour: Held, gap: timedelta, travel_s: int, turnaround_s: int) -> Misfit | None:
    """What is wrong with `neighbour` if only `gap` lies between it and the wanted trip."""
    missing = timedelta(seconds=travel_s + turnaround_s) - gap
    if missing <= _NOTHING:
        return None
    if gap < _NOTHING:
        reason = Reason.OVERLAP
    elif gap < timedelta(seconds=travel_s):
        reason = Reason.TRAVEL
    else:
        reason = Reason.TURNAROUND
    return Misfit(reason, neighbour, _seconds_up(missing))


def _seconds_up(duration: timedelta) -> int:
    return -(-duration // timedelta(seconds=1))
