"""The rivals of the detection benchmark: libraries from PyPI that index intervals.

Each is called directly, as its documentation has it, and is handed the form it
likes best: whole seconds since a first day as plain integers (or the library's
own interval), made ready before the clock starts. The project's own calendars are
handed a `TimeWindow` and get no such help.

A rival does what a calendar must: it refuses to record what overlaps, and gives
back by the booking's number. Libraries without a way to add or remove are built
anew at the next question, which is what their user would have to do.

Left out: `pyranges`, which is data frames above `ncls`; `sortedcontainers.SortedList`
and `blist`, which would be `SortedDict` once more; the range types of databases,
which are the second act. None of them asks anything that those below do not.
"""

import os
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from importlib import import_module
from typing import Any, override

from booking.time_window import TimeWindow

FIRST_DAY = datetime(2026, 1, 1, tzinfo=UTC)

_SECOND = timedelta(seconds=1)
_ZERO = FIRST_DAY - timedelta(days=1)  # `ncls` answers wrongly for what begins before zero

Span = tuple[int, int]
"""First second and the first second after it."""


def span(window: TimeWindow) -> Span:
    """The window in whole seconds since the day before the first."""
    return (window.start - _ZERO) // _SECOND, (window.end - _ZERO) // _SECOND


class Rival(ABC):
    """A library behind what a calendar must do."""

    def __init__(self) -> None:
        self.of: dict[int, Any] = {}
        """What each booking holds, as the library calls it."""

    def prepare(self, window: TimeWindow) -> Any:
        """The window as the library likes it best."""
        return span(window)

    def fill(self, windows: Iterable[Any]) -> None:
        """Record all the windows, numbered from 0."""
        for booking_id, window in enumerate(windows):
            self.hold(booking_id, window)

    def hold(self, booking_id: int, window: Any) -> None:
        """Record the window; `ValueError` if it is not free."""
        if not self.is_free(window):
            raise ValueError(window)
        self.of[booking_id] = self.add(booking_id, window)

    def release(self, booking_id: int) -> None:
        """Give back what the booking holds."""
        self.remove(booking_id, self.of.pop(booking_id))

    @abstractmethod
    def is_free(self, window: Any) -> bool:
        """Whether nothing that is held overlaps the window."""

    @abstractmethod
    def add(self, booking_id: int, window: Any) -> Any:
        """Put it in; what `remove` will be given."""

    @abstractmethod
    def remove(self, booking_id: int, held: Any) -> None:
        """Take it out."""


class IntervalTreeOverlap(Rival):
    """`intervaltree`, asked by `overlap`."""

    def __init__(self) -> None:
        super().__init__()
        library: Any = import_module("intervaltree")
        self._new_interval = library.Interval
        self._tree = library.IntervalTree()

    @override
    def is_free(self, window: Span) -> bool:
        return not self._tree.overlap(window[0], window[1])

    @override
    def add(self, booking_id: int, window: Span) -> Any:
        interval = self._new_interval(window[0], window[1], booking_id)
        self._tree.add(interval)
        return interval

    @override
    def remove(self, booking_id: int, held: Any) -> None:
        self._tree.remove(held)


class SortedContainersDict(Rival):
    """`sortedcontainers.SortedDict` from start to end: the last that starts before the end."""

    def __init__(self) -> None:
        super().__init__()
        library: Any = import_module("sortedcontainers")
        self._ends = library.SortedDict()

    @override
    def is_free(self, window: Span) -> bool:
        place = self._ends.bisect_left(window[1])
        return not place or self._ends.peekitem(place - 1)[1] <= window[0]

    @override
    def add(self, booking_id: int, window: Span) -> int:
        self._ends[window[0]] = window[1]
        return window[0]

    @override
    def remove(self, booking_id: int, held: int) -> None:
        del self._ends[held]


class BTreesLL(Rival):
    """`BTrees.LLBTree` from start to end: the last that starts before the end."""

    def __init__(self) -> None:
        super().__init__()
        library: Any = import_module("BTrees.LLBTree")
        self._ends = library.LLBTree()

    @override
    def is_free(self, window: Span) -> bool:
        try:
            start = self._ends.maxKey(window[1] - 1)
        except ValueError:  # none starts so early
            return True
        return bool(self._ends[start] <= window[0])

    @override
    def add(self, booking_id: int, window: Span) -> int:
        self._ends[window[0]] = window[1]
        return window[0]

    @override
    def remove(self, booking_id: int, held: int) -> None:
        del self._ends[held]


class RtreeIndex(Rival):
    """`rtree`, boxes without height. Its boxes are closed, hence the one second less."""

    def __init__(self) -> None:
        super().__init__()
        library: Any = import_module("rtree.index")
        self._index = library.Index()

    @override
    def is_free(self, window: Span) -> bool:
        return not self._index.count((window[0], 0, window[1] - 1, 0))

    @override
    def add(self, booking_id: int, window: Span) -> tuple[int, int, int, int]:
        box = (window[0], 0, window[1] - 1, 0)
        self._index.insert(booking_id, box)
        return box

    @override
    def remove(self, booking_id: int, held: tuple[int, int, int, int]) -> None:
        self._index.delete(booking_id, held)


class PortionIntervals(Rival):
    """`portion`: the taken time as one set of intervals."""

    def __init__(self) -> None:
        super().__init__()
        self._portion: Any = import_module("portion")
        self._taken = self._portion.empty()

    @override
    def prepare(self, window: TimeWindow) -> Any:
        return self._portion.closedopen(*span(window))

    @override
    def fill(self, windows: Iterable[Any]) -> None:
        self.of = dict(enumerate(windows))
        self._taken = self._portion.Interval(*self.of.values())

    @override
    def is_free(self, window: Any) -> bool:
        return not self._taken.overlaps(window)

    @override
    def add(self, booking_id: int, window: Any) -> Any:
        self._taken |= window
        return window

    @override
    def remove(self, booking_id: int, held: Any) -> None:
        self._taken -= held


class Rebuilt(Rival):
    """A structure that is built once: after a change, anew at the next question.

    Starts and ends are kept in two arrays, in order, so that building needs no sort.
    """

    def __init__(self) -> None:
        super().__init__()
        _let_numpy_be_fast()
        self._np: Any = import_module("numpy")
        self._starts = self._np.empty(0, dtype="int64")
        self._ends = self._np.empty(0, dtype="int64")
        self._built: Any = None

    @override
    def fill(self, windows: Iterable[Any]) -> None:
        starts, ends = array("q"), array("q")
        for booking_id, window in enumerate(windows):
            start, end = self.bounds(window)
            starts.append(start)
            ends.append(end)
            self.of[booking_id] = start
        self._starts, self._ends = self._np.array(starts), self._np.array(ends)
        self._built = self.build(self._starts, self._ends)

    @override
    def is_free(self, window: Any) -> bool:
        if self._built is None:
            self._built = self.build(self._starts, self._ends)
        return self.asked(window)

    @override
    def add(self, booking_id: int, window: Any) -> int:
        start, end = self.bounds(window)
        place = self._np.searchsorted(self._starts, start)
        self._starts = self._np.insert(self._starts, place, start)
        self._ends = self._np.insert(self._ends, place, end)
        self._built = None
        return start

    @override
    def remove(self, booking_id: int, held: int) -> None:
        place = self._np.searchsorted(self._starts, held)
        self._starts = self._np.delete(self._starts, place)
        self._ends = self._np.delete(self._ends, place)
        self._built = None

    def bounds(self, window: Any) -> Span:
        """The ends of what `prepare` has made."""
        start, end = window
        return start, end

    @abstractmethod
    def build(self, starts: Any, ends: Any) -> Any:
        """The structure."""

    @abstractmethod
    def asked(self, window: Any) -> bool:
        """Whether the window is free, by the structure."""


class Superintervals(Rebuilt):
    """`superintervals`, whose intervals are closed and of 32 bits."""

    def __init__(self) -> None:
        super().__init__()
        self._library: Any = import_module("superintervals")

    @override
    def build(self, starts: Any, ends: Any) -> Any:
        starts, last = starts.astype("int32"), (ends - 1).astype("int32")
        built = self._library.IntervalMap.from_arrays(starts, last)
        built.build()
        return built

    @override
    def asked(self, window: Span) -> bool:
        return not self._built.has_overlaps(window[0], window[1] - 1)


class Ncls(Rebuilt):
    """`ncls`, nested containment lists."""

    def __init__(self) -> None:
        super().__init__()
        self._library: Any = import_module("ncls")

    @override
    def build(self, starts: Any, ends: Any) -> Any:
        return self._library.NCLS(starts, ends, starts)

    @override
    def asked(self, window: Span) -> bool:
        return not self._built.has_overlap(window[0], window[1])


class PandasIntervalIndex(Rebuilt):
    """`pandas.IntervalIndex`, asked by `overlaps`, which compares with every interval."""

    def __init__(self) -> None:
        super().__init__()
        self._pandas: Any = import_module("pandas")

    @override
    def prepare(self, window: TimeWindow) -> Any:
        return self._pandas.Interval(*span(window), closed="left")

    @override
    def build(self, starts: Any, ends: Any) -> Any:
        return self._pandas.IntervalIndex.from_arrays(starts, ends, closed="left")

    @override
    def bounds(self, window: Any) -> Span:
        return window.left, window.right

    @override
    def asked(self, window: Any) -> bool:
        return not self._built.overlaps(window).any()


BASELINE = "intervaltree.overlap"

RIVALS: dict[str, tuple[str, type[Rival]]] = {
    BASELINE: ("intervaltree", IntervalTreeOverlap),
    "SortedDict": ("sortedcontainers", SortedContainersDict),
    "BTrees": ("BTrees", BTreesLL),
    "superintervals": ("superintervals", Superintervals),
    "ncls": ("ncls", Ncls),
    "rtree": ("rtree", RtreeIndex),
    "portion": ("portion", PortionIntervals),
    "pandas": ("pandas", PandasIntervalIndex),
}
"""By name: the package, and the class."""


def _let_numpy_be_fast() -> None:
    """Unset what picks slower kernels than the machine has; numpy reads it when it is loaded."""
    for variable in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):
        os.environ.pop(variable, None)
