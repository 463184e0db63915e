"""The databases of a benchmark: beside the server's own, and gone afterwards."""

import asyncpg

from booking.postgres.database import parse_url

_SETTINGS = ("server_version", "fsync", "synchronous_commit", "shared_buffers")


def beside(url: str, name: str) -> str:
    """The address of another database on the same server."""
    own = parse_url(url).set(drivername="postgresql", database=name)
    return own.render_as_string(hide_password=False)


async def drop(server_url: str, urls: list[str]) -> None:
    """Drop these databases of the server's, whoever is connected to them."""
    admin = await asyncpg.connect(server_url)
    try:
        for url in urls:
            await admin.execute(f"DROP DATABASE IF EXISTS {parse_url(url).database} WITH (FORCE)")
    finally:
        await admin.close()


async def describe(server_url: str) -> dict[str, str]:
    """The server's version, and the settings on which a figure depends."""
    connection = await asyncpg.connect(server_url)
    try:
        return {name: await connection.fetchval(f"SHOW {name}") for name in _SETTINGS}
    finally:
        await connection.close()
