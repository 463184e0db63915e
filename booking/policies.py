"""Policies: of the drivers who are free, which one gets the booking?

Any of them is right, so for one request it does not matter. It matters for the
requests that come later, as each choice leaves the free time cut up in another
way: whole gaps for long trips, or crumbs.

Only bookings *ahead of time* can tell policies apart. If each request is for now,
nobody has a later booking yet, and a driver is free or not until further notice.
Whichever free driver is sent, the same number of drivers is free afterwards, and
they become free at the same times; only their names differ.

Source: the same question for memory instead of time, D. E. Knuth, *The Art of
Computer Programming*, volume 1, section 2.5, "Dynamic storage allocation".
"""

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple


class Opening(NamedTuple):
    """A free gap of a driver that contains the wanted window. In seconds."""

    driver_id: int
    before_s: int
    """Free time that the booking would leave in front of it."""
    after_s: int
    """And behind it."""
    busy_s: int
    """What the driver holds in all."""


Policy = Callable[[Sequence[Opening], random.Random], Opening]
"""Chooses among the openings, of which there is at least one, in order of driver."""


def first_fit(openings: Sequence[Opening], _dice: random.Random) -> Opening:
    """The first driver on the list. The same few drive all day, the last are kept in reserve."""
    return openings[0]


def best_fit(openings: Sequence[Opening], _dice: random.Random) -> Opening:
    """The shortest gap that will do, so that long ones are kept for long trips."""
    return min(openings, key=lambda opening: opening.before_s + opening.after_s)


def snug_fit(openings: Sequence[Opening], _dice: random.Random) -> Opening:
    """The gap with least to spare on one side: crumbs are avoided, not only long gaps spared."""
    return min(openings, key=lambda opening: min(opening.before_s, opening.after_s))


def latest_gap(openings: Sequence[Opening], _dice: random.Random) -> Opening:
    """Whoever became free last before the window. The order in which `gap_index` answers."""
    return min(openings, key=lambda opening: opening.before_s)


def least_busy(openings: Sequence[Opening], _dice: random.Random) -> Opening:
    """Who holds least so far: fair to the drivers."""
    return min(openings, key=lambda opening: opening.busy_s)


def anybody(openings: Sequence[Opening], dice: random.Random) -> Opening:
    """Drawn by lot."""
    return dice.choice(openings)


def longest_gap(openings: Sequence[Opening], _dice: random.Random) -> Opening:
    """The longest gap, which it cuts in two: the opposite of `best_fit`, for comparison."""
    return max(openings, key=lambda opening: opening.before_s + opening.after_s)


POLICIES: dict[str, Policy] = {
    policy.__name__: policy
    for policy in (first_fit, best_fit, snug_fit, latest_gap, least_busy, anybody, longest_gap)
}
