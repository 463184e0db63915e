"""Whatever is wrong is named: the field, and the rule it breaks."""

import re
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from api.patterns import IN_WORDS
from tests.api.conftest import at
from tests.api.household import series

Wish = Callable[..., dict[str, Any]]

WRONG_BODIES = [
    ({"start": "2031-05-06T09:00:00"}, 400, "naive-instant", "start"),
    ({"predicted_end": "2031-05-06T09:30:00"}, 400, "naive-instant", "predicted_end"),
    ({"predicted_end": at(0)}, 422, "empty-window", "predicted_end"),
    ({"predicted_end": at(-10)}, 422, "empty-window", "predicted_end"),
    ({"predicted_end": at(24 * 60 + 1)}, 422, "too-long", "predicted_end"),
    (
        {"start": "0001-01-01T00:00:00Z", "predicted_end": "0001-01-01T01:00:00Z"},
        422,
        "out-of-calendar",
        "start",
    ),
    ({"predicted_end": "9999-12-31T23:59:59.999999Z"}, 422, "out-of-calendar", "predicted_end"),
    ({"start": 1_700_000_000}, 422, "invalid-input", "start"),
    ({"start": "tomorrow"}, 422, "invalid-input", "start"),
    ({"rider_id": "7"}, 422, "invalid-input", "rider_id"),
    ({"rider_id": True}, 422, "invalid-input", "rider_id"),
    ({"rider_id": 0}, 422, "invalid-input", "rider_id"),
    ({"driver_id": 2**53}, 422, "invalid-input", "driver_id"),
    ({"fleet": "main"}, 422, "invalid-input", "fleet"),
    ({"fleet": "a\x00b", "driver_id": None}, 422, "invalid-input", "fleet"),
    ({"rider_id": None}, 422, "invalid-input", "rider_id"),
    ({"surprise": 1}, 422, "invalid-input", "surprise"),
    ({"rider_id": 2**52}, 404, "unknown-rider", "rider_id"),
    ({"driver_id": 2**52}, 404, "unknown-driver", "driver_id"),
]


@pytest.mark.parametrize(("changes", "status", "problem", "field"), WRONG_BODIES)
def test_a_wrong_field_is_named(
    client: httpx.Client, wish: Wish, changes: dict[str, Any], status: int, problem: str, field: str
) -> None:
    response = client.post("/bookings", json=wish(**changes))
    assert response.headers["Content-Type"] == "application/problem+json"
    said = response.json()
    assert (response.status_code, said["status"]) == (status, status)
    assert said["type"] == f"/problems/{problem}"
    assert [each["field"] for each in said["errors"]] == [field]
    assert client.get(said["type"]).json()["title"] == said["title"]


def test_whoever_misses_a_form_is_told_it_in_words(client: httpx.Client, wish: Wish) -> None:
    path = client.post("/bookings", json=wish()).headers["Location"]
    wall_clock = {"rider_id": 1, "recurrence": {"zone": "UTC", "wall_clock": "7:30"}}
    clock = {"from": "9", "until": "10:00"}
    window = {"start": at(0), "end": at(30)}
    said = [
        client.post("/drivers", json={"name": " "}),
        client.post("/drivers", json={"name": "A\nda"}),
        client.get("/drivers", params={"fleet": " "}),
        client.post("/series", json=wall_clock),
        client.put("/drivers/1/shifts", json={"weekly": {"monday": [clock]}}),
        client.get("/availability", params=window | {"pickup": "north"}),
        client.post("/accounts", json={"email": "ada", "password": "a few words", "name": "A"}),
        client.post(f"{path}/cancel", json={"reason": "\0"}),
        client.post(f"{path}/cancel", headers={"If-Match": "3"}),
        client.post(f"{path}/cancel", headers={"Idempotency-Key": "caf\xe9".encode()}),
    ]
    assert [each.status_code for each in said] == [422] * len(said)
    told = {each.json()["errors"][0]["rule"] for each in said}
    assert told == set(IN_WORDS.values())


def test_every_form_in_the_documentation_has_its_words(client: httpx.Client) -> None:
    def patterns(part: object) -> Iterator[str]:
        if isinstance(part, dict):
            yield from (value for name, value in part.items() if name == "pattern")
        if isinstance(part, dict | list):
            for each in part.values() if isinstance(part, dict) else part:
                yield from patterns(each)

    assert set(patterns(client.get("/docs/openapi.json").json())) == set(IN_WORDS)


WRONG_PARAMETERS = [
    ("/bookings?driver=1", 422, "driver"),
    ("/bookings?driver_id=x", 422, "driver_id"),
    ("/bookings?driver_id=0", 422, "driver_id"),
    ("/bookings?state=parked", 422, "state"),
    ("/bookings?limit=0", 422, "limit"),
    ("/bookings?limit=1001", 422, "limit"),
    ("/bookings?cursor=nonsense", 422, "cursor"),
    ("/bookings?cursor=WzEsMl0", 422, "cursor"),
    ("/bookings?cursor=WyIyMDMxLTA1LTA2VDA5OjAwOjAwIiw0XQ", 422, "cursor"),  # a naive instant
    ("/bookings?limit=1&limit=2", 422, "limit"),
    ("/bookings?start=2031-05-06T09:00:00", 400, "start"),
    ("/bookings?start=2031-05-06T09:00:00%2B01:00&end=2031-05-06T08:00:00Z", 422, "end"),
    ("/availability?start=2031-05-06T09:00:00Z", 422, "end"),
    ("/availability?start=1700000000&end=2031-05-06T09:00:00Z", 422, "start"),
    ("/availability?start=2031-05-06T09:00:00+01:00&end=2031-05-06T09:00:00Z", 422, "start"),
    ("/bookings?fleet=a%00b", 422, "fleet"),
    ("/drivers?fleet=%20", 422, "fleet"),
    ("/availability?start=2031-05-06T09:00:00Z&end=2031-05-06T10:00:00Z&fleet=%00", 422, "fleet"),
    ("/drivers?working=perhaps", 422, "working"),
    ("/drivers/0", 422, "driver_id"),
    ("/drivers/1/gaps?start=2031-05-06T09:00:00Z&end=2031-07-06T09:00:00Z", 422, "end"),
]


@pytest.mark.parametrize(("path", "status", "field"), WRONG_PARAMETERS)
def test_a_wrong_parameter_is_named(
    client: httpx.Client, path: str, status: int, field: str
) -> None:
    response = client.get(path)
    assert response.status_code == status, response.text
    assert response.headers["Content-Type"] == "application/problem+json"
    assert [each["field"] for each in response.json()["errors"]] == [field]


@pytest.mark.parametrize(
    ("content", "content_type", "status"),
    [
        (b"{", "application/json", 400),
        (b"", "application/json", 422),
        (b"[]", "application/json", 422),
        (b"null", "application/json", 422),
        (b"\xff", "application/json", 400),
        (b"{}", "text/plain", 415),
        (b"{}", "application/x-www-form-urlencoded", 415),
        (b'"' + b"x" * 100_000 + b'"', "application/json", 413),
    ],
)
def test_a_body_that_is_no_booking_is_refused(
    client: httpx.Client, content: bytes, content_type: str, status: int
) -> None:
    response = client.post("/bookings", content=content, headers={"Content-Type": content_type})
    assert response.status_code == status, response.text
    assert response.headers["Content-Type"] == "application/problem+json"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("GET", "/drivers/ada", 404),
        ("GET", f"/drivers/{2**52}", 404),
        ("GET", f"/bookings/{2**52}", 404),
        ("GET", f"/riders/{2**52}", 404),
        (
            "GET",
            f"/drivers/{2**52}/agenda?start=2031-05-06T09:00:00Z&end=2031-05-07T09:00:00Z",
            404,
        ),
        ("GET", f"/drivers/{2**52}/gaps?start=2031-05-06T09:00:00Z&end=2031-05-07T09:00:00Z", 404),
        ("POST", f"/bookings/{2**52}/cancel", 404),
        ("POST", f"/drivers/{2**52}/retire", 404),
        ("GET", "/problems/boredom", 404),
        ("DELETE", "/bookings", 405),
    ],
)
def test_what_is_not_there_is_a_problem_too(
    client: httpx.Client, method: str, path: str, status: int
) -> None:
    response = client.request(method, path)
    assert response.status_code == status
    assert response.headers["Content-Type"] == "application/problem+json"
    assert response.json()["status"] == status


def test_what_happened_at_the_edge_of_the_calendar_is_refused(
    client: httpx.Client, wish: Wish
) -> None:
    path = f"/bookings/{client.post('/bookings', json=wish()).json()['id']}"
    refused = client.post(f"{path}/start", json={"at": "0001-01-01T00:00:00Z"})
    assert refused.status_code == 422
    assert refused.json()["errors"][0]["field"] == "at"
    assert client.post(f"{path}/start").status_code == 200


def test_a_refusal_late_in_the_calendar_is_no_error(client: httpx.Client, wish: Wish) -> None:
    last = {"start": "9998-12-31T23:00:00Z", "predicted_end": "9998-12-31T23:30:00Z"}
    refused = client.post("/bookings", json=wish(driver_id=None, fleet="nobody's", **last))
    assert refused.status_code == 409


@pytest.mark.parametrize("name", ["nothing.css", "swagger-ui.css/x", "x" * 300, "%00"])
def test_a_missing_asset_does_not_say_where_the_others_are(client: httpx.Client, name: str) -> None:
    missing = client.get(f"/docs-assets/{name}")
    assert missing.status_code == 404
    assert "packages" not in missing.text


@pytest.mark.parametrize(
    "body", [{"name": ""}, {"name": " "}, {"name": "A", "zone": "Mars/Base"}, {"name": "a\nb"}]
)
def test_a_driver_needs_a_name_and_a_zone_that_exists(
    client: httpx.Client, body: dict[str, str]
) -> None:
    response = client.post("/drivers", json=body)
    assert response.status_code == 422
    assert response.json()["errors"][0]["field"] in body


def test_a_number_in_a_path_is_digits(client: httpx.Client, driver_id: int) -> None:
    arabic = str(driver_id).translate({ord("0") + digit: 0x660 + digit for digit in range(10)})
    for loose in (arabic, f" {driver_id}", f"{driver_id}\n", f"+{driver_id}", f"0_{driver_id}"):
        assert int(loose) == driver_id
        for path in (f"/drivers/{quote(loose)}", f"/drivers/{quote(loose)}/shifts"):
            answer = client.get(path)
            assert (answer.status_code, answer.json()["type"]) == (404, "about:blank"), path
    # The controls: the same number in plain digits, and one that nobody can have.
    for path in (f"/drivers/{driver_id}", f"/drivers/0{driver_id}/shifts/"):
        assert client.get(path).status_code == 200
    assert client.get("/drivers/-1").status_code == 422


def test_whoever_names_no_such_value_is_told_which_there_are(
    client: httpx.Client, driver_id: int
) -> None:
    recurrence = series({"rider_id": 1, "driver_id": driver_id})
    recurrence["recurrence"]["weekdays"] = ["monday", "Montag"]
    told = {
        "state": client.get("/bookings", params={"state": "canceled"}),
        "kinds[1]": client.post(
            "/webhooks", json={"url": "https://example.com", "kinds": ["booked", "canceled"]}
        ),
        "recurrence.weekdays[1]": client.post("/series", json=recurrence),
    }
    for (field, answer), value in zip(
        told.items(), ("cancelled", "cancelled", "sunday"), strict=True
    ):
        (error,) = answer.json()["errors"]
        assert (answer.status_code, error["field"]) == (422, field)
        assert re.search(rf"Invalid enum value '\w+'; it may be .*\b{value}\b.*\.$", error["rule"])
