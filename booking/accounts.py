"""`Account`: who uses the service. `Principal`: who asks, for as long as one request takes."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from booking.errors import InvalidInput

HOURS_AHEAD_MAX = 48.0
"""How many hours one rider may have booked ahead, unless the service is told otherwise."""


class Role(StrEnum):
    """What somebody is to the service. Everything else follows from it."""

    RIDER = "rider"
    DRIVER = "driver"
    DISPATCHER = "dispatcher"
    ADMINISTRATOR = "administrator"

    @property
    def runs_the_fleet(self) -> bool:
        """Whether all bookings are theirs to see and to change."""
        return self in {Role.DISPATCHER, Role.ADMINISTRATOR}


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks: an account, its role, and the rider or the driver whom it speaks for."""

    account_id: int
    role: Role
    rider_id: int | None = None
    driver_id: int | None = None


@dataclass(frozen=True, slots=True)
class Account:
    """Somebody who may use the service.

    They sign in by a password, or as `subject` of an `issuer`; or, if by neither, only by
    tokens that whoever runs the service makes for them.
    """

    id: int
    email: str
    role: Role
    rider_id: int | None
    driver_id: int | None
    issuer: str | None
    subject: str | None
    created_at: datetime
    disabled_at: datetime | None = None

    @property
    def principal(self) -> Principal:
        """Who asks, when this account does."""
        return Principal(self.id, self.role, self.rider_id, self.driver_id)


def check_fits(role: Role, rider_id: int | None, driver_id: int | None) -> None:
    """Raise `InvalidInput` unless riders speak for a rider, drivers for a driver, others for none.

    It names the field.
    """
    for field, given, wanted in (
        ("rider_id", rider_id, role is Role.RIDER),
        ("driver_id", driver_id, role is Role.DRIVER),
    ):
        if wanted and given is None:
            raise InvalidInput(f"The account of a {role} needs it.", field=field)
        if given is not None and not wanted:
            raise InvalidInput(f"The account of a {role} has none.", field=field)
