"""The load scenarios, run by Locust against one real service.

Locust replaces parts of the standard library when it is imported, so it runs in
processes of its own. They run side by side, each scenario with its own fleet.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest
from click.testing import CliRunner

from loadtest import scenarios
from loadtest.comparison.stall import Plan, StallingService, main, met, observe
from loadtest.history import Request
from loadtest.scenarios import _knobs
from loadtest.scenarios._arrivals import due_s
from tests.conftest import AUTHORIZATION, RunningService

FOLDER = Path(scenarios.__path__[0])
NAMES = sorted(path.stem for path in FOLDER.glob("[!_]*.py"))
KEYS = sorted(Request.__struct_fields__)
RATE = 40.0
OPEN = ("--arrivals", "open", "--gaps", "uniform", "--rate")
DAY = ("--horizon-days", "1")
RUNS: dict[str, tuple[str, ...]] = {
    "any_driver": ("-u", "3", "--drivers", "2", *DAY),
    "hot_driver": ("-u", "3"),
    "hot_window": ("-u", "3"),
    "mixed_day": ("-u", "4", "--processes", "2", "--drivers", "5", *DAY),
    "overload": ("-u", "1", "--rate", "20,40", "--step-s", "1", "--drivers", "2", *DAY),
    "rush_hour": ("-u", "2", "--drivers", "2", *DAY),
    "spread_out": ("-u", "2", "--processes", "2", "--drivers", "5", *OPEN, f"{RATE}"),
}
SEEDED = {"first": "1", "again": "1", "other": "2"}


@dataclass(frozen=True)
class Done:
    """What a run of Locust left behind."""

    history: Path
    returncode: int
    told: str

    @property
    def rows(self) -> list[dict[str, Any]]:
        files = sorted(self.history.glob("*.jsonl"))
        return [json.loads(line) for file in files for line in file.read_text().splitlines()]

    @property
    def complete_rows(self) -> list[dict[str, Any]]:
        """The rows so far, of a run that may be writing more."""
        texts = (file.read_text() for file in self.history.glob("*.jsonl"))
        return [json.loads(line) for text in texts for line in text.split("\n")[:-1]]

    @property
    def setup(self) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads((self.history / "setup.json").read_text())
        return loaded

    def counted(self, what: str) -> int:
        """Of Locust's own statistics."""
        stats = json.loads((self.history / "stats.json").read_text())
        return sum(each[what] for each in stats)


def command(scenario: str, address: str, history: Path, *options: str) -> list[str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]  # of a master's own, as several may run side by side
    return [
        *(sys.executable, "-m", "locust", "-f", str(FOLDER / f"{scenario}.py"), "--headless"),
        *("--master-bind-host=127.0.0.1", f"--master-bind-port={port}", f"--master-port={port}"),
        *("--host", address, "--only-summary", "-r", "100", "--history", str(history)),
        *("--json-file", str(history / "stats"), *options),
    ]


def run(scenario: str, address: str, history: Path, *options: str) -> Done:
    done = subprocess.run(
        command(scenario, address, history, "--seconds", "3", *options),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return Done(history, done.returncode, done.stdout + done.stderr)


def run_until(
    enough: Callable[[Done], bool], scenario: str, address: str, history: Path, *options: str
) -> Done:
    """Run until there is enough to look at, and press Ctrl-C."""
    process = subprocess.Popen(
        command(scenario, address, history, *options),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    give_up_at = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < give_up_at:
        if enough(Done(history, 0, "")):
            break
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
    _, told = process.communicate(timeout=60)
    return Done(history, process.returncode, told)


def refused(done: Done) -> bool:
    return any(row["status"] == 409 for row in done.complete_rows)


def each_of_two_sent(done: Done) -> bool:
    files = [file.read_text() for file in done.history.glob("*.jsonl")]
    return len(files) == 2 and all(text.count("\n") >= 20 for text in files)


def did_everything(done: Done) -> bool:
    actions = {row["action"] for row in done.complete_rows if row["status"] == 200}
    return actions == {"look", "reschedule", "cancel"} and each_of_two_sent(done)


ENOUGH = {"mixed_day": did_everything, "spread_out": each_of_two_sent}


class Moody(StallingService):
    """Has no answer to every fifth booking, and answers 503 to every third of the rest."""

    async def _answer(self, head: bytes) -> tuple[int, dict[str, Any]]:
        status, body = await super()._answer(head)
        if head.startswith(b"POST"):
            if self._bookings % 5 == 0:
                raise ConnectionError
            if self._bookings % 3 == 0:
                return 503, {"type": "/problems/unavailable"}
        return status, body


@pytest.fixture(scope="module")
def runs(service: RunningService) -> Iterator[dict[str, Future[Done]]]:
    """Every run of Locust that the tests look at."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        moody = stack.enter_context(Moody(100, 60, 0).serving())
        frozen = stack.enter_context(StallingService(1_000, 0.5, 8).serving())
        threads = stack.enter_context(ThreadPoolExecutor(5))

        def start(name: str, scenario: str, address: str, *options: str) -> None:
            started[name] = threads.submit(run, scenario, address, folder / name, *options)

        def start_until(enough: Callable[[Done], bool], name: str, *options: str) -> None:
            started[name] = threads.submit(
                run_until, enough, name, service.address, folder / name, *options
            )

        started: dict[str, Future[Done]] = {}
        for name, options in RUNS.items():
            start_until(ENOUGH.get(name, refused), name, *options)
        seeded = ("-u", "1", "--warmup-s", "1", "--first-day", "2030-01-07", "--seed")
        for name, seed in SEEDED.items():
            start(name, "spread_out", service.address, *seeded, seed, "--fleet", name)
        start("moody", "spread_out", moody, "-u", "1", "--drivers", "1")
        in_line = ("-u", "1", "--connections", "2", "--stop-timeout", "1", *OPEN, f"{RATE}")
        start("frozen", "spread_out", frozen, "--drivers", "1", *in_line)
        yield started


Known = dict[int, tuple[str, int, int, str, str]]
"""State, driver, rider, start and end of bookings, by id."""


def bookings_of(address: str, fleet: str) -> Known:
    """Every booking of the fleet."""
    found: Known = {}
    query = {"fleet": fleet, "limit": "1000"}
    with httpx.Client(base_url=address, headers=AUTHORIZATION, trust_env=False) as client:
        while True:
            page = client.get("/bookings", params=query).raise_for_status().json()
            for each in page["items"]:
                found[each["id"]] = (
                    *(each["state"], each["driver_id"], each["rider_id"]),
                    *(each["start"], each["predicted_end"]),
                )
            if page["next_cursor"] is None:
                return found
            query["cursor"] = page["next_cursor"]


def acknowledged(rows: list[dict[str, Any]]) -> Known:
    """What the history says that `bookings_of` must find."""
    expected: Known = {}
    for row in sorted((row for row in rows if row["answered_s"]), key=lambda r: r["answered_s"]):
        if row["status"] in {200, 201} and row["action"] != "look":
            state = "cancelled" if row["action"] == "cancel" else "confirmed"
            rider_id = row["rider_id"] or expected[row["booking_id"]][2]
            where = (row["booked_driver_id"], rider_id, row["start"], row["end"])
            expected[row["booking_id"]] = (state, *where)
    return expected


def test_every_scenario_is_tried() -> None:
    assert sorted(RUNS) == NAMES


@pytest.mark.parametrize("name", [*RUNS, "first"])
def test_the_history_of_a_scenario_is_what_the_service_knows(
    name: str, runs: dict[str, Future[Done]], service: RunningService
) -> None:
    done = runs[name].result()
    assert done.returncode == 0, done.told
    rows = done.rows
    assert rows
    assert all(sorted(row) == KEYS for row in rows)
    assert {row["status"] for row in rows} <= {200, 201, 409}
    assert {row["scenario"] for row in rows} == {done.setup["scenario"]}
    assert all(row["intended_s"] <= row["sent_s"] < row["answered_s"] for row in rows)
    assert all((row["problem"] is None) == (row["status"] != 409) for row in rows)
    found = bookings_of(service.address, done.setup["fleet"])
    assert found == acknowledged(rows)
    drivers = set(done.setup["driver_ids"])
    assert {driver for _, driver, *_ in found.values()} <= drivers
    asked = {row["driver_id"] for row in rows} - {None}
    assert asked <= drivers


def test_a_booking_that_the_history_lacks_would_be_noticed(
    runs: dict[str, Future[Done]], service: RunningService
) -> None:
    done = runs["rush_hour"].result()
    first = next(index for index, row in enumerate(done.rows) if row["status"] == 201)
    rest = done.rows[:first] + done.rows[first + 1 :]
    assert bookings_of(service.address, done.setup["fleet"]) != acknowledged(rest)


def test_scenarios_meet_refusals(runs: dict[str, Future[Done]]) -> None:
    for name in set(RUNS) - set(ENOUGH):
        problems = {row["problem"] for row in runs[name].result().rows} - {None}
        assert problems <= {"booking-conflict", "no-driver-free"}, name
        assert problems, name


def test_a_mixed_day_has_every_action_and_two_processes(runs: dict[str, Future[Done]]) -> None:
    done = runs["mixed_day"].result()
    assert {row["action"] for row in done.rows} == {"book", "reschedule", "cancel", "look"}
    assert len(list(done.history.glob("*.jsonl"))) == 2


def test_open_arrivals_are_all_sent_at_their_times(runs: dict[str, Future[Done]]) -> None:
    files = sorted(runs["spread_out"].result().history.glob("*.jsonl"))
    assert len(files) == 2
    for file in files:
        due = sorted(json.loads(line)["intended_s"] for line in file.read_text().splitlines())
        # Each process sends half of the rate, and none of its arrivals is missing.
        assert all(abs(b - a - 2 / RATE) < 1e-4 for a, b in pairwise(due))


def test_a_seed_decides_what_is_wanted(runs: dict[str, Future[Done]]) -> None:
    wanted = {
        name: [(row["start"], row["end"]) for row in runs[name].result().rows] for name in SEEDED
    }
    shortest = min(map(len, wanted.values()))
    assert shortest > 3
    assert wanted["first"][:shortest] == wanted["again"][:shortest]
    assert wanted["first"][:shortest] != wanted["other"][:shortest]


def test_the_warm_up_is_in_the_history_and_not_in_the_figures(
    runs: dict[str, Future[Done]],
) -> None:
    done = runs["first"].result()
    measured = [row["measured"] for row in sorted(done.rows, key=lambda row: row["intended_s"])]
    assert measured == sorted(measured)
    assert 0 < sum(measured) == done.counted("num_requests") < len(measured)


def test_an_outage_is_a_failure_and_a_refusal_is_not(runs: dict[str, Future[Done]]) -> None:
    done = runs["moody"].result()
    statuses = [row["status"] for row in done.rows]
    assert set(statuses) == {0, 201, 503}
    assert done.returncode == 1
    assert done.counted("num_failures") == len(statuses) - statuses.count(201)
    lost = [row for row in done.rows if row["status"] == 0]
    assert all(row["sent_s"] and row["answered_s"] is None for row in lost)
    hot = runs["hot_driver"].result()
    assert refused(hot)
    assert (hot.counted("num_failures"), hot.counted("num_requests")) == (0, len(hot.rows))


def test_what_was_due_and_never_sent_is_accounted_for(runs: dict[str, Future[Done]]) -> None:
    done = runs["frozen"].result()
    rows = sorted(done.rows, key=lambda row: row["intended_s"])
    assert all(abs(b["intended_s"] - a["intended_s"] - 1 / RATE) < 1e-4 for a, b in pairwise(rows))
    unanswered = [row for row in rows if row["status"] == 0]
    assert sum(row["sent_s"] is not None for row in unanswered) == 2
    assert len(unanswered) > 2
    assert done.counted("num_failures") == len(unanswered)


def test_wrong_knobs_are_named_and_nothing_is_started(tmp_path: Path) -> None:
    (tmp_path / "earlier.jsonl").write_text("")
    for options, told in (
        (("--processes", "2", "--arrivals", "open"), "--rate is needed with --arrivals open"),
        (("--processes", "2", "--history", str(tmp_path)), "the history of an earlier test"),
    ):
        address, history = "http://127.0.0.1:9", tmp_path / "none"
        done = subprocess.run(
            command("spread_out", address, history, "-t", "1s", *options),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 2
        assert done.stderr.count(told) == 1
        assert "Traceback" not in done.stderr


def test_a_service_that_does_not_answer_is_said_in_one_line(tmp_path: Path) -> None:
    done = run("spread_out", "http://127.0.0.1:9", tmp_path / "none", "--processes", "2")
    assert done.returncode == 1
    assert "No service answers at http://127.0.0.1:9" in done.told
    assert "Traceback" not in done.told


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("--rate 5", "--rate is for --arrivals open"),
        ("--arrivals open --rate 0", "--rate must be requests a second, above 0"),
        ("--arrivals open --rate 5,x", "not '5,x'"),
        ("--arrivals open --rate nan", "not 'nan'"),
        ("--warmup-s -1", "--warmup-s must be seconds from 0"),
        ("--step-s 0", "--step-s must be seconds from 0.001"),
        ("--drivers 0", "--drivers must be from 1 to 100,000, not 0"),
        ("--connections 0", "--connections must be from 1"),
        ("--horizon-days 367", "--horizon-days must be from 1 to 366, not 367"),
        ("--first-day 7.1.2030", "--first-day must be a day as YYYY-MM-DD, not '7.1.2030'"),
        ("--first-day 0001-01-01", "--first-day must lie in the years 1970 to 9990"),
        ("--first-day 9999-12-31", "--first-day must lie in the years 1970 to 9990"),
    ],
)
def test_a_knob_names_the_rule_that_it_breaks(
    options: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argparse.ArgumentParser()
    _knobs.add_options(parser, f"{tmp_path}", {})
    with pytest.raises(SystemExit, match="2"):
        parser.parse_args(options.split())
    assert told in capsys.readouterr().err


def test_rates_hold_for_their_steps() -> None:
    due = list(islice(due_s((10, 100), 2.0, "uniform", Random(1)), 100))
    assert sum(at_s < 2 for at_s in due) == 19
    assert sum(2 <= at_s < 2.5 for at_s in due) == pytest.approx(50, abs=1)
    chance = list(islice(due_s((100,), 1.0, "poisson", Random(1)), 10_000))
    assert chance == sorted(chance)
    assert chance[-1] == pytest.approx(100, rel=0.05)


def test_a_stall_is_seen_by_open_arrivals_and_hidden_by_closed_ones() -> None:
    plan = Plan(seconds=3, stall_s=0.5, few=3, rate=100)
    with ThreadPoolExecutor(2) as threads:
        closed_run = threads.submit(observe, plan, ("-u", f"{plan.few}"))
        open_run = threads.submit(observe, plan, ("-u", "1", *OPEN, f"{plan.rate}"))
    requests, stalled = closed_run.result()
    assert len(met(requests, stalled)) <= plan.few
    requests, stalled = open_run.result()
    began_s, ended_s = stalled
    due = [each for each in requests if began_s <= each.intended_s < ended_s]
    assert len(due) == pytest.approx(plan.rate * (ended_s - began_s), abs=2)
    assert {each.booking_id for each in met(requests, stalled)} >= {
        each.booking_id for each in due if each.answered_s is not None
    }
    assert all(each.answered_s is None or each.answered_s >= ended_s for each in due)


def test_a_stall_that_the_run_is_too_short_for_is_refused_by_its_options() -> None:
    refused = CliRunner().invoke(main, ["--seconds", "2", "--stall-s", "10"])
    assert refused.exit_code == 2
    assert "--stall-s" in refused.output
    assert "--seconds" in refused.output


def test_the_chapter_names_every_knob() -> None:
    chapter = (FOLDER.parents[1] / "docs" / "07-measuring.md").read_text()
    parser = argparse.ArgumentParser(add_help=False)
    _knobs.add_options(parser, "any", {})
    for action in parser._actions:  # noqa: SLF001  # there is no other way to ask
        assert f"`{action.option_strings[0]}" in chapter
