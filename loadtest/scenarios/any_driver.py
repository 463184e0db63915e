"""Any driver: the rider wants a taxi, and does not care whose.

*Models* the usual request: it names the fleet and a time, and the service finds
a driver who is free for all of it (allocation).

*Shows* what the search for a free driver costs while there are many, and when
there are few: the busier the fleet, the more drivers are asked before one is
free, and two requests that are offered the same driver meet.

*Knobs*: with `--drivers 20 --horizon-days 1` the day is full within seconds, and
most answers say that nobody is free. A fleet that was there before is used
whole, even if it has more drivers than `--drivers`.
"""

from loadtest.scenarios._demand import Wish, any_time
from loadtest.scenarios._scenario import Scenario


class AnyDriver(Scenario):
    """Any driver of the fleet, at any time."""

    def wish(self) -> Wish:
        """The next trip that somebody wants."""
        return any_time(self.stage.grid, None, self.random)
