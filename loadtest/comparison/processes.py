"""The processes of a comparison: a server, the load upon it, and `pgbench`.

Each runs in a session of its own and is gone, with all that it started, when
its block ends, whatever ends the block.
"""

import asyncio
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import asyncpg
import httpx

from api.settings import SECRET_BYTES_MIN
from api.tokens import mint
from booking.accounts import Role
from booking.postgres.accounts import ensure_account
from booking.postgres.binaries import find_binaries
from booking.postgres.database import Database, dsn, parse_url
from booking.postgres.schema import prepare
from booking.postgres.tables import NO_DOUBLE_BOOKING
from loadtest import scenarios
from loadtest.comparison import cpu
from loadtest.comparison.results import NO_OP, CellFailed, Contender, Key, Kind, Measured, Plan
from loadtest.history import first_of_each_process

SCENARIOS = Path(scenarios.__path__[0])

_LOAD = "load@laboratory.example"
_TOKEN_LASTS = timedelta(days=1)
_READY_S_MAX = 60.0
_STOP_S_MAX = 15.0
_OVERTIME_S_MAX = 60.0
_GONE_S_MAX = 1.0  # what was killed may stay in the list, if nobody asks how it ended
_MARGIN_S = 1.0
"""The load goes on for so long beyond what is measured: the window begins with the first request
after the warm-up, which a slow answer before it may hold up."""
CONSTRAINED = "exclusion_upsert"
"""Whose database has the constraint and nothing besides, so that none is left without it."""
_BARE_DRIVERS = 1_000
_BARE_INSERT = """
\\set driver random(1, :drivers)
\\set slot random(0, 8640)
INSERT INTO bookings (driver_id, rider_id, state, during)
VALUES (:driver, 1, 'confirmed',
        tstzrange('2030-01-01 00:00Z'::timestamptz + :slot * interval '5 min',
                  '2030-01-01 00:30Z'::timestamptz + :slot * interval '5 min'))
RETURNING id, created_at;
"""


@contextmanager
def _process(command: Sequence[str | Path], said_in: Path, **environment: str) -> Iterator[Any]:
    """A process in a session of its own, with all that it starts; gone when the block ends."""
    with (
        said_in.open("w") as said,
        subprocess.Popen(
            command,
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a Ctrl-C at the terminal reaches us alone
        ) as process,
    ):
        try:
            yield process
        finally:
            _stop(process)


def _stop(process: subprocess.Popen[Any]) -> None:
    """Ask it to end, and let nothing that it started live on, also if it has ended by itself."""
    # None is left; or, as macOS puts it, none that may be sent a signal.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_S_MAX)
        give_up_at = time.monotonic() + _GONE_S_MAX
        while time.monotonic() < give_up_at:
            os.killpg(process.pid, signal.SIGKILL)
            process.poll()
            time.sleep(0.01)


@contextmanager
def serving(contender: Contender, url: str, folder: Path) -> Iterator[tuple[str, int]]:
    """The address of a fresh server process of the contender's, and its number."""
    environment = {"DATABASE_URL": url, "TAXI_TOKEN_SECRET": secret()}
    if contender.kind in {Kind.CEILING, Kind.RIVAL}:
        module = "no_op" if contender.name == NO_OP else "orm_rival"
        environment["DATABASE_URL"] = prepare(url, contender.prevention)
        command = [sys.executable, "-m", "loadtest.comparison.stand_in", module]
    else:
        taxi = str(Path(sys.executable).parent / "taxi")
        chosen = ("--prevention", contender.prevention, "--allocator", contender.allocator)
        command = [taxi, "serve", "--port", "0", *chosen]
    said_in = folder / "server.log"
    with _process(command, said_in, **environment) as process:
        yield _ready(process, said_in), process.pid
        if process.poll() is not None:
            raise CellFailed(f"The server died under the load: {_last_line(said_in.read_text())}")


def _ready(process: subprocess.Popen[Any], said_in: Path) -> str:
    """The address that the server says it serves on, once it answers there."""
    give_up_at = time.monotonic() + _READY_S_MAX
    while time.monotonic() < give_up_at:
        ended = process.poll() is not None  # before what it said is read, so that nothing is missed
        said = said_in.read_text()
        if ended:
            raise CellFailed(f"The server did not start: {_last_line(said)}")
        found = re.search(r"Serving on (http://[\w.:]+)", said)
        if found:
            with suppress(httpx.TransportError):
                if httpx.get(f"{found[1]}/ready", trust_env=False).is_success:
                    return found[1]
        time.sleep(0.05)
    raise CellFailed(f"The server did not answer within {_READY_S_MAX:.0f} s.")


def load(
    plan: Plan,
    key: Key,
    address: str,
    history: Path,
    rate: float | None,
    own_url: str,
    watched: Mapping[str, int],
) -> cpu.Seconds:
    """Run the scenario against the server; its history lies in `history`.

    The load has an account of its own in the server's database, at `own_url`. Returns what
    those who are watched, by the number of their first process, and the load itself used of
    the processor while it was measured.
    """
    users = plan.clients if rate is None else plan.load_processes
    arrivals = ("--arrivals=closed", "--rate=")
    if rate is not None:
        arrivals = ("--arrivals=open", f"--rate={rate:.1f}")
    command = [
        sys.executable,
        *("-m", "locust", "-f", str(SCENARIOS / f"{key.scenario}.py")),
        *("--headless", "--only-summary", "--exit-code-on-error=0"),
        *(f"--host={address}", f"-u={users}", f"-r={users}"),
        *_processes(plan.load_processes),
        *(f"--warmup-s={plan.warmup_s}", f"--seed={plan.seed + key.repeat}"),
        *arrivals,
        f"--history={history}",
    ]
    said_in = history.with_suffix(".log")
    token = asyncio.run(_token(own_url))
    with _process(command, said_in, TAXI_TOKEN=token) as process:
        # Locust's own --run-time begins before the fleet is made, however long that takes.
        begun_s = _begun_s(history, plan.load_processes, process, said_in)
        everybody = {**watched, "load": process.pid}
        warm_s = begun_s + plan.warmup_s
        _wait_until(warm_s, process, said_in)
        before = cpu.used_s(everybody)
        _wait_until(warm_s + plan.duration_s, process, said_in)
        used = cpu.between(before, cpu.used_s(everybody))
        _wait_until(warm_s + plan.duration_s + _MARGIN_S, process, said_in)
        process.terminate()
        try:
            status = process.wait(_OVERTIME_S_MAX)
        except subprocess.TimeoutExpired:
            raise CellFailed(f"Locust did not end within {_OVERTIME_S_MAX:.0f} s.") from None
    if status != 0:
        raise CellFailed(f"Locust failed: {_last_line(said_in.read_text())}")
    return used


def _wait_until(moment_s: float, process: subprocess.Popen[Any], said_in: Path) -> None:
    with suppress(subprocess.TimeoutExpired):
        process.wait(max(0.0, moment_s - time.time()))
        raise CellFailed(f"Locust ended early: {_last_line(said_in.read_text())}")


@cache
def secret() -> str:
    """What the servers sign their tokens with: ours, or one for this process alone."""
    return os.environ.get("TAXI_TOKEN_SECRET") or secrets.token_hex(SECRET_BYTES_MIN)


async def _token(url: str) -> str:
    """A token for whoever sends the load: a dispatcher, who is looked up as everybody is."""
    database = Database(url, pool_size=1)
    try:
        dispatcher = await database.transact(
            lambda connection: ensure_account(connection, _LOAD, Role.DISPATCHER)
        )
    finally:
        await database.close()
    return mint(secret(), dispatcher.id, _TOKEN_LASTS)


def _begun_s(history: Path, processes: int, process: subprocess.Popen[Any], said_in: Path) -> float:
    """When the last of the load's processes sent its first request (seconds since 1970)."""
    give_up_at = time.monotonic() + _READY_S_MAX
    while len(first := first_of_each_process(history)) < processes:
        if process.poll() is not None:
            raise CellFailed(f"Locust failed: {_last_line(said_in.read_text())}")
        if time.monotonic() > give_up_at:
            raise CellFailed(f"The load had not begun within {_READY_S_MAX:.0f} s.")
        time.sleep(0.05)
    return max(request.intended_s for request in first)


def _processes(number: int) -> tuple[str, ...]:
    """Several processes talk to each other, by a port that must be nobody else's."""
    if number == 1:
        return ()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    return (
        f"--processes={number}",
        *("--master-bind-host=127.0.0.1", f"--master-bind-port={port}", f"--master-port={port}"),
    )


def _last_line(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


# The bare insert -------------------------------------------------------------------------------


def bare_insert(url: str, plan: Plan) -> Measured:
    """As many inserts as `pgbench` gets done with as many clients, and nothing to check them."""
    own_url = prepare(url, CONSTRAINED)
    asyncio.run(_unconstrain(own_url))
    pgbench = find_binaries() / "pgbench"
    if not pgbench.exists():
        raise CellFailed(f"There is no pgbench in {pgbench.parent}.")
    address = parse_url(own_url)
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as script:
        script.write(_BARE_INSERT)
        script.flush()
        command = [
            *(str(pgbench), "--no-vacuum", "--protocol=prepared", f"--file={script.name}"),
            f"--define=drivers={_BARE_DRIVERS}",
            *(f"--client={plan.clients}", f"--jobs={min(plan.clients, plan.load_processes)}"),
            f"--time={plan.duration_s}",
            *(f"--host={address.host}", f"--port={address.port or 5432}"),
            *(f"--username={address.username}", str(address.database)),
        ]
        said = _output_of(command, plan.duration_s + _OVERTIME_S_MAX, address.password)
    rate = re.search(r"^tps = ([\d.]+)", said, re.MULTILINE)
    wait_ms = re.search(r"^latency average = ([\d.]+) ms", said, re.MULTILINE)
    if rate is None or wait_ms is None:
        raise CellFailed(f"pgbench failed: {_last_line(said)}")
    per_s = round(float(rate[1]), 1)
    return Measured(
        answered_per_s=per_s,
        booked_per_s=per_s,
        in_time_per_s=per_s,
        latency_ms={"mean": round(float(wait_ms[1]), 2)},
        answers={},
    )


def _output_of(command: list[str], seconds_max: float, password: object) -> str:
    with tempfile.TemporaryDirectory(prefix="taxi-compare-") as folder:
        said_in = Path(folder) / "said.log"
        patient = suppress(subprocess.TimeoutExpired)
        with _process(command, said_in, PGPASSWORD=str(password or "")) as process, patient:
            process.wait(seconds_max)
        return said_in.read_text()


async def _unconstrain(url: str) -> None:
    connection = await asyncpg.connect(dsn(url))
    try:
        await connection.execute(
            f"ALTER TABLE bookings DROP CONSTRAINT IF EXISTS {NO_DOUBLE_BOOKING}"
        )
        await connection.execute("INSERT INTO riders (name) VALUES ('Bob')")
        await connection.execute(
            "INSERT INTO drivers (name, fleet, zone)"
            " SELECT 'Ada', 'bare', 'UTC' FROM generate_series(1, $1)",
            _BARE_DRIVERS,
        )
    finally:
        await connection.close()
