"""`taxi compare`: what it keeps, what it finds, what it shows."""

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from api.cli.compare import command
from booking.errors import InvalidInput
from booking.postgres.embedded import EmbeddedPostgres
from booking.postgres.schema import SHIPPED
from loadtest import bars, figures
from loadtest.comparison import processes, report
from loadtest.comparison import run as comparing
from loadtest.comparison.bars import bars_of
from loadtest.comparison.files import Files
from loadtest.comparison.results import (
    BARE_INSERT,
    CALM,
    NO_OP,
    ORM_RIVAL,
    Audited,
    Cell,
    CellFailed,
    Comparison,
    Example,
    Key,
    Kind,
    Measured,
    Spread,
    compare,
    judge,
    keys_of,
    measure,
)
from loadtest.comparison.run import (
    Comparer,
    audit,
    contenders_of,
    plan_of,
    recipe_names,
    scenario_names,
)
from loadtest.history import Request, Setup, percentiles_ms
from tests.commands import TAXI, run
from tests.conftest import open_directory
from tests.world import Execute, NewDatabase

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SAFE, UNSAFE = "exclusion_upsert", "check_then_insert"
NINE = datetime(2026, 12, 1, 9, tzinfo=UTC)
TEN = NINE + timedelta(hours=1)


# The whole of it: begun, stopped, gone on with ---------------------------------------------------


@dataclass(frozen=True)
class Ran:
    folder: Path
    server: EmbeddedPostgres
    stopped: int
    kept: list[str]
    page_when_stopped: str
    resumed: subprocess.CompletedProcess[str]

    @property
    def comparison(self) -> Comparison:
        return msgspec.json.decode((self.folder / "comparison.json").read_bytes(), type=Comparison)

    @property
    def cells(self) -> Path:
        return self.folder / "cells.jsonl"


@pytest.fixture(scope="module")
def ran(server: EmbeddedPostgres) -> Iterator[Ran]:
    """A comparison that was stopped by Ctrl-C after its first cell, and gone on with."""
    with open_directory() as folder:
        cells = folder / "cells.jsonl"
        wanted = ("--strategies", f"{SAFE},{UNSAFE}", "--scenarios", "hot_window", "--quick")
        brief = ("--duration-s", "1", "--output", str(folder))
        with subprocess.Popen(
            [TAXI, "compare", *wanted, *brief], env=os.environ | {"DATABASE_URL": server.url}
        ) as process:
            while process.poll() is None and not (cells.exists() and cells.read_bytes()):
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            process.wait(timeout=60)
        kept = cells.read_text().splitlines()
        page = (folder / "comparison.html").read_text()
        yield Ran(folder, server, process.returncode, kept, page, gone_on(server, folder))


def gone_on(server: EmbeddedPostgres, folder: Path) -> subprocess.CompletedProcess[str]:
    return run("compare", "--resume", "--output", str(folder), DATABASE_URL=server.url)


def test_ctrl_c_keeps_what_was_measured_and_reports_it(ran: Ran) -> None:
    assert ran.stopped == 130
    assert len(ran.kept) == 1
    assert NO_OP in ran.page_when_stopped
    assert "Not complete" in ran.page_when_stopped


def test_a_comparison_that_was_stopped_goes_on_where_it_was(ran: Ran) -> None:
    assert ran.resumed.returncode == 0, ran.resumed.stderr
    assert ran.cells.read_text().splitlines()[:1] == ran.kept
    comparison = ran.comparison
    assert comparison.complete
    assert [cell.error for cell in comparison.cells] == [None] * 6
    assert len({cell.key for cell in comparison.cells}) == 6


def test_the_unsafe_are_caught_and_the_safe_one_is_clean(ran: Ran) -> None:
    audits = {each.contender: each.audited for each in ran.comparison.verdicts}
    for name in (UNSAFE, ORM_RIVAL):
        caught = audits[name]
        assert caught is not None
        assert caught.double_bookings > 0
        first = next(each for each in caught.examples if each.kind == "double booking")
        (start, end), (other_start, other_end) = first.windows
        assert start < other_end
        assert other_start < end
        assert len(set(first.booking_ids)) == 2
    clean = audits[SAFE]
    assert clean is not None
    assert clean.faults == 0
    assert min(clean.bookings, clean.acknowledged, clean.refusals) > 0


def test_the_ceilings_are_measured_in_the_same_run(ran: Ran) -> None:
    comparison = ran.comparison
    for name in (NO_OP, BARE_INSERT):
        ceiling = comparison.summary(name, "spread_out")
        assert ceiling is not None
        assert ceiling.answered_per_s.median > 0
    safe = comparison.summary(SAFE, "hot_window")
    assert safe is not None
    assert 0 < (safe.of_no_op or 0) < 1


def test_results_are_written_in_three_forms(ran: Ran) -> None:
    recorded = json.loads((ran.folder / "comparison.json").read_text())
    assert recorded["postgres"]["server_version"]
    assert recorded["machine"]["packages"]["locust"]
    assert report.render_matrix(recorded) in (ran.folder / "comparison.md").read_text()
    assert f"`{SAFE}`" in report.render_matrix(recorded)
    page = (ran.folder / "comparison.html").read_text()
    assert re.findall(r"(?:src|href)\s*=\s*[\"']?(?:https?:)?//", page) == []
    assert UNSAFE in page


def test_what_is_to_be_reached_is_judged_by_what_was_measured(ran: Ran) -> None:
    recorded = msgspec.convert(figures.recorded("comparison"), Comparison)
    assert [each.reached for each in bars_of(recorded)][2:] == [True] * 3
    slow, faulty = (
        replaced(
            recorded,
            SHIPPED,
            answered_per_s=Spread(1.0, 1.0, 1.0),
            audited=Audited(1, 1, 1, lost=1),
        ),
        replaced(recorded, UNSAFE, audited=Audited(1, 1, 1)),
    )
    assert [each.reached for each in bars_of(slow)] == [False, False, True, False, True]
    assert bars_of(faulty)[-1].reached is False
    assert {each.reached for each in bars_of(ran.comparison)[:3]} == {None}, "one scenario alone"
    assert bars.HEADINGS[0] in (ran.folder / "comparison.html").read_text()


def replaced(comparison: Comparison, contender: str, **changes: Any) -> Comparison:
    """As if the contender had been measured and audited otherwise, in the calm scenario."""
    summaries = [
        msgspec.structs.replace(each, **changes)
        if (each.contender, each.scenario) == (contender, CALM)
        else each
        for each in comparison.summaries
    ]
    verdicts = [
        msgspec.structs.replace(each, audited=changes["audited"])
        if each.contender == contender
        else each
        for each in comparison.verdicts
    ]
    return msgspec.structs.replace(comparison, summaries=tuple(summaries), verdicts=tuple(verdicts))


def test_no_database_is_left_behind(ran: Ran) -> None:
    listed = subprocess.run(
        [ran.server.binaries / "psql", ran.server.url, "-Atc", "SELECT datname FROM pg_database"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert "taxi" in listed
    assert [name for name in listed if name.startswith("compare_")] == []


def test_a_broken_claim_is_said_and_exits_with_1(ran: Ran) -> None:
    cells = [msgspec.json.decode(line, type=Cell) for line in ran.cells.read_text().splitlines()]
    planted = [
        msgspec.structs.replace(cell, audited=Audited(9, 9, 9, double_bookings=3))
        if cell.key.contender == SAFE
        else cell
        for cell in cells
    ]
    before = ran.cells.read_bytes()
    try:
        ran.cells.write_bytes(b"".join(msgspec.json.encode(each) + b"\n" for each in planted))
        found = gone_on(ran.server, ran.folder)
    finally:
        ran.cells.write_bytes(before)
    assert found.returncode == 1
    assert f"{SAFE}: 3 double bookings" in found.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--strategies", "hope"), "--strategies"),
        (("--scenarios", "spread_out,hope"), "'hope'"),
        (("--strategies", "anti_join", "--quick"), "any_driver"),
        (("--quick", "--full"), "--full"),
        (("--repeats", "0"), "--repeats"),
        (("--duration-s", "soon"), "--duration-s"),
        (("--resume", "--clients", "3"), "--clients"),
        (("--resume", "--output", "/nowhere/at/all"), "--resume"),
        (("--resume", "--output", f"{__file__}/x"), "There is no comparison"),
    ],
)
def test_wrong_options_are_named_without_a_traceback(
    server: EmbeddedPostgres, arguments: tuple[str, ...], said: str
) -> None:
    refused = run("compare", *arguments, DATABASE_URL=server.url)
    assert refused.returncode == 2
    assert said in refused.stderr
    assert "Traceback" not in refused.stderr


def test_more_clients_than_the_server_has_connections_for_are_refused(
    server: EmbeddedPostgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", server.url)
    with pytest.raises(InvalidInput, match="max_connections is 200") as refused:
        command.main(["--clients", "196", "--output", f"{tmp_path}"], standalone_mode=False)
    assert refused.value.field == "--clients"


def test_what_was_begun_under_other_settings_is_not_gone_on_with(
    ran: Ran, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", ran.server.url)
    monkeypatch.setenv("TAXI_POOL_SIZE", "3")
    with pytest.raises(InvalidInput, match="TAXI_POOL_SIZE unset, and it is 3 now"):
        command.main(["--resume", "--output", f"{ran.folder}"], standalone_mode=False)


def test_only_a_torn_line_is_cut_off_what_was_kept(ran: Ran) -> None:
    files, before = Files(ran.folder), (ran.cells.read_bytes(), ran.cells.stat())
    assert len(files.resume()[1]) == 6
    assert ran.cells.stat() == before[1]  # not so much as written again
    with ran.cells.open("ab") as file:
        file.write(b'{"key":')
    assert len(files.resume()[1]) == 6
    assert ran.cells.read_bytes() == before[0]


def test_two_comparisons_do_not_share_a_folder(tmp_path: Path) -> None:
    with Files(tmp_path / "here").ours(new=True):
        with (
            pytest.raises(InvalidInput, match="Another comparison"),
            Files(tmp_path / "here").ours(new=False),
        ):
            pytest.fail("It was let in.")
        with Files(tmp_path / "there").ours(new=True):
            pass
    with Files(tmp_path / "here").ours(new=False):
        pass


# Its processes -----------------------------------------------------------------------------------

BREAKS = "print('Serving on http://127.0.0.1:9'); raise SystemExit('It lacks a part.')"
STUBBORN = """
import os, signal, time
if os.fork():
    while os.getppid():  # ends by the first signal
        time.sleep(60)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(os.getpid(), flush=True)
time.sleep(600)
"""
MORTAL = """
import os
from http.server import BaseHTTPRequestHandler, HTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path != "/ready":
            print("It was too much.", flush=True)
            os._exit(1)
        self.send_response(200)
        self.end_headers()

server = HTTPServer(("127.0.0.1", 0), Handler)
print(os.getpid(), f"Serving on http://127.0.0.1:{server.server_port}", flush=True)
server.serve_forever()
"""


def test_a_server_that_does_not_start_is_not_waited_for_and_says_why(tmp_path: Path) -> None:
    said_in = tmp_path / "server.log"
    # Private: a comparison's own server starts too well to show it.
    broken = processes._process([sys.executable, "-c", BREAKS], said_in)  # noqa: SLF001
    with broken as process, pytest.raises(CellFailed, match="It lacks a part"):
        processes._ready(process, said_in)  # noqa: SLF001  # all that looks at how it starts


def test_a_stand_in_says_nothing_before_its_application_is_there() -> None:
    module = ("-m", "loadtest.comparison.stand_in", "nobody")
    done = subprocess.run(
        [sys.executable, *module], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode != 0, done.stdout) == (True, "")
    assert "nobody" in done.stderr


def test_a_server_that_dies_under_the_load_fails_its_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taxi = tmp_path / "taxi"
    taxi.write_text(f"#!{sys.executable}\n{MORTAL}")
    taxi.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))  # where `taxi` is looked for
    (contender,) = (each for each in contenders_of([SAFE]) if each.name == SAFE)
    log = tmp_path / "server.log"

    def kill_it() -> None:
        with processes.serving(contender, "postgresql://nobody/taxi", tmp_path) as (address, _):
            with suppress(httpx.TransportError):
                httpx.get(f"{address}/bookings", trust_env=False)
            while is_running(int(log.read_text().split()[0])):
                time.sleep(0.01)

    with pytest.raises(CellFailed, match="died under the load: It was too much"):
        kill_it()


def test_nothing_outlives_the_process_that_started_it(tmp_path: Path) -> None:
    said_in = tmp_path / "said.log"
    # Private: nothing that a comparison starts is as stubborn.
    with processes._process([sys.executable, "-c", STUBBORN], said_in):  # noqa: SLF001
        while not (child := said_in.read_text().strip()):
            time.sleep(0.01)
    assert not is_running(int(child))


def is_running(pid: int) -> bool:
    """Whether it is there, and more than the entry of a process that has ended."""
    ps = shutil.which("ps")
    assert ps
    listed = subprocess.run(
        [ps, "-o", "stat=", "-p", f"{pid}"], capture_output=True, text=True, check=False
    ).stdout
    return bool(listed.strip()) and not listed.startswith("Z")


# The audit, on a real ledger ---------------------------------------------------------------------

SETUP = Setup("test", "main", (1,), (1,), 0)
PEOPLE = (
    "INSERT INTO drivers (name, fleet, zone) VALUES ('Ada', 'main', 'UTC')",
    "INSERT INTO riders (name) VALUES ('Bob')",
)


def insert(start: str, end: str) -> str:
    return (
        "INSERT INTO bookings (driver_id, rider_id, state, during)"
        f" VALUES (1, 1, 'confirmed', '[2026-12-01 {start}Z, 2026-12-01 {end}Z)')"
    )


ASKED: dict[str, Any] = {
    "scenario": "test",
    "action": "book",
    "intended_s": 10,
    "sent_s": 10,
    "answered_s": 11,
    "measured": True,
    "rider_id": 1,
    "driver_id": 1,
    "start": NINE,
    "end": TEN,
}


def asked(status: int, booking_id: int | None = None, **said: Any) -> Request:
    return Request(
        status=status,
        booking_id=booking_id,
        booked_driver_id=1 if booking_id else None,
        problem="booking-conflict" if status == 409 else None,
        **ASKED | said,
    )


RIGHT = [asked(201, 1), asked(409)]
WARM_UP = asked(201, 9, intended_s=9, measured=False)
LAST = asked(409, intended_s=24.5, sent_s=24.5, answered_s=25)
"""Sent after all that is measured."""


@pytest.mark.parametrize(
    ("history", "planted", "found"),
    [
        pytest.param(RIGHT, (), (0, 0, 0, 0), id="nothing is wrong"),
        pytest.param(RIGHT, (insert("09:30", "10:30"),), (1, 0, 0, 0), id="an overlap by hand"),
        pytest.param([RIGHT[0]], ("DELETE FROM bookings",), (0, 1, 0, 0), id="a booking deleted"),
        pytest.param([*RIGHT, RIGHT[0]], (), (0, 1, 0, 0), id="one booking told to two"),
        pytest.param([*RIGHT, asked(500)], (), (0, 0, 0, 1), id="an error of the server's"),
        pytest.param([asked(201, 1, rider_id=2)], (), (0, 1, 0, 0), id="another's booking"),
        pytest.param([asked(201, 1, driver_id=None)], (), (0, 0, 0, 0), id="anybody of the fleet"),
        pytest.param([asked(201, 1, driver_id=2)], (), (0, 1, 0, 0), id="another driver's time"),
        pytest.param(
            [*RIGHT, asked(409, start=TEN, end=TEN + timedelta(hours=1))],
            (),
            (0, 0, 1, 0),
            id="nothing in the way",
        ),
    ],
)
def test_what_is_planted_in_a_ledger_is_found(
    new_database: NewDatabase,
    execute: Execute,
    history: list[Request],
    planted: tuple[str, ...],
    found: tuple[int, int, int, int],
) -> None:
    url = new_database(UNSAFE)
    asyncio.run(execute(url, *PEOPLE, insert("09:00", "10:00"), *planted))
    audited = asyncio.run(audit(url, history, SETUP))
    counts = (audited.double_bookings, audited.lost, audited.unjustified, audited.unexpected)
    assert counts == found
    assert len(audited.examples) == sum(found)


# What is made of the figures ---------------------------------------------------------------------


def made_up(strategies: tuple[str, ...] = (SAFE, UNSAFE)) -> Comparison:
    """A comparison as it might have been, of every kind of cell there is."""
    plan = plan_of(names=strategies, scenarios=["spread_out", "hot_window", "overload"])
    contenders = contenders_of(plan.strategies)
    caught = Example("double booking", 7, (12, 15), ((NINE, TEN), (NINE, TEN)))
    cells = []
    for number, key in enumerate(keys_of(plan, contenders), 1):
        contender = next(each for each in contenders if each.name == key.contender)
        rate = 100.0 * number
        latency_ms = {"p50": 2.5, "p90": 5.0, "p99": 9.0, "max": 40.0}
        measured = Measured(rate, rate / 2, rate, latency_ms, {"booked": 7, "refused": 7})
        audited = None
        if contender.kind is not Kind.CEILING:
            unsafe = not contender.claims_safety
            doubles = 4 if unsafe and key.scenario == "hot_window" else 0
            audited = Audited(9, 9, 9, doubles, examples=(caught,) * bool(doubles))
        due = None if key.share is None else 1_000 * key.share
        cells.append(Cell(key, measured, audited, due))
    machine = {
        "at": "2026-12-01T09:00:00+00:00",
        "cpu": "<abacus> & beads",
        "cores": 2,
        "load_1_min": 0.1,
        "system": "Linux",
        "python": "CPython",
        "packages": {"locust": "1"},
    }
    settings = {"server_version": "18", "fsync": "on", "synchronous_commit": "on"}
    about = {"machine": machine, "postgres": settings, "environment": {}}
    return compare(about, plan, contenders, cells)


def test_every_recipe_and_scenario_there_is_takes_part() -> None:
    plan = plan_of(full=True)
    keys = keys_of(plan, contenders_of(plan.strategies))
    assert {key.contender for key in keys} >= {*recipe_names(), NO_OP, BARE_INSERT, ORM_RIVAL}
    assert {key.scenario for key in keys} == set(scenario_names())
    assert len(keys) == len(set(keys))


def test_repeats_take_turns() -> None:
    plan = plan_of(names=(SAFE, UNSAFE), scenarios=["hot_window"])
    order = [
        (key.repeat, key.contender)
        for key in keys_of(plan, contenders_of(plan.strategies))
        if key.scenario == "hot_window" and key.contender in {SAFE, UNSAFE}
    ]
    assert order == [(1, SAFE), (1, UNSAFE), (2, UNSAFE), (2, SAFE)]


def test_a_figure_is_the_median_with_its_spread_and_a_ratio_to_the_ceilings() -> None:
    comparison = made_up()
    safe = comparison.summary(SAFE, "spread_out")
    ceiling = comparison.summary(NO_OP, "spread_out")
    assert safe is not None
    assert ceiling is not None
    rates = [
        cell.measured.answered_per_s
        for cell in comparison.cells
        if cell.measured and (cell.key.contender, cell.key.scenario) == (SAFE, "spread_out")
    ]
    assert (safe.answered_per_s.least, safe.answered_per_s.most) == (min(rates), max(rates))
    assert safe.answered_per_s.median == sum(rates) / 2
    assert safe.of_no_op == round(safe.answered_per_s.median / ceiling.answered_per_s.median, 3)


@pytest.mark.parametrize(
    ("name", "audited", "error", "stands", "said"),
    [
        (SAFE, Audited(1, 1, 1), None, True, "clean"),
        (SAFE, Audited(1, 1, 1, double_bookings=1), None, False, "1 double booking"),
        (SAFE, Audited(1, 1, 1, lost=2), None, False, "2 lost bookings"),
        (SAFE, Audited(1, 1, 1, unjustified=2), None, False, "2 unjustified refusals"),
        (SAFE, Audited(1, 1, 1, unexpected=9), None, False, "9 unexpected answers"),
        (SAFE, None, "It broke.", False, "not all was measured: It broke."),
        (UNSAFE, Audited(1, 1, 1, passing=1), None, True, "1 double booking"),
        (UNSAFE, Audited(1, 1, 1), None, True, "not caught this time"),
        (BARE_INSERT, None, "It broke.", True, "not measured: It broke."),
    ],
)
def test_a_claim_stands_or_falls_by_the_audit(
    name: str, audited: Audited | None, error: str | None, stands: bool, said: str
) -> None:
    (contender,) = (each for each in contenders_of([SAFE, UNSAFE]) if each.name == name)
    verdict = judge(contender, [Cell(Key(name, "hot_window"), audited=audited, error=error)])
    assert (verdict.stands, verdict.told) == (stands, said)


def test_latency_counts_from_when_a_request_was_due_and_what_is_late_is_no_goodput() -> None:
    prompt = asked(201, 1)
    late = msgspec.structs.replace(prompt, intended_s=10.5, sent_s=14, answered_s=14.5)
    measured = measure([WARM_UP, prompt, late, LAST], duration_s=5)
    assert measured.answered_per_s == 2 / 5
    assert measured.in_time_per_s == 1 / 5
    assert measured.latency_ms == {"p50": 1_000, "p90": 4_000, "p99": 4_000, "max": 4_000}


def test_who_was_turned_away_or_never_answered_counts_among_the_slow() -> None:
    turned_away = [asked(503, answered_s=15)] * 98
    unanswered = asked(0, intended_s=9.5, answered_s=None)
    measured = measure([WARM_UP, asked(201, 1), *turned_away, unanswered, LAST], duration_s=5)
    assert measured.latency_ms == {"p50": 5_000, "p90": 5_000, "p99": 5_000, "max": 15_500}
    assert measured.answered_per_s == 1 / 5


def test_the_window_begins_when_every_process_has_warmed_up() -> None:
    def at(moment_s: float, status: int, **said: Any) -> Request:
        return asked(status, 1, intended_s=moment_s, sent_s=moment_s, answered_s=moment_s, **said)

    one = [at(each, 201) for each in range(10, 20)]
    late = [at(each, 409, measured=each > 13.5) for each in (12.5, 13.5, 14.5)]
    measured = measure([*one, *late], duration_s=5)
    assert measured.answers == {"booked": 5, "refused": 1}  # of 14 to 19, all of both


@pytest.mark.parametrize(
    ("history", "said"),
    [
        pytest.param([asked(500)] * 9, "Nothing was booked (9 500)", id="errors alone"),
        pytest.param([asked(503)] * 9, "Nothing was booked (9 turned away)", id="nobody let in"),
        pytest.param([asked(409)] * 9, "Nothing was booked (9 refused)", id="refusals alone"),
        pytest.param([], "nothing was asked", id="nothing"),
        pytest.param([asked(201, 1, measured=False)], "after the warm-up", id="a warm-up alone"),
        pytest.param([asked(201, 1)], "ended 4.0 s too early", id="a second of five"),
    ],
)
def test_where_there_is_nothing_to_measure_the_cell_fails(
    history: list[Request], said: str
) -> None:
    with pytest.raises(CellFailed, match=re.escape(said)):
        measure(history, duration_s=5)


def test_a_cell_that_failed_is_missing_still() -> None:
    full = made_up()
    about = {"machine": full.machine, "postgres": full.postgres, "environment": {}}
    failed = [*full.cells[:-1], Cell(full.cells[-1].key, error="It broke.")]
    assert full.complete
    assert not compare(about, full.plan, full.contenders, failed).complete


def test_the_ramp_is_not_among_the_scenarios_of_many_repeats() -> None:
    assert made_up().scenarios == ["spread_out", "hot_window"]


def test_the_evidence_is_that_of_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*given: Any) -> None:
        history: Path = given[3]
        history.mkdir()
        asked_for = [asked(201, 1), LAST]
        lines = b"\n".join(map(msgspec.json.encode, asked_for))
        (history / f"{len(list(tmp_path.iterdir()))}.jsonl").write_bytes(lines)
        (history / "setup.json").write_bytes(msgspec.json.encode(SETUP))

    async def found(*_: Any) -> Audited:
        return Audited(1, 1, 1, double_bookings=1)

    monkeypatch.setattr(comparing, "serving", lambda *_: nullcontext(("http://nobody", 1)))
    monkeypatch.setattr(comparing, "load", load)
    monkeypatch.setattr(comparing, "audit", found)
    plan = msgspec.structs.replace(plan_of(names=[SAFE]), duration_s=5)
    comparer = Comparer(plan, contenders_of([SAFE]), "postgresql://nobody/taxi", tmp_path / "kept")
    (contender,) = (each for each in comparer.contenders if each.name == SAFE)
    for name in ("first", "second"):
        folder = tmp_path / name
        folder.mkdir()
        # Private: one cell alone, without the comparison around it.
        comparer._run(Key(SAFE, "hot_window"), contender, comparer.url, folder, None)  # noqa: SLF001
    (evidence,) = (tmp_path / "kept").iterdir()
    assert len(list(evidence.glob("*.jsonl"))) == 1


def test_percentiles_are_of_the_nearest_rank() -> None:
    waits_s = [number / 1_000 for number in range(1, 101)]
    assert percentiles_ms(reversed(waits_s)) == {"p50": 50, "p90": 90, "p99": 99, "max": 100}
    assert percentiles_ms([0.25]) == dict.fromkeys(("p50", "p90", "p99", "max"), 250)
    assert percentiles_ms([]) == {}


# The page ----------------------------------------------------------------------------------------

LOOK = """<script>
const box = element => element.getBoundingClientRect();
const pictures = [...document.querySelectorAll("figure svg")];
document.body.dataset.seen = JSON.stringify({
  sizes: pictures.map(each => [box(each).width, box(each).height]),
  overflow: document.documentElement.scrollWidth > document.documentElement.clientWidth,
  ink: getComputedStyle(document.body).color,
  inkOfPictures: pictures.map(each => getComputedStyle(each.querySelector("text")).fill),
  ids: [...document.querySelectorAll("svg [id]")].map(each => each.id),
});
</script></body>"""


@pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's package chromium")
def test_the_report_can_be_read_on_light_pages_and_on_dark_ones(tmp_path: Path) -> None:
    page = report.html(made_up()).replace("</body>", LOOK)
    assert "&lt;abacus&gt; &amp; beads" in page
    (tmp_path / "report.html").write_text(page)
    inks = set()
    for scheme in ("0", "1"):  # dark, light
        seen = look_at(tmp_path, scheme)
        assert len(seen["sizes"]) == 5
        assert all(width > 300 and height > 60 for width, height in seen["sizes"])
        assert not seen["overflow"]
        assert set(seen["inkOfPictures"]) == {seen["ink"]}
        assert len(seen["ids"]) == len(set(seen["ids"]))
        inks.add(seen["ink"])
    assert len(inks) == 2


def look_at(folder: Path, scheme: str) -> dict[str, Any]:
    assert CHROMIUM is not None
    shown = subprocess.run(
        [
            CHROMIUM,
            *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
            f"--user-data-dir={folder / 'profile'}",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            f"--blink-settings=preferredColorScheme={scheme}",
            *("--window-size=1200,900", "--enable-logging=stderr", "--dump-dom"),
            f"file://{folder / 'report.html'}",
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "CONSOLE" not in shown.stderr
    found = re.search(r"data-seen=\"([^\"]*)\"", shown.stdout)
    assert found
    seen: dict[str, Any] = json.loads(found[1].replace("&quot;", '"'))
    return seen


def test_a_report_of_nothing_can_be_written() -> None:
    full = made_up()
    empty = compare(
        {"machine": full.machine, "postgres": full.postgres, "environment": {}},
        full.plan,
        full.contenders,
        [],
    )
    assert "Not complete" in report.html(empty)
    assert f"`{SAFE}`" in report.markdown(empty)
