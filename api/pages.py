"""Keyset pagination: a cursor says where the last page ended, not how far to count.

With an offset, a booking recorded while somebody pages through the list shifts
all that follow, and the reader misses one or sees it twice.
"""

import base64
import binascii
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Annotated, Any

import msgspec
from litestar.params import QueryParameter

from api.bodies.common import ID_MAX, Page
from booking.errors import InvalidInput
from booking.time_window import utc

CursorQuery = Annotated[
    str | None, QueryParameter(max_length=200, description="`next_cursor` of the page before.")
]
_Aware = Annotated[datetime, msgspec.Meta(tz=True)]
_Position = Annotated[int, msgspec.Meta(ge=0, le=ID_MAX)]


def page_of[I, O, P: Page[Any]](
    page: type[P],
    rows: Sequence[I],
    limit: int,
    out: Callable[[I], O],
    position: Callable[[I], object],
) -> P:
    """A `page` of `rows`, of which one more than `limit` was read to see whether more follow."""
    shown = rows[:limit]
    cursor = _write(position(shown[-1])) if len(rows) > limit else None
    return page(items=[out(row) for row in shown], next_cursor=cursor)


def read_id_cursor(cursor: str | None) -> int:
    """The id behind which a page starts; 0 for the first page."""
    return 0 if cursor is None else _read(cursor, _Position)


def read_start_cursor(cursor: str | None) -> tuple[datetime, int] | None:
    """The start and id behind which a page starts; None for the first page."""
    if cursor is None:
        return None
    start, id_ = _read(cursor, tuple[_Aware, _Position])
    return utc(start, "cursor"), id_


def _write(position: object) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(position)).rstrip(b"=").decode()


def _read[T](cursor: str, shape: type[T]) -> T:
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        return msgspec.json.decode(base64.urlsafe_b64decode(padded.encode()), type=shape)
    except (binascii.Error, ValueError, msgspec.DecodeError, msgspec.ValidationError):
        raise InvalidInput(
            "It is not a cursor that this service gave out.", field="cursor"
        ) from None
