"""Runs sessions on a real PostgreSQL, one step at a time, in an order that somebody else chooses.

A *session* is one command of a ledger, on connections of its own. A *step* is one
statement of it, or its COMMIT or ROLLBACK; BEGIN goes with the first statement, and
what nobody can notice goes with the next (savepoints, a look at `riders`, the
ROLLBACK of what the server has already given up). The recipe is the real one: a gate
at its engine stops each step until it is let go.

Whether a step waits for another session is never guessed from the time it takes. The
server says so itself: with `log_lock_waits`, "still waiting for" once it has looked
for a deadlock in vain. So whoever closes a ring of those who wait is always the one
that the server ends, and a schedule runs the same way each time. A session that
waits inside the process (for a lock of asyncio) is known by the event loop having
nothing left to do for it.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, override

import asyncpg
from sqlalchemy import Connection, ExceptionContext, event
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.util import await_

from booking.bookings import Booking
from booking.errors import TaxiError
from booking.postgres import reads
from booking.postgres.database import Database, Isolation, dsn, sqlstate_of
from booking.postgres.ledger import PostgresLedger
from loadtest.proof.footprints import Catalogue, Footprint
from loadtest.proof.search import Step, Taken

Perform = Callable[[PostgresLedger], Awaitable[Booking]]
"""What a session does."""
Choose = Callable[[Mapping[int, Step]], int | None]
"""Who takes the next step, of those who can; None ends the schedule."""

_SETTINGS = """
    SET log_lock_waits = on;
    SET deadlock_timeout = '1ms';
    SET client_min_messages = 'log';
    SET log_min_messages = 'panic';
    SET lc_messages = 'C';
    SET synchronous_commit = off;
    SET enable_seqscan = off;
"""
# The server speaks to us, in English, and not to its log. It forgets nothing that we
# look at for not waiting for its disk. Its plans are those of a large table.

_PLACE = re.compile(r"\$(\d+)(?:::[A-Z]+(?: WITH TIME ZONE)?(?:\[\])?)?")
"""Where a value goes, with the type that the driver gives it."""

_NUMBER = re.compile(r"(?<![$\w])\d+\b")

_TURNS = 50
"""Turns of the event loop after which a session that did nothing waits for another."""
_STEP_S_MAX = 30.0
"""No step takes as long; then something is wrong with the server, or with the gate."""
_BACKOFF_S_MAX = 0.5
"""A transaction waits for less than this before it is run again."""
_NOTHING = Footprint()

DEADLOCK = "40P01"
RUN_AGAIN = frozenset({"40001", DEADLOCK})
"""The SQLSTATEs after which a transaction is run once more."""


class NotAllowed(TaxiError):
    """A proof needs a superuser of the server: it has the server tell who waits for a lock."""


class Stuck(TaxiError):
    """A step did not end, and the server does not say that it waits."""


class _Phase(Enum):
    RUNNING = auto()
    AT_GATE = auto()
    WAITING = auto()  # in the server, for a lock
    HELD = auto()  # in the process, by another session
    DONE = auto()


@dataclass
class Session:
    """One command under way. `answer` is what it returned or raised; None if it never ended."""

    number: int
    on_change: Callable[[], None]
    answer: Booking | BaseException | None = None
    phase: _Phase = _Phase.RUNNING
    step: Step | None = None
    """The step that it stands before, or takes."""
    event: "Event | None" = None
    task: asyncio.Task[None] | None = None
    pid: int | None = None
    asleep_since: object = None
    """Since when it waits, as the server said."""
    in_flight: bool = False
    """Whether the server has something to do for it."""
    backing_off: bool = False
    given_up: bool = False
    """Whether the server has given its transaction up."""
    did: Footprint = _NOTHING
    begun: bool = False
    open_gate: bool = False
    errors: list[str] = field(default_factory=list)
    """The SQLSTATEs of all that failed."""
    _go: asyncio.Future[None] | None = None

    def change(self, phase: _Phase) -> None:
        """Note what it is about now."""
        self.phase = phase
        self.on_change()

    async def stand(self, step: Step) -> None:
        """Stand before the step until it is let go."""
        # A failed transaction is run again after a pause; its ROLLBACK comes before that.
        self.backing_off = self.backing_off and step.statement == "ROLLBACK"
        if self.open_gate:
            return
        self.step = step
        self._go = asyncio.get_running_loop().create_future()
        self.change(_Phase.AT_GATE)
        await self._go

    def let_go(self) -> None:
        """Let it take the step."""
        self.in_flight = True
        self.phase = _Phase.RUNNING
        if self._go is not None and not self._go.done():
            self._go.set_result(None)


_SESSION: ContextVar[Session | None] = ContextVar("session", default=None)


@dataclass
class Event:
    """A step as it was taken: by whom, the statement with its values, and what it saw."""

    session: int
    step: Step
    statement: str
    sent: str
    saw: str = ""
    until: int | None = None
    """If it waited for another session: the number, from 1, of the step that ended the wait."""
    after: int | None = None
    """The number of the step that let the session go on to this one, if it waited before."""


@dataclass
class Run:
    """One schedule as it was run."""

    events: list[Event]
    sessions: list[Session]
    started: dict[int, int] = field(default_factory=dict)
    """By session, how many steps had been taken when it took its first."""
    answered: dict[int, int] = field(default_factory=dict)
    """And when it had its answer."""
    stuck: bool = False
    """Whether nobody could go on, and nobody had ended it."""

    @property
    def choices(self) -> str:
        """Who took each step, as letters: enough to run it again."""
        return "".join(letter(each.session) for each in self.events)

    def taken(self) -> list[Taken]:
        """The steps, as the search counts them."""
        return [Taken(each.session, each.step, each.after) for each in self.events]


def letter(session: int) -> str:
    """What a session is called."""
    return "ABC"[session]


class _Gated(Database):
    """A database whose statements, within a session, wait before the gate."""

    def __init__(self, url: str, isolation: Isolation, catalogue: Catalogue, size: int) -> None:
        super().__init__(url, pool_size=size, statement_s_max=_STEP_S_MAX)
        self._isolation = isolation
        self._catalogue = catalogue
        self.sessions: dict[int, Session] = {}  # by process of the server
        self.rows: Sequence[int] = ()
        engine = self.engine.sync_engine
        event.listen(engine, "connect", self._on_connect)
        event.listen(engine, "before_cursor_execute", self._before)
        event.listen(engine, "after_cursor_execute", self._after)
        event.listen(engine, "commit", self._before_commit)
        event.listen(engine, "rollback", self._before_rollback)
        event.listen(engine, "handle_error", self._on_error)
        event.listen(engine.pool, "checkin", self._on_checkin)

    @override
    async def transact[T](
        self,
        work: Callable[[AsyncConnection], Awaitable[T]],
        *,
        isolation: Isolation = "READ COMMITTED",
        read_only: bool = False,
    ) -> T:
        """As the recipe would have it, save that the isolation is the one that is studied."""
        return await super().transact(work, isolation=self._isolation, read_only=read_only)

    @override
    @asynccontextmanager
    async def _lane(self) -> AsyncIterator[AsyncConnection]:
        """A statement that is a transaction of its own stands before the same gate."""
        async with self.engine.connect() as connection:
            await connection.execution_options(isolation_level="AUTOCOMMIT")
            yield connection

    def _on_connect(self, connection: Any, _record: object) -> None:
        raw = connection.driver_connection
        level = f"SET default_transaction_isolation = '{self._isolation.lower()}'"
        await_(raw.execute(_SETTINGS + level))
        raw.add_log_listener(self._on_log)

    def _on_log(self, connection: Any, message: Any) -> None:
        session = self.sessions.get(connection.get_server_pid())
        if session is None or session.phase is _Phase.DONE:
            return
        if "still waiting for" in message.message:
            session.asleep_since = None
            session.change(_Phase.WAITING)

    def _before(
        self, connection: Connection, _cursor: object, statement: str, parameters: Any, *_: object
    ) -> None:
        session = _SESSION.get()
        if session is None:
            return
        values = parameters if isinstance(parameters, tuple | list) else ()
        own = self._catalogue.footprint(statement, values, self.rows)
        verb = statement.split(maxsplit=1)[0].upper()
        autocommit = _is_autocommit(connection)
        if verb in {"SAVEPOINT", "RELEASE"} or (verb == "ROLLBACK" and session.given_up):
            session.given_up = False  # the way back to a savepoint makes it good again
            session.in_flight = True
            return
        if self._isolation != "READ COMMITTED" and not session.begun:
            own = Footprint(own.reads, own.shares, own.writes, begins=True)
        session.begun = not autocommit
        if own.idle:
            session.in_flight = True
            return
        whole = own.after(session.did, ends=autocommit)
        looks = not own.acts and self._isolation != "SERIALIZABLE"  # and so cannot fail
        if not autocommit:
            session.did |= own
        # Each schedule has other ids: where a recipe writes them out, they say nothing.
        step = Step(_NUMBER.sub("0", statement), own if looks else whole)
        self._stand(connection, session, step, _with_values(statement, values), statement)

    def _before_commit(self, connection: Connection) -> None:
        self._before_end(connection, "COMMIT")

    def _before_rollback(self, connection: Connection) -> None:
        self._before_end(connection, "ROLLBACK")

    def _before_end(self, connection: Connection, statement: str) -> None:
        session = _SESSION.get()
        if session is None:
            return
        did, session.did = session.did, _NOTHING
        begun, session.begun = session.begun, False
        given_up, session.given_up = session.given_up, False
        session.in_flight = True
        if begun and not given_up:
            step = Step(statement, did.after(_NOTHING, ends=True))
            self._stand(connection, session, step, statement, statement)

    def _stand(
        self, connection: Connection, session: Session, step: Step, said: str, sent: str
    ) -> None:
        raw: Any = connection.connection.driver_connection
        session.pid = raw.get_server_pid()
        self.sessions[raw.get_server_pid()] = session
        session.in_flight = False
        session.event = Event(session.number, step, said, sent)
        await_(session.stand(step))

    def _after(self, _connection: object, cursor: Any, statement: str, *_: object) -> None:
        session = _SESSION.get()
        if session is None:
            return
        session.in_flight = False
        session.on_change()
        if session.event is not None and session.event.sent == statement:
            # The cursor gives its rows once, and they are the recipe's: look, do not take.
            rows = list(cursor._rows)  # noqa: SLF001
            session.event.saw = (
                _rows_said(rows) if cursor.description else f"{cursor.rowcount} rows"
            )

    def _on_error(self, context: ExceptionContext) -> None:
        session = _SESSION.get()
        if session is None:
            return
        state = sqlstate_of(context.original_exception)
        session.errors.append(state)
        session.in_flight = False
        session.given_up = True
        session.backing_off = state in RUN_AGAIN
        session.on_change()
        if session.event is not None:
            error = getattr(context.original_exception, "orig", context.original_exception)
            session.event.saw = f"ERROR {state} {str(error).partition(chr(10))[0]}"
        if session.step is not None and session.step.statement == "COMMIT":
            session.given_up = False  # there is no ROLLBACK to come

    def _on_checkin(self, *_: object) -> None:
        session = _SESSION.get()
        if session is not None:
            session.in_flight = False
            session.on_change()


class Stage:
    """Sessions on one database, at one isolation level; as `ledgers` of them, each for a process.

    With one, all sessions share it.
    """

    def __init__(
        self,
        databases: Sequence[_Gated],
        isolation: Isolation,
        kind: Callable[[Database], PostgresLedger],
        monitor: Any,
    ) -> None:
        self._databases = databases
        self._isolation = isolation
        self._kind = kind
        self._monitor = monitor
        self._changed = asyncio.Event()
        self._sessions: list[Session] = []

    async def play(
        self, performances: Sequence[Perform], choose: Choose, held: Sequence[int] = ()
    ) -> Run | None:
        """Run one schedule to its end; None if `choose` ended it.

        `held` are the ids of the bookings that it is about. Every session begins with a
        ledger that has just been made, and gets as far as its first step. Raises what
        `choose` does, and `Stuck`.
        """
        ledgers = [self._kind(database) for database in self._databases]
        for database in self._databases:
            # A predicate lock is of a page: there, rows are not told apart.
            database.rows = () if self._isolation == "SERIALIZABLE" else held
        self._sessions = [
            Session(number, self._changed.set) for number, _ in enumerate(performances)
        ]
        for session, perform in zip(self._sessions, performances, strict=True):
            ledger = ledgers[session.number % len(ledgers)]
            session.task = asyncio.create_task(_perform(session, perform(ledger)))
        run = Run([], self._sessions)
        try:
            whole = await self._go_on(run, choose)
        finally:
            await self._clear()
        return run if whole else None

    async def _go_on(self, run: Run, choose: Choose) -> bool:
        waiting_after: dict[int, int] = {}
        while True:
            await self._settle()
            for session in self._sessions:
                if session.phase is _Phase.DONE:
                    run.answered.setdefault(session.number, len(run.events))
                if session.phase in {_Phase.WAITING, _Phase.HELD}:
                    waiting_after[session.number] = len(run.events)
                    if session.phase is _Phase.WAITING and session.event is not None:
                        session.event.until = len(run.events) + 1
            options = {
                each.number: each.step
                for each in self._sessions
                if each.phase is _Phase.AT_GATE and each.step is not None
            }
            if not options:
                run.stuck = any(each.phase is not _Phase.DONE for each in self._sessions)
                return True
            chosen = choose(options)
            if chosen is None:
                return False
            session = self._sessions[chosen]
            assert session.event is not None  # noqa: S101  # it stands before a step
            run.started.setdefault(chosen, len(run.events))
            session.event.after = waiting_after.pop(chosen, None)  # it was woken by that step
            run.events.append(session.event)
            session.let_go()

    async def _settle(self) -> None:
        """Return once every session stands, waits, or is done."""
        while True:
            running = [each for each in self._sessions if each.phase is _Phase.RUNNING]
            if running:
                await self._until_one_changes(running)
            elif not await self._someone_woke():
                return

    async def _until_one_changes(self, running: list[Session]) -> None:
        self._changed.clear()
        idle = [each for each in running if not each.in_flight and not each.backing_off]
        if not idle:
            await self._wait_for_change(running)
            return
        for _ in range(_TURNS):
            await asyncio.sleep(0)
            if self._changed.is_set():
                return
        for session in idle:
            if session.phase is _Phase.RUNNING and not (session.in_flight or session.backing_off):
                session.phase = _Phase.HELD

    async def _wait_for_change(self, running: list[Session]) -> None:
        late = [each for each in running if each.backing_off]
        try:
            async with asyncio.timeout(_BACKOFF_S_MAX if late else _STEP_S_MAX):
                await self._changed.wait()
        except TimeoutError:
            if not late:
                raise Stuck from None
            for session in late:
                session.backing_off = False

    async def _someone_woke(self) -> bool:
        """Whether one of those that waited waits no more, or for something else by now."""
        for _ in range(_TURNS if any(s.phase is _Phase.HELD for s in self._sessions) else 0):
            await asyncio.sleep(0)
        woke = any(each.phase is _Phase.RUNNING for each in self._sessions)
        waiting = [each for each in self._sessions if each.phase is _Phase.WAITING]
        if not waiting:
            return woke
        rows = await self._monitor.fetch(
            "SELECT pid, waitstart FROM pg_locks WHERE NOT granted AND pid = ANY($1)",
            [each.pid for each in waiting],
        )
        since = dict(rows)
        for session in waiting:
            if session.phase is not _Phase.WAITING:
                woke = True
            elif session.asleep_since is None and session.pid in since:
                session.asleep_since = since[session.pid]
            elif since.get(session.pid) != session.asleep_since:
                session.phase = _Phase.RUNNING
                woke = True
        return woke

    async def _clear(self) -> None:
        """Let whoever is left come to an end, and forget them."""
        tasks = [each.task for each in self._sessions if each.task is not None]
        current = asyncio.current_task()
        hurry = current is not None and current.cancelling() > 0
        stuck = all(s.phase in {_Phase.HELD, _Phase.WAITING, _Phase.DONE} for s in self._sessions)
        for session in self._sessions:
            session.open_gate = True
            session.let_go()
        if not hurry and not stuck:
            await asyncio.wait(tasks, timeout=_STEP_S_MAX)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for database in self._databases:
            database.sessions.clear()


@asynccontextmanager
async def stage(
    url: str,
    isolation: Isolation,
    kind: Callable[[Database], PostgresLedger],
    *,
    sessions: int,
    ledgers: int,
) -> AsyncIterator[Stage]:
    """Open the connections that so many sessions need, all of them now.

    Raises `NotAllowed` where the server does not let us set what must be set.
    """
    monitor = await asyncpg.connect(dsn(url))
    databases: list[_Gated] = []
    try:
        catalogue = await Catalogue.read(monitor)
        size = -(-sessions // ledgers) + 1
        databases += [_Gated(url, isolation, catalogue, size) for _ in range(ledgers)]
        for database in databases:
            await _warm(database, size)
        yield Stage(databases, isolation, kind, monitor)
    finally:
        for database in databases:
            await database.close()
        await monitor.close()


async def _warm(database: Database, size: int) -> None:
    """Open all connections of the pool: to open one takes time, and would look like work."""
    together = asyncio.Barrier(size)

    async def ping(connection: AsyncConnection) -> None:
        await reads.ping(connection)
        await together.wait()

    try:
        await asyncio.gather(*[database.transact(ping, read_only=True) for _ in range(size)])
    except asyncpg.InsufficientPrivilegeError as error:
        raise NotAllowed from error


async def _perform(session: Session, work: Awaitable[Booking]) -> None:
    _SESSION.set(session)
    try:
        session.answer = await work
    except Exception as error:  # noqa: BLE001  # whatever it is, it is the answer
        session.answer = error
    finally:
        session.change(_Phase.DONE)


def _is_autocommit(connection: Connection) -> bool:
    return bool(connection.get_execution_options().get("isolation_level") == "AUTOCOMMIT")


def _with_values(statement: str, values: Sequence[Any]) -> str:
    """The statement on one line, with its values in their places."""

    def value_of(found: re.Match[str]) -> str:
        number = int(found[1]) - 1
        return _quoted(values[number]) if number < len(values) else found[0]

    return _PLACE.sub(value_of, " ".join(statement.split()))


def _quoted(value: Any) -> str:
    return f"'{value}'" if isinstance(value, str) else _said(value)


def _rows_said(rows: list[Any]) -> str:
    if not rows:
        return "no row"
    return "; ".join("(" + ", ".join(_said(value) for value in row) + ")" for row in rows)


def _said(value: Any) -> str:
    if hasattr(value, "lower") and hasattr(value, "upper") and not isinstance(value, str):
        return f"[{_said(value.lower)}, {_said(value.upper)})"
    if hasattr(value, "strftime"):
        return f"{value:%H:%M}"
    return f"{value}"
