"""Rush hour: most requests want the same few hours.

*Models* the days before working days: four of five trips start between seven
and nine in the morning or five and seven in the evening, on one of the next
`--horizon-days` days (here 7); the fifth starts at any time. Each names one of
`--drivers` drivers.

*Shows* conflict as it mostly comes: many drivers, each wanted by several riders
for nearly the same time, some of them at this very moment. The rush hours fill
up during the test, so the share of refusals grows.

*Knobs*: `--drivers` and `--horizon-days` decide how soon the hours are full.
"""

from collections.abc import Mapping
from typing import ClassVar

from loadtest.scenarios._demand import SLOTS_A_DAY, SLOTS_AN_HOUR, Wish, at, one_of
from loadtest.scenarios._scenario import Scenario

RUSH_HOURS = (7, 8, 17, 18)
RUSH_SHARE = 0.8


class RushHour(Scenario):
    """Any driver by name, mostly in the rush hours."""

    defaults: ClassVar[Mapping[str, int | str]] = {"horizon-days": 7}

    def wish(self) -> Wish:
        """The next trip that somebody wants."""
        random, grid = self.random, self.stage.grid
        driver = one_of(self.stage.drivers, random)
        if random.random() >= RUSH_SHARE:
            return at(int(random.random() * grid.slots), driver, random)
        hour = RUSH_HOURS[int(random.random() * len(RUSH_HOURS))]
        day = int(random.random() * grid.days)
        slot = int(random.random() * SLOTS_AN_HOUR)
        return at(day * SLOTS_A_DAY + hour * SLOTS_AN_HOUR + slot, driver, random)
