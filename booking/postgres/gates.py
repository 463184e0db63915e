"""The queue before a bounded number of connections: fair, bounded, and frank.

Whoever waits for a turn in vain is refused at last, after having waited for nothing; and
those who give up and ask again make the queue longer. So a gate also looks ahead: who
would wait for too long, by how long turns have taken of late, is refused at once.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from booking.errors import LedgerBusy

_WEIGHT = 0.1
"""What the newest turn counts for in the mean: it is that of some twenty turns."""


class Pace:
    """How long a turn takes, in seconds.

    It is what turns have taken of late; but where none has ended or begun for longer than
    that, at least so long. So a database that stands still is noticed while it does, and
    not afterwards; and one slow turn among quick ones is not taken for it.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._mean_s = 0.0
        self._moved_s = clock()

    def begin(self) -> float:
        """Note that a turn begins; the instant, by this clock."""
        self._moved_s = self._clock()
        return self._moved_s

    def end(self, began_s: float) -> None:
        """Note that the turn has ended which began then."""
        self._moved_s = self._clock()
        self._mean_s += _WEIGHT * (self._moved_s - began_s - self._mean_s)

    def of_a_turn_s(self) -> float:
        """How long a turn that is waited for will take, as far as can be said."""
        return max(self._mean_s, self._clock() - self._moved_s)


class Gate:
    """Lets `turns` at work at once; the others wait, first come, first served.

    At most `waiting_max` wait, none for longer than `wait_s_max` seconds, and whoever
    would have to is not made to wait at all.
    """

    def __init__(
        self,
        turns: int,
        *,
        waiting_max: int,
        wait_s_max: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.waiting = 0
        """How many wait."""
        self._turns = turns
        self._waiting_max = waiting_max
        self._wait_s_max = wait_s_max
        self._pace = Pace(clock)
        # A pool's own queue lets newcomers pass those who wait, and some then wait very long.
        self._semaphore = asyncio.Semaphore(turns)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Have a turn, once there is one. Raises `LedgerBusy`."""
        if self._semaphore.locked() and not self._worth_waiting():
            raise LedgerBusy
        self.waiting += 1
        try:
            async with asyncio.timeout(self._wait_s_max):
                await self._semaphore.acquire()
        except TimeoutError:
            raise LedgerBusy from None
        finally:
            self.waiting -= 1
        began_s = self._pace.begin()
        try:
            yield
        finally:
            self._pace.end(began_s)
            self._semaphore.release()

    def _worth_waiting(self) -> bool:
        return self.waiting < self._waiting_max and self.expected_wait_s() <= self._wait_s_max

    def expected_wait_s(self) -> float:
        """How long whoever comes now will wait, if everybody is at work: in rounds of turns."""
        return (self.waiting // self._turns + 1) * self._pace.of_a_turn_s()
