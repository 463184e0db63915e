"""Static index: the fastest search of all, on a calendar that must not change.

Idea
----
Build an index in C++ that is laid out for reading and never altered, and build it
anew when something has changed. It suits work that asks far more often than it
books.

What happens
------------
`superintervals.IntervalMap` keeps starts and ends in two arrays, in order, and
beside each interval the nearest earlier one that reaches beyond it, so that a
search need not walk over what has ended. An interval cannot be taken out, and one
that was put in must not be asked for before `build()`: the answer may be wrong, and
the process may crash. So `hold` and `release` change a dictionary and throw the
index away, and the next question builds another. `hold` is itself such a question:
is the time free?

The index counts in C integers of 32 bits, where a date in microseconds needs 64.
Here it counts seconds from the year 2000 on, rounded outward, and what lies beyond
its reach is put at the rim. So what it finds are *candidates*: whom it does not name
is not in the way; whom it names is compared, exactly.

Costs
-----
`is_free` and `conflicts` are O(log n + k) for n windows of the driver, k of which
touch the same seconds. The search itself is the smaller part of that: to turn two
datetimes into integers, in Python, takes longer. The first question after a change
is O(n), and so is every `hold`; to fill a calendar is O(n²).

Breaks when
-----------
Bookings come as often as questions, as they do for one driver: then it is a scan of
the whole calendar for each booking. And before 1932 or after 2068: there everything
is a candidate, and the answers, still right, cost as much as a scan.
"""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from superintervals import IntervalMap

from booking.calendars import Held
from booking.errors import BookingConflict
from booking.time_window import TimeWindow

_ZERO = datetime(2000, 1, 1, tzinfo=UTC)
_JUST_BEHIND_ZERO = _ZERO + datetime.resolution
_LOWEST, _HIGHEST = -(2**31), 2**31 - 1  # what a C int holds


class StaticIndex:
    """A dictionary of what is held, and an index over it that is built when it is missing."""

    def __init__(self) -> None:
        self._entries: dict[int, tuple[int, int, Held]] = {}
        self._index: IntervalMap | None = None

    def hold(self, booking_id: int, window: TimeWindow) -> None:
        """As `Calendar.hold`. O(n), since the check builds the index."""
        if booking_id in self._entries:
            raise ValueError(f"Booking {booking_id} already holds a window.")
        conflicts = self.conflicts(window)
        if conflicts:
            raise BookingConflict(conflicts=conflicts)
        self._entries[booking_id] = (*_seconds(window), Held(booking_id, window))
        self._index = None

    def release(self, booking_id: int) -> None:
        """As `Calendar.release`. O(1); the next question pays."""
        del self._entries[booking_id]
        self._index = None

    def is_free(self, window: TimeWindow) -> bool:
        """As `Calendar.is_free`. O(log n + k) for k candidates; O(n) after a change."""
        near = self._candidates(window)
        # Most often there is none, and making a generator costs as much as the search.
        return not near or not any(held.window.overlaps(window) for held in near)

    def conflicts(self, window: TimeWindow) -> Sequence[Held]:
        """As `Calendar.conflicts`. O(log n + k log k) for k candidates; O(n) after a change."""
        return _in_order_of_start(
            held for held in self._candidates(window) if held.window.overlaps(window)
        )

    def _candidates(self, window: TimeWindow) -> list[Held]:
        """What touches the same seconds."""
        return self._up_to_date().search_values(*_seconds(window))

    def _up_to_date(self) -> IntervalMap:
        if self._index is None:
            index = IntervalMap()
            for entry in self._entries.values():
                index.add(*entry)
            index.build()
            self._index = index  # not before: an index that is half built can crash the process
        return self._index

    def __iter__(self) -> Iterator[Held]:
        return iter(_in_order_of_start(held for _, _, held in self._entries.values()))

    def __len__(self) -> int:
        return len(self._entries)


def _seconds(window: TimeWindow) -> tuple[int, int]:
    """The first and the last second that the window touches; the library includes both."""
    since, until = window.start - _ZERO, window.end - _JUST_BEHIND_ZERO
    # Dividing one timedelta by another would cost more than the search in the index.
    first = since.days * 86_400 + since.seconds
    last = until.days * 86_400 + until.seconds
    if first < _LOWEST or last > _HIGHEST:
        return max(_LOWEST, min(first, _HIGHEST)), max(_LOWEST, min(last, _HIGHEST))
    return first, last


def _in_order_of_start(windows: Iterator[Held]) -> list[Held]:
    return sorted(windows, key=lambda held: held.window.start)
