"""Mixed day: riders book, look, change their minds, and cancel.

*Models* a service in use. Of a hundred requests 50 book (25 a driver by name,
25 any driver of the fleet), 30 look (15 at who is free in a window, 15 at a
booking), 10 move a booking to another time with the same driver, and 10 cancel
one. A user looks at, moves and cancels bookings of its own; while it has none,
it books instead.

*Shows* the recipes under more than inserts: time that is given back and taken
again, and bookings that must give up one window for another without ever
holding both or neither.

*Knobs*: with fewer `--drivers` or `--horizon-days` the time that is given back
is soon wanted by somebody else.
"""

from itertools import accumulate
from typing import Any

from loadtest.scenarios._demand import Wish, any_time, one_of
from loadtest.scenarios._history import Answer, Request
from loadtest.scenarios._scenario import Scenario

SHARES = {
    "book one": 0.25,
    "book any": 0.25,
    "see who is free": 0.15,
    "look": 0.15,
    "reschedule": 0.10,
    "cancel": 0.10,
}

_UP_TO = tuple(zip(SHARES, accumulate(SHARES.values()), strict=True))
_OWN_MAX = 1_000
"""A user takes no notice of the bookings that it makes beyond so many."""


class MixedDay(Scenario):
    """Books, looks, reschedules and cancels."""

    def __init__(self, environment: Any) -> None:
        super().__init__(environment)
        self._own: dict[int, Wish] = {}
        """Bookings of this user, as they were last acknowledged."""
        self._at_rest: list[int] = []
        """Those of them that no request under way is about."""

    def next_request(self) -> Request:
        """What this user does next."""
        action = self._action()
        wanted = any_time(self.stage.grid, None, self.random)
        if action == "see who is free":
            return Request("look", wanted)
        if action.startswith("book") or not self._at_rest:
            named = action == "book one"
            driver = one_of(self.stage.drivers, self.random) if named else None
            return Request("book", wanted._replace(driver_id=driver))
        booking_id = self._take()
        held = self._own[booking_id]
        if action == "reschedule":
            end = wanted.start + held.end - held.start
            return Request(action, Wish(held.driver_id, wanted.start, end), booking_id)
        return Request(action, held, booking_id)

    def hear(self, request: Request, answer: Answer) -> None:
        """Remember what is this user's, and where it is now."""
        number = request.booking_id
        match request.action, answer.status:
            case "book", 201 if answer.booking_id and len(self._own) < _OWN_MAX:
                self._own[answer.booking_id] = request.wish._replace(driver_id=answer.driver_id)
                self._at_rest.append(answer.booking_id)
            case "reschedule", 200 if number:
                self._own[number] = request.wish
                self._at_rest.append(number)
            case ("reschedule", 409) | ("look", 200) if number:
                self._at_rest.append(number)
            case _ if number:  # cancelled; or nobody knows what has become of it
                del self._own[number]

    def _action(self) -> str:
        drawn = self.random.random()
        return next(action for action, up_to in _UP_TO if drawn < up_to)

    def _take(self) -> int:
        """One of the bookings at rest, each as likely as the next."""
        rest = self._at_rest
        place = int(self.random.random() * len(rest))
        rest[place], rest[-1] = rest[-1], rest[place]
        return rest.pop()
