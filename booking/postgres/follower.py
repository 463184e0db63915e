"""`Follower`: keeps a `FleetIndex` close behind the database, whoever writes there.

It loads what is active once, and then asks again and again what has changed.
Every row carries the transaction that wrote it last (`changed_in`), and every
read is made in one snapshot. What the next read must fetch is then exact:
whatever is visible in its snapshot and was not in the one before.

Nothing can be missed. A transaction that was not visible in the last snapshot
either had not ended, and its number is not below that snapshot's `xmin`, or had
not begun, and its number is higher still. So `changed_in >= xmin` finds every
candidate by the index, however long a transaction stayed open, and
`pg_visible_in_snapshot` leaves out those that were read before. The highest
number seen so far would be no such bound: numbers are given when a transaction
first writes, not when it commits.

Two snapshots that are equal show the same rows, so while nobody commits
anything a poll is one short statement.
"""

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import BigInteger, Row, Select, Text, any_, bindparam, literal, select, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql.elements import CollectionAggregate

from booking.bookings import LONGEST, Booking
from booking.drivers import Driver
from booking.errors import Unavailable
from booking.fleet_index import FleetIndex
from booking.postgres.database import Database
from booking.postgres.tables import active, begins, bookings, drivers, predicted_ends
from booking.time_window import TimeWindow

_log = logging.getLogger(__name__)

KEEP = timedelta(hours=24)
"""How long a booking stays in memory after its predicted end, if it is still active then."""

_CHUNK_ROWS = 500
"""Rows taken in at a stretch; between two chunks the event loop serves requests."""

_RETRY_S_MAX = 2.0

_DRIVERS = select(drivers.c.id, drivers.c.fleet, drivers.c.retired_at, drivers.c.has_terms)
_BOOKINGS = select(
    bookings.c.id, bookings.c.driver_id, active.label("holds"), begins, predicted_ends
)

_Columns = tuple[Any, ...]
_Row = Row[*_Columns]


class Follower:
    """Reads what changed every `poll_interval_s` seconds and tells the index.

    Give it a `Database` of its own with one connection: a poll that queues
    behind requests makes memory stale just when it is needed most. Memory is
    `fresh` while the last read that succeeded began less than `fresh_s` seconds
    ago. `now` is the clock that says what is past.
    """

    def __init__(
        self,
        database: Database,
        index: FleetIndex,
        *,
        poll_interval_s: float = 0.1,
        fresh_s: float = 2.0,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.index = index
        self.as_of = datetime.min.replace(tzinfo=UTC)
        """When the last read that succeeded began: everything committed by then is known."""
        self.database = database
        self._poll_interval_s = poll_interval_s
        self._fresh_s = fresh_s
        self._now = now
        self._mark: _Mark | None = None
        self._distrusted = False
        self._read_began_s = -math.inf
        self._noted_bookings = _Notes()
        self._noted_drivers = _Notes()
        self._with_terms: dict[int, str] = {}
        self._fleets_with_terms = Counter[str]()
        self.loaded = asyncio.Event()
        """Set once the index holds what the first read found."""

    @property
    def lag_s(self) -> float:
        """Seconds since the last read that succeeded began; infinite before the first."""
        return time.monotonic() - self._read_began_s

    @property
    def fresh(self) -> bool:
        """Whether the index is complete and young enough to answer from."""
        complete = self._mark is not None and not self._distrusted
        return complete and self.lag_s < self._fresh_s

    def has_terms(self, driver_id: int) -> bool:
        """Whether more than free time is asked of who books this driver, as far as is known."""
        return driver_id in self._with_terms

    def fleet_has_terms(self, fleet: str) -> bool:
        """Whether that is so of anybody in the fleet. The index knows bookings, not terms."""
        return self._fleets_with_terms[fleet] > 0

    def _note_terms(self, driver_id: int, fleet: str | None) -> None:
        before = self._with_terms.pop(driver_id, None)
        if before is not None:
            self._fleets_with_terms[before] -= 1
        if fleet is not None:
            self._with_terms[driver_id] = fleet
            self._fleets_with_terms[fleet] += 1

    def note(self, booking: Booking) -> None:
        """Tell the index of a booking this process has just recorded or changed.

        It counts until the next read, which confirms or corrects it.
        """
        self._noted_bookings.add(booking.id)
        window = booking.window if booking.state.active else None
        self._tell(self.index.apply_booking, booking.id, booking.driver_id, window)

    def note_driver(self, driver: Driver) -> None:
        """Tell the index of a driver this process has just added or changed; see `note`."""
        self._noted_drivers.add(driver.id)
        fleet = driver.fleet if driver.retired_at is None else None
        self._note_terms(driver.id, fleet if driver.has_terms else None)
        self._tell(self.index.apply_driver, driver.id, fleet)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Follow in the background until the block is left."""
        following = asyncio.create_task(self._follow())
        try:
            yield
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)

    async def catch_up(self) -> None:
        """Read once all that is committed by now. Raises `Unavailable` if the database is away."""
        began_s, as_of = time.monotonic(), self._now()
        self.index.forget_before(as_of - KEEP)
        self._mark = await self.database.transact(
            self._read, isolation="REPEATABLE READ", read_only=True
        )
        self._noted_bookings.confirm()
        self._noted_drivers.confirm()
        self._read_began_s, self.as_of = began_s, as_of
        self.loaded.set()

    async def _follow(self) -> None:
        failures = 0
        while True:
            try:
                await self.catch_up()
            except Exception as error:  # noqa: BLE001  # memory only advises: no fault of it may end the service
                self._explain(error, first=failures == 0)
                failures += 1
            else:
                failures = 0
            # Bounded in the exponent too: a float overflows after a night without a database.
            wait_s = self._poll_interval_s * 2 ** min(failures, 10)
            await asyncio.sleep(min(wait_s, max(_RETRY_S_MAX, self._poll_interval_s)))

    def _tell[*Ts](self, apply: Callable[[*Ts], None], *word: *Ts) -> None:
        try:
            apply(*word)
        except Exception as error:  # noqa: BLE001  # what was recorded is so, whatever memory makes of it
            self._explain(error, first=True)

    def _explain(self, error: Exception, *, first: bool) -> None:
        if not isinstance(error, Unavailable):
            # The fault is ours, and what it left in the index is anybody's guess.
            self._distrusted = True
            _log.error("The index failed and is loaded anew.", exc_info=error)
        elif first:
            _log.warning("The index cannot be refreshed (%s); it tries again.", error)

    async def _read(self, connection: AsyncConnection) -> "_Mark":
        """Tell the index what has changed; answer how far this read saw.

        `Database.transact` may run it again, though the index has been told by
        then: saying it again changes nothing, and the last word counts. Nor is
        anything lost when it fails for good, as the mark does not move until the
        transaction has ended well (and is forgotten before everything is loaded
        anew), so the next read asks for the same and more. A note stays, to be
        confirmed by a read that succeeds.
        """
        noted_drivers = self._noted_drivers.begin_read()
        noted_bookings = self._noted_bookings.begin_read()
        last, mark = self._mark, await _mark(connection)
        if last is None or self._distrusted or mark.contradicts(last):
            self._mark, self._distrusted = None, False
            self.index.clear()
            self._with_terms.clear()
            self._fleets_with_terms.clear()
            await self._take(connection, *_everything(self.index.horizon))
        elif mark != last:
            await self._take(
                connection, _changed(_DRIVERS, last, mark), _changed(_BOOKINGS, last, mark)
            )
        # Last, as a note may be older than what was read before it arrived.
        if noted_drivers or noted_bookings:
            await self._take(
                connection,
                _DRIVERS.where(drivers.c.id == _any_of(noted_drivers)),
                _BOOKINGS.where(bookings.c.id == _any_of(noted_bookings)),
            )
        return mark

    async def _take(
        self,
        connection: AsyncConnection,
        of_drivers: Select[*_Columns],
        of_bookings: Select[*_Columns],
    ) -> None:
        await _each(connection, of_drivers, self._take_driver)
        await _each(connection, of_bookings, self._take_booking)

    def _take_driver(self, row: _Row) -> None:
        id_, fleet, retired_at, has_terms = row
        if not self._noted_drivers.since_read_began(id_):
            works_for = fleet if retired_at is None else None
            self.index.apply_driver(id_, works_for)
            self._note_terms(id_, works_for if has_terms else None)

    def _take_booking(self, row: _Row) -> None:
        id_, driver_id, holds, start, end = row
        if not self._noted_bookings.since_read_began(id_):
            self.index.apply_booking(id_, driver_id, TimeWindow(start, end) if holds else None)


class _Mark(NamedTuple):
    """How far a read saw: which server answered, and with which snapshot."""

    server_started_at: datetime
    snapshot: str  # xmin:xmax:xip,xip,… as PostgreSQL writes it

    @property
    def xmin(self) -> int:
        """Every transaction with a lower number had ended."""
        return int(self.snapshot.split(":")[0])

    @property
    def xmax(self) -> int:
        """No transaction with this number or a higher one had ended."""
        return int(self.snapshot.split(":")[1])

    def contradicts(self, earlier: "_Mark") -> bool:
        """Whether the database is no continuation of what was read before.

        After a restart, a failover or a restored backup, transactions that were
        read may never have happened, and their numbers be given anew.
        """
        return self.server_started_at != earlier.server_started_at or self.xmax < earlier.xmax


class _Notes:
    """The ids that this process spoke of itself, each with the read that was the last to begin.

    A row that is read for an id noted *since* that read began may be older than
    the note, or newer; nobody knows. It is left out, and the next read asks for
    that id. A note made before a read began is about a transaction that the
    read sees, so the row counts.
    """

    def __init__(self) -> None:
        self._reads_begun = 0
        self._noted: dict[int, int] = {}

    def add(self, id_: int) -> None:
        self._noted[id_] = self._reads_begun

    def begin_read(self) -> list[int]:
        """Begin a read; return what it has to confirm."""
        self._reads_begun += 1
        return list(self._noted)

    def since_read_began(self, id_: int) -> bool:
        return self._noted.get(id_) == self._reads_begun

    def confirm(self) -> None:
        """End a read that succeeded."""
        self._noted = {id_: read for id_, read in self._noted.items() if read == self._reads_begun}


async def _mark(connection: AsyncConnection) -> _Mark:
    found = await connection.execute(
        text("SELECT pg_postmaster_start_time(), pg_current_snapshot()::text")
    )
    return _Mark(*found.one())


def _everything(horizon: datetime) -> tuple[Select[*_Columns], Select[*_Columns]]:
    """The drivers who work, and the bookings that are active and end after `horizon`."""
    return (
        _DRIVERS.where(drivers.c.retired_at.is_(None)),
        # The bound on the start follows from the one on the end, and can use an index.
        _BOOKINGS.where(active, predicted_ends > horizon, begins > horizon - LONGEST),
    )


def _changed(statement: Select[*_Columns], last: _Mark, mark: _Mark) -> Select[*_Columns]:
    """The rows that became visible between two snapshots, of a table with `changed_in`."""
    return statement.where(
        text(
            # The upper bound keeps out rows that came with a dump of another server, whose
            # numbers mean nothing here: they were read when the index was loaded.
            "changed_in >= :xmin AND changed_in < :xmax"
            " AND NOT pg_visible_in_snapshot(changed_in::text::xid8, (:seen)::pg_snapshot)"
        ).bindparams(
            bindparam("xmin", last.xmin, BigInteger),
            bindparam("xmax", mark.xmax, BigInteger),
            bindparam("seen", last.snapshot, Text),
        )
    )


def _any_of(ids: list[int]) -> CollectionAggregate[bool]:
    return any_(literal(ids, ARRAY(BigInteger)))


async def _each(
    connection: AsyncConnection, statement: Select[*_Columns], take: Callable[[_Row], None]
) -> None:
    """Take every row, fetched by the chunk: memory stays small and the event loop free."""
    options = {"yield_per": _CHUNK_ROWS}
    async with connection.stream(statement, execution_options=options) as result:
        async for chunk in result.partitions():
            for row in chunk:
                take(row)
