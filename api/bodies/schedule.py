"""A whole fleet and what it has."""

from msgspec import Struct

from api.bodies.bookings import BookingOut
from api.bodies.common import Instant
from api.bodies.drivers import DriverOut


class ScheduleRow(Struct):
    """A driver, and what they have, in order of start."""

    driver: DriverOut
    bookings: list[BookingOut]


class Schedule(Struct):
    """A whole fleet at `as_of`."""

    items: list[ScheduleRow]
    as_of: Instant
