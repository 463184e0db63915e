"""What the service counts, beside what Litestar's own middleware does for each route."""

import asyncio
import os
from collections.abc import Awaitable
from http import HTTPStatus
from pathlib import Path
from typing import Any

import msgspec
from litestar import Response
from litestar.plugins.prometheus import PrometheusConfig
from prometheus_client import Counter, Gauge
from prometheus_client.multiprocess import mark_process_dead

from api.problems import slug_of
from api.structs import Problem
from booking.errors import TaxiError
from booking.postgres.follower import Follower
from booking.postgres.ledger import PostgresLedger

_INTERVAL_S = 1.0

REQUESTS = PrometheusConfig(app_name="taxi", prefix="taxi", group_path=True)
"""Requests by route, method and status, and their duration."""

_bookings = Counter(
    "taxi_bookings", "Answers to POST /bookings by outcome: booked, or why not.", ["outcome"]
)
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


def _slug_in(problem: bytes) -> str:
    return msgspec.json.decode(problem, type=Problem).type.rpartition("/")[2]


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
