"""Two server processes, each with a memory of its own that may be a moment behind."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psutil
import pytest

from booking.postgres import schema
from booking.postgres.embedded import EmbeddedPostgres
from tests.api.conftest import add, at
from tests.conftest import AUTHORIZATION, RunningService, _copies, _services


@pytest.fixture(scope="module")
def workers(server: EmbeddedPostgres, template_of: Any) -> Iterator[RunningService]:
    with _copies(server, template_of) as make, _services() as start:
        yield start(make(schema.SHIPPED), "--workers", "2")


def ask(workers: RunningService, method: str, path: str, **sent: Any) -> httpx.Response:
    """A request on a connection of its own, so that either process may get it."""
    return httpx.request(
        method,
        workers.address + path,
        headers=AUTHORIZATION,
        trust_env=False,
        timeout=30,
        **sent,
    )


@pytest.fixture
def people(workers: RunningService) -> tuple[str, int, int]:
    """A fleet with one driver, and a rider."""
    fleet = f"fleet-{uuid4()}"
    with httpx.Client(base_url=workers.address, headers=AUTHORIZATION, trust_env=False) as client:
        driver = add(client, "/drivers", {"name": "Ada", "fleet": fleet})
        return fleet, driver, add(client, "/riders", {"name": "Alan"})


def test_a_check_never_offers_what_it_has_just_named_as_taken(
    workers: RunningService, people: tuple[str, int, int]
) -> None:
    _, driver, rider = people
    for hour in range(30):
        window = {"start": at(60 * hour), "predicted_end": at(60 * hour + 30)}
        body = {"driver_id": driver, "rider_id": rider} | window
        assert ask(workers, "POST", "/bookings", json=body).status_code == 201
        check = ask(workers, "POST", "/bookings/check", json=body).json()
        assert check["would_conflict"] is True
        assert check["next_free"] == {
            "start": at(60 * hour + 30),
            "predicted_end": at(60 * hour + 60),
        }


def test_a_refusal_does_not_offer_the_driver_who_was_refused_nor_the_same_time(
    workers: RunningService, people: tuple[str, int, int]
) -> None:
    _, driver, rider = people
    for hour in range(40, 60):
        window = {"start": at(60 * hour), "predicted_end": at(60 * hour + 30)}
        body = {"driver_id": driver, "rider_id": rider} | window
        assert ask(workers, "POST", "/bookings", json=body).status_code == 201
        refused = ask(workers, "POST", "/bookings", json=body).json()
        assert driver not in refused["free_drivers"]
        assert refused["next_free"]["start"] == at(60 * hour + 30)


def test_what_is_offered_for_want_of_a_driver_is_not_what_was_just_refused(
    workers: RunningService, people: tuple[str, int, int]
) -> None:
    fleet, _, rider = people
    offered = 0
    for hour in range(30):
        window = {"start": at(60 * hour), "predicted_end": at(60 * hour + 30)}
        body = {"fleet": fleet, "rider_id": rider} | window
        assert ask(workers, "POST", "/bookings", json=body).status_code == 201
        assert ask(workers, "POST", "/bookings/check", json=body).json()["would_conflict"] is True
        refused = ask(workers, "POST", "/bookings", json=body).json()
        assert refused["free_drivers"] == []
        if refused["next_free"] is not None:  # else that process was behind, and knew it
            offered += 1
            assert refused["next_free"]["start"] == at(60 * hour + 30)
    assert offered


def test_a_worker_that_was_killed_is_replaced_and_its_gauges_forgotten(
    workers: RunningService,
) -> None:
    # Beside the workers there is Python's own resource tracker.
    victim = next(
        each
        for each in psutil.Process(workers.process.pid).children()
        if "resource_tracker" not in " ".join(each.cmdline())
    )
    shared = Path(victim.environ()["PROMETHEUS_MULTIPROC_DIR"])
    gauges = f"gauge_live*_{victim.pid}.db"
    assert list(shared.glob(gauges)), "with nothing to forget, nothing is shown"
    victim.kill()
    for _ in range(600):
        if not list(shared.glob(gauges)):
            assert ask(workers, "GET", "/ready").status_code == 200
            return
        time.sleep(0.1)
    pytest.fail("the gauges of the worker that was killed are still counted")
