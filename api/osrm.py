"""`Osrm`: travel times along the road, from an OSRM server, for as long as it answers.

See https://project-osrm.org/docs/: the table service, version 1. OSRM knows no hour
of the day, so `departing` matters to the fallback alone.
"""

import asyncio
import contextlib
import itertools
import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from http import HTTPStatus
from typing import Annotated, Literal, Self

import httpx
import msgspec

from booking.errors import InvalidInput
from booking.places import Place
from booking.travel import Departing, Estimate, Source, TravelTimes, departures

logger = logging.getLogger(__name__)

_PAIRS_MAX = 100
"""Pairs a request: `osrm-routed` answers up to 100 x 100 cells unless told otherwise."""
_SNAP_M_MAX = 1_000
"""OSRM moves a place onto the nearest road it knows, however far: Paris onto the edge of
a map of Berlin. Farther than this, the answer is about somewhere else."""
_DURATION_S_MAX = 30 * 24 * 3600
_Duration = Annotated[float, msgspec.Meta(ge=0, le=_DURATION_S_MAX)]


class _Waypoint(msgspec.Struct):
    distance: Annotated[float, msgspec.Meta(ge=0)]
    """Metres from the place asked for to the one that was taken."""


class _Table(msgspec.Struct):
    """What we need of a reply; `durations[i][j]` leads from source i to destination j."""

    code: Literal["Ok"]
    sources: list[_Waypoint]
    destinations: list[_Waypoint]
    durations: list[list[_Duration | None]]

    def has_shape(self, rows: int, columns: int) -> bool:
        """Whether it has so many rows and columns, in each of its parts."""
        return (
            len(self.sources) == rows
            and len(self.destinations) == columns
            and [len(row) for row in self.durations] == [columns] * rows
        )

    def duration_s(self, source: int, destination: int) -> int | None:
        """Seconds, rounded up; None if there is no road, or it leads from or to elsewhere."""
        ends = self.sources[source], self.destinations[destination]
        duration_s = self.durations[source][destination]
        if duration_s is None or any(end.distance > _SNAP_M_MAX for end in ends):
            return None
        return math.ceil(duration_s)


class NoTable(Exception):
    """The reply is no table of the size that was asked for."""


class _Circuit:
    """Whether a server is worth asking: not for `cooldown_s` after `failures_max` in a row.

    Then one request tries, and the others wait for another `cooldown_s` to see
    what becomes of it.
    """

    def __init__(self, failures_max: int, cooldown_s: float, clock: Callable[[], float]) -> None:
        self._failures_max = failures_max
        self._cooldown_s = cooldown_s
        self._clock = clock
        self._failures = 0
        self._closed_again_at_s = -math.inf

    def may_ask(self) -> bool:
        if self._failures < self._failures_max:
            return True
        if self._clock() < self._closed_again_at_s:
            return False
        self._closed_again_at_s = self._clock() + self._cooldown_s
        return True

    def succeeded(self) -> None:
        self._failures = 0

    def failed(self) -> None:
        self._failures += 1
        if self._failures >= self._failures_max:
            self._closed_again_at_s = self._clock() + self._cooldown_s


class Osrm:
    """Asks the OSRM server at `url` for travel times by car, and `fallback` when it has none.

    It never fails and never takes longer than `timeout_s` and the fallback: if
    the server is away, slow, wrong or without a road between two places, the
    fallback answers, and `Estimate.source` says so. A server that failed
    `failures_max` times in a row is left alone for `cooldown_s` of `clock`.

    Used as a context manager, as it keeps connections open. Raises
    `InvalidInput` for a `url` that is none.
    """

    def __init__(
        self,
        url: str,
        fallback: TravelTimes,
        *,
        timeout_s: float = 1.0,
        failures_max: int = 3,
        cooldown_s: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = httpx.AsyncClient(base_url=_checked(url), trust_env=False, timeout=timeout_s)
        self._fallback = fallback
        self._timeout_s = timeout_s
        self._circuit = _Circuit(failures_max, cooldown_s, clock)

    async def __aenter__(self) -> Self:
        await self._client.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections that are kept."""
        await self._client.aclose()

    async def between(
        self, pairs: Sequence[tuple[Place, Place]], departing: Departing
    ) -> list[Estimate]:
        """See `TravelTimes.between`."""
        leaving = departures(departing, len(pairs))
        durations_s = await self._durations_s(pairs)
        left = [number for number, duration_s in enumerate(durations_s) if duration_s is None]
        others = iter(
            await self._fallback.between(
                [pairs[number] for number in left], [leaving[number] for number in left]
            )
            if left
            else ()
        )
        return [
            next(others) if duration_s is None else Estimate(duration_s, Source.OSRM)
            for duration_s in durations_s
        ]

    async def _durations_s(self, pairs: Sequence[tuple[Place, Place]]) -> list[int | None]:
        """Seconds for each pair; None where the server did not say."""
        found: list[int | None] = []
        if pairs and self._circuit.may_ask():
            try:
                # httpx limits the wait for each piece of an answer, not for all of it.
                async with asyncio.timeout(self._timeout_s):
                    for some in itertools.batched(pairs, _PAIRS_MAX):
                        found += await self._ask(some)
            except (httpx.HTTPError, TimeoutError, NoTable) as error:
                self._circuit.failed()
                # Not the message: it holds the address, and so where people are.
                logger.warning("OSRM gave no usable answer: %s", type(error).__name__)
            else:
                self._circuit.succeeded()
        return found + [None] * (len(pairs) - len(found))

    async def _ask(self, pairs: Sequence[tuple[Place, Place]]) -> list[int | None]:
        """As `_durations_s`, in one request; raises whatever goes wrong."""
        rows = _numbered(start for start, _ in pairs)
        columns = _numbered(end for _, end in pairs)
        response = await self._client.get(_table_path(list(rows), list(columns)))
        if response.status_code == HTTPStatus.BAD_REQUEST:
            # The server is well, but one place that it cannot take fails the whole table.
            return [None] * len(pairs)
        response.raise_for_status()
        table = _read(response.content, len(rows), len(columns))
        return [table.duration_s(rows[start], columns[end]) for start, end in pairs]


def _checked(url: str) -> httpx.URL:
    with contextlib.suppress(httpx.InvalidURL):
        parsed = httpx.URL(url)
        if parsed.scheme in {"http", "https"} and parsed.host:
            return parsed
    raise InvalidInput("It must be the http address of an OSRM server.", field="url")


def _read(content: bytes, rows: int, columns: int) -> _Table:
    """The table in a reply; `NoTable` if there is none of so many rows and columns."""
    try:
        table = msgspec.json.decode(content, type=_Table)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise NoTable from error
    if not table.has_shape(rows, columns):
        raise NoTable
    return table


def _numbered(places: Iterable[Place]) -> dict[Place, int]:
    """Each place once, in order of first appearance, with its number from 0."""
    return {place: number for number, place in enumerate(dict.fromkeys(places))}


def _table_path(sources: Sequence[Place], destinations: Sequence[Place]) -> str:
    # A place that is both is named twice: a table of a single coordinate is refused.
    places = (*sources, *destinations)
    coordinates = ";".join(f"{at.longitude_deg:.6f},{at.latitude_deg:.6f}" for at in places)
    numbers = [str(number) for number in range(len(places))]
    return (
        f"table/v1/driving/{coordinates}?annotations=duration&generate_hints=false"
        f"&sources={';'.join(numbers[: len(sources)])}"
        f"&destinations={';'.join(numbers[len(sources) :])}"
    )
