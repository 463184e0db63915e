"""The answers that a route documents beside the one it hopes for."""

from dataclasses import dataclass
from http import HTTPStatus

from litestar.datastructures import ResponseHeader
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import Operation, RequestBody

from api.bodies.bookings import BookingProblem
from api.bodies.problems import Problem
from api.problems import MEDIA_TYPE

_DESCRIPTIONS = {
    HTTPStatus.BAD_REQUEST: "The body is not JSON, or an instant carries no offset.",
    HTTPStatus.UNAUTHORIZED: "No valid token was sent; see `WWW-Authenticate`.",
    HTTPStatus.FORBIDDEN: "The account may not do that, whatever the id.",
    HTTPStatus.NOT_FOUND: "There is nothing with that id, or it is not yours.",
    HTTPStatus.CONFLICT: "The present state of things forbids it.",
    HTTPStatus.PRECONDITION_FAILED: "The booking is not at the version of `If-Match` any more.",
    HTTPStatus.CONTENT_TOO_LARGE: "The body is too large.",
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: "The body is not application/json.",
    HTTPStatus.UNPROCESSABLE_ENTITY: "A field breaks a rule; `errors` names both.",
    HTTPStatus.TOO_MANY_REQUESTS: "Too many requests; see `Retry-After`.",
    HTTPStatus.SERVICE_UNAVAILABLE: "The service cannot answer now; see `Retry-After`.",
}

LOCATION = ResponseHeader(
    name="Location", description="Where the new resource is.", documentation_only=True, value=""
)
ETAG = ResponseHeader(
    name="ETag",
    description="The booking's version, for `If-Match`.",
    documentation_only=True,
    value="",
)


@dataclass
class BodyMayBeLeftOut(Operation):
    """Documents a body as optional, where the framework documents every body as required."""

    def __post_init__(self) -> None:
        if isinstance(self.request_body, RequestBody):
            self.request_body.required = False


def problems(*statuses: HTTPStatus) -> dict[int, ResponseSpec]:
    """The problems a route may answer with, beside those that every route may."""
    every = {HTTPStatus.UNPROCESSABLE_ENTITY, HTTPStatus.SERVICE_UNAVAILABLE, *statuses}
    return {status: problem_spec(status, Problem) for status in sorted(every)} | {
        # A parameter that does not fit is a 422 here; without this line the framework
        # would document its own 400.
        400: problem_spec(HTTPStatus.BAD_REQUEST, Problem)
    }


def body_problems(*statuses: HTTPStatus) -> dict[int, ResponseSpec]:
    """The problems of a route that takes a body and an idempotency key."""
    return problems(
        HTTPStatus.CONFLICT,
        HTTPStatus.CONTENT_TOO_LARGE,
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        *statuses,
    )


def booking_problems(*statuses: HTTPStatus) -> dict[int, ResponseSpec]:
    """The problems of a route that books; its 409 says what is free instead."""
    return body_problems(*statuses) | {409: problem_spec(HTTPStatus.CONFLICT, BookingProblem)}


def problem_spec(status: HTTPStatus, shape: type[Problem]) -> ResponseSpec:
    """How a problem of that shape is documented."""
    return ResponseSpec(
        shape, description=_DESCRIPTIONS[status], media_type=MEDIA_TYPE, generate_examples=False
    )
