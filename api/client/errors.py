"""What a client of the service raises."""

from collections.abc import Mapping
from http import HTTPStatus

from api.bodies.bookings import BookingProblem, Conflict, Offer
from api.bodies.problems import FieldError
from booking.errors import TaxiError


class NoService(TaxiError):
    """No booking service answers there."""


class NoAnswer(TaxiError):
    """The request was not answered, and patience ran out.

    Whether a command was carried out is then not known; sent again under its
    `key`, it is not carried out twice. `reason` is what went wrong last.
    """

    def __init__(self, url: str, after_s: float, reason: str, key: str | None) -> None:
        self.after_s = after_s
        self.reason = reason
        self.key = key
        doubt = "" if key is None else " Whether it was carried out is not known."
        super().__init__(f"Given up on {url} after {after_s:.1f} s: {reason}.{doubt}")


class ProblemAnswer(TaxiError):
    """The service answered with a problem."""

    def __init__(self, problem: BookingProblem) -> None:
        self.problem = problem
        errors = problem.errors or []
        super().__init__(problem.detail, field=errors[0].field if errors else None)

    @property
    def type(self) -> str:
        """Which problem, such as `/problems/booking-conflict`."""
        return self.problem.type

    @property
    def status(self) -> int:
        """The status of the answer."""
        return self.problem.status

    @property
    def errors(self) -> list[FieldError]:
        """The inputs that break a rule."""
        return self.problem.errors or []

    @property
    def conflicts(self) -> list[Conflict]:
        """The bookings in the way."""
        return self.problem.conflicts or []

    @property
    def next_free(self) -> Offer | None:
        """When it could be had instead, if that is known."""
        return self.problem.next_free or None

    @property
    def free_drivers(self) -> list[int]:
        """Who is free at the time asked for."""
        return self.problem.free_drivers or []


class ProblemInvalid(ProblemAnswer):
    """The request breaks a rule."""


class ProblemNotFound(ProblemAnswer):
    """There is nothing with that id."""


class ProblemConflict(ProblemAnswer):
    """The present state of things forbids it."""


class ProblemChanged(ProblemAnswer):
    """The booking is not at the version named any more."""


class ProblemNotAllowed(ProblemAnswer):
    """The token is missing, or not valid any more, or its account may not do that."""


PROBLEMS: Mapping[int, type[ProblemAnswer]] = {
    HTTPStatus.BAD_REQUEST: ProblemInvalid,
    HTTPStatus.CONTENT_TOO_LARGE: ProblemInvalid,
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: ProblemInvalid,
    HTTPStatus.UNPROCESSABLE_ENTITY: ProblemInvalid,
    HTTPStatus.UNAUTHORIZED: ProblemNotAllowed,
    HTTPStatus.FORBIDDEN: ProblemNotAllowed,
    HTTPStatus.NOT_FOUND: ProblemNotFound,
    HTTPStatus.CONFLICT: ProblemConflict,
    HTTPStatus.PRECONDITION_FAILED: ProblemChanged,
}
"""The error of each status; any other is a plain `ProblemAnswer`."""
