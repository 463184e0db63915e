"""Spread out: every driver and every hour is wanted as much as the next.

*Models* a quiet month: bookings for `--horizon-days` days to come, each naming
one of `--drivers` drivers, at any time of day.

*Shows* what a booking costs when hardly anybody is in anybody's way: few
conflicts at first, and those that come are with bookings long recorded, not
with requests under way. It is the figure that the other scenarios are held
against.

*Knobs*: with fewer drivers or days the calendars fill up, and refusals take over.
"""

from loadtest.scenarios._scenario import Scenario


class SpreadOut(Scenario):
    """Any driver by name, at any time."""
