"""Interval tree, asked by `overlaps`: the tempting call, kept as an exhibit.

Idea
----
The library has a method that answers yes or no, which is just the question; so
call that one. It is the tree of `interval_tree`, and one letter more.

What happens
------------
`overlaps(begin, end)` first asks the tree whether anything holds `begin`. If so,
the answer is yes, after one descent. If not, something may still begin further
on in the window, and the library looks for it by going through the boundaries of
*all* its intervals, in order, to see which lie inside. If one does, it stops
there. If none does, it has gone through them all.

Costs
-----
`is_free` is O(n) for n windows of the driver when the window is free. When it is
taken, O(log n) if its first instant is held, and otherwise O(p + log n) for the p
boundaries that come before it. All else costs what it costs in `interval_tree`.
The library's documentation promises O(r log n), with r "the size of the search
range"; who reads that and asks for ten minutes expects a small r.

Breaks when
-----------
The calendar grows. Every answer is right, so no test that compares answers will
ever find it, and while the data of a test is small no clock will. It takes a
benchmark that asks for *free* windows, at more than one size.
"""

from typing import override

from booking.detection.interval_tree import IntervalTree
from booking.time_window import TimeWindow


class IntervalTreeOverlaps(IntervalTree):
    """The same tree, asked by `overlaps`."""

    @override
    def is_free(self, window: TimeWindow) -> bool:
        """As `Calendar.is_free`. O(n) when the window is free."""
        return not self._tree.overlaps(window.start, window.end)
