"""How a server process stops: it is told, says so, and is left alone to finish.

On SIGTERM a server closes its door and finishes what is under way. But whoever sends it
requests, a load balancer say, learns of it only by a connection that is refused. So the
signal is heard here first: from then on the service says that it is not ready, and that
every connection ends with its present answer. After `drain_s` the server hears of it.
"""

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGTERM, signal.SIGINT)

Handler = Callable[[int, FrameType | None], Any]


class Stopping:
    """Whether this process has been told to stop; and a way to wait for that.

    What would go on for ever, such as a stream of events, has to end when `wait` returns.
    """

    def __init__(self) -> None:
        self.told = False
        """Whether it has been told."""
        self._heard = asyncio.Event()

    def tell(self) -> None:
        """Say that it is to stop; from within the event loop."""
        self.told = True
        self._heard.set()

    async def wait(self) -> None:
        """Return once the process has been told to stop."""
        await self._heard.wait()

    @contextmanager
    def listening(self, drain_s: float) -> Iterator[None]:
        """Hear SIGTERM and SIGINT first until the block is left; the server, `drain_s` later.

        A second signal reaches the server at once. Signals that nobody handles are let alone.
        """
        if threading.current_thread() is not threading.main_thread():
            yield  # Python delivers signals to the main thread alone
            return
        loop = asyncio.get_running_loop()
        servers: dict[int, Handler] = {}

        def hear(number: int, frame: FrameType | None) -> None:
            again, self.told = self.told, True
            loop.call_soon_threadsafe(self.tell)
            if again or not drain_s:
                servers[number](number, frame)
            else:
                # By way of the loop, which sleeps and would not see a timer set from here.
                loop.call_soon_threadsafe(loop.call_later, drain_s, servers[number], number, None)

        for number in _SIGNALS:
            handler = signal.getsignal(number)
            if callable(handler):
                servers[number] = handler
                signal.signal(number, hear)
        try:
            yield
        finally:
            for told, handler in servers.items():
                if signal.getsignal(told) is hear:
                    signal.signal(told, handler)
