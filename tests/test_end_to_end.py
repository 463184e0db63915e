"""The whole of it, as a user has it: `taxi demand`, `serve`, `replay` and `audit`, together."""

import asyncio
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from booking.postgres import schema
from tests.commands import TAXI, run
from tests.conftest import RunningService, let_in
from tests.test_cli import servers_in

ZONE = ("--zone", "America/New_York")
PATIENCE_S = 60


@pytest.fixture(scope="module")
def trips(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file of synthetic trips."""
    path = str(tmp_path_factory.mktemp("demand") / "trips.csv")
    made = run("demand", "--trips", "400", "--days", "3", "--seed", "1", "-o", path)
    assert made.returncode == 0, made.stderr
    return path


def replay(trips: str, address: str, *options: str) -> dict[str, Any]:
    done = run("replay", trips, *ZONE, "--url", address, "--json", "--quiet", *options)
    report: dict[str, Any] = json.loads(done.stdout) | {"exit_code": done.returncode}
    return report


def audited(url: str, prevention: str) -> dict[str, Any]:
    done = run("audit", "--prevention", prevention, "--json", DATABASE_URL=url)
    found: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == (1 if found["double_bookings"] else 0)
    return found


def test_many_clients_over_two_processes_never_double_book(
    fresh_url: str, serve: Callable[..., RunningService], trips: str
) -> None:
    service = serve(fresh_url, "--workers", "2")
    options = ("--drivers", "8", "--clients", "32", "--order", "shuffled", "--named")
    report = replay(trips, service.address, *options)
    assert report["exit_code"] == 0
    assert report["failed"] == 0
    assert report["refused"] > 0, "with nothing refused, nothing was contended"
    assert report["accepted"] + report["refused"] == report["trips"] == 400
    found = audited(fresh_url, schema.SHIPPED)
    assert found["bookings"] == report["accepted"]
    assert found["double_bookings"] == []


def test_the_bug_is_caught_by_the_same_audit_under_the_same_work(
    fresh_url: str, serve: Callable[..., RunningService], trips: str
) -> None:
    service = serve(fresh_url, "--workers", "2", "--prevention", "check_then_insert")
    # In order of start, so that trips which overlap are asked for at the same moment.
    options = ("--drivers", "1", "--clients", "32", "--order", "start", "--named")
    assert replay(trips, service.address, *options)["exit_code"] == 0
    assert audited(fresh_url, "check_then_insert")["double_bookings"]


@pytest.fixture
def embedded(server_directory: Path) -> Iterator[tuple[str, Path]]:
    """The address of a service on an embedded server of its own, and that server's home."""
    environment = {key: value for key, value in os.environ.items() if key != "DATABASE_URL"}
    with subprocess.Popen(
        [TAXI, "serve", "--port", "0"],
        env=environment | {"TAXI_HOME": str(server_directory)},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        address = process.stdout.readline().split()[2]
        let_in(run("db", "url", TAXI_HOME=str(server_directory), DATABASE_URL="").stdout.strip())
        yield address, server_directory
        assert process.poll() is None, "the service must recover by itself, not by a restart"
        process.send_signal(signal.SIGINT)


def replay_through_a_crash(trips: str, address: str, home: Path) -> dict[str, Any]:
    """Replay, and kill the database when a quarter of the trips are booked."""
    with subprocess.Popen(
        [
            *(TAXI, "replay", trips, *ZONE, "--url", address, "--json", "--quiet", "--verify"),
            *("--drivers", "8", "--clients", "8", "--patience", str(PATIENCE_S)),
        ],
        stdout=subprocess.PIPE,
        text=True,
    ) as replaying:
        with httpx.Client(base_url=address, trust_env=False, timeout=30) as client:
            while booked(client) < 100:
                assert replaying.poll() is None
                time.sleep(0.05)
        (postmaster,) = servers_in(home)
        os.kill(postmaster, signal.SIGKILL)
        said, _ = replaying.communicate(timeout=240)
    report: dict[str, Any] = json.loads(said) | {"exit_code": replaying.returncode}
    return report


def booked(client: httpx.Client) -> int:
    for line in client.get("/metrics").text.splitlines():
        if line.startswith('taxi_bookings_total{outcome="booked"}'):
            return int(float(line.split()[1]))
    return 0


def test_what_was_acknowledged_survives_the_death_of_the_database(
    embedded: tuple[str, Path], trips: str
) -> None:
    address, home = embedded
    report = replay_through_a_crash(trips, address, home)
    assert report["exit_code"] == 0, report
    assert report["accepted"] + report["refused"] == 400
    assert any("503" in reason for reason in report["retries_by_reason"]), report
    assert report["verified"]["missing"] == []
    assert httpx.get(f"{address}/ready", trust_env=False).is_success
    audit = run("audit", "--json", TAXI_HOME=str(home), DATABASE_URL="")
    assert (audit.returncode, json.loads(audit.stdout)["bookings"]) == (0, report["accepted"])


def test_the_control_a_database_that_acknowledges_too_early_loses_bookings(
    embedded: tuple[str, Path], trips: str, execute: Callable[..., Any]
) -> None:
    address, home = embedded
    url = run("db", "url", TAXI_HOME=str(home), DATABASE_URL="").stdout.strip()
    for setting in ("synchronous_commit = off", "wal_writer_delay = '10s'"):
        asyncio.run(execute(url, f"ALTER SYSTEM SET {setting}"))
    asyncio.run(execute(url, "SELECT pg_reload_conf()"))
    report = replay_through_a_crash(trips, address, home)
    assert report["exit_code"] == 1, report
    assert report["verified"]["missing"], "a crash test whose control loses nothing proves nothing"
