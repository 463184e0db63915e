"""Riders, as they go over the wire."""

from typing import Self

from msgspec import Struct

from api.bodies.common import Id, Instant, Name, Page
from booking.drivers import Rider


class RiderIn(Struct, forbid_unknown_fields=True):
    """A rider to be added."""

    name: Name


class RiderOut(Struct):
    """A rider."""

    id: Id
    name: str
    created_at: Instant

    @classmethod
    def of(cls, rider: Rider) -> Self:
        """As it goes over the wire."""
        return cls(rider.id, rider.name, rider.created_at)


class RiderPage(Page[RiderOut]):
    """A part of the list of riders."""

    items: list[RiderOut]
