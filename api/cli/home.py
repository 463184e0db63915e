"""Which database a command works on: the one in `DATABASE_URL`, or the embedded one."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import rich_click as click

from booking.postgres.embedded import EmbeddedPostgres
from booking.postgres.schema import SHIPPED, SHIPPED_ALLOCATOR
from booking.strategies import Act, strategies

_ALLOCATORS = [each.name for each in strategies(Act.ALLOCATION) if hasattr(each.load(), "allocate")]


def strategy_options[F: Callable[..., object]](command: F) -> F:
    """Add `--prevention` and `--allocator`, which say whose database it is."""
    prevention = click.option(
        "--prevention",
        type=click.Choice([each.name for each in strategies(Act.PREVENTION)]),
        default=SHIPPED,
        show_default=True,
        help="The prevention recipe. Any but the shipped one has a database of its own.",
    )
    allocator = click.option(
        "--allocator",
        type=click.Choice(_ALLOCATORS),
        envvar="TAXI_ALLOCATOR",
        default=SHIPPED_ALLOCATOR,
        show_default=True,
        help="How SQL finds any free driver; a database of its own, likewise.",
    )
    return prevention(allocator(command))


def home() -> Path:
    """Where the embedded server keeps its data: `TAXI_HOME`, or `.taxi` below this folder."""
    return Path(os.environ.get("TAXI_HOME") or ".taxi").absolute()


@contextmanager
def server_url(*, keep_alive: bool = False) -> Iterator[str]:
    """The address of a running server's database; the embedded server runs as long as the block.

    With `keep_alive` it is started again should it die.
    """
    named = os.environ.get("DATABASE_URL")
    if named:
        yield named
        return
    with EmbeddedPostgres(home()) as server:
        if not keep_alive:
            yield server.url
            return
        with server.keep_alive():
            yield server.url
