"""The engine, the queue before it, and the one place where a transaction is run.

A unit of work is a *closure*, handed to `Database.transact`, which owns BEGIN,
COMMIT and the decision to run it again: PostgreSQL may answer any transaction
with "serialization failure" or "deadlock", and the only right reply is to run
all of it once more. A `with transaction:` block cannot be run again.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Literal, cast

from sqlalchemy import URL, Connection, ExceptionContext, Executable, Row, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, DisconnectionError, PendingRollbackError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import QueuePool

from booking.errors import Contended, InvalidInput, LedgerBusy, LedgerLost, Unavailable
from booking.postgres.gates import Gate
from booking.postgres.observers import Observer

Isolation = Literal["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"]

ATTEMPTS_MAX = 5
"""How often one transaction is run before the caller is told to come back later."""

LANES = 2
"""Connections kept for statements that are a transaction of their own."""

_BACKOFF_S = 0.005
"""The wait before the second attempt, at most; it doubles with each one."""

EXCLUSION_VIOLATION = "23P01"
"""The SQLSTATE of what an exclusion constraint refuses."""
UNIQUE_VIOLATION = "23505"
"""The SQLSTATE of what a unique key refuses."""

SERIALIZATION_FAILURE = "40001"
"""The SQLSTATE of a transaction that must be run again, all of it."""

_RUN_AGAIN = frozenset({SERIALIZATION_FAILURE, "40P01"})  # the other is deadlock_detected
_TOOK_TOO_LONG = frozenset({"55P03", "57014"})  # lock_not_available, query_canceled
_NO_SUCH_CHARACTER = "22021"  # character_not_in_repertoire
_AWAY = ("08", "25006", "53", "57P", "58")
# connection, a server that only reads (a standby, a full disk), resources (disk full, too
# many connections), shutdown, I/O

_OURS = {"sslmode": "ssl"}  # libpq's word for a parameter of an address, and the driver's
_PARAMETERS = frozenset({"host", "port", "ssl"})
_KNOWN = sorted(_PARAMETERS | _OURS.keys())

_ANSWER_S = 1.0
"""How much longer than a statement may take its answer may be under way."""

_FAILURES = "taxi_failures"
"""The execution option that collects the statements that failed in a transaction."""


def sqlstate_of(error: BaseException) -> str:
    """The SQLSTATE that PostgreSQL gave, or "" when the error is not PostgreSQL's.

    Errors are told apart by this, never by a constraint's name: a distributed
    engine renames constraints.
    """
    return getattr(getattr(error, "orig", error), "sqlstate", None) or ""


def parse_url(url: str) -> URL:
    """A `postgresql://` address as the engine wants it; `InvalidInput` if it is none."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        # The address holds a password: it is never repeated.
        raise InvalidInput("It is not a database address.", field="DATABASE_URL") from None
    if parsed.get_backend_name() not in {"postgresql", "postgres"}:
        raise InvalidInput("It must begin with postgresql://.", field="DATABASE_URL")
    if not parsed.database:
        raise InvalidInput("It must name a database: postgresql://host/NAME.", field="DATABASE_URL")
    query = {_OURS.get(name, name): value for name, value in parsed.query.items()}
    if unknown := sorted(query.keys() - _PARAMETERS):
        raise InvalidInput(
            f"The parameter {unknown[0]} is not understood; there are {', '.join(_KNOWN)}.",
            field="DATABASE_URL",
        )
    return parsed.set(drivername="postgresql+asyncpg", query=query)


def dsn(url: str, database: str = "") -> str:
    """The address as libpq and asyncpg itself take it; of another `database` there, if named.

    Raises as `parse_url` does.
    """
    parsed = parse_url(url)
    theirs = {ours: word for word, ours in _OURS.items()}
    own = parsed.set(
        drivername="postgresql",
        database=database or parsed.database,
        query={theirs.get(name, name): value for name, value in parsed.query.items()},
    )
    return own.render_as_string(hide_password=False)


class Database:
    """One PostgreSQL database, with a bounded and *fair* queue before its connections.

    `pool_size` connections, each used by one transaction at a time; at most
    `waiting_max` callers wait for one, no longer than `wait_s_max` seconds, and
    whoever would have to is refused at once. `observer` is told what happens.
    """

    def __init__(
        self,
        url: str,
        *,
        pool_size: int = 10,
        waiting_max: int = 1_000,
        wait_s_max: float = 5.0,
        statement_s_max: float = 5.0,
        observer: Observer | None = None,
    ) -> None:
        build = partial(
            create_async_engine,
            parse_url(url),
            max_overflow=0,
            hide_parameters=True,  # they are people's names and times: not for a log
            pool_timeout=wait_s_max,
            connect_args={
                "timeout": wait_s_max,
                # The server ends what takes too long; this is for a server that has fallen silent.
                "command_timeout": statement_s_max + _ANSWER_S,
                "server_settings": {
                    "application_name": "taxi",
                    "TimeZone": "UTC",
                    "default_transaction_isolation": "read committed",
                    # No statement of ours wants another plan for other values, and planning
                    # one costs more than running it.
                    "plan_cache_mode": "force_generic_plan",
                    "statement_timeout": str(round(statement_s_max * 1_000)),
                    "idle_in_transaction_session_timeout": "60000",
                },
            },
        )
        self.engine: AsyncEngine = build(pool_size=pool_size)
        self.lanes: AsyncEngine = build(pool_size=LANES, isolation_level="AUTOCOMMIT")
        self._idle: list[AsyncConnection] = []
        event.listen(self.lanes.sync_engine, "checkout", _refuse_the_dead)
        event.listen(self.engine.sync_engine, "checkout", _refuse_the_dead)
        event.listen(self.engine.sync_engine, "handle_error", _note_failure)
        event.listen(self.engine.sync_engine, "rollback_savepoint", _forget_failures)
        self.wait_s_max = wait_s_max
        self.waiting_max = waiting_max
        self.observer = observer or Observer()
        self.gate = Gate(pool_size, waiting_max=waiting_max, wait_s_max=wait_s_max)

    @property
    def waiting(self) -> int:
        """How many callers wait for a connection."""
        return self.gate.waiting

    @property
    def in_use(self) -> int:
        """How many connections are at work."""
        pools = (cast("QueuePool", each.pool) for each in (self.engine, self.lanes))
        return sum(pool.checkedout() for pool in pools) - len(self._idle)

    async def close(self) -> None:
        """Close every connection."""
        while self._idle:
            await self._idle.pop().close()
        await self.lanes.dispose()
        await self.engine.dispose()

    async def transact[T](
        self,
        work: Callable[[AsyncConnection], Awaitable[T]],
        *,
        isolation: Isolation = "READ COMMITTED",
        read_only: bool = False,
    ) -> T:
        """Run `work` in a transaction and return what it returned, once that is durable.

        `work` may be run up to `ATTEMPTS_MAX` times, and all its runs but the last
        are rolled back; the last one too, when it raises or the COMMIT fails. Only
        what it does through its connection is undone. Whatever it does elsewhere
        must therefore bear being done several times, or for nothing. A statement
        that failed is raised here even if `work` caught the error: PostgreSQL has
        given the transaction up then, and would answer its COMMIT with a
        rollback and no error. (Inside `begin_nested` an error may be caught.)

        Raises `Contended` when every attempt collided with others, `LedgerBusy`
        when no connection came free, `LedgerLost` when the connection broke at
        the COMMIT, so that nobody knows, and `Unavailable` when it broke before.
        """
        return await self._until_it_goes_through(
            lambda: self._once(work, isolation, read_only=read_only)
        )

    async def run_alone(
        self, statement: Executable, parameters: Mapping[str, object], *, read_only: bool = False
    ) -> Sequence[Row[Any]]:
        """Run one statement as a transaction of its own; its rows, once that is durable.

        It commits itself: there is no BEGIN and no COMMIT to wait for. It runs on
        one of `LANES` connections that are kept for this, so at most as many may
        be under way. Raises as `transact` does; `LedgerLost` also when the
        connection breaks before the answer, unless the statement only reads.
        """

        async def once() -> Sequence[Row[Any]]:
            connected = False
            try:
                async with self._lane() as connection:
                    connected = True
                    return (await connection.execute(statement, parameters)).all()
            except (DBAPIError, OSError, TimeoutError, PoolTimeoutError) as error:
                committing = connected and not read_only
                ours = _in_our_words(error, connected=connected, committing=committing)
                if ours is not None:
                    raise ours from error
                raise

        return await self._until_it_goes_through(once)

    @asynccontextmanager
    async def _lane(self) -> AsyncIterator[AsyncConnection]:
        """A connection that commits each statement, kept open between its uses.

        To hand one back to the pool and have it again costs more than a statement.
        """
        connection = await self._idle_lane() or await self.lanes.connect()
        try:
            yield connection
        except BaseException:
            await connection.close()  # in what state it is, the pool finds out
            raise
        self._idle.append(connection)

    async def _idle_lane(self) -> AsyncConnection | None:
        while self._idle:
            connection = self._idle.pop()
            raw: Any = (await connection.get_raw_connection()).driver_connection
            if not raw.is_closed():
                return connection
            await connection.invalidate()
            await connection.close()
        return None

    async def _once[T](
        self,
        work: Callable[[AsyncConnection], Awaitable[T]],
        isolation: Isolation,
        *,
        read_only: bool,
    ) -> T:
        connected = committing = False
        failures: list[BaseException] = []
        try:
            async with self._connection() as connection:
                connected = True
                await connection.execution_options(
                    isolation_level=isolation,
                    postgresql_readonly=read_only,
                    **{_FAILURES: failures},
                )
                async with connection.begin() as transaction:
                    result = await work(connection)
                    if failures:
                        raise failures[0]
                    committing = not read_only
                    await transaction.commit()
                return result
        except (DBAPIError, OSError, TimeoutError, PoolTimeoutError, PendingRollbackError) as error:
            cause = failures[0] if isinstance(error, PendingRollbackError) else error
            ours = _in_our_words(cause, connected=connected, committing=committing)
            if ours is not None:
                raise ours from cause
            raise cause from cause.__cause__

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[AsyncConnection]:
        async with self.gate.turn(), self.engine.connect() as connection:
            yield connection

    async def _until_it_goes_through[T](self, once: Callable[[], Awaitable[T]]) -> T:
        """Call `once`, and again while PostgreSQL says that it collided; `Contended` at last."""
        attempt = 1
        while True:
            try:
                return await once()
            except DBAPIError as error:
                if sqlstate_of(error) not in _RUN_AGAIN:
                    raise
                if attempt == ATTEMPTS_MAX:
                    raise Contended from error
                self.observer.ran_again(sqlstate_of(error))
            # Random, so that two that collided do not collide again in step.
            await asyncio.sleep(random.uniform(0, _BACKOFF_S * 2 ** (attempt - 1)))  # noqa: S311  # jitter
            attempt += 1


def _refuse_the_dead(connection: Any, *_: object) -> None:
    """Have the pool replace a connection that the server closed while it lay idle.

    Asking the driver costs nothing, as the driver has heard of it; so a service
    whose database was away serves the first request after it is back.
    """
    if connection.driver_connection.is_closed():
        raise DisconnectionError


def _note_failure(context: ExceptionContext) -> None:
    if context.connection is not None:
        failures = context.connection.get_execution_options().get(_FAILURES)
        if failures is not None:
            failures.append(context.sqlalchemy_exception or context.original_exception)


def _forget_failures(connection: Connection, *_: object) -> None:
    """The way back to a savepoint makes the transaction good again."""
    connection.get_execution_options().get(_FAILURES, []).clear()


def _in_our_words(error: BaseException, *, connected: bool, committing: bool) -> Exception | None:
    """The domain's error for a failure of the database; None if it is to be seen as it is."""
    state = sqlstate_of(error)
    if state in _RUN_AGAIN:
        return None
    if state in _TOOK_TOO_LONG:
        return Contended()
    if state == _NO_SUCH_CHARACTER:
        return InvalidInput("Text cannot hold the character NUL.")
    if isinstance(error, PoolTimeoutError):
        return LedgerBusy()
    silent = isinstance(error, OSError | TimeoutError) or getattr(
        error, "connection_invalidated", False
    )
    if silent or not connected or state.startswith(_AWAY):
        return LedgerLost() if committing else Unavailable()
    return None
