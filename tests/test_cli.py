"""`taxi`, as somebody at a terminal meets it. Every test runs the real command."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from booking.strategies import Act, strategies
from tests.commands import TAXI, run
from tests.conftest import AUTHORIZATION, RunningService


def test_help_shows_every_command() -> None:
    shown = run("--help", COLUMNS="100")
    assert shown.returncode == 0
    for command in (
        "serve",
        "account",
        "replay",
        "demand",
        "strategies",
        "audit",
        "bench",
        "compare",
        "db",
    ):
        assert command in shown.stdout


def test_what_serves_needs_none_of_the_tools_that_measure() -> None:
    """`make run` installs no development tools."""
    hidden = ("BTrees", "jinja2", "locust", "matplotlib", "ncls", "numpy", "pandas", "psutil")
    hide = f"import sys; sys.modules.update(dict.fromkeys({hidden}))"

    def lacking(*arguments: str) -> subprocess.CompletedProcess[str]:
        code = f"{hide}; from api.cli import main; sys.argv = {['taxi', *arguments]}; main()"
        return subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
        )

    shown = lacking("--help")
    assert (shown.returncode, shown.stderr) == (0, "")
    compared = lacking("compare", "--quick")
    assert (compared.returncode, compared.stderr.count("\n")) == (3, 1)
    assert "`make compare`" in compared.stderr


def test_strategies_lists_each_with_its_act_and_claim() -> None:
    listed = json.loads(run("strategies", "--json").stdout)
    assert {(each["act"], each["name"]) for each in listed} == {
        (each.act.value, each.name) for each in strategies()
    }
    shown = run("strategies", COLUMNS="80").stdout
    assert all(each.name in shown for each in strategies())
    claims = {each["name"]: each["claim"] for each in listed if each["act"] == Act.PREVENTION}
    assert claims["check_then_insert"] == "nothing"
    assert claims["exclusion_upsert"] == "safe across processes"


@pytest.mark.parametrize(
    ("arguments", "environment", "said"),
    [
        (("audit",), {"DATABASE_URL": "mysql://localhost/taxi"}, "DATABASE_URL"),
        (("audit",), {"DATABASE_URL": "postgresql://u:secret@127.0.0.1:1/taxi"}, "127.0.0.1:1"),
        (("db", "check"), {"DATABASE_URL": "postgresql://u:secret@127.0.0.1:1/taxi"}, "answer"),
        (("serve",), {"DATABASE_URL": "postgresql://u:secret@127.0.0.1:1/taxi"}, "127.0.0.1:1"),
        (("serve", "--host", "203.0.113.9"), {}, "--host"),
        (("serve", "--prevention", "hope"), {}, "--prevention"),
        (("serve", "--port", "70000"), {}, "--port"),
        (("fly",), {}, "fly"),
    ],
)
def test_what_is_wrong_is_said_in_a_line_without_a_traceback_or_a_password(
    arguments: tuple[str, ...], environment: dict[str, str], said: str
) -> None:
    failed = run(*arguments, **environment)
    assert failed.returncode in {2, 3}
    assert said in failed.stderr
    assert "Traceback" not in failed.stderr
    assert "secret" not in failed.stdout + failed.stderr


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("TAXI_POOL_SIZE", "many"),
        ("TAXI_POOL_SIZE", "0"),
        ("TAXI_WAIT_S_MAX", "-1"),
        ("TAXI_CALENDAR", "nonesuch"),
        ("TAXI_ROSTER", "ask_then_offer"),
    ],
)
def test_a_wrong_setting_is_named(fresh_url: str, variable: str, value: str) -> None:
    failed = run("serve", "--port", "0", DATABASE_URL=fresh_url, **{variable: value})
    assert failed.returncode == 2
    assert variable in failed.stderr
    assert "Traceback" not in failed.stderr


def test_a_roster_is_no_allocator() -> None:
    failed = run("serve", TAXI_ALLOCATOR="gap_index")
    assert failed.returncode == 2
    assert "Invalid value for '--allocator': 'gap_index' is not one of" in failed.stderr


def test_a_demo_on_a_database_with_nobody_to_book_says_where_it_serves(
    fresh_url: str, serve: Any, execute: Any
) -> None:
    alone = "INSERT INTO drivers (name, fleet, zone) VALUES ('Ada', 'main', 'UTC')"
    asyncio.run(execute(fresh_url, alone))
    running = serve(fresh_url, "--demo")
    assert (
        httpx.get(f"{running.address}/riders", headers=AUTHORIZATION, trust_env=False).json()[
            "items"
        ]
        == []
    )


def test_a_port_in_use_is_said_and_without_a_choice_another_is_taken(
    fresh_url: str, serve: Any
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        failed = run("serve", "--port", str(port), DATABASE_URL=fresh_url)
        assert failed.returncode == 3
        assert f"{port} is in use" in failed.stderr
    first, second = serve(fresh_url, port=None), serve(fresh_url, port=None)
    assert first.address != second.address
    for each in (first, second):
        assert httpx.get(f"{each.address}/ready", trust_env=False).is_success


def test_an_audit_finds_what_was_written_past_the_constraint(
    new_database: Any, execute: Any
) -> None:
    url = new_database("check_then_insert")
    row = "(1, 1, 'confirmed', tstzrange('2031-05-06 09:{}Z', '2031-05-06 09:{}Z'))"
    setup = (
        "INSERT INTO drivers (name, fleet, zone) VALUES ('Ada', 'main', 'UTC')",
        "INSERT INTO riders (name) VALUES ('Alan')",
        "INSERT INTO bookings (driver_id, rider_id, state, during) VALUES "
        + ", ".join((row.format("00", "30"), row.format("30", "59"))),
    )
    asyncio.run(execute(url, *setup))
    clean = run("audit", "--json", DATABASE_URL=url)
    assert (clean.returncode, json.loads(clean.stdout)["double_bookings"]) == (0, [])
    overlap = "INSERT INTO bookings (driver_id, rider_id, state, during) VALUES " + row.format(
        "29", "31"
    )
    asyncio.run(execute(url, overlap))
    found = run("audit", "--json", DATABASE_URL=url)
    assert found.returncode == 1
    pairs = [
        (each["earlier"]["booking_id"], each["later"]["booking_id"])
        for each in json.loads(found.stdout)["double_bookings"]
    ]
    assert pairs == [(1, 3), (3, 2)]
    never_served = run("audit", "--prevention", "row_lock", DATABASE_URL=url)
    assert never_served.returncode == 3, "not to be taken for a double booking"
    assert "not set up" in never_served.stderr
    assert "2 double bookings" in run("audit", DATABASE_URL=url, COLUMNS="200").stdout


def test_a_catalogue_that_was_tampered_with_fails_the_check(fresh_url: str, execute: Any) -> None:
    assert run("db", "check", DATABASE_URL=fresh_url).returncode == 0
    drop = "ALTER TABLE bookings DROP CONSTRAINT bookings_no_double_booking"
    asyncio.run(execute(fresh_url, drop))
    failed = run("db", "check", DATABASE_URL=fresh_url)
    assert failed.returncode == 1
    assert "bookings_no_double_booking" in failed.stdout


@contextmanager
def demo(home: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`taxi serve --demo` on a server of its own below `home`, and what it printed."""
    environment = {key: value for key, value in os.environ.items() if key != "DATABASE_URL"}
    with subprocess.Popen(
        [TAXI, "serve", "--demo", "--port", "0"],
        env=environment | {"TAXI_HOME": str(home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        printed = ""
        while "Ctrl-C" not in printed:
            line = process.stdout.readline()
            assert line, process.communicate()
            printed += line
        try:
            yield process, printed
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGINT)  # what Ctrl-C at a terminal sends
            process.communicate(timeout=60)


def commands_in(printed: str) -> list[str]:
    """The lines to be pasted, each behind the one that sets the token."""
    (export,) = re.findall(r"export TAXI_TOKEN=\S+", printed)
    return [f"{export}; {curl}" for curl in re.findall(r"curl .*", printed)]


def token_in(printed: str) -> dict[str, str]:
    """What a request is sent with for it to be the demo's dispatcher's."""
    (token,) = re.findall(r"export TAXI_TOKEN=(\S+)", printed)
    return {"Authorization": f"Bearer {token}"}


def shell(command: str) -> str:
    done = subprocess.run(  # noqa: S602  # it was printed to be pasted into a shell
        command, shell=True, capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout


def test_the_demo_prints_commands_that_work_and_keeps_its_bookings(server_directory: Path) -> None:
    with demo(server_directory) as (first, printed):
        book, again, free = commands_in(printed)
        answer = shell(book)
        assert "201 Created" in answer
        assert "409 Conflict" in shell(again)
        assert json.loads(shell(free))["items"]
        location = re.search(r"(?i)location: (\S+)", answer)
        assert location
        children = psutil.Process(first.pid).children(recursive=True)
    assert first.returncode == 0
    gone, alive = psutil.wait_procs(children, timeout=10)
    assert not alive, (gone, alive)
    assert servers_in(server_directory) == []

    with demo(server_directory) as (second, printed):
        address = re.search(r"Serving on (\S+)", printed)
        assert address
        assert httpx.get(
            address.group(1) + location.group(1), headers=token_in(printed), trust_env=False
        ).is_success
        # The commands printed now work as well, though the first booking is still there.
        assert "201 Created" in shell(commands_in(printed)[0])
    assert second.returncode == 0
    assert servers_in(server_directory) == []


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGHUP])
def test_whatever_stops_the_service_stops_its_database(
    server_directory: Path, sent: signal.Signals
) -> None:
    with demo(server_directory) as (process, _):
        assert servers_in(server_directory)
        process.send_signal(sent)
        process.communicate(timeout=60)
    assert servers_in(server_directory) == []


def test_two_side_by_side_share_a_server_and_the_last_one_stops_it(server_directory: Path) -> None:
    with demo(server_directory) as (_, one):
        with demo(server_directory) as (_, two):
            addresses = [re.search(r"Serving on (\S+)", each) for each in (one, two)]
            found = {each.group(1) for each in addresses if each}
            assert len(found) == 2
        assert sorted(_answers(address) for address in found) == [False, True]
        assert len(servers_in(server_directory)) == 1
    assert servers_in(server_directory) == []


def _answers(address: str) -> bool:
    try:
        return httpx.get(f"{address}/ready", trust_env=False).is_success
    except httpx.HTTPError:
        return False


def servers_in(home: Path) -> list[int]:
    """The process ids of the postmasters whose data belongs to `home`."""
    note = home / "place"  # written where the server's user cannot enter `home` itself
    data = str((Path(note.read_text().strip()) if note.exists() else home) / "postgres")
    return [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if data in (process.info["cmdline"] or ())
    ]


def test_workers_share_a_port_and_count_together(fresh_url: str, serve: Any) -> None:
    running: RunningService = serve(fresh_url, "--workers", "2")
    with httpx.Client(base_url=running.address, headers=AUTHORIZATION, trust_env=False) as client:
        client.post("/drivers", json={"name": "Ada"})
        client.post("/riders", json={"name": "Alan"})
    body = {
        "rider_id": 1,
        "start": "2031-05-06T09:00:00Z",
        "predicted_end": "2031-05-06T09:30:00Z",
    }
    statuses = []
    for _ in range(20):  # each on a connection of its own, so that both workers get some
        answer = httpx.post(
            f"{running.address}/bookings", json=body, headers=AUTHORIZATION, trust_env=False
        )
        statuses.append(answer.status_code)
    assert sorted(statuses) == [201] + [409] * 19
    metrics = httpx.get(f"{running.address}/metrics", trust_env=False).text
    assert re.search(r'taxi_bookings_total\{outcome="booked"\} 1\.0', metrics)
    assert re.search(r'taxi_bookings_total\{outcome="no-driver-free"\} 19\.0', metrics)
