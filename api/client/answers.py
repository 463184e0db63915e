"""Answers of the service: what a problem says, and which are worth asking again for."""

from http import HTTPStatus
from typing import NamedTuple

import httpx
import msgspec

from api.bodies.bookings import BookingProblem

_AGAIN = frozenset(
    {
        HTTPStatus.TOO_MANY_REQUESTS,
        HTTPStatus.BAD_GATEWAY,
        HTTPStatus.SERVICE_UNAVAILABLE,
        HTTPStatus.GATEWAY_TIMEOUT,
    }
)
_KEY_IN_USE = "/problems/key-in-use"  # the first sending of this command still runs


class Answer(NamedTuple):
    """An answer of the service, whatever it says, and how long it took."""

    response: httpx.Response
    latency_s: float
    """From sending to the whole answer, of the sending that was answered."""
    settled_s: float
    """From the first sending, pauses included."""


def problem_in(response: httpx.Response) -> BookingProblem | None:
    """The problem that a response carries, if any."""
    if not response.headers.get("Content-Type", "").startswith("application/problem+json"):
        return None
    try:
        return msgspec.json.decode(response.content, type=BookingProblem)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def summary_of(response: httpx.Response) -> str:
    """A response in a few words: `503 Service Unavailable`, or the title of its problem."""
    problem = problem_in(response)
    said = response.reason_phrase if problem is None else problem.title.rstrip(".")
    return f"{response.status_code} {said}".rstrip()


def to_be_sent_again(response: httpx.Response) -> bool:
    """Whether the service cannot answer now, or still runs the first sending of the command."""
    if response.status_code != HTTPStatus.CONFLICT:
        return response.status_code in _AGAIN
    problem = problem_in(response)
    return problem is not None and problem.type == _KEY_IN_USE


def retry_after_s(response: httpx.Response) -> float:
    """How long to wait at least, in seconds, before the same is asked again."""
    value = response.headers.get("Retry-After", "")
    return float(value) if value.isdecimal() else 0.0  # a date is not worth a clock's error
