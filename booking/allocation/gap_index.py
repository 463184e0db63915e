"""Gap index: index the free time instead of the taken time. The default.

Idea
----
"Free for the whole window" means: some gap between two bookings begins at or
before the window's start and ends at or after its end. So keep the *gaps* of
the whole fleet in one index, in order of their starts, and ask: of those that
have begun, does any last long enough? Who holds what is not looked at, and
neither is how many drivers there are.

What happens
------------
The gaps lie in leaves of a few hundred, in order of start, and above the leaves
stands a tree of maxima that knows the latest end of every stretch of leaves.

1. `bisect` finds the last leaf in which a gap begins at or before the window.
   Every gap in the leaves left of it has begun.
2. If the latest end among those is too early, nobody is free. A few maxima say
   so, and no gap is touched.
3. Otherwise the search skips every stretch whose latest end is too early, and
   finds the gap in a leaf where it is not. `free` goes on like that; as one
   driver's gaps never overlap, each gap found is another driver.

The search goes from late starts to early ones. So the driver found is one who
became free just before, and long gaps are kept for long trips.

A driver who holds n windows has n + 1 gaps, always: before the first, between
each two, and behind the last. Between two windows that touch the gap is empty;
it contains no window, so no question ever meets it, and it keeps the two apart
when one of them is given back. Each driver has an array of the starts of their
gaps. It tells `hold` which gap to cut and `release` which two to join; a gap's
place in the index is its start and its driver.

Costs
-----
With N windows held by all: `any_free` O(log N) when nobody is free; when somebody
is, O(log² N) at worst to find the leaf, plus a look through one leaf of at most
`LEAF_MAX`. `free` the same for each driver it lists. `hold` and `release` O(log
N), plus a shift in one leaf and in one driver's array; and once in some hundred
times a leaf is split, which builds the maxima anew, O(N / LEAF_MAX). Memory:
plain integers in arrays, 20 bytes a gap in the leaves and 8 with the driver.

Breaks when
-----------
More must match than time. "Free *and* near the rider" is one more dimension, and
this index would list every free driver to find the near one.
"""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import islice

from booking.errors import BookingConflict, UnknownDriver
from booking.time_window import TimeWindow, from_microseconds, microseconds

LEAF_MAX = 512
"""A leaf with more gaps than this is split in two."""

_BEGINNING = microseconds(datetime.min.replace(tzinfo=UTC))
_END = microseconds(datetime.max.replace(tzinfo=UTC))
"""The first and the last instant: where a driver's first gap starts and the last one ends."""


class GapIndex:
    """Every driver's free gaps in one index, ordered by start, with the latest ends above."""

    def __init__(self) -> None:
        self._seat_of: dict[int, int] = {}  # a driver's place in the two lists below
        self._driver_at: list[int] = []
        self._gap_starts_at: list[array[int]] = []
        self._empty_seats: list[int] = []
        self._gaps = _Gaps()

    def enrol(self, driver_id: int) -> None:
        """As `Roster.enrol`. O(log N)."""
        if driver_id in self._seat_of:
            raise ValueError(f"Driver {driver_id} is enrolled already.")
        if self._empty_seats:
            seat = self._empty_seats.pop()
        else:
            seat = len(self._driver_at)
            self._driver_at.append(0)
            self._gap_starts_at.append(array("q"))
        self._seat_of[driver_id] = seat
        self._driver_at[seat] = driver_id
        self._gap_starts_at[seat] = array("q", (_BEGINNING,))
        self._gaps.add(_BEGINNING, seat, _END)

    def dismiss(self, driver_id: int) -> None:
        """As `Roster.dismiss`. O(n log N)."""
        seat = self._seat(driver_id)
        for start in self._gap_starts_at[seat]:
            self._gaps.pop(start, seat)
        self._empty_seats.append(seat)
        del self._seat_of[driver_id]

    def hold(self, driver_id: int, window: TimeWindow) -> None:
        """As `Roster.hold`. O(log N), and two shifts."""
        seat = self._seat(driver_id)
        start, end = microseconds(window.start), microseconds(window.end)
        gap_starts = self._gap_starts_at[seat]
        place = bisect_right(gap_starts, start)
        if not self._gaps.cut(gap_starts[place - 1], seat, start, end):
            raise BookingConflict
        gap_starts.insert(place, end)

    def release(self, driver_id: int, window: TimeWindow) -> None:
        """As `Roster.release`. O(log N), and two shifts."""
        seat = self._seat(driver_id)
        start, end = microseconds(window.start), microseconds(window.end)
        gap_starts = self._gap_starts_at[seat]
        place = bisect_left(gap_starts, end)
        ends_one = place < len(gap_starts) and gap_starts[place] == end
        if not ends_one or not self._gaps.mend(gap_starts[place - 1], seat, start, end):
            raise KeyError(window)
        del gap_starts[place]

    def any_free(self, window: TimeWindow) -> int | None:
        """As `Roster.any_free`. O(log N)."""
        for seat in self._gaps.containing(window):
            return self._driver_at[seat]
        return None

    def free(self, window: TimeWindow, limit: int) -> Sequence[int]:
        """As `Roster.free`. O(k log N) for k drivers."""
        seats = self._gaps.containing(window)
        return [self._driver_at[seat] for seat in islice(seats, limit)]

    def drivers(self) -> Iterable[int]:
        """As `Roster.drivers`."""
        return self._seat_of.keys()

    def _seat(self, driver_id: int) -> int:
        try:
            return self._seat_of[driver_id]
        except KeyError:
            raise UnknownDriver(field="driver_id") from None


class _Leaf:
    """Up to `LEAF_MAX` gaps, in order of start and then of seat, as three parallel arrays."""

    __slots__ = ("ends", "latest", "seats", "starts")

    def __init__(self, starts: array[int], seats: array[int], ends: array[int]) -> None:
        self.starts, self.seats, self.ends = starts, seats, ends
        self.latest = max(ends, default=_BEGINNING)

    def halves(self) -> tuple["_Leaf", "_Leaf"]:
        """The earlier and the later half of the gaps, as new leaves."""
        middle = len(self.starts) // 2
        return (
            _Leaf(self.starts[:middle], self.seats[:middle], self.ends[:middle]),
            _Leaf(self.starts[middle:], self.seats[middle:], self.ends[middle:]),
        )

    def lasting(self, before: int, end: int) -> Iterator[int]:
        """The seats of the first `before` gaps that end at or after `end`, last one first."""
        for place in range(before - 1, -1, -1):
            if self.ends[place] >= end:
                yield self.seats[place]


class _Gaps:
    """A sorted map from (start, seat) to end, which knows the latest end of every stretch.

    The gaps are plain integers, microseconds, of 8 bytes each. What every question
    meets, the keys of the leaves and the maxima above them, is kept as datetimes:
    a question brings datetimes, and nothing need be converted to hear no.

    `_latest[k]` is the latest end in the leaves before number k, as many of them
    as the lowest set bit of k says. So the maximum of *all* leaves before k is
    met in as many steps as k has bits set (Fenwick, "A new data structure for
    cumulative frequency tables", 1994).
    """

    def __init__(self) -> None:
        self._leaves = [_Leaf(array("q"), array("i"), array("q"))]
        # No gap of a leaf lies before the leaf's key, and none of the leaf before lies after.
        self._key_starts = [_BEGINNING]
        self._key_seats = [0]
        self._key_instants = [from_microseconds(_BEGINNING)]  # the starts once more
        self._leaf_latest = [from_microseconds(_BEGINNING)]
        self._build_maxima()

    def add(self, start: int, seat: int, end: int) -> None:
        """Add a gap."""
        number, leaf, place = self._locate(start, seat)
        leaf.starts.insert(place, start)
        leaf.seats.insert(place, seat)
        leaf.ends.insert(place, end)
        if len(leaf.starts) > LEAF_MAX:
            self._split(number)
        else:
            self._changed(number, _BEGINNING, end)

    def pop(self, start: int, seat: int) -> int:
        """Remove that driver's gap which begins at `start`, and return its end."""
        number, leaf, place = self._locate(start, seat)
        end = leaf.ends.pop(place)
        del leaf.starts[place], leaf.seats[place]
        if not leaf.starts and len(self._leaves) > 1:
            self._remove(number)
        else:
            self._changed(number, end, _BEGINNING)
        return end

    def cut(self, gap_start: int, seat: int, start: int, end: int) -> bool:
        """Take [start, end) out of that driver's gap; False if the gap does not contain it."""
        number, leaf, place = self._locate(gap_start, seat)
        gap_end = leaf.ends[place]
        if gap_end < end:
            return False
        leaf.ends[place] = start
        self._changed(number, gap_end, start)
        self.add(end, seat, gap_end)
        return True

    def mend(self, gap_start: int, seat: int, start: int, end: int) -> bool:
        """Undo a `cut`; False if it is not at `start` that the gap ends."""
        _, leaf, place = self._locate(gap_start, seat)
        if leaf.ends[place] != start:
            return False
        gap_end = self.pop(end, seat)
        number, leaf, place = self._locate(gap_start, seat)
        leaf.ends[place] = gap_end
        self._changed(number, start, gap_end)
        return True

    def containing(self, window: TimeWindow) -> Iterator[int]:
        """The seat of each gap that contains the window, late gaps before early ones."""
        number = bisect_right(self._key_instants, window.start)
        if self._leaf_latest[number - 1] >= window.end:
            # The one leaf of which some gaps have begun and some have not.
            leaf = self._leaves[number - 1]
            begun = bisect_right(leaf.starts, microseconds(window.start))
            yield from leaf.lasting(begun, microseconds(window.end))
        number -= 1
        while number:
            if self._latest[number] < window.end:
                number &= number - 1
            else:
                number -= 1
                if self._leaf_latest[number] >= window.end:
                    leaf = self._leaves[number]
                    yield from leaf.lasting(len(leaf.starts), microseconds(window.end))

    def _locate(self, start: int, seat: int) -> tuple[int, _Leaf, int]:
        """The leaf where that gap is or belongs, its number, and the gap's place in it."""
        key = _place(self._key_starts, self._key_seats, start, seat + 1)
        leaf = self._leaves[key - 1]
        return key - 1, leaf, _place(leaf.starts, leaf.seats, start, seat)

    def _split(self, number: int) -> None:
        earlier, later = self._leaves[number].halves()
        self._leaves[number : number + 1] = [earlier, later]
        self._key_starts.insert(number + 1, later.starts[0])
        self._key_instants.insert(number + 1, from_microseconds(later.starts[0]))
        self._key_seats.insert(number + 1, later.seats[0])
        self._leaf_latest[number : number + 1] = [
            from_microseconds(earlier.latest),
            from_microseconds(later.latest),
        ]
        self._build_maxima()

    def _remove(self, number: int) -> None:
        # The first key stands for all that comes before the second, whichever leaf is first.
        key = max(number, 1)
        del self._leaves[number], self._leaf_latest[number]
        del self._key_starts[key], self._key_instants[key], self._key_seats[key]
        self._build_maxima()

    def _changed(self, number: int, former: int, present: int) -> None:
        """Carry a changed end of one leaf into the maxima, as far as it makes a difference."""
        leaf = self._leaves[number]
        # Each driver's last gap ends at the end of all time, so the latest end seldom stands alone.
        if former < leaf.latest or leaf.latest in leaf.ends:
            latest = max(leaf.latest, present)
        else:
            latest = max(leaf.ends, default=_BEGINNING)
        if latest == leaf.latest:
            return
        leaf.latest = latest
        self._leaf_latest[number] = from_microseconds(latest)
        node = number + 1
        while node < len(self._latest):
            maximum = self._maximum_of(node)
            if maximum == self._latest[node]:
                return
            self._latest[node] = maximum
            node += node & -node

    def _maximum_of(self, node: int) -> datetime:
        """What `_latest[node]` must be, from the maxima of the smaller stretches it spans."""
        latest = self._leaf_latest[node - 1]
        child = 1
        while child < node & -node:
            latest = max(latest, self._latest[node - child])
            child *= 2
        return latest

    def _build_maxima(self) -> None:
        self._latest = [from_microseconds(_BEGINNING)] * (len(self._leaves) + 1)
        maxima, step = self._leaf_latest, 1
        while maxima:
            self._latest[step :: 2 * step] = maxima[0::2]
            maxima = list(map(max, maxima[0::2], maxima[1::2]))
            step *= 2


def _place(starts: Sequence[int], seats: Sequence[int], start: int, seat: int) -> int:
    """Where (start, seat) belongs in two parallel sequences that are ordered by both."""
    first = bisect_left(starts, start)
    if first == len(starts) or starts[first] != start or seats[first] >= seat:
        return first
    return bisect_left(seats, seat, first, bisect_right(starts, start, first))
