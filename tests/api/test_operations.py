"""What whoever runs the service looks at."""

import re
from typing import Any

import httpx

from api import problems as problems_module
from booking import errors
from booking.errors import TaxiError
from tests.api.conftest import add, at


def test_health_and_readiness_say_what_is_there(client: httpx.Client) -> None:
    assert client.get("/health").json() == {"status": "alive"}
    ready = client.get("/ready").json()
    assert (ready["status"], ready["database"], ready["index"]) == ("ready", "answers", "fresh")
    assert 0 <= ready["index_lag_s"] < 2


def test_metrics_count_bookings_by_outcome_and_requests_by_route(client: httpx.Client) -> None:
    driver, rider = (add(client, path, {"name": "A"}) for path in ("/drivers", "/riders"))
    booking = {
        "driver_id": driver,
        "rider_id": rider,
        "start": at(0),
        "predicted_end": at(30),
    }
    before = counts(client)
    for wanted in (booking, booking, booking | {"rider_id": 2**52}):
        client.post("/bookings", json=wanted)
    for number in (driver, rider):
        client.get(f"/drivers/{number}")
    after = counts(client)
    grown = {key: after[key] - before.get(key, 0) for key in after}
    assert grown["booked"] == grown["booking-conflict"] == grown["unknown-rider"] == 1
    text = client.get("/metrics").text
    assert re.search(r'taxi_requests_total\{.*path="/drivers/\{driver_id\}"', text)
    for gauge in ("taxi_index_age_seconds", "taxi_connections_in_use", "taxi_requests_waiting"):
        assert re.search(rf"^{gauge} ", text, re.MULTILINE), gauge


def counts(client: httpx.Client) -> dict[str, float]:
    found = re.findall(
        r'^taxi_bookings_total\{outcome="([^"]+)"\} (\S+)',
        client.get("/metrics").text,
        re.MULTILINE,
    )
    return {outcome: float(count) for outcome, count in found}


def test_every_error_of_the_domain_is_a_documented_problem(client: httpx.Client) -> None:
    listed = {each["type"]: each for each in client.get("/problems").json()["items"]}
    kinds: list[Any] = [
        kind
        for module in (errors, problems_module)
        for kind in vars(module).values()
        if isinstance(kind, type)
        and issubclass(kind, TaxiError)
        and kind.__module__ == module.__name__
    ]
    assert len(kinds) > 20
    assert len(listed) == len(kinds)
    for kind in kinds:
        known = listed[f"/problems/{problems_module.slug_of(kind)}"]
        assert known["title"] == kind.default_message()
        assert client.get(known["type"]).json() == known
