"""What riders ask for: windows on a grid of five minutes, drawn from a seed."""

from datetime import UTC, date, datetime, timedelta
from random import Random
from typing import NamedTuple

SLOT_MIN = 5
"""Riders book for ten past, not for eleven minutes and 23 seconds past."""
SLOTS_AN_HOUR = 60 // SLOT_MIN
SLOTS_A_DAY = 24 * SLOTS_AN_HOUR

SHORTEST_SLOTS = 2
LONGEST_SLOTS = 12


class Wish(NamedTuple):
    """A driver, or None for any, and a window `[start, end)` in slots of a `Grid`."""

    driver_id: int | None
    start: int
    end: int


class Grid:
    """`days` days of slots from midnight UTC of `first_day`; trips may end on the day after."""

    def __init__(self, first_day: date, days: int) -> None:
        midnight = datetime(first_day.year, first_day.month, first_day.day, tzinfo=UTC)
        self.days = days
        self.slots = days * SLOTS_A_DAY
        self.instants = [
            f"{midnight + timedelta(minutes=SLOT_MIN * slot):%Y-%m-%dT%H:%M:%SZ}"
            for slot in range(self.slots + LONGEST_SLOTS + 1)
        ]
        """Each slot's beginning in RFC 3339: written once, not with every request."""


def trip_slots(random: Random) -> int:
    """How long a trip takes: 10 to 60 minutes, half an hour on average, the short ones oftener."""
    spread = LONGEST_SLOTS - SHORTEST_SLOTS + 1
    return SHORTEST_SLOTS + int(random.random() ** 2 * spread)


def at(start: int, driver_id: int | None, random: Random) -> Wish:
    """A trip that starts in that slot."""
    return Wish(driver_id, start, start + trip_slots(random))


def any_time(grid: Grid, driver_id: int | None, random: Random) -> Wish:
    """A trip at any time, each as likely as the next."""
    return at(int(random.random() * grid.slots), driver_id, random)


def one_of(ids: list[int], random: Random) -> int:
    """One of them, each as likely as the next."""
    return ids[int(random.random() * len(ids))]
