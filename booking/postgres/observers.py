"""`Observer`: who is told of what happens at the database, and has no say in it."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import Context


class Observer:
    """Is told, and does nothing with it; whoever counts or traces says what to do instead.

    It is called on the way of a request: it must be quick, and must not raise.
    """

    def ran_again(self, sqlstate: str) -> None:
        """A transaction collided with others, as `sqlstate` says, and is run once more."""

    def grouped(self, origins: Sequence[Context]) -> AbstractContextManager[None]:
        """Surrounds a write that several requests share, one for each of `origins`.

        These are the contexts in which the requests were made; the write has an empty one.
        """
        del origins
        return nullcontext()
