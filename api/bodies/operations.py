"""Whether the service lives, and whether it can answer."""

from msgspec import Struct


class Status(Struct):
    """Whether the service, or one part of it, works."""

    status: str


class Readiness(Struct):
    """What the service needs in order to answer."""

    status: str
    database: str
    index: str
    index_lag_s: float | None
