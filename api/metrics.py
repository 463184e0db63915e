"""What the service counts, beside what Litestar's own middleware does for each route."""

import asyncio
import os
from collections.abc import Awaitable, Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import Context
from http import HTTPStatus
from pathlib import Path
from typing import Any, override

import msgspec
from litestar import Response
from litestar.plugins.prometheus import PrometheusConfig
from litestar.types import Scope
from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.multiprocess import mark_process_dead

from api.bodies.problems import Problem
from api.problems import slug_of
from api.tracing import Tracing
from booking.errors import TaxiError, Unavailable
from booking.overrun import Remedy
from booking.postgres.follower import Follower
from booking.postgres.ledger import PostgresLedger
from booking.postgres.observers import Observer
from booking.postgres.overruns import Overrun

_INTERVAL_S = 1.0

REQUESTS = PrometheusConfig(app_name="taxi", prefix="taxi", group_path=True)
"""Requests by route, method and status, and their duration."""

_bookings = Counter(
    "taxi_bookings", "Answers to POST /bookings by outcome: booked, or why not.", ["outcome"]
)
_turned_away = Counter(
    "taxi_turned_away",
    "Answers with 503, by reason: too much to do, or a database that does not answer.",
    ["reason"],
)
_ran_again = Counter(
    "taxi_transactions_run_again",
    "Transactions that collided with others and were run once more, by SQLSTATE.",
    ["sqlstate"],
)
_group_size = Histogram(
    "taxi_group_size",
    "Bookings that were written together by one statement.",
    buckets=(1, 2, 4, 8, 16, 32, 64, 128),
)
_expired = Counter("taxi_holds_expired", "Holds that lapsed, and whose time the sweep gave back.")
_overruns = Counter("taxi_overruns", "Trips that were given a new predicted end.")
_moved = Counter(
    "taxi_bookings_moved", "Bookings that a late trip has moved, by remedy.", ["remedy"]
)
for _remedy in Remedy:
    _moved.labels(_remedy)  # seen before the first one, so that a rate can be told
_index_age = Gauge(
    "taxi_index_age_seconds",
    "How old the in-memory index is; the oldest of all processes.",
    multiprocess_mode="livemax",
)
_in_use = Gauge(
    "taxi_connections_in_use", "Database connections at work.", multiprocess_mode="livesum"
)
_waiting = Gauge(
    "taxi_requests_waiting",
    "Requests that wait for their turn at the database.",
    multiprocess_mode="livesum",
)
_outbox_lag = Gauge(
    "taxi_outbox_lag_seconds",
    "How long the oldest event that a webhook is still owed has been waiting.",
    multiprocess_mode="livemax",
)


async def count_booking[R: Response[Any]](answering: Awaitable[R]) -> R:
    """Await the answer to one request to book, and count how it came out."""
    try:
        response = await answering
    except TaxiError as error:
        _bookings.labels(slug_of(type(error))).inc()
        raise
    booked = response.status_code == HTTPStatus.CREATED
    _bookings.labels("booked" if booked else _slug_in(response.content)).inc()
    return response


async def count_unavailable(error: Exception, _scope: Scope) -> None:
    """Count an error that a handler raised, if it is answered with 503."""
    if isinstance(error, Unavailable):
        count_turned_away(error)


def count_turned_away(error: TaxiError) -> None:
    """Count a request that is answered with 503."""
    _turned_away.labels(slug_of(type(error))).inc()


def count_expired(holds: int) -> None:
    """Count holds that a sweep let expire."""
    _expired.inc(holds)


def count_overrun(overrun: Overrun) -> None:
    """Count a late trip, and what was done about each booking behind it."""
    _overruns.inc()
    for each in overrun.moved:
        _moved.labels(each.remedy).inc()


class Counting(Observer):
    """Counts what happens at the database, and lets whoever traces know of it."""

    def __init__(self, tracing: Tracing | None = None) -> None:
        self._tracing = tracing

    @override
    def ran_again(self, sqlstate: str) -> None:
        _ran_again.labels(sqlstate).inc()

    @override
    def grouped(self, origins: Sequence[Context]) -> AbstractContextManager[None]:
        _group_size.observe(len(origins))
        return nullcontext() if self._tracing is None else self._tracing.group(origins)


def _slug_in(problem: bytes) -> str:
    return msgspec.json.decode(problem, type=Problem).type.rpartition("/")[2]


def note_outbox_lag(lag_s: float) -> None:
    """Say how long the oldest event that a webhook is still owed has been waiting."""
    _outbox_lag.set(lag_s)


async def watch(ledger: PostgresLedger, follower: Follower) -> None:
    """Keep the gauges up to date until cancelled."""
    _forget_dead_workers()
    while True:
        _index_age.set(follower.lag_s)
        _in_use.set(ledger.database.in_use)
        _waiting.set(ledger.waiting)
        await asyncio.sleep(_INTERVAL_S)


def _forget_dead_workers() -> None:
    """Drop the gauges of workers that were killed; whoever replaces one comes by here."""
    shared = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    for file in Path(shared).glob("gauge_live*.db") if shared else ():
        pid = int(file.stem.rpartition("_")[2])
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            mark_process_dead(pid)  # type: ignore[no-untyped-call]  # of the library
