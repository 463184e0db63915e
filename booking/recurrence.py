"""`Recurrence`: bookings that are meant by the clock on the wall.

Who books "every weekday at 07:30 in Berlin" means half past seven on the wall,
in summer and in winter. So the wall clock and the zone are what is kept, and
each occurrence's instants are worked out from them, date by date. The rules for
the nights when the clocks change are those of RFC 5545:

- A wall-clock time that comes twice is the first of the two (section 3.3.5).
- One that does not exist is read by the offset from UTC before the gap, which
  moves it forward by the gap's length (section 3.3.5).
- A date that does not exist, as 30 December 2011 in Samoa, has no occurrence and
  is not counted (section 3.3.10, which says it of 30 February). Moved forward by
  a day it would be the next day's occurrence a second time.
- Weeks begin on Monday. Of every n weeks, the first is that of the first date
  (section 3.3.10, INTERVAL and WKST).

A trip's duration is time that really passes, whatever the clocks do meanwhile.
"""

from calendar import Day
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from enum import StrEnum
from itertools import islice
from zoneinfo import ZoneInfo

from booking.bookings import LONGEST
from booking.drivers import check_zone
from booking.errors import EmptyWindow, InvalidInput, TooLong
from booking.time_window import TimeWindow, utc

OCCURRENCES_MAX = 366
"""Every day of a leap year."""
INTERVAL_WEEKS_MAX = 52

_A_DAY = timedelta(days=1)
_WEEK_DAYS = 7


class Adjustment(StrEnum):
    """What the clocks' changing did to an occurrence."""

    NONE = "none"
    GAP = "gap"
    """The wall-clock time did not exist; the trip starts later, by as much as was left out."""
    FOLD = "fold"
    """The wall-clock time came twice; the trip starts at the first."""


@dataclass(frozen=True, slots=True)
class Occurrence:
    """One trip of a recurrence: meant for `local_date` in its zone, with `window` in UTC.

    In a gap around midnight the trip may start on the date after `local_date`.
    """

    local_date: date
    window: TimeWindow
    adjustment: Adjustment


@dataclass(frozen=True, slots=True)
class Recurrence:
    """Trips of `duration_s` seconds at `wall_clock` in `zone`, on `weekdays` from `first_date` on.

    It ends with `last_date`, which is included, or after `count` occurrences. With
    `interval_weeks` n, only every n-th week has any, from the week of `first_date` on.

    `occurrences` are in order of their starts, each later than the one before; there
    are 1 to `OCCURRENCES_MAX` of them. Their windows may overlap each other only when
    the trip is longer than the shortest day, which has 23 hours in most zones.

    Raises `InvalidInput` (`EmptyWindow`, `TooLong`, `OutOfCalendar`) that names the field.

    >>> from datetime import date, time
    >>> weekend = frozenset({Day.SATURDAY, Day.SUNDAY})
    >>> early = Recurrence("Europe/Berlin", time(2, 30), 1800, weekend, date(2026, 3, 28), count=2)
    >>> for each in early.occurrences:
    ...     print(each.window, each.adjustment)
    [2026-03-28T01:30:00+00:00, 2026-03-28T02:00:00+00:00) none
    [2026-03-29T01:30:00+00:00, 2026-03-29T02:00:00+00:00) gap
    """

    zone: str
    wall_clock: time
    duration_s: int
    weekdays: frozenset[Day]
    first_date: date
    last_date: date | None = None
    count: int | None = None
    interval_weeks: int = 1
    occurrences: tuple[Occurrence, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._check_trip()
        self._check_pattern()
        self._check_end()
        limit = OCCURRENCES_MAX + 1 if self.count is None else self.count
        occurrences = tuple(islice(self._expanded(), limit))
        if not occurrences:
            raise InvalidInput(
                f"The recurrence has no occurrence from {self.first_date} to {self.last_date}.",
                field="last_date",
            )
        if len(occurrences) > OCCURRENCES_MAX:
            raise InvalidInput(
                f"A recurrence has at most {OCCURRENCES_MAX} occurrences; "
                f"the last that may be is on {occurrences[-2].local_date}.",
                field="last_date",
            )
        object.__setattr__(self, "occurrences", occurrences)

    def _check_trip(self) -> None:
        check_zone(self.zone)
        if self.wall_clock.tzinfo is not None:
            raise InvalidInput(
                "A wall-clock time carries no offset from UTC: the zone says it, date by date.",
                field="wall_clock",
            )
        if self.duration_s <= 0:
            raise EmptyWindow(field="duration_s")
        if self.duration_s > LONGEST.total_seconds():
            raise TooLong(field="duration_s")

    def _check_pattern(self) -> None:
        if not self.weekdays or not self.weekdays <= set(Day):
            raise InvalidInput(
                "A recurrence needs at least one weekday, from 0 (Monday) to 6 (Sunday).",
                field="weekdays",
            )
        if not 1 <= self.interval_weeks <= INTERVAL_WEEKS_MAX:
            raise InvalidInput(
                f"A recurrence comes every 1 to {INTERVAL_WEEKS_MAX} weeks.",
                field="interval_weeks",
            )

    def _check_end(self) -> None:
        if (self.last_date is None) == (self.count is None):
            raise InvalidInput(
                "A recurrence ends with a last date or after a count: exactly one of the two.",
                field="last_date",
            )
        if self.count is not None and not 1 <= self.count <= OCCURRENCES_MAX:
            raise InvalidInput(
                f"A recurrence has 1 to {OCCURRENCES_MAX} occurrences.", field="count"
            )

    def _expanded(self) -> Iterator[Occurrence]:
        """The occurrences up to `last_date`, or without end if there is none."""
        zone = ZoneInfo(self.zone)
        for local_date in self._dates():
            occurrence = self._on(local_date, zone)
            if occurrence is not None:
                yield occurrence

    def _dates(self) -> Iterator[date]:
        """The dates of the pattern, in order, whether or not the zone has them."""
        first = self.first_date.toordinal()
        last = (self.last_date or date.max).toordinal()
        monday = first - self.first_date.weekday()
        for week in range(monday, last + 1, self.interval_weeks * _WEEK_DAYS):
            for weekday in sorted(self.weekdays):
                if first <= week + weekday <= last:
                    yield date.fromordinal(week + weekday)

    def _on(self, local_date: date, zone: ZoneInfo) -> Occurrence | None:
        """The occurrence of that date; None if the zone had no such date."""
        # PEP 495: where the wall clock alone does not say which offset holds, fold=0 has
        # the one before the change and fold=1 the one after. A time of day may carry a fold.
        wanted = datetime.combine(local_date, self.wall_clock.replace(fold=0), zone)
        forward = _offset(wanted.replace(fold=1)) - _offset(wanted)
        if forward >= _A_DAY:
            return None
        # Added in UTC, where a duration is one: on the wall clock an hour may be none, or two.
        start = utc(wanted, "first_date")
        end = utc(start + timedelta(seconds=self.duration_s), "first_date")
        window = TimeWindow(start, end)
        return Occurrence(local_date, window, _adjustment(forward))


def _offset(local: datetime) -> timedelta:
    """The offset from UTC at a time of a zone, which always has one."""
    return local.utcoffset() or timedelta()


def _adjustment(forward: timedelta) -> Adjustment:
    """What a change of the clocks by so much does to a time of day that it makes doubtful."""
    if not forward:
        return Adjustment.NONE
    return Adjustment.GAP if forward > timedelta() else Adjustment.FOLD
