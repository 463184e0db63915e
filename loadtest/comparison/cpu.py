"""Whose processor time an answer takes: the service's, the database's, or the load's.

On a machine of two threads the three share them, and a rate alone does not say which of
them it is the limit of.
"""

from collections.abc import Mapping
from contextlib import suppress

import asyncpg

from booking.postgres.database import dsn

Seconds = Mapping[str, float]
"""Processor seconds of each of those who are watched."""


async def postmaster(url: str) -> int | None:
    """The process that PostgreSQL's others descend from; None if it is not on this machine."""
    try:
        connection = await asyncpg.connect(dsn(url))
    except (OSError, asyncpg.PostgresError):
        return None  # whoever needs the server says so better
    try:
        local = await connection.fetchval("SELECT inet_client_addr() = inet_server_addr()")
        backend = await connection.fetchval("SELECT pg_backend_pid()")
        return None if local is False else _parent_of(backend)
    finally:
        await connection.close()


def _parent_of(backend: int) -> int | None:
    import psutil  # noqa: PLC0415  # not in every environment, and `taxi --help` loads this file

    with suppress(psutil.Error):
        parent = psutil.Process(backend).parent()
        if parent is not None and "postgres" in parent.name():
            return int(parent.pid)
    return None


def used_s(watched: Mapping[str, int]) -> Seconds:
    """What each tree of processes has used so far, those included that have ended."""
    return {who: _of_tree(pid) for who, pid in watched.items()}


def between(before: Seconds, after: Seconds) -> Seconds:
    """What each used in between."""
    return {who: after[who] - before[who] for who in before if who in after}


def _of_tree(pid: int) -> float:
    import psutil  # noqa: PLC0415  # as above

    total_s = 0.0
    with suppress(psutil.Error):
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            with suppress(psutil.Error):
                times = process.cpu_times()
                total_s += times.user + times.system
                total_s += getattr(times, "children_user", 0.0)
                total_s += getattr(times, "children_system", 0.0)
    return total_s
