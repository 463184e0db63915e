"""How a request is read: strictly.

Litestar converts leniently, which is right for query strings, where all is
text, and wrong for JSON: `"7"` would pass for a number and `1700000000` for an
instant. A body is decoded here instead, straight into its struct.
"""

import re
from datetime import datetime
from typing import Annotated, Any, override

import msgspec
from litestar import Request
from litestar.exceptions import NotFoundException
from litestar.handlers import HTTPRouteHandler
from litestar.params import QueryParameter

from api.access import check_body
from api.bodies.common import ID_MAX
from api.choices import with_choices
from api.patterns import PLACE, PRINTABLE
from api.problems import MalformedBody, UnsupportedBody, in_plain_words
from booking.errors import InvalidInput
from booking.places import Place


def _instant(example: str) -> QueryParameter:
    return QueryParameter(
        description="RFC 3339 with its offset from UTC; write + as %2B.",
        schema_extra={"format": "date-time", "examples": [example]},
    )


_START, _END = _instant("2026-12-01T09:00:00Z"), _instant("2026-12-01T09:30:00Z")
StartQuery = Annotated[str, _START]
EndQuery = Annotated[str, _END]
# The parameter is declared around the whole union: within it, its rules would be lost.
OptionalStartQuery = Annotated[str | None, _START]
OptionalEndQuery = Annotated[str | None, _END]
OptionalFlagQuery = Annotated[bool | None, QueryParameter()]
OptionalIdQuery = Annotated[int | None, QueryParameter(ge=1, le=ID_MAX)]
_FLEET = QueryParameter(
    min_length=1, max_length=100, pattern=PRINTABLE, description="Only drivers of this fleet."
)
FleetQuery = Annotated[str, _FLEET]
OptionalFleetQuery = Annotated[str | None, _FLEET]
OptionalPlaceQuery = Annotated[
    str | None,
    QueryParameter(
        pattern=PLACE,
        description="Latitude and longitude in degrees, with a comma between them.",
        schema_extra={"examples": ["52.52,13.405"]},
    ),
]
LimitQuery = Annotated[int, QueryParameter(ge=1, le=1_000, description="At most so many items.")]


def parse_instant(text: str, field: str) -> datetime:
    """The instant in a query parameter; `InvalidInput`, naming `field`, if it is none."""
    try:
        return msgspec.convert(text, datetime)
    except msgspec.ValidationError:
        raise InvalidInput(
            f"{text!r} is not an instant such as 2026-12-01T09:00:00Z"
            " (write + as %2B in an address).",
            field=field,
        ) from None


def parse_place(text: str | None, field: str) -> Place | None:
    """The place in a query parameter; `InvalidInput`, naming `field`, if there is no such one."""
    if text is None:
        return None
    latitude, _, longitude = text.partition(",")
    try:
        return Place(float(latitude), float(longitude))
    except InvalidInput as error:
        raise InvalidInput(error.message, field=field) from None


class StrictRequest(Request[Any, Any, Any]):
    """A request whose JSON body is decoded strictly into the type that its handler names."""

    @override
    async def json(self) -> Any:
        content_type, _ = self.content_type
        if content_type != "application/json":
            raise UnsupportedBody(field="Content-Type")
        field = self.route_handler.parsed_data_field
        wanted = Any if field is None else field.annotation
        try:
            body = msgspec.json.decode(await self.body(), type=wanted)
        except msgspec.ValidationError as error:
            rule, _, place = str(error).partition(" - at ")
            # "`$.start`"; or, of a name in an object, "`key` in `$.weekly`".
            path = place.partition("$")[2].strip("`.")
            raise _wrong_field(with_choices(rule, wanted, path), path) from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise MalformedBody(f"The body is not valid JSON: {error}.") from None
        check_body(self.scope, body)
        return body


# Not a plain function: that would be run in a thread, with two switches a request.
async def check_address(request: Request[Any, Any, Any]) -> None:
    """Raise `NotFoundException` or `InvalidInput` where an address was read too leniently."""
    _refuse_other_digits(request)
    _refuse_unknown_parameters(request)


def _refuse_other_digits(request: Request[Any, Any, Any]) -> None:
    """A number in a path is digits: `int` takes blanks, a plus and other alphabets as well."""
    numbers = {name for name, value in request.path_params.items() if isinstance(value, int)}
    if not numbers:
        return
    named = request.scope["path_template"].strip("/").split("/")
    given = [part for part in request.scope["path"].split("/") if part]
    # From the end: a server may have put a prefix before the path.
    for name, part in zip(reversed(named), reversed(given), strict=False):
        if name.strip("{}") in numbers and not re.fullmatch("-?[0-9]+", part):
            raise NotFoundException


def _refuse_unknown_parameters(request: Request[Any, Any, Any]) -> None:
    """A misspelt filter would otherwise be taken for none at all."""
    handler = request.route_handler
    if not request.query_params or not isinstance(handler, HTTPRouteHandler):
        return
    if not handler.resolve_include_in_schema():
        return  # pages and metrics, whose readers have parameters of their own
    known = [
        field.kwarg_definition.name or name
        for name, field in handler.parsed_fn_signature.parameters.items()
        if isinstance(field.kwarg_definition, QueryParameter)
    ]
    for name in request.query_params:
        if name not in known:
            raise InvalidInput(
                f"There is no such parameter here; there is {', '.join(known) or 'none'}.",
                field=name,
            )
        if len(request.query_params.getall(name)) > 1:
            raise InvalidInput("It may be given once.", field=name)


def _wrong_field(rule: str, path: str) -> InvalidInput:
    """The error for what msgspec found wrong at `path`; it names a missing field in the rule."""
    named = re.search(r"field `([^`]*)`", rule)
    field = path or (named.group(1) if named else "body")
    return InvalidInput(in_plain_words(rule), field=field)
