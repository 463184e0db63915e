"""Slot bitsets: cut time into slots, and keep for each slot one bit a driver.

Idea
----
A processor asks 64 drivers at once if each is one bit. So cut time into slots of
five minutes, and keep for every slot a row of bits: whose time does a booking
touch there? A few rows OR-ed together, and every bit that is still 0 is a driver
who is free.

What happens
------------
Slots are coarser than windows, so the rows alone would say "taken" too often: a
trip that ends at 10:02 touches the slot from 10:00 to 10:05, yet leaves three
minutes of it. Hence two steps.

1. *Surely free*: untouched in every slot that the window meets. Nobody's calendar
   has to be looked at.
2. *Perhaps free*: touched only in the first or the last slot, which the window
   does not fill. There the driver's own calendar decides, to the microsecond. A
   slot in the middle lies wholly within the window, so whoever is touched there
   is in the way for certain.

The calendars are those of `bisect_neighbours`. They also tell, when a booking is
given back, whether another one still touches the slot where it began or ended.

Costs
-----
With D drivers, a window that meets s slots, and c drivers who are only perhaps
free: `any_free` O(s D / 64) steps of the processor, plus O(c log n) for n windows
a driver if nobody is surely free. `hold` and `release` O(s + log n) and one shift
in the driver's calendar. Memory: D bits for each slot that anything touches, beside
the calendars.

Breaks when
-----------
The window is shorter than two slots and nobody is surely free: it may hold no
whole slot, so nothing can be ruled out, and the second step is a walk over the
fleet. Or windows are very long: a booking of a year touches 105,120 rows. The
length of a slot is a guess about trips, and there is no right one.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import override

from bitarray import bitarray

from booking.allocation.walk_the_fleet import WalkTheFleet
from booking.detection.bisect_neighbours import BisectNeighbours
from booking.time_window import TimeWindow

SLOT = timedelta(minutes=5)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_END = datetime.max.replace(tzinfo=UTC)
_SEATS = 64
"""How many bits a row has at first; it doubles when the fleet outgrows it."""


class SlotBitsets(WalkTheFleet):
    """A row of bits for each slot, 1 where the driver is untouched; calendars for the rest."""

    def __init__(self) -> None:
        super().__init__(BisectNeighbours)
        self._rows: dict[int, bitarray] = {}  # a slot without a row is untouched by all
        self._seat_of: dict[int, int] = {}  # a driver's place in the rows and in the list below
        self._driver_at: list[int] = []
        self._empty_seats: list[int] = []
        self._enrolled = _bits(_SEATS, 0)

    @override
    def enrol(self, driver_id: int) -> None:
        """As `Roster.enrol`. O(1), and once in a doubling of the fleet a copy of the rows."""
        super().enrol(driver_id)
        if self._empty_seats:
            seat = self._empty_seats.pop()
            self._driver_at[seat] = driver_id
        else:
            seat = len(self._driver_at)
            self._driver_at.append(driver_id)
            if seat == len(self._enrolled):
                self._double_the_seats()
        self._seat_of[driver_id] = seat
        self._enrolled[seat] = 1

    @override
    def dismiss(self, driver_id: int) -> None:
        """As `Roster.dismiss`. O(n s)."""
        windows = [held.window for held in self._calendar(driver_id)]
        super().dismiss(driver_id)
        seat = self._seat_of.pop(driver_id)
        for window in windows:
            for slot in _met(window):
                self._untouch(slot, seat)
        self._enrolled[seat] = 0
        self._empty_seats.append(seat)

    @override
    def hold(self, driver_id: int, window: TimeWindow) -> None:
        """As `Roster.hold`. O(s + log n), and one shift."""
        super().hold(driver_id, window)
        seat = self._seat_of[driver_id]
        for slot in _met(window):
            row = self._rows.get(slot)
            if row is None:
                row = self._rows[slot] = _bits(len(self._enrolled), 1)
            row[seat] = 0

    @override
    def release(self, driver_id: int, window: TimeWindow) -> None:
        """As `Roster.release`. O(s + log n), and one shift."""
        super().release(driver_id, window)
        calendar, seat = self._calendar(driver_id), self._seat_of[driver_id]
        filled = _filled(window)
        for slot in _met(window):
            # A slot that the window filled held nothing else.
            if slot in filled or calendar.is_free(_slot_window(slot)):
                self._untouch(slot, seat)

    @override
    def _free(self, window: TimeWindow) -> Iterator[int]:
        surely = self._untouched_in(_met(window))
        for seat in surely.search(1):
            yield self._driver_at[seat]
        perhaps = self._untouched_in(_filled(window)) & ~surely
        for seat in perhaps.search(1):
            driver_id = self._driver_at[seat]
            if self._calendars[driver_id].is_free(window):
                yield driver_id

    def _untouched_in(self, slots: range) -> bitarray:
        """Who is enrolled and untouched in every one of the slots."""
        untouched = self._enrolled.copy()
        few = slots if len(slots) <= len(self._rows) else [s for s in self._rows if s in slots]
        for slot in few:
            row = self._rows.get(slot)
            if row is not None:
                untouched &= row
        return untouched

    def _untouch(self, slot: int, seat: int) -> None:
        row = self._rows.get(slot)
        if row is not None:
            row[seat] = 1
            if row.all():
                del self._rows[slot]

    def _double_the_seats(self) -> None:
        more = len(self._enrolled)
        self._enrolled.extend(_bits(more, 0))
        for row in self._rows.values():
            row.extend(_bits(more, 1))


def _bits(count: int, value: int) -> bitarray:
    bits = bitarray(count)
    bits.setall(value)
    return bits


def _met(window: TimeWindow) -> range:
    """The numbers of the slots of which some instant lies in the window."""
    return range((window.start - _EPOCH) // SLOT, -((_EPOCH - window.end) // SLOT))


def _filled(window: TimeWindow) -> range:
    """The numbers of the slots that lie wholly in the window."""
    return range(-((_EPOCH - window.start) // SLOT), (window.end - _EPOCH) // SLOT)


def _slot_window(slot: int) -> TimeWindow:
    start = _EPOCH + slot * SLOT
    return TimeWindow(start, start + min(SLOT, _END - start))
