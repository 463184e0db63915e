"""Slot bytes: cut time into slots, and look whether all of them are free.

Idea
----
Do not compare windows: cut the day into slots of five minutes, keep a byte for
each, and let C look for one that is taken. What a question costs depends no longer
on how many bookings there are, but on how long the window is.

What happens
------------
Each day that holds anything has a `bytearray` of 288, one byte a slot, set where a
booking *touches* the slot. Between the first and the last slot of a window, that
decides: whoever touches a slot there is in the way, and one call of
`bytearray.find` looks through them all.

At the two edges it does not. A slot is touched, not full: two trips may share one,
the first over at seven past, the second from eight past on. A calendar that took
touched for taken would be wrong in the safe direction. It would never double-book,
and it would refuse good bookings, day after day, without an error anywhere. So
each slot also lists the bookings that touch it, and at the edges those are
compared with the window, exactly.

Costs
-----
With L slots in the window, all is O(L), whatever the number of windows held;
`is_free` does it in one call for each day, `hold` and `release` slot by slot in
Python. `conflicts` adds O(k log k) for k of them. A window of more days than there
are days with bookings is searched by the latter. Memory: 288 bytes a day, and, to
be exact, a list for each slot touched, which is many times as much.

Breaks when
-----------
Windows are long: an hour is 12 slots, a week's holiday 2,016. Or when they are far
shorter than a slot, and many share one. The slot is a guess about the length of
trips, made once, before the first trip.
"""

from collections.abc import Collection, Iterator, Sequence
from datetime import UTC, datetime

from booking.calendars import Held
from booking.errors import BookingConflict
from booking.time_window import TimeWindow

_SLOT_S = 300
_SLOTS_A_DAY = 86_400 // _SLOT_S
_TOUCHED = 1
_ZERO = datetime(1970, 1, 1, tzinfo=UTC)
_JUST_BEHIND_ZERO = _ZERO + datetime.resolution


class SlotBytes:
    """A byte a slot for the days that hold something, and who touches each slot."""

    def __init__(self) -> None:
        self._held: dict[int, Held] = {}
        self._days: dict[int, bytearray] = {}
        self._touching: dict[int, list[Held]] = {}

    def hold(self, booking_id: int, window: TimeWindow) -> None:
        """As `Calendar.hold`. O(L) for L slots."""
        if booking_id in self._held:
            raise ValueError(f"Booking {booking_id} already holds a window.")
        conflicts = self.conflicts(window)
        if conflicts:
            raise BookingConflict(conflicts=conflicts)
        held = self._held[booking_id] = Held(booking_id, window)
        for slot in _slots(window):
            day, place = divmod(slot, _SLOTS_A_DAY)
            self._days.setdefault(day, bytearray(_SLOTS_A_DAY))[place] = _TOUCHED
            self._touching.setdefault(slot, []).append(held)

    def release(self, booking_id: int) -> None:
        """As `Calendar.release`. O(L) for L slots."""
        held = self._held.pop(booking_id)
        for slot in _slots(held.window):
            self._touching[slot].remove(held)
            if not self._touching[slot]:
                del self._touching[slot]
                day, place = divmod(slot, _SLOTS_A_DAY)
                self._days[day][place] = 0
                if _TOUCHED not in self._days[day]:
                    del self._days[day]

    def is_free(self, window: TimeWindow) -> bool:
        """As `Calendar.is_free`. O(L) for L slots, in one call for each day."""
        first, last = _edges(window)
        for edge in (first, last):
            for held in self._touching.get(edge, ()):
                if held.window.overlaps(window):
                    return False
        has_middle = first + 1 < last
        return not has_middle or next(self._touched(first + 1, last - 1), None) is None

    def conflicts(self, window: TimeWindow) -> Sequence[Held]:
        """As `Calendar.conflicts`. O(L + k log k) for L slots and k conflicts."""
        near = {held for slot in self._touched(*_edges(window)) for held in self._touching[slot]}
        return sorted((held for held in near if held.window.overlaps(window)), key=_start)

    def _touched(self, first: int, last: int) -> Iterator[int]:
        """The slots from `first` to `last` that something touches."""
        days: Collection[int] = range(first // _SLOTS_A_DAY, last // _SLOTS_A_DAY + 1)
        if len(days) > len(self._days):
            days = [day for day in self._days if day in days]
        for day in days:
            touched = self._days.get(day, b"")
            midnight = day * _SLOTS_A_DAY
            place = max(0, first - midnight)
            while (place := touched.find(_TOUCHED, place, last + 1 - midnight)) >= 0:
                yield midnight + place
                place += 1

    def __iter__(self) -> Iterator[Held]:
        return iter(sorted(self._held.values(), key=_start))

    def __len__(self) -> int:
        return len(self._held)


def _edges(window: TimeWindow) -> tuple[int, int]:
    """The numbers of the first and the last slot that the window touches."""
    since, until = window.start - _ZERO, window.end - _JUST_BEHIND_ZERO
    # Dividing one timedelta by another would cost more than all the rest of a question.
    first = since.days * _SLOTS_A_DAY + since.seconds // _SLOT_S
    last = until.days * _SLOTS_A_DAY + until.seconds // _SLOT_S
    return first, last


def _slots(window: TimeWindow) -> range:
    first, last = _edges(window)
    return range(first, last + 1)


def _start(held: Held) -> datetime:
    return held.window.start
