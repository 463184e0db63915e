"""Hot window: everybody wants the same half hour of the same driver, at the same moment.

*Models* tickets that go on sale at noon. Every request names the first driver of
the fleet; which half hour it asks for is told by the clock, which goes on to the
next one ten times a second. So each half hour is free once, and whoever asks in
that moment asks for it too.

*Shows* the race itself, some ten times a second, whatever the speed of the
service: of those who ask together one may get the window, and the others must
be refused. A recipe that looks before it writes, with nothing to hold the two
together, lets several in.

*Knobs*: more users make more rivals for each window. The half hours are those of
`--horizon-days` (here 90); after seven minutes they begin again, all taken.
"""

from collections.abc import Mapping
from typing import ClassVar

from loadtest.scenarios._demand import Wish
from loadtest.scenarios._history import now_s
from loadtest.scenarios._scenario import Scenario

WINDOWS_A_SECOND = 10
WINDOW_SLOTS = 6


class HotWindow(Scenario):
    """One driver, at the one time that all others ask for now."""

    defaults: ClassVar[Mapping[str, int | str]] = {"drivers": 1, "horizon-days": 90}

    def wish(self) -> Wish:
        """The window of this moment: the same for every user of every process."""
        windows = self.stage.grid.slots // WINDOW_SLOTS
        start = int(now_s() * WINDOWS_A_SECOND) % windows * WINDOW_SLOTS
        return Wish(self.stage.drivers[0], start, start + WINDOW_SLOTS)
