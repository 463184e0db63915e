"""The replay against the running service, over real HTTP, on a real PostgreSQL."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import httpx
import pytest

from api.client import transport
from api.client.errors import NoService
from booking.errors import InvalidInput
from booking.postgres.database import parse_url
from booking.postgres.embedded import EmbeddedPostgres
from loadtest.trips import files as trips_module
from loadtest.trips import replay as replay_module
from loadtest.trips.demand import Demand, exactly, write
from loadtest.trips.files import Order, Trip, TripFile, in_order, most_at_once
from loadtest.trips.replay import Plan, Replay, Tally
from tests.commands import TAXI, run
from tests.conftest import AUTHORIZATION, let_in, open_directory

NEW_YORK = ZoneInfo("America/New_York")
NOON = datetime(2026, 3, 9, 12, tzinfo=UTC)
SAMPLE = Path(__file__).parents[2] / "shared/data/nyc_tlc_2019_03_sample.csv"
needs_sample = pytest.mark.skipif(
    not SAMPLE.exists(), reason=f"real trips are not part of the project; there is no {SAMPLE}"
)


@contextlib.contextmanager
def serving(**environment: str) -> Iterator[str]:
    """The address of a service of its own, which is stopped afterwards."""
    service = subprocess.Popen(
        [TAXI, "serve", "--port", "0"],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert service.stdout is not None
    try:
        words = service.stdout.readline().split()
        assert words, "the service did not come up"
        let_in(database_in(environment))
        yield next(word for word in words if word.startswith("http"))
    finally:
        service.send_signal(signal.SIGINT)
        service.wait()
        service.stdout.close()


def database_in(environment: dict[str, str]) -> str:
    """The database of a service that was started so, be it the embedded one."""
    return run("db", "url", **environment).stdout.strip()


@pytest.fixture(scope="module")
def url(server: EmbeddedPostgres) -> Iterator[str]:
    with serving(DATABASE_URL=beside(server, "replay")) as address:
        yield address


def beside(server: EmbeddedPostgres, name: str) -> str:
    own = parse_url(server.url).set(drivername="postgresql", database=name)
    return own.render_as_string(hide_password=False)


def made_trips(number: int, *, minutes: int = 10, apart: int = 10) -> list[Trip]:
    """Trips of some length, each so many minutes after the last."""
    starts = (NOON + each * timedelta(minutes=apart) for each in range(number))
    return [
        Trip(line, start, start + timedelta(minutes=minutes), None, None)
        for line, start in enumerate(starts, start=2)
    ]


def plan_for(url: str, fleet: str, **changes: Any) -> Plan:
    return Plan(**{"url": url, "fleet": fleet, "drivers": 1, "patience_s": 60.0, **changes})


def replayed(plan: Plan, trips: list[Trip], **options: Any) -> Replay:
    async def run() -> Replay:
        replay = Replay(plan, remember=True, **options)
        await replay.run(trips)
        return replay

    return asyncio.run(run())


def taxi_replay(*options: str) -> subprocess.CompletedProcess[str]:
    return run("replay", *options)


def bookings_of(url: str, fleet: str) -> list[dict[str, Any]]:
    query = {"fleet": fleet, "limit": 1_000}
    page = httpx.get(f"{url}/bookings", params=query, headers=AUTHORIZATION).json()
    return list(page["items"])


@pytest.fixture
def demand_file(tmp_path: Path) -> Callable[[int], Path]:
    def make(trips: int) -> Path:
        path = tmp_path / "demand.csv"
        plan = Demand(zone=NEW_YORK, start=date(2026, 3, 8), days=1, seed=5)
        write(exactly(trips, plan), path)
        return path

    return make


def test_as_many_drivers_as_trips_at_once_take_all_and_one_fewer_does_not(
    url: str, demand_file: Callable[[int], Path]
) -> None:
    _, trips = in_order(TripFile(demand_file(60), NEW_YORK), Order.START)
    ordered = list(trips)
    needed = most_at_once(ordered)
    assert needed > 1
    enough = replayed(plan_for(url, "enough", drivers=needed), ordered).tally
    assert (enough.accepted, enough.refusals, enough.failed) == (60, 0, 0)
    assert len(enough.drivers_used) == needed
    too_few = replayed(plan_for(url, "too few", drivers=needed - 1), ordered).tally
    assert too_few.refused.keys() == {"/problems/no-driver-free"}
    assert too_few.accepted + too_few.refusals == 60
    assert too_few.failed == 0


@needs_sample
def test_the_busiest_hours_and_the_empty_trips_of_the_sample_need_fourteen_drivers(
    url: str,
) -> None:
    _, trips = in_order(TripFile(SAMPLE, NEW_YORK), Order.START)
    ordered = list(trips)
    busiest = max(ordered, key=lambda trip: most_at_once(running_with(trip, ordered)))
    chosen = [
        trip
        for trip in ordered
        if trip.start == trip.end or abs(trip.start - busiest.start) < timedelta(hours=2)
    ]
    empty = sum(trip.start == trip.end for trip in chosen)
    assert (most_at_once(chosen), empty) == (14, 6)
    enough = replayed(plan_for(url, "fourteen", drivers=14), chosen).tally
    assert {kind: each.count for kind, each in enough.refused.items()} == {
        "/problems/empty-window": 6
    }
    assert enough.accepted == len(chosen) - 6
    too_few = replayed(plan_for(url, "thirteen", drivers=13), chosen).tally
    assert too_few.refused["/problems/no-driver-free"].count >= 1
    assert too_few.refused["/problems/empty-window"].count == 6


def running_with(trip: Trip, trips: list[Trip]) -> list[Trip]:
    return [each for each in trips if each.start <= trip.start < each.end]


def test_empty_trips_and_those_of_more_than_a_day_are_sent_and_refused_with_the_reason(
    url: str,
) -> None:
    trips = [
        Trip(2, NOON, NOON, None, None),
        Trip(3, NOON, NOON + timedelta(hours=24, seconds=1), None, None),
        Trip(4, NOON, NOON + timedelta(hours=24), None, None),
    ]
    tally = replayed(plan_for(url, "odd lengths"), trips).tally
    assert tally.accepted == 1
    assert {kind: (each.count, each.lines) for kind, each in tally.refused.items()} == {
        "/problems/empty-window": (1, [2]),
        "/problems/too-long": (1, [3]),
    }
    assert all(each.title for each in tally.refused.values())
    assert len(tally.latencies_s) == len(tally.settled_s) == 3


def test_many_clients_with_shuffled_and_named_trips_leave_no_double_booking(url: str) -> None:
    trips = made_trips(80, minutes=25, apart=5)
    plan = plan_for(url, "named", drivers=3, clients=16, named=True, seed=9)
    replay = replayed(plan, trips[::2] + trips[1::2])
    tally = replay.tally
    assert tally.refused.keys() == {"/problems/booking-conflict"}
    assert tally.accepted + tally.refusals == 80
    booked = bookings_of(url, "named")
    assert len(booked) == tally.accepted
    for driver_id in tally.drivers_used:
        own = [
            (datetime.fromisoformat(each["start"]), datetime.fromisoformat(each["predicted_end"]))
            for each in booked
            if each["driver_id"] == driver_id
        ]
        assert all(end <= start for (_, end), (start, _) in pairwise(sorted(own)))


def test_verification_finds_what_is_there_and_misses_what_is_not(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "PAGE_ITEMS", 7)  # several pages of 20 bookings
    replay = replayed(plan_for(url, "verified"), made_trips(20))
    found = asyncio.run(replay.verify())
    assert (found.found, found.missing, found.unacknowledged, found.error) == (20, [], 0, None)
    acknowledged = replay._acknowledged  # noqa: SLF001  # what a service that forgets would leave
    assert acknowledged is not None
    first, second, third = list(acknowledged)[:3]
    acknowledged[2**40] = acknowledged[first]
    acknowledged[second] = acknowledged[second]._replace(end_us=0)
    del acknowledged[third]
    missed = asyncio.run(replay.verify())
    assert (missed.found, missed.missing_count, missed.unacknowledged) == (18, 2, 1)
    assert missed.missing == sorted([2**40, second])


def test_a_booking_that_two_trips_were_told_of_is_missed_once(url: str) -> None:
    # The same line, rider and time: the service takes the last for the first, sent again.
    trips = [*made_trips(replay_module.RIDERS), *made_trips(1)]
    replay = replayed(plan_for(url, "told twice"), trips)
    found = asyncio.run(replay.verify())
    assert (replay.tally.accepted, found.found, found.missing_count) == (9, 8, 1)


def test_a_fleet_that_has_drivers_is_not_taken(url: str) -> None:
    replayed(plan_for(url, "taken"), [])
    with pytest.raises(InvalidInput) as caught:
        replayed(plan_for(url, "taken"), [])
    assert caught.value.field == "--fleet"


def test_a_wrong_address_is_told_at_once() -> None:
    with pytest.raises(NoService, match="taxi serve"):
        replayed(plan_for("http://127.0.0.1:1", "nowhere"), [])
    with pytest.raises(NoService, match="not an http address"):
        replayed(plan_for("ftp://127.0.0.1", "nowhere"), [])
    with pytest.raises(InvalidInput) as caught:
        replayed(plan_for("http://a:b", "nowhere"), [])
    assert caught.value.field == "--url"


def test_a_wrong_row_far_into_the_file_ends_the_replay_with_its_own_error(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trips_module, "BATCH_TRIPS", 4)
    path = tmp_path / "trips.csv"
    aware = "2026-03-09T12:00:00Z,2026-03-09T12:00:01Z\n"
    naive = "2026-03-09T12:00:00,2026-03-09T12:00:01\n"
    path.write_text("pickup_datetime,dropoff_datetime\n" + 9 * aware + naive)
    _, trips = in_order(TripFile(path, None), Order.FILE)
    with pytest.raises(InvalidInput, match="carry no offset"):
        replayed(plan_for(url, "breaks off", clients=8), trips)


@pytest.fixture(scope="module")
def narrow_url(server: EmbeddedPostgres) -> Iterator[str]:
    """A service that turns away all but two requests at once."""
    with serving(
        DATABASE_URL=beside(server, "replay_narrow"), TAXI_POOL_SIZE="1", TAXI_WAITING_MAX="1"
    ) as address:
        yield address


def test_trips_that_are_turned_away_are_sent_again_until_they_are_answered(
    narrow_url: str,
) -> None:
    replay = replayed(plan_for(narrow_url, "patient", clients=12), made_trips(60))
    tally = replay.tally
    assert (tally.accepted, tally.failed) == (60, 0)
    assert {reason[:4] for reason in tally.retries} == {"503 "}
    assert max(tally.settled_s) > 1.0  # the service asks for a second, and got it
    assert asyncio.run(replay.verify()).found == 60


def test_without_patience_they_fail_and_are_named(narrow_url: str) -> None:
    plan = plan_for(narrow_url, "impatient", clients=12, patience_s=0.0)
    replay = replayed(plan, made_trips(60))
    tally = replay.tally
    assert tally.failed > 0
    assert tally.accepted + tally.failed == tally.settled
    assert all("given up after" in failure.reason for failure in tally.failures)
    assert {failure.line for failure in tally.failures} <= set(range(2, 62))
    found = asyncio.run(replay.verify())
    assert (found.found, found.missing) == (tally.accepted, [])
    assert found.unacknowledged <= tally.failed


def test_the_command_exits_with_one_when_trips_failed(
    narrow_url: str, demand_file: Callable[[int], Path]
) -> None:
    options = ("--zone", "America/New_York", "--drivers", "9", "--url", narrow_url)
    result = taxi_replay(
        str(demand_file(60)), *options, "--clients", "12", "--patience", "0", "--json"
    )
    assert result.returncode == 1
    report = json.loads(result.stdout)
    assert report["failed"] == len(report["failures"]) > 0
    assert report["accepted"] + report["refused"] + report["failed"] + report["unsent"] == 60


class LosesAnswers:
    """A proxy that carries each request to the service and loses every third answer to a booking.

    The service has done what it was asked, and the client cannot know. With
    `keyless` it also takes the idempotency keys out.
    """

    def __init__(self, service: str, *, keyless: bool = False) -> None:
        self.service = httpx.URL(service)
        self.keyless = keyless
        self.bookings = 0
        self.lost = 0

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        service_reader, service_writer = await asyncio.open_connection(
            self.service.host, self.service.port
        )
        lose = False

        async def requests() -> None:
            nonlocal lose
            while data := await reader.read(2**16):
                if data.startswith((b"POST ", b"GET ")):
                    booking = data.startswith(b"POST /bookings ")
                    self.bookings += booking
                    lose = booking and self.bookings % 3 == 0
                if self.keyless:
                    data = data.replace(b"Idempotency-Key", b"X-Of-No-Meaning")
                service_writer.write(data)
            service_writer.close()

        async def answers() -> None:
            while data := await service_reader.read(2**16):
                if lose:
                    self.lost += 1
                    break
                writer.write(data)
            writer.close()

        with contextlib.suppress(ConnectionError):
            await asyncio.gather(requests(), answers())
        for each in (writer, service_writer):
            each.close()
            with contextlib.suppress(ConnectionError):
                await each.wait_closed()


def replayed_through(proxy: LosesAnswers, fleet: str, trips: list[Trip]) -> tuple[Tally, int, int]:
    """What became of the trips, and how many bookings were found, and found beyond them."""

    async def run() -> tuple[Tally, int, int]:
        async with await asyncio.start_server(proxy.carry, "127.0.0.1", 0) as listener:
            port = listener.sockets[0].getsockname()[1]
            plan = plan_for(f"http://127.0.0.1:{port}", fleet, drivers=2)
            replay = Replay(plan, remember=True)
            await replay.run(trips)
            found = await replay.verify()
        return replay.tally, found.found, found.unacknowledged

    return asyncio.run(run())


def test_a_booking_whose_answer_was_lost_is_not_made_twice(url: str) -> None:
    proxy = LosesAnswers(url)
    tally, found, beyond = replayed_through(proxy, "lost answers", made_trips(30))
    assert proxy.lost > 0
    assert (tally.accepted, tally.recalled) == (30, proxy.lost)
    assert tally.retries == {"connection lost": proxy.lost}
    assert (found, beyond) == (30, 0)


def test_without_its_key_it_is_made_twice_and_verification_tells(url: str) -> None:
    proxy = LosesAnswers(url, keyless=True)
    tally, found, beyond = replayed_through(proxy, "lost keys", made_trips(30))
    assert (tally.accepted, tally.recalled, found) == (30, 0, 30)
    assert beyond == proxy.lost > 0


def test_a_database_that_is_killed_in_the_middle_loses_no_acknowledged_booking() -> None:
    with contextlib.ExitStack() as stack:
        home = stack.enter_context(open_directory())
        url = stack.enter_context(serving(TAXI_HOME=str(home), DATABASE_URL=""))
        server = EmbeddedPostgres(home)
        before = server.pid
        assert before is not None

        def kill_once(tally: Tally) -> None:
            if tally.settled == 40:
                os.kill(before, signal.SIGKILL)

        plan = plan_for(url, "survivors", drivers=4, clients=4, patience_s=120.0)
        replay = replayed(plan, made_trips(200), on_settled=kill_once)
        assert (replay.tally.accepted, replay.tally.failed) == (200, 0)
        assert replay.tally.retries.total() > 0
        assert server.pid not in {None, before}
        found = asyncio.run(replay.verify())
        assert (found.found, found.missing, found.unacknowledged) == (200, [], 0)


def test_a_service_that_is_gone_is_given_up_and_the_rest_not_sent(
    server: EmbeddedPostgres,
) -> None:
    with contextlib.ExitStack() as stack:
        address = stack.enter_context(serving(DATABASE_URL=beside(server, "replay_gone")))

        def stop_it(tally: Tally) -> None:
            if tally.settled == 10:
                stack.close()

        plan = plan_for(address, "orphans", patience_s=0.3)
        tally = replayed(plan, made_trips(100), on_settled=stop_it).tally
    assert tally.gone
    assert tally.accepted == 10
    assert tally.failed == replay_module.GIVE_UPS_IN_A_ROW_MAX
    assert {each.reason.partition(": ")[2] for each in tally.failures} <= {
        "cannot connect",
        "connection lost",
    }


def test_the_command_reports_as_text_and_as_json(
    url: str, demand_file: Callable[[int], Path]
) -> None:
    path = demand_file(30)
    path.write_text(path.read_text() + "rubbish\n2026-03-08 02:30:00,2026-03-08 03:30:00,1,1\n")
    options = (str(path), "--zone", "America/New_York", "--drivers", "1", "--url", url)
    as_json = taxi_replay(*options, "--json", "--verify")
    assert as_json.returncode == 0, as_json.stderr
    assert as_json.stderr == ""
    report = json.loads(as_json.stdout)
    assert (report["rows"], report["malformed"], report["trips"]) == (32, 2, 30)
    assert [row["line"] for row in report["malformed_rows"]] == [32, 33]
    assert report["accepted"] + report["refused"] == 30
    assert sum(each["count"] for each in report["refused_by_reason"]) == report["refused"] > 0
    assert report["drivers_used"] == 1
    assert report["latency_ms"].keys() == {"p50", "p90", "p99", "max"}
    assert report["bookings_per_s"] > 0
    assert report["verified"]["found"] == report["accepted"]
    as_text = taxi_replay(*options)
    assert as_text.returncode == 0, as_text.stderr
    assert max(len(line) for line in as_text.stdout.splitlines()) <= 80
    assert "Malformed: line 32: the row has 1 fields, the header 4" in as_text.stdout
    assert "Malformed: line 33" in as_text.stdout
    assert "No driver is free for the whole of that time." in as_text.stdout


def test_the_command_names_what_is_wrong_in_a_line_and_exits_with_two(
    url: str, demand_file: Callable[[int], Path], tmp_path: Path
) -> None:
    options = ("--drivers", "2", "--url", url)
    for file, more, told in (
        (tmp_path / "nothing.csv", (), "No such file"),
        (demand_file(3), (), "--zone: The times in demand.csv carry no offset"),
        (demand_file(3), ("--zone", "Mars"), "'Mars' is not the IANA name"),
    ):
        result = taxi_replay(str(file), *options, *more)
        assert result.returncode == 2
        assert told in result.stderr
        assert result.stderr.count("\n") == 1
        assert result.stdout == ""


def test_the_command_is_interrupted_cleanly_and_says_what_was_done(
    url: str, demand_file: Callable[[int], Path]
) -> None:
    options = ("--zone", "America/New_York", "--drivers", "5", "--url", url, "--json")
    command = subprocess.Popen(
        [TAXI, "replay", str(demand_file(20_000)), *options, "--fleet", "interrupted"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while command.poll() is None and not bookings_of(url, "interrupted"):
        time.sleep(0.05)
    command.send_signal(signal.SIGINT)
    told, errors = command.communicate()
    assert (command.returncode, errors) == (130, "")
    report = json.loads(told)
    assert report["interrupted"]
    assert report["failed"] == 0
    assert report["unsent"] > 0
    assert report["accepted"] + report["refused"] + report["unsent"] == report["trips"] == 20_000
    assert len(bookings_of(url, "interrupted")) == min(report["accepted"], 1_000)
