"""Every request has an id: the one it brings as `X-Request-ID`, or one made here.

It is on the answer, in each line of the log that is written on the request's behalf,
and there for whoever else has to say which request brought something about.
"""

import re
from collections.abc import Iterable
from contextvars import ContextVar
from uuid import uuid4

HEADER = b"x-request-id"

REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)
"""The id of the request that is being answered; None outside of one."""

# What is written to a log and sent back must not be able to begin a new line there.
_ACCEPTED = re.compile(rb"[\x20-\x7e]{1,128}")


def request_id_of(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The id that the request brings, or a new one if it brings none that can be used.

    That is at most 128 printable ASCII characters, blanks around them not counted.
    """
    for name, value in headers:
        if name == HEADER and _ACCEPTED.fullmatch(told := value.strip()):
            return told.decode("ascii")
    return uuid4().hex
