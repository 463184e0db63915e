"""Reads taxi trips from the files of the New York Taxi & Limousine Commission (TLC).

The TLC publishes a month of trips a file: CSV until 2022, Parquet since. Both
are read as a stream; what is kept of a trip is `BYTES_A_TRIP` bytes in columns,
not a Python object. The times are New York's local time *without* an offset, so
whoever reads them must say which zone they are in:

- A time that the zone repeats, in the night the clocks go back, is taken for the
  earlier of its two instants (`fold=0`).
- A time that the zone skips, in the night the clocks go forward, never was. Its
  row is malformed.

A malformed row is counted and named by its line; it never stops the reading. A
file that is not one of trips at all is refused, with what it lacks.

Source: TLC trip record data, with its data dictionaries,
https://www.nyc.gov/site/tlc/about/tlc-trip-record-data.page
"""

import csv
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TextIO
from zoneinfo import ZoneInfo

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from booking.errors import InvalidInput
from booking.time_window import from_microseconds, microseconds

TIME_COLUMNS = (
    ("tpep_pickup_datetime", "tpep_dropoff_datetime"),  # yellow cabs
    ("lpep_pickup_datetime", "lpep_dropoff_datetime"),  # green cabs
    ("pickup_datetime", "dropOff_datetime"),  # for-hire vehicles
)
"""Start and end of a trip, as each kind of file calls them; in any case of letters."""

PLACE_COLUMNS = ("PULocationID", "DOLocationID")
"""Taxi zones of the pickup and the drop-off; a file may lack them."""

BATCH_TRIPS = 1_024
"""Few enough that making them ready holds up nobody who waits for an answer meanwhile."""
MALFORMED_NAMED_MAX = 1_000
"""How many malformed rows are named; those beyond are only counted."""

_HEADER_CHARS_MAX = 65_536
_SHOWN_CHARS_MAX = 40
_COLUMNS_SHOWN_MAX = 25
_SHORTEST_TIME = len("2019-03-10T02:30")
_PLACE_MAX = 2**31 - 1

_SCHEMA = pa.schema(
    {
        "line": pa.int64(),
        "start_us": pa.int64(),
        "end_us": pa.int64(),
        "pickup_place": pa.int32(),
        "dropoff_place": pa.int32(),
    }
)
BYTES_A_TRIP = sum(each.bit_width for each in _SCHEMA.types) // 8


class WrongFile(InvalidInput):
    """The file is not one of taxi trips."""


class Trip(NamedTuple):
    """One trip of a file; `line` is where, `start` and `end` are UTC.

    A trip may be empty, or longer than a booking may be. Whether it can be
    booked is for the service to say.
    """

    line: int
    start: datetime
    end: datetime
    pickup_place: int | None
    dropoff_place: int | None


class MalformedRow(NamedTuple):
    """A row that holds no trip: its line in the file, and the rule that it breaks."""

    line: int
    rule: str


class Order(StrEnum):
    """In which order trips are handed on."""

    START = "start"
    FILE = "file"
    SHUFFLED = "shuffled"


class TripFile:
    """A file of trips: `batches` reads it, once; the other attributes say what was found.

    `zone` is the zone of times that carry no offset, and `rows_max` how many
    rows to read. Lines count from 1 and the header of a CSV is line 1; in
    Parquet, which has no lines, it is the row. Blank lines are not rows.

    Raises `WrongFile` if the file cannot be read or lacks the columns.
    """

    def __init__(self, path: Path, zone: ZoneInfo | None, rows_max: int | None = None) -> None:
        self.path = path
        self.trips = 0
        """Well-formed rows so far."""
        self.malformed = 0
        """Malformed rows so far; the first `MALFORMED_NAMED_MAX` are in `malformed_named`."""
        self.malformed_named: list[MalformedRow] = []
        self._zone = zone
        self._rows_max = rows_max
        with _wrong_if_unreadable(path):
            self._source = _open(path)

    @property
    def rows(self) -> int:
        """Rows read so far."""
        return self.trips + self.malformed

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The trips in order of the file, at most `BATCH_TRIPS` a batch.

        Raises `InvalidInput` at the first time without an offset if no zone was
        named, and `WrongFile` if the file breaks off.
        """
        trips: list[tuple[int, int, int, int | None, int | None]] = []
        with _wrong_if_unreadable(self.path):
            for line, raw in islice(self._source.rows(), self._rows_max):
                try:
                    trips.append(self._read(line, raw))
                except _Malformed as error:
                    self._name(MalformedRow(line, str(error)))
                    continue
                self.trips += 1
                if len(trips) == BATCH_TRIPS:
                    yield _batch(trips)
                    trips.clear()
        if trips:
            yield _batch(trips)

    def _name(self, row: MalformedRow) -> None:
        self.malformed += 1
        if self.malformed <= MALFORMED_NAMED_MAX:
            self.malformed_named.append(row)

    def _read(self, line: int, raw: Any) -> tuple[int, int, int, int | None, int | None]:
        start, end, pickup, dropoff = self._source.fields(raw)
        names = self._source.columns
        start_us = self._instant(start, names.start)
        end_us = self._instant(end, names.end)
        if end_us < start_us:
            raise _Malformed(f"{names.end}: {end} lies before the start, {start}")
        return line, start_us, end_us, _place(pickup, names.pickup), _place(dropoff, names.dropoff)

    def _instant(self, value: datetime | str | None, column: str) -> int:
        """Microseconds since 1970 in UTC of a time in the file."""
        if not value:
            raise _Malformed(f"{column}: there is no value")
        time = _parse(value, column) if isinstance(value, str) else value
        if time.tzinfo is None:
            time = self._with_zone(time, column)
        try:
            return microseconds(time.astimezone(UTC))
        except OverflowError:
            raise _Malformed(f"{column}: {_shown(value)} lies outside the calendar") from None

    def _with_zone(self, time: datetime, column: str) -> datetime:
        if self._zone is None:
            raise InvalidInput(
                f"The times in {self.path.name} carry no offset from UTC. Name the zone"
                " that they are in, such as America/New_York.",
                field="--zone",
            )
        time = time.replace(tzinfo=self._zone, fold=0)
        # The two readings of a time differ only where clocks change (PEP 495):
        # the first is the later instant exactly where the time was skipped.
        before, after = time.utcoffset(), time.replace(fold=1).utcoffset()
        if before is not None and after is not None and before < after:
            raise _Malformed(
                f"{column}: {time.replace(tzinfo=None)} was skipped by the clocks of {self._zone}"
            )
        return time


def in_order(file: TripFile, order: Order, seed: int = 0) -> tuple[int | None, Iterator[Trip]]:
    """How many trips there are (None: not known before the end), and the trips in `order`.

    The order of the file streams. The others read all of it first and hold
    `BYTES_A_TRIP` bytes a trip, 8 for its place in the order, and as much again
    while they sort. Trips that start together keep the order of the file.
    `seed` decides the shuffled order.
    """
    if order is Order.FILE:
        batches = file.batches()
        first = list(islice(batches, 1))  # now, so that a wrong file is known before it is used
        return None, _trips(chain(first, batches))
    table = pa.Table.from_batches(file.batches(), _SCHEMA).combine_chunks()
    if order is Order.START:
        places = pc.sort_indices(table["start_us"])
    else:
        places = pc.sort_indices(pc.random(len(table), initializer=seed))
    pieces = (
        table.take(places.slice(first, BATCH_TRIPS)) for first in range(0, len(table), BATCH_TRIPS)
    )
    return len(table), _trips(pieces)


def most_at_once(trips: Iterable[Trip]) -> int:
    """How many trips run at the same moment at most: the drivers that they need.

    Travel between trips takes no time here, and empty trips take no driver.
    O(n log n) for n trips.
    """
    changes = sorted(
        change
        for trip in trips
        if trip.start < trip.end
        for change in ((trip.start, 1), (trip.end, -1))  # at a tie, -1 sorts first
    )
    running = most = 0
    for _, change in changes:
        running += change
        most = max(most, running)
    return most


class _Malformed(Exception):
    """A row breaks the rule that the message names."""


class _Columns(NamedTuple):
    """The columns that are read, as the file spells them; a place is "" where it is missing."""

    start: str
    end: str
    pickup: str
    dropoff: str


type _Fields = tuple[datetime | str | None, datetime | str | None, Any, Any]


class _Source(Protocol):
    """One format: its rows, each with its line, and the fields of a row."""

    columns: _Columns

    def rows(self) -> Iterator[tuple[int, Any]]: ...

    def fields(self, raw: Any) -> _Fields:
        """Start, end and places of a row. Raises `_Malformed`."""
        ...


class _Csv:
    """A row is a line, whatever its quotes say: one stray quote must not swallow its neighbours.

    The TLC has no field that spans lines.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._text() as file:
            header = file.readline(_HEADER_CHARS_MAX)
        if not header:
            raise WrongFile(f"{path} is empty. {_needed()}")
        if len(header) == _HEADER_CHARS_MAX or "\0" in header or not _is_unicode(header):
            raise WrongFile(f"{path} is neither CSV in UTF-8 nor Parquet. {_needed()}")
        try:
            names = [name.strip() for name in _cells(header)]
        except _Malformed as error:
            raise WrongFile(f"{path}: in the header, {error}. {_needed()}") from None
        self.columns = _columns_in(names, path)
        self._width = len(names)
        self._indices = [names.index(each) if each else None for each in self.columns]

    def rows(self) -> Iterator[tuple[int, str]]:
        with self._text() as file:
            for line, text in enumerate(file, start=1):
                if line > 1 and not text.isspace():
                    yield line, text

    def _text(self) -> TextIO:
        # Bytes that are not UTF-8 must spoil their own row only, hence surrogates.
        return self._path.open(encoding="utf-8-sig", errors="surrogateescape")

    def fields(self, raw: str) -> _Fields:
        if not _is_unicode(raw):
            raise _Malformed("the row is not UTF-8")
        cells = _cells(raw)
        # Green files of 2013 to 2016 end each row with commas that the header lacks.
        if len(cells) < self._width or any(cells[self._width :]):
            raise _Malformed(f"the row has {len(cells)} fields, the header {self._width}")
        start, end, pickup, dropoff = (
            None if index is None else cells[index].strip() for index in self._indices
        )
        return start, end, pickup, dropoff


class _Parquet:
    def __init__(self, path: Path) -> None:
        self._path = path
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
        self.columns = _columns_in(schema.names, path)
        for name in self.columns[:2]:
            if not pa.types.is_timestamp(schema.field(name).type):
                raise WrongFile(
                    f"{path}: the column {name} holds {schema.field(name).type}, not timestamps."
                )
        self._types = [schema.field(name).type for name in self.columns[:2]]

    def rows(self) -> Iterator[tuple[int, tuple[Any, ...]]]:
        wanted = [name for name in self.columns if name]
        first = 1
        with pq.ParquetFile(self._path) as file:
            for batch in file.iter_batches(BATCH_TRIPS, columns=wanted):
                absent = [None] * len(batch)
                columns = [
                    _plain(batch.column(name)).to_pylist() if name else absent
                    for name in self.columns
                ]
                yield from enumerate(zip(*columns, strict=True), start=first)
                first += len(batch)

    def fields(self, raw: tuple[Any, ...]) -> _Fields:
        start, end, pickup, dropoff = raw
        names, types = self.columns, self._types
        return (
            _time_of(start, types[0], names.start),
            _time_of(end, types[1], names.end),
            pickup,
            dropoff,
        )


def _open(path: Path) -> _Source:
    with path.open("rb") as file:
        is_parquet = file.read(4) == b"PAR1"
    return _Parquet(path) if is_parquet else _Csv(path)


@contextmanager
def _wrong_if_unreadable(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise WrongFile(f"{path} cannot be read: {reason}.") from error


def _columns_in(names: Sequence[str], path: Path) -> _Columns:
    spelt = {name.lower(): name for name in reversed(names)}
    for start, end in TIME_COLUMNS:
        if start.lower() in spelt and end.lower() in spelt:
            places = (spelt.get(each.lower(), "") for each in PLACE_COLUMNS)
            return _Columns(spelt[start.lower()], spelt[end.lower()], *places)
    found = ", ".join(name or '""' for name in names[:_COLUMNS_SHOWN_MAX])
    more = ", …" if len(names) > _COLUMNS_SHOWN_MAX else ""
    raise WrongFile(
        f"{path} lacks the columns of a file of trips. {_needed()} It has {found}{more}."
    )


def _needed() -> str:
    pairs = "; or ".join(" and ".join(pair) for pair in TIME_COLUMNS)
    return f"It needs, in a header, the columns {pairs} (in any case of letters)."


def _cells(line: str) -> list[str]:
    line = line.rstrip("\n")
    if '"' not in line:
        return line.split(",")
    try:
        return next(csv.reader([line], strict=True))
    except csv.Error as error:
        raise _Malformed(f"the row is not CSV: {error}") from None


def _is_unicode(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _parse(text: str, column: str) -> datetime:
    try:
        if len(text) >= _SHORTEST_TIME:  # not a date alone
            return datetime.fromisoformat(text)
    except ValueError:
        pass
    raise _Malformed(f"{column}: {_shown(text)} is not a time such as 2019-03-23 20:21:09")


def _place(value: Any, column: str) -> int | None:
    if value is None or value == "":
        return None
    try:
        number = float(value)  # columns with gaps hold floats, and NaN in the gaps
        if math.isnan(number):
            return None
        if number.is_integer() and 0 <= number <= _PLACE_MAX:
            return int(number)
    except (ValueError, TypeError, OverflowError):
        pass
    raise _Malformed(f"{column}: {_shown(value)} is not the number of a taxi zone")


def _plain(column: Any) -> Any:
    """Timestamps as integers, since Arrow holds instants that Python's calendar does not."""
    return column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column


_US_A_UNIT = {"s": 1_000_000, "ms": 1_000, "us": 1}


def _time_of(value: int | None, kind: Any, column: str) -> datetime | None:
    if value is None:
        return None
    value_us = value // 1_000 if kind.unit == "ns" else value * _US_A_UNIT[kind.unit]
    try:
        instant = from_microseconds(value_us)
    except OverflowError:
        raise _Malformed(f"{column}: the time lies outside the calendar") from None
    return instant if kind.tz else instant.replace(tzinfo=None)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARS_MAX else f"{text[:_SHOWN_CHARS_MAX]}…"


def _batch(trips: list[tuple[int, int, int, int | None, int | None]]) -> pa.RecordBatch:
    columns = zip(*trips, strict=True)
    return pa.record_batch(
        [pa.array(column, each.type) for column, each in zip(columns, _SCHEMA, strict=True)],
        schema=_SCHEMA,
    )


def _trips(batches: Iterable[pa.RecordBatch | pa.Table]) -> Iterator[Trip]:
    for batch in batches:
        columns = (column.to_pylist() for column in batch.columns)
        for line, start_us, end_us, pickup, dropoff in zip(*columns, strict=True):
            start, end = from_microseconds(start_us), from_microseconds(end_us)
            yield Trip(line, start, end, pickup, dropoff)
