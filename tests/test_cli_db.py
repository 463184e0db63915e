"""`taxi db`, as whoever looks after the database meets it."""

import asyncio
import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import httpx
import pytest

from booking.postgres import schema
from booking.postgres.database import dsn, parse_url
from tests.api.conftest import add, at
from tests.commands import TAXI, run
from tests.conftest import AUTHORIZATION, RunningService
from tests.world import Execute, NewDatabase

BOOK_NINE = (
    "INSERT INTO bookings (driver_id, rider_id, state, during)"
    " VALUES (1, 1, 'confirmed', tstzrange('2031-05-06 09:00Z', '2031-05-06 10:00Z'))"
)
AN_EVENT = (
    "INSERT INTO booking_events (booking_id, version, kind, actor, booking, changed)"
    " VALUES (1, 1, 'booked', 'service', '{}', '{}')"
)
WRITTEN_IN = "SELECT written_in FROM booking_events"
FUTURE = 2**52
"""A transaction's number that no server of a test comes to."""


def query(url: str, statement: str) -> list[Any]:
    async def work() -> list[Any]:
        connection = await asyncpg.connect(url)
        try:
            return [tuple(row) for row in await connection.fetch(statement)]
        finally:
            await connection.close()

    return asyncio.run(work())


def stop(service: RunningService) -> None:
    service.process.terminate()
    service.process.wait(timeout=60)


def book_some(client: httpx.Client) -> list[tuple[dict[str, str], dict[str, Any], dict[str, Any]]]:
    """Header, body and answer of some bookings."""
    driver = add(client, "/drivers", {"name": "Ada"})
    rider = add(client, "/riders", {"name": "Alan"})
    done = []
    for minute in (0, 30, 60):
        key = {"Idempotency-Key": str(uuid4())}
        body = {
            "driver_id": driver,
            "rider_id": rider,
            "start": at(minute),
            "predicted_end": at(minute + 30),
        }
        answer = client.post("/bookings", json=body, headers=key)
        assert answer.status_code == 201, answer.text
        done.append((key, body, answer.json()))
    return done


def test_the_drill_book_back_up_drop_restore_and_everything_is_there(
    fresh_url: str,
    serve: Callable[..., RunningService],
    execute: Execute,
    server: Any,
    tmp_path: Path,
) -> None:
    first = serve(fresh_url)
    with httpx.Client(
        headers=AUTHORIZATION, base_url=first.address, trust_env=False, timeout=30
    ) as client:
        done = book_some(client)
        file = tmp_path / "taxi.backup"
        # With the service running; as one whose server has counted further than the next will.
        asyncio.run(
            execute(
                fresh_url,
                "ALTER TABLE bookings DISABLE TRIGGER USER",
                f"UPDATE bookings SET changed_in = {FUTURE}",
                "ALTER TABLE bookings ENABLE TRIGGER USER",
                "ALTER TABLE booking_events DISABLE TRIGGER USER",
                f"UPDATE booking_events SET written_in = {FUTURE}",
                "ALTER TABLE booking_events ENABLE TRIGGER USER",
            )
        )
        before = query(fresh_url, "SELECT id, version, during FROM bookings ORDER BY id")
        made = run("db", "backup", str(file), DATABASE_URL=fresh_url)
        assert made.returncode == 0, made.stderr
        assert file.stat().st_mode & 0o077 == 0, "people's names are in it"
        again = run("db", "backup", str(file), DATABASE_URL=fresh_url)
        assert (again.returncode, "--force" in again.stderr) == (2, True)
        in_use = run("db", "restore", str(file), "--yes", DATABASE_URL=fresh_url)
        assert (in_use.returncode, "stop the service" in in_use.stderr) == (3, True)
    stop(first)
    full = run("db", "restore", str(file), DATABASE_URL=fresh_url)
    assert (full.returncode, "not empty" in full.stderr) == (3, True)

    name = parse_url(fresh_url).database
    asyncio.run(execute(server.url, f"DROP DATABASE {name} WITH (FORCE)"))
    restored = run("db", "restore", str(file), DATABASE_URL=fresh_url)
    assert restored.returncode == 0, restored.stderr
    assert query(fresh_url, "SELECT id, version, during FROM bookings ORDER BY id") == before
    # Or what happened on the other server would be shown to nobody until this one has caught up.
    assert query(fresh_url, f"{WRITTEN_IN} ORDER BY id") == [(0,)] * len(done)
    assert run("db", "check", DATABASE_URL=fresh_url).returncode == 0
    audit = json.loads(run("audit", "--json", DATABASE_URL=fresh_url).stdout)
    assert (audit["bookings"], audit["double_bookings"]) == (len(done), [])

    second = serve(fresh_url)
    with httpx.Client(
        headers=AUTHORIZATION, base_url=second.address, trust_env=False, timeout=30
    ) as client:
        check_that_it_goes_on(client, done)


def check_that_it_goes_on(
    client: httpx.Client, done: list[tuple[dict[str, str], dict[str, Any], dict[str, Any]]]
) -> None:
    """Keys are remembered, memory knows what is taken, and new bookings have new numbers."""
    for key, body, answer in done:
        again = client.post("/bookings", json=body, headers=key)
        assert (again.status_code, again.json()) == (201, answer)
        assert again.headers["Idempotency-Replayed"] == "true"
    _, body, last = done[-1]
    refused = client.post("/bookings", json=done[0][1]).json()
    assert refused["next_free"]["start"] == at(90), "behind the last of them"
    new = client.post("/bookings", json=body | {"start": at(90), "predicted_end": at(120)})
    assert new.json()["id"] > last["id"]
    assert client.get("/ready").json()["index"] == "fresh"


def test_what_is_replaced_stays_under_another_name_and_a_bad_file_costs_nothing(
    new_database: NewDatabase, execute: Execute, server: Any, tmp_path: Path
) -> None:
    url = new_database(schema.SHIPPED)
    file, bad = tmp_path / "taxi.backup", tmp_path / "bad.backup"
    asyncio.run(execute(url, AN_EVENT))
    written_in = query(url, WRITTEN_IN)
    assert run("db", "backup", str(file), DATABASE_URL=url).returncode == 0
    asyncio.run(execute(url, "INSERT INTO riders (name) VALUES ('Grace')"))
    bad.write_bytes(file.read_bytes()[:2_000])
    failed = run("db", "restore", str(bad), "--yes", DATABASE_URL=url)
    assert failed.returncode == 3
    assert "Traceback" not in failed.stderr
    assert failed.stderr.count("pg_restore") == 1
    assert query(url, "SELECT name FROM riders") == [("Grace",)]

    replaced = run("db", "restore", str(file), "--yes", DATABASE_URL=url)
    assert replaced.returncode == 0, replaced.stderr
    assert query(url, "SELECT name FROM riders") == []
    # On the server that wrote it, what happened keeps its place, and cursors stay good.
    assert query(url, WRITTEN_IN) == written_in != [(0,)]
    kept = re.search(r"in the database (\S+)\.\n", replaced.stdout)
    assert kept
    try:
        assert query(dsn(url, kept.group(1)), "SELECT name FROM riders") == [("Grace",)]
    finally:
        asyncio.run(execute(server.url, f"DROP DATABASE {kept.group(1)} WITH (FORCE)"))
    assert query(server.url, "SELECT 1 FROM pg_database WHERE datname LIKE '%restoring'") == []


def test_a_missing_file_and_a_database_of_somebody_else_are_refused(
    fresh_url: str, execute: Execute, tmp_path: Path
) -> None:
    missing = run("db", "restore", str(tmp_path / "none"), DATABASE_URL=fresh_url)
    assert (missing.returncode, "FILE: There is no file" in missing.stderr) == (2, True)
    asyncio.run(execute(fresh_url, "UPDATE alembic_version SET version_num = '9999'"))
    file = tmp_path / "newer.backup"
    assert run("db", "backup", str(file), DATABASE_URL=fresh_url).returncode == 0
    newer = run("db", "restore", str(file), "--yes", DATABASE_URL=fresh_url)
    assert (newer.returncode, "newer than this code" in newer.stderr) == (3, True)
    unchecked = run("db", "check", DATABASE_URL=fresh_url)
    assert (unchecked.returncode, "at revision 9999" in unchecked.stdout) == (1, True)


def test_the_way_down_wants_a_yes_and_the_check_sees_where_one_is(fresh_url: str) -> None:
    unsure = run("db", "down", "0001", DATABASE_URL=fresh_url)
    assert (unsure.returncode, "--yes" in unsure.stderr) == (2, True)
    assert run("db", "check", DATABASE_URL=fresh_url).returncode == 0
    assert run("db", "down", "0001", "--yes", DATABASE_URL=fresh_url).returncode == 0
    below = run("db", "check", DATABASE_URL=fresh_url)
    assert (below.returncode, "at revision 0001" in below.stdout) == (1, True)
    assert run("db", "migrate", DATABASE_URL=fresh_url).returncode == 0
    assert run("db", "check", DATABASE_URL=fresh_url).returncode == 0


def test_double_bookings_are_listed_given_away_and_ruled_out(
    new_database: NewDatabase, execute: Execute
) -> None:
    url = new_database("check_then_insert")
    assert run("db", "constrain", "--guard-only", DATABASE_URL=url).returncode == 0
    setup = [
        "DROP TRIGGER bookings_claim ON bookings",  # for a moment, to have something to find
        "INSERT INTO drivers (name, fleet, zone) VALUES ('Ada', 'main', 'UTC')",
        "INSERT INTO riders (name) VALUES ('Alan')",
        *[BOOK_NINE] * 2,
    ]
    asyncio.run(execute(url, *setup))
    listed = run("db", "conflicts", "--json", DATABASE_URL=url)
    [found] = json.loads(listed.stdout)
    assert (listed.returncode, found["stays"]["id"], found["goes"]["id"]) == (1, 1, 2)
    assert "Double bookings: 1." in run("db", "check", DATABASE_URL=url).stdout

    left = run("db", "constrain", "--resolve", DATABASE_URL=url)
    assert left.returncode == 1
    assert "1 left" in left.stdout
    assert "do not fit: 1." in left.stdout
    hire = "INSERT INTO drivers (name, fleet, zone) VALUES ('Grace', 'main', 'UTC')"
    asyncio.run(execute(url, hire))
    done = run("db", "constrain", "--resolve", DATABASE_URL=url)
    assert done.returncode == 0, done.stderr
    assert "1 given away" in done.stdout
    assert "The constraint stands over 2 bookings." in done.stdout
    assert query(url, "SELECT driver_id FROM bookings ORDER BY id") == [(1,), (2,)]
    again = run("db", "constrain", DATABASE_URL=url)
    assert (again.returncode, "stands already" in again.stdout) == (0, True)
    asyncio.run(execute(url, "DROP INDEX bookings_by_during"))
    assert run("db", "check", DATABASE_URL=url).returncode == 0


def test_help_says_what_each_command_does() -> None:
    shown = run("db", "--help", COLUMNS="100").stdout
    for name in ("migrate", "down", "check", "backup", "restore", "conflicts", "constrain", "url"):
        assert re.search(rf"{name} +[A-Z]", shown), name


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a disk that is full")
@pytest.mark.parametrize("arguments", [("strategies", "--json"), ("--help",)])
def test_output_that_cannot_be_written_is_a_line_and_no_traceback(
    arguments: tuple[str, ...],
) -> None:
    with Path("/dev/full").open("w") as full:
        failed = subprocess.run(
            [TAXI, *arguments],
            env=os.environ,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert failed.returncode == 1
    assert failed.stderr == "taxi: The output cannot be written: No space left on device.\n"
