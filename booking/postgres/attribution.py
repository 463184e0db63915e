"""Who is at work: told once at the edge of a request, and written with whatever it changes.

It reaches the database as a column of the row, `bookings.changed_by`, which
`tables.py` fills in every INSERT and UPDATE. It is not a setting of the session:
that would cost a round trip more, and one statement may write for several people
(`grouped_commit`). A trigger takes it from there into the trail.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from itertools import count
from time import time_ns

CLOCK = "clock"
"""The actor where nobody did anything: time has passed."""


@dataclass(frozen=True, slots=True)
class Attribution:
    """Who does it (`account:7 rider`, `clock`), by which request, from which address."""

    actor: str
    request_id: str | None = None
    origin: str | None = None


_NOBODY = Attribution("system")
_present: ContextVar[Attribution] = ContextVar("attribution", default=_NOBODY)
_writes = count(time_ns())


def present() -> Attribution:
    """Who is at work here."""
    return _present.get()


def attribute(attribution: Attribution) -> None:
    """From here on, in this task and those it starts, `attribution` is at work."""
    _present.set(attribution)


@contextmanager
def attributed_to(attribution: Attribution) -> Iterator[None]:
    """Within the block, `attribution` is at work."""
    token = _present.set(attribution)
    try:
        yield
    finally:
        _present.reset(token)


@contextmanager
def as_the_clock() -> Iterator[None]:
    """What is done within the block is due to the time, whoever came by and found it so."""
    with attributed_to(replace(present(), actor=CLOCK)):
        yield


def changed_by(who: Attribution | None = None) -> dict[str, object]:
    """Who is at work here, unless `who` is given, for the column of that name.

    It is different each time: a row that still says what it said before was changed by
    somebody who did not say who.
    """
    who = who or present()
    return {
        "actor": who.actor,
        "request_id": who.request_id,
        "origin": who.origin,
        "write": next(_writes),
    }
