"""The processes of a comparison: a server, the load upon it, and `pgbench`.

Each runs in a session of its own and is gone, with all that it started, when
its block ends, whatever ends the block.
"""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import asyncpg
import httpx

from booking.errors import TaxiError
from booking.postgres.binaries import find_binaries
from booking.postgres.database import parse_url
from booking.postgres.schema import prepare
from booking.postgres.tables import NO_DOUBLE_BOOKING
from loadtest import scenarios
from loadtest.compare_results import NO_OP, Contender, Key, Kind, Measured, Plan

SCENARIOS = Path(scenarios.__path__[0])

_READY_S_MAX = 60.0
_STOP_S_MAX = 15.0
_OVERTIME_S_MAX = 60.0
_BEGIN_S = 1.0
"""For the load's processes to begin; what they send beyond the window is not measured."""
_CONSTRAINED = "exclusion_upsert"
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


class CellFailed(TaxiError):
    """The cell could not be measured."""


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
    for how, patience_s in ((signal.SIGTERM, _STOP_S_MAX), (signal.SIGKILL, _STOP_S_MAX)):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, how)
        with suppress(subprocess.TimeoutExpired):
            process.wait(patience_s)
            return


@contextmanager
def serving(contender: Contender, url: str, folder: Path) -> Iterator[str]:
    """The address of a fresh server process of the contender's."""
    environment = {"DATABASE_URL": url}
    if contender.kind in {Kind.CEILING, Kind.RIVAL}:
        module = "no_op" if contender.name == NO_OP else "orm_rival"
        environment["DATABASE_URL"] = prepare(url, contender.prevention)
        command = [sys.executable, "-m", "loadtest.stand_in", module]
    else:
        taxi = str(Path(sys.executable).parent / "taxi")
        chosen = ("--prevention", contender.prevention, "--allocator", contender.allocator)
        command = [taxi, "serve", "--port", "0", *chosen]
    said_in = folder / "server.log"
    with _process(command, said_in, **environment) as process:
        yield _ready(process, said_in)


def _ready(process: subprocess.Popen[Any], said_in: Path) -> str:
    """The address that the server says it serves on, once it answers there."""
    give_up_at = time.monotonic() + _READY_S_MAX
    while time.monotonic() < give_up_at:
        said = said_in.read_text()
        found = re.search(r"Serving on (http://[\w.:]+)", said)
        if found:
            with suppress(httpx.TransportError):
                if httpx.get(f"{found[1]}/ready", trust_env=False).is_success:
                    return found[1]
        elif process.poll() is not None:
            raise CellFailed(f"The server did not start: {_last_line(said)}")
        time.sleep(0.05)
    raise CellFailed(f"The server did not answer within {_READY_S_MAX:.0f} s.")


def load(plan: Plan, key: Key, address: str, history: Path, rate: float | None) -> None:
    """Run the scenario against the server; its history lies in `history`."""
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
    with _process(command, said_in) as process:
        # Locust's own --run-time begins before the fleet is made, however long that takes.
        _wait_for(history / "setup.json", process, said_in)
        with suppress(subprocess.TimeoutExpired):
            process.wait(plan.warmup_s + plan.duration_s + _BEGIN_S)
            raise CellFailed(f"Locust ended early: {_last_line(said_in.read_text())}")
        process.terminate()
        try:
            status = process.wait(_OVERTIME_S_MAX)
        except subprocess.TimeoutExpired:
            raise CellFailed(f"Locust did not end within {_OVERTIME_S_MAX:.0f} s.") from None
    if status != 0:
        raise CellFailed(f"Locust failed: {_last_line(said_in.read_text())}")


def _wait_for(file: Path, process: subprocess.Popen[Any], said_in: Path) -> None:
    give_up_at = time.monotonic() + _READY_S_MAX
    while not file.exists():
        if process.poll() is not None:
            raise CellFailed(f"Locust failed: {_last_line(said_in.read_text())}")
        if time.monotonic() > give_up_at:
            raise CellFailed(f"The fleet was not there within {_READY_S_MAX:.0f} s.")
        time.sleep(0.05)


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


def dsn(url: str) -> str:
    """The address as asyncpg itself takes it."""
    return parse_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


# The bare insert -------------------------------------------------------------------------------


def bare_insert(url: str, plan: Plan) -> Measured:
    """As many inserts as `pgbench` gets done with as many clients, and nothing to check them."""
    own_url = prepare(url, _CONSTRAINED)
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
