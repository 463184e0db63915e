"""Reads how far each trip of a TLC file went: what could be known of it before it began.

The column is `trip_distance`, in any case of letters, in miles. Files of for-hire
vehicles do not have it. Distances go by the line of the trip, as in
`loadtest.trips.files`, which says everything else about a trip.
"""

import csv
import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from loadtest.trips.files import WrongFile

COLUMN = "trip_distance"


def distances(path: Path, rows_max: int | None = None) -> dict[int, float]:
    """The distance of each trip that has one greater than 0, by its line.

    `path` is a file that `TripFile` has accepted. Holds some 100 bytes a trip. Raises
    `WrongFile` if it cannot be read all the same.
    """
    try:
        with path.open("rb") as file:
            is_parquet = file.read(4) == b"PAR1"
        cells = _parquet(path) if is_parquet else _csv(path)
        return {
            line: distance
            for line, cell in islice(cells, rows_max)
            if (distance := _distance(cell)) is not None
        }
    except (OSError, pa.ArrowException) as error:
        raise WrongFile(f"{path} cannot be read for its distances: {error}.") from error


def _parquet(path: Path) -> Iterator[tuple[int, Any]]:
    with pq.ParquetFile(path) as file:
        names = [name for name in file.schema_arrow.names if name.lower() == COLUMN]
        first = 1
        for batch in file.iter_batches(columns=names[:1]) if names else ():
            yield from enumerate(batch.column(0).to_pylist(), start=first)
            first += len(batch)


def _csv(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        names = [name.strip().lower() for name in _cells(file.readline())]
        if COLUMN not in names:
            return
        place = names.index(COLUMN)
        for line, text in enumerate(file, start=2):
            if not text.isspace():
                cells = _cells(text)
                yield line, cells[place] if place < len(cells) else None


def _cells(text: str) -> list[str]:
    # Each line is a row of its own: a stray quote spoils no other.
    return next(csv.reader([text]), [])


def _distance(cell: Any) -> float | None:
    try:
        distance = float(cell)
    except (TypeError, ValueError):
        return None
    return distance if 0 < distance < math.inf else None
