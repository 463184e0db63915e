"""Walk with bisect: the same walk over the fleet, and each driver answers at once.

Idea
----
Keep walking, but give every driver the calendar that won the first act, so that
a driver is asked in O(log n) instead of O(n).

What happens
------------
Nothing else changes: `walk_the_fleet` takes any calendar, and here it is
`bisect_neighbours`. The drivers are still asked one after the other.

Costs
-----
With D drivers of whom a share p is free and n windows a driver, about 1/p
calendars are asked, and all D when nobody is free: O(D log n). `hold` is O(log n)
and one shift in the driver's calendar, `release` the same.

Breaks when
-----------
As `walk_the_fleet` does, only later: the factor n is gone, the factor D is not.
A faster calendar cannot help, as it is the *number* of questions that grows with
the fleet. It is the rival that the benchmark of this act takes its ratios to.
"""

from booking.allocation.walk_the_fleet import WalkTheFleet
from booking.detection.bisect_neighbours import BisectNeighbours


class WalkWithBisect(WalkTheFleet):
    """The walk, with `bisect_neighbours` for a calendar."""

    def __init__(self) -> None:
        super().__init__(BisectNeighbours)
