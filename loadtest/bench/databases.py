"""The databases of a measurement, or of a proof: beside the server's own, and gone afterwards."""

from collections.abc import Iterable

import asyncpg

from booking.postgres.database import dsn, parse_url

_SETTINGS = ("server_version", "fsync", "synchronous_commit", "shared_buffers")


def beside(url: str, name: str) -> str:
    """The address of another database on the same server."""
    return dsn(url, name)


async def drop(server_url: str, urls: Iterable[str]) -> None:
    """Drop these databases of the server's, if they are there, whoever is connected to them."""
    admin = await asyncpg.connect(dsn(server_url))
    try:
        for url in urls:
            name = (parse_url(url).database or "").replace('"', '""')
            await admin.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
    finally:
        await admin.close()


async def describe(server_url: str) -> dict[str, str]:
    """The server's version, and the settings on which a figure depends."""
    connection = await asyncpg.connect(dsn(server_url))
    try:
        return {name: await connection.fetchval(f"SHOW {name}") for name in _SETTINGS}
    finally:
        await connection.close()
