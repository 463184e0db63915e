"""`Feed`: the events as they happen, for many who follow them, by one poll a process.

Whoever joins with a cursor first catches up, a page at a time, and then shares the poll
with the others. Nobody is waited for: a follower who does not keep up is
dropped, and goes on later from the last event that reached it. The database is asked by
the poll and not by LISTEN, which would have commits wait for each other (decision 0003).
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import msgspec
from litestar.response import ServerSentEventMessage
from sqlalchemy.ext.asyncio import AsyncConnection

from api.bodies.events import EventOut
from booking.errors import TooManyStreams, Unavailable
from booking.events import EVERYTHING, BookingEvent, Cursor, EventFilter
from booking.postgres.database import Database
from booking.postgres.events import EventPage, present_position, read_events

logger = logging.getLogger(__name__)

_RETRY_S = 1.0
_encode = msgspec.json.Encoder().encode


class _Stream:
    """One that is open: the task that sends it, and since when it has been sending, if it is."""

    def __init__(self) -> None:
        self._task = asyncio.current_task()
        self._loop = asyncio.get_running_loop()
        self.sending_since_s: float | None = None

    def sends(self, message: ServerSentEventMessage) -> ServerSentEventMessage:
        """Note that the message is handed over to be sent."""
        self.sending_since_s = self._loop.time()
        return message

    def sent(self) -> None:
        """Note that somebody asks for the next one."""
        self.sending_since_s = None

    def drop(self) -> None:
        """Break off. It hangs in the sending of what the client does not read."""
        if self._task is not None:
            self._task.cancel()


class _Follower:
    """Somebody who follows, and what is on its way to them."""

    def __init__(
        self, stream: _Stream, wanted: EventFilter, after: Cursor, behind_max: int
    ) -> None:
        self.stream = stream
        self.wanted = wanted
        self.after = after
        # One place more, for the word that it is over.
        self.queue: asyncio.Queue[ServerSentEventMessage | None] = asyncio.Queue(behind_max + 1)

    def offer(self, event: BookingEvent, told: ServerSentEventMessage) -> bool:
        """Hand over an event, if it is wanted and new; whether there was room."""
        if event.cursor <= self.after or not self.wanted.matches(event):
            return True
        if self.queue.qsize() >= self.queue.maxsize - 1:
            return False
        self.queue.put_nowait(told)
        return True

    def end(self) -> None:
        """Nothing more comes."""
        self.queue.put_nowait(None)


class Feed:
    """Follows the events while anybody listens, every `poll_interval_s` seconds.

    At most `streams_max` may listen. A follower hears at least a comment every
    `heartbeat_s` seconds. One that is `behind_max` events behind is dropped, and one to
    whom nothing could be sent for `stuck_s_max` seconds.
    """

    def __init__(
        self,
        database: Database,
        *,
        streams_max: int,
        poll_interval_s: float = 0.25,
        heartbeat_s: float = 15.0,
        stuck_s_max: float = 60.0,
        behind_max: int = 1_000,
    ) -> None:
        self.database = database
        self._streams_max = streams_max
        self._poll_interval_s = poll_interval_s
        self._heartbeat_s = heartbeat_s
        self._stuck_s_max = stuck_s_max
        self._behind_max = behind_max
        self._streams: set[_Stream] = set()
        self._followers: set[_Follower] = set()
        self._position: Cursor | None = None
        self._somebody = asyncio.Event()
        self._stopping = False

    @property
    def streams(self) -> int:
        """How many streams are open."""
        return len(self._streams)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Follow in the background until the block is left."""
        helpers = [asyncio.create_task(each) for each in (self._follow(), self._drop_the_stuck())]
        try:
            yield
        finally:
            self.stop()
            for helper in helpers:
                helper.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)

    def stop(self) -> None:
        """End every stream, and let no other begin."""
        self._stopping = True
        for follower in self._followers:
            follower.end()
        self._followers.clear()

    async def check(self, after: Cursor | None) -> Cursor:
        """Where a stream that is to begin behind `after` begins; at the present without it.

        Raises `TooManyStreams`, or `UnknownCursor`.
        """
        if self._stopping or self.streams >= self._streams_max:
            raise TooManyStreams
        if after is None:
            return await self._ask(present_position)
        await self._read(after, limit=1)  # for the sake of an error before the answer begins
        return after

    async def _ask[T](self, look: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        return await self.database.transact(look, read_only=True)

    async def _read(
        self, after: Cursor, wanted: EventFilter = EVERYTHING, *, limit: int | None = None
    ) -> EventPage:
        def look(connection: AsyncConnection) -> Awaitable[EventPage]:
            if limit is None:
                return read_events(connection, after, wanted)
            return read_events(connection, after, wanted, limit=limit)

        return await self._ask(look)

    async def stream(
        self, wanted: EventFilter, after: Cursor
    ) -> AsyncGenerator[ServerSentEventMessage]:
        """The events behind `after` that are wanted, as they happen, until the service stops."""
        if self._stopping or self.streams >= self._streams_max:
            return  # somebody else was quicker; who asks again is told so
        stream = _Stream()
        self._streams.add(stream)
        try:
            # At once, so that whoever is cut off before the first event can go on from here.
            greeting = ServerSentEventMessage(data=None, id=str(after), comment="here you are")
            yield stream.sends(greeting)
            stream.sent()
            async for message in self._follow_from(stream, wanted, after):
                yield stream.sends(message)
                stream.sent()
        finally:
            self._streams.discard(stream)

    async def _follow_from(
        self, stream: _Stream, wanted: EventFilter, after: Cursor
    ) -> AsyncGenerator[ServerSentEventMessage]:
        while True:
            try:
                page = await self._read(after, wanted)
            except Unavailable:
                return  # the client comes again
            for event in page.events:
                yield _told(event)
            after = page.position
            # Nothing is awaited from here until it has joined.
            if not page.more and (self._position is None or self._position <= after):
                break
        if self._stopping:
            return
        follower = _Follower(stream, wanted, after, self._behind_max)
        self._join(follower)
        try:
            while (message := await self._next(follower)) is not None:
                yield message
        finally:
            self._leave(follower)

    async def _next(self, follower: _Follower) -> ServerSentEventMessage | None:
        try:
            async with asyncio.timeout(self._heartbeat_s):
                return await follower.queue.get()
        except TimeoutError:
            return ServerSentEventMessage(data=None, comment="still here")

    def _join(self, follower: _Follower) -> None:
        if self._position is None:
            self._position = follower.after
        self._followers.add(follower)
        self._somebody.set()

    def _leave(self, follower: _Follower) -> None:
        self._followers.discard(follower)
        if not self._followers:
            self._position = None
            self._somebody.clear()

    async def _follow(self) -> None:
        while True:
            await self._somebody.wait()
            begun_at = self._position
            if begun_at is None:
                continue
            try:
                page = await self._read(begun_at)
            except Unavailable as error:
                logger.warning("The events wait for now: %s", error)
                await asyncio.sleep(_RETRY_S)
                continue
            except Exception:
                logger.exception("The events cannot be followed; it tries again.")
                await asyncio.sleep(_RETRY_S)
                continue
            if self._position != begun_at:
                continue  # everybody left meanwhile, and somebody else came
            for event in page.events:
                self._tell(event)
            if self._followers:
                self._position = page.position
            if not page.more:
                await asyncio.sleep(self._poll_interval_s)

    async def _drop_the_stuck(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._stuck_s_max / 4)
            since_s = loop.time() - self._stuck_s_max
            for stream in list(self._streams):
                if stream.sending_since_s is None or stream.sending_since_s > since_s:
                    continue
                self._streams.discard(stream)
                logger.warning("Who follows the events and reads nothing is dropped.")
                stream.drop()

    def _tell(self, event: BookingEvent) -> None:
        told = _told(event)
        for follower in list(self._followers):
            if not follower.offer(event, told):
                logger.warning("Who follows the events and does not keep up is dropped.")
                self._leave(follower)
                follower.end()
                self._streams.discard(follower.stream)
                follower.stream.drop()


def _told(event: BookingEvent) -> ServerSentEventMessage:
    return ServerSentEventMessage(
        data=_encode(EventOut.of(event)), id=str(event.cursor), event=event.kind.value
    )
