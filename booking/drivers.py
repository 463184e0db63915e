"""`Driver`: whose time is booked. `Rider`: who books it."""

from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from booking.errors import InvalidInput

_ANOTHER_ON_EACH_MACHINE = {"localtime", "posixrules"}

MAIN_FLEET = "main"
"""The fleet of whoever names none."""


@dataclass(frozen=True, slots=True)
class Driver:
    """A driver of a fleet; `zone` is the IANA name of the time zone they live by.

    "Any free driver" means any of one fleet: a depot, a partner, or the drivers
    of an experiment, which then keeps out of everyone else's way.
    """

    id: int
    name: str
    fleet: str
    zone: str
    created_at: datetime
    retired_at: datetime | None = None
    turnaround_s: int | None = None
    """What the driver needs between two trips beside the way; None: no such rule, nor travel."""
    has_shifts: bool = False
    """Whether working hours are laid down; without, any time will do."""

    @property
    def has_terms(self) -> bool:
        """Whether more than free time is asked of a booking."""
        return self.has_shifts or self.turnaround_s is not None


TURNAROUND_S_MAX = 12 * 3_600
"""The longest turnaround, in seconds."""


def check_turnaround(turnaround_s: int | None) -> int | None:
    """`turnaround_s`, if there can be such a one; else `InvalidInput`."""
    if turnaround_s is not None and not 0 <= turnaround_s <= TURNAROUND_S_MAX:
        raise InvalidInput(
            f"A turnaround is 0 to {TURNAROUND_S_MAX} seconds.", field="turnaround_s"
        )
    return turnaround_s


@dataclass(frozen=True, slots=True)
class Rider:
    """Who asks for the bookings."""

    id: int
    name: str
    created_at: datetime


def check_zone(zone: str) -> str:
    """`zone`, if it is the IANA name of a time zone; else `InvalidInput` on the field `zone`."""
    with suppress(ZoneInfoNotFoundError, ValueError, OSError):
        if zone not in _ANOTHER_ON_EACH_MACHINE:
            ZoneInfo(zone)
            return zone
    raise InvalidInput(
        f"{zone!r} is not the IANA name of a time zone, such as Europe/Berlin.", field="zone"
    )
