"""Hot driver: everybody wants the same driver, on the same day.

*Models* the one whom all have heard of: every request names the first driver
of the fleet, on one of `--horizon-days` days (here 1).

*Shows* what a recipe does when its writers stand in one line: every request
takes the same lock, checks the same few rows, or breaks on the same key. The
day is full after some fifty bookings; from then on nearly every answer is a
refusal, which must be right and quick too.

*Knobs*: `--horizon-days 365` leaves room for thousands of bookings of the same
driver, so that the line goes on consisting of writers.
"""

from collections.abc import Mapping
from typing import ClassVar

from loadtest.scenarios._demand import Wish, any_time
from loadtest.scenarios._scenario import Scenario


class HotDriver(Scenario):
    """One driver, at any time of the day."""

    defaults: ClassVar[Mapping[str, int | str]] = {"drivers": 1, "horizon-days": 1}

    def wish(self) -> Wish:
        """The next trip that somebody wants."""
        return any_time(self.stage.grid, self.stage.drivers[0], self.random)
