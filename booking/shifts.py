"""`Shifts`: when a driver works, meant by the clock on the wall and answered in UTC.

A shift belongs to the day it begins on, so Monday's 22:00 to 06:00 is worked on
Tuesday morning too. Time is worked if it lies in a shift, and neither in a break
nor in time off: what is taken out stays out, whichever other shift lies there.

When the clocks change, one rule decides: *a span lasts from the first instant at
which the clock shows a time in it to the last.* Hence:

- A bound that the clock jumps over is the instant of the jump. A span that is
  jumped over altogether is empty: it is not made up for later.
- Of a time that the clock shows twice, a span begins at the first and ends at the
  second, so it is never cut short. (Clocks that go from 03:00 back to 02:00 show
  02:00 twice too, but a span until 02:00 ends at the first: the clock shows no
  time before 02:00 again.)
- A night shift across a change is an hour shorter or longer than it says.

The rule holds for breaks and days off too.

The zone is the driver's own and kept with the driver; the dictionary that is
stored (`Shifts.as_dict`) does not say it a second time.
"""

import re
from bisect import bisect_left
from calendar import Day
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from enum import IntEnum, StrEnum
from heapq import heapify, heappop, heappush
from itertools import groupby, pairwise
from operator import itemgetter
from typing import NamedTuple, Self
from zoneinfo import ZoneInfo

from booking.calendars import Held
from booking.drivers import check_zone
from booking.errors import InvalidInput, OutOfCalendar
from booking.time_window import EARLIEST, LATEST, TimeWindow, from_microseconds, microseconds

_DAY_MIN = 24 * 60
_MINUTE = timedelta(minutes=1)
_MICROSECOND = timedelta(microseconds=1)
_CLOCK = re.compile(r"([01][0-9]|2[0-3]):[0-5][0-9]|24:00")


@dataclass(frozen=True, slots=True)
class LocalSpan:
    """`[from_min, until_min)` on the wall's clock, in minutes after the midnight of some day.

    It may end on the next day, but is shorter than a day, unless it is one, from
    midnight to midnight. Raises `InvalidInput` on the field `from` or `until`.

    >>> LocalSpan.between("22:00", "06:00")
    LocalSpan(from_min=1320, until_min=1800)
    """

    from_min: int
    until_min: int

    def __post_init__(self) -> None:
        if not 0 <= self.from_min < _DAY_MIN:
            raise InvalidInput("A span begins between 00:00 and 23:59.", field="from")
        # As it is written, a span that came round to where it began would look empty.
        if not self.from_min < self.until_min < max(self.from_min + _DAY_MIN, _DAY_MIN + 1):
            raise InvalidInput(
                "A span ends at another time than it begins, and within a day; "
                "a whole day is 00:00 to 24:00.",
                field="until",
            )

    @classmethod
    def between(cls, start: str, until: str) -> Self:
        """The span of two times `HH:MM`; if `until` is the earlier one, it is the next day's."""
        from_min, until_min = _minutes(start, "from"), _minutes(until, "until")
        if until_min < from_min:
            until_min += _DAY_MIN
        return cls(from_min, until_min)

    def as_dict(self) -> dict[str, object]:
        """As JSON has it: `from` and `until`."""
        return {"from": _clock(self.from_min), "until": _clock(self.until_min)}

    def __str__(self) -> str:
        return f"{_clock(self.from_min)} to {_clock(self.until_min)}"


@dataclass(frozen=True, slots=True)
class Shift:
    """Work during `hours` of a day, save for the `breaks`, which lie within them.

    A break at 02:00 in a shift from 22:00 is at two in that night. Breaks come in
    any order, and are kept in that of the shift. Raises `InvalidInput` on the
    field of the break, such as `breaks[0].from`.
    """

    hours: LocalSpan
    breaks: tuple[LocalSpan, ...] = ()

    def __post_init__(self) -> None:
        placed = [self._placed(each) for each in self.breaks]
        for number, (from_min, until_min) in enumerate(placed):
            if from_min >= self.hours.until_min:
                raise InvalidInput(
                    f"The break {self.breaks[number]} begins outside of the shift {self.hours}.",
                    field=f"breaks[{number}].from",
                )
            if until_min > self.hours.until_min:
                raise InvalidInput(
                    f"The break {self.breaks[number]} ends outside of the shift {self.hours}.",
                    field=f"breaks[{number}].until",
                )
        _check_disjoint(placed, self.breaks, "breaks")
        object.__setattr__(self, "breaks", tuple(sorted(self.breaks, key=self._placed)))

    def breaks_min(self) -> Iterator[tuple[int, int]]:
        """Of each break the bounds, in minutes after the midnight of the shift's day."""
        return map(self._placed, self.breaks)

    def as_dict(self) -> dict[str, object]:
        """As JSON has it: `from`, `until`, and `breaks` if there are any."""
        breaks = [each.as_dict() for each in self.breaks]
        return self.hours.as_dict() | ({"breaks": breaks} if breaks else {})

    def _placed(self, pause: LocalSpan) -> tuple[int, int]:
        later = _DAY_MIN if pause.from_min < self.hours.from_min else 0
        return pause.from_min + later, pause.until_min + later


@dataclass(frozen=True, slots=True)
class DaysOff:
    """Local dates off, from `first` to `last`, which is included.

    They take out the days, and the shifts that begin on them, to their ends: who
    is off until New Year's Eve is not called at midnight. The night shift of the
    day before `first` is over at midnight.
    """

    first: date
    last: date

    def __post_init__(self) -> None:
        _check_date(self.first, "first")
        _check_date(self.last, "last")
        if self.last < self.first:
            raise InvalidInput("The last day off is not before the first.", field="last")

    def __contains__(self, day: date) -> bool:
        return self.first <= day <= self.last


TimeOff = TimeWindow | DaysOff
"""Time off between two instants, or by local dates."""


@dataclass(frozen=True, slots=True)
class Shifts:
    """One driver's working time, in `zone`.

    `weekly` says the shifts of each weekday; a weekday that it leaves out has
    none. Without it (None) every day is worked, and all day long. On the dates of
    `exceptions` other shifts begin, or none. Shifts of one day do not overlap;
    those of neighbouring days may, and are worked once.

    Raises `InvalidInput` with the field, such as `weekly.monday[1].from`.

    >>> night = Shift(LocalSpan.between("22:00", "06:00"))
    >>> shifts = Shifts("Europe/Berlin", {Day.SATURDAY: (night,)})
    >>> march = TimeWindow(datetime(2026, 3, 21, tzinfo=UTC), datetime(2026, 3, 31, tzinfo=UTC))
    >>> for window in working_windows(shifts, march):
    ...     print(window, window.duration)
    [2026-03-21T21:00:00+00:00, 2026-03-22T05:00:00+00:00) 8:00:00
    [2026-03-28T21:00:00+00:00, 2026-03-29T04:00:00+00:00) 7:00:00
    """

    zone: str
    weekly: Mapping[Day, tuple[Shift, ...]] | None = None
    exceptions: Mapping[date, tuple[Shift, ...]] = field(default_factory=dict)
    time_off: tuple[TimeOff, ...] = ()
    zone_info: ZoneInfo = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Kept: the library itself remembers only a handful of zones that nobody holds.
        object.__setattr__(self, "zone_info", ZoneInfo(check_zone(self.zone)))
        if self.weekly is not None:
            weekly = {
                weekday: _in_order(shifts, f"weekly.{weekday.name.lower()}")
                for weekday, shifts in sorted(self.weekly.items())
                if shifts
            }
            object.__setattr__(self, "weekly", weekly)
        for day in self.exceptions:
            _check_date(day, f"exceptions.{day}")
        exceptions = {
            day: _in_order(shifts, f"exceptions.{day}")
            for day, shifts in sorted(self.exceptions.items())
        }
        object.__setattr__(self, "exceptions", exceptions)

    @property
    def every_day_alike(self) -> bool:
        """Whether there is neither a pattern nor an exception: only time off is not worked."""
        return self.weekly is None and not self.exceptions

    def beginning_on(self, day: date) -> tuple[Shift, ...]:
        """The shifts that begin on a local date, in order; whether or not it is a day off."""
        if day in self.exceptions:
            return self.exceptions[day]
        if self.weekly is None:
            return _ALL_DAY
        return self.weekly.get(Day(day.weekday()), ())

    def as_dict(self) -> dict[str, object]:
        """As JSON has it, without the zone. `from_dict` reads it."""
        return {
            "weekly": None
            if self.weekly is None
            else {day.name.lower(): _dicts(shifts) for day, shifts in self.weekly.items()},
            "exceptions": {str(day): _dicts(shifts) for day, shifts in self.exceptions.items()},
            "time_off": [_time_off_dict(each) for each in self.time_off],
        }

    @classmethod
    def from_dict(cls, document: object, zone: str) -> Self:
        """The shifts that `as_dict` wrote, or somebody by hand.

        What is left out is as in `Shifts`. A shift of a weekday or an exception is
        `{"from": "22:00", "until": "06:00", "breaks": [...]}`, a break the same
        without breaks, time off `{"start": ..., "end": ...}`, two instants with
        their offset, or `{"first": ..., "last": ...}`, two dates. Raises
        `InvalidInput` that names the field and the rule.
        """
        parts = _mapping(document, "shifts", ("weekly", "exceptions", "time_off"))
        weekly = parts.get("weekly")
        return cls(
            zone,
            None if weekly is None else dict(_read_weekly(weekly)),
            dict(_read_exceptions(parts.get("exceptions", {}))),
            tuple(_read_time_off(parts.get("time_off", []))),
        )


class AbsenceKind(StrEnum):
    """Why a driver does not work at some time. Of two reasons, the one further down is told."""

    OFF_SHIFT = "off_shift"
    ON_BREAK = "on_break"
    TIME_OFF = "time_off"


class Absence(NamedTuple):
    """A part of a window in which the driver does not work."""

    kind: AbsenceKind
    part: TimeWindow


class Stranded(NamedTuple):
    """A booking that lies outside of the driver's working time, and the first part that does."""

    booking_id: int
    window: TimeWindow
    absence: Absence


def working_windows(shifts: Shifts, within: TimeWindow) -> Iterator[TimeWindow]:
    """The parts of `within` that are worked: in order, and with time between them.

    Found day by day as they are asked for, so the next one of a long time is cheap.
    O(d·(s·log s + o)) for all of them: d days have s shifts and breaks each, and o is
    the number of times off. O(o·log o) where every day is alike.
    """
    return (window for kind, window in _timeline(shifts, within) if kind is None)


def why_not(shifts: Shifts, window: TimeWindow) -> Absence | None:
    """None if all of the window is worked, else why the first part that is not is not."""
    return next(
        (Absence(kind, part) for kind, part in _timeline(shifts, window) if kind is not None), None
    )


def covers(shifts: Shifts, window: TimeWindow) -> bool:
    """Whether all of the window is worked."""
    return why_not(shifts, window) is None


def stranded(shifts_new: Shifts, bookings: Iterable[Held]) -> list[Stranded]:
    """The bookings that would lie outside of the new shifts, in the order given.

    To be shown before shifts are changed, as it changes nothing. A booking that
    lay outside of the old shifts too is listed all the same.
    """
    return [
        Stranded(booking_id, window, absence)
        for booking_id, window in bookings
        if (absence := why_not(shifts_new, window)) is not None
    ]


# --- From the clock on the wall to instants. ---------------------------------------------


def _begins(zone: ZoneInfo, local: datetime) -> datetime:
    """The first instant at which the clock shows `local` or later. It never decreases."""
    first, second = _readings(zone, local)
    return first if first <= second else _jump(zone, local, second, first)


def _ends(zone: ZoneInfo, local: datetime) -> datetime:
    """The instant up to which the clock shows less than `local`, and after which it never does."""
    shown = local - _MICROSECOND
    first, second = _readings(zone, shown)
    return second + _MICROSECOND if first <= second else _jump(zone, shown, second, first)


def _readings(zone: ZoneInfo, local: datetime) -> tuple[datetime, datetime]:
    """The instants at which the clock shows `local`: the same twice, save at a change.

    In a gap, where it never does, the first is after the gap and the second before:
    so it comes of the offsets that PEP 495 gives a time that does not exist.
    """
    return (
        local.replace(tzinfo=zone, fold=0).astimezone(UTC),
        local.replace(tzinfo=zone, fold=1).astimezone(UTC),
    )


def _jump(zone: ZoneInfo, local: datetime, before: datetime, after: datetime) -> datetime:
    """The instant in `(before, after]` at which the clock jumps over `local`."""
    instants_us = range(microseconds(before), microseconds(after) + 1)
    at = bisect_left(
        instants_us,
        local,
        key=lambda us: from_microseconds(us).astimezone(zone).replace(tzinfo=None),
    )
    return from_microseconds(instants_us[at])


# --- A sweep over the edges of everything. -----------------------------------------------


class _Layer(IntEnum):
    SHIFT = 0
    BREAK = 1
    OFF = 2


_Edge = tuple[datetime, _Layer, int]
"""An instant, and by how much there is more of a layer from then on."""


def _timeline(
    shifts: Shifts, within: TimeWindow
) -> Iterator[tuple[AbsenceKind | None, TimeWindow]]:
    """`within`, cut where it changes whether the driver works (None), or why not."""
    depth = dict.fromkeys(_Layer, 0)
    since, kind = within.start, _kind(depth)
    for at, edges in groupby(_edges(shifts, within), key=itemgetter(0)):
        if at >= within.end:
            break
        for _, layer, step in edges:
            depth[layer] += step
        changed = _kind(depth)
        if changed is kind:
            continue
        if since < at:
            yield kind, TimeWindow(since, at)
            since = at
        kind = changed
    yield kind, TimeWindow(since, within.end)


def _kind(depth: Mapping[_Layer, int]) -> AbsenceKind | None:
    if depth[_Layer.OFF]:
        return AbsenceKind.TIME_OFF
    if depth[_Layer.BREAK]:
        return AbsenceKind.ON_BREAK
    return None if depth[_Layer.SHIFT] else AbsenceKind.OFF_SHIFT


def _edges(shifts: Shifts, within: TimeWindow) -> Iterator[_Edge]:
    """In order, all edges that matter within a window; others may be among them."""
    waiting = [edge for each in shifts.time_off for edge in _edges_off(shifts, each, within)]
    if shifts.every_day_alike:
        yield from sorted([(within.start, _Layer.SHIFT, 1), *waiting])
        return
    heapify(waiting)
    for day in _days(shifts, within):
        for edge in _edges_on(shifts, day):
            heappush(waiting, edge)
        # Nothing of a later day comes before that day's midnight.
        midnight = _begins(shifts.zone_info, _local(day, _DAY_MIN))
        while waiting and waiting[0][0] < midnight:
            yield heappop(waiting)
    yield from sorted(waiting)


def _edges_off(shifts: Shifts, off: TimeOff, within: TimeWindow) -> Iterator[_Edge]:
    if isinstance(off, DaysOff):
        start = _begins(shifts.zone_info, _local(off.first, 0))
        end = _ends(shifts.zone_info, _local(off.last, _DAY_MIN))
    else:
        start, end = off.start, off.end
    if start < within.end and within.start < end:
        yield start, _Layer.OFF, 1
        yield end, _Layer.OFF, -1


def _days(shifts: Shifts, within: TimeWindow) -> Iterator[date]:
    """The local dates on which a shift may begin that matters within a window."""
    # A shift ends on the next day at the latest; and once more a day on either side, as
    # clocks that are put back at midnight show a date a second time.
    first = within.start.astimezone(shifts.zone_info).toordinal() - 2
    last = within.end.astimezone(shifts.zone_info).toordinal() + 1
    return map(date.fromordinal, range(first, last + 1))


def _edges_on(shifts: Shifts, day: date) -> Iterator[_Edge]:
    """The edges of the shifts that begin on `day`. On a day off they are time off instead."""
    is_off = any(isinstance(off, DaysOff) and day in off for off in shifts.time_off)
    for shift in shifts.beginning_on(day):
        layer = _Layer.OFF if is_off else _Layer.SHIFT
        yield from _both(shifts, day, layer, (shift.hours.from_min, shift.hours.until_min))
        for pause in shift.breaks_min():
            yield from _both(shifts, day, _Layer.BREAK, pause)


def _both(shifts: Shifts, day: date, layer: _Layer, minutes: tuple[int, int]) -> Iterator[_Edge]:
    from_min, until_min = minutes
    yield _begins(shifts.zone_info, _local(day, from_min)), layer, 1
    yield _ends(shifts.zone_info, _local(day, until_min)), layer, -1


def _local(day: date, after_min: int) -> datetime:
    """What the clock shows so many minutes after midnight, by the clock."""
    return datetime(day.year, day.month, day.day) + after_min * _MINUTE  # noqa: DTZ001  # a clock's


# --- Validation. -------------------------------------------------------------------------


def _in_order(shifts: Sequence[Shift], path: str) -> tuple[Shift, ...]:
    """The shifts of one day, if they do not overlap."""
    hours = [each.hours for each in shifts]
    bounds = [(each.from_min, each.until_min) for each in hours]
    _check_disjoint(bounds, hours, path)
    return tuple(sorted(shifts, key=lambda shift: shift.hours.from_min))


def _check_disjoint(
    bounds: Sequence[tuple[int, int]], spans: Sequence[LocalSpan], path: str
) -> None:
    """`bounds` says where each of `spans` lies, counted from one and the same midnight."""
    in_order = sorted(range(len(bounds)), key=bounds.__getitem__)
    for before, after in pairwise(in_order):
        if bounds[after][0] < bounds[before][1]:
            raise InvalidInput(
                f"{spans[after]} overlaps {spans[before]}.", field=f"{path}[{after}].from"
            )


def _check_date(day: date, path: str) -> None:
    if not EARLIEST.date() <= day <= LATEST.date():
        raise OutOfCalendar(field=path)


_ALL_DAY = (Shift(LocalSpan(0, _DAY_MIN)),)
"""What is worked where no pattern says otherwise."""


# --- To and from JSON. -------------------------------------------------------------------


def _clock(after_min: int) -> str:
    """Minutes after a midnight as `HH:MM`; the end of the day is 24:00."""
    if after_min > _DAY_MIN:
        after_min -= _DAY_MIN
    return f"{after_min // 60:02}:{after_min % 60:02}"


def _minutes(clock: str, path: str) -> int:
    if not _CLOCK.fullmatch(clock):
        raise InvalidInput("A time of day is written HH:MM, from 00:00 to 24:00.", field=path)
    return int(clock[:2]) * 60 + int(clock[3:])


def _dicts(shifts: Iterable[Shift]) -> list[dict[str, object]]:
    return [each.as_dict() for each in shifts]


def _time_off_dict(off: TimeOff) -> dict[str, object]:
    if isinstance(off, DaysOff):
        return {"first": str(off.first), "last": str(off.last)}
    return {"start": off.start.isoformat(), "end": off.end.isoformat()}


def _read_weekly(document: object) -> Iterator[tuple[Day, tuple[Shift, ...]]]:
    names = [day.name.lower() for day in Day]
    for name, shifts in _mapping(document, "weekly", names).items():
        yield Day[name.upper()], tuple(_read_shifts(shifts, f"weekly.{name}"))


def _read_exceptions(document: object) -> Iterator[tuple[date, tuple[Shift, ...]]]:
    for name, shifts in _mapping(document, "exceptions").items():
        path = f"exceptions.{name}"
        yield _date(name, path), tuple(_read_shifts(shifts, path))


def _read_shifts(document: object, path: str) -> Iterator[Shift]:
    for number, each in enumerate(_list(document, path)):
        with _below(f"{path}[{number}]"):
            parts = _mapping(each, None, ("from", "until", "breaks"))
            breaks = _list(parts.get("breaks", []), "breaks")
            yield Shift(_read_span(parts), tuple(_read_breaks(breaks)))


def _read_breaks(documents: Sequence[object]) -> Iterator[LocalSpan]:
    for number, each in enumerate(documents):
        with _below(f"breaks[{number}]"):
            yield _read_span(_mapping(each, None, ("from", "until")))


def _read_span(parts: Mapping[str, object]) -> LocalSpan:
    return LocalSpan.between(_text(parts, "from"), _text(parts, "until"))


def _read_time_off(document: object) -> Iterator[TimeOff]:
    for number, each in enumerate(_list(document, "time_off")):
        with _below(f"time_off[{number}]"):
            parts = _mapping(each, None, ("start", "end", "first", "last"))
            if parts.keys() <= {"first", "last"}:
                first, last = (_date(_text(parts, name), name) for name in ("first", "last"))
                yield DaysOff(first, last)
            elif parts.keys() <= {"start", "end"}:
                yield TimeWindow(
                    *(_datetime(_text(parts, name), name) for name in ("start", "end"))
                )
            else:
                raise InvalidInput("Time off has a start and an end, or a first and a last date.")


@contextmanager
def _below(path: str) -> Iterator[None]:
    """Errors from inside name their field from `path` on."""
    try:
        yield
    except InvalidInput as error:
        error.field = path if error.field is None else f"{path}.{error.field}"
        raise


def _mapping(
    value: object, path: str | None, known: Sequence[str] | None = None
) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise InvalidInput("An object is needed here.", field=path)
    for key in value:
        if known is not None and key not in known:
            raise InvalidInput(f"{key!r} is not known here; {', '.join(known)} are.", field=path)
    return value


def _list(value: object, path: str) -> Sequence[object]:
    if not isinstance(value, list | tuple):
        raise InvalidInput("A list is needed here.", field=path)
    return value


def _text(parts: Mapping[str, object], name: str) -> str:
    value = parts.get(name)
    if not isinstance(value, str):
        raise InvalidInput("A text is needed here.", field=name)
    return value


def _date(text: str, path: str) -> date:
    try:
        day = date.fromisoformat(text)
    except ValueError:
        day = None
    # Python reads other forms too, and one date written twice would be two exceptions.
    if day is None or str(day) != text:
        raise InvalidInput("A date is written YYYY-MM-DD, and exists.", field=path)
    return day


def _datetime(text: str, path: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise InvalidInput(
            "An instant is written with its offset, as in 2026-03-08T09:00:00Z.", field=path
        ) from None
