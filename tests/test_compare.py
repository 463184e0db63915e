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
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from booking.postgres.embedded import EmbeddedPostgres
from loadtest import compare_report
from loadtest.compare import audit, contenders_of, plan_of, recipe_names, scenario_names
from loadtest.compare_results import (
    BARE_INSERT,
    NO_OP,
    ORM_RIVAL,
    Audited,
    Cell,
    Comparison,
    Example,
    Key,
    Kind,
    Measured,
    compare,
    judge,
    keys_of,
    measure,
    percentiles_ms,
)
from loadtest.history import Request, Setup
from tests.conftest import open_directory
from tests.world import Execute, NewDatabase

TAXI = str(Path(sys.executable).parent / "taxi")
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


@contextmanager
def running(server: EmbeddedPostgres, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [TAXI, "compare", *arguments],
        env=os.environ | {"DATABASE_URL": server.url},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        yield process


@pytest.fixture(scope="module")
def ran(server: EmbeddedPostgres) -> Iterator[Ran]:
    """A comparison that was stopped by Ctrl-C after its first cell, and gone on with."""
    with open_directory() as folder:
        cells = folder / "cells.jsonl"
        wanted = ("--strategies", f"{SAFE},{UNSAFE}", "--scenarios", "hot_window", "--quick")
        brief = ("--duration-s", "1", "--output", str(folder))
        with running(server, *wanted, *brief) as process:
            while process.poll() is None and not (cells.exists() and cells.read_bytes()):
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)
        kept = cells.read_text().splitlines()
        page = (folder / "comparison.html").read_text()
        yield Ran(folder, server, process.returncode, kept, page, gone_on(server, folder))


def gone_on(server: EmbeddedPostgres, folder: Path) -> subprocess.CompletedProcess[str]:
    with running(server, "--resume", "--output", str(folder)) as process:
        out, err = process.communicate(timeout=240)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)


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
    assert compare_report.render_matrix(recorded) in (ran.folder / "comparison.md").read_text()
    assert f"`{SAFE}`" in compare_report.render_matrix(recorded)
    page = (ran.folder / "comparison.html").read_text()
    assert re.findall(r"(?:src|href)\s*=\s*[\"']?(?:https?:)?//", page) == []
    assert UNSAFE in page


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
    ],
)
def test_wrong_options_are_named_without_a_traceback(
    server: EmbeddedPostgres, arguments: tuple[str, ...], said: str
) -> None:
    with running(server, *arguments) as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert said in err
    assert "Traceback" not in err


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


def asked(status: int, booking_id: int | None = None, **said: Any) -> Request:
    return Request(
        scenario="test",
        action="book",
        intended_s=10,
        sent_s=10,
        answered_s=11,
        status=status,
        measured=True,
        driver_id=1,
        booked_driver_id=1 if booking_id else None,
        booking_id=booking_id,
        problem="booking-conflict" if status == 409 else None,
        **{"start": NINE, "end": TEN} | said,
    )


RIGHT = [asked(201, 1), asked(409)]


@pytest.mark.parametrize(
    ("history", "planted", "found"),
    [
        pytest.param(RIGHT, (), (0, 0, 0), id="nothing is wrong"),
        pytest.param(RIGHT, (insert("09:30", "10:30"),), (1, 0, 0), id="an overlap by hand"),
        pytest.param([RIGHT[0]], ("DELETE FROM bookings",), (0, 1, 0), id="a booking deleted"),
        pytest.param(
            [*RIGHT, asked(409, start=TEN, end=TEN + timedelta(hours=1))],
            (),
            (0, 0, 1),
            id="nothing in the way",
        ),
    ],
)
def test_what_is_planted_in_a_ledger_is_found(
    new_database: NewDatabase,
    execute: Execute,
    history: list[Request],
    planted: tuple[str, ...],
    found: tuple[int, int, int],
) -> None:
    url = new_database(UNSAFE)
    asyncio.run(execute(url, *PEOPLE, insert("09:00", "10:00"), *planted))
    audited = asyncio.run(audit(url, history, SETUP))
    assert (audited.double_bookings, audited.lost, audited.unjustified) == found
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
        (SAFE, None, "It broke.", False, "not all was measured: It broke."),
        (UNSAFE, Audited(1, 1, 1, passing=1), None, True, "1 double booking"),
        (UNSAFE, Audited(1, 1, 1), None, True, "not caught this time"),
    ],
)
def test_a_claim_stands_or_falls_by_the_audit(
    name: str, audited: Audited | None, error: str | None, stands: bool, said: str
) -> None:
    (contender,) = (each for each in contenders_of([name]) if each.name == name)
    verdict = judge(contender, [Cell(Key(name, "hot_window"), audited=audited, error=error)])
    assert (verdict.stands, verdict.told) == (stands, said)


def test_latency_counts_from_when_a_request_was_due_and_what_is_late_is_no_goodput() -> None:
    prompt = asked(201, 1)
    late = msgspec.structs.replace(prompt, intended_s=10.5, sent_s=14, answered_s=14.5)
    warm_up = msgspec.structs.replace(prompt, measured=False)
    measured = measure([warm_up, prompt, late], duration_s=5)
    assert measured is not None
    assert measured.answered_per_s == 2 / 5
    assert measured.in_time_per_s == 1 / 5
    assert measured.latency_ms == {"p50": 1_000, "p90": 4_000, "p99": 4_000, "max": 4_000}
    assert measure([warm_up], duration_s=5) is None


def test_percentiles_are_of_the_nearest_rank() -> None:
    waits_s = [number / 1_000 for number in range(1, 101)]
    assert percentiles_ms(waits_s) == {"p50": 50, "p90": 90, "p99": 99, "max": 100}
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
    page = compare_report.html(made_up()).replace("</body>", LOOK)
    assert "&lt;abacus&gt; &amp; beads" in page
    (tmp_path / "report.html").write_text(page)
    inks = set()
    for scheme in ("0", "1"):  # dark, light
        seen = look_at(tmp_path, scheme)
        assert len(seen["sizes"]) == 6
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
    assert "Not complete" in compare_report.html(empty)
    assert f"`{SAFE}`" in compare_report.markdown(empty)
