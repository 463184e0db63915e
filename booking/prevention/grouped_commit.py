"""Grouped commit: requests that arrive while a write is under way are written together. It ships.

Idea
----
Let everyone who asks while a transaction is under way share the next one. A
COMMIT waits for the disk however many rows it carries, and a statement has its
price however many rows it inserts; so write them together, in one statement
with an answer for each.

What happens
------------
1. A request joins those who wait. If fewer than `WRITES_MAX` writes are under
   way, one begins at the end of this turn of the event loop, with all who came
   within the turn. There is no timer: a request that is alone waits for nobody.
2. While writes are under way the next group gathers; it is written as soon as
   one of them is done. The busier the service, the larger the groups.
3. A group is sorted by driver and start, so that two writes that meet wait for
   each other in the same order, and inserted by *one* statement:

       INSERT … SELECT … FROM unnest(…) JOIN drivers … JOIN riders …
       ON CONFLICT DO NOTHING RETURNING …

   The exclusion constraint decides, as in `exclusion_upsert`, also between
   requests of one group. The joins keep out whoever asks for a driver that does
   not exist: as a failed foreign key that one row would spoil the whole group.
   The same statement says for the others what was in the way when it began.
4. Who was refused by something younger than that is told by a second statement, or
   tried alone if nothing is in the way any more, or only a hold that has lapsed.
5. If the statement fails, nobody is told what befell another: each request of
   the group is tried on its own.

It rests on `exclusion_upsert` for all that is more than one named booking: a
move, any free driver, a booking that shares its transaction with something else.
A move has its driver alone, by an advisory lock that groups share: it would meet
two rows of one group else, and each would wait for the other.

Costs
-----
For a group of g requests and N bookings in the table, g times the O(log N) of
`exclusion_upsert`, but one round trip, one statement and one wait for the disk:
1/g of each for a request. A request waits for the write before its own to end.

Breaks when
-----------
As `exclusion_upsert` does. And a caller who goes away has been booked all the
same, if the group was under way: as with an answer lost on the wire, the way to
ask safely again is an idempotency key.
"""

import asyncio
import json
from contextvars import Context, copy_context
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple, override

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    DateTime,
    Select,
    Text,
    and_,
    bindparam,
    cast,
    column,
    false,
    func,
    literal,
    literal_column,
    not_,
    select,
    true,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, TSTZRANGE, insert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from booking.bookings import Booking, BookingRequest, BookingState
from booking.calendars import Held
from booking.errors import (
    BookingConflict,
    DriverRetired,
    InvalidInput,
    LedgerBusy,
    TaxiError,
    UnknownDriver,
    UnknownRider,
)
from booking.ledgers import Claim
from booking.postgres.attribution import Attribution, attributed_to, changed_by, present
from booking.postgres.database import LANES, Database
from booking.postgres.gates import Pace
from booking.postgres.ledger import Allocator
from booking.postgres.tables import (
    BOOKING_COLUMNS,
    active,
    begins,
    booking_of,
    bookings,
    drivers,
    lapsed,
    predicted_ends,
    riders,
    takes_bookings,
)
from booking.prevention.exclusion_upsert import ExclusionUpsert
from booking.time_window import TimeWindow
from booking.travel import TravelTimes

GROUP_MAX = 128
"""Requests that are written together, at most."""
WRITES_MAX = LANES
"""Writes under way at once: one waits for the disk while the next is worked on."""
_SALT = 0x6772_6F75

_INSTANT = DateTime(timezone=True)


# The two statements, built once.

_GIVEN = (
    func.unnest(
        bindparam("driver_ids", type_=ARRAY(BigInteger)),
        bindparam("rider_ids", type_=ARRAY(BigInteger)),
        bindparam("starts", type_=ARRAY(_INSTANT)),
        bindparam("ends", type_=ARRAY(_INSTANT)),
        bindparam("changed_by", type_=ARRAY(Text)),
    )
    .table_valued(
        column("driver_id", BigInteger),
        column("rider_id", BigInteger),
        column("start", _INSTANT),
        column("end", _INSTANT),
        column("changed_by", Text),
        with_ordinality="place",
        name="given",
    )
    .render_derived()
)


def _number_of(driver_id: ColumnElement[int]) -> ColumnElement[int]:
    """The advisory lock that stands for a driver."""
    return func.hashint8extended(driver_id, literal_column(f"{_SALT}"))


_ASKED = select(
    *_GIVEN.c, func.tstzrange(_GIVEN.c.start, _GIVEN.c.end, type_=TSTZRANGE).label("during")
).cte("asked")

# A group inserts several rows of a driver, and a move, which writes its row before it looks,
# could come between two of them: each would then wait for the other. So groups share the
# driver, and a move has the driver alone.
_SHARED = func.pg_advisory_xact_lock_shared(_number_of(_ASKED.c.driver_id))
_ALONE = select(func.pg_advisory_xact_lock(_number_of(bindparam("driver_id", type_=BigInteger))))

_RECORDED = (
    insert(bookings)
    .from_select(
        ["driver_id", "rider_id", "state", "during", "changed_by"],
        select(
            drivers.c.id,
            riders.c.id,
            literal(BookingState.CONFIRMED.value, Text),
            _ASKED.c.during,
            cast(_ASKED.c.changed_by, JSONB),
        )
        .join_from(_ASKED, drivers, drivers.c.id == _ASKED.c.driver_id)
        .join(riders, riders.c.id == _ASKED.c.rider_id)
        .where(takes_bookings(false()), _SHARED.is_not(None))
        .order_by(_ASKED.c.place)
        # The lock that the foreign key takes anyway, early enough to keep a driver from retiring.
        .with_for_update(read=True, key_share=True, of=drivers),
    )
    .on_conflict_do_nothing()  # the one rule that can be broken is the exclusion constraint
    .returning(*BOOKING_COLUMNS)
    .cte("recorded")
)

_overlapping = and_(
    bookings.c.driver_id == _ASKED.c.driver_id,
    active,
    not_(lapsed),
    bookings.c.during.overlaps(_ASKED.c.during),
)
# What stood in the way before this statement began: it sees nothing that is younger.
_IN_THE_WAY = (
    select(bookings.c.id, begins.label("start"), predicted_ends.label("end"))
    # A rider who does not exist is told that first.
    .select_from(
        bookings.join(riders, riders.c.id == _ASKED.c.rider_id)
        # Nor is anybody told so who books on terms: what is blocked there depends on the trip.
        .join(drivers, and_(drivers.c.id == _ASKED.c.driver_id, ~drivers.c.has_terms))
    )
    .where(_RECORDED.c.id.is_(None), _overlapping)
    .limit(literal_column("100"))  # so that it is not looked for where it is not wanted
    .correlate(_ASKED, _RECORDED)
    .lateral("in_the_way")
)
_RECORD: Select[Any] = (
    select(_ASKED.c.place, *_IN_THE_WAY.c, *_RECORDED.c)
    .join_from(
        _ASKED,
        _RECORDED,
        and_(_RECORDED.c.driver_id == _ASKED.c.driver_id, _RECORDED.c.start == _ASKED.c.start),
        isouter=True,
    )
    .join(_IN_THE_WAY, true(), isouter=True)
    .order_by(_ASKED.c.place, _IN_THE_WAY.c.start)
)

# Why the rest was refused, seen from after.
_WHY: Select[Any] = (
    select(
        _ASKED.c.place,
        bookings.c.id,
        begins,
        predicted_ends,
        drivers.c.id,
        drivers.c.retired_at,
        drivers.c.has_terms,
        riders.c.id,
    )
    .join_from(_ASKED, drivers, drivers.c.id == _ASKED.c.driver_id, isouter=True)
    .join(riders, riders.c.id == _ASKED.c.rider_id, isouter=True)
    .join(bookings, _overlapping, isouter=True)
    .order_by(_ASKED.c.place, begins)
)


class _Asked(NamedTuple):
    """A request, and where its answer is waited for."""

    request: BookingRequest
    answer: asyncio.Future[Booking]
    since: float
    """The event loop's time when it joined those who wait."""
    origin: Context
    """On whose behalf: who asks, and whoever traces a request finds its write by this."""

    @property
    def who(self) -> Attribution:
        """Who asks: the write is somebody else's task."""
        return self.origin.run(present)


class GroupedCommit(ExclusionUpsert):
    """Writes what arrives together in one statement, and the exclusion constraint decides."""

    claim = Claim.ACROSS_PROCESSES

    def __init__(
        self,
        database: Database,
        allocator: Allocator,
        travel_times: TravelTimes | None = None,
    ) -> None:
        super().__init__(database, allocator, travel_times)
        self._waiting: list[_Asked] = []
        self._writes: set[asyncio.Task[None]] = set()
        self._next_look: asyncio.TimerHandle | None = None
        self._pace = Pace()

    @property
    @override
    def waiting(self) -> int:
        return super().waiting + len(self._waiting)

    @override
    async def book(self, request: BookingRequest) -> Booking:
        if not _plain(request):
            return await super().book(request)
        if not self._worth_waiting():
            raise LedgerBusy
        loop = asyncio.get_running_loop()
        if not self._waiting:
            loop.call_soon(self._begin)  # at the end of this turn, with all who come within it
        asked = _Asked(request, loop.create_future(), loop.time(), copy_context())
        self._waiting.append(asked)
        if self._next_look is None:
            self._next_look = loop.call_later(self.database.wait_s_max, self._turn_away)
        return await asked.answer

    @override
    async def record(
        self, connection: AsyncConnection, request: BookingRequest, moving: Booking | None = None
    ) -> Booking:
        if moving is not None:
            await connection.execute(_ALONE, {"driver_id": request.driver_id})
        return await super().record(connection, request, moving)

    def _worth_waiting(self) -> bool:
        """Whether there is room for one more, and its turn will come in time."""
        if len(self._waiting) >= self.database.waiting_max:
            return False
        if len(self._writes) < WRITES_MAX:
            return True
        rounds = len(self._waiting) // (GROUP_MAX * WRITES_MAX) + 1
        return rounds * self._pace.of_a_turn_s() <= self.database.wait_s_max

    def _begin(self) -> None:
        while self._waiting and len(self._writes) < WRITES_MAX:
            next_ones, self._waiting = self._waiting[:GROUP_MAX], self._waiting[GROUP_MAX:]
            group = [asked for asked in next_ones if not asked.answer.done()]
            if not group:
                continue
            # In one order everywhere: writes that meet then never wait for each other in a ring.
            group.sort(key=_driver_and_start)
            # On behalf of the first of them, not of whoever happened to begin it.
            write = asyncio.create_task(self._write(group), context=group[0].origin.copy())
            self._writes.add(write)
            write.add_done_callback(self._done)

    def _turn_away(self) -> None:
        """Give up on whoever has waited too long; one timer for all."""
        loop, patience_s = asyncio.get_running_loop(), self.database.wait_s_max
        while self._waiting and self._waiting[0].since + patience_s <= loop.time():
            _refuse(self._waiting.pop(0), LedgerBusy())
        self._next_look = None
        if self._waiting:
            due = self._waiting[0].since + patience_s
            self._next_look = loop.call_at(due, self._turn_away)

    def _done(self, write: asyncio.Task[None]) -> None:
        self._writes.discard(write)
        self._begin()

    async def _write(self, group: list[_Asked]) -> None:
        began_s = self._pace.begin()
        try:
            with self.database.observer.grouped([asked.origin for asked in group]):
                await self._write_and_answer(group)
        finally:
            self._pace.end(began_s)

    async def _write_and_answer(self, group: list[_Asked]) -> None:
        try:
            unclear = await self._record_all(group)
            if unclear:
                await self._explain(unclear)
        except (DBAPIError, InvalidInput):
            await self._one_by_one(group)
        except BaseException as error:
            for asked in group:
                _refuse(asked, error)
            if not isinstance(error, TaxiError):
                raise

    async def _record_all(self, group: list[_Asked]) -> list[_Asked]:
        """Record what the constraint lets in, and answer; the requests without an answer yet."""
        given: set[int] = set()
        unclear = []
        for asked, rows in zip(group, await self._ask(_RECORD, group), strict=True):
            _, *in_the_way = rows[0][:4]
            recorded = rows[0][4:]
            if recorded[0] is not None and recorded[0] not in given:
                booked = booking_of(recorded)
                # Of two that ask for the same start one was recorded; it may be the other one.
                if (booked.rider_id, booked.window) == (
                    asked.request.rider_id,
                    asked.request.window,
                ):
                    given.add(booked.id)
                    _answer(asked, booked)
                    continue
            if in_the_way[0] is None:
                unclear.append(asked)
            else:
                _refuse(asked, _conflict(rows))
        return unclear

    async def _explain(self, refused: list[_Asked]) -> None:
        """Tell each why; who has nothing in the way any more is tried alone."""
        again = []
        for asked, rows in zip(refused, await self._ask(_WHY, refused), strict=True):
            error = _reason(asked.request, rows)
            if error is not None:
                _refuse(asked, error)
            else:
                again.append(asked)
        await self._one_by_one(again)

    async def _ask(self, statement: Select[Any], group: list[_Asked]) -> list[list[Any]]:
        """Run the statement for the group; the rows of each request, in the group's order."""
        requests = [asked.request for asked in group]
        parameters = {
            "driver_ids": [request.driver_id for request in requests],
            "rider_ids": [request.rider_id for request in requests],
            "starts": [request.window.start for request in requests],
            "ends": [request.window.end for request in requests],
            "changed_by": [json.dumps(changed_by(asked.who)) for asked in group],
        }

        rows = await self.database.run_alone(statement, parameters, read_only=statement is _WHY)
        return [list(each) for _, each in groupby(rows, key=itemgetter(0))]

    async def _one_by_one(self, group: list[_Asked]) -> None:
        """Try each request on its own: what one of them brought about is not the others' fault."""
        for asked in group:
            if asked.answer.done():
                continue
            try:
                with attributed_to(asked.who):
                    _answer(asked, await super().book(asked.request))
            except Exception as error:  # noqa: BLE001  # whatever it is, it is the caller's
                _refuse(asked, error)


def _answer(asked: _Asked, booked: Booking) -> None:
    if not asked.answer.done():  # else the caller has gone
        asked.answer.set_result(booked)


def _refuse(asked: _Asked, error: BaseException) -> None:
    if not asked.answer.done():
        asked.answer.set_exception(error)


def _plain(request: BookingRequest) -> bool:
    """Whether it asks for no more than time of a driver."""
    return (
        request.driver_id is not None
        and request.hold_s is None
        and request.pickup is None
        and request.dropoff is None
    )


def _driver_and_start(asked: _Asked) -> tuple[Any, Any]:
    return asked.request.driver_id, asked.request.window.start


def _reason(request: BookingRequest, rows: list[Any]) -> TaxiError | None:
    """Why a request was refused, as far as can be seen now; None if nothing is in the way."""
    *_, driver_id, retired_at, has_terms, rider_id = rows[0]
    if driver_id is None:
        return UnknownDriver(f"There is no driver {request.driver_id}.", field="driver_id")
    if retired_at is not None:
        return DriverRetired(f"Driver {request.driver_id} has retired.", field="driver_id")
    if rider_id is None:
        return UnknownRider(f"There is no rider {request.rider_id}.", field="rider_id")
    # On terms the booking is tried alone: they are judged there.
    return None if has_terms or rows[0][1] is None else _conflict(rows)


def _conflict(rows: list[Any]) -> BookingConflict:
    held = [Held(id_, TimeWindow(start, end)) for _, id_, start, end, *_ in rows]
    return BookingConflict(conflicts=held)
