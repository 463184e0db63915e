"""The commands for people, as somebody at a narrow terminal meets them."""

import json
import re
from datetime import UTC
from itertools import pairwise
from subprocess import CompletedProcess
from typing import Any
from uuid import uuid4

import httpx
import msgspec
import pytest

from api.bodies.bookings import BookingOut
from api.bodies.common import ID_MAX
from api.cli.remote import print_bookings
from tests.commands import run
from tests.conftest import AUTHORIZATION, RunningService

WIDTH = 60
START = "2031-05-06T09:00+02:00"


class Desk:
    """Somebody who runs `taxi` against one service, for a rider and a fleet of their own."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.fleet = f"fleet-{uuid4()}"
        self.rider = str(self.add("/riders", name="Alan"))
        self.driver = self.hire()

    def add(self, path: str, **body: str) -> int:
        answer = httpx.post(self.url + path, json=body, headers=AUTHORIZATION, trust_env=False)
        return int(answer.json()["id"])

    def hire(self, name: str = "Ada") -> str:
        return str(self.add("/drivers", name=name, fleet=self.fleet, zone="Europe/Berlin"))

    def run(self, *arguments: str, **options: str) -> CompletedProcess[str]:
        given = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
        return run(*arguments, *given, *([] if "url" in options else ["--url", self.url]))

    def book(self, *flags: str, **options: str) -> CompletedProcess[str]:
        usual = {"rider": self.rider, "at": START, "minutes": "30"}
        return self.run("book", *flags, **usual | options)

    def json(self, *arguments: str, **options: str) -> Any:
        done = self.run(*arguments, "--json", **options)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture
def desk(service: RunningService, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.setenv("COLUMNS", str(WIDTH))
    return Desk(service.address)


def words_in(printed: str) -> list[str]:
    """Every word, once it is seen that no line is wider than the terminal."""
    assert max(len(line) for line in printed.splitlines()) <= WIDTH
    assert "…" not in printed
    return printed.split()


def test_a_driver_is_booked_seen_and_cancelled(desk: Desk) -> None:
    booked = desk.book("--json", driver=desk.driver)
    assert booked.returncode == 0
    booking = json.loads(booked.stdout)
    assert (booking["driver_id"], booking["start"]) == (int(desk.driver), "2031-05-06T07:00:00Z")
    assert desk.json("agenda", desk.driver, day="2031-05-06") == [booking]
    agenda = desk.run("agenda", desk.driver, day="2031-05-06")
    assert "Ada" in agenda.stdout
    assert "Tuesday 2031-05-06, Europe/Berlin" in agenda.stdout
    row = [str(booking["id"]), "09:00", "09:30", desk.rider, "confirmed"]
    assert row == words_in(agenda.stdout)[-5:]
    in_new_york = desk.run("agenda", desk.driver, day="2031-05-06", zone="America/New_York")
    assert words_in(in_new_york.stdout)[-4:-2] == ["03:00", "03:30"]
    stale = desk.run("cancel", str(booking["id"]), version=str(booking["version"] + 1))
    assert (stale.returncode, "read it again" in stale.stderr) == (1, True)
    cancelled = desk.run("cancel", str(booking["id"]), reason="rain")
    assert cancelled.returncode == 0
    (seen,) = desk.json("bookings", driver=desk.driver)
    assert (seen["state"], seen["cancel_reason"]) == ("cancelled", "rain")
    assert f"driver {desk.driver} is free from 2031-05-06 07:00 to 07:30 UTC" in cancelled.stdout
    assert "Nothing is booked." in desk.run("agenda", desk.driver, day="2031-05-06").stdout
    again = desk.run("cancel", str(booking["id"]))
    assert (again.returncode, again.stdout) == (1, "")
    assert "it is final" in again.stderr


def test_a_refusal_says_what_is_in_the_way_and_what_is_free_instead(desk: Desk) -> None:
    other = desk.hire("Grace")
    first = json.loads(desk.book("--json", driver=desk.driver).stdout)
    refused = desk.book(driver=desk.driver, at="2031-05-06T09:20+02:00")
    assert (refused.returncode, refused.stdout) == (1, "")
    told = " ".join(words_in(refused.stderr))
    assert f"in the way 2031-05-06 09:00 to 09:30, booking {first['id']}" in told
    assert "next free 2031-05-06 09:30 to 10:00" in told
    assert f"free then driver {other}" in told
    as_json = desk.book("--json", driver=desk.driver)
    assert as_json.returncode == 1
    problem = json.loads(as_json.stdout)
    assert problem["type"] == "/problems/booking-conflict"
    assert [each["booking_id"] for each in problem["conflicts"]] == [first["id"]]


def test_time_is_held_and_confirmed_and_a_key_books_once(desk: Desk) -> None:
    held = desk.book(fleet=desk.fleet, hold_s="600", key=desk.fleet)
    assert held.returncode == 0
    words = words_in(held.stdout)
    assert words[:5] == ["Booked.", "Times", "are", "UTC+02:00.", "booking"]
    booking_id = words[-1]
    assert words[-4:-1] == ["confirmed:", "taxi", "confirm"]
    assert desk.book(fleet=desk.fleet, hold_s="600", key=desk.fleet).stdout == held.stdout
    confirmed = desk.run("confirm", booking_id)
    assert "confirmed" in words_in(confirmed.stdout)
    assert desk.run("confirm", booking_id).returncode == 1
    assert [each["state"] for each in desk.json("bookings", fleet=desk.fleet)] == ["confirmed"]


def test_bookings_are_listed_filtered_and_cut_at_the_limit(desk: Desk) -> None:
    starts = ["2031-05-06T09:00Z", "2031-05-06T23:50Z", "2031-05-07T09:00Z"]
    ids = [
        json.loads(desk.book("--json", driver=desk.driver, at=start).stdout)["id"]
        for start in starts
    ]

    def listed(**filters: str) -> list[int]:
        return [each["id"] for each in desk.json("bookings", driver=desk.driver, **filters)]

    assert listed() == ids
    assert listed(limit="2") == ids[:2]
    assert listed(until="2031-05-06T23:50Z", rider=desk.rider) == ids[:1]
    assert listed(**{"from": "2031-05-07T00:20Z"}) == ids[2:]
    assert listed(state="held") == []
    table = desk.run("bookings", driver=desk.driver, limit="2", zone="UTC")
    words = words_in(table.stdout)
    assert [str(each) in words for each in ids] == [True, True, False]
    assert "00:20 +1d" in table.stdout
    assert "Times are UTC. There are more: --limit 4." in table.stdout
    at_risk = desk.run("bookings", "--at-risk", driver=desk.driver)
    assert at_risk.stdout.strip() == "There are none."


def test_an_id_is_folded_rather_than_cut(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    first = msgspec.convert(json.loads(desk.book("--json", fleet=desk.fleet).stdout), BookingOut)
    longest = msgspec.structs.replace(
        first, id=ID_MAX, driver_id=ID_MAX, rider_id=ID_MAX, held_until=first.start, late_s=720.0
    )
    print_bookings([longest], UTC)
    lines = [words_in(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[1][0] + lines[2][0] == str(ID_MAX)
    told = " ".join(word for line in lines for word in line)
    assert "".join(re.findall(r"\d{5,}", told)).count("9") == 3 * str(ID_MAX).count("9")
    assert told.endswith("min late")


def test_on_the_day_an_hour_comes_twice_times_carry_their_offset(desk: Desk) -> None:
    for start in ("2031-10-26T00:30Z", "2031-10-26T01:30Z", "2031-10-26T22:30Z"):
        assert desk.book(driver=desk.driver, at=start).returncode == 0
    words = words_in(desk.run("agenda", desk.driver, day="2031-10-26").stdout)
    offsets = [now for before, now in pairwise(words) if before == "02:30"]
    assert offsets == ["+0200", "+0100"]
    assert "23:30" in words, "the day has 25 hours"
    assert "23:30" not in desk.run("agenda", desk.driver, day="2031-10-25").stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("book", "--rider", "1", "--at", START), "'--minutes'"),
        (("book", "--rider", "1", "--at", "2031-05-06T09:00", "--minutes", "1"), "'--at'"),
        (("book", "--rider", "1", "--at", "nine", "--minutes", "1"), "'--at'"),
        (("book", "--rider", "1", "--at", START, "--minutes", "1441"), "'--minutes'"),
        (("book", "--rider", "9999", "--at", START, "--minutes", "1"), "--rider: "),
        (
            ("book", "--rider", "1", "--at", START, "--minutes", "1", "--driver", "9999"),
            "--driver: There is no driver 9999.",
        ),
        (
            ("book", "--rider", "1", "--at", START, "--minutes", "1", "--driver=1", "--fleet=a"),
            "--driver, --fleet: ",
        ),
        (("book", "--rider", "1", "--at", START, "--minutes", "1", "--fleet="), "--fleet: "),
        (("book", "--rider", "1", "--at", START, "--minutes", "1", "--key=ü"), "--key: "),
        (("agenda", "9999"), "DRIVER: There is no driver 9999."),
        (("agenda", "1", "--day", "tomorrow"), "'--day'"),
        (("agenda", "1", "--day", "0001-01-01"), "--day: "),
        (("agenda", "1", "--day", "9999-12-31"), "--day: "),
        (("agenda", "1", "--zone", "Mars"), "'--zone'"),
        (("bookings", "--from", START, "--until", START), "--until: "),
        (("bookings", "--url", "http://a:b"), "--url: "),
        (("cancel", "9999"), "BOOKING: There is no booking 9999."),
        (("cancel", "0"), "BOOKING"),
        (("confirm", "9999"), "BOOKING: "),
    ],
)
def test_wrong_input_is_told_by_the_name_of_its_option(
    desk: Desk, arguments: tuple[str, ...], said: str
) -> None:
    failed = desk.run(*arguments, **({} if "--url" not in arguments else {"url": arguments[-1]}))
    assert failed.returncode == 2
    assert said in failed.stderr
    assert failed.stdout == ""


def test_without_a_token_the_variable_is_named(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TAXI_TOKEN")
    failed = desk.run("bookings")
    assert (failed.returncode, failed.stdout) == (3, "")
    assert failed.stderr.startswith("taxi: TAXI_TOKEN: ")


def test_where_no_service_is_that_is_told_at_once(service: RunningService) -> None:
    for url, said in (
        ("http://127.0.0.1:1", "cannot connect"),
        (f"{service.address}/elsewhere", "is not the booking service"),
    ):
        failed = run("bookings", "--url", url)
        assert (failed.returncode, failed.stdout) == (3, "")
        assert failed.stderr.startswith("taxi: --url: ")
        assert said in failed.stderr
        assert failed.stderr.count("\n") == 1


def test_events_are_followed_from_any_place_on(desk: Desk) -> None:
    made = desk.json("book", rider=desk.rider, driver=desk.driver, at=START, minutes="30")
    booking = str(made["id"])
    assert desk.run("cancel", booking, reason="flu").returncode == 0
    wanted = {"after": "0-0", "count": "2", "booking": booking}
    shown = words_in(desk.run("events", **wanted).stdout)
    told = [word.rstrip(";") for word in shown if word.rstrip(";") in {"booked", "cancelled"}]
    assert told == ["booked", "cancelled", "cancelled"]  # the second from confirmed to cancelled
    assert "confirmed" in shown
    printed = desk.run("events", "--json", **wanted).stdout.splitlines()
    first, second = map(json.loads, printed)
    assert (first["kind"], second["kind"]) == ("booked", "cancelled")
    later = desk.run("events", "--json", **wanted | {"after": first["id"], "count": "1"})
    assert json.loads(later.stdout) == second
    wrong = desk.run("events", after="yesterday")
    assert (wrong.returncode, "--after" in wrong.stderr) == (2, True)


def test_what_a_hand_gets_wrong_is_told_in_words(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The address is in the environment, as for whoever does not want to repeat it.
    monkeypatch.setenv("TAXI_URL", desk.url)
    monkeypatch.setenv("COLUMNS", "200")
    wrong = run("cancel", "x")
    assert wrong.returncode == 2
    assert "'x' is not a valid integer." in wrong.stderr
    late, early = (
        run("book", f"--rider={desk.rider}", f"--driver={desk.driver}", f"--at={at}", "--minutes=9")
        for at in ("2020-05-06T09:00+02:00", START)
    )
    assert (late.returncode, early.returncode) == (0, 0)
    assert late.stderr == "Note: 2020-05-06 09:00 +0200 has passed.\n"
    assert early.stderr == ""
