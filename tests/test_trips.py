import math
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from booking.errors import InvalidInput
from loadtest.trips import files as trips_module
from loadtest.trips.files import (
    MalformedRow,
    Order,
    Trip,
    TripFile,
    WrongFile,
    in_order,
    most_at_once,
)

NEW_YORK = ZoneInfo("America/New_York")
HEADER = "tpep_pickup_datetime,tpep_dropoff_datetime,PULocationID,DOLocationID"
GOOD = "2019-03-04 16:11:55,2019-03-04 16:19:00,239,4"
SAMPLE = Path(__file__).parents[2] / "shared/data/nyc_tlc_2019_03_sample.csv"
needs_sample = pytest.mark.skipif(
    not SAMPLE.exists(), reason=f"real trips are not part of the project; there is no {SAMPLE}"
)

Write = Callable[..., Path]


@pytest.fixture
def csv_of(tmp_path: Path) -> Write:
    def write(*lines: str | bytes, header: str = HEADER) -> Path:
        path = tmp_path / "trips.csv"
        encoded = (line if isinstance(line, bytes) else line.encode() for line in (header, *lines))
        path.write_bytes(b"".join(line + b"\n" for line in encoded))
        return path

    return write


@pytest.fixture
def parquet_of(tmp_path: Path) -> Write:
    def write(**columns: Any) -> Path:
        path = tmp_path / "trips.parquet"
        pq.write_table(pa.table(columns), path)
        return path

    return write


def read(
    path: Path, zone: ZoneInfo | None = NEW_YORK, rows_max: int | None = None
) -> tuple[list[Trip], list[MalformedRow]]:
    file = TripFile(path, zone, rows_max)
    _, trips = in_order(file, Order.FILE)
    found = list(trips)
    assert file.trips == len(found)
    assert file.malformed == len(file.malformed_named)
    return found, file.malformed_named


def instant(text: str) -> datetime:
    return datetime.fromisoformat(text)


@pytest.mark.parametrize(
    "names",
    [
        ("tpep_pickup_datetime", "tpep_dropoff_datetime"),
        ("lpep_pickup_datetime", "Lpep_dropoff_datetime"),
        ("pickup_datetime", "dropOff_datetime"),
        ("Pickup_DateTime", "DROPOFF_DATETIME"),
        (" pickup_datetime", " dropoff_datetime"),  # yellow files of 2014
    ],
)
def test_each_kind_of_file_is_read_by_the_names_of_its_own_columns(
    csv_of: Write, names: tuple[str, str]
) -> None:
    path = csv_of(
        f"B1,{GOOD.rpartition(',')[0]}", header=f"base,{names[0]},{names[1]},pulocationid"
    )
    assert read(path) == (
        [Trip(2, instant("2019-03-04T21:11:55Z"), instant("2019-03-04T21:19:00Z"), 239, None)],
        [],
    )


@pytest.mark.parametrize(
    ("row", "rule"),
    [
        (
            "2019-13-04 16:11:55,2019-03-04 16:19:00,,",
            "tpep_pickup_datetime: '2019-13-04 16:11:55'",
        ),
        ("2019-03-04,2019-03-04 16:19:00,,", "tpep_pickup_datetime: '2019-03-04' is not a time"),
        ("2019-03-04 16:11:55,tomorrow,,", "tpep_dropoff_datetime: 'tomorrow' is not a time"),
        (f"{'9' * 5_000},2019-03-04 16:19:00,,", "tpep_pickup_datetime: '999"),
        (",2019-03-04 16:19:00,,", "tpep_pickup_datetime: there is no value"),
        ("2019-03-04 16:11:55, ,,", "tpep_dropoff_datetime: there is no value"),
        ("2019-03-04 16:19:00,2019-03-04 16:11:55,,", "lies before the start"),
        ("2019-03-04 16:11:55,2019-03-04 16:19:00,239", "the row has 3 fields, the header 4"),
        (f"{GOOD},surplus", "the row has 5 fields, the header 4"),
        (f'"{GOOD}', "the row is not CSV"),
        ("2019-03-04 16:11:55,2019-03-04 16:19:00,Bronx,", "PULocationID: 'Bronx'"),
        ("2019-03-04 16:11:55,2019-03-04 16:19:00,,1.5", "DOLocationID: '1.5'"),
        ("2019-03-04 16:11:55,2019-03-04 16:19:00,,99999999999", "DOLocationID: '99999999999'"),
        ("2019-03-04 16:11:55,2019-03-04 16:19:00,,inf", "DOLocationID: 'inf'"),
        ("0001-01-01 00:00:00+05:00,2019-03-04 16:19:00,,", "lies outside the calendar"),
        (b"2019-03-04 16:11:55,2019-03-04 16:19:00,\xe9,", "the row is not UTF-8"),
        ("2019-03-10 02:30:00,2019-03-10 03:19:00,,", "2019-03-10 02:30:00 was skipped"),
        ("2019-03-10 01:30:00,2019-03-10 02:00:00,,", "2019-03-10 02:00:00 was skipped"),
    ],
)
def test_a_malformed_row_is_named_by_its_line_and_spoils_no_other(
    csv_of: Write, row: str | bytes, rule: str
) -> None:
    found, malformed = read(csv_of(GOOD, "", row, GOOD))
    assert [trip.line for trip in found] == [2, 5]
    ((line, broken),) = malformed
    assert line == 4
    assert rule in broken
    assert len(broken) < 200


def test_malformed_rows_beyond_a_bound_are_counted_and_not_named(
    csv_of: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trips_module, "MALFORMED_NAMED_MAX", 3)
    file = TripFile(csv_of(*["rubbish"] * 5, GOOD), NEW_YORK)
    assert len(list(in_order(file, Order.START)[1])) == 1
    assert (file.rows, file.trips, file.malformed) == (6, 1, 5)
    assert [row.line for row in file.malformed_named] == [2, 3, 4]


def test_empty_trips_and_those_of_days_are_no_malformed_rows(csv_of: Write) -> None:
    rows = (
        "2019-03-04 16:00:00,2019-03-04 16:00:00,,",
        "2019-03-04 16:00:00,2019-03-07 16:00:00,,",
    )
    found, malformed = read(csv_of(*rows))
    assert [trip.end - trip.start for trip in found] == [timedelta(0), timedelta(days=3)]
    assert malformed == []


def test_commas_that_green_files_have_at_the_end_of_a_row_are_no_fields(csv_of: Write) -> None:
    found, malformed = read(csv_of("", f"{GOOD},,"))
    assert [trip.line for trip in found] == [3]
    assert malformed == []


def test_windows_line_ends_a_byte_order_mark_and_quotes_are_read(tmp_path: Path) -> None:
    path = tmp_path / "trips.csv"
    quoted = ",".join(f'"{cell}"' for cell in GOOD.split(","))
    path.write_bytes(f"\ufeff{HEADER}\r\n{quoted}\r\n{GOOD}".encode())
    found, malformed = read(path)
    assert [trip.line for trip in found] == [2, 3]
    assert found[0][1:] == found[1][1:]
    assert malformed == []


def test_times_are_of_the_zone_that_is_named_whatever_the_clocks_do(csv_of: Write) -> None:
    rows = (
        "2019-03-10 01:59:59,2019-03-10 03:00:00,,",  # a second, across the gap
        "2019-11-03 00:30:00,2019-11-03 01:30:00,,",  # the hour repeats: the first pass
        "2019-11-03 01:59:59,2019-11-03 02:00:00,,",  # and a second becomes an hour and a second
    )
    found, _ = read(csv_of(*rows))
    assert [trip.end - trip.start for trip in found] == [
        timedelta(seconds=1),
        timedelta(hours=1),
        timedelta(hours=1, seconds=1),
    ]
    assert found[1].end == instant("2019-11-03T05:30:00Z")


def test_times_with_an_offset_need_no_zone_and_naive_ones_do(csv_of: Write) -> None:
    aware = "2019-03-10 02:30:00-05:00,2019-03-10T07:45:00Z,,"
    assert read(csv_of(aware), zone=None)[0] == read(csv_of(aware))[0]
    with pytest.raises(InvalidInput, match="carry no offset") as caught:
        in_order(TripFile(csv_of(aware, GOOD), None), Order.FILE)
    assert caught.value.field == "--zone"


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_parquet_says_the_same_as_csv(csv_of: Write, parquet_of: Write, unit: str) -> None:
    naive = [datetime(2019, 3, 4, 16, 11, 55), datetime(2019, 3, 4, 16, 19)]  # noqa: DTZ001  # as the TLC has them
    start, end = (pa.array([time], pa.timestamp(unit)) for time in naive)
    path = parquet_of(
        lpep_pickup_datetime=start,
        lpep_dropoff_datetime=end,
        PULocationID=[239.0],
        DOLocationID=[4],
    )
    (from_parquet,), malformed = read(path)
    (from_csv,), _ = read(csv_of(GOOD))
    assert from_parquet == from_csv._replace(line=1)
    assert malformed == []


def test_malformed_rows_of_parquet_are_named_by_their_row(
    parquet_of: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trips_module, "BATCH_TRIPS", 2)  # rows count on from batch to batch
    noon_us, gap_us = 1_551_700_000_000_000, 1_552_185_000_000_000  # 2019-03-10 02:30
    never_us = 2**62
    start = pa.array([noon_us, None, gap_us, never_us, noon_us], pa.timestamp("us"))
    end = pa.array([noon_us, noon_us, gap_us, never_us, None], pa.timestamp("us"))
    path = parquet_of(
        pickup_datetime=start, dropOff_datetime=end, PULocationID=[math.nan, 1, 1, 1, 1]
    )
    found, malformed = read(path)
    assert [(trip.line, trip.pickup_place) for trip in found] == [(1, None)]
    assert [row.line for row in malformed] == [2, 3, 4, 5]
    rules = " | ".join(row.rule for row in malformed)
    assert "pickup_datetime: there is no value | pickup_datetime: 2019-03-10 02:30:00" in rules
    assert "outside the calendar | dropOff_datetime: there is no value" in rules


def test_parquet_with_a_zone_of_its_own_needs_none(parquet_of: Write) -> None:
    kind = pa.timestamp("us", "Asia/Tokyo")
    time = datetime(2019, 3, 4, 16, 11, tzinfo=UTC)
    path = parquet_of(
        pickup_datetime=pa.array([time], kind), dropoff_datetime=pa.array([time], kind)
    )
    (trip,), _ = read(path, zone=None)
    assert trip == (1, time, time, None, None)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"a,b\n1,2\n", "It has a, b."),
        (b"a,tpep_pickup_datetime\n1,2\n", "It has a, tpep_pickup_datetime."),
        (b'"a,b\n1,2\n', "in the header"),
        (HEADER.encode("utf-16"), "neither CSV in UTF-8 nor Parquet"),
        (b"\x1f\x8b\x08\x00\xff\xfe", "neither CSV in UTF-8 nor Parquet"),
        (b"x" * 100_000, "neither CSV in UTF-8 nor Parquet"),
        (b"PAR1 and then nothing of the kind", "cannot be read"),
    ],
)
def test_a_wrong_file_is_one_error_that_says_what_is_needed(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    path = tmp_path / "wrong.csv"
    path.write_bytes(content)
    with pytest.raises(WrongFile) as caught:
        TripFile(path, NEW_YORK)
    assert reason in caught.value.message
    assert "\n" not in caught.value.message
    assert "wrong.csv" in caught.value.message
    if not content.startswith(b"PAR1"):
        assert "tpep_pickup_datetime and tpep_dropoff_datetime" in caught.value.message


def test_what_is_not_there_or_no_file_is_a_wrong_file(tmp_path: Path) -> None:
    with pytest.raises(WrongFile, match="No such file"):
        TripFile(tmp_path / "nothing.csv", NEW_YORK)
    with pytest.raises(WrongFile, match="Is a directory"):
        TripFile(tmp_path, NEW_YORK)


def test_parquet_whose_times_are_none_is_a_wrong_file(parquet_of: Write) -> None:
    path = parquet_of(pickup_datetime=[1, 2], dropoff_datetime=[3, 4])
    with pytest.raises(WrongFile, match="pickup_datetime holds int64, not timestamps"):
        TripFile(path, NEW_YORK)


def test_parquet_that_breaks_off_is_an_error_and_not_the_end(parquet_of: Write) -> None:
    times = pa.array(range(5_000), pa.timestamp("us"))
    path = parquet_of(pickup_datetime=times, dropoff_datetime=times)
    content = path.read_bytes()
    assert len(read(path)[0]) == 5_000
    path.write_bytes(content[:4] + bytes(len(content) // 2) + content[4 + len(content) // 2 :])
    with pytest.raises(WrongFile, match="cannot be read"):
        read(path)


def test_trips_come_in_the_order_that_is_asked_for(csv_of: Write) -> None:
    starts = [5, 3, 9, 3, 1, 7]
    rows = [f"2019-03-04 0{hour}:00:00,2019-03-04 0{hour}:30:00,," for hour in starts]

    def lines(order: Order, seed: int = 0, rows_max: int | None = None) -> list[int]:
        file = TripFile(csv_of(*rows), NEW_YORK, rows_max)
        total, trips = in_order(file, order, seed)
        found = [trip.line for trip in trips]
        assert total in {None, len(found)}
        return found

    assert lines(Order.FILE) == [2, 3, 4, 5, 6, 7]
    assert lines(Order.START) == [6, 3, 5, 2, 7, 4]
    assert lines(Order.START, rows_max=3) == [3, 2, 4]
    shuffled = [lines(Order.SHUFFLED, seed) for seed in range(5)]
    assert shuffled == [lines(Order.SHUFFLED, seed) for seed in range(5)]
    assert len({tuple(order) for order in shuffled}) > 1
    assert all(sorted(order) == [2, 3, 4, 5, 6, 7] for order in shuffled)


def test_a_file_of_no_rows_holds_no_trips(csv_of: Write) -> None:
    for order in Order:
        file = TripFile(csv_of(), NEW_YORK)
        assert list(in_order(file, order)[1]) == []
        assert file.rows == 0


def test_touching_trips_need_one_driver_and_empty_ones_none(csv_of: Write) -> None:
    rows = (
        "2019-03-04 16:00:00,2019-03-04 17:00:00,,",
        "2019-03-04 17:00:00,2019-03-04 18:00:00,,",
        "2019-03-04 16:30:00,2019-03-04 16:30:00,,",
    )
    assert most_at_once(read(csv_of(*rows))[0]) == 1
    overlapping = "2019-03-04 16:59:59,2019-03-04 17:00:01,,"
    assert most_at_once(read(csv_of(*rows, overlapping))[0]) == 2
    assert most_at_once([]) == 0


@needs_sample
def test_the_sample_of_march_2019_holds_what_is_known_of_it() -> None:
    found, malformed = read(SAMPLE)
    assert len(found) == 6_500
    assert malformed == []
    lengths = [trip.end - trip.start for trip in found]
    assert sum(length == timedelta(0) for length in lengths) == 6
    assert sum(length > timedelta(hours=3) for length in lengths) == 23
    assert round(max(lengths) / timedelta(minutes=1), 1) == 1_438.9
    assert most_at_once(found) == 14
    the_clocks_changed = date(2019, 3, 10)
    local = [trip.start.astimezone(NEW_YORK).date() for trip in found]
    assert local.count(the_clocks_changed) == 186
