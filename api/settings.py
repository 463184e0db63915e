"""What the service is told by its environment, as one typed object."""

import os
from collections.abc import Mapping
from typing import Annotated

import msgspec

from booking.errors import InvalidInput
from booking.postgres.schema import SHIPPED, SHIPPED_ALLOCATOR

Count = Annotated[int, msgspec.Meta(ge=1)]
Seconds = Annotated[float, msgspec.Meta(gt=0)]
NotNegative = Annotated[float, msgspec.Meta(ge=0)]


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """One field an environment variable: `pool_size` is `TAXI_POOL_SIZE`.

    `database_url` alone is called `DATABASE_URL`, as everywhere. It holds a
    password, so nothing prints or logs this object.
    """

    database_url: str
    prevention: str = SHIPPED
    """The prevention recipe; its database must have been prepared for it."""
    allocator: str = SHIPPED_ALLOCATOR
    """The allocation strategy that finds any free driver in SQL; as above."""
    calendar: str = "bisect_neighbours"
    roster: str = "gap_index"
    """The detection and allocation strategies of the in-memory index."""
    pool_size: Count = 10
    """Connections a process."""
    waiting_max: Count = 1_000
    """Requests that may wait for a connection; one more is turned away at once."""
    wait_s_max: Seconds = 5.0
    statement_s_max: Seconds = 5.0
    tolerance_s: NotNegative = 300
    """How late a booking may come without its rider being asked."""
    may_push_back_s: NotNegative = 900
    """How late it may come if the rider is told; beyond that another driver is looked for."""
    idempotency_hours: Count = 24
    """How long an idempotency key is remembered."""

    def __repr__(self) -> str:
        return "Settings(…)"


def variable_of(field: str) -> str:
    """The environment variable that sets `field`."""
    return "DATABASE_URL" if field == "database_url" else f"TAXI_{field.upper()}"


def read_settings(environment: Mapping[str, str] = os.environ) -> Settings:
    """The settings in `environment`; `InvalidInput`, naming the variable, if one is wrong."""
    given = {
        field: environment[variable_of(field)]
        for field in Settings.__struct_fields__
        if environment.get(variable_of(field))
    }
    if "database_url" not in given:
        raise InvalidInput("It must name the database to use.", field="DATABASE_URL")
    try:
        return msgspec.convert(given, Settings, strict=False)
    except msgspec.ValidationError as error:
        rule, _, path = str(error).partition(" - at `$.")
        raise InvalidInput(f"{rule}.", field=variable_of(path.rstrip("`"))) from None


def as_environment(settings: Settings) -> dict[str, str]:
    """The inverse of `read_settings`: what a worker process is started with."""
    return {
        variable_of(field): str(getattr(settings, field)) for field in Settings.__struct_fields__
    }
