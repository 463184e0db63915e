"""What the load generator wrote down: one line a request, and whom the requests were about.

Every process of the generator writes its own `*.jsonl` into one folder, each
line one request; `setup.json` beside them names the fleet. Clocks are those of
one machine, in seconds since the epoch.
"""

import math
from collections.abc import Iterable
from datetime import datetime
from http import HTTPStatus
from pathlib import Path

import msgspec

from booking.errors import TaxiError

CONFLICT, NOBODY_FREE = "booking-conflict", "no-driver-free"
"""The problems that say that time is held: the two refusals that an audit can judge."""

_ASKS_FOR_TIME = frozenset({"book", "reschedule"})
_TURNED_AWAY = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE})
_PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}


class BadHistory(TaxiError):
    """The load generator's history cannot be read."""


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One request and what became of it.

    `start` and `end` are the window asked for, `driver_id` the driver asked for,
    `booked_driver_id` the one who was booked, `rider_id` the rider for whom.
    `booking_id` is the booking that was made, moved or cancelled. `intended_s` is
    when the request was due, `sent_s` when it was sent, or None if it never was,
    `answered_s` when its answer was there, or None. `status` is HTTP's, 0 without
    an answer; `problem` the slug of its problem.
    """

    scenario: str
    action: str
    intended_s: float
    sent_s: float | None
    status: int
    measured: bool
    rider_id: int | None = None
    driver_id: int | None = None
    booked_driver_id: int | None = None
    start: datetime | None = None
    end: datetime | None = None
    booking_id: int | None = None
    answered_s: float | None = None
    problem: str | None = None

    @property
    def acknowledged(self) -> bool:
        """Whether the service said that it was done."""
        return HTTPStatus(self.status).is_success if self.status else False

    @property
    def unknown(self) -> bool:
        """Whether it may or may not have been done: no answer, or a server's error."""
        if self.sent_s is None:
            return False
        return self.status == 0 or self.status >= HTTPStatus.INTERNAL_SERVER_ERROR

    @property
    def left_s(self) -> float:
        """The first moment at which it can have had an effect; never, if it was not sent."""
        return math.inf if self.sent_s is None else self.sent_s

    @property
    def refused(self) -> bool:
        """Whether it was refused because the time that it asked for is held."""
        return (
            self.status == HTTPStatus.CONFLICT
            and self.problem in {CONFLICT, NOBODY_FREE}
            and self.action in _ASKS_FOR_TIME
        )

    @property
    def turned_away(self) -> bool:
        """Whether it was told to come back later."""
        return self.status in _TURNED_AWAY


class Setup(msgspec.Struct, frozen=True):
    """Whom a scenario made before its first request."""

    scenario: str
    fleet: str
    driver_ids: tuple[int, ...]
    rider_ids: tuple[int, ...]
    seed: int


def read_history(folder: Path) -> list[Request]:
    """Every request in the folder, in order of when it was due. Raises `BadHistory`."""
    decoder = msgspec.json.Decoder(Request)
    requests: list[Request] = []
    for file in sorted(folder.glob("*.jsonl")):
        try:
            requests += decoder.decode_lines(file.read_bytes())
        except msgspec.MsgspecError as error:
            raise BadHistory(f"{file.name}: {error}.") from error
    return sorted(requests, key=lambda request: request.intended_s)


def first_of_each_process(folder: Path) -> list[Request]:
    """The first request that each process has written down so far."""
    first: list[Request] = []
    for path in folder.glob("*.jsonl"):
        with path.open("rb") as file:
            line = file.readline()
        if line.endswith(b"\n"):  # or it is still being written
            first.append(msgspec.json.decode(line, type=Request))
    return first


def read_setup(folder: Path) -> Setup:
    """Whom the requests are about. Raises `BadHistory`."""
    try:
        return msgspec.json.decode((folder / "setup.json").read_bytes(), type=Setup)
    except (OSError, msgspec.MsgspecError) as error:
        raise BadHistory(f"setup.json: {error}.") from error


def percentiles_ms(times_s: Iterable[float]) -> dict[str, float]:
    """p50, p90, p99 (nearest rank) and the longest, in milliseconds; nothing of nothing."""
    ordered = sorted(times_s)
    if not ordered:
        return {}
    return {
        name: round(1_000 * ordered[math.ceil(share * len(ordered)) - 1], 2)
        for name, share in _PERCENTILES.items()
    }
