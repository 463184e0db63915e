"""One table: what the domain refuses, as an HTTP problem (RFC 9457).

The type of a problem is the name of the error's class, its title the class's
docstring, so a new error of the domain needs no entry here unless its status
differs from its parent's.
"""

import logging
import os
import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException, NotFoundException, ValidationException
from litestar.params import ParameterKwarg
from litestar.types import Receive, Scope, Send

from api.bodies.problems import FieldError, Problem
from api.choices import with_choices
from api.patterns import IN_WORDS
from booking.errors import (
    InvalidInput,
    KeyInUse,
    LedgerBusy,
    NaiveInstant,
    NotAllowed,
    NotFound,
    NotSignedIn,
    Refused,
    ServiceStopping,
    TaxiError,
    TooManyRequests,
    Unavailable,
    VersionMismatch,
)

logger = logging.getLogger(__name__)


def in_plain_words(rule: str) -> str:
    """A rule that msgspec says was broken, as a sentence."""
    for pattern, words in IN_WORDS.items():
        if f"matching regex {pattern!r}" in rule:
            return words
    return rule.rstrip(".") + "."


class MalformedBody(InvalidInput):
    """The body is not valid JSON."""


class UnsupportedBody(InvalidInput):
    """The body must be application/json."""


STATUS: Mapping[type[TaxiError], HTTPStatus] = {
    MalformedBody: HTTPStatus.BAD_REQUEST,
    UnsupportedBody: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    NaiveInstant: HTTPStatus.BAD_REQUEST,
    InvalidInput: HTTPStatus.UNPROCESSABLE_ENTITY,
    NotFound: HTTPStatus.NOT_FOUND,
    VersionMismatch: HTTPStatus.PRECONDITION_FAILED,
    Refused: HTTPStatus.CONFLICT,
    NotSignedIn: HTTPStatus.UNAUTHORIZED,
    NotAllowed: HTTPStatus.FORBIDDEN,
    TooManyRequests: HTTPStatus.TOO_MANY_REQUESTS,
    Unavailable: HTTPStatus.SERVICE_UNAVAILABLE,
    TaxiError: HTTPStatus.INTERNAL_SERVER_ERROR,
}
"""An error has the status of the nearest of its classes that is listed here."""

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 1
_HUNG_UP = "client disconnected prematurely"  # Litestar raises it as a server's error

_encode = msgspec.json.Encoder().encode


def slug_of(error: type[TaxiError]) -> str:
    """The last part of the type of a problem: `booking-conflict` for `BookingConflict`."""
    return re.sub(r"(?<!^)(?=[A-Z])", "-", error.__name__).lower()


def status_of(error: type[TaxiError]) -> HTTPStatus:
    """The status that an error is answered with."""
    return next(
        STATUS[each] for each in error.__mro__ if issubclass(each, TaxiError) and each in STATUS
    )


def problem_of(error: TaxiError) -> Problem:
    """The problem that an error of the domain is answered with."""
    return Problem(
        type=f"/problems/{slug_of(type(error))}",
        title=error.default_message(),
        status=status_of(type(error)),
        detail=error.message,
        errors=[FieldError(error.field, error.message)] if error.field else msgspec.UNSET,
    )


def headers_of(status: int, error: Exception | None = None) -> dict[str, str]:
    """The headers that go with a problem."""
    if status == HTTPStatus.SERVICE_UNAVAILABLE or isinstance(error, KeyInUse):
        return {"Retry-After": str(RETRY_AFTER_S)}
    if isinstance(error, TooManyRequests):
        return {"Retry-After": str(error.wait_s)}
    if status == HTTPStatus.UNAUTHORIZED:
        return {"WWW-Authenticate": "Bearer"}  # RFC 9110, section 15.5.2
    return {}


def problem_response(problem: Problem, headers: Mapping[str, str] | None = None) -> Response[bytes]:
    """The response that carries a problem."""
    return Response(
        _encode(problem), status_code=problem.status, media_type=MEDIA_TYPE, headers=headers
    )


def on_domain_error(_request: Request[Any, Any, Any], error: TaxiError) -> Response[bytes]:
    """Answer what the domain refused."""
    problem = problem_of(error)
    # Those are counted; a line for each would be one more load, when there is too much already.
    is_news = not isinstance(error, LedgerBusy | ServiceStopping)
    if problem.status >= HTTPStatus.INTERNAL_SERVER_ERROR and is_news:
        cause = error.__cause__ or error
        # The driver's own words: the library's around them quote the statement.
        logger.warning("%s: %s", problem.type, _in_a_line(getattr(cause, "orig", None) or cause))
    return problem_response(problem, headers_of(problem.status, error))


def _in_a_line(cause: BaseException) -> str:
    """A failure of the database, for the log: neither its address nor what a row holds."""
    name = type(cause).__name__
    if isinstance(cause, OSError):  # whose text has the address that was tried
        return f"{name}: {os.strerror(cause.errno)}" if cause.errno else name
    return f"{name}: {cause}".partition("\n")[0].rstrip(": ")


async def refuse(error: TaxiError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer in the place of the rest of the application: for a middleware.

    What it raises goes past those before it, and the one that counts would count a success.
    """
    request: Request[Any, Any, Any] = Request(scope, receive, send)
    response = on_domain_error(request, error).to_asgi_response(app=None, request=request)
    await response(scope, receive, send)


def on_http_error(request: Request[Any, Any, Any], error: HTTPException) -> Response[bytes]:
    """Answer what Litestar refused: no such route or method, a parameter that does not fit."""
    if isinstance(error, ValidationException):
        return problem_response(_wrong_parameters(request, error))
    status = HTTPStatus(error.status_code)
    if error.detail == _HUNG_UP:
        # Nobody hears the answer; it is the client's doing, and no reason to wake anybody.
        return Response(b"", status_code=HTTPStatus.BAD_REQUEST)
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return on_bug(request, error)
    problem = Problem(
        type="about:blank", title=status.phrase, status=status, detail=_detail(error, status)
    )
    return problem_response(problem, error.headers)


def on_no_file(request: Request[Any, Any, Any], _error: Exception) -> Response[bytes]:
    """Answer a path that names no file: it is too long for one, goes on below one, or has a NUL."""
    return on_http_error(request, NotFoundException())


async def instead_of_no_page(response: Response[Any]) -> Response[Any]:
    """The problem in the place of the page by which Litestar says that there is no such page."""
    status = HTTPStatus.NOT_FOUND
    if response.status_code != status:
        return response
    return problem_response(
        Problem(type="about:blank", title=status.phrase, status=status, detail=status.description)
    )


def on_bug(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """Answer what nobody foresaw, and say in the log what it was."""
    # Not its path, which may hold what is not for a log; the line of the request has its route.
    logger.error("%s %s failed", request.method, request.scope.get("path_template"), exc_info=error)
    status = HTTPStatus.INTERNAL_SERVER_ERROR
    return problem_response(
        Problem(
            type="about:blank",
            title=status.phrase,
            status=status,
            detail="The service failed to answer. Its log says why.",
        )
    )


def _detail(error: HTTPException, status: HTTPStatus) -> str:
    # What is said of a path that is not there may name a file of this machine.
    if status == HTTPStatus.NOT_FOUND or error.detail == status.phrase:
        return status.description or status.phrase
    return error.detail


def _wrong_parameters(request: Request[Any, Any, Any], error: ValidationException) -> Problem:
    given: list[Any] = error.extra if isinstance(error.extra, list) else []
    errors = [_field_error(request, each) for each in given if not _may_lack(request, each)]
    missing = re.match(r"Missing required \w+ parameter '(.+?)'", error.detail)
    if missing:
        errors = [FieldError(missing.group(1), "It is required.")]
    return Problem(
        type=f"/problems/{slug_of(InvalidInput)}",
        title=InvalidInput.default_message(),
        status=HTTPStatus.UNPROCESSABLE_ENTITY,
        detail=" ".join(f"{each.field}: {each.rule}" for each in errors) or error.detail,
        errors=errors or msgspec.UNSET,
    )


def _may_lack(request: Request[Any, Any, Any], given: Mapping[str, str]) -> bool:
    """Whether the framework complains of a body that may be left out, beside what is wrong."""
    body = request.route_handler.parsed_fn_signature.parameters.get("data")
    return given.get("key") == "data" and body is not None and body.has_default


def _field_error(request: Request[Any, Any, Any], given: Mapping[str, str]) -> FieldError:
    key = given.get("key", "")
    if key == "data":  # what a handler calls the body
        return FieldError("body", "A JSON body is required.")
    field = request.route_handler.parsed_fn_signature.parameters.get(key)
    declared = field.kwarg_definition if field is not None else None
    name = declared.name if isinstance(declared, ParameterKwarg) else None
    rule = given.get("message", "")
    if field is not None:
        rule = with_choices(rule, field.annotation)
    return FieldError(name or key, in_plain_words(rule))


async def explain_plainly(error: TaxiError) -> Problem:
    """The problem of an error that has no more to say than its message."""
    return problem_of(error)
