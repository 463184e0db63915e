"""What those see who come while the database stands still: with and without looking ahead.

    python -m loadtest.bench.shedding

A table is locked for a while, and requests that need it go on arriving, at times of their
own. Behind one gate the line is merely bounded, in length and in patience; behind the
other, whoever would wait for too long is told so at once. The figures are of
`booking.postgres.database.Database` alone, without HTTP.

`docs/13-operating-it.md` shows the recorded result, `docs/results/shedding.json`, once
`taxi figures` has written it there.
"""

import asyncio
import time
from pathlib import Path
from typing import Any, override

import msgspec
import rich_click as click
from rich.console import Console
from sqlalchemy.ext.asyncio import AsyncConnection

from booking.errors import Unavailable
from booking.postgres import schema
from booking.postgres.database import Database
from booking.postgres.gates import Gate
from booking.postgres.ledger import add_rider
from loadtest import machine
from loadtest.bench.databases import beside, describe, drop
from loadtest.bench.own_server import own_server
from loadtest.history import percentiles_ms

_PACKAGES = ("sqlalchemy", "asyncpg")
_NAME = "shedding"


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """`rate` requests a second for `seconds`; the table is locked `stall_s` long, after one.

    The settings are the service's, with less patience, so that the run is short.
    """

    rate: int = 100
    seconds: float = 12.0
    stall_s: float = 8.0
    pool_size: int = 10
    waiting_max: int = 1_000
    wait_s_max: float = 2.0
    statement_s_max: float = 2.0


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the requests behind one gate."""

    gate: str
    requests: int
    served: int
    served_ms: dict[str, float]
    """p50, p90, p99 and the longest, from when they arrived."""
    refused: int
    refused_ms: dict[str, float]
    waiting_max: int
    """The longest line there was."""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """The same stall behind each gate."""

    plan: Plan
    machine: dict[str, Any]
    server: dict[str, str]
    runs: list[Run]


class Bounded(Gate):
    """A gate that does not look ahead."""

    @override
    def expected_wait_s(self) -> float:
        return 0.0


def measure(plan: Plan) -> Result:
    """Run it behind both gates, on a PostgreSQL of its own."""
    about = machine.describe(_PACKAGES)
    with own_server() as server:
        url = schema.prepare(beside(server, _NAME))
        try:
            runs = [
                asyncio.run(_run(url, plan, name, kind))
                for name, kind in (("bounded", Bounded), ("looks ahead", Gate))
            ]
            settings = asyncio.run(describe(server))
        finally:
            asyncio.run(drop(server, [url]))
    return Result(plan=plan, machine=about, server=settings, runs=runs)


async def _run(url: str, plan: Plan, name: str, kind: type[Gate]) -> Run:
    limits: dict[str, Any] = {"waiting_max": plan.waiting_max, "wait_s_max": plan.wait_s_max}
    database = Database(
        url, pool_size=plan.pool_size, statement_s_max=plan.statement_s_max, **limits
    )
    database.gate = kind(plan.pool_size, **limits)
    apart = Database(url, pool_size=1, statement_s_max=plan.seconds)
    served_s: list[float] = []
    refused_s: list[float] = []
    longest = 0

    async def ask() -> None:
        began_s = time.perf_counter()
        try:
            await database.transact(_hire)
        except Unavailable:
            refused_s.append(time.perf_counter() - began_s)
        else:
            served_s.append(time.perf_counter() - began_s)

    try:
        stalling = asyncio.create_task(_stall(apart, plan.stall_s))
        asking: list[asyncio.Task[None]] = []
        began_s = time.perf_counter()
        for number in range(round(plan.rate * plan.seconds)):
            await asyncio.sleep(max(0, began_s + number / plan.rate - time.perf_counter()))
            asking.append(asyncio.create_task(ask()))
            longest = max(longest, database.waiting)
        await asyncio.gather(stalling, *asking)
    finally:
        await apart.close()
        await database.close()
    return Run(
        gate=name,
        requests=len(asking),
        served=len(served_s),
        served_ms=percentiles_ms(served_s),
        refused=len(refused_s),
        refused_ms=percentiles_ms(refused_s),
        waiting_max=longest,
    )


async def _hire(connection: AsyncConnection) -> None:
    await add_rider(connection, "Alan")


async def _stall(apart: Database, stall_s: float) -> None:
    await asyncio.sleep(1)
    async with apart.engine.begin() as connection:
        await connection.exec_driver_sql("LOCK TABLE riders")
        await asyncio.sleep(stall_s)


def markdown(recorded: dict[str, Any]) -> str:
    """A recorded result as a table, and what must be known to read it."""
    result = msgspec.convert(recorded, Result)
    plan = result.plan
    head = (
        "| the gate | requests | served | p50 ms | slowest | refused | p50 ms | slowest | line |",
        "|---|" + "--:|" * 8,
    )
    rows = (f"| {' | '.join(_cells(run))} |" for run in result.runs)
    conditions = (
        f"{plan.rate} requests a second for {plan.seconds:g} s, and the table locked for"
        f" {plan.stall_s:g} s of them; {plan.pool_size} connections, a patience of"
        f" {plan.wait_s_max:g} s before one and of {plan.statement_s_max:g} s for the statement."
        f" {machine.measured_on(result.machine, result.server)}"
    )
    return "\n".join((*head, *rows, "", conditions))


def _cells(run: Run) -> list[str]:
    return [
        run.gate,
        f"{run.requests:,}",
        f"{run.served:,}",
        *_latencies(run.served_ms),
        f"{run.refused:,}",
        *_latencies(run.refused_ms),
        f"{run.waiting_max:,}",
    ]


def _latencies(found: dict[str, float]) -> list[str]:
    return [f"{found[name]:,.1f}" if found else "-" for name in ("p50", "max")]


@click.command()
@click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write every figure to this file.",
)
def main(json_file: Path | None) -> None:
    """Show what a database that stands still looks like from before two kinds of gate."""
    result = measure(Plan())
    encoded = msgspec.json.encode(result)
    Console(highlight=False, soft_wrap=True).print(markdown(msgspec.json.decode(encoded)))
    if json_file:
        json_file.write_bytes(msgspec.json.format(encoded, indent=2) + b"\n")


if __name__ == "__main__":
    main()
