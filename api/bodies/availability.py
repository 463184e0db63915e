"""Who is free."""

from msgspec import Struct

from api.bodies.common import Id, Instant


class Availability(Struct):
    """Drivers who were free for the whole window at `as_of`."""

    items: list[Id]
    as_of: Instant
    source: str
