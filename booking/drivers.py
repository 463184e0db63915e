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
