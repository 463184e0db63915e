"""What the service is told by its environment, as one typed object."""

import os
from collections.abc import Mapping
from typing import Annotated

import msgspec

from booking.accounts import HOURS_AHEAD_MAX
from booking.bookings import HOLD_S_MAX
from booking.errors import InvalidInput
from booking.postgres.schema import SHIPPED, SHIPPED_ALLOCATOR
from booking.postgres.waiting import OFFER_S

SECRET_BYTES_MIN = 32
"""Of `token_secret`: as long as the hash, as a shorter key is the weakest part.

(RFC 7518, section 3.2.)
"""

Count = Annotated[int, msgspec.Meta(ge=1)]
Seconds = Annotated[float, msgspec.Meta(gt=0)]
Hours = Annotated[float, msgspec.Meta(gt=0, le=8_760)]
NotNegative = Annotated[float, msgspec.Meta(ge=0)]
HoldSeconds = Annotated[int, msgspec.Meta(ge=1, le=HOLD_S_MAX)]


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """One field an environment variable: `pool_size` is `TAXI_POOL_SIZE`.

    `database_url` alone is called `DATABASE_URL`, as everywhere. It holds a
    password, and `token_secret` is one, so nothing prints or logs this object.
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
    city_zone: str = "UTC"
    """The time zone of the city: its rush hours are by this clock."""
    osrm_url: str = ""
    """An OSRM server that says how long a way takes; without, the great circle does."""
    offer_s: HoldSeconds = OFFER_S
    """How long time that became free is held for whoever waited for it."""
    idempotency_hours: Count = 24
    """How long an idempotency key is remembered."""
    events_days: Count = 400
    """How long what happened is remembered, in days."""
    streams_max: Count = 100
    """Clients that may follow the events at once, a process."""
    webhook_answer_s_max: Seconds = 15.0
    """How long a webhook may take to answer."""
    webhook_private: bool = False
    """Whether webhooks may lead to this machine, and into private networks."""
    requests_max: Count = 2_000
    """Requests that may be under way in a process; one more is turned away unread."""
    drain_s: NotNegative = 0
    """How long a process that is told to stop is not ready, and serves on, before it begins to."""
    stop_s_max: Count = 10
    """How long what is under way may then take to finish."""
    token_secret: str = ""
    """Signs the service's own tokens. Whoever has it can be anybody."""
    token_hours: Hours = 12
    """How long a token lasts."""
    oidc_issuer: str = ""
    oidc_audience: str = ""
    """An issuer of OpenID Connect whose tokens count as well; without a secret, alone."""
    rider_hours_max: Hours = HOURS_AHEAD_MAX
    """How many hours one rider may have booked ahead or wait for."""
    requests_per_min: Count = 300
    """Of one rider or driver, by each process."""
    sign_ins_per_min: Count = 10
    """From one address, by each process: to sign in, to sign up, to change the password."""

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
