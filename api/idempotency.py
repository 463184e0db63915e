"""`Idempotency-Key`: a request that is sent again is not carried out again.

A client whose connection broke does not know whether its booking was recorded.
It sends the request once more under the same key, and gets the answer of the
first time. The answer is stored *in the booking's own transaction*: either both
are there or neither, whatever crashes in between.

A refusal did nothing, so its transaction is rolled back; the answer is stored
just after, and a crash in between merely lets the request be tried afresh.
See <https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/>.
"""

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from http import HTTPStatus
from typing import Annotated, Any, Protocol, cast

import msgspec
from litestar import MediaType, Request, Response
from litestar.params import HeaderParameter
from sqlalchemy import delete, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from api.access import recheck, shown
from api.bodies.problems import Problem
from api.patterns import KEY
from api.problems import MEDIA_TYPE, explain_plainly
from booking.accounts import HOURS_AHEAD_MAX, Principal, Role
from booking.errors import KeyInUse, KeyReused, TaxiError, Unavailable
from booking.postgres.accounts import within_hours
from booking.postgres.database import Database
from booking.postgres.ledger import PostgresLedger
from booking.postgres.tables import idempotency_keys

KeyHeader = Annotated[
    str | None,
    HeaderParameter(
        name="Idempotency-Key",
        min_length=1,
        max_length=255,
        pattern=KEY,
        description="Chosen by the client, a UUID for instance. A request that is sent again"
        " under the same key is answered as it was the first time, and not carried out again.",
    ),
]

Explain = Callable[[TaxiError], Awaitable[Problem]]

_encode = msgspec.json.Encoder().encode


class Identified(Protocol):
    """What can have an address of its own."""

    @property
    def id(self) -> int:
        """Its number."""
        ...


@dataclass(frozen=True, slots=True)
class Answer:
    """What a request was answered with."""

    status: int
    body: bytes
    location: str | None = None
    etag: str | None = None

    def response(self, *, replayed: bool = False) -> Response[bytes]:
        """The answer as it goes over the wire."""
        refused = self.status >= HTTPStatus.BAD_REQUEST
        headers = {"Location": self.location} if self.location else {}
        if self.etag:
            headers["ETag"] = self.etag
        if replayed:
            headers["Idempotency-Replayed"] = "true"
        return Response(
            self.body,
            status_code=self.status,
            media_type=MEDIA_TYPE if refused else MediaType.JSON,
            headers=headers,
        )


@dataclass(frozen=True, slots=True)
class Command[D: Identified, O: msgspec.Struct]:
    """One thing that a request asks to have done.

    `work` does it, on the connection of a transaction that may be run again.
    `alone` does it where nothing else is to be in the transaction, if there is a
    better way then. `out` makes the body of the answer from the result, `explain` the problem of
    a refusal. `note` hears of the result once it is durable. `status` is the
    answer's, `collection` the path below which something created is found, and `etag`
    tells one version of the result from another. `takes_time` says that the rider may have
    more time booked ahead by it.
    """

    work: Callable[[AsyncConnection], Awaitable[D]]
    out: Callable[[D], O]
    explain: Explain = explain_plainly
    alone: Callable[[], Awaitable[D]] | None = None
    note: Callable[[D], None] | None = None
    status: HTTPStatus = HTTPStatus.OK
    collection: str | None = None
    etag: Callable[[D], str] | None = None
    takes_time: bool = False

    def answer(self, result: D) -> Answer:
        """The answer to the request whose work had this result."""
        location = None if self.collection is None else f"{self.collection}/{result.id}"
        etag = None if self.etag is None else self.etag(result)
        return Answer(self.status, _encode(self.out(result)), location, etag)

    async def refuse(self, error: TaxiError) -> Answer:
        """The answer to the request whose work raised this."""
        problem = await self.explain(error)
        return Answer(problem.status, _encode(problem))


class Commands:
    """Runs requests that change something, each at most once for its key.

    A rider who asks may have `rider_hours_max` hours booked ahead.
    """

    def __init__(self, ledger: PostgresLedger, rider_hours_max: float = HOURS_AHEAD_MAX) -> None:
        self._ledger = ledger
        self._rider_hours_max = rider_hours_max

    async def run[D: Identified, O: msgspec.Struct](
        self, request: Request[Any, Any, Any], key: str | None, command: Command[D, O]
    ) -> Response[O]:
        """Do the work in one transaction and answer.

        A key is that of the account which sends it: the same of another is another.
        Raises `KeyInUse` while a request with the same key is running,
        `KeyReused` if the key stood for another request, and `Unavailable`.
        """
        command = self._fitted(request, command)
        if key is None:
            response = (await self._run(command)).response()
        else:
            answer, replayed = await self._run_once(
                _own(key, request.user), await _fingerprint(request), command
            )
            response = answer.response(replayed=replayed)
        # The body is encoded already; its type is what the documentation shows.
        return cast("Response[O]", response)

    def _fitted[D: Identified, O: msgspec.Struct](
        self, request: Request[Any, Any, Any], command: Command[D, O]
    ) -> Command[D, O]:
        """The command as the one who asks may have it carried out, and see its answer."""
        who: Principal | None = request.user
        if who is None or who.role.runs_the_fleet:
            return command
        check = recheck(request.scope)
        limited = who.rider_id if command.takes_time and who.role is Role.RIDER else None

        async def checked(connection: AsyncConnection) -> D:
            if check is not None:
                await check(connection)
            return await command.work(connection)

        async def work(connection: AsyncConnection) -> D:
            if limited is None:
                return await checked(connection)
            return await within_hours(connection, limited, self._rider_hours_max, checked)

        async def explain(error: TaxiError) -> Problem:
            return shown(who, await command.explain(error))

        return replace(
            command,
            work=work,
            out=lambda result: shown(who, command.out(result)),
            explain=explain,
            alone=None,  # what is asked first must be in the same transaction
        )

    async def _run[D: Identified, O: msgspec.Struct](self, command: Command[D, O]) -> Answer:
        try:
            if command.alone is None:
                result = await self._ledger.transact(command.work)
            else:
                result = await command.alone()
        except Unavailable:
            raise
        except TaxiError as error:
            return await command.refuse(error)
        if command.note is not None:
            command.note(result)
        return command.answer(result)

    async def _run_once[D: Identified, O: msgspec.Struct](
        self, key: str, fingerprint: bytes, command: Command[D, O]
    ) -> tuple[Answer, bool]:
        """The answer, and whether it was given before."""

        async def do_or_recall(connection: AsyncConnection) -> tuple[Answer, D | None]:
            stored = await _look_up(connection, key, fingerprint)
            if stored is not None:
                return stored, None
            result = await command.work(connection)
            answer = command.answer(result)
            await _store(connection, key, fingerprint, answer)
            return answer, result

        try:
            answer, result = await self._ledger.transact(do_or_recall)
        except (Unavailable, KeyInUse, KeyReused):
            raise
        except TaxiError as error:
            return await self._remember(key, fingerprint, await command.refuse(error))
        if result is None:
            return answer, True
        if command.note is not None:
            command.note(result)
        return answer, False

    async def _remember(self, key: str, fingerprint: bytes, answer: Answer) -> tuple[Answer, bool]:
        async def work(connection: AsyncConnection) -> tuple[Answer, bool]:
            stored = await _look_up(connection, key, fingerprint)
            if stored is not None:
                return stored, True
            await _store(connection, key, fingerprint, answer)
            return answer, False

        return await self._ledger.transact(work)


async def forget_keys(database: Database, older_than: timedelta) -> int:
    """Forget the keys that were stored longer ago than `older_than`; how many there were."""

    async def work(connection: AsyncConnection) -> int:
        deleted = await connection.execute(
            delete(idempotency_keys).where(idempotency_keys.c.created_at < func.now() - older_than)
        )
        return deleted.rowcount

    return await database.transact(work)


def _own(key: str, who: Principal | None) -> str:
    """The key as it is stored: nobody can come by the answer to somebody else's request."""
    return f"{who.account_id if who else 'nobody'}:{key}"


async def _fingerprint(request: Request[Any, Any, Any]) -> bytes:
    told = f"{request.method} {request.url.path}\n"
    if insists_on := request.headers.get("If-Match"):
        told += f"If-Match: {insists_on}\n"
    return hashlib.sha256(told.encode() + await request.body()).digest()


async def _look_up(connection: AsyncConnection, key: str, fingerprint: bytes) -> Answer | None:
    """The stored answer, once nobody else is at work on this key."""
    mine = await connection.scalar(
        select(func.pg_try_advisory_xact_lock(func.hashtextextended(key, 0)))
    )
    if not mine:
        raise KeyInUse(field="Idempotency-Key")
    # A statement of its own: in one with the lock, its snapshot would be older than the lock.
    row = (
        await connection.execute(
            select(
                idempotency_keys.c.fingerprint,
                idempotency_keys.c.status,
                idempotency_keys.c.body,
                idempotency_keys.c.location,
                idempotency_keys.c.etag,
            ).where(idempotency_keys.c.key == key)
        )
    ).one_or_none()
    if row is None:
        return None
    if row.fingerprint != fingerprint:
        raise KeyReused(field="Idempotency-Key")
    return Answer(row.status, row.body, row.location, row.etag)


async def _store(connection: AsyncConnection, key: str, fingerprint: bytes, answer: Answer) -> None:
    stored = await connection.scalar(
        insert(idempotency_keys)
        .values(
            key=key,
            fingerprint=fingerprint,
            status=answer.status,
            body=answer.body,
            location=answer.location,
            etag=answer.etag,
        )
        .on_conflict_do_nothing()
        .returning(idempotency_keys.c.key)
    )
    if stored is None:
        # Under a snapshot older than the lock, the look-up missed it. All is rolled back.
        raise KeyInUse(field="Idempotency-Key")
