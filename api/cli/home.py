"""Which database a command works on: the one in `DATABASE_URL`, or the embedded one."""

import os
import secrets
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import rich_click as click

from api.settings import SECRET_BYTES_MIN
from booking.postgres.embedded import EmbeddedPostgres
from booking.postgres.schema import SHIPPED, SHIPPED_ALLOCATOR
from booking.strategies import Act, strategies

_ALLOCATORS = [each.name for each in strategies(Act.ALLOCATION) if hasattr(each.load(), "allocate")]


def strategy_options[F: Callable[..., object]](command: F) -> F:
    """Add `--prevention` and `--allocator`, which say whose database it is."""
    prevention = click.option(
        "--prevention",
        type=click.Choice([each.name for each in strategies(Act.PREVENTION)]),
        metavar="RECIPE",  # two dozen names would bury the other options
        default=SHIPPED,
        show_default=True,
        help="The prevention recipe, one of `taxi strategies --act prevention`."
        " Any but the shipped one has a database of its own.",
    )
    allocator = click.option(
        "--allocator",
        type=click.Choice(_ALLOCATORS),
        metavar="ALLOCATOR",
        envvar="TAXI_ALLOCATOR",
        default=SHIPPED_ALLOCATOR,
        show_default=True,
        help=f"How SQL finds any free driver: {', '.join(_ALLOCATORS)}."
        " A database of its own, likewise.",
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


def token_secret() -> str:
    """What the service signs tokens with: `TAXI_TOKEN_SECRET`, or one kept beside the data.

    Only the embedded server's data has one kept beside it, made when it is first wanted. For a
    database of somebody's own it must be given, as all who serve it need the same; it is then
    "" if it is not, and so where an external issuer is trusted instead.
    """
    given = os.environ.get("TAXI_TOKEN_SECRET")
    if given or os.environ.get("DATABASE_URL") or os.environ.get("TAXI_OIDC_ISSUER"):
        return given or ""
    kept = home() / "token_secret"
    if not kept.exists():
        _keep_one(kept)
    return kept.read_text().strip()


def _keep_one(kept: Path) -> None:
    """Write a secret that nobody else can read; of two who do so at once, one has written it."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=kept.parent)  # readable by us alone
    with os.fdopen(descriptor, "w") as file:
        file.write(f"{secrets.token_hex(SECRET_BYTES_MIN)}\n")
    with suppress(FileExistsError):
        os.link(name, kept)
    Path(name).unlink()
